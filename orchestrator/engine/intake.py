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
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg

from orchestrator.definition.expressions import evaluate
from orchestrator.definition.tree import Definition
from orchestrator.definition.triggers import Trigger, instance_id_of, read_triggers
from orchestrator.engine import lifecycle
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Fault, IllegalMove, Invalid, NotFound, OrchestratorError, TooLarge
from orchestrator.plan.canvas import Address
from orchestrator.plan.remaining import Sequence as Planned
from orchestrator.store import admission, events, instances, outbox, resources, triggers
from orchestrator.store.branches import Published
from orchestrator.store.connection import BROKEN, Connection
from orchestrator.store.events import Arrival, Effect, HeldEvent
from orchestrator.store.instances import New

if TYPE_CHECKING:
    from orchestrator.engine.runner import WorkflowRunner

logger = logging.getLogger("orchestrator.intake")

BOOK_FOR_S = 2.0
BATCH = 100
# What a schema refuses today it refuses in a second, too.
HOPELESS = (Invalid, TooLarge)
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
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


# ── the book of triggers ────────────────────────────────────────────────────────────────────────────────────────────

_books: dict[int, tuple[float, dict[str, list[Trigger]]]] = {}


def triggers_for(runtime: Runtime, tenant: str) -> list[Trigger]:
    """Those of the tenant and those for everybody; read again every two seconds."""
    held = _books.get(id(runtime))
    if held is None or held[0] < time.monotonic():
        book: dict[str, list[Trigger]] = {}
        for stored in runtime.database.patiently(triggers.all_triggers):
            if stored.enabled:
                try:
                    book.setdefault(stored.tenant, []).extend(t for t in read_triggers(stored.spec) if t.enabled)
                except Invalid as error:
                    logger.error("trigger '%s' is left out: %s", stored.name, error)
        held = _books[id(runtime)] = (time.monotonic() + BOOK_FOR_S, book)
    own = held[1].get(tenant, []) if tenant != "default" else []
    return [*own, *held[1].get("default", [])]


def forget_book() -> None:
    _books.clear()


# ── coming in ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Start:
    """A trigger's start, with everything decided."""

    trigger: Trigger
    new: New
    plan: Planned
    address: Address
    definition: Definition
    resource: tuple[str, str] | None = None


def retry_delay_s(runtime: Runtime, failed_attempts: int, stream: str | None) -> float | None:
    """1, 2, 4 … seconds; None: no further attempt. Streams of tenants begin with 0.2."""
    settings = runtime.settings
    if failed_attempts >= max(1, settings.event_retry_attempts):
        return None
    base = settings.event_retry_delay_ms / 1000 or (0.2 if stream and stream.startswith("tenant:") else 1.0)
    return float(min(base * 2 ** (failed_attempts - 1), 3600.0))


def take(runtime: Runtime, arrivals: Sequence[Arrival]) -> None:
    """Keep a batch and let it have its effects; each arrival's `state` says what became of it."""
    if not arrivals:
        return
    for arrival in arrivals:
        if arrival.key is None and arrival.envelope["type"] != events.POISON:
            arrival.key = order_key(arrival.envelope, arrival.tenant)
        _plan(runtime, arrival)
    try:
        starts, admitted, slow = runtime.database.patiently(lambda c: _commit(c, runtime, arrivals))
    except BROKEN:
        raise
    except (psycopg.Error, ValueError, TypeError, RecursionError) as error:
        # Something in it cannot be stored, or a fault of ours: the others shall not wait for it.
        if len(arrivals) > 1:
            logger.warning("a batch of %d is taken one by one: %s", len(arrivals), str(error).split("\n", 1)[0])
            for arrival in arrivals:
                take(runtime, [arrival])
            return
        _keep_unusable(runtime, arrivals[0], error)
        return
    for start in starts:
        if not start.new.is_blocked:
            runtime.publisher.plan(start.plan, start.address)
    runtime.publisher.branches(admitted)
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
    except (psycopg.Error, ValueError, TypeError, RecursionError):
        arrival.envelope = {
            "specversion": "1.0",
            "id": str(arrival.entry or uuid.uuid4().hex),
            "source": f"redis:{arrival.stream}",
            "type": events.POISON,
            "data": None,
        }
        arrival.key = None
        runtime.database.patiently(lambda c: _commit(c, runtime, [arrival]))


def wake(runtime: Runtime, arrivals: Sequence[Arrival]) -> None:
    """Once per type, however many events of it came."""
    for type, tenant in dict.fromkeys((a.envelope["type"], a.tenant) for a in arrivals if a.envelope["type"] != events.POISON):
        woken = runtime.database.patiently(lambda c, type=type, tenant=tenant: events.wake_listeners(c, type, None, tenant))  # type: ignore[misc]
        runtime.publisher.branches(woken)


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
        if not wanted:
            return
        if any(t.action != "start" or t.window is not None for t in wanted):
            arrival.state, arrival.try_in_s = "held", 0.0
            return
        arrival.effects = [_start_of(runtime, trigger, envelope, arrival.tenant, None) for trigger in wanted]
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
    arrival.attempts, arrival.error = 1, {"code": error.code, "message": str(error)}
    arrival.try_in_s = None if isinstance(error, HOPELESS) else retry_delay_s(runtime, 1, arrival.stream)
    arrival.state = "dead" if arrival.try_in_s is None else "held"


def _start_of(
    runtime: Runtime, trigger: Trigger, envelope: dict[str, Any], tenant: str, instance_id: str | None, input: Any = None
) -> Start:
    """Raises what is wrong with it: no such workflow, an input that its schema refuses, a key that is none."""
    order = trigger.order_of(envelope)
    key = trigger.idempotency_of(envelope)
    options: dict[str, Any] = {
        "tenant": tenant,
        "source": "trigger",
        "actor": f"trigger:{trigger.name}",
        "trace_id": envelope.get("traceid") or uuid.uuid4().hex,
        "priority": trigger.priority,
        "labels": None if trigger.labels is None else evaluate(trigger.labels, envelope, {}),
        "metadata": {"event": {name: envelope.get(name) for name in ("id", "type", "source", "time") if envelope.get(name)}},
        "idempotency_key": None if key is None else f"trigger:{trigger.name}:{key}",
        "order": None if order is None else f"order/{tenant}/{trigger.scope}/{order}",
        "instance_id": trigger.instance_of(envelope, tenant) or instance_id,
    }
    workflow = evaluate(trigger.target, envelope, {})
    if not isinstance(workflow, str) or not workflow:
        raise Invalid([], f"trigger '{trigger.name}' names no workflow for this event, and so")
    given = evaluate(trigger.input, envelope, {}) if input is None else input
    new, plan, address, definition = lifecycle.prepare(runtime, workflow, trigger.version, given, options)
    return Start(trigger, new, plan, address, definition, trigger.resource_of(envelope))


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
            created, admitted = _create(c, runtime, [start for _, start in wanted])
            events.note_effects(c, [_started(c, number, start, start.new.id in created) for number, start in wanted])
        slow = [a.number for a in fresh if a.state == "held" and a.number not in behind and not a.error]
        return [start for _, start in wanted if start.new.id in created], admitted, slow


def _create(c: Connection, runtime: Runtime, starts: Sequence[Start]) -> tuple[set[str], list[Published]]:
    """Instances in their order, with their places in the queues of their scopes; gives the ids of those that are new."""
    plain = [start for start in starts if not start.new.dependencies]
    created = instances.create_many(c, [start.new for start in plain]) if plain else set()
    admitted: list[Published] = []
    for start in plain:
        if start.resource is not None and start.new.id in created:
            resources.queue(c, *start.resource, start.new.tenant, start.new.id)
    asked = [(start.new.id, scope, capacity) for start in plain if start.new.id in created for scope, capacity in start.new.slots]
    if asked:
        admission.ask_many(c, asked)
        admitted += admission.admit(c, [scope for _, scope, _ in asked])
    for start in starts:
        if start.new.dependencies:
            is_new, published = lifecycle.record_start(c, runtime, start.new, start.definition)
            admitted += published
            created |= {start.new.id} if is_new else set()
    return created, admitted


def _started(c: Connection, number: int, start: Start, is_new: bool, replay: int = 0) -> Effect:
    """A start whose key was used before is the instance that has the key."""
    about = {"workflow": start.new.workflow, **({} if is_new else {"already": True})}
    found = None if is_new else instances.by_key(c, start.new)
    return Effect(number, start.trigger.name, "start", found[0] if found else start.new.id, about, replay)


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


# ── one by one ──────────────────────────────────────────────────────────────────────────────────────────────────────


def work_off(runtime: Runtime, only: Sequence[int] | None = None) -> int:
    """Try held events whose time has come, the first of each key before the next; gives how many were tried."""
    tried = 0
    while True:
        found = runtime.database.patiently(lambda c: events.claim_held(c, BATCH, runtime.settings.event_processing_timeout_s, only))
        for held in found:
            _attempt(runtime, held)
        tried += len(found)
        if not found:
            return tried


def _attempt(runtime: Runtime, held: HeldEvent) -> None:
    attempts = held.attempts + 1
    try:
        done = [
            _perform(runtime, held, trigger)
            for trigger in triggers_for(runtime, held.tenant)
            if trigger.wants(held.envelope) and trigger.passes(held.envelope)
        ]
    except OrchestratorError as error:
        _failed(runtime, held, attempts, {"code": error.code, "message": str(error)}, hopeless=isinstance(error, HOPELESS))
        return
    except BROKEN:
        raise
    except Exception as error:
        # A fault of ours or of a plugin: the event is not lost for it.
        logger.exception("event %d failed", held.number)
        _failed(runtime, held, attempts, {"code": "internal", "message": f"{type(error).__name__}: {error}"})
        return

    def act(c: Connection) -> None:
        with c.transaction():
            state = "working" if any(trigger.awaited and effect.instance_id for trigger, effect in done) else "taken"
            if not events.release(c, held.number, state, attempts):
                return
            for trigger, effect in done:
                if effect.action == "gather":
                    _gather(c, held, trigger)
            events.note_effects(c, [effect for _, effect in done])

    runtime.database.patiently(act)


def _failed(runtime: Runtime, held: HeldEvent, attempts: int, error: dict[str, Any], *, hopeless: bool = False) -> None:
    delay = None if hopeless else retry_delay_s(runtime, attempts, str(held.envelope.get("source", "")).removeprefix("redis:"))
    runtime.database.patiently(lambda c: events.failed(c, held.number, attempts, error, delay))
    logger.warning("event %d (%s) failed: %s", held.number, held.envelope.get("type"), error["message"])


def _perform(runtime: Runtime, held: HeldEvent, trigger: Trigger) -> tuple[Trigger, Effect]:
    """One trigger's effect. Repeated, it does nothing more."""
    made = Effect(held.number, trigger.name, trigger.action, replay=held.replays)
    if trigger.window is not None and trigger.window.kind != "throttle":
        return trigger, replace(made, action="gather", detail={"window": trigger.window.kind})
    match trigger.action:
        case "start":
            if trigger.window is not None and not _may_pass(runtime, held, trigger):
                return trigger, replace(made, action="throttled")
            return trigger, _begin(runtime, held, trigger)
        case "wake":
            return trigger, replace(made, detail=_derive(runtime, held, trigger))
        case "signal":
            name = str(evaluate(trigger.target, held.envelope, {}))
            data = evaluate(trigger.input, held.envelope, {})
            for instance_id in _instances(held, trigger):
                _runner(runtime).signal_workflow(
                    instance_id, name, data, id=_id(held, trigger), actor=f"trigger:{trigger.name}", source="trigger"
                )
            return trigger, replace(made, detail={"signal": name, "instances": _instances(held, trigger)})
        case "skip":
            step = None if trigger.step is None else evaluate(trigger.step, held.envelope, {})
            for instance_id in _instances(held, trigger):
                _runner(runtime).skip_wait(
                    instance_id,
                    None if step is None else str(step),
                    id=_id(held, trigger),
                    actor=f"trigger:{trigger.name}",
                    source="trigger",
                )
            return trigger, replace(made, detail={"instances": _instances(held, trigger)})
        case "cancel":
            for instance_id in _instances(held, trigger):
                try:
                    _runner(runtime).cancel_workflow(instance_id, reason=trigger.reason, actor=f"trigger:{trigger.name}", source="trigger")
                except IllegalMove:
                    logger.info("instance %s has ended already", instance_id)
            return trigger, replace(made, detail={"instances": _instances(held, trigger)})


def _begin(runtime: Runtime, held: HeldEvent, trigger: Trigger) -> Effect:
    start = _start_of(runtime, trigger, held.envelope, held.tenant, _id(held, trigger))

    def act(c: Connection) -> tuple[Effect, bool, list[Published]]:
        with c.transaction():
            created, admitted = _create(c, runtime, [start])
            is_new = start.new.id in created
            return _started(c, held.number, start, is_new, held.replays), is_new, admitted

    effect, is_new, admitted = runtime.database.patiently(act)
    if is_new and not start.new.is_blocked:
        runtime.publisher.plan(start.plan, start.address)
    runtime.publisher.branches(admitted)
    return effect


def _derive(runtime: Runtime, held: HeldEvent, trigger: Trigger) -> dict[str, Any]:
    """`wake`: listeners hear another event, made from this one."""
    type = str(evaluate(trigger.target, held.envelope, {}))
    envelope = {
        **{key: value for key, value in held.envelope.items() if key not in ("data", "dataschema", "datacontenttype")},
        "id": _id(held, trigger),
        "source": f"trigger/{trigger.name}",
        "type": type,
        "data": evaluate(trigger.input, held.envelope, {}),
    }
    runtime.database.patiently(lambda c: events.keep(c, envelope, None, held.tenant))
    wake(runtime, [Arrival(envelope, held.tenant)])
    return {"type": type, "id": envelope["id"]}


def _id(held: HeldEvent, trigger: Trigger) -> str:
    """What one trigger makes of one event (of one replay of it) has one id."""
    return str(uuid.uuid5(_NAMESPACE, f"event/{held.number}/{trigger.name}/{held.replays}"))


def _instances(held: HeldEvent, trigger: Trigger) -> list[str]:
    assert trigger.instances is not None
    found = evaluate(trigger.instances, held.envelope, {})
    ids = found if isinstance(found, list) else [found]
    wrong = [one for one in ids if not isinstance(one, str) or not one]
    if wrong:
        raise NotFound("instance", wrong[0], f"trigger '{trigger.name}' gave no id for this event")
    return [instance_id_of(one, held.tenant) for one in ids]


def _runner(runtime: Runtime) -> WorkflowRunner:
    from orchestrator.engine.runner import WorkflowRunner

    return WorkflowRunner(runtime)


# ── windows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _may_pass(runtime: Runtime, held: HeldEvent, trigger: Trigger) -> bool:
    assert trigger.window is not None
    window, key = trigger.window, trigger.window_key(held.envelope)
    return runtime.database.patiently(
        lambda c: triggers.throttle(c, held.tenant, trigger.name, key, held.number, window.limit, window.seconds)
    )


def _gather(c: Connection, held: HeldEvent, trigger: Trigger) -> None:
    assert trigger.window is not None
    window, key = trigger.window, trigger.window_key(held.envelope)
    if window.kind == "debounce":
        triggers.debounce(c, held.tenant, trigger.name, key, held.number, window.seconds)
    else:
        triggers.gather(c, held.tenant, trigger.name, key, held.number, window.limit, window.seconds)


def fire_windows(runtime: Runtime) -> int:
    """Start what windows have gathered, now that they are over; gives how many were closed."""
    closed = 0
    while True:
        found, starts, admitted = runtime.database.patiently(lambda c: _fire_some(c, runtime))
        for start in starts:
            if not start.new.is_blocked:
                runtime.publisher.plan(start.plan, start.address)
        runtime.publisher.branches(admitted)
        closed += found
        if found < BATCH:
            return closed


def _fire_some(c: Connection, runtime: Runtime) -> tuple[int, list[Start], list[Published]]:
    begun: list[Start] = []
    admitted: list[Published] = []
    with c.transaction():
        windows = triggers.due_windows(c, BATCH)
        for window in windows:
            trigger = next((t for t in triggers_for(runtime, window.tenant) if t.name == window.trigger), None)
            triggers.close_window(c, window.id)
            if trigger is None or trigger.window is None or trigger.window.kind == "throttle":
                continue
            try:
                starts = _starts_of_window(c, runtime, trigger, window)
            except OrchestratorError as error:
                logger.error("a window of trigger '%s' cannot start anything: %s", trigger.name, error)
                events.hold(c, window.events)
                for number in window.events:
                    events.failed(c, number, 1, {"code": error.code, "message": str(error)}, None)
                continue
            created, published = _create(c, runtime, [start for start, _ in starts])
            admitted += published
            events.note_effects(
                c,
                [
                    Effect(number, f"{trigger.name}/window", "start", start.new.id, {"workflow": start.new.workflow})
                    for start, numbers in starts
                    for number in numbers
                ],
            )
            begun += [start for start, _ in starts if start.new.id in created]
    return len(windows), begun, admitted


def _starts_of_window(c: Connection, runtime: Runtime, trigger: Trigger, window: triggers.Window) -> list[tuple[Start, list[int]]]:
    """A debounced event as it is; batches as lists of what the input mapping makes of each."""
    assert trigger.window is not None
    size = 1 if trigger.window.kind == "debounce" else trigger.window.limit
    starts = []
    for first in range(0, len(window.events), size):
        numbers = window.events[first : first + size]
        gathered = triggers.envelopes(c, numbers)
        if not gathered:
            continue
        inputs = [evaluate(trigger.input, envelope, {}) for envelope in gathered]
        instance_id = str(uuid.uuid5(_NAMESPACE, f"window/{window.id}/{first}"))
        given = inputs[-1] if trigger.window.kind == "debounce" else inputs
        starts.append((_start_of(runtime, trigger, gathered[-1], window.tenant, instance_id, given), numbers))
    return starts
