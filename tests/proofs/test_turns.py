"""Workflows that go on and on by themselves: others get their turn, and what would never end is told and ended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.definition.documents import definition_from
from orchestrator.local import WorkflowEngine
from tests.proofs.project import Project
from tests.stack import Stack, until

FOR_EVER: dict[str, Any] = {
    "document": {"dsl": "1.0.0", "namespace": "default", "name": "for-ever", "version": "1.0.0"},
    "do": [{"a": {"set": {"x": 1}, "then": "b"}}, {"b": {"set": {"x": 2}, "then": "a"}}],
}
COUNTS: dict[str, Any] = {
    "document": {"dsl": "1.0.0", "namespace": "default", "name": "counts", "version": "1.0.0"},
    "do": [{"all": {"for": {"each": "n", "in": "${ [range(6000)] }"}, "do": [{"one": {"set": {"n": "${ $n }"}}}]}}],
}
CATCHES: dict[str, Any] = {
    "document": {"dsl": "1.0.0", "namespace": "default", "name": "catches", "version": "1.0.0"},
    "do": [{"attempt": {"try": [{"a": {"set": {"x": 1}, "then": "b"}}, {"b": {"set": {"x": 2}, "then": "a"}}],
                        "catch": {"as": "why", "do": [{"told": {"set": {"told": "${ $why.title // $why.detail }"}}}]}}}],
}  # fmt: skip


@pytest.fixture
def project(stack: Stack, tmp_path: Path) -> Project:
    return Project(stack, tmp_path / "project")


def test_workflows_that_never_wait_leave_others_their_turn(project: Project) -> None:
    project.write("quick.py", "from orchestrator import Workflow\nquick = Workflow('quick').set({'a': 1}).set({'b': 2})\n")
    project.stack.worker(concurrency=2, DECISION_LIMIT="0")
    for name in ("one", "two", "three"):
        project.stack.runner.register_workflow(definition_from({**FOR_EVER, "document": {**FOR_EVER["document"], "name": name}}))
    endless = [project.start(name) for name in ("one", "two", "three")]
    until(lambda: all(project.stack.state(one) == "RUNNING" for one in endless), 20)
    time.sleep(2)  # until every process has one of them
    before = {one: _facts(project, one) for one in endless}
    for _ in range(3):
        quick = project.start("quick")
        until(lambda one=quick: project.row(one)[0] == "COMPLETED", 10, "its turn")  # type: ignore[misc]
    after = {one: _facts(project, one) for one in endless}
    assert all(after[one] > before[one] for one in endless), "each goes on, too"
    for one in endless:
        project.stack.runner.cancel_workflow(one)
        until(lambda one=one: project.row(one)[0] == "CANCELLED", 20)  # type: ignore[misc]


def test_what_decides_without_end_fails_and_can_be_caught(project: Project) -> None:
    project.stack.worker(concurrency=1, DECISION_LIMIT="5000")
    for document in (FOR_EVER, CATCHES, COUNTS):
        project.stack.runner.register_workflow(definition_from(document))
    endless, caught, counts = (project.start(name) for name in ("for-ever", "catches", "counts"))
    rows = []
    for one in (endless, caught, counts):
        project.stack.ended(one, 60)
        rows.append(project.row(one))
    assert [row[0] for row in rows] == ["FAILED", "COMPLETED", "FAILED"]
    assert rows[0][2]["code"] == rows[2][2]["code"] == "endless"
    assert "5000 decisions in a row" in rows[0][2]["message"]
    assert "DECISION_LIMIT" in rows[0][2]["message"]


def test_in_process_what_decides_without_end_fails() -> None:
    with WorkflowEngine(decision_limit=2000) as engine:
        ended = engine.wait(engine.start_workflow(FOR_EVER), 60)
    assert ended["status"] == "failed"
    assert "2000 decisions in a row" in ended["error"]


def _facts(project: Project, instance: str) -> int:
    [(count,)] = project.stack.sql(
        "select count(*) from checkpoints k join branches b on b.id = k.branch_id where b.instance_id = %s", instance
    )
    return int(count)
