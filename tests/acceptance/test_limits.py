"""What an instance uses is measured, and one above its limits is stopped with the reason: on real workers."""

from __future__ import annotations

import pytest

from orchestrator.errors import IllegalMove
from tests.stack import Stack, until


@pytest.fixture
def beating(stack: Stack) -> Stack:
    """A worker whose heartbeat measures often."""
    stack.environment.update({"HEARTBEAT": "0.3", "LEASE": "5"})
    return stack


def test_resource_usage_is_measured_and_not_constant(beating: Stack) -> None:
    beating.worker()
    idle = beating.runner.start_workflow("uses", input={"seconds": 4})
    busy = beating.runner.start_workflow("uses", input={"seconds": 4, "megabytes": 150, "spin": True})

    used = until(lambda: (u := beating.runner.check_resource_usage(busy))["cpu_percent"] > 20 and u, 10)
    lazy = until(lambda: (u := beating.runner.check_resource_usage(idle))["memory_mb"] > 0 and u, 10)

    assert used["memory_mb"] > lazy["memory_mb"] + 100
    assert used["disk_bytes"] > 0
    for instance_id in (idle, busy):
        assert beating.ended(instance_id)["status"] == "COMPLETED"
    assert beating.runner.check_resource_usage(busy)["memory_mb"] == 0


def test_an_instance_above_its_memory_is_failed_with_the_reason_and_compensated(beating: Stack) -> None:
    beating.worker()

    status = beating.run("hungry", {"seconds": 300, "megabytes": 400})

    assert status["status"] == "FAILED"
    assert status["error"]["code"] == "resource_limit"
    assert "memory limit exceeded" in status["error"]["message"]
    assert status["compensation"]["result"] == "compensated"
    assert [letter["reason"] for letter in beating.runner.dead_letters()] == ["resource_limit"]


def test_an_instance_that_lives_too_long_is_cancelled_with_the_reason(stack: Stack) -> None:
    stack.worker(MAX_DURATION="1s")

    status = stack.run("waits-long", {}, timeout_s=15)

    assert status["status"] == "CANCELLED"
    assert status["error"]["message"] == "Maximum duration exceeded"


def test_a_status_is_set_by_the_verb_that_leads_there_and_no_other_way(stack: Stack) -> None:
    runner = stack.runner
    instance_id = runner.start_workflow("waits-long", input={})

    runner.update_instance_status(instance_id, "paused")
    assert stack.state(instance_id) == "PAUSED"
    with pytest.raises(IllegalMove, match="PAUSED"):
        runner.update_instance_status(instance_id, "COMPLETED")
    runner.update_instance_status(instance_id, "CANCELLED")
    with pytest.raises(IllegalMove):
        runner.update_instance_status(instance_id, "RUNNING")
    runner.update_instance_status(instance_id, "CLEANING_UP")

    assert stack.state(instance_id) == "CLEANING_UP"
    cleanup = runner.get_workflow_stats()["last_cleanup"]
    assert cleanup["cleaned"] == 1
