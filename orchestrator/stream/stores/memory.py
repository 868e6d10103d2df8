"""Streams in this process, for tests: what the others do, as plainly as it can be said."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from orchestrator.stream.stores import Backlog, ConsumerState, Entry, Lost, NoGroup, order


@dataclass
class _Pending:
    consumer: str
    since: float


@dataclass
class _Group:
    last: tuple[int, int] = (0, 0)
    pending: dict[str, _Pending] = field(default_factory=dict)
    consumers: dict[str, float] = field(default_factory=dict)


class MemoryStore:
    def __init__(self) -> None:
        self._streams: dict[str, dict[str, dict[str, str]]] = {}
        self._groups: dict[tuple[str, str], _Group] = {}
        self._failures: dict[str, str] = {}
        self._count = 0
        self._changed = threading.Condition(threading.RLock())

    def find(self, pattern: str) -> list[str]:
        with self._changed:
            return sorted(name for name in self._streams if fnmatchcase(name, pattern))

    def publish(self, stream: str, fields: dict[str, str], length: int | None = None) -> str:
        with self._changed:
            self._count += 1
            entry_id = f"{self._count}-0"
            held = self._streams.setdefault(stream, {})
            held[entry_id] = dict(fields)
            needed = self._needed(stream)
            while length is not None and len(held) > length:
                first = next(iter(held))
                if needed is not None and order(first) >= needed:
                    break
                del held[first]
            self._changed.notify_all()
            return entry_id

    def _needed(self, stream: str) -> tuple[int, int] | None:
        """The first entry that a group has not done with; None without groups."""
        groups = [held for (name, _), held in self._groups.items() if name == stream]
        return min((min([held.last, *map(order, held.pending)]) for held in groups), default=None)

    def join(self, stream: str, group: str) -> bool:
        with self._changed:
            self._streams.setdefault(stream, {})
            is_new = (stream, group) not in self._groups
            self._groups.setdefault((stream, group), _Group())
            return is_new

    def read(self, group: str, consumer: str, streams: Sequence[str], count: int, block_s: float) -> list[tuple[str, list[Entry]]]:
        deadline = time.monotonic() + block_s
        with self._changed:
            while True:
                found = [(stream, entries) for stream in streams if (entries := self._next(stream, group, consumer, count))]
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                self._changed.wait(left)

    def _next(self, stream: str, group: str, consumer: str, count: int) -> list[Entry]:
        held = self._group(stream, group)
        held.consumers[consumer] = time.monotonic()
        found = [(i, f) for i, f in self._streams[stream].items() if order(i) > held.last][:count]
        for entry_id, _ in found:
            held.last = order(entry_id)
            held.pending[entry_id] = _Pending(consumer, time.monotonic())
        return found

    def _group(self, stream: str, group: str) -> _Group:
        if (stream, group) not in self._groups:
            raise NoGroup(f"{stream} has no group {group}")
        return self._groups[stream, group]

    def own(self, stream: str, group: str, consumer: str, count: int, after: str = "0") -> list[Entry]:
        with self._changed:
            pending = self._group(stream, group).pending
            ids = [i for i, p in pending.items() if p.consumer == consumer and order(i) > order(after)]
            return self.fetch(stream, sorted(ids, key=order)[:count])

    def reclaim(self, stream: str, group: str, consumer: str, idle_s: float, count: int) -> tuple[list[Entry], list[str]]:
        with self._changed:
            pending = self._group(stream, group).pending
            old = [i for i, p in pending.items() if time.monotonic() - p.since >= idle_s][:count]
            return self._claim(stream, pending, consumer, old)

    def take_over(self, stream: str, group: str, consumer: str, gone: str, count: int) -> list[Entry]:
        with self._changed:
            pending = self._group(stream, group).pending
            return self._claim(stream, pending, consumer, [i for i, p in pending.items() if p.consumer == gone][:count])[0]

    def _claim(self, stream: str, pending: dict[str, _Pending], consumer: str, ids: list[str]) -> tuple[list[Entry], list[str]]:
        gone = [i for i in ids if i not in self._streams[stream]]
        for entry_id in ids:
            pending[entry_id] = _Pending(consumer, time.monotonic())
        for entry_id in gone:
            del pending[entry_id]
        return self.fetch(stream, [i for i in ids if i not in gone]), gone

    def keep_alive(self, stream: str, group: str, consumer: str, ids: Sequence[str]) -> None:
        with self._changed:
            pending = self._group(stream, group).pending
            for entry_id in ids:
                if entry_id in pending:
                    pending[entry_id] = _Pending(consumer, time.monotonic())

    def held_by_others(self, stream: str, group: str, consumer: str, below: str) -> list[str]:
        with self._changed:
            pending = self._group(stream, group).pending
            return sorted((i for i, p in pending.items() if p.consumer != consumer and order(i) < order(below)), key=order)

    def fetch(self, stream: str, ids: Sequence[str]) -> list[Entry]:
        held = self._streams.get(stream, {})
        return [(i, held[i]) for i in ids if i in held]

    def entries(self, stream: str, after: str = "0", limit: int = 100) -> list[Entry]:
        with self._changed:
            return [(i, f) for i, f in self._streams.get(stream, {}).items() if order(i) > order(after)][:limit]

    def ack(self, stream: str, group: str, ids: Sequence[str]) -> int:
        with self._changed:
            pending = self._group(stream, group).pending
            return sum(pending.pop(i, None) is not None for i in ids)

    def put_aside(self, stream: str, group: str, entry_id: str, letter: dict[str, str], failure_id: str) -> bool:
        with self._changed:
            if not self.ack(stream, group, [entry_id]):
                return False
            self._failures[failure_id] = self.publish(f"{stream}:dlq", letter)
            return True

    def withdraw(self, stream: str, failure_id: str) -> None:
        with self._changed:
            self._streams.get(f"{stream}:dlq", {}).pop(self._failures.pop(failure_id, ""), None)

    def backlog(self, stream: str, group: str) -> Backlog:
        with self._changed:
            held = self._group(stream, group)
            return Backlog(sum(order(i) > held.last for i in self._streams[stream]), len(held.pending))

    def lost(self, stream: str, group: str) -> Lost | None:
        return None

    def consumers(self, stream: str, group: str) -> list[ConsumerState]:
        with self._changed:
            held = self._group(stream, group)
            now = time.monotonic()
            return [
                ConsumerState(name, sum(p.consumer == name for p in held.pending.values()), now - seen)
                for name, seen in sorted(held.consumers.items())
            ]

    def dismiss(self, stream: str, group: str, consumer: str) -> bool:
        with self._changed:
            held = self._group(stream, group)
            if any(p.consumer == consumer for p in held.pending.values()):
                return False
            return held.consumers.pop(consumer, None) is not None

    def close(self) -> None:
        return None
