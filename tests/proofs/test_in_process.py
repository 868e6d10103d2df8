"""The engine in one process does with a step what workers do: side by side, within its time, ended when it shall end."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Limits, StepContext, Terminal, Workflow
from orchestrator.definition.documents import definition_from
from orchestrator.definition.expressions import Jq, Template
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import Definition, Do, Fork, Step
from orchestrator.embedded import Embedded
from orchestrator.errors import Invalid, Retryable
from orchestrator.local import WorkflowEngine
from orchestrator.testing import Lab

ONCE = RetryPolicy(max_attempts=1)


class Sleeper:
    """Sleeps in one call, or in Python, step by step; and notes what became of it."""

    def __init__(self, type: str, slice_s: float | None = None) -> None:
        self.type = type
        self.slice_s = slice_s
        self.log: list[tuple[str, str]] = []

    def execute(self, context: StepContext) -> dict[str, Any]:
        self.log.append((context.name, "begin"))
        until = time.monotonic() + context.parameter("seconds")
        try:
            while time.monotonic() < until:
                time.sleep(self.slice_s or context.parameter("seconds"))
        except BaseException:
            self.log.append((context.name, "interrupted"))
            raise
        self.log.append((context.name, "end"))
        return {context.name: True}

    def compensate(self, context: StepContext) -> None:
        self.log.append((context.name, "undone"))


def document(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "sleepers", "steps": list(steps), **more}


def step(id: str, seconds: float, *after: str, type: str = "sleeps", **more: Any) -> dict[str, Any]:
    return {"id": id, "type": type, "parameters": {"seconds": seconds}, "dependencies": list(after), **more}


def engine(*sleepers: Sleeper, **options: Any) -> WorkflowEngine:
    made = WorkflowEngine(retry=ONCE, **options)
    for sleeper in sleepers:
        made.register_step_executor(sleeper)
        made.register_compensation_handler(sleeper)
    return made


def soon(condition: Any, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # between two looks


@pytest.mark.proves(20)
def test_a_cancel_ends_the_step_that_runs_and_nothing_follows() -> None:
    spins, sleeps = Sleeper("spins", 0.01), Sleeper("sleeps")
    made = engine(spins, sleeps)
    for sleeper in (spins, sleeps):
        id = made.start_workflow(document(step("long", 20, type=sleeper.type), step("next", 0, "long", type=sleeper.type)))
        soon(lambda s=sleeper: s.log)
        began = time.monotonic()

        made.cancel_workflow(id)

        assert made.get_workflow_status(id)["status"] == "cancelled"
        assert made.wait(id, 15)["status"] == "cancelled"
        assert time.monotonic() - began < 15
        assert made.list_active_workflows() == []
    soon(lambda: ("long", "interrupted") in spins.log)
    time.sleep(0.5)  # what would follow would have
    assert [name for name, _ in (*spins.log, *sleeps.log) if name == "next"] == []
    assert made.get_workflow_status(id)["status"] == "cancelled"


@pytest.mark.proves(20)
def test_a_cancel_reaches_what_waits_for_its_turn() -> None:
    sleeps = Sleeper("sleeps")
    made = engine(sleeps, max_concurrent=1)
    first, second = (made.start_workflow(document(step("s", 4))) for _ in range(2))
    soon(lambda: sleeps.log)

    made.cancel_workflow(second)

    assert made.wait(second, 3)["status"] == "cancelled"
    assert made.list_active_workflows() == [first]
    assert made.wait(first)["status"] == "completed"
    assert sleeps.log.count(("s", "begin")) == 1


@pytest.mark.proves(20)
def test_steps_that_do_not_depend_on_one_another_run_side_by_side() -> None:
    together = threading.Barrier(3)

    class Meets:
        type = "meets"

        def execute(self, context: StepContext) -> None:
            together.wait(15)

    made = engine(Sleeper("sleeps"))
    made.register_step_executor(Meets())

    status = made.wait(made.start_workflow(document(*(step(one, 0, type="meets") for one in "abc"), step("d", 0, "a", "b", "c"))))

    assert status["status"] == "completed", status


@pytest.mark.proves(20, 31)
def test_a_step_is_interrupted_at_its_timeout_and_tried_again() -> None:
    spins, sleeps = Sleeper("spins", 0.01), Sleeper("sleeps")
    made = engine(spins, sleeps)
    for sleeper in (spins, sleeps):
        began = time.monotonic()
        status = made.wait(made.start_workflow(document(step("s", 20, type=sleeper.type, timeout="500ms", retries=1))))

        assert status["status"] == "failed"
        assert "timeout" in status["error"]
        assert time.monotonic() - began < 18
        assert sleeper.log.count(("s", "begin")) == 2


@pytest.mark.proves(20, 31)
def test_a_workflow_ends_at_its_timeout_whatever_its_branches_do_and_goes_back() -> None:
    sleeps = Sleeper("sleeps")
    made = engine(sleeps)
    began = time.monotonic()

    status = made.wait(
        made.start_workflow(document(step("a", 0), step("b", 20, "a"), step("c", 20, "a"), timeout="1s", metadata={"saga": True}))
    )

    assert (status["status"], "timeout" in status["error"]) == ("failed", True)
    assert time.monotonic() - began < 18
    assert status["compensation"]["compensated"] == ["/do/0/sleepers/graph/a"] or ("a", "undone") in sleeps.log


@pytest.mark.proves(20, 31)
def test_a_test_interrupts_a_call_that_blocks_too() -> None:
    lab = Lab(stubs={"stands-still": lambda context: time.sleep(20)})
    began = time.monotonic()

    run = lab.run(Workflow("late").then("stands-still", "s", timeout=0.3, retries=0))

    run.assert_failed("timeout")
    assert time.monotonic() - began < 18
    began = time.monotonic()
    run = lab.run(Workflow("later", timeout=0.3).then("stands-still", "s", retries=0))
    run.assert_failed("timeout")
    assert time.monotonic() - began < 18


@pytest.mark.proves(20)
def test_a_breaker_opens_in_one_process_too() -> None:
    asked: list[int] = []

    def fails(context: StepContext) -> None:
        asked.append(1)
        raise Retryable("away", after=0)

    lab = Lab(stubs={"calls": fails})
    calls = Workflow("calls").then("calls", "call", breaker="target", retries=9)

    run = lab.run(calls)

    assert run.error is not None
    assert run.error["code"] == "circuit_open"
    assert len(asked) < 10, "while it is open, its target is left alone"


def test_a_step_beside_one_that_fails_ends_and_is_undone() -> None:
    """As workers do: its effect is recorded, so that a saga can undo it."""
    sleeps = Sleeper("sleeps", 0.01)
    made = engine(sleeps)

    class Fails:
        type = "fails"

        def execute(self, context: StepContext) -> None:
            time.sleep(0.1)
            raise Terminal("no")

    made.register_step_executor(Fails())
    long = Step(name="long", type="sleeps", parameters=Template({"seconds": 0.4}))
    fork = Fork(name="f", branches=(long, Step(name="fails", type="fails")))

    status = made.wait(made.start_workflow(Definition(name="beside", version="1", saga=True, do=Do(tasks=(fork,)))))

    assert status["status"] == "failed"
    assert sleeps.log == [("long", "begin"), ("long", "end"), ("long", "undone")]


@pytest.mark.proves(20)
def test_a_document_run_from_the_command_line_runs_its_steps_side_by_side_and_in_time(tmp_path: Path) -> None:
    several = tmp_path / "several.json"
    several.write_text(json.dumps({"type": "several", "steps": [step(n, 4, type="dozes") for n in "abcd"]}))
    late = tmp_path / "late.json"
    late.write_text(json.dumps({"type": "late", "timeout": "1s", "steps": [step("a", 30, type="dozes")]}))

    done, took = run(several)
    assert done["state"] == "COMPLETED"
    assert took < 13 + _start_s(), "not one after another"
    done, took = run(late)
    assert (done["state"], done["error"]["code"]) == ("FAILED", "timeout")
    assert took < 20 + _start_s()


def run(path: Path) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    told = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "run", str(path), "--json"],
        env={**os.environ, "ORCHESTRATOR_WORKFLOWS": "tests.proofs.lives"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return json.loads(told.stdout), time.monotonic() - began


_started: list[float] = []


def _start_s() -> float:
    """How long this machine takes to start the command at all."""
    if not _started:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "orchestrator.cli", "--help"], capture_output=True, check=True)
        _started.append(time.monotonic() - began)
    return _started[0]


@pytest.mark.proves(20)
def test_the_events_of_an_engine_in_process_are_whole() -> None:
    told: list[dict[str, Any]] = []
    steps = [step("first", 0), {"id": "breaks", "type": "fail", "dependencies": ["first"]}, step("never", 0, "breaks")]
    with engine(Sleeper("sleeps"), event_bus=told.append) as made:
        id = made.start_workflow({"type": "events", "steps": steps}, trace_id="abc")
        made.wait(id, 10)

    for event in told:
        assert (event["source"], event["subject"], event["trace_id"], event["version"]) == ("orchestrator", f"workflow.{id}", "abc", "1.0")
        assert event["data"]["workflow_id"] == id
        assert event["data"]["status"]
        assert event["data"]["message"]
        assert 0 <= event["data"]["progress"] <= 1
    assert len({event["id"] for event in told}) == len(told)
    times = [dt.datetime.fromisoformat(event["time"]) for event in told]
    assert times == sorted(times)
    assert all(time.tzinfo is not None for time in times)
    assert [(event["type"], event["data"].get("step_id"), "completed_at" in event["data"]) for event in told] == [
        ("exec.progress", None, False),
        ("exec.progress", "first", True),
        ("exec.failed", "breaks", True),
        ("exec.progress", "never", False),
        ("exec.failed", None, True),
    ]


@pytest.mark.proves(20)
def test_no_more_run_at_once_in_one_process_than_a_workflow_allows() -> None:
    lab = Lab()
    narrow = Workflow("narrow", limits=Limits(workflow=2, key=Jq(".customer"), per_key=1)).wait(60)

    runs = [lab.start(narrow, {"customer": n % 2}) for n in range(4)]

    assert [run.state for run in runs] == ["RUNNING", "RUNNING", "PENDING", "PENDING"]
    runs[1].cancel()
    assert [run.state for run in runs] == ["RUNNING", "CANCELLED", "PENDING", "RUNNING"]
    runs[3].advance(61)
    assert [run.state for run in runs] == ["COMPLETED", "CANCELLED", "RUNNING", "COMPLETED"]


def test_an_instance_in_process_stops_the_children_that_it_awaits() -> None:
    parent = Workflow("parent-here", timeout=0.3).run("child-here").build()
    child = Workflow("child-here").wait(60).build()
    made = Embedded()
    made.register(child)
    instance = made.start(parent)

    made.finish(instance, 5)

    assert instance.state == "FAILED"
    assert [str(one.state) for one in made.instances.values() if one is not instance] == ["CANCELLED"]


# ── what begins after another ───────────────────────────────────────────────────────────────────────────────────────


def naps(type: str, seconds: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"type": type, "steps": [{"id": "d", "type": "delay", "parameters": {"delay": seconds}}], **more}


@pytest.mark.proves(20)
def test_a_workflow_begins_after_the_one_that_it_depends_on() -> None:
    events: list[dict[str, Any]] = []
    with WorkflowEngine(events.append) as made:
        before = made.start_workflow(naps("before", 0.4))
        after = made.start_workflow(naps("after", dependencies=["before", {"instance": before, "condition": "any"}]))
        assert made.get_workflow_status(after)["status"] == "pending"
        assert made.wait(after)["status"] == "completed"
    told = [(event["data"]["workflow"], event["event"]) for event in events]
    assert told.index(("before", "workflow.completed")) < told.index(("after", "workflow.started"))


@pytest.mark.proves(20)
def test_what_a_workflow_depends_on_in_vain_fails_it() -> None:
    with WorkflowEngine() as made:
        done = made.start_workflow(naps("done"))
        made.wait(done)
        for waits_for in ("never", {"workflow": "done", "condition": "failed"}):
            impatient = replace(definition_from(naps("after", dependencies=[waits_for])), dependency_timeout_s=0.2)
            status = made.wait(made.start_workflow(impatient))
            assert status["status"] == "failed"
            assert "dependency timeout: waited for" in status["error"]
        waiting = made.start_workflow(naps("after", dependencies=["never"]))
        made.cancel_workflow(waiting)
        assert made.wait(waiting)["status"] == "cancelled"


@pytest.mark.proves(20)
def test_a_dependency_that_can_never_be_met_is_refused() -> None:
    with WorkflowEngine() as made:
        with pytest.raises(Invalid, match="would wait for itself"):
            made.start_workflow(naps("narcissus", dependencies=["narcissus"]))
        with pytest.raises(Invalid, match="There is no execution"):
            made.start_workflow(naps("x", dependencies=[{"instance": "0197a3b0-0000-7000-8000-000000000000"}]))
