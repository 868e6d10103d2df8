"""Facts: what each kind changes in the frame that it is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.definition.tree import (
    For,
    Fork,
    Listen,
    Run,
    Step,
    Try,
)
from orchestrator.errors import BrokenHistory
from orchestrator.history import Fact, Failure
from orchestrator.plan import listening
from orchestrator.plan.frames import EMPTY, Frame
from orchestrator.plan.gathering import laid_over
from orchestrator.plan.needs import Decide, Need

if TYPE_CHECKING:
    from orchestrator.plan.forward import Forward


def step_completed(forward: Forward, frame: Frame, fact: Fact) -> None:
    forward.done(frame, fact.data.get("output") if fact.data else None)


def step_failed(forward: Forward, frame: Frame, fact: Fact) -> Need | None:
    return forward.fail(Failure.from_json(fact.data["error"]))


def retried(forward: Forward, frame: Frame, fact: Fact) -> None:
    frame.note = {"attempt": fact.attempt + 1, "not_before": fact.data.get("not_before")}


def intended(forward: Forward, frame: Frame, fact: Fact) -> None:
    frame.note = {**frame.note, "intended": True}


def decided(forward: Forward, frame: Frame, fact: Fact) -> Need | None:
    if "error" in fact.data:
        return step_failed(forward, frame, fact)
    slot = fact.data["slot"]
    if not fact.data.get("again"):
        frame.decide(slot, fact.data["value"])
        return None
    need = forward.need
    if not isinstance(need, Decide) or need.slot != slot:
        raise BrokenHistory(f"'{slot}' was decided at '{fact.position}', where nothing of that name is to be decided")
    frame.decide(slot, need.compute())
    return None


def waiting(forward: Forward, frame: Frame, fact: Fact) -> None:
    known = {"pending": fact.data} if type(frame.task) is Step else {"until": fact.data["until"]}
    frame.note = {**frame.note, **known}


def waited(forward: Forward, frame: Frame, fact: Fact) -> None:
    if type(frame.task) is Try:
        frame.note = {"stage": "again", "attempt": frame.note["attempt"], "began": frame.note.get("began")}
        frame.decided = EMPTY
    else:
        forward.done(frame, frame.input)


def deadline_set(forward: Forward, frame: Frame, fact: Fact) -> None:
    frame.due = fact.data["due"]


def opened(forward: Forward, frame: Frame, fact: Fact) -> None:
    frame.note = {"opened": fact.data["count"]}


def joined(forward: Forward, frame: Frame, fact: Fact) -> Need | None:
    data = fact.data
    if "error" in data:
        return step_failed(forward, frame, fact)
    if "ended" in data:
        forward.ending = True
        forward.done(frame, data["ended"])
        return None
    if "context" in data:
        forward.context = data["context"]
    outputs = data["outputs"]
    match frame.task:
        case Fork(compete=True):
            forward.done(frame, outputs)
        case Fork(gather="list") | For(gather="list"):
            forward.done(frame, outputs)
        case For(gather="input"):
            forward.done(frame, frame.input)
        case _:
            forward.done(frame, laid_over(frame.input, outputs))
    return None


def child_started(forward: Forward, frame: Frame, fact: Fact) -> None:
    task: Run = frame.task  # type: ignore[assignment]
    frame.note = {"child": fact.data["instance_id"]}
    if not task.awaited:
        forward.done(frame, frame.input)


def child_ended(forward: Forward, frame: Frame, fact: Fact) -> Need | None:
    if "error" in fact.data:
        return step_failed(forward, frame, fact)
    forward.done(frame, fact.data["output"])
    return None


def emitted(forward: Forward, frame: Frame, fact: Fact) -> None:
    forward.done(frame, fact.data["event"])


def received(forward: Forward, frame: Frame, fact: Fact) -> None:
    task: Listen = frame.task  # type: ignore[assignment]
    forward.heard = listening.heard(forward.heard, task, fact.data["id"])
    frame.note = listening.received(task, frame.note, fact.data, forward.scope(frame))
