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
    if note.get("complete"):
        forward.done(frame, note["outputs"])
        return None
    filters = (*task.filters, task.until_event) if task.until_event else task.filters
    return Listening(
        Position(frame.position), task, filters, forward.scope(frame), note.get("count", 0), listening.hears(forward.heard, task)
    )


def listen_receives(forward: Forward, frame: Frame, output: Any, then: str | None) -> None:
    note = frame.note
    frame.note = {**note, "outputs": [*note["outputs"][:-1], output]}
