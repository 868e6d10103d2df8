"""Tasks that stand by themselves: lists, steps, values, choices, waits, errors, events, children."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.definition.durations import from_now
from orchestrator.definition.expressions import condition, evaluate
from orchestrator.definition.tree import (
    CONTINUE,
    EXIT,
    Case,
    Do,
    Emit,
    Extended,
    Raise,
    Run,
    Set,
    Step,
    Switch,
    Undo,
    Wait,
)
from orchestrator.history import Failure
from orchestrator.ids import Position
from orchestrator.plan import catching
from orchestrator.plan.frames import Frame
from orchestrator.plan.interrupted import Fault, Pending
from orchestrator.plan.needs import AwaitChild, Decide, Need, Perform, Publish, Sleep, StartChild

if TYPE_CHECKING:
    from orchestrator.plan.forward import Forward


def do_(forward: Forward, frame: Frame) -> None:
    task: Do = frame.task  # type: ignore[assignment]
    index = frame.index
    if index >= len(task.tasks):
        forward.done(frame, frame.data)
        return
    child = task.tasks[index]
    visit = frame.visits[index] = frame.visits.get(index, 0) + 1
    position = f"{frame.position}{task.key}/{index}/{child.name}"
    forward.push(child, position if visit == 1 else f"{position}#{visit}", frame.data, frame.vars)


def do_receives(forward: Forward, frame: Frame, output: Any, then: str | None) -> None:
    frame.data = output
    if then is None or then == CONTINUE:
        frame.index += 1
    elif then == EXIT:
        # Whoever extends a task with this list must know that it was left early.
        frame.then = EXIT if len(forward.frames) > 1 and type(forward.frames[-2].task) is Extended else None
        forward.done(frame, output)
    else:
        frame.index = target(forward, frame, then)


def target(forward: Forward, frame: Frame, name: str) -> int:
    tasks = frame.task.tasks  # type: ignore[union-attr]
    for index, task in enumerate(tasks):
        if task.name == name:
            return index
    raise Fault(Failure("configuration", f"no task '{name}' to go to", Position(frame.position), "ConfigurationError"))


def step(forward: Forward, frame: Frame) -> Need:
    task: Step = frame.task  # type: ignore[assignment]
    note = frame.note
    parameters = None if task.parameters is None else forward.value(frame, "parameters", task.parameters, frame.input)
    if not note:
        return Perform(Position(frame.position), task, frame.input, parameters, 1)
    return Perform(
        Position(frame.position),
        task,
        frame.input,
        parameters,
        note.get("attempt", 1),
        note.get("not_before"),
        "intended" in note,
        note.get("pending"),
    )


def undo(forward: Forward, frame: Frame) -> Need:
    task: Undo = frame.task  # type: ignore[assignment]
    note = frame.note
    return Perform(Position(frame.position), task, task.input, task.parameters, note.get("attempt", 1), note.get("not_before"))


def set_(forward: Forward, frame: Frame) -> None:
    task: Set = frame.task  # type: ignore[assignment]
    forward.done(frame, forward.recorded(frame, "set", task.value, frame.input))


def switch(forward: Forward, frame: Frame) -> None:
    task: Switch = frame.task  # type: ignore[assignment]
    chosen = frame.decided.get("case", NOT_DECIDED)
    if chosen is NOT_DECIDED:
        scope, data = forward.scope(frame), frame.input
        raise Pending(Decide(Position(frame.position), "case", lambda: choose(task.cases, data, scope)))
    frame.then = None if chosen is None else next(case.then for case in task.cases if case.name == chosen)
    forward.done(frame, frame.input)


def wait(forward: Forward, frame: Frame) -> Need:
    task: Wait = frame.task  # type: ignore[assignment]
    until = frame.note.get("until")
    length = None if until is not None else forward.seconds_of(frame, "duration", task.duration, read=from_now)
    return Sleep(Position(frame.position), length, until)


def raise_(forward: Forward, frame: Frame) -> None:
    task: Raise = frame.task  # type: ignore[assignment]
    value = forward.value(frame, "error", task.error, frame.input)
    raise Fault(catching.raised(value, Position(frame.position)))


def emit(forward: Forward, frame: Frame) -> Need:
    task: Emit = frame.task  # type: ignore[assignment]
    scope, data = forward.scope(frame), frame.input
    return Publish(Position(frame.position), lambda: evaluate(task.event, data, scope))


def run(forward: Forward, frame: Frame) -> Need:
    task: Run = frame.task  # type: ignore[assignment]
    if child := frame.note.get("child"):
        return AwaitChild(Position(frame.position), child)
    scope, data = forward.scope(frame), frame.input
    source = task.source
    return StartChild(
        Position(frame.position),
        task.workflow,
        task.version,
        lambda: evaluate(task.input, data, scope),
        task.awaited,
        None if source is None else lambda: evaluate(source, data, scope),
    )


def choose(cases: tuple[Case, ...], data: Any, scope: dict[str, Any]) -> str | None:
    default = None
    for case in cases:
        if case.when is None:
            default = case.name
        elif condition(case.when, data, scope):
            return case.name
    return default


NOT_DECIDED = object()
