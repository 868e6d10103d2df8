"""Code that is not there, or there twice, is nobody's failure but its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs.project import Project
from tests.stack import Stack, until

ORDER = """
    from orchestrator import Workflow, step

    @step
    def reserve(id: int = 1): return {"reserved": True}

    @reserve.undo
    def release(): print("RELEASED", flush=True)

    @step
    def ship(id: int = 1): return {"shipped": True}

    order = Workflow("order", saga=True).start_with(reserve).approval("boss").then(ship)
    {more}
"""
GONE = "# an older checkout: nothing of it is here yet\n"


@pytest.fixture
def project(stack: Stack, tmp_path: Path) -> Project:
    return Project(stack, tmp_path / "project")


def waits(project: Project, instance: str) -> None:
    until(lambda: '"boss"' in project.stack.cli("show", instance, "--json").stdout, 20, "the approval is waited for")


def approve(project: Project, instance: str) -> None:
    done = project.stack.cli("approve", instance, "boss")
    assert done.returncode == 0, done.stderr


@pytest.mark.proves(34)
def test_a_step_that_a_worker_lacks_waits_for_one_that_has_it(project: Project) -> None:
    project.write("orders.py", ORDER.replace("{more}", ""))
    project.write("other.py", "from orchestrator import Workflow\nother = Workflow('other').set({'a': 1})\n")
    first = project.stack.worker(concurrency=1)
    instance = project.start("order")
    waits(project, instance)
    first.kill()

    approve(project, instance)
    project.write("orders.py", GONE)
    older = project.stack.worker(concurrency=1)
    other = project.start("other")
    until(lambda: project.row(other)[0] == "COMPLETED", 20, "the worker with older code works")
    until(lambda: "ship" in older.log.read_text(), 20, "the worker has seen the step")
    assert project.row(instance)[0] == "RUNNING"

    older.kill()
    project.write("orders.py", ORDER.replace("{more}", ""))
    project.stack.worker(concurrency=1)
    until(lambda: project.row(instance)[0] == "COMPLETED", 30, lambda: str(project.row(instance)))


@pytest.mark.proves(34)
def test_a_compensation_that_a_worker_lacks_waits_for_one_that_has_it(project: Project) -> None:
    project.write("orders.py", ORDER.replace("{more}", ""))
    first = project.stack.worker(concurrency=1)
    instance = project.start("order")
    waits(project, instance)
    first.kill()

    project.write("orders.py", GONE)
    older = project.stack.worker(concurrency=1)
    assert project.stack.cli("cancel", instance, "--compensate").returncode == 0
    until(lambda: "reserve" in older.log.read_text() or project.row(instance)[0] == "CANCELLED", 20, "the worker has seen the way back")
    assert project.row(instance)[0] == "RUNNING", "it waits for its compensation"

    older.kill()
    project.write("orders.py", ORDER.replace("{more}", ""))
    fresh = project.stack.worker(concurrency=1)
    until(lambda: project.row(instance)[0] == "CANCELLED", 30, lambda: str(project.row(instance)))
    assert "RELEASED" in fresh.log.read_text()


@pytest.mark.proves(34)
def test_a_module_that_raises_what_a_terminal_raises_takes_no_other_with_it(project: Project) -> None:
    project.write("good.py", "from orchestrator import Workflow\ngood = Workflow('good').set({'a': 1})\n")
    project.write("pressed.py", "raise KeyboardInterrupt\n")
    worker = project.stack.worker(concurrency=1)
    instance = project.start("good")
    until(lambda: project.row(instance)[0] == "COMPLETED", 20, "the good one runs")
    assert worker.process.poll() is None
    assert "pressed.py:1" in worker.log.read_text()
    assert "pressed.py:1" in project.stack.cli("doctor").stdout


@pytest.mark.proves(3)
def test_a_module_that_does_not_import_takes_no_other_with_it(project: Project) -> None:
    project.write("a.py", "from orchestrator import Workflow\na = Workflow('a').set({'from': 'a'})\n")
    bad = project.write("b.py", "from orchestrator import Workflow\n\nimport nothing_like_this\n")
    project.write("c.py", "from orchestrator import Workflow\nc = Workflow('c').set({'from': 'c'})\n")
    worker = project.stack.worker(concurrency=1)

    assert f"{bad}:3" in worker.log.read_text()
    for name in ("a", "c"):
        instance = project.start(name)
        until(lambda id=instance: project.row(id)[0] == "COMPLETED", 20, worker.log.read_text())  # type: ignore[misc]


@pytest.mark.proves(35)
def test_two_steps_of_one_name_are_refused_with_both_places(project: Project) -> None:
    text = "from orchestrator import Workflow, step\n\n@step\ndef ship(): return {{'by': '{by}'}}\n\n{by} = Workflow('{by}').start_with(ship)\n"
    first, second = (project.write(f"{name}.py", text.format(by=name)) for name in ("first", "second"))
    worker = project.stack.worker(concurrency=1)
    instance = project.start("first")
    until(lambda: project.row(instance)[0] == "COMPLETED", 20, worker.log.read_text())

    assert project.row(instance)[1]["by"] == "first", "the step of its own module ran"
    assert f"{first}:3" in worker.log.read_text()
    assert f"{second}:3" in worker.log.read_text()
    assert project.stack.cli("start", "second").returncode != 0


@pytest.mark.proves(37)
def test_a_used_workflow_that_was_edited_refuses_itself_alone(project: Project) -> None:
    project.write("edited.py", "from orchestrator import Workflow\nedited = Workflow('edited').set({'text': 1})\n")
    project.write("other.py", "from orchestrator import Workflow\nother = Workflow('other').set({'a': 1})\n")
    project.stack.worker(concurrency=1)
    before = project.start("edited")
    until(lambda: project.row(before)[0] == "COMPLETED", 20)

    project.write("edited.py", "from orchestrator import Workflow\nedited = Workflow('edited').set({'text': 2})\n")
    with project.stack.bridge():
        other = project.start("other")
        until(lambda: project.row(other)[0] == "COMPLETED", 20)
    refused = project.stack.cli("workflows")
    assert refused.returncode == 0, refused.stderr
    assert "edited@1" in refused.stderr
    assert "raise the version" in refused.stderr
    doctor = project.stack.cli("doctor")
    assert "edited@1" in doctor.stdout
    assert "edited.py:2" in doctor.stdout
