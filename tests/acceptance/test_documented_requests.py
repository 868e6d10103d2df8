"""Every request that the documents of the scheduled-workflow service (S1), the engine (S2) and the Serverless
Workflow system (S4) name, sent as they write it.

`docs/reference/documented-requests.md` is this table with what was answered: UPDATE_DOCS=1 writes it anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api import create_app
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import Runtime
from tests.stack import Stack, until

PAGE = Path(__file__).parents[2] / "docs/reference/documented-requests.md"
SCHEDULE = {
    "id": "daily",
    "name": "Daily",
    "workflow": {"id": "numbered", "version": "1"},
    "schedule": {"cron": "0 9 * * *", "timezone": "UTC"},
}

GREET: dict[str, Any] = {
    "document": {"dsl": "1.0.0", "namespace": "default", "name": "greet", "version": "1.0.0"},
    "input": {"schema": {"document": {"type": "object", "properties": {"name": {"type": "string"}}}}},
    "do": [{"say": {"set": {"text": "Hello"}}}],
}

# Where, method, path, body, status, keys of the answer (or text in it). {i}: an instance that waits; {e}: the execution that was begun last.
REQUESTS: list[tuple[str, str, str, Any, int, set[str]]] = [
    ("S1", "GET", "/health", None, 200, {"status", "uptime", "workflows", "timestamp"}),
    ("S1", "GET", "/api/workflows", None, 200, {"workflows", "schedules"}),
    ("S1", "POST", "/api/workflows/numbered/trigger", {"inputData": {"n": 7}}, 202, {"success", "result", "runId"}),
    ("S1", "POST", "/api/workflows/nobody/trigger", {"inputData": {}}, 404, {"success", "error"}),
    ("S1", "POST", "/api/workflows/numbered/trigger", "{broken", 400, {"success", "error"}),
    ("S1", "GET", "/api/workflows/numbered/status", None, 200, {"workflow", "recentRuns", "isScheduled"}),
    ("S1", "GET", "/api/workflows/nobody/status", None, 404, {"success", "error"}),
    ("S1", "POST", "/api/events", {"eventType": "cms.content.updated", "payload": {"serviceId": 123}}, 200, {"success", "id"}),
    ("S1", "POST", "/api/events", {"payload": {}}, 400, {"success", "error"}),
    ("S1", "GET", "/api/events", None, 200, {"events"}),
    ("S1", "POST", "/api/trigger/numbered", {"n": 8}, 202, {"success", "result"}),
    ("S1", "GET", "/api/stats", None, 200, {"totalRuns", "completed", "failed"}),
    ("S1", "GET", "/api/history?limit=5", None, 200, {"runs"}),
    ("S1", "GET", "/api/metrics", None, 200, {"workflow_runs_total{", "workflow_orchestrator_uptime_seconds", "workflows_registered_total"}),
    ("S2", "GET", "/workflow/status", None, 200, {"status", "components", "scheduler"}),
    ("S2", "POST", "/workflow/start/numbered?version=1", {"data": {"n": 1}, "priority": "normal", "metadata": {"by": "us"}}, 201,
     {"instanceId", "workflowId", "version", "status", "timestamp"}),
    ("S2", "POST", "/workflow/start/nobody", {"data": {}}, 404, {"error", "message"}),
    ("S2", "POST", "/workflow/start/numbered?version=9", {"data": {"n": 1}}, 404, {"error", "message"}),
    ("S2", "POST", "/workflow/start/numbered", {"data": {"n": 1}, "priority": "sometime"}, 400, {"error", "message"}),
    ("S2", "GET", "/workflow/instance/{i}", None, 200, {"id", "status", "steps", "input"}),
    ("S2", "GET", "/workflow/instance/00000000-0000-7000-8000-000000000000", None, 404, {"error", "message"}),
    ("S2", "POST", "/workflow/instance/{i}/pause", None, 200, {"instanceId", "status"}),
    ("S2", "POST", "/workflow/instance/{i}/pause", None, 409, {"error", "message"}),
    ("S2", "POST", "/workflow/instance/{i}/resume", None, 200, {"instanceId", "status"}),
    ("S2", "GET", "/workflow/instance/{i}/resources", None, 200, {"memory_mb", "cpu_percent", "disk_bytes"}),
    ("S2", "DELETE", "/workflow/instance/{i}", {"reason": "enough"}, 200, {"instanceId", "status"}),
    ("S2", "POST", "/workflow/instance/{i}/resume", None, 409, {"error", "message"}),
    ("S2", "GET", "/workflow/schedules", None, 200, {"schedules", "stats"}),
    ("S2", "POST", "/workflow/schedules", SCHEDULE, 201, {"id", "nextRun", "runCount", "errorCount", "isRunning"}),
    ("S2", "POST", "/workflow/schedules", SCHEDULE, 409, {"error", "message"}),
    ("S2", "POST", "/workflow/schedules", {"id": "x", "name": "X", "workflowId": "numbered", "cron": "61 * * * *"}, 400, {"error", "faults"}),
    ("S2", "GET", "/workflow/schedules/daily", None, 200, {"id", "name", "description", "lastRun", "nextRun"}),
    ("S2", "PUT", "/workflow/schedules/daily", {**SCHEDULE, "schedule": {"cron": "0 6 * * *"}}, 200, {"nextRun"}),
    ("S2", "POST", "/workflow/schedules/daily/stop", None, 200, {"enabled"}),
    ("S2", "POST", "/workflow/schedules/daily/start", None, 200, {"enabled"}),
    ("S2", "POST", "/workflow/schedules/reload", None, 200, {"reloaded"}),
    ("S2", "DELETE", "/workflow/schedules/daily", None, 200, {"id", "deleted"}),
    ("S2", "GET", "/workflow/schedules/daily", None, 404, {"error", "message"}),
    ("S2", "GET", "/workflow/audit?action=start&page=1&limit=2", None, 200, {"audit", "pagination"}),
    ("S2", "GET", "/workflow/metrics", None, 200, {"lifecycle", "scheduler"}),
    ("S2", "GET", "/workflow/metrics?format=prometheus", None, 200, {"orchestrator_events"}),
    ("S2", "GET", "/workflow/workflows?nameSpace=default&search=number", None, 200, {"workflows", "total"}),
    ("S2", "GET", "/workflow/workflows/default/numbered", None, 200, {"id", "versions", "definition"}),
    ("S2", "GET", "/workflow/history?page=1&limit=5&status=cancelled", None, 200, {"history", "pagination"}),
    ("S2", "GET", "/workflow/history/days", None, 200, {"days"}),
    ("S2", "GET", "/workflow/configs?format=yaml", None, 200, {"configs:"}),
    ("S1", "POST", "/api/webhooks/alerts", {"alerts": [{"labels": {"alertname": "Disk", "severity": "critical"}}]}, 200, {"success", "received"}),
    ("S4", "POST", "/acme/workflows", {"name": "greet", "definition": GREET}, 201, {"id", "tenant_id", "version"}),
    ("S4", "GET", "/acme/workflows", None, 200, {"workflows", "total"}),
    ("S4", "GET", "/acme/workflows/wf_greet", None, 200, {"id", "definition"}),
    ("S4", "POST", "/acme/workflows/wf_greet/execute", {"input": {"name": 7}}, 400, {"code", "faults"}),
    ("S4", "POST", "/acme/workflows/wf_greet/execute", {"input": {"name": "Ada"}, "correlation_id": "c-1"}, 202,
     {"id", "status", "correlation_id", "workflow_id"}),
    ("S4", "GET", "/acme/workflows/wf_greet/events?limit=10", None, 200, {"events", "count"}),
    ("S4", "GET", "/acme/executions?workflow_id=wf_greet&limit=1&offset=0", None, 200, {"executions", "total", "limit", "offset"}),
    ("S4", "GET", "/acme/executions/{e}", None, 200, {"id", "status", "input"}),
    ("S4", "GET", "/acme/executions/{e}/events", None, 200, {"events"}),
    ("S4", "PUT", "/acme/workflows/wf_greet", {"definition": {**GREET, "document": {**GREET["document"], "version": "1.1.0"}}}, 200, {"version"}),
    ("S4", "GET", "/other/workflows/wf_greet", None, 404, {"error", "message"}),
]  # fmt: skip


@pytest.fixture
def instance(stack: Stack) -> str:
    stack.worker()
    made = stack.runner.start_workflow("waits-long", input={})
    until(lambda: stack.sql("select 1 from timers"), 20)
    return made


def test_each_request_is_answered_as_documented(stack: Stack, instance: str) -> None:
    client = create_app(stack.runner).test_client()
    rows, execution = [], ""
    for where, method, path, body, status, keys in REQUESTS:
        given: dict[str, Any] = {"data": body, "content_type": "application/json"} if isinstance(body, str) else {"json": body}
        answer = client.open(path.replace("{i}", instance).replace("{e}", execution), method=method, **(given if body is not None else {}))
        said = f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        assert answer.status_code == status, said
        if path.endswith("/execute") and status == 202:
            execution = answer.get_json()["id"]
        found = set(answer.get_json()) if answer.is_json else {key for key in keys if key in answer.text}
        assert keys <= found, f"{said}: {keys - found} are missing"
        sample = "" if body is None else f" `{body if isinstance(body, str) else json.dumps(body)}`"
        rows.append(f"| {where} | `{method} {path}`{sample} | {status} | {', '.join(f'`{key}`' for key in sorted(keys))} |")
    page = "\n".join(
        [
            "# Requests of older documents", "",
            "Each as the documents of the scheduled-workflow service (S1), the engine (S2) and the Serverless Workflow system (S4) write it,",
            "and what answers; made by `tests/acceptance/test_documented_requests.py`, which sends them. `{i}` is an instance, `{e}` an",
            "execution.", "",
            "| from | request | answered | with at least |", "|---|---|---|---|", *rows, "",
        ]
    )  # fmt: skip
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page, "UPDATE_DOCS=1 writes the page anew"


def test_one_instance_is_seen_through_each_dialect(stack: Stack) -> None:
    stack.worker()
    client = create_app(stack.runner).test_client()
    run = client.post("/api/workflows/numbered/trigger", json={"inputData": {"n": 7}}).get_json()["result"]
    stack.ended(run["instanceId"])
    assert client.get(f"/workflow/instance/{run['instanceId']}").get_json()["input"] == {"n": 7}
    recent = client.get("/api/workflows/numbered/status").get_json()["recentRuns"]
    assert [(one["runId"], one["status"]) for one in recent] == [(f"run_{run['instanceId']}", "completed")]
    assert client.get("/workflow/instances?workflow=numbered").get_json()["instances"][0]["id"] == run["instanceId"]
    assert 'workflow_runs_total{status="completed",workflow="numbered"} 1.0' in client.get("/api/metrics").text


def test_many_at_once_and_what_they_depend_on(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    ids = [client.post("/workflow/start/waits-long", json={}).get_json()["instanceId"] for _ in range(3)]
    after = client.post("/workflow/start/numbered", json={"data": {"n": 1}}).get_json()["instanceId"]
    assert client.post(f"/workflow/instance/{after}/dependencies", json={"instanceId": ids[0]}).status_code == 201
    cycle = client.post(f"/workflow/instance/{ids[0]}/dependencies", json={"instanceId": after})
    assert (cycle.status_code, "cycle" in cycle.get_json()["message"]) == (400, True)
    assert client.post("/workflow/instances/cancel", json={}).status_code == 400
    done = client.post("/workflow/instances/cancel", json={"workflow": "waits-long"}).get_json()["outcome"]
    assert done == dict.fromkeys(ids, "ok")
    assert client.post("/workflow/instances/explode", json={"workflow": "x"}).status_code == 404


def test_what_ended_long_ago_is_cleaned_up(stack: Stack) -> None:
    stack.worker()
    client = create_app(stack.runner).test_client()
    done = stack.run("numbered", {"n": 1})["id"]
    running = stack.runner.start_workflow("waits-long", input={})
    assert client.post("/workflow/cleanup", json={"olderThan": "1h"}).get_json() == {"cleanedUp": []}
    assert client.post("/workflow/cleanup", json={"olderThan": "soon"}).status_code == 400
    assert client.post("/workflow/cleanup", json={"olderThan": "0s"}).get_json() == {"cleanedUp": [done]}
    assert client.get(f"/workflow/instance/{done}").get_json()["outcome"] == "COMPLETED"
    assert stack.state(running) in ("PENDING", "RUNNING")
    assert client.get("/workflow/stats").get_json()["last_cleanup"]
    assert client.post("/workflow/limits/enforce").get_json() == {"stopped": {}}


def test_the_database_is_away_and_says_so(stack: Stack) -> None:
    import dataclasses

    from orchestrator.store.connection import Database

    held = stack.runner.runtime
    gone = "postgresql://nobody@127.0.0.1:1/none"
    runtime = Runtime(dataclasses.replace(held.settings, database_url=gone), Database(gone, patience_s=0.1), held.publisher)
    client = create_app(WorkflowRunner(runtime)).test_client()
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 503
    answer = client.get("/health")
    assert (answer.status_code, answer.get_json()["components"]["database"]["status"]) == (503, "unhealthy")
    assert client.get("/workflow/instances").get_json()["code"] == "database_away"
