"""The relay: what cannot be told is put aside with its reason, keeps nothing else waiting, and is told when it can be."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from orchestrator.store import findings, outbox
from orchestrator.store.connection import Connection
from orchestrator.stream.relay import FINDING, Relay
from tests.stack import Stack


@pytest.fixture
def relay(stack: Stack) -> Relay:
    return Relay(stack.settings)


def connection(stack: Stack) -> Connection:
    return stack.runner.database.connection()


def told(stack: Stack, stream: str) -> list[str]:
    return [fields.get("id", "") for _, fields in stack.redis.xrange(stream)]


def found(stack: Stack) -> dict[str, str]:
    return {one["subject"]: one["message"] for one in findings.listing(connection(stack)) if one["kind"] == FINDING}


@pytest.mark.parametrize(
    ("type", "data"),
    [
        ("unheard.of", {}),
        ("event.received", {"tenant": "default"}),
        ("event.received", {"event": 5}),
        ("timer.fired", {"until": "soon"}),
        ("resource.moved", {}),
        ("step.failed", {"error": "text", "step": [1]}),
    ],
)
def test_an_event_that_cannot_be_told_keeps_no_other_waiting(stack: Stack, relay: Relay, type: str, data: Any) -> None:
    c = connection(stack)
    outbox.tell(c, "workflow.paused", None, {})
    c.execute("insert into outbox (type, data) values (%s, %s)", (type, Jsonb(data)))
    outbox.tell(c, "workflow.resumed", None, {})
    ids = [f"evt_{id}" for (id,) in stack.sql("select id from outbox order by id")]

    relay.drain(c)

    assert {ids[0], ids[2]} <= set(told(stack, stack.settings.event_stream))
    left = stack.sql("select type, put_aside is not null from outbox")
    assert left in ([(type, True)], [])
    assert list(found(stack)) == [one for one, _ in left]


def test_a_key_of_another_type_holds_up_what_goes_there_alone(stack: Stack, relay: Relay) -> None:
    c, bus = connection(stack), str(stack.settings.bus_stream)
    stack.redis.set(bus, "x")
    event = {"id": "e1", "source": "s", "type": "t", "specversion": "1.0", "data": {}}
    outbox.tell(c, "workflow.paused", None, {})
    outbox.tell(c, "event.received", None, {"event": event, "tenant": "default"})
    outbox.tell(c, "workflow.resumed", None, {})

    assert relay.drain(c) == 3
    assert relay.drain(c) == 0, "what was told is not told again for its sake"

    assert len(told(stack, stack.settings.event_stream)) == 3
    assert bus in found(stack)["event.received"]

    stack.redis.delete(bus)
    assert relay.take_up(c) == 1
    relay.drain(c)

    assert told(stack, bus) == ["e1"]
    assert (stack.sql("select * from outbox"), found(stack)) == ([], {})
