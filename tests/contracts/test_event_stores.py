"""One suite for every event store: what a group gets, keeps pending, gives to others, and puts aside."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.config.settings import load
from orchestrator.dev.servers import Redis
from orchestrator.errors import Invalid
from orchestrator.stream.stores import EventStore, NoGroup, StoreAway, open_store, order
from orchestrator.stream.stores.guarded import StoreBreaker, breaker_of, guarded
from orchestrator.stream.stores.memory import MemoryStore
from orchestrator.stream.stores.postgres import PostgresStore
from orchestrator.stream.stores.redis_streams import RedisStore

S, G = "tenant:acme:workflow:w:events", "worker-service"


@pytest.fixture(params=["memory", "redis", "postgres"])
def store(request: pytest.FixtureRequest) -> Iterator[EventStore]:
    if request.param == "memory":
        made: EventStore = MemoryStore()
    elif request.param == "redis":
        server: Redis = request.getfixturevalue("redis_server")
        redis_store = RedisStore(server.url)
        redis_store.redis.flushdb()
        made = redis_store
    else:
        made = PostgresStore(request.getfixturevalue("database_url"))
    yield made
    made.close()


def fill(store: EventStore, count: int, stream: str = S) -> list[str]:
    return [store.publish(stream, {"n": str(n)}) for n in range(count)]


def test_a_group_gets_each_entry_once_whoever_reads(store: EventStore) -> None:
    store.join(S, G)
    store.join(S, G)
    ids = fill(store, 25)
    assert ids == sorted(ids, key=order)
    got: list[str] = []
    for consumer in ("a", "b", "a", "b"):
        for _, entries in store.read(G, consumer, [S], 7, 0.05):
            got += [entry_id for entry_id, _ in entries]
    assert got == ids
    assert store.read(G, "a", [S], 7, 0.02) == []
    store.join(S, "other")
    assert [fields["n"] for _, fields in store.read("other", "x", [S], 3, 0.05)[0][1]] == ["0", "1", "2"]


def test_what_was_read_is_pending_until_it_is_acknowledged(store: EventStore) -> None:
    store.join(S, G)
    ids = fill(store, 4)
    store.read(G, "a", [S], 3, 0.05)
    backlog = store.backlog(S, G)
    assert (backlog.waiting, backlog.pending) == (1, 3)
    assert [entry_id for entry_id, _ in store.own(S, G, "a", 10)] == ids[:3]
    assert store.ack(S, G, ids[:2]) == 2
    assert store.ack(S, G, ids[:2]) == 0
    assert [(c.name, c.pending) for c in store.consumers(S, G)] == [("a", 1)]
    assert not store.dismiss(S, G, "a")
    store.ack(S, G, ids)
    store.dismiss(S, G, "a")
    assert store.consumers(S, G) == []


def test_what_a_silent_consumer_left_is_taken_over_and_what_is_kept_alive_is_not(store: EventStore) -> None:
    store.join(S, G)
    ids = fill(store, 4)
    store.read(G, "dead", [S], 4, 0.05)
    assert store.reclaim(S, G, "b", 5.0, 10) == ([], [])
    time.sleep(0.25)
    store.keep_alive(S, G, "dead", ids[2:])
    taken, gone = store.reclaim(S, G, "b", 0.2, 10)
    assert ([entry_id for entry_id, _ in taken], gone) == (ids[:2], [])
    assert store.held_by_others(S, G, "b", ids[3]) == ids[2:3]
    assert [entry_id for entry_id, _ in store.take_over(S, G, "b", "dead", 10)] == ids[2:]
    assert store.held_by_others(S, G, "b", ids[3]) == []
    assert [fields["n"] for _, fields in store.fetch(S, ids[1:3])] == ["1", "2"]


def test_putting_aside_acknowledges_and_writes_the_letter_once(store: EventStore) -> None:
    store.join(S, G)
    [entry_id] = fill(store, 1)
    store.read(G, "a", [S], 1, 0.05)
    assert store.put_aside(S, G, entry_id, {"reason": "bad"}, "e1")
    assert not store.put_aside(S, G, entry_id, {"reason": "bad"}, "e1")
    assert [fields["reason"] for _, fields in store.entries(f"{S}:dlq")] == ["bad"]
    assert store.backlog(S, G).pending == 0
    store.withdraw(S, "e1")
    assert store.entries(f"{S}:dlq") == []


def test_a_group_that_is_not_there_says_so_and_streams_are_found(store: EventStore) -> None:
    store.publish(S, {"a": "1"})
    store.publish("tenant:b:workflow:w:events", {"a": "1"})
    store.publish("unrelated", {"a": "1"})
    assert store.find("tenant:*:workflow:*:events") == [S, "tenant:b:workflow:w:events"]
    with pytest.raises(NoGroup):
        store.read("nobody", "a", [S], 1, 0.02)
    with pytest.raises(NoGroup):
        store.backlog(S, "nobody")


def test_a_reader_that_waits_is_given_what_comes(store: EventStore) -> None:
    store.join(S, G)

    def later() -> None:
        time.sleep(0.2)
        store.publish(S, {"a": "1"})
        if isinstance(store, PostgresStore):
            store.close()  # this thread's connection

    thread = threading.Thread(target=later)
    thread.start()
    begun = time.monotonic()
    found = store.read(G, "a", [S], 10, 120.0)
    assert found[0][1][0][1] == {"a": "1"}
    assert time.monotonic() - begun < 60
    thread.join()


def test_consumers_that_race_share_without_loss_or_doubles(store: EventStore, request: pytest.FixtureRequest) -> None:
    store.join(S, G)
    ids = fill(store, 300)
    got: list[str] = []

    def consume(name: str) -> None:
        own = store
        if isinstance(store, PostgresStore):
            own = PostgresStore(store._database.url)
        while found := own.read(G, name, [S], 5, 0.05):
            mine = [entry_id for _, entries in found for entry_id, _ in entries]
            assert own.ack(S, G, mine) == len(mine)
            got.extend(mine)
        if own is not store:
            own.close()

    threads = [threading.Thread(target=consume, args=(f"c{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got, key=order) == ids
    assert store.backlog(S, G).pending == 0


def test_a_stream_stays_bounded(store: EventStore) -> None:
    store.join(S, G)
    for n in range(1000):
        store.publish(S, {"n": str(n)}, 200)
        if n % 50 == 49:
            store.ack(S, G, [entry_id for _, entries in store.read(G, "a", [S], 100, 0.01) for entry_id, _ in entries])
    assert len(store.entries(S, limit=1000)) < 500


def test_what_was_not_read_is_not_trimmed(store: EventStore) -> None:
    """Of two groups one reads nothing, and what the other was given is not acknowledged."""
    for group in (G, "sleeps"):
        store.join(S, group)
    ids = [store.publish(S, {"n": str(n)}, 200) for n in range(350)]
    read = [entry_id for _, entries in store.read(G, "a", [S], 1000, 0.01) for entry_id, _ in entries]
    store.ack(S, G, read)
    ids += [store.publish(S, {"n": str(n)}, 200) for n in range(350)]

    assert store.backlog(S, "sleeps").waiting == 700
    assert [entry_id for entry_id, _ in store.entries(S, limit=1000)] == ids

    pending = [entry_id for _, entries in store.read("sleeps", "b", [S], 1000, 0.01) for entry_id, _ in entries]
    store.ack(S, "sleeps", pending[:400])
    read += [entry_id for _, entries in store.read(G, "a", [S], 1000, 0.01) for entry_id, _ in entries]
    store.ack(S, G, read)
    ids += [store.publish(S, {"n": str(n)}, 200) for n in range(100)]

    left = [entry_id for entry_id, _ in store.entries(S, limit=1000)]
    assert set(pending[400:]) <= set(left), "what is pending stays"
    assert len(left) < 600, "what both have done with goes"


def test_another_kind_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match='EVENTSTORE_TYPE: Expected redis or postgres, got "kafka"'):
        load({"EVENTSTORE_TYPE": "kafka"})


class Hanging:
    """A server that takes connections and never answers."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}/0"


def test_a_store_that_is_away_fails_fast_and_is_there_again_when_it_is(redis_server: Redis) -> None:
    """Through the door that everybody takes: the first calls wait for it, the others do not."""
    hanging = Hanging()
    away = open_store(load({"REDIS_URL": hanging.url, "WORKER_STREAM_BLOCK": "10ms"}))
    inner: Any = away
    inner.redis.connection_pool.connection_kwargs["socket_timeout"] = 0.3
    failures = []
    for _ in range(20):
        began = time.monotonic()
        with pytest.raises(StoreAway) as caught:
            away.publish(S, {"n": "1"})
        failures.append((time.monotonic() - began, "failed 3 times" in str(caught.value)))
    assert [fast for _, fast in failures[:3]] == [False] * 3
    assert [took for took, fast in failures[3:] if fast and took < 0.1], failures
    assert all(took < 0.1 for took, fast in failures if fast), failures

    # The same breaker, and a server that answers: one call asks, and all go through.
    hanging.listener.close()
    breaker = breaker_of("redis", hanging.url)
    assert breaker.state in ("OPEN", "HALF_OPEN")
    store = guarded(RedisStore(redis_server.url), breaker)
    deadline = time.monotonic() + 5
    while breaker.state != "CLOSED":
        assert time.monotonic() < deadline
        with contextlib.suppress(StoreAway):
            store.publish(S, {"n": "1"})
        time.sleep(0.05)  # between two looks
    assert store.publish(S, {"n": "2"})
    store.close()


def test_a_group_that_is_missing_is_an_answer() -> None:
    breaker = StoreBreaker("memory")
    store = guarded(MemoryStore(), breaker)
    for _ in range(10):
        with pytest.raises(NoGroup):
            store.read(G, "a", [S], 1, 0.01)
    assert breaker.state == "CLOSED"


def test_of_many_callers_one_a_second_asks_a_store_that_is_away() -> None:
    now = [100.0]
    breaker = StoreBreaker("redis", now=lambda: now[0])
    for _ in range(3):
        breaker.ask()
        breaker.tell("bad", "timed out")
    with pytest.raises(StoreAway, match="timed out"):
        breaker.ask()
    now[0] += 1.01
    breaker.ask()
    with pytest.raises(StoreAway):
        breaker.ask()
    breaker.tell("good")
    breaker.ask()
    assert breaker.state == "CLOSED"
