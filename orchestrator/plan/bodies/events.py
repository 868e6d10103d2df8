"""Listening: what a listener still needs, and what its handlers gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.definition.tree import (
    Listen,
)
from orchestrator.ids import Position
from orchestrator.plan import listening
from orchestrator.plan.frames import Frame
from orchestrator.plan.needs import Listening, Need

if TYPE_CHECKING:
    from orchestrator.plan.forward import Forward


def listen(forward: Forward, frame: Frame) -> Need | None:
    task: Listen = frame.task  # type: ignore[assignment]
    note = frame.note
    if note.get("asks") and task.until is not None:
        slot = f"until {note['count']}"
        is_over = forward.holds(frame, slot, task.until, note["outputs"])
        frame.decided = {known: value for known, value in frame.decided.items() if known != slot}
        note = frame.note = {**note, "asks": False, "complete": is_over}
    if note.get("fresh") and task.do is not None:
        index = len(note["outputs"]) - 1
        frame.note = {**note, "fresh": False}
        variables = {**frame.vars, task.each: note["outputs"][-1], task.at: index}
        forward.push(task.do, f"{frame.position}/foreach/{index}", note["outputs"][-1], variables)
        return None
    if note.get("complete"):
        forward.done(frame, note["outputs"])
        return None
    filters = (*task.filters, task.until_event) if task.until_event else task.filters
    return Listening(
        Position(frame.position), task, filters, forward.scope(frame), note.get("count", 0), listening.hears(forward.heard, task)
    )


def goes_on(frame: Frame) -> bool:
    """Whether another event may be taken without looking at `until` first: the history says that it did not hold."""
    note = frame.note
    return type(frame.task) is Listen and not note.get("complete") and not (note.get("fresh") and frame.task.do is not None)


def listen_receives(forward: Forward, frame: Frame, output: Any, then: str | None) -> None:
    note = frame.note
    frame.note = {**note, "outputs": [*note["outputs"][:-1], output]}
