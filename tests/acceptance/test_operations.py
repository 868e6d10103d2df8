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
        'orchestrator_instances_total{namespace="default",state="COMPLETED",tenant="default",workflow="sequence"} 1.0',
        'orchestrator_instances_total{namespace="default",state="FAILED",tenant="default",workflow="asked"} 1.0',
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


def test_spans_of_walks_and_steps_are_in_the_trace_of_their_instance(stack: Stack) -> None:
    worker = stack.worker(TRACING="1", OTEL_TRACES_EXPORTER="console", OTEL_BSP_SCHEDULE_DELAY="100")
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    stack.run("sequence", {}, trace_id=trace_id)

    def told() -> bool:
        # The walk's span ends, and is exported, after those of its steps.
        text = worker.log.read_text()
        return text.count(f"0x{trace_id}") >= 4 and '"name": "walk"' in text

    until(told, 10, str(worker.log))
    text = worker.log.read_text()
    assert '"name": "sequence:/do/0/' in text


def test_a_pool_of_threads_runs_everything_that_needs_no_signal(stack: Stack) -> None:
    stack.worker("--pool", "threads", concurrency=4)

    ids = [stack.runner.start_workflow(name, input={}) for name in ("sequence", "naps") * 10]
    assert {stack.ended(instance_id)["status"] for instance_id in ids} == {"COMPLETED"}
    assert stack.run("late", {})["error"]["code"] == "timeout"
    repeated = stack.sql("select instance, position, what from ledger group by 1, 2, 3 having count(*) > 1")
    assert repeated == []


def test_a_worker_says_on_its_own_port_how_it_is(stack: Stack) -> None:
    port = any_free()
    stack.worker(HEALTH_PORT=str(port))

    said = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read())

    assert (said["status"], said["engine"], said["database"]["type"]) == ("healthy", "serverless", "postgres")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"REDIS_URL": "localhost:6379"}, "redis://localhost:6379"),
        ({"REDIS_URL": "redis://cache:6380/1", "REDIS_HOST": "ignored"}, "redis://cache:6380/1"),
        ({"REDIS_HOST": "cache"}, "redis://cache:6379/0"),
        ({"REDIS_HOST": "cache", "REDIS_PORT": "6380", "REDIS_PASSWORD": "a/b"}, "redis://:a%2Fb@cache:6380/0"),
        ({"REDIS_URL": "cache:6379", "REDIS_PASSWORD": "pw"}, "redis://:pw@cache:6379"),
    ],
)
def test_redis_is_named_in_one_way_or_another(given: dict[str, str], expected: str) -> None:
    assert load(given).redis_url == expected


@pytest.mark.parametrize("name", ["DB_TYPE", "WORKFLOW_ENGINE_TYPE"])
def test_a_kind_that_is_not_there_is_refused_by_the_variables_name(name: str) -> None:
    with pytest.raises(Invalid, match=f'{name}: Expected .*, got "bogus"'):
        load({name: "bogus"})


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


def test_a_worker_whose_timer_service_is_off_leaves_timers_to_another(stack: Stack) -> None:
    stack.worker(TIMER_SERVICE_ENABLED="false")
    instance_id = stack.runner.start_workflow("naps", input={})
    until(lambda: stack.sql("select 1 from timers where due_at < now() - interval '1 second'"), 20)
    assert stack.state(instance_id) != "COMPLETED"
    assert stack.sql("select count(*) from checkpoints k join branches b on b.id = k.branch_id where k.kind = 'wait.completed'") == [(0,)]
    stack.worker()
    assert stack.ended(instance_id, 20)["status"] == "COMPLETED"
