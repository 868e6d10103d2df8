"""Payloads at rest: sealed in every table, open to whoever has the keys, through a change of keys; and secrets kept the same way."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from orchestrator.api import create_app
from orchestrator.config import secrets
from orchestrator.definition.documents import read_document
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Duplicate, OrchestratorError
from orchestrator.store import sealing
from orchestrator.store.connection import dumps
from orchestrator.store.reseal import reseal
from tests.stack import Stack, until

PRIVATE = "grace-hopper-4711"
DOCUMENT = """
document: {dsl: '1.0.3', namespace: default, name: private, version: '1.0.0'}
do:
  - greet: {set: {said: '${ "Hello " + .name }'}}
  - all: {fork: {branches: [{a: {set: {a: '${ .said }'}}}, {b: {set: {b: '${ .said }'}}}]}}
  - rest: {wait: {milliseconds: 300}}
  - last: {set: {done: '${ . }'}}
"""


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    yield
    sealing.use(())
    secrets.kept = None


def with_keys(stack: Stack, *keys: str) -> WorkflowRunner:
    held = stack.runner.runtime
    stack.environment["ENCRYPTION_KEYS"] = ",".join(keys)
    return WorkflowRunner(Runtime(dataclasses.replace(held.settings, encryption_keys=keys), held.database, held.publisher))


def in_the_clear(stack: Stack, text: str) -> dict[str, int]:
    """Rows that hold a text, by table and column; asked past everything that opens what is sealed."""
    found: dict[str, int] = {}
    with psycopg.connect(stack.database_url) as c:
        columns = c.execute(
            "select table_name, column_name from information_schema.columns where table_schema = 'orchestrator'"
            " and table_name <> 'ledger' and data_type in ('jsonb', 'text', 'ARRAY') and table_name !~ '_[0-9]+$'"
        ).fetchall()
        for table, column in columns:
            row = c.execute(f'select count(*) from {table} where "{column}"::text like %s', (f"%{text}%",)).fetchone()
            if row and row[0]:
                found[f"{table}.{column}"] = row[0]
    return found


def test_nothing_private_is_readable_in_the_database_and_everything_works(stack: Stack) -> None:
    runner = with_keys(stack, sealing.new_key())
    runner.register_workflow(read_document(DOCUMENT))
    stack.worker()
    instance_id = runner.start_workflow("private", input={"name": PRIVATE}, idempotency_key="k")
    waiting = runner.start_workflow("waits-long", input={"name": PRIVATE})
    runner.send_events([{"id": "1", "source": "s", "type": "t", "data": {"name": PRIVATE}}])
    until(lambda: stack.state(instance_id) == "COMPLETED", 30)
    runner.pause_workflow(waiting)
    until(lambda: not stack.sql("select 1 from outbox"), 10)  # what is told is told in the clear, and gone
    assert in_the_clear(stack, PRIVATE) == {}
    assert stack.sql("select 1 from checkpoints limit 1")
    client = create_app(runner).test_client()
    shown = client.get(f"/workflow/instance/{instance_id}").get_json()
    assert shown["input"] == {"name": PRIVATE}
    assert PRIVATE in str(shown["output"])
    assert PRIVATE in client.get(f"/workflow/instance/{instance_id}/history").text
    assert client.get("/workflow/events").get_json()["events"][0]["envelope"]["data"] == {"name": PRIVATE}
    # A key for once still knows its request.
    assert runner.start_workflow("private", input={"name": PRIVATE}, idempotency_key="k") == instance_id
    with pytest.raises(Duplicate):
        runner.start_workflow("private", input={"name": "other"}, idempotency_key="k")


def test_keys_change_while_instances_run_and_old_ones_are_needed_no_more(stack: Stack) -> None:
    clear = with_keys(stack)
    before = clear.start_workflow("numbered", input={"n": 4711001})
    stack.worker()
    stack.ended(before)
    assert in_the_clear(stack, "4711001") != {}
    stack.workers[-1].terminate()
    first, second = sealing.new_key(), sealing.new_key()
    runner = with_keys(stack, first)
    waiting = runner.start_workflow("waits-long", input={"name": PRIVATE})
    worker = stack.worker()
    until(lambda: stack.sql("select 1 from timers"), 20)
    worker.terminate()
    runner = with_keys(stack, second, first)
    changed = dict(reseal(stack.runner.database.connection()))
    assert changed["instances.input"] == 2
    assert in_the_clear(stack, "4711001") == {}
    assert sum(dict(reseal(stack.runner.database.connection())).values()) == 0
    runner = with_keys(stack, second)
    assert runner.get_workflow_status(waiting)["input"] == {"name": PRIVATE}
    assert runner.get_workflow_status(before)["input"] == {"n": 4711001}
    stack.worker()
    runner.skip_wait(waiting)
    assert stack.ended(waiting)["status"] == "COMPLETED"


def test_without_the_key_nothing_is_mistaken_for_a_payload(stack: Stack) -> None:
    runner = with_keys(stack, sealing.new_key())
    instance_id = runner.start_workflow("numbered", input={"n": 1})
    for keys in ((), (sealing.new_key(),)):
        blind = with_keys(stack, *keys)
        shown = create_app(blind).test_client().get(f"/workflow/instance/{instance_id}").get_json()
        assert list(shown["input"]) == ["$unreadable"]
        with pytest.raises(OrchestratorError, match="sealed") as caught:
            dumps(blind.get_workflow_status(instance_id)["input"])
        assert caught.value.code == "sealed_away"
    with pytest.raises(OrchestratorError, match="32 bytes"):
        sealing.use(["short"])


def test_what_ran_can_be_looked_at_without_the_key(stack: Stack) -> None:
    """Its facts are there, and what they hold is not: each task says so, and what would follow from it is not guessed."""
    key = sealing.new_key()
    runner = with_keys(stack, key)
    stack.environment["ENCRYPTION_KEYS"] = key
    stack.worker()
    ids = [runner.start_workflow(name, input={"items": [1]}) for name in ("fork", "wide", "shaky", "saga", "naps", "rounds")]
    failed = runner.start_workflow("asked", input={"fail": True})
    for instance_id in [*ids, failed]:
        stack.ended(instance_id)
    blind = with_keys(stack)
    client = create_app(blind).test_client()
    for instance_id in ids:
        for path in ("", "/history"):
            answer = client.get(f"/workflow/instance/{instance_id}{path}")
            assert answer.status_code == 200, answer.text
            assert "$unreadable" in answer.text
        for part in range(blind.show(instance_id).facts):
            assert blind.show(instance_id, part).instance["id"] == instance_id
        assert stack.cli("show", instance_id, ENCRYPTION_KEYS="").returncode == 0
    refused = client.post(f"/workflow/instance/{failed}/retry", json={})
    assert (refused.status_code, refused.get_json()["code"]) == (503, "sealed_away")
    assert stack.state(failed) == "FAILED"


def test_an_instance_waits_for_the_key_of_its_payload(stack: Stack) -> None:
    """It is lost for nobody, holds up nobody, and goes on when a worker comes that has the key."""
    key = sealing.new_key()
    waiting = with_keys(stack, key).start_workflow("numbered", input={"n": 1})
    stack.environment["ENCRYPTION_KEYS"] = ""
    blind = stack.worker()
    other = with_keys(stack).start_workflow("numbered", input={"n": 2})
    assert stack.ended(other)["status"] == "COMPLETED"
    until(
        lambda: stack.sql("select lacks from branches where instance_id = %s", waiting) == [("key:ENCRYPTION_KEYS",)],
        10,
        lambda: stack.logs()[-5000:] + str(stack.sql("select state, lacks, crashes from branches")),
    )
    assert "ENCRYPTION_KEYS" in stack.cli("doctor").stdout
    blind.terminate()

    stack.environment["ENCRYPTION_KEYS"] = key
    stack.worker()

    with_keys(stack, key)
    assert stack.ended(waiting, 60)["status"] == "COMPLETED"


@pytest.mark.parametrize("keys", [0, 1])
def test_a_ciphertext_that_somebody_gives_is_only_data(stack: Stack, keys: int) -> None:
    """Wherever a caller may put it, it comes back as it was given, opened for nobody and in nobody's way."""
    key = sealing.new_key()
    stolen = json.loads(with_keys(stack, key) and sealing.sealed(json.dumps({"of": "another tenant"})))
    runner = with_keys(stack, *[key] * keys)
    runner.register_workflow(read_document("{type: keeps, version: '1', steps: [{id: a, type: noop}]}"))
    given = {"a": stolen, "b": [stolen], "$$sealed": {"$sealed": "x"}}
    ids = [
        runner.start_workflow("keeps", input=stolen),
        runner.start_workflow("keeps", input=given, labels=stolen, metadata=stolen),
        runner.start_workflow("keeps", input=given, metadata=given),
    ]
    client = create_app(runner).test_client()
    shown = [client.get(f"/workflow/instance/{id}").get_json() for id in ids]
    assert [one["input"] for one in shown] == [stolen, given, given]
    assert (shown[1]["labels"], shown[1]["metadata"], shown[2]["metadata"]) == (stolen, stolen, given)
    assert client.get("/workflow/instances").status_code == 200
    runner.send_events([{"id": "1", "source": "s", "type": "t", "data": stolen}, {"id": "2", "source": "s", "type": "t", "data": given}])
    assert [one["envelope"]["data"] for one in client.get("/workflow/events").get_json()["events"]] == [given, stolen]
    stack.environment["ENCRYPTION_KEYS"] = key * keys
    stack.worker()
    for id in ids:
        assert stack.ended(id)["status"] == "COMPLETED"
    until(lambda: not stack.sql("select 1 from outbox"), 20)
    assert stack.sql("select * from findings") == []
    told = [fields["data"] for _, fields in stack.redis.xrange("events:bus")]
    assert [json.loads(one) for one in told] == [stolen, given]


@pytest.mark.parametrize("given", [{"$sealed": "mine"}, {"$sealed": 1}, {"$sealed": "a", "b": 2}, [{"$sealed": "x"}]])
def test_data_that_looks_sealed_is_only_data(stack: Stack, given: Any) -> None:
    for keys in ((), (sealing.new_key(),)):
        runner = with_keys(stack, *keys)
        instance_id = runner.start_workflow("waits-long", input={"g": given}, labels={})
        assert runner.get_workflow_status(instance_id)["input"] == {"g": given}


def test_secrets_are_kept_sealed_and_given_to_who_declares_them(stack: Stack) -> None:
    key = sealing.new_key()
    stack.environment["ENCRYPTION_KEYS"] = key

    def cli(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return stack.cli(*arguments, input=given)

    assert cli("secrets", "put", "token", given=PRIVATE + "\n").returncode == 0
    listed = cli("secrets", "ls")
    assert "token" in listed.stdout
    assert PRIVATE not in listed.stdout + listed.stderr
    assert in_the_clear(stack, PRIVATE) == {}
    runner = with_keys(stack, key)
    runner.register_workflow(
        read_document(
            "document: {dsl: '1.0.3', namespace: default, name: uses-a-secret, version: '1.0.0'}\n"
            "use: {secrets: [token]}\n"
            "do: [{s: {set: {length: '${ $secrets.token | length }'}}}]"
        )
    )
    stack.worker()
    instance_id = runner.start_workflow("uses-a-secret", input={})
    until(lambda: stack.state(instance_id) == "COMPLETED", 20)
    assert runner.get_workflow_status(instance_id)["output"] == {"length": len(PRIVATE)}
    resealed = cli("reseal")
    assert (resealed.returncode, "instances.input" in resealed.stdout) == (0, True), resealed.stderr
    assert cli("secrets", "rm", "token").returncode == 0
    assert cli("secrets", "rm", "token").returncode == 3
    stack.environment["ENCRYPTION_KEYS"] = ""
    refused = cli("secrets", "put", "x", given="y")
    assert (refused.returncode, "ENCRYPTION_KEYS" in refused.stderr) == (2, True), refused.stderr
    assert len(cli("new-key").stdout.strip()) == 44
