"""Triggers: what events do, once each, in the order of their keys, whatever fails in between."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api import create_app
from orchestrator.definition.triggers import read_triggers
from orchestrator.engine import effects, intake, starts
from orchestrator.errors import Invalid, NotFound
from orchestrator.store import events
from orchestrator.store.events import Arrival, EventFilter, claim_held
from orchestrator.stream.consumer import Consumer, Reads
from orchestrator.stream.envelopes import tenant_of
from orchestrator.stream.stores import StoreAway
from orchestrator.stream.stores.memory import MemoryStore
from tests.stack import Stack, until


def event(n: int, type: str = "t", **more: Any) -> dict[str, Any]:
    return {"id": str(n), "source": "/test", "type": type, "data": {"n": n, **more}}


def instances(stack: Stack, workflow: str = "numbered") -> list[Any]:
    return [row[0] for row in stack.sql("select input from instances where workflow = %s order by created_at, id", workflow)]


def inputs(stack: Stack) -> list[int]:
    """In the order of the effects."""
    rows = stack.sql("select i.input from effects f join instances i on i.id = f.instance_id order by f.event_id, f.trigger")
    return [row[0]["n"] for row in rows]


@pytest.fixture
def alone(stack: Stack) -> Stack:
    """Without a worker: what triggers do is done by whoever brings the event."""
    return stack


def test_a_trigger_starts_what_it_names_once_per_event(alone: Stack) -> None:
    alone.runner.put_trigger(
        {
            "name": "numbers",
            "on": ["order.*", "t"],
            "source": "/test",
            "filter": ".data.n > 1",
            "start": "numbered",
            "input": {"n": "${ .data.n }", "from": "${ .type }"},
            "labels": {"shop": "${ .data.shop }"},
        }
    )
    for _ in range(3):
        alone.runner.send_events([event(1), event(2), event(3, "order.paid", shop="a"), event(4, "other"), {**event(5), "source": "/x"}])
    assert sorted(instances(alone), key=lambda one: one["n"]) == [{"n": 2, "from": "t"}, {"n": 3, "from": "order.paid"}]
    assert alone.sql("select labels, metadata -> 'event' ->> 'id', source from instances where input ->> 'n' = '3'") == [
        ({"shop": "a"}, "3", "trigger")
    ]
    found = alone.runner.events(EventFilter(type="order.*"))
    assert [(one["id"], one["state"]) for one in found] == [("3", "taken")]
    assert [effect["trigger"] for effect in alone.runner.event(found[0]["number"])["effects"]] == ["numbers"]


def test_every_fault_of_a_trigger_is_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        read_triggers(
            [
                {"name": "a", "on": [], "start": "x", "signal": {}, "filter": ".a |", "debounce": "soon", "typo": 1},
                {"name": "b", "on": "t", "signal": {"name": "s"}, "acknowledge": "never"},
                "no mapping",
            ]
        )
    places = {fault.place for fault in caught.value.faults}
    assert places >= {"/0/on", "/0/start", "/0/filter", "/0/debounce", "/0/typo", "/1/signal", "/1/acknowledge", "/2"}


@pytest.mark.parametrize("name", ["t/1 3", "a b", "", "-a", "a" * 201, "ä", 5])
def test_a_trigger_is_named_as_a_schedule_is(alone: Stack, name: object) -> None:
    with pytest.raises(Invalid, match="name"):
        alone.runner.put_trigger({"name": name, "on": "t", "start": "numbered"})


def test_labels_of_a_trigger_are_those_of_a_start(alone: Stack) -> None:
    for wrong in ({"a": {"b": 1}}, {"a": [1]}, {"": "x"}, {"a" * 201: "x"}):
        with pytest.raises(Invalid, match="labels"):
            alone.runner.put_trigger({"name": "n", "on": "t", "start": "numbered", "labels": wrong})
        with pytest.raises(Invalid, match="labels"):
            alone.runner.start_workflow("numbered", input={"n": 1}, labels=wrong)
    alone.runner.put_trigger({"name": "n", "on": "t", "start": "numbered", "labels": {"a": 5, "b": "${ .data.n }", "c": True}})
    alone.runner.send_event(event(1))
    assert alone.sql("select labels from instances where workflow = 'numbered'")[-1][0] == {"a": 5, "b": 1, "c": True}


def test_a_trigger_that_was_kept_under_an_older_name_goes_on(alone: Stack) -> None:
    alone.runner.put_trigger({"name": "n", "on": "t", "start": "numbered"})
    alone.sql("update triggers set name = 't/1 3', spec = spec || '{\"name\": \"t/1 3\"}' where name = 'n' returning name")
    starts.forget_book(alone.runner.runtime)
    alone.runner.send_event(event(1))
    assert instances(alone) == [{"n": 1}]
    alone.runner.delete_trigger("t/1 3")


def test_who_puts_a_trigger_for_no_workflow_is_warned(alone: Stack, tmp_path: Path) -> None:
    client = create_app(alone.runner).test_client()
    answer = client.post("/workflow/triggers", json={"name": "n", "on": "t", "start": "nosuch"})
    assert answer.status_code == 201
    [warning] = answer.json["warnings"]
    assert warning["place"] == "n/start"
    assert "each event will fail: no workflow 'nosuch'" in warning["message"]
    assert "warnings" not in client.post("/workflow/triggers", json={"name": "n", "on": "t", "start": "numbered"}).json
    (tmp_path / "t.yaml").write_text("{name: n, on: t, start: nosuch}")
    put = alone.cli("triggers", "put", str(tmp_path / "t.yaml"))
    assert (put.returncode, put.stdout) == (0, "put n\n")
    assert "warning: n/start: each event will fail: no workflow 'nosuch'" in put.stderr


def test_events_signal_cancel_and_wake(alone: Stack) -> None:
    alone.runner.put_trigger(
        [
            {"name": "s", "on": "ask", "signal": {"name": "hello", "instance": ".data.id"}, "input": "{said: .data.n}"},
            {"name": "c", "on": "stop", "cancel": ".data.id", "reason": "an event said so"},
            {"name": "w", "on": "raw", "wake": "cooked", "input": "{n: (.data.n * 2)}"},
        ]
    )
    instance_id = alone.runner.start_workflow("numbered", input={"n": 1})
    alone.runner.send_event(event(1, "ask", id=instance_id))
    alone.runner.send_event(event(2, "stop", id=instance_id))
    alone.runner.send_event(event(3, "raw"))
    assert alone.sql("select type, envelope -> 'data' from events where instance_id = %s", instance_id) == [("hello", {"said": 1})]
    assert alone.state(instance_id) == "CANCELLED"
    assert alone.sql("select envelope -> 'data' from events where type = 'cooked'") == [({"n": 6},)]
    assert {one["state"] for one in alone.runner.events(EventFilter())} == {"taken"}


def test_what_fails_is_tried_again_put_aside_and_replayed(alone: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = alone.runner.runtime
    alone.runner.put_trigger({"name": "later", "on": "t", "start": "not-yet-there"})
    begun = time.monotonic()
    [arrival] = alone.runner.send_events([event(1, hostname="h")])
    assert (arrival.state, arrival.attempts) == ("held", 1)
    alone.runner.send_event(event(2, hostname="h"))
    seen: dict[int, float] = {1: 0.0}

    def dead() -> bool:
        effects.work_off(runtime)
        row = alone.sql("select attempts, state from events where event_id = '1'")[0]
        seen.setdefault(row[0], time.monotonic() - begun)
        return bool(row[1] == "dead")

    until(dead, 10)
    assert list(seen) == [1, 2, 3]
    assert seen[2] > 0.9
    assert seen[3] > seen[2] + 1.9
    # The one behind it was not overtaken, and had its own three attempts only then.
    assert alone.sql("select state from events where event_id = '2'") == [("held",)]
    alone.runner.put_trigger({"name": "later", "on": "t", "start": "numbered"})
    effects.work_off(runtime)
    until(lambda: effects.work_off(runtime) or instances(alone), 5)
    assert [one["n"] for one in instances(alone)] == [2]
    assert "not-yet-there" in alone.runner.events(EventFilter(state="dead"))[0]["error"]["message"]
    assert len(alone.runner.replay_events(EventFilter(state="dead"))) == 1
    assert sorted(one["n"] for one in instances(alone)) == [1, 2]
    # And a range, at somebody's wish: the same events have their effects once more.
    assert len(alone.runner.replay_events(EventFilter(type="t", since="2020-01-01"))) == 2
    assert sorted(one["n"] for one in instances(alone)) == [1, 1, 2, 2]
    assert {row[0] for row in alone.sql("select action from audit where action like '%%events'")} == {"replay-events"}


def test_an_input_that_its_schema_refuses_is_put_aside_at_once_and_discarded(alone: Stack) -> None:
    alone.runner.put_trigger({"name": "n", "on": "t", "start": "numbered"})
    [bad, good] = alone.runner.send_events([{**event(1), "data": {"n": "x"}}, event(2)])
    assert (bad.state, good.state) == ("dead", "taken")
    assert alone.runner.discard_events(EventFilter(state="dead")) == [bad.number]
    assert alone.runner.event(bad.number)["state"] == "discarded"


def test_idempotency_debounce_throttle_and_batches(alone: Stack) -> None:
    runtime = alone.runner.runtime
    alone.runner.put_trigger(
        [
            {"name": "once", "on": "once", "start": "numbered", "idempotency": ".data.order", "input": "{n: .data.order}"},
            {"name": "quiet", "on": "quiet", "start": "numbered", "debounce": "300ms"},
            {"name": "few", "on": "few", "start": "numbered", "throttle": {"per": "1m", "limit": 2, "key": ".data.shop"}},
            {"name": "many", "on": "many", "start": "gathered", "batch": {"size": 3, "within": "1s"}},
        ]
    )
    for n in range(5):
        alone.runner.send_event(event(n, "once", order=7))
        alone.runner.send_event(event(10 + n, "quiet"))
        for shop in "ab":
            alone.runner.send_event(event(20 + n + (100 if shop == "b" else 0), "few", shop=shop))
    assert effects.fire_windows(runtime) == 0
    begun = time.monotonic()
    until(lambda: effects.fire_windows(runtime), 2)
    assert time.monotonic() - begun > 0.1
    assert sorted(one["n"] for one in instances(alone)) == [7, 14, 20, 21, 120, 121]
    for n in range(7):
        alone.runner.send_event(event(n, "many") | {"id": f"many-{n}"})
    assert effects.fire_windows(runtime) == 1
    assert sorted([one["n"] for one in given] for given in instances(alone, "gathered")) == [[0, 1, 2], [3, 4, 5], [6]]
    alone.runner.send_event(event(8, "many") | {"id": "many-8"})
    assert effects.fire_windows(runtime) == 0
    until(lambda: effects.fire_windows(runtime), 3)
    assert sorted([one["n"] for one in given] for given in instances(alone, "gathered"))[-1] == [8]


def test_an_event_that_counts_when_its_workflow_has_ended(stack: Stack) -> None:
    stack.worker()
    stack.runner.put_trigger(
        [
            {"name": "good", "on": "good", "start": "numbered", "acknowledge": "ended"},
            {"name": "bad", "on": "bad", "start": "failing", "acknowledge": "ended"},
        ]
    )
    arrivals = stack.runner.send_events([event(1, "good"), event(2, "bad")])
    assert [a.state for a in arrivals] == ["working", "working"]
    until(lambda: [stack.runner.event(a.number)["state"] for a in arrivals] == ["taken", "dead"], 20)
    failed = stack.runner.event(arrivals[1].number)
    assert failed["attempts"] == 2
    assert "away" in failed["error"]["message"]


def test_workflows_of_one_key_run_one_after_another_in_the_order_of_their_events(stack: Stack) -> None:
    stack.worker(concurrency=4)
    stack.runner.put_trigger({"name": "o", "on": "t", "start": "numbered", "order": ".data.hostname", "acknowledge": "ended"})
    hosts = ["a", "b", "c"]
    given = [event(100 * k + n, hostname=host, pause=0.01) | {"id": f"{host}{n}"} for n in range(12) for k, host in enumerate(hosts)]
    for each in given:
        each["data"]["n"] = int(each["id"][1:])
    stack.runner.send_events(given)
    until(lambda: stack.sql("select count(*) from ledger")[0][0] == 36, 30)
    rows = [row[0].split() for row in stack.sql("select what from ledger order by id")]
    for host in hosts:
        assert [int(n) for h, n in rows if h == host] == list(range(12))


def test_emitted_events_have_triggers_too(stack: Stack) -> None:
    from orchestrator import Workflow

    stack.worker()
    flow = Workflow("emits").emit("t", {"n": 5})
    stack.runner.register_workflow(flow.build())
    stack.runner.put_trigger({"name": "e", "on": "t", "start": "numbered"})
    time.sleep(starts.BOOK_FOR_S)  # the worker's book is so old at most
    stack.run("emits")
    until(lambda: stack.sql("select what from ledger") == [("5",)], 10)


def test_triggers_are_listed_switched_off_and_deleted_with_an_audit(alone: Stack) -> None:
    spec = {"name": "n", "on": "t", "start": "numbered"}
    alone.runner.put_trigger(spec, actor="ada")
    alone.runner.send_event(event(1))
    alone.runner.enable_trigger("n", False, actor="ada")
    alone.runner.send_event(event(2))
    [listed] = [one for one in alone.runner.triggers() if one["name"] == "n"]
    assert (listed["enabled"], listed["effects"], listed["spec"]) == (False, 1, spec)
    alone.runner.delete_trigger("n", actor="ada")
    with pytest.raises(NotFound):
        alone.runner.delete_trigger("n")
    acts = [row[0] for row in alone.sql("select action from audit where actor = 'ada' order by id")]
    assert acts == ["put-trigger", "disable-trigger", "delete-trigger"]


@pytest.mark.parametrize(
    "envelope",
    [
        event(1, text="\ud800"),
        event(1, text="a\x00b"),
        event(1, number=float("inf")),
        {**event(1), "id": "x" * 5000},
        {**event(1), "source": "a\x00b"},
        {**event(1), "data": None},
    ],
)
def test_what_the_database_refuses_is_put_aside_and_stops_nobody(alone: Stack, envelope: dict[str, Any]) -> None:
    alone.runner.put_trigger({"name": "o", "on": "t", "start": "numbered"})
    arrivals = [Arrival(event(10)), Arrival(envelope), Arrival(event(11))]
    intake.take(alone.runner.runtime, arrivals)
    assert [arrivals[0].state, arrivals[2].state] == ["taken", "taken"]
    assert sorted(one["n"] for one in instances(alone) if one and one.get("n", 0) > 9) == [10, 11]
    assert arrivals[1].number > 0


def test_what_a_consumer_read_and_could_not_handle_comes_before_anything_new(alone: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when Postgres is away for longer than anybody's patience: later entries do not overtake."""
    alone.runner.put_trigger({"name": "o", "on": "t", "start": "numbered"})
    store = MemoryStore()
    store.join("s", "g")
    consumer = Consumer(alone.runner.runtime, Reads("g", ("s",), name="c"), store)
    consumer.state = None
    for n in range(3):
        store.publish("s", {"type": "t", "hostname": "h", "data": f'{{"n": {n}}}'})
    whole = intake.take

    def away(*_: Any) -> None:
        raise StoreAway("Postgres is away")

    monkeypatch.setattr(intake, "take", away)
    with pytest.raises(StoreAway):
        consumer.turn()
    consumer._is_sure = False
    monkeypatch.setattr(intake, "take", whole)
    store.publish("s", {"type": "t", "hostname": "h", "data": '{"n": 3}'})
    consumer.turn()
    assert inputs(alone) == [0, 1, 2, 3]
    assert store.backlog("s", "g").pending == 0


def test_entries_that_are_older_than_events_are_kept_have_no_effect(alone: Stack) -> None:
    """A group that was destroyed begins again at the beginning, where nobody remembers whether they had one."""
    alone.runner.put_trigger({"name": "o", "on": "t", "start": "numbered"})
    store = MemoryStore()
    store.join("s", "g")
    old = int((time.time() - 31 * 86400) * 1000)
    for entry_id, n in ((f"{old}-0", 1), (f"{int(time.time() * 1000)}-0", 2)):
        store._streams["s"][entry_id] = {"type": "t", "data": f'{{"n": {n}}}'}
    consumer = Consumer(alone.runner.runtime, Reads("g", ("s",), name="c"), store)
    consumer.state = None
    consumer.turn()
    assert inputs(alone) == [2]
    assert store.backlog("s", "g").pending == 0


@pytest.mark.parametrize(("stream", "pauses"), [("tenant:acme:workflow:w:events", [0.2, 0.4]), ("events:workflow", [1.0, 2.0])])
def test_pauses_between_attempts_are_those_of_the_stream_whoever_sent_the_event(alone: Stack, stream: str, pauses: list[float]) -> None:
    alone.runner.put_trigger({"name": "o", "on": "t", "start": "not-registered"})
    runtime = alone.runner.runtime
    arrival = Arrival({**event(1), "source": "/somebody"}, tenant_of(stream), None, stream, "1-0")
    intake.take(runtime, [arrival])
    for attempt, pause in enumerate(pauses, 1):
        [(attempts, due)] = alone.sql("select attempts, extract(epoch from try_at - clock_timestamp())::float8 from events")
        assert attempts == attempt
        assert pause - 0.15 < due <= pause
        alone.sql("update events set try_at = now() returning 1")
        effects.work_off(runtime)
    assert [row[0] for row in alone.sql("select state from events")] == ["dead"]


def test_an_attempt_that_takes_too_long_is_made_by_another(alone: Stack) -> None:
    runtime = alone.runner.runtime
    intake.take(runtime, [Arrival(event(1), "default", None, "s", "1-0")])
    alone.sql("update events set state = 'held', try_at = now() returning 1")

    def claimed() -> list[int]:
        return [held.attempts for held in runtime.database.patiently(lambda c: claim_held(c, 10, 0.4))]

    assert len(claimed()) == 1  # by a process that says no more
    assert claimed() == []
    until(claimed, 5)


# ── races ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_of_a_key_keep_their_order_through_many_consumers_of_which_some_die(alone: Stack) -> None:
    """Four consumers over one stream, each of which is given up in the middle of batches again and again."""
    alone.runner.put_trigger({"name": "o", "on": "t", "start": "numbered"})
    store = MemoryStore()
    store.join("s", "g")
    hosts = 7
    for n in range(1200):
        store.publish("s", {"type": "t", "hostname": f"h{n % hosts}", "data": f'{{"n": {n}}}'})
    stop = threading.Event()
    trouble: list[BaseException] = []

    def consume(number: int) -> None:
        life = 0
        while not stop.is_set():
            life += 1
            consumer = Consumer(alone.runner.runtime, Reads("g", ("s",), name=f"c{number}-{life}"), store)
            consumer.state = None
            consumer.streams = ["s"]
            try:
                for turn in range(6):
                    found = store.read("g", consumer.name, ["s"], 17, 0.02)
                    time.sleep(0.003 * (number + turn) % 0.011)
                    for stream, entries in found:
                        if turn == 5:
                            break  # dies with what it read
                        consumer.handle(stream, entries)
                entries, _ = store.reclaim("s", "g", consumer.name, 0.2, 50)
                if entries:
                    consumer.handle("s", entries)
            except BaseException as error:
                trouble.append(error)
                raise
        alone.runner.runtime.database.drop()

    threads = [threading.Thread(target=consume, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: trouble or (store.backlog("s", "g").waiting, store.backlog("s", "g").pending) == (0, 0), 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not trouble
    done = inputs(alone)
    assert sorted(done) == list(range(1200))
    for host in range(hosts):
        of_host = [n for n in done if n % hosts == host]
        assert of_host == sorted(of_host), f"h{host}"


def test_many_who_bring_the_same_event_at_once_start_one_instance(alone: Stack) -> None:
    alone.runner.put_trigger({"name": "o", "on": "t", "start": "numbered"})
    runtime = alone.runner.runtime
    barrier = threading.Barrier(8)

    def bring() -> None:
        for n in range(30):
            barrier.wait()
            intake.take(runtime, [Arrival(event(n)), Arrival(event(1000 + n))])
        runtime.database.drop()

    threads = [threading.Thread(target=bring) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(instances(alone)) == 60
    assert alone.runner.database.patiently(events.duplicates) == 0
