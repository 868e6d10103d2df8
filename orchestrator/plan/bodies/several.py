"""Tasks that do something several times, or side by side: loops, forks, graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.definition.expressions import Template
from orchestrator.definition.tree import (
    For,
    Fork,
    Graph,
    in_order,
)
from orchestrator.history import Failure
from orchestrator.ids import Position
from orchestrator.plan.frames import Frame
from orchestrator.plan.interrupted import Fault
from orchestrator.plan.needs import FanOut, Join, Mode, Need, Opening

if TYPE_CHECKING:
    from orchestrator.plan.forward import Forward


def fork(forward: Forward, frame: Frame) -> Need | None:
    task: Fork = frame.task  # type: ignore[assignment]
    mode: Mode = "compete" if task.compete else "some" if task.at_least is not None else _mode(task)
    if "opened" in frame.note:
        return Join(Position(frame.position), mode, task.at_least or 0)
    if not task.branches:
        forward.done(frame, frame.input if task.gather == "merge" else [])
        return None
    openings = tuple(
        Opening(Position(f"{frame.position}/fork/{i}/{branch.name}"), frame.vars or None) for i, branch in enumerate(task.branches)
    )
    return FanOut(Position(frame.position), mode, frame.input, openings, task.concurrency if mode == "limited" else None)


def _mode(task: Fork | For) -> Mode:
    return "fork" if task.concurrency is None else "limited"


def graph(forward: Forward, frame: Frame) -> Need | None:
    task: Graph = frame.task  # type: ignore[assignment]
    if "opened" in frame.note:
        return Join(Position(frame.position), "graph")
    # Dependencies first, so that the outputs are laid over one another in an order that respects them.
    nodes = in_order(task.nodes)
    number = {node.task.name: i for i, node in enumerate(nodes)}
    openings = tuple(
        Opening(
            Position(f"{frame.position}/graph/{node.task.name}"),
            frame.vars or None,
            tuple(number[name] for name in node.after),
        )
        for node in nodes
    )
    return FanOut(Position(frame.position), "graph", frame.input, openings)


def for_(forward: Forward, frame: Frame) -> Need | None:
    task: For = frame.task  # type: ignore[assignment]
    items = items_of(forward, frame, task)
    if task.parallel:
        return for_parallel(forward, frame, task, items or [])
    index = frame.index
    if items is not None and index >= len(items):
        forward.done(frame, frame.data)
        return None
    variables = {**frame.vars, task.at: index} if items is None else {**frame.vars, task.each: items[index], task.at: index}
    if task.condition is not None:
        inner = Frame(task, frame.position, frame.data, variables)
        inner.decided = frame.decided
        if not forward.holds(inner, f"while {index}", task.condition, frame.data):
            forward.done(frame, frame.data)
            return None
    forward.push(task.do, f"{frame.position}/for/{index}", frame.data, variables)
    return None


def items_of(forward: Forward, frame: Frame, task: For) -> list[Any] | None:
    if task.items is None or frame.items is not None:
        return frame.items
    constant = isinstance(task.items, Template) and task.items.is_constant
    items = (forward.value if constant else forward.recorded)(frame, "items", task.items, frame.input)
    if items is None:
        items = []
    if not isinstance(items, list):
        shown = type(items).__name__
        raise Fault(Failure("expression", f"a loop needs a list of items, not {shown}", Position(frame.position), "ExpressionError"))
    frame.items = items
    return items


def for_parallel(forward: Forward, frame: Frame, task: For, items: list[Any]) -> Need | None:
    if "opened" in frame.note:
        return Join(Position(frame.position), _mode(task))
    if not items:
        forward.done(frame, [] if task.gather == "list" else frame.input)
        return None
    openings = tuple(
        Opening(Position(f"{frame.position}/for/{i}"), {**frame.vars, task.each: item, task.at: i}) for i, item in enumerate(items)
    )
    return FanOut(Position(frame.position), _mode(task), frame.input, openings, task.concurrency)


def for_receives(forward: Forward, frame: Frame, output: Any, then: str | None) -> None:
    frame.data = output
    frame.index += 1
    frame.decided = {slot: value for slot, value in frame.decided.items() if slot == "items"}
