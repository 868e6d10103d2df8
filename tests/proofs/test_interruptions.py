"""A step that shall end ends, whatever it catches; and what it gives or raises, its instance alone has to bear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.dev.servers import Postgres, Redis
from orchestrator.errors import OrchestratorError
from tests.conftest import fresh_database
from tests.proofs.lives import FUNCTIONS, GIVEN, KEPT, RAISED, STUBBORN
from tests.stack import Stack, until


@pytest.fixture(scope="module")
def lively(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("lives"), workflows="tests.proofs.lives")
    made.environment.update({"QUEUE_GRACE": "3", "LEASE": "4", "HEARTBEAT": "1.5"})
    made.worker(concurrency=8)
    yield made
    made.stop()


def effects(stack: Stack, instance_id: str) -> list[str]:
    return [row[0] for row in stack.sql("select what from ledger where instance = %s order by id", instance_id)]


def took_s(stack: Stack, instance_id: str) -> float:
    return float(stack.sql("select extract(epoch from ended_at - started_at)::float8 from instances where id = %s", instance_id)[0][0])


@pytest.mark.proves(18)
def test_a_step_that_catches_every_exception_does_not_outlive_its_timeout(lively: Stack) -> None:
    started = {name: lively.runner.start_workflow(name, input={"seconds": 240}) for name in STUBBORN}

    ended = {name: lively.ended(instance_id, 20) for name, instance_id in started.items()}

    assert {name: (one["status"], (one["error"] or {}).get("code")) for name, one in ended.items()} == dict.fromkeys(
        STUBBORN, ("FAILED", "timeout")
    )
    slow = {name: took for name, instance_id in started.items() if (took := took_s(lively, instance_id)) > 120}
    assert not slow, slow
    assert effects(lively, started["catches"]) == ["begin"], "`except Exception` sees nothing of its own end"
    assert "clean" in effects(lively, started["cleans-up"]), "a `finally` has time to clean up"


@pytest.mark.proves(18)
def test_a_step_that_catches_every_exception_does_not_outlive_a_cancel(lively: Stack) -> None:
    kinds = ("long-catches", "long-catches", "long-catches", "long-catches-all", "long-catches-all", "long-catches-all", "long-in-a-loop")
    started = [lively.runner.start_workflow(name, input={"seconds": 240}) for name in (*kinds, kinds[-1])]
    for instance_id in started:
        until(lambda i=instance_id: effects(lively, i) == ["begin"])  # type: ignore[misc]
    for instance_id in started:
        lively.runner.cancel_workflow(instance_id)

    # All processes were busy, and are free again: eight of them take eight others at once.
    others = [lively.runner.start_workflow("long-catches", input={"seconds": 2}) for _ in range(8)]
    for instance_id in others:
        until(lambda i=instance_id: effects(lively, i) == ["begin"], 20)  # type: ignore[misc]

    for instance_id in others:
        assert lively.ended(instance_id)["status"] == "COMPLETED"
    assert {lively.state(instance_id) for instance_id in started} == {"CANCELLED"}


@pytest.mark.proves(19)
def test_what_is_no_json_fails_its_step_at_once_with_an_error_that_says_so(lively: Stack) -> None:
    started = {kind: lively.runner.start_workflow("giving", input={"kind": kind}) for kind in GIVEN}

    ended = {kind: lively.ended(instance_id, 20) for kind, instance_id in started.items()}

    wrong = {
        kind: (one["status"], one["error"])
        for kind, one in ended.items()
        if one["status"] != "FAILED" or one["error"]["code"] not in ("runtime", "validation", "too_deep", "too_large")
    }
    assert not wrong, wrong
    often = {kind: made for kind, instance_id in started.items() if len(made := effects(lively, instance_id)) > 1}
    assert not often, "the step would give the same again"


@pytest.mark.proves(19)
def test_what_has_a_form_in_json_is_kept_in_it(lively: Stack) -> None:
    for kind in KEPT:
        assert lively.run("giving", {"kind": kind})["status"] == "COMPLETED", kind
    started = [lively.runner.start_workflow("parent-of-giving", input={"kind": kind}) for kind in ("half a character", "not a number")]
    for instance_id in started:
        one = lively.ended(instance_id)
        assert (one["status"], one["error"]["code"] in ("runtime", "validation")) == ("FAILED", True), one["error"]


@pytest.mark.proves(19)
def test_whatever_a_step_raises_is_the_failure_of_that_step(lively: Stack) -> None:
    started = {kind: lively.runner.start_workflow("raising", input={"kind": kind}) for kind in RAISED}
    started["no reason"] = lively.runner.start_workflow("untold", input={})

    ended = {kind: lively.ended(instance_id, 20) for kind, instance_id in started.items()}

    assert {kind: one["status"] for kind, one in ended.items()} == dict.fromkeys(started, "FAILED")
    crashed = {kind: one["error"] for kind, one in ended.items() if one["error"]["code"] in ("worker_crashed", "internal")}
    assert not crashed
    assert all(0 < len(one["error"]["message"]) < 10_000 for one in ended.values())
    often = {kind: made for kind, instance_id in started.items() if len(made := effects(lively, instance_id)) > 1}
    assert not often
    entries = until(lambda: lively.redis.xrange("orchestrator:events"))
    assert max(len(fields["data"]) for _, fields in entries) < 100_000, "no error text of megabytes goes to Redis"
    assert max(worker.log.stat().st_size for worker in lively.workers) < 2_000_000, "nor to a log"


@pytest.mark.proves(19)
def test_functions_in_definitions_give_json_or_fail(lively: Stack) -> None:
    for name in FUNCTIONS:
        one = lively.run(name, {}, timeout_s=20)
        assert (one["status"], one["error"]["code"]) == ("FAILED", "expression"), (name, one["error"])


@pytest.mark.proves(19)
@pytest.mark.parametrize("kind", ["half a character", "not a number", "an object", "itself", "a number of 5000 digits"])
def test_a_signal_that_is_no_json_is_refused_and_changes_nothing(lively: Stack, kind: str) -> None:
    instance_id = lively.runner.start_workflow("long-catches", input={"seconds": 0.3})
    data: Any = GIVEN[kind]()

    with pytest.raises(OrchestratorError):
        lively.runner.signal_workflow(instance_id, "odd", data)

    assert lively.sql("select count(*) from events where instance_id = %s", instance_id) == [(0,)]
    lively.ended(instance_id)
