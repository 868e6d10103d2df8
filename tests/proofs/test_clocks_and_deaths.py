"""A database's clock that is set, and workers that die whole."""

from __future__ import annotations

import os
import signal

import pytest

from orchestrator.schedule.spec import read_schedules
from tests.proofs import clock
from tests.stack import Stack, until

HOUR_S = 3600.0
[OFTEN] = read_schedules({"id": "often", "workflow": {"id": "sequence"}, "schedule": {"every": "1s"}})


def effects(stack: Stack, instance_id: str) -> list[str]:
    return [row[0] for row in stack.sql("select what from ledger where instance = %s order by id", instance_id)]


@pytest.mark.proves(66)
def test_a_database_whose_clock_is_set_back_holds_nothing_up(stack: Stack) -> None:
    """Schedules go on, branches of dead workers are freed, waits and retries end when they would have, timeouts hold."""
    stack.environment.update({"LEASE": "4", "HEARTBEAT": "1", "QUEUE_GRACE": "3"})
    stack.worker(concurrency=2)
    stack.runner.schedules.put(OFTEN)
    ticks = "select count(*) from fires where outcome = 'started'"
    until(lambda: stack.sql(ticks)[0][0] >= 2, 10)
    slow = stack.runner.start_workflow("slowly", input={})
    waits = [stack.runner.start_workflow("naps", input={}) for _ in range(3)]
    timed = stack.runner.start_workflow("timed", input={})
    until(lambda: effects(stack, slow))

    clock.set_back(stack.database_url, HOUR_S)
    stack.workers[0].kill()
    stack.worker(concurrency=4)
    before = stack.sql(ticks)[0][0]

    until(lambda: stack.sql(ticks)[0][0] >= before + 3, 15, "the schedule goes on")
    assert stack.ended(slow, 20)["status"] == "COMPLETED", "the branch of the dead worker is freed"
    for instance_id in waits:
        assert stack.ended(instance_id, 20)["status"] == "COMPLETED"
    assert stack.ended(timed, 20)["error"]["code"] == "timeout"
    fresh = stack.runner.start_workflow("naps", input={})
    assert stack.ended(fresh, 10)["status"] == "COMPLETED"


@pytest.mark.proves(66)
def test_a_clock_that_is_set_back_under_a_keeper_that_lives(stack: Stack) -> None:
    stack.environment.update({"QUEUE_GRACE": "3"})
    stack.worker(concurrency=2)
    stack.runner.schedules.put(OFTEN)
    ticks = "select count(*) from fires where outcome = 'started'"
    until(lambda: stack.sql(ticks)[0][0] >= 2, 10)
    waits = stack.runner.start_workflow("naps", input={})
    until(lambda: stack.sql("select 1 from branches where instance_id = %s and state = 'parked'", waits))

    clock.set_back(stack.database_url, HOUR_S)
    before = stack.sql(ticks)[0][0]

    until(lambda: stack.sql(ticks)[0][0] >= before + 3, 10)
    assert stack.ended(waits, 10)["status"] == "COMPLETED"


@pytest.mark.proves(66)
def test_messages_that_a_dead_worker_had_taken_are_sent_again_at_once(stack: Stack) -> None:
    stack.environment["QUEUE_GRACE"] = "240"
    victim = stack.worker(concurrency=4)
    for child in victim.children():
        os.kill(child, signal.SIGSTOP)
    started = [stack.runner.start_workflow("sequence", input={}) for _ in range(4)]
    until(lambda: stack.redis.hlen("unacked") >= 4, 10, "the worker takes the messages, and nobody claims their branches")
    stack.worker(concurrency=2)

    victim.kill()

    # Long before the grace of the queue is over.
    for instance_id in started:
        stack.ended(instance_id, 30)


@pytest.mark.proves(66)
def test_what_a_dead_worker_held_is_freed_before_its_lease_is_over(stack: Stack) -> None:
    stack.workflows = "tests.proofs.lives"
    stack.environment["LEASE"] = "240"
    victim = stack.worker(concurrency=2)
    held = [stack.runner.start_workflow("long-catches", input={"seconds": 600}) for _ in range(2)]
    for instance_id in held:
        until(lambda i=instance_id: effects(stack, i) == ["begin"])  # type: ignore[misc]
    stack.worker(concurrency=2)

    victim.kill()

    for instance_id in held:
        until(lambda i=instance_id: effects(stack, i) == ["begin", "begin"], 30)  # type: ignore[misc]
    for instance_id in held:
        stack.runner.cancel_workflow(instance_id)
