"""Events come in: kept once each, in the order of their keys, with what triggers make of them. Whoever brings an event
(the bridge, the API, a message, an emitting workflow) brings it here.

    plan      which triggers want it and what they would start: before the transaction
    commit    events and what they start, in one transaction per batch; what is not new changes nothing
    publish   after the commit; dying before it costs the queue grace, nothing more

Starting is all that most triggers do, and a batch of starts is one transaction. Everything else (signals, cancels,
windows, what failed, what is replayed) is *held* in that transaction and worked off one by one: each effect is harmless
when repeated, and the event leaves `held` when all of them have happened.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any

import psycopg

from orchestrator.engine import stages
from orchestrator.engine.effects import HOPELESS, tell_lookup, work_off
from orchestrator.engine.runtime import Runtime
from orchestrator.engine.starts import Start, create, publish, retry_delay_s, start_of, started, triggers_for, wake
from orchestrator.errors import Fault, Invalid, OrchestratorError
from orchestrator.store import events, outbox
from orchestrator.store.branches import Published
from orchestrator.store.connection import BROKEN, Connection
from orchestrator.store.events import Arrival

logger = logging.getLogger("orchestrator.intake")

# No JSON that Postgres takes: an infinite number, half of a character, nesting without end; or a fault of ours.
UNFIT = (psycopg.Error, ValueError, TypeError, RecursionError)
_ORDERED_BY = ("partitionkey", "hostname", "executionid", "workflowid", "subject")


def order_key(envelope: dict[str, Any], tenant: str) -> str | None:
    """The key whose events take effect in their order: an attribute of the event, or its data's hostname."""
    data = envelope.get("data")
    for name in _ORDERED_BY:
        value = envelope.get(name)
        if value is None and isinstance(data, dict) and name == "hostname":
            value = data.get(name)
        if isinstance(value, str | int) and value != "":
            return f"{tenant}/{str(value).lower() if name == 'hostname' else value}"
    return None


# ── coming in ───────────────────────────────────────────────────────────────────────────────────────────────────────


def take(runtime: Runtime, arrivals: Sequence[Arrival]) -> None:
    """Keep a batch and let it have its effects; each arrival's `state` says what became of it."""
    if not arrivals:
        return
    for arrival in arrivals:
        if arrival.key is None and arrival.envelope["type"] != events.POISON:
            arrival.key = order_key(arrival.envelope, arrival.tenant)
        _plan(runtime, arrival)
    try:
        begun, admitted, slow = runtime.database.patiently(lambda c: _commit(c, runtime, arrivals))
    except BROKEN:
        raise
    except UNFIT as error:
        # Something in it cannot be stored, or a fault of ours: the others shall not wait for it.
        if len(arrivals) > 1:
            logger.warning("a batch of %d is taken one by one: %s", len(arrivals), str(error).split("\n", 1)[0])
            for arrival in arrivals:
                take(runtime, [arrival])
            return
        _keep_unusable(runtime, arrivals[0], error)
        return
    publish(runtime, begun, admitted)
    wake(runtime, arrivals)
    if slow:
        work_off(runtime, slow)
        _tell_states(runtime, arrivals, slow)


def _keep_unusable(runtime: Runtime, arrival: Arrival, error: Exception) -> None:
    """Put aside what the database refuses; what it refuses even then, by what is known of it."""
    logger.error("an event is put aside: %s", str(error).split("\n", 1)[0])
    arrival.effects, arrival.state, arrival.attempts, arrival.try_in_s = [], "dead", 1, None
    said = str(error).split("\n", 1)[0][:500]
    arrival.error = {"code": "internal", "message": said.encode(errors="replace").decode().replace("\x00", "�")}
    try:
        runtime.database.patiently(lambda c: _commit(c, runtime, [arrival]))
    except BROKEN:
        raise
    except UNFIT:
        arrival.envelope = {
            "specversion": "1.0",
            "id": str(arrival.entry or uuid.uuid4().hex),
            "source": f"redis:{arrival.stream}",
            "type": events.POISON,
            "data": None,
        }
        arrival.key = None
        runtime.database.patiently(lambda c: _commit(c, runtime, [arrival]))


def emitted(runtime: Runtime, envelope: dict[str, Any], tenant: str) -> Arrival:
    """An event that a workflow emits, to be kept in the transaction of the fact. Held, when a trigger wants it."""
    arrival = Arrival(envelope, tenant, order_key(envelope, tenant))
    if any(trigger.wants(envelope) for trigger in triggers_for(runtime, tenant)):
        arrival.state, arrival.try_in_s = "held", 0.0
    return arrival


def after_emit(runtime: Runtime, arrival: Arrival) -> None:
    """After that transaction; if this process dies first, the keeper does it."""
    wake(runtime, [arrival])
    if arrival.state == "held" and arrival.is_new:
        work_off(runtime, [arrival.number])


def _tell_states(runtime: Runtime, arrivals: Sequence[Arrival], numbers: Sequence[int]) -> None:
    now = runtime.database.patiently(lambda c: events.states(c, numbers))
    for arrival in arrivals:
        if arrival.number in now:
            arrival.state, arrival.attempts, arrival.error = now[arrival.number]


def _plan(runtime: Runtime, arrival: Arrival) -> None:
    """What the event will do: starts that are ready to be committed, or `held` for everything else."""
    arrival.effects = []
    if arrival.state == "dead":
        return
    arrival.state, arrival.attempts, arrival.error, arrival.try_in_s = "taken", 0, None, None
    envelope = arrival.envelope
    try:
        wanted = [t for t in triggers_for(runtime, arrival.tenant) if t.wants(envelope) and t.passes(envelope)]
        if stages.are_told():
            names = ", ".join(trigger.name for trigger in wanted) or "no trigger"
            stages.tell({}, "event", "%s %s of tenant %s is for %s", envelope["type"], envelope["id"], arrival.tenant, names)
        if not wanted:
            return
        if any(t.action != "start" or t.window is not None for t in wanted):
            arrival.state, arrival.try_in_s = "held", 0.0
            return
        arrival.effects = [start_of(runtime, trigger, envelope, arrival.tenant, None) for trigger in wanted]
        arrival.attempts = 1
        if any(trigger.awaited for trigger in wanted):
            arrival.state = "working"
    except OrchestratorError as error:
        arrival.effects = []
        _note_failure(runtime, arrival, error)
    except (ValueError, TypeError, RecursionError) as error:
        # No JSON: an infinite number, half of a character, nesting without end.
        arrival.effects = []
        _note_failure(runtime, arrival, Invalid([Fault("event", str(error))], "event"))


def _note_failure(runtime: Runtime, arrival: Arrival, error: OrchestratorError) -> None:
    tell_lookup(error, arrival.envelope)
    arrival.attempts, arrival.error = 1, {"code": error.code, "message": str(error)}
    arrival.try_in_s = None if isinstance(error, HOPELESS) else retry_delay_s(runtime, 1, arrival.stream)
    arrival.state = "dead" if arrival.try_in_s is None else "held"


def _commit(c: Connection, runtime: Runtime, arrivals: Sequence[Arrival]) -> tuple[list[Start], list[Published], list[int]]:
    """Gives what is to be published, and the events that are to be worked off at once."""
    with c.transaction():
        events.keep_all(c, arrivals)
        known = [a for a in arrivals if not a.is_new]
        if known:
            events.look_up(c, known)
        fresh = [a for a in arrivals if a.is_new]
        if told := [a for a in fresh if a.tells]:
            outbox.tell_all(c, "event.received", [{"event": a.envelope, "tenant": a.tenant} for a in told])
        behind = _behind_held(c, fresh)
        wanted = [(a.number, start) for a in fresh if a.number not in behind for start in a.effects]
        created: set[str] = set()
        admitted: list[Published] = []
        if wanted:
            created, admitted = create(c, runtime, [start for _, start in wanted])
            events.note_effects(c, [started(c, number, start, start.new.id in created) for number, start in wanted])
        slow = [a.number for a in fresh if a.state == "held" and a.number not in behind and not a.error]
        return [start for _, start in wanted if start.new.id in created], admitted, slow


def _behind_held(c: Connection, fresh: Sequence[Arrival]) -> set[int]:
    """Events that wait because an earlier one of their key does."""
    keys = {a.key for a in fresh if a.key is not None}
    if not keys:
        return set()
    first = events.first_held(c, sorted(keys))
    behind = [a for a in fresh if a.key in first and a.number > first[a.key] and a.state != "dead"]
    for arrival in behind:
        arrival.state = "held"
    if behind:
        events.hold(c, [a.number for a in behind])
    return {a.number for a in behind}
