"""The catalogue of events: every fact about life cycles that leaves the engine, and what it looks like outside.

Events are written to the outbox in the transaction that makes them true and relayed to the Redis stream of
EVENT_STREAM. Each may arrive twice; its `id` is the same then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EventType:
    name: str
    meaning: str
    exec_type: str
    status: str
    signal: str = ""


CATALOGUE = {
    event.name: event
    for event in (
        EventType("workflow.created", "an instance was recorded", "exec.progress", "pending", "workflowCreated"),
        EventType("workflow.started", "its first step is about to run", "exec.progress", "running", "workflowStarted"),
        EventType("workflow.paused", "somebody paused it", "exec.progress", "paused", "workflowPaused"),
        EventType("workflow.resumed", "somebody resumed it", "exec.progress", "running", "workflowResumed"),
        EventType("workflow.retried", "it goes on at its failed step", "exec.progress", "running", "workflowReady"),
        EventType("workflow.compensating", "its completed steps are being undone", "exec.progress", "compensating"),
        EventType("workflow.completed", "it ended well", "exec.completed", "completed", "workflowCompleted"),
        EventType("workflow.failed", "it ended with an error", "exec.failed", "failed", "workflowFailed"),
        EventType("workflow.cancelled", "somebody cancelled it", "exec.failed", "cancelled", "workflowCancelled"),
        EventType("workflow.cleaned_up", "its history was removed", "exec.progress", "cleaned_up", "workflowCleanedUp"),
        EventType("step.running", "a step is about to run", "exec.progress", "running"),
        EventType("step.retried", "an attempt failed, another follows", "exec.progress", "retrying"),
        EventType("step.completed", "a step is done", "exec.progress", "completed"),
        EventType("step.failed", "a step failed for good", "exec.failed", "failed"),
        EventType("step.compensated", "a step was undone", "exec.progress", "compensated"),
        EventType("step.skipped", "a step was left out: one that it depends on did not complete", "exec.progress", "skipped"),
        EventType("timer.scheduled", "a task waits until a time", "exec.progress", "waiting"),
        EventType("timer.fired", "a wait is over", "exec.progress", "running"),
        EventType("resource.moved", "a resource went from one state to another", "resource.moved", "moved"),
        EventType("event.received", "an event was sent to the orchestrator", "event.received", "received"),
        EventType("event.emitted", "a workflow emitted an event of its own", "event.emitted", "emitted"),
    )
}


def fields(id: int, type: str, instance_id: str | None, data: dict[str, Any], at: str, instance: dict[str, Any] | None) -> dict[str, Any]:
    """The stream entry: id, type, source, subject, time, trace_id, version, and data as an object."""
    known = CATALOGUE[type]
    about = instance or {}
    body = {
        "event": type,
        "workflow_id": instance_id,
        "workflow": about.get("workflow"),
        "step_id": data.get("step"),
        "position": data.get("position"),
        "status": known.status,
        "signal": known.signal or None,
        "progress": about.get("progress"),
        "message": message(type, data, about),
        "error": data.get("error"),
        "event_data": data.get("event"),
        "completed_at": at if known.status in ("completed", "failed", "cancelled") else None,
    }
    return {
        "id": f"evt_{id}",
        "type": known.exec_type,
        "source": "orchestrator",
        "subject": f"workflow.{instance_id}",
        "time": at,
        "trace_id": about.get("trace_id") or "",
        "version": "1.0",
        "data": {key: value for key, value in body.items() if value is not None},
    }


def message(type: str, data: dict[str, Any], about: dict[str, Any]) -> str:
    error = (data.get("error") or {}).get("message", "")
    step = data.get("step", "")
    return {
        "workflow.created": "Workflow is pending execution",
        "workflow.completed": "Workflow completed successfully",
        "workflow.failed": f"Workflow failed: {error}",
        "workflow.cancelled": "Workflow was cancelled",
        "step.running": f"Executing step {step}",
        "step.completed": f"Step {step} completed",
        "step.failed": f"Step {step} failed: {error}",
        "step.retried": f"Step {step} failed and is tried again: {error}",
        "step.compensated": f"Step {step} was compensated",
        "step.skipped": f"Step {step} was skipped: one that it depends on did not complete",
    }.get(type, CATALOGUE[type].meaning)
