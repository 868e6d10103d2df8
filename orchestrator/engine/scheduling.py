"""Instances that start by themselves: every so often, by cron, some time after the last one ended, or on events.

A fire is known by its schedule and its planned time (or its events): two keepers, a restart or a repetition start one
instance. Times that passed while nothing ran are not made up for: one fire, and on with the present.
"""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from orchestrator.definition.durations import seconds
from orchestrator.definition.expressions import Names
from orchestrator.definition.tree import Definition
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Fault, Invalid, OrchestratorError
from orchestrator.plan import listening as listeners
from orchestrator.store import schedules
from orchestrator.store.connection import Connection
from orchestrator.store.schedules import Schedule

logger = logging.getLogger("orchestrator.scheduling")
BATCH = 100


def put(c: Connection, definition: Definition, now: float) -> None:
    """Make the schedules of a definition those of its workflow."""
    given = definition.schedule if isinstance(definition.schedule, dict) else {}
    wanted: dict[str, tuple[Any, float | None]] = {}
    zone = given.get("timezone") or "UTC"
    if "every" in given:
        interval = seconds(given["every"])
        wanted["every"] = ({"seconds": interval}, now + interval)
    if "cron" in given:
        spec = {"cron": given["cron"], "timezone": zone}
        wanted["cron"] = (spec, next_of(spec, now))
    if "after" in given:
        wanted["after"] = ({"seconds": seconds(given["after"])}, now)
    if "on" in given:
        wanted["on"] = ({"on": given["on"], "read": given.get("read", "envelope")}, None)
    schedules.replace(c, definition.namespace, definition.name, definition.version, wanted)


def check(definition: Definition) -> None:
    """Raises `Invalid` for a time that never comes."""
    given = definition.schedule if isinstance(definition.schedule, dict) else {}
    if "cron" in given:
        try:
            next_of({"cron": given["cron"], "timezone": given.get("timezone") or "UTC"}, 0.0)
        except (CronSimError, KeyError, ValueError, StopIteration) as error:
            raise Invalid([Fault("/schedule/cron", f"'{given['cron']}' is no schedule: {error}")]) from None


def next_of(spec: dict[str, Any], after: float) -> float:
    """The first time of a cron expression after an instant, in its zone, through changes of its clock."""
    moment = dt.datetime.fromtimestamp(after, ZoneInfo(spec["timezone"]))
    return float(next(CronSim(spec["cron"], moment)).timestamp())


def fire_due(runtime: Runtime) -> int:
    """Start what is due; gives how many instances."""
    started = 0
    while True:
        runtime.database.patiently(schedules.plan_after)
        found = runtime.database.patiently(lambda c: schedules.due(c, BATCH))
        for schedule in found:
            _fire(runtime, schedule)
            started += 1
        if len(found) < BATCH:
            return started


def _fire(runtime: Runtime, schedule: Schedule) -> None:
    assert schedule.planned is not None
    instance_id = _start(runtime, schedule, f"schedule:{schedule.id}:{schedule.planned:.3f}", None)
    following: float | None = None
    if schedule.kind == "every":
        step = max(float(schedule.spec["seconds"]), 0.001)
        missed = int(max(0.0, schedule.now - schedule.planned) // step)
        following = schedule.planned + (missed + 1) * step
    elif schedule.kind == "cron":
        following = next_of(schedule.spec, max(schedule.now, schedule.planned))
    elif instance_id is None:
        following = schedule.now + max(float(schedule.spec["seconds"]), 60.0)
    runtime.database.patiently(lambda c: schedules.fired(c, schedule, instance_id, following))


def _start(runtime: Runtime, schedule: Schedule, key: str, input: Any) -> str | None:
    """Under its key; None when the workflow cannot be started."""
    from orchestrator.engine.runner import WorkflowRunner

    try:
        return WorkflowRunner(runtime).start_workflow(
            f"{schedule.namespace}.{schedule.workflow}",
            schedule.version,
            {} if input is None else input,
            idempotency_key=key,
            source="schedule",
            actor=f"schedule:{schedule.kind}",
        )
    except OrchestratorError as error:
        logger.error("schedule of %s cannot start it: %s", schedule.workflow, error)
        return None


def hear(runtime: Runtime) -> int:
    """Start what events ask for; gives how many instances."""
    return sum(_hear(runtime, schedule) for schedule in runtime.database.patiently(schedules.listening))


def _hear(runtime: Runtime, schedule: Schedule) -> int:
    trigger = runtime_trigger(runtime, schedule)
    if trigger is None:
        return 0
    started, seen = 0, schedule.seen_event
    note: dict[str, Any] = (schedule.note or {}).get("note", {})
    taken: list[int] = (schedule.note or {}).get("taken", [])
    changed = False
    for number, event in runtime.database.patiently(lambda c: schedules.events_since(c, schedule.seen_event)):
        if number in taken or (number <= schedule.seen_event and _is_old(number, taken)):
            continue
        seen, changed = max(seen, number), True
        taken.append(number)
        match = listeners.matching(trigger, note, event, Names())
        if match is None:
            continue
        note = listeners.received(trigger, note, {"id": number, "event": event, **match}, Names())
        if note["complete"]:
            _start(runtime, schedule, f"schedule:{schedule.id}:{event.get('source')}:{event.get('id')}", note["outputs"])
            note, started = {}, started + 1
    if changed:
        runtime.database.patiently(lambda c: schedules.heard(c, schedule, seen, {"note": note, "taken": taken[-1000:]}))
    return started


def _is_old(number: int, taken: list[int]) -> bool:
    """Below everything that is remembered: it was there before this schedule was."""
    return not taken or number < min(taken)


def runtime_trigger(runtime: Runtime, schedule: Schedule) -> Any:
    from orchestrator.engine import lifecycle

    try:
        stored = lifecycle.find_definition(runtime, f"{schedule.namespace}.{schedule.workflow}", schedule.version)
    except OrchestratorError:
        return None
    return lifecycle.definition_of(runtime, stored).trigger
