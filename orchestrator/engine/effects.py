"""Effects one by one: events that are held, and windows in which triggers gather them. Every effect is harmless when
repeated, and an event leaves `held` when all of its effects have happened."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.definition.expressions import evaluate
from orchestrator.definition.parsing import shown
from orchestrator.definition.triggers import Trigger, instance_id_of
from orchestrator.engine.runtime import Runtime
from orchestrator.engine.starts import Start, create, publish, retry_delay_s, start_of, started, triggers_for, wake
from orchestrator.errors import Fault, IllegalMove, Invalid, NotFound, NotJson, OrchestratorError, TooDeep, TooLarge
from orchestrator.ids import id_for
from orchestrator.state import TERMINAL, State
from orchestrator.store import events, instances, sealing, triggers
from orchestrator.store.branches import Published
from orchestrator.store.connection import BROKEN, Connection
from orchestrator.store.events import Arrival, Effect, HeldEvent
from orchestrator.store.queries import Filter
from orchestrator.telemetry import metrics

if TYPE_CHECKING:
    from orchestrator.engine.runner import WorkflowRunner

logger = logging.getLogger("orchestrator.intake")

BATCH = 100
ATTEMPT_S = 30.0
# What a schema refuses today it refuses in a second, too.
HOPELESS = (Invalid, TooLarge, TooDeep, NotJson)


def work_off(runtime: Runtime, only: Sequence[int] | None = None) -> int:
    """Try held events whose time has come, the first of each key before the next; gives how many were tried."""
    tried = 0
    trying_s = runtime.settings.event_processing_timeout_s or ATTEMPT_S
    while True:
        found = runtime.database.patiently(lambda c: events.claim_held(c, BATCH, trying_s, only))
        for held in found:
            _attempt(runtime, held)
        tried += len(found)
        if not found:
            return tried


def settle(runtime: Runtime, only: Sequence[int] | None = None) -> None:
    """Events are done with whose workflows have ended."""
    settings = runtime.settings
    delay_s = settings.event_retry_delay_ms / 1000 or 1.0
    runtime.database.patiently(lambda c: events.settle_working(c, only, settings.event_retry_attempts, delay_s))


def _attempt(runtime: Runtime, held: HeldEvent) -> None:
    attempts = held.attempts + 1
    try:
        _check(held)
        done = [
            _perform(runtime, held, trigger)
            for trigger in triggers_for(runtime, held.tenant)
            if trigger.wants(held.envelope) and trigger.passes(held.envelope)
        ]
    except OrchestratorError as error:
        if isinstance(held.envelope, dict):
            tell_lookup(error, held.envelope)
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


def _check(held: HeldEvent) -> None:
    """What stands in the table may be no event, or sealed with a key that is not here."""
    if not isinstance(held.envelope, dict):
        raise Invalid([Fault("", f"Expected an event, got {shown(held.envelope)}.")], "kept event")
    sealing.readable(held.envelope.get("data"))


def tell_lookup(error: OrchestratorError, envelope: Mapping[str, Any]) -> None:
    """Nothing can come of events of a workflow that is not there, until somebody registers it."""
    if isinstance(error, NotFound) and error.what in ("workflow", "definition"):
        logger.critical("definition lookup failed: %s; event %s (%s)", error, envelope.get("id"), envelope.get("type"))


def _failed(runtime: Runtime, held: HeldEvent, attempts: int, error: dict[str, Any], *, hopeless: bool = False) -> None:
    delay = None if hopeless else retry_delay_s(runtime, attempts, held.stream)
    runtime.database.patiently(lambda c: events.failed(c, held.number, attempts, error, delay))
    type = held.envelope.get("type") if isinstance(held.envelope, dict) else "?"
    logger.warning("event %d (%s) failed: %s", held.number, type, error["message"])


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
            meant = _instances(runtime, held, trigger)
            late = []
            for instance_id in meant:
                try:
                    _runner(runtime).signal_workflow(
                        instance_id, name, data, id=_id(held, trigger), actor=f"trigger:{trigger.name}", source="trigger"
                    )
                except IllegalMove:
                    late.append(_came_late(held, instance_id))
            return trigger, replace(made, detail={"signal": name, "instances": meant, **({"late": late} if late else {})})
        case "skip":
            step = None if trigger.step is None else evaluate(trigger.step, held.envelope, {})
            meant = _instances(runtime, held, trigger)
            late = []
            for instance_id in meant:
                try:
                    _runner(runtime).skip_wait(
                        instance_id,
                        None if step is None else str(step),
                        id=_id(held, trigger),
                        actor=f"trigger:{trigger.name}",
                        source="trigger",
                    )
                except IllegalMove:
                    late.append(_came_late(held, instance_id))
                except NotFound as error:
                    # A wait that is to come is another matter.
                    if error.what != "wait" or not _has_ended(runtime, instance_id):
                        raise
                    late.append(_came_late(held, instance_id))
            return trigger, replace(made, detail={"instances": meant, **({"late": late} if late else {})})
        case "cancel":
            meant = _instances(runtime, held, trigger)
            for instance_id in meant:
                try:
                    _runner(runtime).cancel_workflow(instance_id, reason=trigger.reason, actor=f"trigger:{trigger.name}", source="trigger")
                except IllegalMove:
                    logger.info("instance %s has ended already", instance_id)
            return trigger, replace(made, detail={"instances": meant})


def _has_ended(runtime: Runtime, instance_id: str) -> bool:
    found = runtime.database.patiently(lambda c: instances.ending_of(c, instance_id))
    return found is not None and State(found[0]) in TERMINAL


def _came_late(held: HeldEvent, instance_id: str) -> str:
    """An answer of somebody who answered before, or after the end: expected, counted, and no failure of the event."""
    logger.info("event %d (%s) came late for instance %s, and changes nothing", held.number, held.envelope.get("type"), instance_id)
    metrics.came_late()
    return instance_id


def _begin(runtime: Runtime, held: HeldEvent, trigger: Trigger) -> Effect:
    start = start_of(runtime, trigger, held.envelope, held.tenant, _id(held, trigger))

    def act(c: Connection) -> tuple[Effect, list[Start], list[Published]]:
        with c.transaction():
            created, admitted = create(c, runtime, [start])
            is_new = start.new.id in created
            return started(c, held.number, start, is_new, held.replays), [start] if is_new else [], admitted

    effect, begun, admitted = runtime.database.patiently(act)
    publish(runtime, begun, admitted)
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
    return id_for(f"event/{held.number}/{trigger.name}/{held.replays}")


def _instances(runtime: Runtime, held: HeldEvent, trigger: Trigger) -> list[str]:
    assert trigger.instances is not None
    found = evaluate(trigger.instances, held.envelope, {})
    if found is None and trigger.workflow is not None:
        return [_only_one(runtime, held, evaluate(trigger.workflow, held.envelope, {}))]
    ids = found if isinstance(found, list) else [found]
    wrong = [one for one in ids if not isinstance(one, str) or not one]
    if wrong:
        raise NotFound("instance", wrong[0], f"trigger '{trigger.name}' gave no id for this event")
    return [instance_id_of(one, held.tenant) for one in ids]


def _only_one(runtime: Runtime, held: HeldEvent, workflow: Any) -> str:
    """The instance that an event is for which names none: the only one of its workflow that runs."""
    name = str(workflow or "")
    from orchestrator.store import lists

    wanted = Filter(workflow=name, tenant=held.tenant, state=("RUNNING",), limit=2)
    found = runtime.database.patiently(lambda c: lists.ids(c, wanted)) if name else []
    if len(found) != 1:
        raise NotFound("execution", "", f"the event names none, and of workflow '{name}' {'several' if found else 'none'} run")
    logger.warning(
        "event %d (%s) names no execution; taken for the only one of workflow '%s' that runs", held.number, held.envelope.get("type"), name,
        extra={"instance": found[0]},
    )  # fmt: skip
    return found[0]


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
        found, begun, admitted = runtime.database.patiently(lambda c: _fire_some(c, runtime))
        publish(runtime, begun, admitted)
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
            created, published = create(c, runtime, [start for start, _ in starts])
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
        wrapped = runtime.settings.trigger_input == "event"
        inputs = [trigger.input_of(envelope, wrapped=wrapped) for envelope in gathered]
        instance_id = id_for(f"window/{window.id}/{first}")
        given = inputs[-1] if trigger.window.kind == "debounce" else inputs
        starts.append((start_of(runtime, trigger, gathered[-1], window.tenant, instance_id, given), numbers))
    return starts
