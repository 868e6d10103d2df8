"""Life-cycle events as the Serverless Workflow specification names them: CloudEvents `io.serverlessworkflow.*.v1`.

Made from the same outbox as all other events, for instances of Serverless Workflow documents. Tasks have theirs where the
document asks for it: `metadata: {lifecycleEvents: tasks}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.history import Fact, Kind
from orchestrator.ids import pointer

PREFIX = "io.serverlessworkflow"
WORKFLOW = {
    "workflow.started": ("started", "startedAt"),
    "workflow.paused": ("suspended", "suspendedAt"),
    "workflow.resumed": ("resumed", "resumedAt"),
    "workflow.retried": ("resumed", "resumedAt"),
    "workflow.cancelled": ("cancelled", "cancelledAt"),
    "workflow.failed": ("faulted", "faultedAt"),
    "workflow.completed": ("completed", "completedAt"),
}
TASK = {
    "step.running": (("created", "createdAt"), ("started", "startedAt")),
    "step.retried": (("retried", "retriedAt"),),
    "step.completed": (("completed", "completedAt"),),
    "step.failed": (("faulted", "faultedAt"),),
}


def cloud_events(id: str, type: str, data: dict[str, Any], at: str, about: dict[str, Any], instance_id: str) -> Iterator[dict[str, Any]]:
    """None, one or two CloudEvents for an event of ours."""
    name = f"{instance_id}.{about.get('namespace', 'default')}"
    source = f"/{about.get('namespace', 'default')}/{about.get('workflow')}/{about.get('version')}"
    if type in WORKFLOW:
        phase, stamp = WORKFLOW[type]
        body: dict[str, Any] = {"name": name, stamp: at}
        if phase == "started":
            body["definition"] = {"namespace": about.get("namespace"), "name": about.get("workflow"), "version": about.get("version")}
        if phase == "faulted":
            body["error"] = _problem(data.get("error"))
        if phase == "completed":
            body["output"] = about.get("output")
        yield _envelope(id, f"{PREFIX}.workflow.{phase}.v1", source, at, body)
    for phase, stamp in TASK.get(type, ()):
        body = {"workflow": name, "task": pointer(str(data.get("position", ""))), stamp: at}
        if phase == "faulted":
            body["error"] = _problem(data.get("error"))
        yield _envelope(f"{id}-{phase}", f"{PREFIX}.task.{phase}.v1", source, at, body)


def _envelope(id: str, type: str, source: str, at: str, data: dict[str, Any]) -> dict[str, Any]:
    return {"specversion": "1.0", "id": id, "type": type, "source": source, "time": at, "datacontenttype": "application/json", "data": data}


def _problem(error: Any) -> dict[str, Any]:
    held = error if isinstance(error, dict) else {}
    return {key: held[key] for key in ("type", "status", "title", "detail", "instance") if key in held} or {
        "title": held.get("message", "")
    }


def of_fact(fact: Fact) -> tuple[str, ...]:
    """The events that a fact of a task other than a step stands for."""
    data = fact.data or {}
    match fact.kind:
        case Kind.DECIDED if data.get("slot") in ("set", "case"):
            return ("step.running", "step.failed" if "error" in data else "step.completed")
        case Kind.EMITTED:
            return ("step.running", "step.completed")
        case Kind.WAITING | Kind.OPENED | Kind.CHILD_STARTED:
            return ("step.running",)
        case Kind.WAITED:
            return ("step.completed",)
        case Kind.JOINED | Kind.CHILD_ENDED:
            return ("step.failed" if "error" in data else "step.completed",)
    return ()
