"""The peer of the bridge: what it costs to read and acknowledge a stream and do nothing at all.

python -m benchmarks.bridge_peer COUNT each|batch
    each    ten at once, each event acknowledged by itself, as the loop that every consumer begins as does
    batch   five hundred at once, acknowledged at once
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import redis


def main(count: int, how: str) -> float:
    client: Any = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
    group = f"peer-{how}"
    client.xgroup_create("events:workflow", group, id="0", mkstream=True)
    done, size = 0, 10 if how == "each" else 500
    began = time.perf_counter()
    while done < count:
        for _, entries in client.xreadgroup(group, "peer", {"events:workflow": ">"}, count=size, block=1000):
            if how == "each":
                for entry_id, _ in entries:
                    client.xack("events:workflow", group, entry_id)
            else:
                client.xack("events:workflow", group, *[entry_id for entry_id, _ in entries])
            done += len(entries)
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    print(main(int(sys.argv[1]), sys.argv[2]))
