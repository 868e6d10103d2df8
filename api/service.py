"""The API of the scheduled-workflow service (`/api/workflows` …): workflows by name, their recent runs, figures.

Answers are `{success: true, …}` or `{success: false, error}`; a run is an instance, seen with that service's words.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked, metrics
from orchestrator.api.collectors import Service
from orchestrator.api.runner import runner
from orchestrator.errors import NotFound
from orchestrator.store import definitions, lists
from orchestrator.store.definitions import Stored
from orchestrator.store.queries import Filter

blueprint = Blueprint("service", __name__, url_prefix="/api")

RECENT = 10
_began = time.monotonic()


@blueprint.get("/workflows")
def workflows() -> Response:
    """List the workflows of the service.

    Each workflow once, by its newest version, with its schedule.
    """
    schedules = runner().schedules.all(asked.tenant())
    found = [_described(stored, schedules) for stored in newest()]
    active = [{"workflowId": one["workflow"]["id"], "schedule": one["schedule"], "nextRun": one["nextRun"]} for one in schedules]
    return jsonify({"success": True, "workflows": found, "schedules": active, "count": len(found)})


@blueprint.post("/workflows/<workflow>/trigger")
@blueprint.post("/trigger/<workflow>", endpoint="trigger_alias")
def trigger(workflow: str) -> tuple[Response, int]:
    """Trigger a workflow of the service.

    `{inputData: {…}}`; a body without it is the input as it stands.
    """
    body = asked.body()
    instance_id = runner().start_workflow(
        workflow, None, body.get("inputData", body), tenant=asked.tenant(), idempotency_key=request.headers.get("Idempotency-Key"),
        actor=asked.actor(), source="api",
    )  # fmt: skip
    run = run_of(runner().get_workflow_status(instance_id))
    return jsonify({"success": True, "runId": run["runId"], "result": run}), 202


@blueprint.get("/workflows/<workflow>/status")
def status(workflow: str) -> Response:
    """Get the status of a workflow of the service.

    The workflow, its last ten runs, whether it starts by itself.
    """
    schedules = runner().schedules.all(asked.tenant(), workflow)
    stored = next((one for one in newest() if one.name == workflow), None)
    if stored is None:
        raise NotFound("workflow", workflow, "`GET /api/workflows` lists them")
    runs = [run_of(shown) for shown in _shown(Filter(workflow=workflow, tenant=asked.only_tenant(), limit=RECENT))]
    return jsonify(
        {
            "success": True,
            "workflow": _described(stored, schedules),
            "recentRuns": runs,
            "lastStatus": runs[0]["status"] if runs else None,
            "isScheduled": any(one["enabled"] for one in schedules),
        }
    )


@blueprint.get("/history")
def history() -> Response:
    """List the runs of the service.

    The newest runs of all workflows.
    """
    return jsonify({"success": True, "runs": _runs(Filter(tenant=asked.only_tenant(), limit=asked.number("limit", 50, 200)))})


@blueprint.get("/stats")
def stats() -> Response:
    """Get figures of the service."""
    found = runner().get_workflow_stats()
    ended = {state: found["states"].get(state, 0) for state in ("COMPLETED", "FAILED", "CANCELLED")}
    return jsonify(
        {
            "success": True, "totalRuns": found["total"], "running": found["states"].get("RUNNING", 0), "completed": ended["COMPLETED"],
            "failed": ended["FAILED"], "cancelled": ended["CANCELLED"], "averageDurationMs": in_ms(found["average_s"]),
            "workflows": found["workflows"], "uptime": round(time.monotonic() - _began, 1),
        }
    )  # fmt: skip


@blueprint.get("/metrics")
def service_metrics() -> Response:
    """Get metrics under the names of the service.

    Prometheus, under that service's names beside ours.
    """
    return metrics.shown(Service(_began))


# ── its words ───────────────────────────────────────────────────────────────────────────────────────────────────────


def newest() -> list[Stored]:
    """The newest version of each workflow that the asker may see; a tenant's own comes before everybody's."""
    return definitions.newest((stored for stored in runner().workflows() if asked.sees(stored)), asked.tenant())


def _described(stored: Stored, schedules: list[dict[str, Any]]) -> dict[str, Any]:
    own = [
        one for one in schedules if one["workflow"]["id"] == stored.name and one["workflow"]["nameSpace"] in (stored.namespace, "default")
    ]
    crons = [one["schedule"]["cron"] for one in own if "cron" in one["schedule"]]
    return {
        "id": stored.name,
        "name": stored.tree.get("title") or stored.name,
        "namespace": stored.namespace,
        "version": stored.version,
        "description": stored.tree.get("title") or "",
        "schedule": crons[0] if crons else None,
        "schedules": [one["id"] for one in own],
        "enabled": True,
    }


def _shown(wanted: Filter) -> list[dict[str, Any]]:
    current = runner()
    return [current.get_workflow_status(one) for one in current.database.patiently(lambda c: lists.ids(c, wanted))]


def _runs(wanted: Filter) -> list[dict[str, Any]]:
    rows = runner().database.patiently(lambda c: lists.instances(c, wanted))
    return [
        {
            "runId": f"run_{row['id']}", "instanceId": row["id"], "workflowId": row["workflow"], "status": row["state"].lower(),
            "startedAt": row["started_at"] or row["created_at"], "completedAt": row["ended_at"], "durationMs": in_ms(row["duration_s"]),
            "error": (row["error"] or {}).get("message"),
        }
        for row in rows
    ]  # fmt: skip


def run_of(shown: dict[str, Any]) -> dict[str, Any]:
    """An instance as a run: pending, running, completed, failed; its steps' results by name, of repeated ones the last."""
    steps = [step for step in flat(shown["steps"]) if "steps" not in step]
    return {
        "runId": f"run_{shown['id']}",
        "instanceId": shown["id"],
        "workflowId": shown["workflow"],
        "status": shown["status"].lower(),
        "startedAt": shown["started_at"] or shown["created_at"],
        "completedAt": shown["completed_at"],
        "durationMs": in_ms(shown["duration_s"]),
        "input": shown["input"],
        "currentStep": next((step["name"] for state in ("RUNNING", "SCHEDULED") for step in steps if step["status"] == state), None),
        "stepResults": {step["name"]: _result(step) for step in steps if "started_at" in step},
        "error": (shown["error"] or {}).get("message"),
    }


def _result(step: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": step["status"].lower(), "success": step["status"] == "COMPLETED", "attempts": step.get("attempts", 0),
        "result": step.get("output"), "error": (step.get("error") or {}).get("message"), "durationMs": in_ms(step.get("duration_s")),
    }  # fmt: skip


def flat(steps: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All tasks, each before those within it."""
    for step in steps:
        yield step
        yield from flat(step.get("steps", []))


def in_ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(float(seconds) * 1000, 1)
