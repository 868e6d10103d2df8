"""An approval is given by whoever says yes to one that waits, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator import Workflow
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.errors import OrchestratorError
from orchestrator.testing import Lab
from tests.conftest import fresh_database
from tests.stack import Stack, until
from tests.web import web


@pytest.fixture(scope="module")
def asking(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("asks"), workflows="tests.workflows.basic")
    made.worker()
    yield made
    made.stop()


def waiting(stack: Stack) -> str:
    instance_id = str(stack.runner.start_workflow("waits-for-yes", input={}))
    until(lambda: stack.runner.get_workflow_status(instance_id)["waits_for"])
    return instance_id


def received(stack: Stack, instance_id: str) -> list[Any]:
    return [fact for fact in stack.runner.history(instance_id) if fact["kind"] == "event.received"]


@pytest.mark.proves(44)
@pytest.mark.parametrize("data", [[], ["--data", '{"approved": "false"}'], ["--data", '{"approved": true}'], ["--data", "1"]])
def test_no_signal_answers_an_approval(asking: Stack, data: list[str]) -> None:
    instance_id = waiting(asking)

    told = asking.cli("signal", instance_id, "approval.manager", *data)

    assert told.returncode == 2, told.stdout
    assert f"orchestrator approve {instance_id} manager" in told.stderr
    asking.runner.approve(instance_id, "manager", approved=False, actor="ada")
    assert "refused by ada" in asking.ended(instance_id)["error"]["message"]


@pytest.mark.proves(44)
def test_no_event_answers_an_approval(asking: Stack) -> None:
    """Neither one that anybody sends nor one that a workflow emits."""
    instance_id = waiting(asking)
    types = [str(row[0]) for row in asking.sql("select event_type from subscriptions where instance_id = %s", instance_id)]
    for number, type in enumerate(types):
        envelope = {"id": f"forged-{number}-{instance_id}", "source": "anybody", "type": type, "data": {"approved": True}}
        try:
            asking.runner.send_event(envelope)
        except OrchestratorError as error:
            assert "orchestrator approve" in str(error)  # noqa: PT017  # either is right, as long as nothing comes of it
    forger = Workflow("forges").emit(types[0], {"approved": True})
    asking.runner.register_workflow(forger.build())

    asking.run("forges", {})

    assert asking.state(instance_id) == "RUNNING"
    assert not received(asking, instance_id)
    assert asking.runner.approve(instance_id) == "manager"
    assert asking.ended(instance_id)["status"] == "COMPLETED"


@pytest.mark.proves(44)
def test_a_mistyped_approval_is_an_error_that_names_what_waits(asking: Stack) -> None:
    instance_id = waiting(asking)

    told = asking.cli("approve", instance_id, "manger")

    assert told.returncode == 3, told.stdout
    assert "approved" not in told.stdout
    assert "manager" in told.stderr
    yes = asking.cli("approve", instance_id, "manager")
    assert yes.stdout == "manager approved\n", yes.stderr
    assert asking.ended(instance_id)["status"] == "COMPLETED"
    late = asking.cli("approve", instance_id, "manager")
    assert late.returncode == 3
    assert "not waited for now" in late.stderr


@pytest.mark.proves(44)
def test_an_approval_is_answered_once(asking: Stack) -> None:
    instance_id = waiting(asking)
    asking.runner.pause_workflow(instance_id)
    asking.runner.approve(instance_id, "manager", approved=False, actor="ada")

    with pytest.raises(OrchestratorError):
        asking.runner.approve(instance_id, "manager", actor="bob")

    asking.runner.resume_workflow(instance_id)
    assert "refused by ada" in asking.ended(instance_id)["error"]["message"]
    again = asking.runner.rerun_workflow(instance_id, "decision")
    until(lambda: asking.runner.get_workflow_status(again)["waits_for"])
    asking.runner.approve(again, "manager", actor="bob")
    assert asking.ended(again)["output"]["manager"] == {"approved": True, "by": "bob"}


@pytest.mark.proves(44)
def test_over_http_only_true_approves(asking: Stack) -> None:
    instance_id = waiting(asking)
    with web(asking) as (url, _):
        path = f"{url}/workflow/instance/{instance_id}"
        signalled = httpx.post(f"{path}/signal/approval.manager", json={"data": {"approved": True}}, trust_env=False)
        assert signalled.status_code == 409 or signalled.status_code == 400, signalled.text
        for body in ({}, {"approved": "true"}, {"approved": 1}, {"approved": None}, {"approve": True}, {"approved": True, "stp": "x"}, []):
            refused = httpx.post(f"{path}/approve", json=body, trust_env=False)
            assert refused.status_code == 400, (body, refused.text)
        wrong = httpx.post(f"{path}/approve", json={"approved": True, "step": "manger"}, trust_env=False)
        assert wrong.status_code == 404
        assert "manager" in wrong.json()["message"]
        assert not received(asking, instance_id)

        yes = httpx.post(f"{path}/approve", json={"approved": True, "data": {"note": "fine"}}, trust_env=False)

        assert yes.json()["status"] == "approved", yes.text
    assert asking.ended(instance_id)["output"]["manager"]["data"] == {"note": "fine"}


@pytest.mark.proves(44, 47)
def test_a_mistyped_approval_is_refused_in_tests_of_authors() -> None:
    flow = Workflow("asks").approval("boss").set({"done": True})
    run = Lab().start(flow)

    for act in (lambda: run.approve("bos"), lambda: run.signal("approval.boss"), lambda: run.approve("boss", approved="no")):  # type: ignore[arg-type]
        with pytest.raises(OrchestratorError):
            act()
    assert run.state == "RUNNING"
    run.approve("boss").assert_completed()


@pytest.mark.proves(44)
@pytest.mark.parametrize("name", ["a.b", ".*", "a b", 'quoted"', "ü", "x" * 100])
def test_an_approval_of_any_name_takes_its_own_answer_alone(name: str) -> None:
    flow = Workflow("asks").parallel().do(lambda b: b.approval(name)).do(lambda b: b.approval("other")).join()
    run = Lab().start(flow)

    run.approve("other")

    assert run.state == "RUNNING"
    run.approve(name).assert_completed()
