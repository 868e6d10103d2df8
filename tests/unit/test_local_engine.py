"""The engine as one object: graph documents in this process, with executors registered from outside."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from orchestrator.definition.retry import RetryPolicy
from orchestrator.engine import jobs
from orchestrator.errors import IllegalMove, Invalid, NotFound, Terminal
from orchestrator.local import HistoryFilter, MemoryCheckpointStore, WorkflowEngine
from orchestrator.steps.registry import Result, StepContext


class Cluster:
    """A stand-in for clusters that hold content."""

    def __init__(self) -> None:
        self.pinned: set[tuple[str, str]] = set()
        self.broken: set[str] = set()
        self.log: list[str] = []


class Pin:
    type = "pin"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def execute(self, context: StepContext) -> Result:
        cid, zone = context.parameter("cid"), context.parameter("zone")
        if not isinstance(cid, str) or not isinstance(zone, str):
            raise Terminal("pin needs 'cid' and 'zone'")
        if zone in self.cluster.broken:
            return Result(success=False, error=f"zone {zone} is away")
        self.cluster.pinned.add((zone, cid))
        return Result({"pinned_cid": cid, "zone": zone}, checkpoint={"cid": cid, "zone": zone})

    def compensate(self, context: StepContext) -> None:
        self.cluster.log.append(context.checkpoint["zone"])
        self.cluster.pinned.discard((context.checkpoint["zone"], context.checkpoint["cid"]))


def distributed_pin(**metadata: Any) -> dict[str, Any]:
    cid = "QmExample123"
    return {
        "type": "distributed_pin",
        "steps": [
            {"id": "pin_zone1", "type": "pin", "parameters": {"zone": "msk", "cid": cid}},
            {"id": "pin_zone2", "type": "pin", "parameters": {"zone": "nn", "cid": cid}, "dependencies": ["pin_zone1"]},
        ],
        "metadata": metadata,
        "timeout": "10m",
    }


def engine(cluster: Cluster, **options: Any) -> WorkflowEngine:
    made = WorkflowEngine(retry=RetryPolicy(max_attempts=2, base_s=0.01, jitter=0), **options)
    made.register_step_executor(Pin(cluster))
    made.register_compensation_handler(Pin(cluster))
    return made


def test_basic_workflow_runs_in_order_and_says_so() -> None:
    events: list[dict[str, Any]] = []
    with WorkflowEngine(events.append, MemoryCheckpointStore()) as made:
        id = made.start_workflow(
            {
                "type": "pin_operation",
                "steps": [
                    {"id": "validate", "type": "log", "parameters": {"message": "Validating pin request"}},
                    {"id": "execute", "type": "delay", "parameters": {"delay": "200ms"}, "dependencies": ["validate"]},
                    {"id": "done", "type": "noop", "dependencies": ["execute"]},
                ],
            },
            trace_id="abc",
        )
        status = made.wait(id)

    assert (status["status"], status["progress"], status["message"]) == ("completed", 1.0, "Workflow completed successfully")
    assert [step["id"] for step in status["steps"]] == ["validate", "execute", "done"]
    assert [e["event"] for e in events][-1] == "workflow.completed"
    assert {e["trace_id"] for e in events} == {"abc"}


def test_saga_compensation_returns_the_world_to_where_it_was() -> None:
    cluster = Cluster()
    cluster.broken = {"nn"}
    with engine(cluster) as made:
        status = made.wait(made.start_workflow(distributed_pin(saga=True)))

    assert status["status"] == "failed"
    assert "failed after 2 attempts: zone nn is away" in status["message"]
    assert cluster.pinned == set()
    assert cluster.log == ["msk"]


def test_without_saga_nothing_is_compensated_and_with_both_zones_nothing_fails() -> None:
    cluster = Cluster()
    with engine(cluster) as made:
        assert made.wait(made.start_workflow(distributed_pin(saga=True)))["status"] == "completed"
        assert cluster.pinned == {("msk", "QmExample123"), ("nn", "QmExample123")}
        cluster.broken = {"nn"}
        assert made.wait(made.start_workflow(distributed_pin(saga=False)))["status"] == "failed"
    assert cluster.log == []


def test_cancelling_during_a_delay_ends_at_once_and_stays() -> None:
    with WorkflowEngine() as made:
        id = made.start_workflow({"type": "long", "steps": [{"id": "d", "type": "delay", "parameters": {"delay": 300}}]})
        made.cancel_workflow(id)
        assert made.wait(id)["status"] == "cancelled"
        with pytest.raises(IllegalMove, match="already in terminal state"):
            made.cancel_workflow(id)


def test_no_more_run_at_once_than_allowed_and_independent_steps_overlap() -> None:
    meetings: dict[str, threading.Barrier] = {}
    lock, running, most = threading.Lock(), set[str](), [0]

    class Meets:
        """Ends when the other step of its workflow is at work, too."""

        type = "meets"

        def execute(self, context: StepContext) -> None:
            with lock:
                running.add(context.instance_id)
                most[0] = max(most[0], len(running))
                meeting = meetings.setdefault(context.instance_id, threading.Barrier(2))
            meeting.wait(30)
            with lock:
                running.discard(context.instance_id)

    document = {"type": "two", "steps": [{"id": n, "type": "meets"} for n in "ab"]}
    with WorkflowEngine(max_concurrent=2) as made:
        made.register_step_executor(Meets())
        for id in [made.start_workflow(document) for _ in range(4)]:
            assert made.wait(id)["status"] == "completed"
    assert most[0] <= 2


def test_stopping_lets_active_workflows_complete_and_accepts_no_more() -> None:
    made = WorkflowEngine()
    id = made.start_workflow({"type": "short", "steps": [{"id": "d", "type": "delay", "parameters": {"delay": 0.3}}]})
    made.stop()
    assert made.get_workflow_status(id)["status"] == "completed"
    with pytest.raises(IllegalMove):
        made.start_workflow(distributed_pin())


def test_validation_names_every_fault() -> None:
    with WorkflowEngine() as made:
        for document, said in (
            ({"type": "", "steps": []}, "workflow type is required"),
            ({"type": "x", "steps": []}, "at least one step"),
            ({"type": "x", "steps": [{"id": "a", "type": "warp"}]}, "no executor found for step type: warp"),
        ):
            with pytest.raises(Invalid, match=said):
                made.start_workflow(document)


def test_the_checkpoint_store_saves_loads_lists_and_forgets() -> None:
    store = MemoryCheckpointStore()
    with engine(Cluster(), checkpoint_store=store) as made:
        ids = [made.start_workflow(distributed_pin()) for _ in range(3)]
        for id in ids:
            made.wait(id)
    assert store.count() == 3
    assert [e.id for e in store.list(HistoryFilter(status="completed", type="distributed_pin", limit=2, offset=1))] == ids[1:]
    assert store.list(HistoryFilter(status="failed")) == []
    store.delete(ids[0])
    store.delete(ids[0])
    with pytest.raises(NotFound):
        store.load(ids[0])
    assert store.load(ids[1]).output["pinned_cid"] == "QmExample123"
    store.clear()
    assert store.count() == 0


def test_threads_of_steps_go_when_nobody_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEPT_FOR_S", 0.2)
    document = {"type": "several", "steps": [{"id": f"s{n}", "type": "noop"} for n in range(8)]}
    with WorkflowEngine() as made:
        assert made.wait(made.start_workflow(document))["status"] == "completed"

    deadline = time.monotonic() + 20
    while [thread for thread in threading.enumerate() if thread.name == "step"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)  # between two looks
