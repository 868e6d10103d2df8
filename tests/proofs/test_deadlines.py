"""The time of an instance, or of a task inside of it, is over when it is over: whatever runs, waits or is busy then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from orchestrator.definition.documents import definition_from
from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.proofs.lives import LATE, PACE
from tests.stack import Stack, until


@pytest.fixture(scope="module")
def lively(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("lives"), workflows="tests.proofs.lives")
    made.environment.update({"QUEUE_GRACE": "3"})
    made.worker(concurrency=8)
    yield made
    made.stop()


def effects(stack: Stack, instance_id: str) -> list[str]:
    return [row[0] for row in stack.sql("select what from ledger where instance = %s order by id", instance_id)]


def took_s(stack: Stack, instance_id: str) -> float:
    return float(stack.sql("select extract(epoch from ended_at - started_at)::float8 from instances where id = %s", instance_id)[0][0])


def start(stack: Stack, workflow: str) -> str:
    return stack.runner.start_workflow(workflow, input={})


@pytest.mark.proves(17)
def test_an_instance_ends_at_its_timeout_and_what_it_runs_is_interrupted(lively: Stack) -> None:
    started = {name: start(lively, name) for name in LATE}

    ended = {name: lively.ended(instance_id) for name, instance_id in started.items()}

    assert {name: (one["status"], one["error"]["code"]) for name, one in ended.items()} == dict.fromkeys(LATE, ("FAILED", "timeout"))
    slow = {name: took for name, instance_id in started.items() if (took := took_s(lively, instance_id)) > 4 * PACE}
    assert not slow
    for instance_id in started.values():
        began = effects(lively, instance_id).count("begin")
        until(lambda i=instance_id, n=began: effects(lively, i).count("interrupted") == n, 5, "what it ran is interrupted")  # type: ignore[misc]


@pytest.mark.proves(17)
def test_a_graph_document_ends_at_its_timeout(lively: Stack) -> None:
    steps = [{"id": "a", "type": "blocks"}, {"id": "b", "type": "noop", "dependencies": ["a"]}]
    lively.runner.register_workflow(definition_from({"type": "late_document", "timeout": "1.5s", "steps": steps}))
    instance_id = start(lively, "late_document")

    assert lively.ended(instance_id)["error"]["code"] == "timeout"

    assert took_s(lively, instance_id) < 4 * PACE
    until(lambda: "interrupted" in effects(lively, instance_id), 5)


@pytest.mark.proves(17)
def test_the_timeout_of_a_task_ends_the_branches_it_opened_and_is_caught(lively: Stack) -> None:
    instance_id = start(lively, "caught-deadline")

    assert lively.ended(instance_id)["status"] == "COMPLETED"

    assert took_s(lively, instance_id) < 4 * PACE
    until(lambda: effects(lively, instance_id).count("interrupted") == 2, 5)


def test_a_saga_goes_back_at_its_timeout(lively: Stack) -> None:
    instance_id = start(lively, "late-saga")

    status = lively.ended(instance_id)

    assert (status["error"]["code"], status["compensation"]["result"]) == ("timeout", "compensated")
    assert took_s(lively, instance_id) < 5 * PACE


@pytest.mark.proves(17)
def test_a_child_that_is_awaited_is_cancelled_at_its_parents_timeout(lively: Stack) -> None:
    instance_id = start(lively, "late-parent")
    child = until(lambda: lively.sql("select id::text from instances where parent_id = %s", instance_id))[0][0]

    assert lively.ended(instance_id)["error"]["code"] == "timeout"

    until(lambda: lively.state(child) == "CANCELLED", 5)


@pytest.mark.proves(17)
def test_a_timeout_holds_while_every_process_is_busy(lively: Stack) -> None:
    waiting = [start(lively, name) for name in ("late-wait", "late-approval", "late-in-a-branch")]
    until(lambda: lively.sql("select count(distinct instance_id) from branches where state = 'parked'") == [(3,)])
    busy = [lively.runner.start_workflow("long-catches", input={"seconds": 6 * PACE}) for _ in range(16)]
    until(lambda: lively.sql("select count(*) from branches where state = 'running'") == [(8,)])

    for instance_id in waiting:
        until(lambda i=instance_id: lively.state(i) == "FAILED", 4)  # type: ignore[misc]

    assert max(took_s(lively, instance_id) for instance_id in waiting) < 4 * PACE
    for instance_id in busy:
        lively.runner.cancel_workflow(instance_id)


@contextlib.contextmanager
def all_busy(stack: Stack) -> Iterator[None]:
    """No process of the pool is free meanwhile."""
    busy = [stack.runner.start_workflow("long-catches", input={"seconds": 60 * PACE}) for _ in range(8)]
    until(lambda: stack.sql("select count(*) from branches where state = 'running'") == [(8,)])
    try:
        yield
    finally:
        for instance_id in busy:
            stack.runner.cancel_workflow(instance_id)


def lived_s(stack: Stack, instance_id: str) -> float:
    return float(stack.sql("select extract(epoch from ended_at - created_at)::float8 from instances where id = %s", instance_id)[0][0])


def fails_for_its_time(stack: Stack, instance_id: str, within_s: float = 4.0) -> None:
    until(lambda: stack.state(instance_id) == "FAILED", within_s, stack.logs)
    assert stack.runner.get_workflow_status(instance_id)["error"]["code"] == "timeout"
    assert not stack.sql("select 1 from timers t join branches b on b.id = t.branch_id where b.instance_id = %s", instance_id)


@pytest.mark.proves(17)
def test_an_instance_for_which_no_process_is_free_ends_at_its_timeout(lively: Stack) -> None:
    lively.runner.put_trigger({"name": "late", "on": "late.kind", "start": "late-sequence"})
    with all_busy(lively):
        started = {name: start(lively, name) for name in (*LATE, "late-saga")}
        lively.runner.send_event({"id": "late", "source": "test", "type": "late.kind", "data": {}})
        [[triggered]] = until(lambda: lively.sql("select id::text from instances where source = 'trigger'"))
        for instance_id in (*started.values(), triggered):
            fails_for_its_time(lively, instance_id)
            assert 1.5 <= lived_s(lively, instance_id) < 4 * PACE
    assert not any(effects(lively, instance_id) for instance_id in started.values())
    assert lively.runner.get_workflow_status(started["late-saga"])["compensation"] is None
    lively.runner.delete_trigger("late")


@pytest.mark.proves(17)
def test_what_waits_for_a_process_has_only_the_rest_of_its_time(lively: Stack) -> None:
    with all_busy(lively):
        instance_id = start(lively, "late-wait")
        until(lambda: lively.sql("select 1 from instances where id = %s and created_at < now() - interval '0.7 s'", instance_id))

    fails_for_its_time(lively, instance_id)

    due = lively.sql(
        "select (k.data ->> 'due')::float8 - extract(epoch from i.created_at)::float8 from checkpoints k join branches b on b.id = k.branch_id"
        " join instances i on i.id = b.instance_id where i.id = %s and k.kind = 'deadline.set'",
        instance_id,
    )
    # Where it took longer until it was free, it was ended without having begun.
    assert all(abs(one - 1.5) < 0.2 for (one,) in due)


@pytest.mark.proves(17)
@pytest.mark.parametrize("waits_for", ["a workflow", "a slot"])
def test_the_time_of_what_may_not_begin_yet_has_not_begun(lively: Stack, waits_for: str) -> None:
    if waits_for == "a workflow":
        before = start(lively, "waits-a-minute")
        instance_id = lively.runner.start_workflow("late-after-another", input={}, dependencies=[{"instance": before, "condition": "any"}])
    else:
        before, instance_id = start(lively, "late-alone"), start(lively, "late-alone")
        lively.runner.pause_workflow(before)
    until(lambda: lively.sql("select 1 from instances where id = %s and created_at < now() - interval '2 s'", instance_id))
    assert lively.state(instance_id) == "PENDING"

    with all_busy(lively):
        lively.runner.cancel_workflow(before)

        fails_for_its_time(lively, instance_id)

    assert lived_s(lively, instance_id) > 3.5


@pytest.mark.proves(17)
def test_a_timeout_that_came_during_a_pause_comes_at_the_resume_of_what_has_not_begun(lively: Stack) -> None:
    with all_busy(lively):
        instance_id = start(lively, "in-time")
        lively.runner.pause_workflow(instance_id)
        until(lambda: lively.sql("select 1 from instances where id = %s and created_at < now() - interval '2.5 s'", instance_id))
        assert lively.state(instance_id) == "PAUSED"

        lively.runner.resume_workflow(instance_id)

        fails_for_its_time(lively, instance_id)


@pytest.mark.proves(17)
def test_a_retry_of_what_has_not_begun_has_its_time_again(lively: Stack) -> None:
    with all_busy(lively):
        instance_id = start(lively, "in-time")
        fails_for_its_time(lively, instance_id)
        lively.runner.retry_workflow(instance_id)
        assert lively.state(instance_id) == "PENDING"
        fails_for_its_time(lively, instance_id)

    lively.runner.retry_workflow(instance_id)

    assert lively.ended(instance_id)["status"] == "COMPLETED"
    assert took_s(lively, instance_id) < 1.5
    assert not lively.sql("select 1 from timers t join branches b on b.id = t.branch_id where b.instance_id = %s", instance_id)


@pytest.mark.proves(17)
def test_a_retry_after_a_timeout_has_its_time_again_and_runs_a_step_once(lively: Stack) -> None:
    started = [start(lively, name) for name in ("again-sequence", "again-graph")]
    for instance_id in started:
        assert lively.ended(instance_id)["error"]["code"] == "timeout"
        lively.runner.retry_workflow(instance_id)

    for instance_id in started:
        status = lively.ended(instance_id)
        assert status["status"] == "COMPLETED", status["error"]
        assert effects(lively, instance_id) == ["begin", "interrupted", "begin", "end"]


def test_a_rerun_has_the_time_that_was_left_at_its_step(lively: Stack) -> None:
    done = lively.run("quick-enough", input={})
    late = lively.run("waits-at-the-end", input={})
    assert late["error"]["code"] == "timeout"
    until(lambda: lively.sql("select 1 from instances where id = %s and created_at < now() - interval '3 s'", done["id"]))

    again = [lively.runner.rerun_workflow(one["id"], "b") for one in (done, late)]

    assert lively.ended(again[0])["status"] == "COMPLETED"
    assert lively.ended(again[1])["error"]["code"] == "timeout"
    assert 1.0 < took_s(lively, again[1]) < 4 * PACE
    assert not lively.sql("select 1 from timers t join branches b on b.id = t.branch_id where b.instance_id = any (%s::uuid[])", again)


@pytest.mark.proves(17)
def test_the_timeout_holds_again_after_a_retry(lively: Stack) -> None:
    instance_id = start(lively, "waits-and-waits")
    lively.ended(instance_id)

    lively.runner.retry_workflow(instance_id)

    status = lively.ended(instance_id, 5)
    assert (status["status"], status["error"]["code"]) == ("FAILED", "timeout")
    assert 1.5 < took_s(lively, instance_id) < 8 * PACE


@pytest.mark.proves(17)
def test_what_came_due_during_a_pause_comes_at_the_resume(lively: Stack) -> None:
    instance_id = start(lively, "late-wait")
    until(lambda: lively.sql("select 1 from branches where instance_id = %s and state = 'parked'", instance_id))
    lively.runner.pause_workflow(instance_id)
    due = "select 1 from timers t join branches b on b.id = t.branch_id where b.instance_id = %s and t.due_at < now() + interval '1 hour'"
    until(lambda: not lively.sql("select 1 where now() < (select started_at from instances where id = %s) + interval '2 s'", instance_id))

    lively.runner.resume_workflow(instance_id)

    until(lambda: lively.state(instance_id) == "FAILED", 10, str(lively.sql(due, instance_id)))


@pytest.mark.proves(17)
def test_the_timeout_of_all_workflows_ends_one_that_takes_little_longer(stack: Stack) -> None:
    stack.workflows = "tests.proofs.lives"
    stack.worker(WORKFLOW_TIMEOUT_SECONDS="1")
    until(lambda: stack.sql("select 1 from workers"))
    instance_id = stack.runner.start_workflow("long-catches", input={"seconds": 4 * PACE})

    status = stack.ended(instance_id)

    assert (status["status"], status["error"]["code"]) == ("FAILED", "timeout")
    lived = stack.sql("select extract(epoch from ended_at - created_at)::float8 from instances where id = %s", instance_id)
    assert lived[0][0] < 3.5 * PACE
