"""What operators rely on: clean shutdown, metrics, logs as JSON, settings with their faults, a broker that is away."""

from __future__ import annotations

import json
import urllib.request

import pytest

from orchestrator.config.settings import load
from orchestrator.dev.ports import any_free
from orchestrator.errors import Invalid
from tests.stack import Stack, until


def test_a_warm_shutdown_lets_the_workflow_in_progress_complete(stack: Stack) -> None:
    worker = stack.worker()
    instance_id = stack.runner.start_workflow("slowly", input={})
    until(lambda: stack.sql("select 1 from ledger where instance = %s", instance_id))

    assert worker.terminate() == 0

    assert stack.state(instance_id) == "COMPLETED"
    assert stack.sql("select count(*) from workers") == [(0,)]


def test_metrics_of_all_children_are_on_one_port_and_logs_are_json(stack: Stack) -> None:
    port = any_free()
    worker = stack.worker(METRICS_PORT=str(port), LOG_FORMAT="json")
    stack.run("sequence", {})
    stack.run("asked", {"fail": True})

    def scraped() -> str:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()  # type: ignore[no-any-return]

    text = until(lambda: scraped() if 'state="FAILED"' in scraped() else "", 10)
    for wanted in (
        'orchestrator_steps_total{outcome="completed",type="note"} 6.0',
        'orchestrator_instances_total{state="COMPLETED",workflow="sequence"} 1.0',
        'orchestrator_instances_total{state="FAILED",workflow="asked"} 1.0',
        "orchestrator_step_seconds_bucket",
        "orchestrator_claims_total",
    ):
        assert wanted in text
    lines = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
    failed = next(line for line in lines if "asked to fail" in line["message"])
    assert failed["workflow"] == "asked"
    assert failed["position"] == "/do/1/fails_when_asked"
    assert failed["level"] == "WARNING"


def test_starts_are_accepted_while_the_broker_is_away_and_run_when_it_is_back(stack: Stack) -> None:
    stack.environment["QUEUE_GRACE"] = "1"
    port = stack.redis_server.port
    stack.redis_server.stop()
    try:
        instance_id = stack.runner.start_workflow("sequence", input={})
        assert stack.state(instance_id) == "PENDING"
    finally:
        stack.redis_server.start()
    assert stack.redis_server.port == port
    stack.worker()

    assert stack.ended(instance_id)["status"] == "COMPLETED"


def test_faults_of_settings_are_reported_together() -> None:
    with pytest.raises(Invalid) as caught:
        load(
            {
                "LEASE": "soon",
                "PORT": "-1",
                "LOG_FORMAT": "xml",
                "REDIS_URL": "redis+cluster://h",
                "DATABASE_URL": "mysql://h",
                "TRACING": "perhaps",
            }
        )
    places = {fault.place for fault in caught.value.faults}
    assert places == {"LEASE", "PORT", "LOG_FORMAT", "REDIS_URL", "DATABASE_URL", "TRACING"}
    with pytest.raises(Invalid, match="at most half"):
        load({"LEASE": "10s", "HEARTBEAT": "9s"})
    assert load({"LEASE": "1m"}).lease_s == 60
