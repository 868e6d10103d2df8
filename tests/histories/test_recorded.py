"""Histories that were recorded once fold to the same end for ever: a change of the planner must not orphan them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.definition.codec import from_json
from orchestrator.definition.tree import find
from orchestrator.history import Kind
from orchestrator.plan.forward import Forward
from orchestrator.plan.gathering import laid_over
from orchestrator.plan.needs import Failed, Finished
from tests.histories.record import CASES, facts

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))


def test_every_case_is_recorded() -> None:
    assert {path.stem for path in RECORDED} >= {name.replace(" ", "-") for name in CASES}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_history_folds_to_the_end_it_had(path: Path) -> None:
    held = json.loads(path.read_text())
    definition = from_json(held["definition"])
    for branch in held["branches"]:
        given = held["input"] if branch["position"] == "" else branch["shared"]
        if branch["outputs_before"]:
            given = laid_over(given, branch["outputs_before"])
        told = facts(branch["facts"])
        if any(fact.kind == Kind.TASK_SKIPPED for fact in told):
            continue
        forward = Forward(
            find(definition.do, branch["position"]),
            branch["position"],
            given,
            variables=branch["vars"] or {},
            seed="01a1f826-1862-7cc8-8685-0763d48d3510",
        )

        need = forward.apply_all(told).need

        assert isinstance(need, Finished if branch["outcome"] in ("completed", "ended") else Failed), (branch["position"], need)
        if branch["position"] == "" and isinstance(need, Finished):
            assert need.output == held["output"]
