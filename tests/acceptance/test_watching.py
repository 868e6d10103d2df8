"""What those who watch are told: figures that are true, alerts and panels whose every metric exists, alerts of configurations."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.api import create_app
from orchestrator.dev.ports import any_free
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import Runtime
from orchestrator.history import Failure
from orchestrator.schedule import beats
from orchestrator.store.connection import Database
from orchestrator.telemetry.categories import category, severity
from tests.guarded import guarded, key
from tests.stack import Stack, until
from tests.web import web

REFERENCE = Path(__file__).parents[2] / "docs/reference"
FUNCTIONS = {"sum", "rate", "max", "by", "le", "histogram_quantile", "topk", "deriv", "and"}


def scraped(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def of(found: dict[str, list[tuple[dict[str, str], float]]], name: str, **labels: str) -> float:
    return next(value for had, value in found[name] if labels.items() <= had.items())


# ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_figures_are_what_is_so(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    for n in range(3):
        client.post("/workflow/start/waits-long", json={"n": n}, headers={"X-Actor": "ann"})
    client.post("/workflow/start/numbered", json={"data": {"n": 1}, "priority": "high"})
    client.post("/workflow/schedules", json={"id": "s", "workflow": "numbered", "cron": "0 0 * * *"})
    found = scraped(client.get("/metrics").text)
    assert of(found, "orchestrator_up", component="database") == of(found, "orchestrator_up", component="redis") == 1
    assert of(found, "orchestrator_instances", state="PENDING") == 4
    assert of(found, "orchestrator_queue_depth", queue="normal") == stack.redis.llen("normal") == 3
    assert of(found, "orchestrator_queue_depth", queue="high") == 1
    assert of(found, "orchestrator_schedules", state="active") == 1
    assert of(found, "orchestrator_actions", actor="ann", action="start") == 3
    assert of(found, "process_resident_memory_bytes") > 1e6
    assert of(found, "orchestrator_workers") == 0
    stack.worker()
    until(lambda: of(scraped(client.get("/metrics").text), "orchestrator_workers") == 1, 10)
    until(lambda: of(scraped(client.get("/metrics").text), "orchestrator_instances", state="RUNNING") == 3, 10)


def test_servers_that_are_away_are_a_figure_and_not_a_fault(stack: Stack) -> None:
    held = stack.runner.runtime
    gone = "postgresql://nobody@127.0.0.1:1/none"
    changed = dataclasses.replace(held.settings, database_url=gone, redis_url="redis://127.0.0.1:1/0")
    client = create_app(WorkflowRunner(Runtime(changed, Database(gone, patience_s=0.1), held.publisher))).test_client()
    answer = client.get("/metrics")
    found = scraped(answer.text)
    assert answer.status_code == 200
    assert of(found, "orchestrator_up", component="database") == of(found, "orchestrator_up", component="redis") == 0


@pytest.mark.parametrize(
    ("code", "name", "details", "expected"),
    [
        ("timeout", "StepTimeout", None, "timeout"),
        ("runtime", "ConnectionRefusedError", None, "network"),
        ("circuit_open", "CircuitOpen", None, "network"),
        ("retryable", "HttpError", {"status": 503}, "network"),
        ("retryable", "HttpError", {"status": 504}, "timeout"),
        ("terminal", "HttpError", {"status": 403}, "permission"),
        ("terminal", "HttpError", {"status": 422}, "validation"),
        ("retryable", "HttpError", {"status": 429}, "resource"),
        ("runtime", "PermissionError", None, "permission"),
        ("runtime", "MemoryError", None, "resource"),
        ("runtime", "ValueError", None, "validation"),
        ("worker_crashed", "WorkerCrashed", None, "system"),
        ("runtime", "OutOfCheese", None, "unknown"),
    ],
)
def test_errors_have_a_category(code: str, name: str, details: Any, expected: str) -> None:
    assert category(Failure(code=code, message="m", name=name, details=details)) == expected


def test_severity_follows_from_what_can_be_done() -> None:
    assert [severity("system", gave_up=False), severity("network", gave_up=True), severity("resource", gave_up=True)] == [
        "low",
        "medium",
        "high",
    ]
    assert severity("system", gave_up=True) == "critical"


def test_what_failed_is_counted_by_category_and_what_is_not_to_be_watched_is_not(stack: Stack) -> None:
    stack.runner.configs.save({"id": "sequence", "monitoring": {"enabled": False}})
    stack.runner.configs.save({"id": "numbered", "monitoring": {"metrics": ["error_rate"]}})
    port = any_free()
    stack.worker(METRICS_PORT=str(port))
    for workflow in ("sequence", "numbered", "asked", "late"):
        stack.run(workflow, {"fail": True, "n": 1})

    def text() -> str:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()  # type: ignore[no-any-return]

    found = until(lambda: (lambda t: scraped(t) if 'workflow="late"' in t else None)(text()), 10)
    seen = {labels["workflow"] for labels, _ in found["orchestrator_instances_total"]}
    timed = {labels["workflow"] for labels, _ in found["orchestrator_instance_seconds_count"]}
    assert "sequence" not in seen | timed
    assert ("numbered" in seen, "numbered" in timed) == (True, False)
    assert {"asked", "late"} <= timed
    assert of(found, "orchestrator_errors_total", category="timeout", severity="medium") >= 1


# ── dashboards and rules ────────────────────────────────────────────────────────────────────────────────────────────

DECLARED = """
import json
from orchestrator.telemetry import metrics
metrics.enable()
print(json.dumps({collector._name: sorted(collector._labelnames) for collector in metrics._known.values()}))
"""


def test_every_metric_and_label_of_the_dashboard_and_the_rules_exists(stack: Stack) -> None:
    """Those of workers and bridges as they declare them, those of the API as it gives them."""
    stack.worker()
    app = guarded(stack)
    client = app.test_client()
    boss = key(stack, "admin")
    stack.runner.configs.save({"id": "numbered", "monitoring": {"sla": 60_000}})
    stack.run("numbered", {"n": 1})
    stack.runner.runtime.breakers.tell("somewhere", "bad", "no answer")
    beats.note(stack.runner.database.connection())
    client.get("/workflow/instances", headers={"Authorization": "Bearer no"})
    stack.redis.xgroup_create("events:workflow", "workflow-group", mkstream=True)
    stack.runner.send_events([{"id": "1", "source": "s", "type": "t"}])
    client.post("/api/webhooks/alerts", json={"alerts": [{"labels": {"severity": "critical"}}]}, headers=boss)
    given = client.get("/metrics", headers=boss).text
    declared = json.loads(subprocess.run([sys.executable, "-c", DECLARED], capture_output=True, text=True, check=True).stdout)
    known: dict[str, set[str]] = {}
    for name, labels in declared.items():
        for suffix in ("", "_total", "_bucket", "_count", "_sum"):
            known[name + suffix] = {*labels, "le"}
    for name, samples in scraped(given).items():
        known[name] = {label for labels, _ in samples for label in labels}
    given_names = {line.split()[2] for line in given.splitlines() if line.startswith("# TYPE")}

    dashboard = json.loads((REFERENCE / "grafana-dashboard.json").read_text())
    rules = yaml.safe_load((REFERENCE / "alerts.yaml").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    assert len(expressions) > 50
    for expression in expressions:
        metrics = re.findall(r"\b((?:orchestrator|process|workflow)_\w+)", expression)
        assert metrics, expression
        for metric in metrics:
            assert metric in known or metric in given_names, f"{metric} in {expression}"
        used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression))
        used |= {label.strip() for part in re.findall(r"by \(([^)]*)\)", expression) for label in part.split(",")}
        if all(known.get(metric) for metric in metrics):
            assert used <= set.union(*(known[metric] for metric in metrics)), expression
    assert all(
        rule["annotations"]["summary"] and rule.get("labels", {}).get("severity") for group in rules["groups"] for rule in group["rules"]
    )
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


# ── alerts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_alerts_of_a_configuration_are_events_each_once_and_start_what_answers_them(stack: Stack) -> None:
    stack.runner.configs.save({"id": "late", "monitoring": {"alerts": ["execution_timeout", "high_error_rate"], "errorRate": 0.5}})
    stack.runner.put_trigger(
        {"name": "answer", "on": "orchestrator.alert.high_error_rate", "start": "numbered", "input": "{n: .data.failed}"}
    )
    stack.worker()
    late = [stack.run("late", {})["id"] for _ in range(5)]
    stack.run("asked", {"fail": True})  # nobody asked to be told of that

    def raised(kind: str) -> list[dict[str, Any]]:
        return [
            e["envelope"]["data"] for e in create_app(stack.runner).test_client().get(f"/workflow/events?type={kind}").get_json()["events"]
        ]

    until(lambda: len(raised("orchestrator.alert.execution_timeout")) == 5, 20)
    assert sorted(one["instanceId"] for one in raised("orchestrator.alert.execution_timeout")) == sorted(late)
    [rate] = until(lambda: raised("orchestrator.alert.high_error_rate"), 20)
    assert (rate["workflow"], rate["ended"], rate["failed"], rate["rate"]) == ("late", 5, 5, 1.0)
    until(lambda: stack.sql("select 1 from instances where workflow = 'numbered' and input = '{\"n\": 5}'"), 20)
    from orchestrator.engine import alerting

    assert alerting.look(stack.runner.runtime) == 0


def test_what_a_configuration_says_of_monitoring_is_checked(stack: Stack) -> None:
    said = stack.runner.configs.validate({"id": "x", "monitoring": {"sla": 0, "errorRate": 2}})
    assert {fault["place"] for fault in said["errors"]} == {"/monitoring/sla", "/monitoring/errorRate"}


def test_alertmanagers_alerts_come_in_once(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    alert = {
        "status": "firing",
        "labels": {"alertname": "Disk", "severity": "warning"},
        "startsAt": "2026-01-01T00:00:00Z",
        "fingerprint": "f1",
    }
    sent = {"version": "4", "status": "firing", "receiver": "us", "alerts": [alert, {**alert, "fingerprint": "f2"}]}
    assert client.post("/api/webhooks/alerts", json=sent).get_json() == {"success": True, "received": 2, "new": 2}
    assert client.post("/api/webhooks/alerts", json=sent).get_json()["new"] == 0
    assert client.post("/api/webhooks/alerts", json={"alerts": [{**alert, "status": "resolved"}]}).get_json()["new"] == 1
    assert client.post("/api/webhooks/alerts/critical", json={"alerts": [{**alert, "fingerprint": "f3"}]}).get_json()["new"] == 1
    assert client.post("/api/webhooks/alerts", json={"alerts": [{"status": "odd"}]}).status_code == 400
    assert of(scraped(client.get("/api/metrics").text), "alerts_received_total", severity="warning") == 3
    assert of(scraped(client.get("/api/metrics").text), "alerts_received_total", severity="critical") == 1


def test_a_debug_log_shows_the_stages_of_a_start(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    stack.runner.configs.save({"id": "shaky", "security": {"permissions": ["data:read"]}})
    headers = key(stack, "user", name="ann", scopes=["data:read"])
    worker = stack.worker("--loglevel", "DEBUG")
    caplog.set_level("DEBUG", logger="orchestrator")
    instance_id = guarded(stack).test_client().post("/workflow/start/shaky", json={"failures": 1}, headers=headers).get_json()["instanceId"]
    stages = [line.split(": ", 1)[1].split(" ")[0] for line in caplog.messages if line.startswith("shaky: ")]
    assert stages == ["validatePermissions", "getConfiguration", "createInstance"]
    stack.ended(instance_id)
    until(lambda: "handleError: " in worker.log.read_text(), 5)


@pytest.mark.parametrize(("level", "seen"), [("debug", {"DEBUG", "WARNING"}), ("info", {"WARNING"}), ("error", set())])
def test_the_web_process_logs_as_it_is_told(stack: Stack, level: str, seen: set[str]) -> None:
    """Its own process, as it is served: what an app in a test would show by the test's own logging."""
    with web(stack, LOG_FORMAT="json", LOG_LEVEL=level, SLOW_QUERY="0.000001") as (url, _):
        assert httpx.post(f"{url}/workflow/start/numbered", json={"n": 1}, trust_env=False).status_code == 201
    lines = [json.loads(line) for line in (stack.folder / "web.log").read_text().splitlines() if line.startswith("{")]
    own = [line for line in lines if line["name"].startswith("orchestrator.")]
    assert {line["level"] for line in own} - {"INFO"} == seen
    assert any("createInstance" in line["message"] for line in own) == (level == "debug")
    assert any("a statement took" in line["message"] for line in own) == (level != "error")
