"""Starting instances, looking at them, and moving them."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from api import asked
from api.runner import runner
from orchestrator.store.queries import Filter

blueprint = Blueprint("instances", __name__, url_prefix="/workflow")


@blueprint.post("/start/<workflow>")
def start(workflow: str) -> tuple[Response, int]:
    """`{data, priority, metadata, labels, dependencies}`; a body without `data` is the input as it stands."""
    body = asked.body()
    wrapped = "data" in body
    options = {key: body[key] for key in ("priority", "metadata", "labels", "dependencies") if wrapped and body.get(key) is not None}
    instance_id = runner().start_workflow(
        workflow,
        request.args.get("version"),
        body["data"] if wrapped else body,
        idempotency_key=request.headers.get("Idempotency-Key"),
        trace_id=_trace_id(),
        actor=asked.actor(),
        source="api",
        **options,
    )
    status = runner().get_workflow_status(instance_id)
    shown = {
        "instanceId": instance_id,
        "workflowId": status["workflow"],
        "version": status["version"],
        "status": "started",
        "timestamp": status["created_at"],
    }
    return jsonify(shown), 201


def _trace_id() -> str:
    """Of the caller's `traceparent` (00-<trace id>-<span id>-<flags>), or a fresh one."""
    import uuid

    parts = request.headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else uuid.uuid4().hex


@blueprint.get("/instances")
def listing() -> Response:
    wanted = Filter(
        state=tuple(request.args.getlist("state")),
        workflow=request.args.get("workflow"),
        search=request.args.get("search"),
        limit=min(request.args.get("limit", 100, int), 1000),
        offset=request.args.get("offset", 0, int),
    )
    return jsonify({"instances": runner().instances(wanted)})


@blueprint.get("/instance/<instance_id>")
def show(instance_id: str) -> Response:
    return jsonify(runner().get_workflow_status(instance_id))


@blueprint.get("/instance/<instance_id>/history")
def history(instance_id: str) -> Response:
    return jsonify({"history": runner().history(instance_id)})


@blueprint.post("/instance/<instance_id>/pause")
def pause(instance_id: str) -> Response:
    runner().pause_workflow(instance_id, actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "paused"})


@blueprint.post("/instance/<instance_id>/resume")
def resume(instance_id: str) -> Response:
    runner().resume_workflow(instance_id, actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "resumed"})


@blueprint.post("/instance/<instance_id>/retry")
def retry(instance_id: str) -> Response:
    runner().retry_workflow(instance_id, actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "retried"})


@blueprint.post("/instance/<instance_id>/signal/<name>")
def signal(instance_id: str, name: str) -> tuple[Response, int]:
    body = asked.body()
    runner().signal_workflow(instance_id, name, body.get("data", body or None), id=body.get("id"), actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "signalled"}), 202


@blueprint.post("/instance/<instance_id>/skip-wait")
def skip_wait(instance_id: str) -> Response:
    """End waits before their time: `{step}`, or all of them."""
    return jsonify({"instanceId": instance_id, "skipped": runner().skip_wait(instance_id, asked.body().get("step"), actor=asked.actor())})


@blueprint.delete("/instance/<instance_id>")
def cancel(instance_id: str) -> Response:
    body = asked.body()
    runner().cancel_workflow(instance_id, reason=body.get("reason"), compensate=body.get("compensate"), actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "cancelled"})


@blueprint.get("/stats")
def stats() -> Response:
    return jsonify(runner().get_workflow_stats())
