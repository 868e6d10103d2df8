"""Random definitions, and ways to run them: for the laws."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

from orchestrator.definition.expressions import Jq, Merge, Template
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import (
    AnyTask,
    Around,
    Case,
    Catch,
    Compensation,
    Definition,
    Do,
    For,
    Fork,
    Graph,
    Node,
    Raise,
    Set,
    Step,
    Switch,
    Try,
    Wait,
)
from orchestrator.embedded import Embedded, Instance
from orchestrator.errors import Retryable, Terminal
from orchestrator.steps.registry import Registry, StepContext
from orchestrator.testing import ManualClock

NAMES = [f"{a}{b}" for a in "abcdefgh" for b in "123456789"]


class Effect:
    """A step whose outcome follows from its name alone: most pass, some fail for good, some only at first."""

    type = "effect"

    def execute(self, context: StepContext) -> dict[str, Any]:
        fate = context.parameter("fate", "pass")
        if fate == "fail":
            raise Terminal("fated to fail")
        if fate == "shaky" and context.attempt == 1:
            raise Retryable("not yet")
        return {context.name: context.position}

    def compensate(self, context: StepContext) -> None:
        return None


def registry() -> Registry:
    made = Registry()
    made._loaded = True
    made.add(Effect())
    made.add_handler(Effect())
    return made


@st.composite
def steps(draw: st.DrawFn, name: str) -> AnyTask:
    fate = draw(st.sampled_from(["pass", "pass", "pass", "pass", "shaky", "fail"]))
    return Step(
        name=name,
        type="effect",
        parameters=Template({"fate": fate}),
        retry=RetryPolicy(max_attempts=3, base_s=draw(st.sampled_from([0.1, 5.0])), jitter=0),
        compensation=draw(st.sampled_from([None, Compensation(type="effect")])),
        around=Around(output_as=Merge(name), condition=draw(st.sampled_from([None, None, None, Jq("true"), Jq("false")]))),
    )


limits = st.sampled_from([None, None, 1, 2])


@st.composite
def tasks(draw: st.DrawFn, name: str, depth: int) -> AnyTask:
    kinds = ["step", "step", "step", "set", "wait"]
    if depth > 0:
        kinds += ["do", "fork", "for", "pfor", "graph", "try", "switch"]
    kind = draw(st.sampled_from(kinds))
    if kind == "set":
        return Set(name=name, value=Template({"set": name, "n": "${ (.n // 0) + 1 }"}))
    if kind == "wait":
        return Wait(name=name, duration=draw(st.sampled_from([0.5, 60.0])))
    if kind == "do":
        return Do(name=name, tasks=draw(lists(depth - 1)))
    if kind == "switch":
        inner = draw(lists(depth - 1))
        target = draw(st.sampled_from([*[task.name for task in inner], "continue", "exit"]))
        return Do(
            name=name,
            tasks=(Switch(name="sw", cases=(Case(name="c", when=Jq(draw(st.sampled_from(["true", "false"]))), then=target),)), *inner),
        )
    if kind == "fork":
        gather = draw(st.sampled_from(["list", "merge"]))
        return Fork(name=name, branches=draw(lists(depth - 1)), gather=gather, concurrency=draw(limits))
    if kind in ("for", "pfor"):
        items = list(range(draw(st.integers(0, 3))))
        body = Do(tasks=draw(lists(depth - 1)))
        if kind == "for":
            return For(name=name, items=Template(items), do=body)
        return For(name=name, items=Template(items), do=body, parallel=True, concurrency=draw(limits))
    if kind == "try":
        body = Do(inline=True, tasks=draw(lists(depth - 1)))
        retry = draw(st.sampled_from([None, RetryPolicy(max_attempts=2, base_s=1.0, jitter=0)]))
        handler = draw(st.sampled_from([None, Do(tasks=(Set(name="caught", value=Template({"caught": "${ $error.status }"})),))]))
        return Try(name=name, do=body, catch=Catch(retry=retry, do=handler))
    if kind == "graph":
        inner = draw(lists(depth - 1))
        nodes = []
        for i, task in enumerate(inner):
            after = draw(st.lists(st.sampled_from([t.name for t in inner[:i]]), unique=True, max_size=3)) if i else []
            nodes.append(Node(task=task, after=tuple(after)))
        return Graph(name=name, nodes=tuple(nodes))
    return draw(steps(name))


@st.composite
def lists(draw: st.DrawFn, depth: int) -> tuple[AnyTask, ...]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    return tuple(draw(tasks(name, depth)) for name in names)


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    extra = (Raise(name="end", error=Template({"type": "x/y", "status": 500})),) if draw(st.integers(0, 5)) == 0 else ()
    return Definition(name="generated", version="1", do=Do(tasks=(*draw(lists(3)), *extra)), saga=draw(st.booleans()))


def run(definition: Definition, *, id: str | None = None) -> Instance:
    """To the end, undisturbed."""
    engine = Embedded(clock=ManualClock(), registry=registry())
    return engine.finish(engine.start(definition, {"n": 0}, id=id))


class Power(Exception):
    """The power fails."""


def run_with_cuts(definition: Definition, *, id: str, luck: random.Random, share: float) -> tuple[Instance, int]:
    """The same, but after any fact everything in memory may be lost, and is folded again from the facts."""
    cuts = 0

    def cut(what: str, instance: Instance, fact: Any) -> None:
        nonlocal cuts
        if what == "fact" and luck.random() < share:
            cuts += 1
            raise Power

    engine = Embedded(clock=ManualClock(), registry=registry(), listener=cut)
    instance = engine.start(definition, {"n": 0}, id=id)
    while instance.state not in ("COMPLETED", "FAILED", "CANCELLED"):
        try:
            engine.finish(instance)
        except Power:
            recover(engine, instance)
        assert cuts < 5000, "the same fact is recorded again and again"
    return instance, cuts


def recover(engine: Embedded, instance: Instance) -> None:
    """As the keeper does: what is neither parked nor closed is walked again; a join asks anew whether all are done."""
    engine._ready.clear()
    for branch in list(instance.branches()):
        branch.forward = None
        if (
            branch.state == "ready"
            or (branch.state == "joining" and all(child.is_closed for child in branch.opened))
            or (branch.state == "blocked" and all(before.is_closed for before in branch.after))
        ):
            engine._queue(instance, branch)
