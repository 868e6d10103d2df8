"""`python -m benchmarks counts`: what an instance costs in things that are counted, whatever the machine's mood.

Statements of the worker and of whoever starts, bytes of PostgreSQL's log of changes, commands to Redis: each per instance, over many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import redis

from benchmarks.rig import Rig, wait_for

WORKER = "worker-counted"


def workloads() -> dict[str, tuple[int, Callable[[Any], Any]]]:
    """What is counted, and per how many."""

    def starts(workflow: str, count: int, input: Any) -> Callable[[Any], Any]:
        def act(runner: Any) -> None:
            for _ in range(count):
                runner.start_workflow(workflow, input=input)

        return act

    return {
        "sequence of 10": (300, starts("ten", 300, {})),
        "fan-out of 1,000, per branch": (1000, starts("wide", 1, {"items": list(range(1000))})),
        "loop of 100, per round": (1000, starts("loop", 10, {"items": list(range(100))})),
        "a wait and a step": (300, starts("nap", 300, {"seconds": 0.5})),
        "one step": (300, starts("stamped", 300, {})),
    }


def count() -> dict[str, dict[str, float]]:
    rig = Rig()
    rig.start()
    try:
        found: dict[str, dict[str, float]] = {}
        with rig.ours(PGAPPNAME=WORKER) as runner:
            _settle(rig)
            rig.log_statements(on=True)
            for name, (per, act) in workloads().items():
                before = _state(rig)
                act(runner)
                started = _state(rig)
                rig.all_done()
                _settle(rig)
                after = _state(rig)
                found[name] = {
                    "statements of the worker": (after["worker"] - before["worker"]) / per,
                    "statements of the starter": (started["others"] - before["others"]) / per,
                    "bytes of WAL": (after["wal"] - before["wal"]) / per,
                    "commands to Redis": (after["redis"] - before["redis"]) / per,
                }
        return found
    finally:
        rig.stop()


def _settle(rig: Rig) -> None:
    """Until what was done is told, too."""
    wait_for(lambda: not rig.sql("select 1 from outbox limit 1"), what="the outbox is told")


def _state(rig: Rig) -> dict[str, int]:
    text = rig.postgres.log.read_text(errors="replace")
    worker = len(re.findall(rf"^{WORKER} LOG:  (?:execute|statement)", text, re.MULTILINE))
    every = len(re.findall(r"^\S* ?LOG:  (?:execute|statement)", text, re.MULTILINE))
    with redis.Redis.from_url(rig.redis.url) as client:
        commands = int(client.info("stats")["total_commands_processed"])
    wal = int(rig.sql("select (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint")[0][0])
    return {"worker": worker, "others": every - worker, "redis": commands, "wal": wal}


if __name__ == "__main__":
    print(json.dumps(count(), indent=2))
