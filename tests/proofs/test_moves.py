"""Every move of an instance is told with when and by whom, also those that the engine makes by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.stack import Stack, until
from tests.web import web


@pytest.fixture(scope="module")
def lively(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(
        fresh_database(postgres), redis_server, tmp_path_factory.mktemp("lives"), workflows="tests.proofs.lives,tests.workflows.basic"
    )
    made.environment["QUEUE_GRACE"] = "3"
    made.worker()
    yield made
    made.stop()


def told(rows: list[dict[str, Any]]) -> list[tuple[str, str | None, str | None, str]]:
    return [(row["action"], row["from_state"], row["to_state"], row["actor"]) for row in reversed(rows)]


def audit(stack: Stack, instance_id: str) -> list[tuple[str, str | None, str | None, str]]:
    return told(json.loads(stack.cli("audit", "--instance", instance_id, "--json").stdout))


@pytest.mark.proves(22)
def test_an_audit_of_what_instances_do_by_themselves_says_where_it_stands(lively: Stack) -> None:
    for asked in (("--action", "complete"), ("--actor", "engine")):
        assert "`--instance ID` shows it" in lively.cli("audit", "--workflow", "nosuch", *asked).stdout


@pytest.mark.proves(22)
def test_the_audit_tells_of_every_move_and_keeps_what_a_retry_and_a_roll_back_overwrite(lively: Stack) -> None:
    completed = lively.run("refundable", {})["id"]
    failed = lively.run("second-time", {})["id"]
    began = [("start", None, "PENDING", "anonymous"), ("begin", "PENDING", "RUNNING", "engine")]
    assert audit(lively, completed) == [*began, ("complete", "RUNNING", "COMPLETED", "engine")]
    assert audit(lively, failed) == [*began, ("fail", "RUNNING", "FAILED", "engine")]

    lively.runner.retry_workflow(failed, actor="ada")
    lively.ended(failed)
    lively.runner.rollback_workflow(completed, actor="bob")
    until(lambda: lively.state(completed) == "CANCELLED")

    assert audit(lively, failed) == [
        *began,
        ("fail", "RUNNING", "FAILED", "engine"),
        ("retry", "FAILED", "RUNNING", "ada"),
        ("complete", "RUNNING", "COMPLETED", "engine"),
    ]
    assert audit(lively, completed) == [
        *began,
        ("complete", "RUNNING", "COMPLETED", "engine"),
        ("rollback", "COMPLETED", "RUNNING", "bob"),
        ("cancel", "RUNNING", "CANCELLED", "engine"),
    ]


@pytest.mark.proves(22)
def test_the_history_tells_of_every_move(lively: Stack) -> None:
    done = lively.run("sequence", {})["id"]
    long = lively.runner.start_workflow("waits-long", input={})
    until(lambda: lively.sql("select 1 from branches where instance_id = %s and state = 'parked'", long))
    lively.runner.cancel_workflow(long)

    with web(lively) as (url, _):
        moves = {
            instance_id: httpx.get(f"{url}/workflow/instance/{instance_id}/history", trust_env=False).json()["moves"]
            for instance_id in (done, long)
        }
        found = httpx.get(f"{url}/workflow/audit?instanceId={done}&limit=2", trust_env=False).json()
        rest = httpx.get(f"{url}/workflow/audit?instanceId={done}&before={found['next']}", trust_env=False).json() if found["next"] else {}

    assert [(move["from"], move["to"], move["move"]) for move in moves[done]] == [
        (None, "PENDING", "start"), ("PENDING", "RUNNING", "begin"), ("RUNNING", "COMPLETED", "complete"),
    ]  # fmt: skip
    assert [move["move"] for move in moves[long]] == ["start", "begin", "cancel"]
    assert [row["action"] for row in [*found["audit"], *rest.get("audit", [])]] == ["complete", "begin", "start"]


def test_moves_outlive_an_instance_that_is_deleted(lively: Stack) -> None:
    done = lively.run("sequence", {})["id"]

    lively.runner.forget_instances([done])

    kept = lively.sql("select action from audit where instance_id = %s order by id", done)
    assert kept == [("start",), ("cleanup",), ("begin",), ("complete",)]


@pytest.mark.proves(22)
def test_what_could_not_be_undone_for_want_of_a_handler_is_told(lively: Stack) -> None:
    status = lively.run("half-undone", {})

    compensation = status["compensation"]
    assert sorted(compensation["compensated"]) == ["/do/0/hotel", "/do/2/flight"]
    assert compensation["without_handler"] == ["/do/1/visa"]
    assert "no handler is registered for them: /do/1/visa (http-like)" in lively.logs()


@pytest.mark.proves(22)
def test_every_line_that_a_step_logs_has_the_trace_of_its_instance(lively: Stack) -> None:
    instance_id = lively.runner.start_workflow("says-so", input={}, trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
    lively.ended(instance_id)

    lines = until(lambda: [line for line in lively.logs().splitlines() if "the step says so" in line])
    assert "trace_id=4bf92f3577b34da6a3ce929d0e0e4736" in lines[0]
    assert f"instance={instance_id}" in lines[0]


@pytest.mark.proves(22)
def test_a_beat_that_stands_still_is_told_by_health_doctor_and_metrics(lively: Stack) -> None:
    with web(lively) as (url, _):

        def beat() -> dict[str, Any]:
            found: dict[str, Any] = httpx.get(f"{url}/health", trust_env=False).json()["components"].get("beat", {})
            return found

        assert beat()["status"] == "healthy", "none is needed"
        # As RedBeat does at every tick; the keeper sees it.
        lively.redis.set("orchestrator:beat::lock", "somebody", px=25_000)
        until(lambda: lively.sql("select 1 from chores where name = 'beat-seen'"), 10)
        assert (beat()["status"], beat()["beating"]) == ("healthy", True)

        lively.redis.delete("orchestrator:beat::lock")

        assert beat()["status"] == "unhealthy"
        assert "silent" in beat()["detail"]
        assert "orchestrator_beat_up 0.0" in httpx.get(f"{url}/metrics", trust_env=False).text
    assert "the keeper fires schedules in its place" in lively.cli("doctor").stdout
