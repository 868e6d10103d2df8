"""What configurations ask to be told of: instances that ran out of time, workflows that fail too often.

The keeper looks now and then. An alert is an event (`orchestrator.alert.<name>`), kept once for each instance or each span of
time: triggers hear it, webhooks send it, `/workflow/events` shows it.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from orchestrator.engine.runtime import Runtime
from orchestrator.ids import key_of
from orchestrator.store import alerts, configs, events, findings
from orchestrator.store.connection import Connection, is_away
from orchestrator.store.events import Arrival

logger = logging.getLogger("orchestrator.alerts")

SOURCE = "orchestrator"
WINDOW_S = 900.0
ERROR_RATE = 0.5
FEWEST = 5
LASTS_S = 10.0
Whose = tuple[str, str | None, str]
"""Tenant, namespace (none: all of the tenant's) and name."""


def look(runtime: Runtime) -> int:
    """Gives how many alerts were raised that were not there before. Each workflow's configuration is by itself."""
    c = runtime.database.connection()
    raised = [_finding(one) for one in findings.not_told(c, LASTS_S)]
    for tenant, namespace, workflow, asked in configs.that_alert(c, runtime.settings.environment):
        try:
            raised += _of_workflow(c, (tenant, namespace, workflow), asked)
        except Exception as error:
            if is_away(error):
                raise
            logger.exception("alerts of %s cannot be looked at", workflow)
            findings.note(c, "alert", workflow, f"{type(error).__name__}: {error}", tenant=tenant)
    return _raise(runtime, c, raised)


def _of_workflow(c: Connection, whose: Whose, asked: dict[str, Any]) -> list[Arrival]:
    raised: list[Arrival] = []
    if "execution_timeout" in asked["alerts"]:
        raised += [_timed_out(whose, *found) for found in alerts.timed_out(c, *whose, WINDOW_S)]
    if "high_error_rate" in asked["alerts"]:
        raised += _failing(c, whose, float(asked.get("errorRate") or ERROR_RATE))
    return raised


def _raise(runtime: Runtime, c: Connection, raised: list[Arrival]) -> int:
    from orchestrator.engine.runner import WorkflowRunner

    if not raised:
        return 0
    events.look_up(c, raised)
    fresh = [one for one in raised if not one.number]
    for one in fresh:
        logger.warning("%s: %s", one.envelope["type"], one.envelope["data"])
        WorkflowRunner(runtime).send_events([one.envelope], tenant=one.tenant)
    return len(fresh)


def _finding(one: dict[str, Any]) -> Arrival:
    """What of the engine is at fault, and has been for longer than a moment."""
    envelope = {
        "id": f"finding/{one['kind']}/{one['subject']}/{one['since']}"[:1024],
        "source": SOURCE,
        "type": "orchestrator.alert.finding",
        "data": {"alert": "finding", **one},
    }
    return Arrival(envelope, tenant=one["tenant"])


def _timed_out(whose: Whose, instance_id: str, message: str) -> Arrival:
    return _alert("execution_timeout", instance_id, whose, {"instanceId": instance_id, "message": message})


def _failing(c: Connection, whose: Whose, most: float) -> list[Arrival]:
    ended, failed, now = alerts.ended_and_failed(c, *whose, WINDOW_S)
    if ended < FEWEST or failed / ended < most:
        return []
    about = {"ended": ended, "failed": failed, "rate": round(failed / ended, 3), "window_s": WINDOW_S}
    return [_alert("high_error_rate", str(math.floor(now / WINDOW_S)), whose, about)]


def _alert(name: str, about: str, whose: Whose, data: dict[str, Any]) -> Arrival:
    tenant, namespace, workflow = whose
    envelope = {
        "id": key_of(name, tenant, namespace or "", workflow, about),
        "source": SOURCE,
        "type": f"orchestrator.alert.{name}",
        "data": {"alert": name, "workflow": workflow, "tenant": tenant, **data},
    }
    return Arrival(envelope, tenant=tenant)
