"""Steps of graph documents that hold steps."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.definition.documents import definition_from
from orchestrator.definition.retry import RetryPolicy
from orchestrator.errors import Invalid
from orchestrator.local import WorkflowEngine


def say(id: str, *after: str) -> dict[str, Any]:
    return {"id": id, "type": "conditional", "parameters": {"condition": "always_true"}, "dependencies": list(after)}


def document(type: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "nested",
        "steps": [say("first"), {"id": "holds", "type": type, "parameters": parameters, "dependencies": ["first"], **more}],
    }


def run(given: dict[str, Any], input: Any = None) -> dict[str, Any]:
    with WorkflowEngine(retry=RetryPolicy(max_attempts=1)) as engine:
        return engine.wait(engine.start_workflow(definition_from(given), input=input or {}), 10)


def did(status: dict[str, Any]) -> list[str]:
    return sorted(step["id"] for step in status["steps"] if step["status"] == "completed")


@pytest.mark.parametrize(("total", "way"), [(6, "big"), (5, "small")])
def test_a_condition_takes_one_way(total: int, way: str) -> None:
    given = {"condition": "${ .total > 5 }", "then": [say("big")], "else": [say("small")]}
    assert did(run(document("condition", given), {"total": total})) == sorted(["first", way])


def test_a_condition_without_another_way_goes_on() -> None:
    status = run(document("condition", {"condition": ".no", "then": [say("never")]}))
    assert (status["status"], did(status)) == ("completed", ["first"])


@pytest.mark.parametrize("parameters", [{"steps": [say("a"), say("b")]}, {"branches": [[say("a")], [say("b")]]}])
def test_branches_are_all_taken(parameters: dict[str, Any]) -> None:
    status = run(document("parallel", parameters), {"kept": 1})
    assert did(status) == ["a", "b", "first"]
    assert status["output"]["kept"] == 1


@pytest.mark.parametrize("parallel", [True, False])
def test_each_item_is_in_the_data_of_the_steps(parallel: bool) -> None:
    each = {"id": "fails", "type": "fail", "parameters": {"message": "${ .name }"}, "when": '.name == "c"'}
    given = {"items": [*"abc"], "as": "name", "steps": [each], "parallel": parallel}
    status = run(document("forEach", given))
    assert (status["status"], status["error"].endswith(": c")) == ("failed", True)


def test_a_loop_ends_with_its_condition_and_at_its_bound() -> None:
    given = {"condition": "$index < 3 # or more", "steps": [say("round")]}
    assert run(document("while", given))["status"] == "completed"
    broken = run(document("while", {**given, "maxIterations": 2}))
    assert (broken["status"], "still true after 2 rounds" in broken["error"]) == ("failed", True)


def test_steps_inside_may_depend_on_one_another() -> None:
    given = {"condition": "true", "then": [say("b", "a"), say("a")]}
    assert did(run(document("condition", given))) == ["a", "b", "first"]


@pytest.mark.parametrize(
    ("type", "parameters", "more", "said"),
    [
        ("condition", {"then": [say("a")]}, {}, "/steps/1/parameters/condition: The condition, such as .total > 5, is required."),
        ("condition", {"condition": ".x", "then": []}, {}, "/steps/1/parameters/then: Expected at least one step."),
        ("condition", {"condition": ".x", "then": [{"id": "a"}]}, {}, "/steps/1/parameters/then/0/type: step type is required"),
        (
            "condition",
            {"condition": ".x", "thens": [say("a")]},
            {},
            '/steps/1/parameters/thens: Unknown field "thens". Did you mean "then"?',
        ),
        ("condition", {"condition": ".x |", "then": [say("a")]}, {}, ".x |"),
        (
            "parallel",
            {},
            {},
            "/steps/1/parameters: Expected `steps`, each of which is a branch, or `branches`, each of which is a list of steps.",
        ),
        ("parallel", {"branches": [say("a")]}, {}, "/steps/1/parameters/branches/0: Expected a list"),
        ("parallel", {"steps": [say("a"), say("b", "a")]}, {}, "/steps/1/parameters: These steps run side by side"),
        ("parallel", {"steps": [say("a"), say("a")]}, {}, "a"),
        ("forEach", {"items": 5, "steps": [say("a")]}, {}, "/steps/1/parameters/items: Expected text or a list, got 5."),
        ("forEach", {"items": ".x", "as": "a b", "steps": [say("a")]}, {}, "/steps/1/parameters/as: Expected text that matches"),
        (
            "forEach",
            {"items": ".x", "parallel": "yes", "steps": [say("a")]},
            {},
            '/steps/1/parameters/parallel: Expected true or false, got "yes".',
        ),
        (
            "while",
            {"condition": ".x", "steps": [say("a")], "maxIterations": 0},
            {},
            "/steps/1/parameters/maxIterations: Expected a number at least 1, got 0.",
        ),
        ("while", {"condition": ".x", "steps": [say("a")]}, {"retries": 3}, '/steps/1: A step of type "while" does not take retries.'),
    ],
)
def test_what_is_wrong_is_said_with_its_place(type: str, parameters: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid) as refused, WorkflowEngine() as engine:
        engine.start_workflow(definition_from(document(type, parameters, **more)))
    assert said in str(refused.value)
