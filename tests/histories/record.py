"""Records histories as fixtures: `python -m tests.histories.record`. Only ever add: a recorded history must fold for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.definition.codec import to_json
from orchestrator.definition.expressions import Jq, Merge, Template
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import (
    Around,
    Case,
    Catch,
    Compensation,
    Definition,
    Do,
    EventFilter,
    For,
    Fork,
    Graph,
    Listen,
    Node,
    Raise,
    Set,
    Step,
    Switch,
    Try,
    Wait,
)
from orchestrator.embedded import Embedded
from orchestrator.history import Fact
from orchestrator.testing import ManualClock
from tests.unit.trees import registry

FOLDER = Path(__file__).parent / "recorded"


def effect(name: str, fate: str = "pass", **more: Any) -> Step:
    return Step(
        name=name,
        type="effect",
        parameters=Template({"fate": fate}),
        retry=RetryPolicy(max_attempts=2, base_s=5, jitter=0),
        around=Around(output_as=Merge(name)),
        compensation=Compensation(type="effect"),
        **more,
    )


CASES: dict[str, Definition] = {
    "sequence": Definition(name="sequence", version="1", do=Do(tasks=(effect("a"), Wait(name="w", duration=60.0), effect("b", "shaky")))),
    "fork": Definition(
        name="fork", version="1", do=Do(tasks=(Fork(name="f", branches=(effect("a"), effect("b")), gather="merge"), effect("c")))
    ),
    "graph": Definition(
        name="graph",
        version="1",
        do=Graph(
            nodes=(
                Node(task=effect("a")),
                Node(task=effect("b")),
                Node(task=effect("c"), after=("a",)),
                Node(task=effect("d"), after=("a", "b")),
            )
        ),
    ),
    "saga": Definition(
        name="saga",
        version="1",
        saga=True,
        do=Do(tasks=(effect("a"), Fork(name="f", branches=(effect("b"), effect("c"))), effect("d", "fail"))),
    ),
    "loop": Definition(name="loop", version="1", do=Do(tasks=(For(name="each", items=Jq("[1,2,3]"), do=Do(tasks=(effect("a"),))),))),
    "parallel loop": Definition(
        name="ploop", version="1", do=Do(tasks=(For(name="each", items=Jq("[1,2]"), parallel=True, do=Do(tasks=(effect("a"),))),))
    ),
    "switch and revisit": Definition(
        name="revisit",
        version="1",
        do=Do(
            tasks=(
                Set(name="count", value=Template({"n": "${ (.n // 0) + 1 }"})),
                Switch(name="again", cases=(Case(name="more", when=Jq(".n < 3"), then="count"),)),
                effect("done"),
            )
        ),
    ),
    "try": Definition(
        name="try",
        version="1",
        do=Do(
            tasks=(
                Try(
                    name="t",
                    do=Do(inline=True, tasks=(effect("a"), Raise(name="r", error=Template({"type": "x/y", "status": 503})))),
                    catch=Catch(
                        retry=RetryPolicy(max_attempts=2, base_s=9, jitter=0),
                        do=Do(tasks=(Set(name="s", value=Template("${ $error.status }")),)),
                    ),
                ),
            )
        ),
    ),
    "listen": Definition(
        name="listen", version="1", do=Do(tasks=(Listen(name="l", filters=(EventFilter(attributes={"type": "go"}),)), effect("a")))
    ),
}


def record() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, definition in CASES.items():
        path = FOLDER / f"{name.replace(' ', '-')}.json"
        if path.exists():
            continue
        engine = Embedded(clock=ManualClock(), registry=registry())
        instance = engine.start(definition, {"n": 0}, id="01a1f826-1862-7cc8-8685-0763d48d3510")
        engine.settle()
        if name == "listen":
            engine.signal(instance, "go", {"x": 1})
        engine.finish(instance)
        branches = [
            {
                "position": branch.position,
                "shared": branch.shared,
                "vars": branch.variables,
                "outputs_before": [before.output for before in branch.after],
                "facts": [[fact.position, fact.kind, fact.data, fact.attempt] for fact in branch.facts],
                "outcome": branch.outcome,
            }
            for branch in instance.branches()
            if not branch.position.startswith("/undo")
        ]
        held = {
            "definition": to_json(definition),
            "input": {"n": 0},
            "state": instance.state,
            "output": instance.output,
            "branches": branches,
        }
        path.write_text(json.dumps(held, indent=1) + "\n")


def facts(rows: list[Any]) -> list[Fact]:
    return [Fact(*row) for row in rows]


if __name__ == "__main__":
    record()
