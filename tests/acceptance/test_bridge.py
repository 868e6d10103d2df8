"""The bridge, as a process of its own: events from Redis streams reach listeners, once each, whatever dies."""

from __future__ import annotations

import json
import signal
import time
from contextlib import AbstractContextManager
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.definition.documents import read_document
from orchestrator.stream.envelopes import Poison, envelope_of, tenant_of
from tests import commands
from tests.stack import Stack, until

STREAM = "events:workflow"


def bridge(stack: Stack, **variables: str) -> AbstractContextManager[commands.Process]:
    return stack.bridge(WORKER_STREAM_BLOCK="100ms", WORKER_RECLAIM_IDLE="1s", **variables)


def kept(stack: Stack) -> list[Any]:
    return [row[0] for row in stack.sql("select envelope -> 'data' -> 'n' from events where state <> 'dead' order by id")]


def pending(stack: Stack, stream: str = STREAM) -> int:
    try:
        return int(stack.redis.xpending(stream, "workflow-group")["pending"])
    except redis.ResponseError:
        return -1  # the bridge has not made its group yet


def test_entries_become_events_once_and_wake_who_listens(stack: Stack) -> None:
    stack.runner.register_workflow(
        read_document(
            "document: {dsl: '1.0.3', namespace: t, name: hears, version: '1.0.0'}\n"
            "do: [{l: {listen: {to: {any: [{with: {type: proxy_created}}], until: '(. | length) == 2'}}}}]"
        )
    )
    stack.worker()
    instance_id = stack.runner.start_workflow("t.hears", input={})
    until(lambda: stack.sql("select state from branches where instance_id = %s", instance_id) == [("parked",)])
    with bridge(stack) as process:
        stack.redis.xadd(STREAM, {"event_type": "proxy_created", "hostname": "a.example", "data": json.dumps({"port": 80})})
        entry: dict[Any, Any] = {
            "id": "same",
            "type": "proxy_created",
            "source": "/cms",
            "specversion": "1.0",
            "data": json.dumps({"n": 2}),
        }
        for _ in range(3):
            stack.redis.xadd(STREAM, entry)
        assert stack.ended(instance_id)["output"] == [{"hostname": "a.example", "port": 80}, {"n": 2}]
        until(lambda: pending(stack) == 0)
        assert stack.sql("select count(*) from events") == [(2,)]
        process.terminate()
        assert process.wait(10) == 0


def test_what_a_killed_bridge_left_is_taken_over_and_nothing_is_kept_twice(stack: Stack) -> None:
    for n in range(300):
        stack.redis.xadd(STREAM, {"type": "t", "data": json.dumps({"n": n})})
    for _ in range(3):
        with bridge(stack, WORKER_STREAM_BATCH="7"):
            until(lambda: len(kept(stack)) > 20)
    # As one that read, kept its events, and died before it could say so.
    stack.redis.xgroup_create(STREAM, "workflow-group", id="0", mkstream=True) if not stack.redis.exists(STREAM) else None
    stack.redis.xreadgroup("workflow-group", "dead", {STREAM: ">"}, count=50)
    with bridge(stack), bridge(stack):
        until(lambda: len(kept(stack)) == 300 and pending(stack) == 0, 30)
    assert sorted(kept(stack)) == list(range(300))


def test_poison_is_put_aside_with_its_reason_and_stops_nobody(stack: Stack) -> None:
    with bridge(stack):
        stack.redis.xadd(STREAM, {"data": "{}"})
        stack.redis.xadd(STREAM, {"type": "t", "data": "{oops"})
        stack.redis.xadd(STREAM, {"type": "t", "data": "x" * 2_000_000})
        stack.redis.xadd(STREAM, {"type": "t", "data": json.dumps({"n": 1})})
        until(lambda: kept(stack) == [1] and pending(stack) == 0)
        reasons = [fields["reason"] for _, fields in stack.redis.xrange(f"{STREAM}:dlq")]
    assert [reason.split(":")[0].split(";")[0] for reason in reasons] == [
        "names no type",
        "field 'data' looks like JSON and is none",
        "has 2,000,009 bytes",
    ]


def test_an_emptied_redis_and_streams_of_tenants(stack: Stack) -> None:
    with bridge(stack):
        stack.redis.xadd(STREAM, {"type": "t", "data": json.dumps({"n": 1})})
        until(lambda: kept(stack) == [1])
        stack.redis.flushall()
        stack.redis.xadd(STREAM, {"type": "t", "data": json.dumps({"n": 2})})
        stack.redis.xadd("tenant:acme:workflow:w:events", {"type": "t", "data": json.dumps({"n": 3})})
        until(lambda: sorted(kept(stack)) == [1, 2, 3], 20)
    assert stack.sql("select tenant from events where envelope -> 'data' ->> 'n' = '3'") == [("acme",)]


@pytest.mark.parametrize(
    ("fields", "kind", "data"),
    [
        ({"event_type": "a", "hostname": "h", "data": '{"x": 1}'}, "a", {"hostname": "h", "x": 1}),
        ({"event_type": "a", "hostname": "h", "enable_http": "false"}, "a", {"hostname": "h", "enable_http": False}),
        ({"eventType": "a", "payload": '{"x": [1]}'}, "a", {"x": [1]}),
        ({"event": '{"type": "a", "data": {"x": null}}'}, "a", {"x": None}),
        ({"data": '{"event_type": "a", "hostname": "h"}'}, "a", {"hostname": "h"}),
        ({"specversion": "1.0", "id": "1", "source": "/s", "type": "a", "data": '"text"'}, "a", '"text"'),
    ],
)
def test_ways_in_which_an_event_may_be_written(fields: dict[str, str], kind: str, data: Any) -> None:
    envelope = envelope_of("s", "1-1", fields)
    assert (envelope["type"], envelope["data"]) == (kind, data)


def test_an_entry_without_a_type_is_poison_and_a_stream_says_whose_it_is() -> None:
    with pytest.raises(Poison):
        envelope_of("s", "1-1", {"data": "{}"})
    assert tenant_of("tenant:acme:workflow:w:events") == "acme"
    assert tenant_of("events:workflow") == "default"


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["event_type", "eventType", "type", "id", "source", "data", "payload", "event", "message", "hostname", "timestamp", "time", "subject"]
)


@given(st.dictionaries(NAMES | st.text(max_size=10), st.text(max_size=40) | JSONISH.map(json.dumps), max_size=8))
@settings(max_examples=2000, deadline=None)
def test_whatever_stands_in_an_entry_is_an_event_or_poison(fields: dict[str, str]) -> None:
    try:
        envelope = envelope_of(STREAM, "1-0", fields)
    except Poison:
        return
    assert all(isinstance(envelope[name], str) and envelope[name] for name in ("id", "source", "type", "specversion"))
    json.dumps(envelope)


@pytest.mark.parametrize("depth", [201, 5_000, 100_000])
def test_nesting_without_end_is_poison(depth: int) -> None:
    with pytest.raises(Poison, match="nested more than 200 levels deep"):
        envelope_of(STREAM, "1-0", {"type": "t", "data": "[" * depth + "]" * depth})
    assert envelope_of(STREAM, "1-0", {"type": "t", "data": "[" * 150 + "]" * 150})["data"]


def test_two_consumers_by_name_share_the_events(stack: Stack) -> None:
    stack.worker()
    stack.runner.put_trigger({"name": "n", "on": "t", "start": "numbered"})
    with bridge(stack, CONSUMER_NAME="orchestrator-1"), bridge(stack, CONSUMER_NAME="orchestrator-2"):
        for n in range(100):
            stack.redis.xadd(STREAM, {"type": "t", "data": json.dumps({"n": n})})
            time.sleep(0.003)
        until(lambda: stack.sql("select count(*) from ledger") == [(100,)], 30)
        assert sorted(c["name"] for c in stack.redis.xinfo_consumers(STREAM, "workflow-group")) == ["orchestrator-1", "orchestrator-2"]

        def counts() -> list[int]:
            info = stack.redis.hgetall("workflow:consumer:info")
            return [int(info.get(f"processed:orchestrator-{n}", 0)) for n in (1, 2)]

        until(lambda: sum(counts()) == 100, 10)
        assert min(counts()) > 0


def test_an_event_stays_pending_while_its_workflow_works_and_a_bridge_that_ends_waits_for_it(stack: Stack) -> None:
    stack.worker()
    stack.runner.put_trigger({"name": "n", "on": "t", "start": "numbered", "acknowledge": "ended"})
    with bridge(stack) as process:
        stack.redis.xadd(STREAM, {"type": "t", "data": json.dumps({"n": 1, "pause": 3})})
        until(lambda: pending(stack) == 1, 10)
        time.sleep(1)
        assert pending(stack) == 1
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - begun > 1
    assert pending(stack) == 0
    assert stack.sql("select what from ledger") == [("1",)]


def test_a_bridge_that_is_killed_while_an_event_works_is_followed_by_another(stack: Stack) -> None:
    stack.worker()
    stack.runner.put_trigger({"name": "n", "on": "t", "start": "numbered", "acknowledge": "ended"})
    with bridge(stack):
        stack.redis.xadd(STREAM, {"type": "t", "data": json.dumps({"n": 1, "pause": 2})})
        until(lambda: pending(stack) == 1, 10)
    # It was killed with the entry pending; its name is free, and so is what it had read.
    with bridge(stack):
        until(lambda: pending(stack) == 0, 15)
    assert stack.sql("select what from ledger") == [("1",)]
    assert stack.sql("select state from events where type = 't'") == [("taken",)]
