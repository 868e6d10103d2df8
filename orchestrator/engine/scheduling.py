"""Instances that start by themselves: every so often, by cron, at a moment, some time after the last one ended, or on events.

A fire is known by its schedule and its planned time: two keepers, two beats, a restart or a repetition start one instance.
Beat says when (its entries in RedBeat mirror what is here); the keeper fires what beat missed, and everything where
there is no beat.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg

from orchestrator.definition.durations import seconds
from orchestrator.definition.expressions import Names
from orchestrator.definition.tree import Definition
from orchestrator.engine import lifecycle
from orchestrator.engine.options import options_of
from orchestrator.engine.runtime import Runtime
from orchestrator.engine.starts import Start, create, publish
from orchestrator.errors import ExpressionError, Fault, IllegalMove, Invalid, OrchestratorError
from orchestrator.ids import key_of
from orchestrator.plan import listening as listeners
from orchestrator.schedule import times
from orchestrator.schedule.spec import Spec
from orchestrator.state import State
from orchestrator.store import findings, schedules
from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection, is_away
from orchestrator.store.schedules import Fire, Moved, Schedule

logger = logging.getLogger("orchestrator.scheduling")
T = TypeVar("T")

BATCH = 500
LONGEST_PAUSE_S = 300.0
LISTENS_FOR_S = 0.5
FINDING = "schedule"
# With `catchup: none`, what is later than this is missed.
LATE_S = 60.0
MOST_AT_ONCE = 1000

# ── schedules of definitions ────────────────────────────────────────────────────────────────────────────────────────


def put(c: Connection, definition: Definition, now: float, tenant: str = "default") -> None:
    """Make the schedules of a definition those of its workflow, for whom it is."""
    given = definition.schedule if isinstance(definition.schedule, dict) else {}
    wanted: dict[str, tuple[Any, float | None]] = {}
    if "every" in given:
        interval = seconds(given["every"])
        wanted["every"] = ({"every": interval}, now + interval)
    if "cron" in given:
        spec = {"cron": given["cron"], "timezone": given.get("timezone") or "UTC"}
        wanted["cron"] = (spec, times.first(spec, now))
    if "after" in given:
        wanted["after"] = ({"seconds": seconds(given["after"])}, now)
    if "on" in given:
        wanted["on"] = ({"on": given["on"], "read": given.get("read", "envelope")}, None)
    schedules.replace(c, tenant, definition.namespace, definition.name, definition.version, wanted)


def check(definition: Definition) -> None:
    """Raises `Invalid` for a time that never comes."""
    given = definition.schedule if isinstance(definition.schedule, dict) else {}
    if "cron" in given:
        try:
            times.check_cron(given["cron"], given.get("timezone") or "UTC")
        except times.BadTime as error:
            raise Invalid([Fault("/schedule/cron", f"'{given['cron']}' is no schedule: it {error}")]) from None


# ── firing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Turn:
    """What a schedule's time brings: the moments that fire, and where it goes from there."""

    schedule: Schedule
    spec: Spec
    moments: list[float]
    missed: int = 0
    planned: float | None = None
    starts: dict[float, Start] = field(default_factory=dict)
    refused: dict[float, str] = field(default_factory=dict)


def fire_due(runtime: Runtime, *, grace_s: float = 0.0, only: int | None = None, by: str = "keeper") -> int:
    """Start what is due (for longer than `grace_s`: others shall come first); gives how many instances.

    Each schedule is by itself: one that fails is put aside for a while, and holds up no other.
    """
    started = 0
    while True:
        _plan_after(runtime)
        found = runtime.database.patiently(lambda c: schedules.due(c, BATCH, grace_s, only))
        turns = [turn for schedule in found if (turn := _apart(runtime, schedule, functools.partial(_turn, schedule))) is not None]
        started += _fire(runtime, turns, by)
        if len(found) < BATCH:
            return started


def _plan_after(runtime: Runtime) -> None:
    try:
        runtime.database.patiently(schedules.plan_after)
    except psycopg.DataError:
        # One of them holds a span that no calendar has: the others are planned without it.
        for schedule in runtime.database.patiently(schedules.to_plan_after):
            _apart(
                runtime, schedule, functools.partial(runtime.database.patiently, functools.partial(schedules.plan_after, only=schedule.id))
            )


def _apart(runtime: Runtime, schedule: Schedule, act: Callable[[], T]) -> T | None:
    """What concerns one schedule alone: when it fails, that schedule is put aside, and None is given."""
    try:
        return act()
    except Exception as error:
        if is_away(error):
            raise
        put_aside(runtime, schedule, error)
        return None


def put_aside(runtime: Runtime, schedule: Schedule, error: Exception) -> None:
    """A schedule that fails is tried again after a second, two, four …, and is a finding as long as that lasts."""
    pause_s = min(2.0 ** min(schedule.failures, 20), LONGEST_PAUSE_S)
    reason = str(error) if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"
    logger.error(
        "schedule %s of tenant %s failed, retrying in %g s: %s", schedule.name, schedule.tenant, pause_s, reason.split("\n", 1)[0],
        exc_info=None if isinstance(error, OrchestratorError) or schedule.failures else error,
    )  # fmt: skip

    def note(c: Connection) -> None:
        with c.transaction():
            schedules.put_aside(c, schedule.id, pause_s)
            findings.note(c, FINDING, schedule.name, reason, tenant=schedule.tenant)

    runtime.database.patiently(note)


def _well_again(runtime: Runtime, found: Sequence[Schedule]) -> None:
    for schedule in found:
        if schedule.failures:
            runtime.database.patiently(lambda c, s=schedule: _clear(c, s))  # type: ignore[misc]


def _clear(c: Connection, schedule: Schedule) -> None:
    schedules.well_again(c, schedule.id)
    findings.clear(c, FINDING, schedule.name, tenant=schedule.tenant)


def spec_of(schedule: Schedule) -> Spec:
    if schedule.about is not None:
        return Spec.of_json(schedule.about)
    when = {"every": schedule.spec["seconds"]} if schedule.kind == "after" else schedule.spec
    return Spec(id=schedule.name, workflow=schedule.workflow, version=schedule.version, namespace=schedule.namespace, when=when)


def _turn(schedule: Schedule) -> Turn:
    """Which of the moments that have come fire: what the catch-up policy says of those that passed while nothing ran."""
    assert schedule.planned is not None
    spec, planned, now = spec_of(schedule), schedule.planned, schedule.now
    if schedule.kind in ("after", "at"):
        return Turn(schedule, spec, [planned])
    last = times.passed(spec.when, planned, now)
    going_on = times.following(spec.when, last, now)
    if spec.catchup == "all":
        bound = now - spec.catchup_window_s
        start = planned if planned >= bound else times.following(spec.when, planned, bound)
        moments: list[float] = []
        for moment in times.between(spec.when, start if start is not None else last, last):
            if len(moments) == MOST_AT_ONCE:
                going_on = moment
                break
            moments.append(moment)
        return Turn(schedule, spec, moments, int(start != planned), going_on)
    if spec.catchup == "none" and now - last > LATE_S + spec.jitter_s:
        return Turn(schedule, spec, [], 1, going_on)
    return Turn(schedule, spec, [last], int(last > planned), going_on)


def _fire(runtime: Runtime, turns: Sequence[Turn], by: str) -> int:
    if not turns:
        return 0
    for turn in turns:
        for moment in turn.moments:
            try:
                turn.starts[moment] = start_of(runtime, turn.schedule, turn.spec, moment)
            except Exception as error:
                if is_away(error):
                    raise
                known = isinstance(error, OrchestratorError)
                logger.error(
                    "schedule %s cannot start %s: %s", turn.schedule.name, turn.spec.target, error, exc_info=None if known else error
                )
                turn.refused[moment] = str(error) if known else f"{type(error).__name__}: {error}"
    return _fire_all(runtime, turns, by)


def _fire_all(runtime: Runtime, turns: Sequence[Turn], by: str) -> int:
    """All in one transaction; when that fails, each in one of its own."""
    try:
        begun, admitted, ended = runtime.database.patiently(lambda c: _commit(c, runtime, turns, by))
    except Exception as error:
        if is_away(error):
            raise
        if len(turns) > 1:
            return sum(_fire_all(runtime, [turn], by) for turn in turns)
        put_aside(runtime, turns[0].schedule, error)
        return 0
    publish(runtime, begun, admitted)
    for instance_id in ended:
        cancel_running(runtime, instance_id)
    _well_again(runtime, [turn.schedule for turn in turns])
    return len(begun)


def start_of(runtime: Runtime, schedule: Schedule, spec: Spec, planned: float) -> Start:
    slots = []
    if spec.overlap == "queue":
        slots.append((key_of("schedule", schedule.id), spec.max_concurrent or 1))
    options = options_of(
        tenant=schedule.tenant,
        source="schedule",
        actor=f"schedule:{schedule.name}",
        trace_id=uuid.uuid4().hex,
        priority=spec.priority,
        labels=spec.labels,
        metadata={"schedule": {"scheduleId": schedule.name, "scheduledAt": times.iso(planned), "runCount": schedule.starts + 1}},
        idempotency_key=f"schedule:{schedule.id}:{planned:.3f}",
        slots=slots,
    )
    says_nothing = spec.input == {} and runtime.settings.trigger_input == "event"
    given = {"triggeredBy": "scheduler"} if says_nothing else spec.input
    new, plan, address, definition = lifecycle.prepare(runtime, spec.target, spec.version, given, options)
    return Start(None, new, plan, address, definition)


def _commit(c: Connection, runtime: Runtime, turns: Sequence[Turn], by: str) -> tuple[list[Start], list[Published], list[str]]:
    """Gives what begins, what else may go on, and the instances that must make room."""
    with c.transaction():
        ours = schedules.lock_unmoved(c, [turn.schedule for turn in turns])
        turns = [turn for turn in turns if turn.schedule.id in ours]
        limited = [turn.schedule.id for turn in turns if turn.spec.overlap in ("skip", "cancel")]
        running = schedules.running(c, limited) if limited else {}
        fires: list[Fire] = []
        wanted: dict[tuple[int, float], Start] = {}
        ended: list[str] = []
        for turn in turns:
            fires += _fires_of(turn, running.get(turn.schedule.id, []), ended, by)
            wanted |= {(turn.schedule.id, round(moment, 3)): start for moment, start in turn.starts.items()}
        fresh = schedules.note_fires(c, fires)
        begun = [
            wanted[key] for fire in fires if fire.outcome == "started" and (key := (fire.schedule_id, round(fire.planned, 3))) in fresh
        ]
        created, admitted = create(c, runtime, begun) if begun else (set(), [])
        schedules.move_on(c, [_moved(turn, fires) for turn in turns])
    return [start for start in begun if start.new.id in created], admitted, ended


def _fires_of(turn: Turn, running: list[str], ended: list[str], by: str) -> list[Fire]:
    """What becomes of each moment, given what still runs of earlier ones."""
    schedule, spec = turn.schedule, turn.spec
    assert schedule.planned is not None
    most = (spec.max_concurrent or 1) if spec.overlap in ("skip", "cancel") else None
    found = [Fire(schedule.id, schedule.planned, "missed", by, None, "nothing ran when its time came")] if turn.missed else []
    active = len(running)
    for moment in turn.moments:
        if moment in turn.refused:
            found.append(Fire(schedule.id, moment, "refused", by, None, turn.refused[moment][:2000]))
            continue
        if most is not None and active >= most:
            if spec.overlap == "skip":
                found.append(Fire(schedule.id, moment, "skipped", by, None, f"{active} of {most} still run"))
                continue
            if running:
                ended.append(running.pop(0))
        else:
            active += 1
        found.append(Fire(schedule.id, moment, "started", by, turn.starts[moment].new.id, None, spec.timeout_s))
    return found


def _moved(turn: Turn, fires: Sequence[Fire]) -> Moved:
    mine = [fire for fire in fires if fire.schedule_id == turn.schedule.id]
    started = [fire for fire in mine if fire.outcome == "started"]
    planned = turn.planned
    if turn.schedule.kind == "after" and not started:
        planned = turn.schedule.now + max(float(turn.schedule.spec["seconds"]), LATE_S)
    return Moved(
        turn.schedule.id, planned, None if planned is None else times.jittered(turn.schedule.name, planned, turn.spec.jitter_s),
        len(started), sum(fire.outcome in ("skipped", "missed") for fire in mine), sum(fire.outcome == "refused" for fire in mine),
        started[-1].instance_id if started else None,
    )  # fmt: skip


def fire_now(runtime: Runtime, schedule: Schedule, moments: Sequence[float], by: str) -> list[dict[str, Any]]:
    """Fire out of turn: now, or for moments of a range that have not fired. The schedule keeps its place in time."""
    spec = spec_of(schedule)
    found: list[dict[str, Any]] = []
    for moment in moments:
        start = start_of(runtime, schedule, spec, moment)

        def act(c: Connection, start: Start = start, moment: float = moment) -> tuple[list[Start], list[Published]]:
            with c.transaction():
                fire = Fire(schedule.id, moment, "started", by, start.new.id, None, spec.timeout_s)
                if not schedules.note_fires(c, [fire]):
                    return [], []
                created, admitted = create(c, runtime, [start])
                schedules.note_start(c, schedule.id, start.new.id)
                return [start] if start.new.id in created else [], admitted

        begun, admitted = runtime.database.patiently(act)
        publish(runtime, begun, admitted)
        if begun:
            found.append({"scheduledAt": times.iso(moment), "instanceId": start.new.id})
    return found


def cancel_running(runtime: Runtime, instance_id: str) -> None:
    from orchestrator.engine.runner import WorkflowRunner

    try:
        WorkflowRunner(runtime).cancel_workflow(
            instance_id, reason="its schedule's next time came", actor="schedule:overlap", source="schedule"
        )
    except IllegalMove:
        logger.info("instance %s has ended already", instance_id)


# ── after the fire ──────────────────────────────────────────────────────────────────────────────────────────────────


def tend(runtime: Runtime) -> int:
    """Runs that failed are tried again as their schedules say, those that take too long are stopped; gives how many."""
    tended = 0
    for fire in runtime.database.patiently(lambda c: schedules.open_fires(c, BATCH)):
        try:
            tended += _tend(runtime, fire)
        except Exception as error:
            if is_away(error):
                raise
            logger.exception("the run %s of schedule %d is looked after no more", fire.instance_id, fire.schedule_id)
            runtime.database.patiently(lambda c, f=fire: schedules.close(c, f.schedule_id, f.instance_id, failed=True))  # type: ignore[misc]
    return tended


def _tend(runtime: Runtime, fire: schedules.Open) -> int:
    from orchestrator.engine.runner import WorkflowRunner

    spec = Spec.of_json(fire.about) if fire.about else None
    if fire.outcome is None:
        _stop(runtime, fire.instance_id, spec.timeout_s if spec else None)
    elif fire.state == "FAILED" and spec is not None and fire.retries < spec.retry_attempts:
        if fire.ended_s_ago < spec.retry_delay_s:
            return 0
        if runtime.database.patiently(lambda c: schedules.retried(c, fire.schedule_id, fire.instance_id, fire.retries, spec.timeout_s)):
            try:
                WorkflowRunner(runtime).retry_workflow(fire.instance_id, actor="schedule:retry", source="schedule")
            except OrchestratorError as error:
                logger.info("instance %s is not tried again: %s", fire.instance_id, error)
    else:
        failed = fire.outcome == "FAILED"
        runtime.database.patiently(lambda c: schedules.close(c, fire.schedule_id, fire.instance_id, failed=failed))
    return 1


def _stop(runtime: Runtime, instance_id: str, timeout_s: float | None) -> None:
    reason = {"code": "timeout", "message": f"the schedule's timeout: {timeout_s or 0:g} s are over"}
    with contextlib.suppress(IllegalMove):
        lifecycle.stop(runtime, instance_id, State.FAILED, reason, actor="schedule:timeout", source="schedule")


# ── on events ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _start(runtime: Runtime, schedule: Schedule, key: str, input: Any) -> str | None:
    """Under its key; None when the workflow cannot be started."""
    from orchestrator.engine.runner import WorkflowRunner

    try:
        return WorkflowRunner(runtime).start_workflow(
            f"{schedule.namespace}.{schedule.workflow}",
            schedule.version,
            {} if input is None else input,
            tenant=schedule.tenant,
            idempotency_key=key,
            source="schedule",
            actor=f"schedule:{schedule.kind}",
        )
    except OrchestratorError as error:
        logger.error("schedule of %s cannot start it: %s", schedule.workflow, error)
        return None


def hear(runtime: Runtime) -> int:
    """Start what events ask for; gives how many instances. Each listener is by itself."""
    found = runtime.database.patiently(schedules.listening)
    return sum(_apart(runtime, one, functools.partial(_hear, runtime, one)) or 0 for one in found)


def _hear(runtime: Runtime, schedule: Schedule) -> int:
    """A listener has half a second at a time: what it has not heard by then it hears in its next turn."""
    trigger = runtime_trigger(runtime, schedule)
    if trigger is None:
        return 0
    until = time.monotonic() + LISTENS_FOR_S
    started, seen = 0, schedule.seen_event
    note: dict[str, Any] = (schedule.note or {}).get("note", {})
    taken: list[int] = (schedule.note or {}).get("taken", [])
    changed = False
    for number, event in runtime.database.patiently(lambda c: schedules.events_since(c, schedule.seen_event)):
        if number in taken or (number <= schedule.seen_event and _is_old(number, taken)):
            continue
        if time.monotonic() > until:
            break
        seen, changed = max(seen, number), True
        taken.append(number)
        try:
            match = listeners.matching(trigger, note, event, Names())
            if match is None:
                continue
            note = listeners.received(trigger, note, {"id": number, "event": event, **match}, Names())
        except OrchestratorError as error:
            # It would fail the same way again: this event is not for this listener, and the next one may be.
            _cannot_hear(runtime, schedule, number, error)
            continue
        try:
            is_over = listeners.is_over(trigger, note, Names())
        except ExpressionError as error:
            # There is no instance yet that could fail: what came is kept, and why it starts nothing stands with the schedule's fires.
            logger.error("schedule of %s cannot tell whether its events are enough: %s", schedule.workflow, error)
            refused = Fire(schedule.id, schedule.now, "refused", "event", None, f"schedule.on.until: {error}"[:2000])
            runtime.database.patiently(lambda c, fire=refused: schedules.note_fires(c, [fire]))  # type: ignore[misc]
            continue
        if is_over:
            _start(runtime, schedule, f"schedule:{schedule.id}:{event.get('source')}:{event.get('id')}", note["outputs"])
            note, started = {}, started + 1
    if changed:
        runtime.database.patiently(lambda c: schedules.heard(c, schedule, seen, {"note": note, "taken": taken[-1000:]}))
    if started:
        _well_again(runtime, [schedule])
    return started


def _cannot_hear(runtime: Runtime, schedule: Schedule, number: int, error: OrchestratorError) -> None:
    logger.warning("the listener of %s.%s leaves event %d out: %s", schedule.namespace, schedule.workflow, number, error)
    said = f"Event {number} was left out: {error}"
    runtime.database.patiently(lambda c: findings.note(c, FINDING, schedule.name, said, {"event": number}, tenant=schedule.tenant))


def _is_old(number: int, taken: list[int]) -> bool:
    """Below everything that is remembered: it was there before this schedule was."""
    return not taken or number < min(taken)


def runtime_trigger(runtime: Runtime, schedule: Schedule) -> Any:
    try:
        stored = lifecycle.find_definition(runtime, f"{schedule.namespace}.{schedule.workflow}", schedule.version, schedule.tenant)
    except OrchestratorError:
        return None
    return lifecycle.definition_of(runtime, stored).trigger
