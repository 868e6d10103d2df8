"""DEV_MODE: what was written last is what runs, under versions that make themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.definition.tree import Definition
from orchestrator.engine.publish import Publisher
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import VersionClash
from orchestrator.store import definitions
from orchestrator.store.connection import Database
from tests.stack import Stack


def definition(text: str, version: str = "1.0.0") -> Definition:
    document = f"type: shop\nversion: '{version}'\nsteps:\n  - {{id: a, type: log, parameters: {{message: '{text}'}}}}\n"
    return read_document(document, "shop.yaml")


@pytest.fixture
def dev(stack: Stack) -> Any:
    settings = dataclasses.replace(stack.settings, dev_mode=True)
    runner = WorkflowRunner(Runtime(settings, Database(stack.database_url), Publisher(stack.runner.runtime.publisher.app, helpers=4)))
    yield runner
    runner.database.drop()


def newest(runner: WorkflowRunner) -> tuple[str, Any]:
    found = runner.database.patiently(lambda c: definitions.find(c, "shop", None))
    assert found is not None
    return found.version, found.tree


def test_without_it_a_used_version_is_refused(stack: Stack) -> None:
    stack.runner.register_workflow(definition("one"))
    stack.runner.start_workflow("shop")
    with pytest.raises(VersionClash):
        stack.runner.register_workflow(definition("two"))


def test_what_was_written_last_is_what_runs(dev: WorkflowRunner, caplog: pytest.LogCaptureFixture) -> None:
    def write(text: str, declared: set[str] | None = None) -> str:
        dev.register_workflow(definition(text), declared=declared or {"1.0.0"})
        dev.start_workflow("shop")
        return newest(dev)[0]

    assert write("one") == "1.0.0"
    assert write("one") == "1.0.0"
    assert write("two") == "1.0.1"
    assert write("two") == "1.0.1"
    # Back to what it was: its own version has that text, and yet it is not the newest.
    assert write("one") == "1.0.2"
    assert write("one") == "1.0.2"
    assert "shop@1.0.0 was used and has changed: registered as 1.0.1 (DEV_MODE)" in caplog.text


def test_what_was_not_used_is_replaced_and_makes_no_version(dev: WorkflowRunner) -> None:
    for text in ("one", "two", "three"):
        dev.register_workflow(definition(text), declared={"1.0.0"})
    assert newest(dev)[0] == "1.0.0"
    dev.start_workflow("shop")
    for text in ("four", "five"):
        dev.register_workflow(definition(text), declared={"1.0.0"})
    assert newest(dev)[0] == "1.0.1"


def test_versions_that_the_code_has_are_its_own(dev: WorkflowRunner) -> None:
    """1.0.0 and 1.0.1 are both declared: a change of the first is no change of the second, and goes past it."""
    declared = {"1.0.0", "1.0.1"}
    dev.register_workflow(definition("old"), declared=declared)
    dev.register_workflow(definition("new", "1.0.1"), declared=declared)
    dev.start_workflow("shop", "1.0.0")
    dev.start_workflow("shop", "1.0.1")
    dev.register_workflow(definition("old, changed"), declared=declared)
    dev.register_workflow(definition("new", "1.0.1"), declared=declared)
    found = {one.version for one in dev.workflows() if one.name == "shop"}
    assert found == {"1.0.0", "1.0.1", "1.0.2"}


def test_a_document_that_is_sent_gives_way_to_used_versions_only(dev: WorkflowRunner) -> None:
    dev.register_workflow(definition("a", "1.2.3"))
    dev.start_workflow("shop")
    dev.register_workflow(definition("b", "1.2.3"))
    dev.register_workflow(definition("c", "1.2.0"))
    assert {one.version for one in dev.workflows() if one.name == "shop"} == {"1.2.0", "1.2.3", "1.2.4"}
