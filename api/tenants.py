"""The API of the Serverless Workflow system: everything below a tenant, workflows `wf_…`, executions `ex_…`.

The same definitions and instances as anywhere else, in that system's words. `/{tenant}/…` and `/api/v1/{tenant}/…`.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked
from orchestrator.api.described import TenantAct, TenantExecute, TenantWorkflow
from orchestrator.api.runner import runner
from orchestrator.api.service import flat, in_ms
from orchestrator.definition.documents import parse, read_document
from orchestrator.definition.triggers import instance_id_of
from orchestrator.definition.validate import check
from orchestrator.errors import Fault, Invalid, NotFound, VersionClash
from orchestrator.ids import EXECUTION, WORKFLOW
from orchestrator.state import State
from orchestrator.steps.registry import REGISTRY
from orchestrator.store import definitions, lists, live
from orchestrator.store.definitions import Stored
from orchestrator.store.queries import Filter, plain
from orchestrator.stream.outlets import FLUNQ

blueprint = Blueprint("tenants", __name__)

MOST_EVENTS = 1_000


def _route(path: str, *methods: str) -> Any:
    def add(view: Any) -> Any:
        for prefix, name in (("", view.__name__), ("/api/v1", f"{view.__name__}_v1")):
            blueprint.add_url_rule(f"{prefix}/<tenant>{path}", name, view, methods=methods)
        return view

    return add


# ── workflows ───────────────────────────────────────────────────────────────────────────────────────────────────────


@_route("/workflows", "GET")
def workflows(tenant: str) -> Response:
    """List a tenant's workflows.

    The tenant's own, and everybody's.
    """
    found = [_shown(one, tenant) for one in _newest(tenant)]
    return jsonify({"workflows": found, "total": len(found)})


@_route("/workflows", "POST")
def create(tenant: str) -> tuple[Response, int]:
    """Register a tenant's workflow.

    A document, or `{name, description, definition}` with one.
    """
    return jsonify(_shown(_put(tenant, None), tenant)), 201


@_route("/workflows/<workflow>", "GET")
def one(tenant: str, workflow: str) -> Response:
    """Get a tenant's workflow."""
    return jsonify(_shown(_found(tenant, workflow), tenant, whole=True))


@_route("/workflows/<workflow>", "PUT")
def change(tenant: str, workflow: str) -> Response:
    """Register the next version of a tenant's workflow.

    Its next version; what runs goes on with the version it began with.
    """
    return jsonify(_shown(_put(tenant, _own(tenant, workflow)), tenant))


@_route("/workflows/<workflow>", "DELETE")
def delete(tenant: str, workflow: str) -> Response:
    """Withdraw a tenant's workflow.

    All its versions. 409 while instances of it run; histories of those that ended stay readable.
    """
    held = _own(tenant, workflow)
    runner().withdraw_workflow(held.name, held.namespace, tenant=held.tenant, **asked.by_whom())
    return jsonify({"id": _id(held.namespace, held.name), "deleted": True})


@_route("/workflows/<workflow>/execute", "POST")
def execute(tenant: str, workflow: str) -> tuple[Response, int]:
    """Execute a tenant's workflow.

    `{input, correlation_id}`. The input is checked against the document's schema before anything is kept.
    """
    held = _found(tenant, workflow)
    body = asked.body_as(TenantExecute)
    correlation = body.correlation_id or f"corr_{uuid.uuid4().hex}"
    instance_id = runner().start_workflow(
        f"{held.namespace}.{held.name}", None, body.input, tenant=tenant, metadata={"correlation_id": correlation},
        idempotency_key=request.headers.get("Idempotency-Key"), actor=asked.actor(), source="api",
    )  # fmt: skip
    return jsonify({**_execution(tenant, instance_id), "status": "pending"}), 202


@_route("/workflows/<workflow>/events", "GET")
def workflow_events(tenant: str, workflow: str) -> Response:
    """List the events of a tenant's workflow.

    What happened in its executions: `?execution_id=`, `?since=` a moment, `?limit=`.
    """
    held = _found(tenant, workflow)
    wanted = request.args.get("execution_id")
    if wanted is not None:
        ids = [_instance(tenant, wanted)["id"]]
    else:
        ids = runner().database.patiently(
            lambda c: lists.ids(c, Filter(namespace=held.namespace, workflow=held.name, tenant=tenant, limit=100))
        )
    return _events(tenant, held.name, ids)


# ── executions ──────────────────────────────────────────────────────────────────────────────────────────────────────


@_route("/executions", "GET")
def executions(tenant: str) -> Response:
    """List a tenant's executions.

    The newest first: `?workflow_id=`, `?status=`, `?limit=`, `?offset=`.
    """
    workflow, status = request.args.get("workflow_id"), request.args.get("status")
    held = _found(tenant, workflow) if workflow else None
    wanted = Filter(
        namespace=held.namespace if held else None,
        workflow=held.name if held else None,
        state=(status.upper(),) if status else (),
        tenant=tenant,
        limit=asked.number("limit", 50, 1000),
        offset=int(request.args.get("offset", "0")),
    )
    rows, total = runner().database.patiently(lambda c: (lists.instances(c, wanted), lists.count(c, wanted)))
    found = [
        {
            "id": EXECUTION + row["id"], "workflow_id": _id(row["namespace"], row["workflow"]), "tenant_id": tenant, "status": row["state"].lower(),
            "error": row["error"], "created_at": row["created_at"], "started_at": row["started_at"], "completed_at": row["ended_at"],
            "duration_ms": in_ms(row["duration_s"]),
        }
        for row in rows
    ]  # fmt: skip
    return jsonify({"executions": found, "total": total, "limit": wanted.limit, "offset": wanted.offset})


@_route("/executions/<instance_id>", "GET")
def execution(tenant: str, instance_id: str) -> Response:
    """Get a tenant's execution.

    With its tasks: their status, input, output and duration. Values above 4,000 characters of JSON are left out, and shown with `?data=whole`.
    """
    found = _instance(tenant, instance_id, whole=asked.wants_whole_data())
    return jsonify({**_shown_execution(tenant, found), "tasks": [_task(node) for node in flat(found["steps"])]})


@_route("/executions/<instance_id>", "POST")
def act(tenant: str, instance_id: str) -> Response:
    """Pause, resume, cancel or retry a tenant's execution.

    `{action: pause | resume | cancel | retry, reason}`.
    """
    found = _instance(tenant, instance_id)
    body = asked.body_as(TenantAct)
    current = runner()
    if body.action == "cancel":
        current.cancel_workflow(found["id"], reason=body.reason, actor=asked.actor())
    else:
        verbs = {"pause": current.pause_workflow, "resume": current.resume_workflow, "retry": current.retry_workflow}
        verbs[body.action](found["id"], actor=asked.actor())
    return jsonify(_execution(tenant, found["id"]))


@_route("/executions/<instance_id>/events", "GET")
def execution_events(tenant: str, instance_id: str) -> Response:
    """List the events of a tenant's execution.

    What happened, in its order: `?since=` a moment, `?limit=`.
    """
    found = _instance(tenant, instance_id)
    return _events(tenant, found["workflow"], [found["id"]])


# ── that system's words ─────────────────────────────────────────────────────────────────────────────────────────────


def _newest(tenant: str) -> list[Stored]:
    return definitions.newest((stored for stored in runner().workflows() if stored.tenant in ("default", tenant)), tenant)


def _id(namespace: str, name: str) -> str:
    return WORKFLOW + (name if namespace == "default" else f"{namespace}.{name}")


def _found(tenant: str, workflow: str) -> Stored:
    wanted = workflow.removeprefix(WORKFLOW)
    newest = _newest(tenant)
    for stored in newest:
        if wanted in (_id(stored.namespace, stored.name).removeprefix(WORKFLOW), f"{stored.namespace}.{stored.name}"):
            return stored
    named = [stored for stored in newest if stored.name == wanted]
    if len(named) != 1:
        raise NotFound("workflow", workflow, "several namespaces have one" if named else f"`GET /{tenant}/workflows` lists them")
    return named[0]


def _own(tenant: str, workflow: str) -> Stored:
    """One that the tenant may change: not everybody's."""
    held = _found(tenant, workflow)
    if held.tenant != tenant:
        raise NotFound("workflow", workflow, f"it is everybody's, and not of '{tenant}'")
    return held


def _put(tenant: str, before: Stored | None) -> Stored:
    text = request.get_data(as_text=True)
    given = parse(text, "request.json" if request.is_json else "request.yaml")
    if isinstance(given, dict) and "definition" in given:
        asked_for = asked.read_as(TenantWorkflow, given)
        given = dict(asked_for.definition)
        head = dict(given["document"]) if isinstance(given.get("document"), dict) else None
        if head is not None:
            # What the envelope says counts where the document says nothing.
            for key, value in (("name", asked_for.name), ("summary", asked_for.description)):
                if value and not head.get(key):
                    head[key] = value
            given["document"] = head
        text = json.dumps(given)
    definition = read_document(text, "request.yaml")
    check(definition, REGISTRY)
    if before is not None and (definition.name, definition.namespace) != (before.name, before.namespace):
        raise Invalid(
            [Fault("definition", f"is '{definition.namespace}.{definition.name}'; the workflow is '{_id(before.namespace, before.name)}'")],
            "workflow",
        )
    new = (tenant, definition.namespace, definition.name, definition.version)
    if before is None and any((one.tenant, one.namespace, one.name, one.version) == new for one in _newest(tenant)):
        raise VersionClash(definition.name, definition.version)
    runner().register_workflow(definition, text, tenant=tenant)
    return _found(tenant, f"{definition.namespace}.{definition.name}")


def _shown(stored: Stored, tenant: str, *, whole: bool = False) -> dict[str, Any]:
    about = {
        "id": _id(stored.namespace, stored.name), "tenant_id": tenant, "name": stored.name, "namespace": stored.namespace, "version": stored.version,
        "description": stored.tree.get("title") or "", "state": "active", "is_shared": stored.tenant != tenant,
        "created_at": plain(stored.created_at),
    }  # fmt: skip
    if whole:
        about["definition"] = parse(stored.source, "source.yaml") if stored.source else stored.tree
    return about


def _instance(tenant: str, execution: str, *, whole: bool = False) -> dict[str, Any]:
    try:
        try:
            instance_id = runner().resolve_id(execution)
        except NotFound:
            instance_id = instance_id_of(execution, tenant)  # it began under an id of somebody else's
        found = runner().get_workflow_status(instance_id, whole=whole)
    except NotFound:
        raise NotFound("execution", execution) from None
    if found["tenant"] != tenant:
        raise NotFound("execution", execution)
    return found


def _execution(tenant: str, execution: str) -> dict[str, Any]:
    return _shown_execution(tenant, _instance(tenant, execution))


def _shown_execution(tenant: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": EXECUTION + found["id"],
        "workflow_id": _id(found["namespace"], found["workflow"]),
        "tenant_id": tenant,
        "status": (found["outcome"] or found["status"]).lower() if found["status"] == State.CLEANING_UP else found["status"].lower(),
        "correlation_id": (found["metadata"] or {}).get("correlation_id"),
        "input": found["input"],
        "output": found["output"],
        "error": found["error"],
        "progress": found["progress"],
        "created_at": found["created_at"],
        "started_at": found["started_at"],
        "completed_at": found["completed_at"],
        "duration_ms": in_ms(found["duration_s"]),
    }


def _task(node: dict[str, Any]) -> dict[str, Any]:
    shown = {
        "id": node["position"],
        **{name: node.get(name) for name in ("name", "type", "status", "attempts", "input", "output", "error")},
    }
    times = {name: node.get(name) for name in ("started_at", "completed_at")}
    return {**shown, **times, "duration_ms": in_ms(node.get("duration_s"))}


def _events(tenant: str, workflow: str, ids: list[str]) -> Response:
    since, limit = asked.moment("since"), asked.number("limit", 100, MOST_EVENTS)
    rows = runner().database.patiently(lambda c: live.facts_since(c, ids, since, limit))
    found = [
        {
            "id": f"evt_{row['name']}", "specversion": "1.0", "source": "workflow-engine",
            "type": FLUNQ.get(row["kind"], f"io.flunq.{row['kind']}"), "time": row["at"], "workflowid": workflow,
            "executionid": EXECUTION + row["instance_id"], "taskid": row["position"] or None, "tenantid": tenant, "data": row["data"],
        }
        for row in rows
    ]  # fmt: skip
    return jsonify({"events": found, "count": len(found)})
