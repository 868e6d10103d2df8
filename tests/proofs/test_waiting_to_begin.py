"""What waits to begin says for what, begins as soon as it may, and is refused where it never could."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.definition.expressions import Jq
from orchestrator.definition.tree import Definition, Do, Limits, Set, Wait
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.errors import Invalid
from tests.conftest import fresh_database
from tests.stack import Stack, until


@pytest.fixture(scope="module")
def patient(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("patient"), workflows="tests.proofs.nothing")
    # What is only found by looking is found late.
    made.environment["QUEUE_GRACE"] = "240"
    made.worker(concurrency=2)
    yield made
    made.stop()


def register(stack: Stack, name: str, seconds: float = 0.0, **options: Any) -> None:
    task = Wait(name="w", duration=seconds) if seconds else Set(name="s")
    stack.runner.register_workflow(Definition(name=name, version="1", do=Do(tasks=(task,)), **options))


def start(stack: Stack, name: str, input: Any = None) -> str:
    return stack.runner.start_workflow(name, input=input or {})


@pytest.mark.proves(21)
def test_a_workflow_that_waits_for_itself_is_refused(patient: Stack) -> None:
    with pytest.raises(Invalid, match="cycle"):
        register(patient, "narcissus", dependencies=("narcissus",))
    with pytest.raises(Invalid, match="cycle"):
        register(patient, "narcissus", dependencies=({"workflow": "default.narcissus", "condition": "any"},))

    assert patient.sql("select count(*) from definitions where name = 'narcissus'") == [(0,)]


@pytest.mark.proves(21)
def test_workflows_that_wait_for_one_another_are_refused_by_the_last_of_them(patient: Stack) -> None:
    register(patient, "hen", dependencies=("egg",))
    register(patient, "egg", dependencies=("shell",))

    with pytest.raises(Invalid, match="shell → hen → egg → shell"):
        register(patient, "shell", dependencies=("hen",))

    register(patient, "shell", dependencies=("farmer",))


@pytest.mark.proves(21)
def test_a_configuration_that_closes_a_cycle_is_refused(patient: Stack) -> None:
    register(patient, "second", dependencies=("first",))
    register(patient, "first")

    with pytest.raises(Invalid, match="cycle"):
        patient.runner.configs.save({"id": "first", "dependencies": ["second"]})
    patient.runner.configs.save({"id": "second", "dependencies": ["zeroth"]})
    with pytest.raises(Invalid, match="cycle"):
        register(patient, "zeroth", dependencies=("second",))


@pytest.mark.proves(21)
def test_what_waits_for_a_slot_says_whose_and_how_many_are_used(patient: Stack) -> None:
    register(patient, "narrow", 60.0, limits=Limits(workflow=2, key=Jq(".customer"), per_key=1))
    running = [start(patient, "narrow", {"customer": n}) for n in (1, 2)]
    for instance_id in running:
        until(lambda i=instance_id: patient.state(i) == "RUNNING", 5)  # type: ignore[misc]

    waiting = start(patient, "narrow", {"customer": 1})

    status = patient.runner.get_workflow_status(waiting)
    assert status["status"] == "PENDING"
    for said in (status["message"], "; ".join(status["waits_for"])):
        assert "a slot of workflow narrow (2 of 2 used)" in said
        assert "for the key '1' (1 of 1 used)" in said
    for instance_id in (waiting, *running):
        patient.runner.cancel_workflow(instance_id)


@pytest.mark.proves(21)
def test_what_was_paused_before_it_began_begins_when_it_is_resumed(patient: Stack) -> None:
    register(patient, "one-at-a-time", 60.0, limits=Limits(workflow=1))
    register(patient, "awaited")
    register(patient, "awaits", dependencies=("awaited",))
    first, second, third = start(patient, "one-at-a-time"), start(patient, "one-at-a-time"), start(patient, "awaits")
    for instance_id in (second, third):
        patient.runner.pause_workflow(instance_id)
    patient.runner.cancel_workflow(first)
    patient.ended(start(patient, "awaited"))

    for instance_id in (second, third):
        patient.runner.resume_workflow(instance_id)

    until(lambda: patient.state(second) == "RUNNING", 20)
    patient.ended(third)
    patient.runner.cancel_workflow(second)


@pytest.mark.proves(16)
def test_a_dependency_on_a_name_with_a_dot_is_met_by_what_was_registered_later(patient: Stack) -> None:
    register(patient, "afterdot", dependencies=("bill.day",))
    waiting = start(patient, "afterdot")
    assert "bill.day to be completed" in str(patient.runner.get_workflow_status(waiting)["waits_for"])

    register(patient, "bill.day")
    patient.run("bill.day", input={})

    assert patient.ended(waiting, 20)["status"] == "COMPLETED"
