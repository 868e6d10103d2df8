"""Data that is nested deeper and deeper ends in a failure that says so, and never in a walk that is begun again for ever."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.errors import Invalid
from tests.stack import Stack

WRAP = """
document: {dsl: '1.0.0', namespace: default, name: wrap, version: '1.0.0'}
do:
  - nest:
      for: {each: i, in: "${ [range(.depth)] }"}
      do:
        - wrap:
            set: {x: "${ . }"}
"""
REDUCED = """
document: {dsl: '1.0.0', namespace: default, name: reduced, version: '1.0.0'}
do:
  - once:
      try:
        - nest:
            set: {x: "${ reduce range(.depth) as $i (0; [.]) }"}
      catch:
        as: error
        do:
          - told:
              set: {caught: "${ $error.detail }"}
"""


def register(runner: WorkflowRunner, text: str) -> None:
    runner.register_workflow(read_document(text, "x.yaml"), text)


@pytest.mark.parametrize(("depth", "ends"), [(150, "COMPLETED"), (700, "FAILED"), (3_000, "FAILED")])
def test_a_loop_that_wraps_its_data_ends(stack: Stack, depth: int, ends: str) -> None:
    stack.environment.update({"LEASE": "2", "HEARTBEAT": "0.5"})
    register(stack.runner, WRAP)
    stack.worker()
    done = stack.run("wrap", {"depth": depth})
    assert done["status"] == ends
    if ends == "FAILED":
        assert (done["error"]["code"], "nested more than 500 levels deep" in done["error"]["message"]) == ("too_deep", True)
    assert "Traceback" not in stack.workers[0].log.read_text()


@pytest.mark.parametrize("depth", [150, 300, 5_000])
def test_an_expression_that_gives_too_deep_a_value_fails_and_may_be_caught(stack: Stack, depth: int) -> None:
    register(stack.runner, REDUCED)
    stack.worker()
    done = stack.run("reduced", {"depth": depth})
    assert done["status"] == "COMPLETED"
    if depth > 200:
        assert "jq" in done["output"]["caught"]
    else:
        assert "x" in done["output"]


def test_a_step_that_gives_too_deep_a_value_fails_as_a_step_does(stack: Stack) -> None:
    stack.worker()
    for depth, ends in ((150, "COMPLETED"), (201, "FAILED"), (50_000, "FAILED")):
        done = stack.run("gives-deep", {"depth": depth})
        assert done["status"] == ends
        assert depth != 201 or done["error"]["code"] == "too_deep"
    for depth in (201, 50_000):
        with pytest.raises(Invalid, match="nested more than 200 levels deep"):
            stack.runner.start_workflow("gives-deep", input=nested(depth))


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return {"depth": 1, "x": value}
