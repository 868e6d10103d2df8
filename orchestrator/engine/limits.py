"""What an instance may use: how long it may live, and how much memory, processor and room its steps and history take.

Off unless set. Usage is what the heartbeat of the processes measured last, so a limit takes hold within about two
beats; a step that ends before a beat is never measured.
"""

from __future__ import annotations

import logging

from orchestrator.engine import lifecycle
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import IllegalMove, NotFound, OrchestratorError
from orchestrator.state import State
from orchestrator.store import events, usage

logger = logging.getLogger("orchestrator.limits")


def enforce(runtime: Runtime, *, with_disk: bool = True) -> dict[str, str]:
    """Stop what is above its limits; gives why, by instance."""
    settings, database = runtime.settings, runtime.database
    stopped = end_old(runtime)
    excesses = database.patiently(lambda c: usage.of_processes(c, settings.max_memory_mb, settings.max_cpu_percent))
    if with_disk:
        excesses += database.patiently(lambda c: usage.of_histories(c, settings.max_disk_mb))
    for excess in excesses:
        _stop(runtime, stopped, excess.instance_id, State.FAILED, "resource_limit", str(excess))
    return stopped


def end_old(runtime: Runtime) -> dict[str, str]:
    """Stop what has lived longer than the engine allows; asked often, because it is nothing to ask where nothing is set."""
    settings, database = runtime.settings, runtime.database
    stopped: dict[str, str] = {}
    if settings.max_duration_s:
        for instance_id in database.patiently(lambda c: usage.older_than(c, settings.max_duration_s)):
            _stop(runtime, stopped, instance_id, State.CANCELLED, "cancelled", "Maximum duration exceeded")
    if settings.workflow_timeout_s:
        for instance_id in database.patiently(lambda c: usage.older_than(c, settings.workflow_timeout_s)):
            _stop(runtime, stopped, instance_id, State.FAILED, "timeout", f"workflow timeout: {settings.workflow_timeout_s:g} s are over")
    return stopped


def end_overdue(runtime: Runtime) -> dict[str, str]:
    """Stop what events wait for, where it takes longer than these may: it is tried again with its event."""
    stopped: dict[str, str] = {}
    for instance_id, timeout_s in runtime.database.patiently(events.overdue):
        reason = f"event processing timeout: {timeout_s:g} s are over"
        _stop(runtime, stopped, instance_id, State.FAILED, "event_timeout", reason)
    return stopped


def _stop(runtime: Runtime, stopped: dict[str, str], instance_id: str, ending: State, code: str, reason: str) -> None:
    if instance_id in stopped:
        return
    try:
        lifecycle.stop(runtime, instance_id, ending, {"code": code, "message": reason}, actor="engine", source="engine")
    except (IllegalMove, NotFound):
        return  # it ended, turned round or was deleted in the meantime
    except OrchestratorError as error:
        logger.error("an instance above its limits cannot be stopped: %s", error, extra={"instance": instance_id})
        return
    stopped[instance_id] = reason
    logger.warning("stopped: %s", reason, extra={"instance": instance_id})
