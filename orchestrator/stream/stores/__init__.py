"""Where streams of events are kept: one interface, chosen by EVENTSTORE_TYPE.

    redis       Redis Streams: entries, consumer groups, pending entries
    postgres    the same in three tables, for whom one server is enough
    memory      in this process, for tests

A consumer group gets each entry once; what a consumer read is *pending* until it acknowledges it, and may be taken over
by another when it falls silent. All entries are mappings of text to text, all ids can be compared with `order`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.errors import Fault, Invalid

if TYPE_CHECKING:
    from orchestrator.config.settings import Settings

Entry = tuple[str, dict[str, str]]


class StoreAway(Exception):
    """The store does not answer; later it may."""


class NoGroup(Exception):
    """The group, or the stream with it, is gone: somebody emptied the store."""


class NoStream(Exception):
    """What is kept under a stream's name is something else."""


@dataclass(frozen=True, slots=True)
class ConsumerState:
    name: str
    pending: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """`waiting`: not yet read by the group; `pending`: read and not acknowledged."""

    waiting: int
    pending: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Entries that were removed between `after`, which the group read last, and about `newest`."""

    number: int
    after: str
    newest: str


def order(entry_id: str) -> tuple[int, int]:
    head, _, tail = entry_id.partition("-")
    return int(head), int(tail or 0)


class EventStore(Protocol):
    def find(self, pattern: str) -> list[str]:
        """Streams whose names match a pattern with `*`."""

    def publish(self, stream: str, fields: dict[str, str], length: int | None = None) -> str:
        """Append an entry; of those that every group has done with, about `length` are kept. Gives its id."""

    def join(self, stream: str, group: str) -> bool:
        """Make the stream and the group, which begins at the beginning; whether it was made now. Nothing happens where they are."""

    def read(self, group: str, consumer: str, streams: Sequence[str], count: int, block_s: float) -> list[tuple[str, list[Entry]]]:
        """New entries, waiting so long for the first; they are pending then. Raises `NoGroup`."""

    def own(self, stream: str, group: str, consumer: str, count: int, after: str = "0") -> list[Entry]:
        """What this consumer read and did not acknowledge, oldest first, after an id."""

    def reclaim(self, stream: str, group: str, consumer: str, idle_s: float, count: int) -> tuple[list[Entry], list[str]]:
        """Take over what has been pending for so long; gives the entries, and the ids of those that are no more."""

    def take_over(self, stream: str, group: str, consumer: str, gone: str, count: int) -> list[Entry]:
        """Take over what a consumer left that is known to be gone."""

    def keep_alive(self, stream: str, group: str, consumer: str, ids: Sequence[str]) -> None:
        """These are still being worked at: nobody shall take them over."""

    def held_by_others(self, stream: str, group: str, consumer: str, below: str) -> list[str]:
        """Ids of entries before this one that are pending with others, in order."""

    def fetch(self, stream: str, ids: Sequence[str]) -> list[Entry]: ...

    def entries(self, stream: str, after: str = "0", limit: int = 100) -> list[Entry]: ...

    def ack(self, stream: str, group: str, ids: Sequence[str]) -> int:
        """Gives how many were pending."""

    def put_aside(self, stream: str, group: str, entry_id: str, letter: dict[str, str], failure_id: str) -> bool:
        """Acknowledge it and append the letter to `<stream>:dlq`, both or none, and once. The failure is kept under its id."""

    def withdraw(self, stream: str, failure_id: str) -> None:
        """The letter of an event that is replayed or discarded."""

    def backlog(self, stream: str, group: str) -> Backlog: ...

    def lost(self, stream: str, group: str) -> Lost | None:
        """What somebody removed before the group read it, since it read last."""

    def consumers(self, stream: str, group: str) -> list[ConsumerState]: ...

    def dismiss(self, stream: str, group: str, consumer: str) -> bool:
        """Forget a consumer, unless something is pending with it."""

    def close(self) -> None: ...


def open_store(settings: Settings) -> EventStore:
    """Behind a breaker: a store that is away holds nobody up."""
    from orchestrator.stream.stores.guarded import breaker_of, guarded

    url = settings.redis_url if settings.eventstore_type == "redis" else settings.database_url
    return guarded(_opened(settings), breaker_of(settings.eventstore_type, url))


def _opened(settings: Settings) -> EventStore:
    if settings.eventstore_type == "redis":
        from orchestrator.stream.stores.redis_streams import RedisStore

        return RedisStore(settings.redis_url, block_s=settings.stream_block_s)
    if settings.eventstore_type == "postgres":
        from orchestrator.stream.stores.postgres import PostgresStore

        return PostgresStore(settings.database_url, settings.database_schema, slow_s=settings.slow_query_s)
    raise Invalid([Fault("EVENTSTORE_TYPE", f"is '{settings.eventstore_type}'; write redis or postgres")], "configuration")


def withdraw(settings: Settings, stream: str, failure_id: str) -> None:
    """Take the letter of an event that is replayed or discarded out of the dead-letter stream."""
    store = open_store(settings)
    try:
        store.withdraw(stream, failure_id)
    finally:
        store.close()


def publisher(settings: Settings) -> Callable[[str, dict[str, str]], str] | None:
    """How to publish where streams are not in Redis; None where they are."""
    if settings.eventstore_type == "redis":
        return None

    def publish(stream: str, fields: dict[str, str]) -> str:
        store = open_store(settings)
        try:
            return store.publish(stream, fields, settings.source_stream_length)
        finally:
            store.close()

    return publish
