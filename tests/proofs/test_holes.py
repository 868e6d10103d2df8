"""What somebody deleted from a history: whoever looks is told what lacks, and what cannot go on without it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from orchestrator import Workflow
from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.proofs.system import create_app
from tests.stack import Stack, until
from tests.workflows.basic import broken, charge

SAGA_THAT_WAITS = Workflow("saga-naps", saga=True).then(charge, "hotel").wait("1.2s").then(broken).build()
FACTS = (
    "select k.branch_id, k.seq, b.position from checkpoints k join branches b on b.id = k.branch_id"
    " where b.instance_id = %s order by k.branch_id, k.seq"
)


@pytest.fixture(scope="module")
def looked_at(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("holes"), workflows="tests.workflows.basic")
    made.worker(concurrency=4)
    yield made
    made.stop()


@contextmanager
def without(stack: Stack, branch_id: int, seq: int) -> Iterator[None]:
    """A fact less, for a while."""
    c = stack.runner.database.connection()
    row = c.execute(
        "delete from checkpoints where branch_id = %s and seq = %s returning branch_id, seq, position, kind, attempt, data::text, at",
        (branch_id, seq),
    ).fetchone()
    assert row is not None
    yield
    c.execute("insert into checkpoints (branch_id, seq, position, kind, attempt, data, at) values (%s, %s, %s, %s, %s, %s::jsonb, %s)", row)


@pytest.mark.proves(15)
@pytest.mark.parametrize(
    ("workflow", "input"),
    [
        ("sequence", {}), ("fork", {}), ("diamond", {}), ("wide", {"items": [1, 2]}), ("naps", {}), ("shaky", {}), ("saga", {}),
        ("saga-stubborn", {}), ("parent", {}), ("rounds", {}), ("compete", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_instance_can_be_looked_at_whichever_fact_lacks(looked_at: Stack, workflow: str, input: Any) -> None:
    client = create_app(looked_at.runner).test_client()
    instance_id = looked_at.run(workflow, input)["id"]
    first = client.get(f"/workflow/instance/{instance_id}")
    assert first.status_code == 200
    whole = first.json
    facts = looked_at.sql(FACTS, instance_id)
    lengths: dict[int, int] = {branch_id: seq for branch_id, seq, _ in facts}
    assert facts
    assert whole.get("missing_facts", []) == []
    for branch_id, seq, position in facts:
        with without(looked_at, branch_id, seq):
            answer = client.get(f"/workflow/instance/{instance_id}")
            assert answer.status_code == 200, (seq, position, answer.text)
            assert (answer.json["status"], answer.json["output"]) == (whole["status"], whole["output"])
            if seq < lengths[branch_id]:
                assert answer.json["missing_facts"] == [{"branch": position, "number": seq}]
            for part in range(len(facts)):
                assert looked_at.runner.show(instance_id, part).instance["id"] == instance_id
    assert client.get(f"/workflow/instance/{instance_id}").json == whole


CHANGED = ("null", "5", "{}", "[]", '"x"', '{"again": []}')


@pytest.mark.proves(15)
@pytest.mark.parametrize("workflow", ["diamond", "naps", "shaky", "saga", "rounds", "asked"])
def test_an_instance_can_be_looked_at_whatever_somebody_made_of_a_fact(looked_at: Stack, workflow: str) -> None:
    client = create_app(looked_at.runner).test_client()
    instance_id = looked_at.run(workflow, {"fail": True} if workflow == "asked" else {})["id"]
    c = looked_at.runner.database.connection()
    change = "update checkpoints set kind = %s, data = %s::jsonb where branch_id = %s and seq = %s"
    routes = [f"/workflow/instance/{instance_id}", f"/workflow/history/{instance_id}", f"/api/v1/default/executions/ex_{instance_id}"]
    routes += [f"/workflow/instance/{instance_id}/history", f"{routes[2]}/events"]
    known = [client.get(route).status_code for route in routes]
    for branch_id, seq, _ in looked_at.sql(FACTS, instance_id):
        [(kind, data)] = looked_at.sql("select kind, data::text from checkpoints where branch_id = %s and seq = %s", branch_id, seq)
        for other_kind, other in [*((kind, one) for one in CHANGED), ("bogus", data), (kind, None)]:
            c.execute(change, (other_kind, other, branch_id, seq))
            answers = [client.get(route) for route in routes]
            assert [one.status_code for one in answers] == known, (kind, other_kind, other, [one.text[:200] for one in answers])
        c.execute(change, (kind, data, branch_id, seq))


@pytest.mark.proves(15)
def test_what_would_follow_from_a_missing_fact_is_refused_and_changes_nothing(looked_at: Stack) -> None:
    client = create_app(looked_at.runner).test_client()
    failed = looked_at.run("saga-stubborn", {})["id"]
    refundable = looked_at.run("refundable", {})["id"]
    asked = looked_at.run("asked", {"fail": True})["id"]
    for instance_id, verb in ((refundable, "rollback"), (asked, "retry"), (asked, "rerun"), (failed, "rollback")):
        before = client.get(f"/workflow/instance/{instance_id}").json
        [(branch_id, seq, _), *_] = looked_at.sql(FACTS, instance_id)
        with without(looked_at, branch_id, seq):
            answer = client.post(f"/workflow/instance/{instance_id}/{verb}", json={"step": "after"} if verb == "rerun" else {})
            assert (answer.status_code, answer.json["code"]) == (409, "broken_history"), (verb, answer.text)
            assert f"fact {seq} " in answer.json["message"]
        assert client.get(f"/workflow/instance/{instance_id}").json == before


@pytest.mark.proves(15)
@pytest.mark.parametrize("workflow", ["naps", "saga-naps"])
def test_an_instance_that_lacks_a_fact_ends_and_says_so(looked_at: Stack, workflow: str) -> None:
    looked_at.runner.register_workflow(SAGA_THAT_WAITS)
    instance_id = looked_at.runner.start_workflow(workflow, input={})
    until(lambda: looked_at.sql("select 1 from branches where instance_id = %s and state = 'parked'", instance_id))
    [(branch_id, seq, _), *_] = looked_at.sql(FACTS, instance_id)
    looked_at.runner.database.connection().execute("delete from checkpoints where branch_id = %s and seq = %s", (branch_id, seq))

    status = looked_at.ended(instance_id, 30)

    assert (status["status"], status["error"]["code"]) == ("FAILED", "broken_history")
    assert status["missing_facts"] == [{"branch": "", "number": seq}]
    if workflow == "saga-naps":
        assert [one["error"]["code"] for one in status["compensation"]["failed"]] == ["broken_history"]
