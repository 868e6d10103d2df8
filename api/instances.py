"""Starting instances, looking at them, and moving them."""

from __future__ import annotations

from typing import Any

import redis
from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked, gate, health
from orchestrator.api import metrics as prometheus
from orchestrator.api.described import Acknowledge, Approve, Bulk, Cancel, Cleanup, Rerun, SkipWait, Start
from orchestrator.api.runner import runner
from orchestrator.api.service import newest
from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.definition.labels import read_labels
from orchestrator.definition.parsing import escaped, printable, suggestion_for
from orchestrator.errors import Fault, Invalid, NotFound
from orchestrator.store.connection import spelled
from orchestrator.store.definitions import Stored
from orchestrator.store.queries import Filter

MOST_AT_ONCE = 1000
blueprint = Blueprint("instances", __name__, url_prefix="/workflow")


@blueprint.post("/start/<workflow>")
def start(workflow: str) -> tuple[Response, int]:
    """Start an instance of a workflow.

    `{data, priority, metadata, labels, dependencies}`; a body without `data` is the input as it stands.
    """
    body = asked.body()
    wrapped = "data" in body
    options = _options(body) if wrapped else {}
    instance_id = runner().start_workflow(
        workflow,
        request.args.get("version"),
        body["data"] if wrapped else body,
        idempotency_key=request.headers.get("Idempotency-Key"),
        trace_id=_trace_id(),
        tenant=asked.tenant(),
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


OPTIONS = tuple(name for name in Start.model_fields if name != "data")
ELSEWHERE = {
    "version": "The version goes into the address: ?version=1.",
    "idempotencykey": "The key goes into the header Idempotency-Key.",
    "tenant": "The tenant goes into the header X-Tenant.",
}


def _options(body: dict[str, Any]) -> dict[str, Any]:
    """What stands beside `data`. A name that is none would be lost, whether it was to be an option or a part of the input."""
    known = ("data", *OPTIONS)
    faults = [
        Fault(
            f"/{escaped(name)}",
            f'Unknown field "{printable(name)}" beside "data": the input stands in "data", or is the whole body where that has none.',
            ELSEWHERE.get(name.lower().replace("_", "").replace("-", "")) or suggestion_for(name, known),
        )
        for name in body
        if name not in known
    ]
    if faults:
        raise Invalid(faults, "request")
    return {name: body[name] for name in OPTIONS if body.get(name) is not None}


def _trace_id() -> str:
    """Of the caller's `traceparent` (00-<trace id>-<span id>-<flags>), or a fresh one."""
    import uuid

    parts = request.headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else uuid.uuid4().hex


@blueprint.get("/instances")
def listing() -> Response:
    """List instances.

    The newest first; `?label=shop=north`, several must all hold. `next` is the cursor of those that follow, and is null at the end.
    """
    wanted = Filter(
        state=tuple(request.args.getlist("state")),
        workflow=request.args.get("workflow"),
        tenant=asked.only_tenant(),
        search=request.args.get("search"),
        labels=read_labels(request.args.getlist("label"), "?label="),
        limit=asked.number("limit", 100, 1000),
        offset=int(request.args.get("offset", "0")) if request.args.get("offset", "0").isdigit() else 0,
        after=asked.cursor(),
    )
    found = runner().instances(wanted)
    return jsonify({"instances": found, "next": asked.cursor_after(found, wanted.limit)})


@blueprint.get("/instance/<instance_id>")
def show(instance_id: str) -> Response:
    """Get an instance.

    Its tasks have their input, output and duration. Values above 4,000 characters of JSON are left out, and shown with `?data=whole`.
    """
    return jsonify(runner().get_workflow_status(instance_id, whole=asked.wants_whole_data()))


@blueprint.get("/instance/<instance_id>/history")
def history(instance_id: str) -> Response:
    """Get the facts of an instance.

    `history`: every committed fact. `moves`: from which state to which, when and by whom, the oldest first.
    """
    current = runner()
    instance_id = current.resolve_id(instance_id)
    moves = [
        {"at": one["at"], "move": one["action"], "from": one["from_state"], "to": one["to_state"], "by": one["actor"]}
        for one in reversed(current.audit(instance_id, 1000))
        if one["to_state"] is not None and one["from_state"] != one["to_state"]
    ]
    return jsonify({"history": current.history(instance_id), "moves": moves})


@blueprint.post("/instance/<instance_id>/pause")
def pause(instance_id: str) -> Response:
    """Pause an instance."""
    runner().pause_workflow(instance_id, actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "paused"})


@blueprint.post("/instance/<instance_id>/resume")
def resume(instance_id: str) -> Response:
    """Resume an instance."""
    runner().resume_workflow(instance_id, actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "resumed"})


@blueprint.post("/instance/<instance_id>/retry")
def retry(instance_id: str) -> Response:
    """Retry a failed instance from its failed step."""
    runner().retry_workflow(instance_id, actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "retried"})


@blueprint.post("/instance/<instance_id>/signal/<name>")
def signal(instance_id: str, name: str) -> tuple[Response, int]:
    """Send a signal to an instance."""
    body = asked.body()
    runner().signal_workflow(instance_id, name, body.get("data", body or None), id=body.get("id"), actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "signalled"}), 202


@blueprint.post("/instance/<instance_id>/approve")
def approve(instance_id: str) -> Response:
    """Answer an approval an instance waits for.

    `{approved, step, data}`: only `true` approves; without a step, the only one that waits.
    """
    given = asked.body_as(Approve)
    name = runner().approve(instance_id, given.step, approved=given.approved, data=given.data, actor=asked.actor())
    return jsonify({"instanceId": instance_id, "approval": name, "status": "approved" if given.approved else "refused"})


@blueprint.post("/instance/<instance_id>/skip-wait")
def skip_wait(instance_id: str) -> Response:
    """End waits of an instance before their time.

    End waits before their time: `{step}`, or all of them.
    """
    return jsonify(
        {"instanceId": instance_id, "skipped": runner().skip_wait(instance_id, asked.body_as(SkipWait).step, actor=asked.actor())}
    )


@blueprint.delete("/instance/<instance_id>")
def cancel(instance_id: str) -> Response:
    """Cancel an instance."""
    body = asked.body_as(Cancel)
    runner().cancel_workflow(instance_id, reason=body.reason, compensate=body.compensate, actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "cancelled"})


@blueprint.post("/instance/<instance_id>/rollback")
def rollback(instance_id: str) -> Response:
    """Roll an instance back.

    Undo what was done, as a saga that failed would.
    """
    runner().rollback_workflow(instance_id, actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "rolling_back"})


@blueprint.post("/instance/<instance_id>/rerun")
def rerun(instance_id: str) -> tuple[Response, int]:
    """Rerun an instance from a step.

    `{step, input}`: a new instance that goes on from a step, with what was done before it.
    """
    body = asked.body_as(Rerun)
    of = runner().get_workflow_status(instance_id)
    gate.may_start(f"{of['namespace']}.{of['workflow']}", of["version"])
    made = runner().rerun_workflow(instance_id, body.step, input=body.input, actor=asked.actor())
    return jsonify({"instanceId": made, "forkedFrom": instance_id, "status": "started"}), 201


@blueprint.get("/instance/<instance_id>/resources")
def resources(instance_id: str) -> Response:
    """Get the resources an instance uses.

    Memory and processor of the processes that work for it now, and the room its history takes.
    """
    return jsonify({"instanceId": instance_id, **runner().check_resource_usage(instance_id)})


@blueprint.post("/instance/<instance_id>/dependencies")
def add_dependency(instance_id: str) -> tuple[Response, int]:
    """Make an instance wait for another workflow.

    `{workflowId | instanceId, condition}`, before it has begun. A cycle is refused.
    """
    runner().add_dependency(instance_id, asked.body(), actor=asked.actor())
    return jsonify({"instanceId": instance_id, "status": "depends"}), 201


@blueprint.post("/instances/<any(pause, resume, cancel, retry, rollback):verb>")
def bulk(verb: str) -> Response:
    """Pause, resume, cancel, retry or roll back many instances.

    One verb for all that a filter finds, the newest first: `{state, workflow, labels, search, limit}`, which must not be empty.
    `matched`: how many there were before, by state; `changed` and `refused` of them; `left`: how many are beyond `limit` (1,000).
    """
    body = asked.body_as(Bulk)
    if not (body.state or body.workflow or body.search or body.labels):
        raise Invalid([Fault("body", "names no filter: state, workflow, labels or search is needed")], "request")
    states = (body.state,) if isinstance(body.state, str) else tuple(body.state or ())
    wanted = Filter(state=states, workflow=body.workflow, search=body.search, labels=body.labels or {}, tenant=asked.only_tenant())
    matched = runner().count_by_state(wanted)
    outcome = runner().bulk(verb, wanted, most=body.limit or MOST_AT_ONCE, actor=asked.actor())
    changed = sum(said == "ok" for said in outcome.values())
    counts = {
        "matched": matched,
        "changed": changed,
        "refused": len(outcome) - changed,
        "left": max(0, sum(matched.values()) - len(outcome)),
    }
    return jsonify({**counts, "outcome": outcome})


@blueprint.post("/cleanup")
def cleanup() -> Response:
    """Clean up instances that ended long ago.

    `{olderThan}` as 30d, else RETENTION: histories of instances that ended before go, their records stay.
    """
    given = asked.body_as(Cleanup).olderThan
    try:
        older_than_s = None if given is None else seconds(given)
    except BadDuration as error:
        raise Invalid([Fault("olderThan", str(error))], "request") from None
    return jsonify({"cleanedUp": runner().cleanup(older_than_s)})


@blueprint.post("/limits/enforce")
def enforce() -> Response:
    """Enforce resource limits now.

    Stop what is above its limits now; gives why, by instance.
    """
    return jsonify({"stopped": runner().enforce_resource_limits()})


@blueprint.get("/dead-letters")
def dead_letters() -> Response:
    """List dead letters.

    Steps that were given up, the newest first; `next` is the cursor of what follows.
    """
    limit = asked.number("limit", 100, 1000)
    found = runner().dead_letters(tenant=asked.only_tenant(), before=asked.before(), limit=limit)
    return jsonify({"deadLetters": found, "next": asked.next_of(found, limit)})


@blueprint.post("/dead-letters/acknowledge")
def acknowledge() -> Response:
    """Acknowledge dead letters.

    `{numbers, reason}`: somebody has looked, and nothing more is to be done. Kept in the audit; gives which were open until now.
    """
    given = asked.body_as(Acknowledge)
    done = runner().acknowledge_dead_letters(given.numbers, tenant=asked.only_tenant(), reason=given.reason, actor=asked.actor())
    return jsonify({"acknowledged": done})


@blueprint.get("/workflows")
def workflows() -> Response:
    """List workflows.

    Each workflow by its newest version; `?nameSpace=`, `?search=`.
    """
    namespace, search = request.args.get("nameSpace"), request.args.get("search", "").lower()
    found = [
        _workflow(stored)
        for stored in newest()
        if (namespace is None or stored.namespace == namespace)
        and (search in stored.name.lower() or search in str(stored.tree.get("title") or "").lower())
    ]
    return jsonify({"workflows": found, "total": len(found)})


@blueprint.get("/workflows/<namespace>/<name>")
def workflow(namespace: str, name: str) -> Response:
    """Get a workflow with its versions and schedules.

    One workflow, with all its versions and its schedules.
    """
    versions = [one for one in runner().workflows() if (one.namespace, one.name) == (namespace, name) and asked.sees(one)]
    if not versions:
        raise NotFound("workflow", f"{namespace}.{name}")
    return jsonify(
        {
            **_workflow(versions[0]),
            "versions": [one.version for one in versions],
            "definition": versions[0].tree,
            "schedules": runner().schedules.all(asked.tenant(), name),
        }
    )


def _workflow(stored: Stored) -> dict[str, Any]:
    return {
        "id": f"{stored.namespace}.{stored.name}@{stored.version}", "nameSpace": stored.namespace, "name": stored.name,
        "version": stored.version, "title": stored.tree.get("title") or "", "form": "document" if stored.source else "python",
    }  # fmt: skip


@blueprint.get("/status")
def status() -> Response:
    """Get the status of the system.

    How the system is: components, schedules, what runs.
    """
    about, code = health.overall()
    stats = runner().get_workflow_stats() if code == 200 else {}
    about |= {"scheduler": runner().schedules.stats(None) if code == 200 else None, "workflows": stats.get("states")}
    try:
        about["breakers"] = runner().runtime.breakers.all()
    except redis.RedisError:
        about["breakers"] = None
    return Response(spelled(about), code, content_type="application/json")


@blueprint.get("/metrics")
def metrics() -> Response:
    """Get metrics of the system.

    As JSON; for Prometheus by `Accept: text/plain` or `?format=prometheus`.
    """
    if request.args.get("format") == "prometheus" or request.accept_mimetypes.best == "text/plain":
        return prometheus.metrics()
    return jsonify({"lifecycle": runner().get_workflow_stats(), "scheduler": runner().schedules.stats(None)})


@blueprint.get("/stats")
def stats() -> Response:
    """Count instances by state and workflow."""
    return jsonify(runner().get_workflow_stats())
