"""Streams in Postgres, beside the truth: for whom one server is enough."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import psycopg

from orchestrator.config.settings import SCHEMA
from orchestrator.store import streams as tables
from orchestrator.store.connection import BROKEN, Connection, Database
from orchestrator.stream.stores import Backlog, ConsumerState, Entry, Lost, NoGroup, StoreAway

LOOK_EVERY_S = 0.25


class PostgresStore:
    def __init__(self, url: str, schema: str = SCHEMA, *, slow_s: float = 0.0) -> None:
        self._database = Database(url, schema, patience_s=5.0, slow_s=slow_s)
        self._listening: Connection | None = None

    @contextlib.contextmanager
    def _c(self) -> Iterator[Connection]:
        try:
            yield self._database.connection()
        except BROKEN as error:
            self._database.drop()
            raise StoreAway(str(error).split("\n", 1)[0]) from None
        except psycopg.errors.UniqueViolation as error:
            raise StoreAway(str(error).split("\n", 1)[0]) from None

    def find(self, pattern: str) -> list[str]:
        with self._c() as c:
            return tables.find(c, pattern)

    def publish(self, stream: str, fields: dict[str, str], length: int | None = None) -> str:
        with self._c() as c:
            return _text(tables.publish(c, stream, fields, length))

    def join(self, stream: str, group: str) -> bool:
        with self._c() as c:
            return tables.join(c, stream, group)

    def read(self, group: str, consumer: str, streams: Sequence[str], count: int, block_s: float) -> list[tuple[str, list[Entry]]]:
        deadline = time.monotonic() + block_s
        with self._c() as c:
            if self._listening is not c:
                # Asked before looking: what is appended after the look is told.
                tables.listen(c)
                self._listening = c
            for stream in streams:
                if not tables.has_group(c, stream, group):
                    raise NoGroup(f"{stream} has no group {group}")
            while True:
                found = [(stream, _entries(rows)) for stream in streams if (rows := tables.read(c, stream, group, consumer, count))]
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                for _ in c.notifies(timeout=min(left, LOOK_EVERY_S), stop_after=1):
                    pass

    def own(self, stream: str, group: str, consumer: str, count: int, after: str = "0") -> list[Entry]:
        with self._c() as c:
            return _entries(tables.pending_of(c, stream, group, consumer, count, _number(after)))

    def reclaim(self, stream: str, group: str, consumer: str, idle_s: float, count: int) -> tuple[list[Entry], list[str]]:
        with self._c() as c:
            return _entries(tables.claim(c, stream, group, consumer, idle_s=idle_s, count=count)), []

    def take_over(self, stream: str, group: str, consumer: str, gone: str, count: int) -> list[Entry]:
        with self._c() as c:
            return _entries(tables.claim(c, stream, group, consumer, idle_s=0.0, count=count, of=gone))

    def keep_alive(self, stream: str, group: str, consumer: str, ids: Sequence[str]) -> None:
        with self._c() as c:
            tables.keep_alive(c, stream, group, consumer, [_number(i) for i in ids])

    def held_by_others(self, stream: str, group: str, consumer: str, below: str) -> list[str]:
        with self._c() as c:
            return [_text(i) for i in tables.held_by_others(c, stream, group, consumer, _number(below))]

    def fetch(self, stream: str, ids: Sequence[str]) -> list[Entry]:
        with self._c() as c:
            return _entries(tables.fetch(c, stream, [_number(i) for i in ids]))

    def entries(self, stream: str, after: str = "0", limit: int = 100) -> list[Entry]:
        with self._c() as c:
            return _entries(tables.entries(c, stream, _number(after), limit))

    def ack(self, stream: str, group: str, ids: Sequence[str]) -> int:
        with self._c() as c:
            return tables.ack(c, stream, group, [_number(i) for i in ids])

    def put_aside(self, stream: str, group: str, entry_id: str, letter: dict[str, str], failure_id: str) -> bool:
        with self._c() as c, c.transaction():
            if not tables.ack(c, stream, group, [_number(entry_id)]):
                return False
            tables.publish(c, f"{stream}:dlq", {**letter, "failure_id": failure_id}, None)
            return True

    def withdraw(self, stream: str, failure_id: str) -> None:
        with self._c() as c:
            tables.withdraw(c, f"{stream}:dlq", failure_id)

    def backlog(self, stream: str, group: str) -> Backlog:
        with self._c() as c:
            if not tables.has_group(c, stream, group):
                raise NoGroup(f"{stream} has no group {group}")
            return Backlog(*tables.backlog(c, stream, group))

    def lost(self, stream: str, group: str) -> Lost | None:
        # Entries are removed by `publish` alone, which leaves what was not read.
        return None

    def consumers(self, stream: str, group: str) -> list[ConsumerState]:
        with self._c() as c:
            return [ConsumerState(*row) for row in tables.consumers(c, stream, group)]

    def dismiss(self, stream: str, group: str, consumer: str) -> bool:
        # A consumer is nothing but what is pending with it.
        return not self.own(stream, group, consumer, 1)

    def close(self) -> None:
        self._database.drop()


def _number(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def _text(number: int) -> str:
    return f"{number}-0"


def _entries(rows: Sequence[tuple[int, dict[str, str]]]) -> list[Entry]:
    return [(_text(number), fields) for number, fields in rows]
