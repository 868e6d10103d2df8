"""Streams in Redis: XADD, XREADGROUP, XACK, XAUTOCLAIM as they are."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import redis

from orchestrator import trimming
from orchestrator.stream.stores import Backlog, ConsumerState, Entry, Lost, NoGroup, NoStream, StoreAway, order
from orchestrator.telemetry import metrics

logger = logging.getLogger("orchestrator.bridge")

FAILURES_FOR_S = 30 * 86400
LETTERS = 10_000

# Acknowledging says whether it was ours to put aside: of two who try, one appends.
_PUT_ASIDE = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return false end
local letter = {}
for i = 5, #ARGV do letter[#letter + 1] = ARGV[i] end
local id = redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(letter))
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], 'dlq_entry', id, unpack(letter))
redis.call('EXPIRE', KEYS[3], ARGV[4])
return id
"""

# What others hold before an entry, at one moment: an entry that one consumer takes over from another is not missed.
_HELD_BY_OTHERS = """
local found = {}
for _, consumer in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1])[4] or {}) do
    if consumer[1] ~= ARGV[2] then
        local start = '-'
        repeat
            local page = redis.call('XPENDING', KEYS[1], ARGV[1], start, '(' .. ARGV[3], 1000, consumer[1])
            for _, one in ipairs(page) do found[#found + 1] = one[1] end
            if #page > 0 then start = '(' .. page[#page][1] end
        until #page < 1000
    end
end
return found
"""


class RedisStore:
    def __init__(self, url: str, *, block_s: float = 1.0) -> None:
        self.redis: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",
            socket_connect_timeout=2,
            socket_timeout=block_s + 10,
        )
        self._put_aside = self.redis.register_script(_PUT_ASIDE)
        self._held_by_others = self.redis.register_script(_HELD_BY_OTHERS)

    def find(self, pattern: str) -> list[str]:
        with _told():
            return sorted(str(key) for key in self.redis.scan_iter(pattern, count=500, _type="stream"))

    def publish(self, stream: str, fields: dict[str, str], length: int | None = None) -> str:
        with _told():
            entry_id = str(self.redis.xadd(stream, fields))
            trimming.appended(self.redis, stream, length)
            return entry_id

    def join(self, stream: str, group: str) -> bool:
        with _told():
            try:
                self.redis.xgroup_create(stream, group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
                return False
            return True

    def read(self, group: str, consumer: str, streams: Sequence[str], count: int, block_s: float) -> list[tuple[str, list[Entry]]]:
        with _told():
            block = max(1, int(block_s * 1000))
            return list(self.redis.xreadgroup(group, consumer, dict.fromkeys(streams, ">"), count=count, block=block) or [])

    def own(self, stream: str, group: str, consumer: str, count: int, after: str = "0") -> list[Entry]:
        with _told():
            found = self.redis.xreadgroup(group, consumer, {stream: after}, count=count) or []
            return [(entry_id, fields) for _, entries in found for entry_id, fields in entries if fields]

    def reclaim(self, stream: str, group: str, consumer: str, idle_s: float, count: int) -> tuple[list[Entry], list[str]]:
        with _told():
            answer = self.redis.xautoclaim(stream, group, consumer, int(idle_s * 1000), count=count)
        gone = list(answer[2]) if len(answer) > 2 else []
        return [(entry_id, fields) for entry_id, fields in answer[1] if fields], gone

    def take_over(self, stream: str, group: str, consumer: str, gone: str, count: int) -> list[Entry]:
        with _told():
            ids = [one["message_id"] for one in self.redis.xpending_range(stream, group, "-", "+", count, consumername=gone)]
            if not ids:
                return []
            taken = self.redis.xclaim(stream, group, consumer, 0, ids)
            held = [(entry_id, fields) for entry_id, fields in taken if fields]
            lost = set(ids) - {entry_id for entry_id, _ in held}
            if lost:
                # Removed before anybody came to them: nothing is left to be done, but to say so.
                self.redis.xack(stream, group, *lost)
                metrics.bridge_lost(stream, len(lost))
                logger.error("%d entries of %s that %s had read were removed before it was done with them", len(lost), stream, gone)
            return held

    def keep_alive(self, stream: str, group: str, consumer: str, ids: Sequence[str]) -> None:
        with _told():
            for start in range(0, len(ids), 500):
                self.redis.xclaim(stream, group, consumer, 0, list(ids[start : start + 500]), justid=True)

    def held_by_others(self, stream: str, group: str, consumer: str, below: str) -> list[str]:
        with _told():
            return [str(entry_id) for entry_id in self._held_by_others(keys=[stream], args=[group, consumer, below])]

    def fetch(self, stream: str, ids: Sequence[str]) -> list[Entry]:
        with _told():
            pipeline = self.redis.pipeline(transaction=False)
            for entry_id in ids:
                pipeline.xrange(stream, entry_id, entry_id)
            return [entry for found in pipeline.execute() for entry in found]

    def entries(self, stream: str, after: str = "0", limit: int = 100) -> list[Entry]:
        with _told():
            return list(self.redis.xrange(stream, f"({after}" if after != "0" else "-", "+", count=limit))

    def ack(self, stream: str, group: str, ids: Sequence[str]) -> int:
        with _told():
            return int(self.redis.xack(stream, group, *ids)) if ids else 0

    def put_aside(self, stream: str, group: str, entry_id: str, letter: dict[str, str], failure_id: str) -> bool:
        flat = [text for pair in letter.items() for text in pair]
        with _told():
            keys = [stream, f"{stream}:dlq", f"workflow:failures:{failure_id}"]
            return bool(self._put_aside(keys=keys, args=[group, entry_id, LETTERS, FAILURES_FOR_S, *flat]))

    def withdraw(self, stream: str, failure_id: str) -> None:
        with _told():
            key = f"workflow:failures:{failure_id}"
            letter = self.redis.hget(key, "dlq_entry")
            if letter:
                self.redis.xdel(f"{stream}:dlq", letter)
            self.redis.delete(key)

    def backlog(self, stream: str, group: str) -> Backlog:
        with _told():
            for found in self.redis.xinfo_groups(stream):
                if found["name"] == group:
                    lag = found.get("lag")
                    waiting = self._count_after(stream, found["last-delivered-id"]) if lag is None else lag
                    return Backlog(int(waiting), int(found["pending"]))
        raise NoGroup(f"{stream} has no group {group}")

    def lost(self, stream: str, group: str) -> Lost | None:
        """Redis says since version 7 what was removed; before, nobody knows."""
        with _told():
            pipeline = self.redis.pipeline(transaction=True)
            pipeline.xinfo_stream(stream)
            pipeline.xinfo_groups(stream)
            about, groups = pipeline.execute()
        mine = next((one for one in groups if one["name"] == group), None)
        if mine is None or "entries-added" not in about:
            return None
        last, deleted = mine["last-delivered-id"], about["max-deleted-entry-id"]
        # A group that has read nothing yet has no number.
        removed, read = int(about["entries-added"]) - int(about["length"]), 0 if last == "0-0" else mine["entries-read"]
        is_deleted = order(deleted) > order(last)  # by its id; what is trimmed is known by numbers alone
        number = max(0 if read is None else removed - int(read), int(is_deleted))
        first = about["first-entry"][0] if about["first-entry"] else about["last-generated-id"]
        return Lost(number, last, deleted if is_deleted else first) if number else None

    def _count_after(self, stream: str, last: str) -> int:
        """Where Redis lost count (entries were deleted), it is counted."""
        return len(self.redis.xrange(stream, f"({last}", "+", count=100_000))

    def consumers(self, stream: str, group: str) -> list[ConsumerState]:
        with _told():
            return [ConsumerState(c["name"], c["pending"], c["idle"] / 1000) for c in self.redis.xinfo_consumers(stream, group)]

    def dismiss(self, stream: str, group: str, consumer: str) -> bool:
        with _told():
            # Deleting a consumer drops what is pending with it: looked at and deleted as one.
            return bool(
                self.redis.eval(
                    "for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do"
                    " if c[2] == ARGV[2] and c[4] == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) return 1 end"
                    " end return 0",
                    1,
                    stream,
                    group,
                    consumer,
                )
            )

    def close(self) -> None:
        self.redis.close()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of the client as those of the interface."""
    try:
        yield
    except redis.ResponseError as error:
        if "NOGROUP" in str(error) or "no such key" in str(error):
            raise NoGroup(str(error)) from None
        if "WRONGTYPE" in str(error):
            raise NoStream("what is kept under this name is no stream") from None
        if any(word in str(error) for word in ("LOADING", "UNBLOCKED", "READONLY", "MASTERDOWN", "MISCONF", "OOM")):
            raise StoreAway(str(error)) from None
        raise
    except redis.RedisError as error:
        raise StoreAway(f"{type(error).__name__}: {error}") from None
