"""The law of the walk: whatever is raised inside of it, nothing leaves it, and nothing is walked again for ever."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NoReturn

import psycopg
import pytest

from orchestrator.definition.tree import Catch, Definition, Do, Set, Try, Wait
from orchestrator.engine import relating, waiting
from orchestrator.engine.walk import Walk
from orchestrator.store import branches, leases
from tests.stack import Stack

_caught = Try(name="try", do=Do(inline=True, tasks=(Wait(name="w", duration=60.0),)), catch=Catch(do=Do(tasks=(Set(name="s"),))))
CAUGHT = Definition(name="caught", version="1", do=Do(tasks=(_caught,)))
UNCAUGHT = Definition(name="uncaught", version="1", do=Do(tasks=(Wait(name="w", duration=60.0),)))


def walk(stack: Stack, instance_id: str) -> None:
    """What a worker does with a message, here."""
    runtime = stack.runner.runtime
    c = runtime.database.connection()
    c.execute("update branches set state = 'queued' where instance_id = %s and state = 'parked'", (instance_id,))
    row = c.execute(
        "select position, generation from branches where instance_id = %s and state = 'queued' order by id limit 1", (instance_id,)
    ).fetchone()
    assert row is not None
    held = branches.claim(c, instance_id, row[0], row[1], runtime.owner, 15)
    assert held is not None
    Walk(runtime, held, queue="normal").run()


def start(stack: Stack, definition: Definition) -> str:
    stack.runner.register_workflow(definition)
    return stack.runner.start_workflow(definition.name, input={})


def broken(*_: Any) -> NoReturn:
    raise KeyError("nobody foresaw this")


@pytest.mark.parametrize(("definition", "ends"), [(CAUGHT, "COMPLETED"), (UNCAUGHT, "FAILED")])
def test_an_error_nobody_foresaw_is_tried_thrice_and_is_then_a_failure_that_is_caught(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, definition: Definition, ends: str
) -> None:
    instance_id = start(stack, definition)
    monkeypatch.setattr(waiting, "sleep", broken)

    with caplog.at_level(logging.ERROR):
        walk(stack, instance_id)
        assert stack.sql("select kind from timers") == [("wake",)], "it is tried again a little later"
        walk(stack, instance_id)
        assert stack.state(instance_id) == "RUNNING"
        walk(stack, instance_id)

    assert stack.state(instance_id) == ends
    assert len([r for r in caplog.records if "internal error in a walk" in r.message]) == 3, "one line each time"
    if ends == "FAILED":
        error = stack.runner.get_workflow_status(instance_id)["error"]
        assert (error["code"], error["position"]) == ("internal", "/do/0/w")
        assert "nobody foresaw this" in error["message"]


def test_an_error_that_passes_costs_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    instance_id = start(stack, UNCAUGHT)
    with monkeypatch.context() as patched:
        patched.setattr(waiting, "sleep", broken)
        walk(stack, instance_id)

    walk(stack, instance_id)

    facts = [fact["kind"] for fact in stack.runner.history(instance_id)]
    assert facts == ["wait.began"]


@pytest.mark.parametrize("place", ["rebuild", "read_root", "meet"])
def test_an_error_in_every_place_ends_the_instance(stack: Stack, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    instance_id = start(stack, UNCAUGHT)
    monkeypatch.setattr(Walk, place, broken)

    for _ in range(3):
        walk(stack, instance_id)

    assert stack.runner.get_workflow_status(instance_id)["error"]["code"] == "internal"
    assert stack.sql("select count(*) from branches where state <> 'closed'") == [(0,)]


def test_a_definition_that_is_gone_ends_the_instance(stack: Stack) -> None:
    instance_id = start(stack, UNCAUGHT)
    stack.sql("update definitions set tree = '[]'::jsonb where name = 'uncaught' returning 1")
    stack.runner.runtime._definitions.clear()

    walk(stack, instance_id)

    row = stack.sql("select state, error ->> 'code' from instances where id = %s", instance_id)
    assert row == [("FAILED", "broken_definition")]


def test_a_definition_of_newer_code_waits_for_that(stack: Stack) -> None:
    instance_id = start(stack, UNCAUGHT)
    stack.sql("update definitions set tree = '{\"is\": \"unheard-of\"}'::jsonb where name = 'uncaught' returning 1")
    stack.runner.runtime._definitions.clear()

    walk(stack, instance_id)

    row = stack.sql(
        "select i.state, b.state, b.lacks from instances i join branches b on b.instance_id = i.id where i.id = %s", instance_id
    )
    assert row == [("RUNNING", "parked", "kind of task:unheard-of")]


def test_a_worker_that_dies_while_it_reads_the_history_does_so_a_few_times_only(stack: Stack) -> None:
    instance_id = start(stack, UNCAUGHT)
    runtime = stack.runner.runtime
    c = runtime.database.connection()
    for generation in range(1, 6):
        assert branches.claim(c, instance_id, "", generation, "host/worker/1", 15) is not None
        leases.recover_owner(c, "host/worker/1")

    walk(stack, instance_id)

    assert stack.runner.get_workflow_status(instance_id)["error"]["code"] == "worker_crashed"


def _away(error: type[Exception]) -> Callable[..., NoReturn]:
    def act(*_: Any) -> NoReturn:
        raise error("the database is somewhere else")

    return act


@pytest.mark.parametrize("error", [psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction])
def test_a_database_that_is_away_leaves_the_branch_to_recovery(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    instance_id = start(stack, UNCAUGHT)
    with monkeypatch.context() as patched:
        patched.setattr(waiting, "sleep", _away(error))
        walk(stack, instance_id)

    assert stack.sql("select state, crashes from branches") == [("running", 0)]
    assert [r.levelname for r in caplog.records if "left to recovery" in r.message] == ["WARNING"]
    stack.sql("update branches set lease_until = now() - interval '1 s' returning 1")
    assert leases.recover_expired(stack.runner.database.connection(), 10)
    assert stack.state(instance_id) == "RUNNING"


def test_a_fault_while_a_failure_is_handled_ends_the_instance_too(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    instance_id = start(stack, CAUGHT)
    monkeypatch.setattr(waiting, "sleep", broken)
    monkeypatch.setattr(Walk, "decide", broken)
    monkeypatch.setattr(relating, "emit", broken)

    for _ in range(3):
        walk(stack, instance_id)

    assert stack.runner.get_workflow_status(instance_id)["error"]["code"] == "internal"
