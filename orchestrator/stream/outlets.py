"""What events look like outside, in the words of those who listen there. Pure.

Pub/Sub `workflow:<type>`, list `workflow:events:recent`     {id, type, payload, timestamp, source}
stream `tenant:{tenant}:workflow:{workflow}:events`          CloudEvents `io.flunq.*`
webhooks                                                     CloudEvents, structured
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from orchestrator.definition.external import REQUESTED
from orchestrator.stream import small

CHANNEL = "workflow:"
RECENT = "workflow:events:recent"
RECENT_LENGTH = 1000

_TOLD_AS = {
    "step.running": "workflow.step.started",
    "step.completed": "workflow.step.completed",
    "step.failed": "workflow.step.failed",
    "step.retried": "workflow.step.retried",
    "step.compensated": "workflow.step.compensated",
    "step.skipped": "workflow.step.skipped",
}
FLUNQ = {
    "workflow.started": "io.flunq.execution.started",
    "workflow.completed": "io.flunq.workflow.completed",
    "workflow.failed": "io.flunq.workflow.failed",
    "workflow.cancelled": "io.flunq.execution.cancelled",
    # Not `requested`: what the orchestrator does itself is nobody else's to do.
    "step.running": "io.flunq.task.started",
    "step.completed": "io.flunq.task.completed",
    "step.failed": "io.flunq.task.failed",
    "timer.scheduled": "io.flunq.timer.scheduled",
    "timer.fired": "io.flunq.timer.fired",
}
# What the orchestrator itself wrote, to streams of tenants and elsewhere: there is nothing to be learnt from it.
WORKER = "worker-service"
OWN_SOURCES = frozenset({"orchestrator", WORKER})
# Waits by the time they end, for who looks on; the timers themselves are in Postgres.
TIMERS = "flunq:timers:all"


def told(entry_id: str, type: str, data: dict[str, Any], at: str, about: dict[str, Any], instance_id: str | None) -> dict[str, Any]:
    """For subscribers."""
    if type in ("event.received", "event.emitted"):
        event = data["event"]
        return {
            "id": event["id"],
            "type": event["type"],
            "payload": event.get("data"),
            "timestamp": event.get("time") or at,
            "source": event["source"],
        }
    payload: dict[str, Any] = {"workflowId": about.get("workflow"), "runId": instance_id, **data}
    if type == "workflow.completed":
        payload["duration"] = about.get("duration_s")
    if type == "workflow.failed":
        payload["failedStep"] = data.get("step") or (data.get("error") or {}).get("position")
    payload = {key: value for key, value in payload.items() if value is not None}
    return {"id": entry_id, "type": _TOLD_AS.get(type, type), "payload": payload, "timestamp": at, "source": "orchestrator"}


def cloud_event(entry_id: str, type: str, data: dict[str, Any], at: str, about: dict[str, Any], instance_id: str | None) -> dict[str, Any]:
    """For webhooks: an event that came in or was emitted as it is, a life-cycle event as `orchestrator.<type>`."""
    if type in ("event.received", "event.emitted"):
        return dict(data["event"])
    said = told(entry_id, type, data, at, about, instance_id)
    return {
        "specversion": "1.0",
        "id": entry_id,
        "source": "orchestrator",
        "type": f"orchestrator.{said['type']}",
        "time": at,
        "datacontenttype": "application/json",
        **({"subject": f"workflow.{instance_id}"} if instance_id else {}),
        "data": said["payload"],
    }


def tenant_stream(tenant: str, workflow: str) -> str:
    return f"tenant:{tenant}:workflow:{workflow}:events"


def flunq(
    entry_id: str, type: str, data: dict[str, Any], at: str, about: dict[str, Any], instance_id: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stream, fields) for the streams of tenants: what documents do, and requests of external tasks, whoever makes them."""
    tenant, workflow = about.get("tenant") or "default", about.get("workflow")
    if type == "event.emitted" and str(data["event"].get("type", "")).startswith("io.flunq."):
        event = data["event"]
        yield (
            tenant_stream(tenant, str(workflow)),
            {
                "id": event["id"],
                "source": WORKER,
                "specversion": "1.0",
                "type": event["type"],
                "time": at,
                "workflowid": workflow,
                "executionid": instance_id,
                "taskid": (event.get("data") or {}).get("task_id") if isinstance(event.get("data"), dict) else None,
                "tenantid": tenant,
                "data": event.get("data"),
            },
        )
    elif about.get("is_document") and type in FLUNQ and instance_id:
        yield (
            tenant_stream(tenant, str(workflow)),
            {
                "id": entry_id,
                "source": WORKER,
                "specversion": "1.0",
                "type": FLUNQ[type],
                "time": at,
                "workflowid": workflow,
                "executionid": instance_id,
                "taskid": data.get("position"),
                "tenantid": tenant,
                "data": _flunq_data(type, data, about),
            },
        )


def small_flunq(entry: dict[str, Any], limit_bytes: int, dump: small.Dump) -> dict[str, Any]:
    """The same with large values left out. The input of a task is what an executor asks this stream for: it stays, once."""
    keep = frozenset({"input"}) if entry["type"] == REQUESTED else frozenset[str]()
    data = entry["data"] if isinstance(entry.get("data"), dict) else {"data": entry.get("data")}
    if entry["type"] == REQUESTED:
        data = {key: value for key, value in data.items() if key != "context"}
    return {**entry, "data": small.fitted(data, limit_bytes, small.of_instance(entry.get("executionid")), dump, keep=keep)}


def _flunq_data(type: str, data: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    error = data.get("error") or {}
    if type.startswith("timer."):
        due = dt.datetime.fromtimestamp(data["until"], dt.UTC).isoformat().replace("+00:00", "Z")
        named = {"task_id": data.get("position"), "task_name": data.get("step")}
        return (
            {**named, "scheduled_for": due}
            if type == "timer.fired"
            else {
                **named,
                "duration_ms": round(float(data.get("seconds") or 0) * 1000),
                "fire_at": due,
            }
        )
    if type.startswith("step."):
        return {
            "task_id": data.get("position"),
            "task_name": data.get("step"),
            **({"success": type == "step.completed", "error": error.get("message")} if type != "step.running" else {}),
        }
    return {
        "status": type.removeprefix("workflow."),
        **({"output": about.get("output")} if type == "workflow.completed" else {}),
        **({"error_message": error.get("message"), "failed_task": error.get("position")} if type == "workflow.failed" else {}),
    }
