"""Tasks that stand around others: try, and what extends a task."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.definition.durations import seconds
from orchestrator.definition.expressions import Expression
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import (
    EXIT,
    Catch,
    Extended,
    Try,
)
from orchestrator.history import Failure
from orchestrator.ids import Position
from orchestrator.plan import catching
from orchestrator.plan.frames import Frame
from orchestrator.plan.needs import Need, Sleep

if TYPE_CHECKING:
    from orchestrator.plan.forward import Forward


def extended(forward: Forward, frame: Frame) -> None:
    task: Extended = frame.task  # type: ignore[assignment]
    # `$task` is the task that is extended, which stands at the same place.
    if task.when is not None and not forward.decided_whether(frame, "when", task.when, frame.raw):
        forward.push(task.task, f"{frame.position}/extended", frame.raw, frame.vars)
        frame.note = {"stage": "last"}
    elif task.before is not None and not frame.note:
        forward.push(task.before, f"{frame.position}/before", frame.raw, frame.vars)
        frame.note = {"stage": "before"}
    else:
        forward.push(task.task, f"{frame.position}/extended", frame.raw, frame.vars)
        frame.note = {"stage": "task" if task.after else "last"}


def extended_receives(forward: Forward, frame: Frame, output: Any, then: str | None) -> None:
    task: Extended = frame.task  # type: ignore[assignment]
    stage = frame.note["stage"]
    if stage == "before" and then == EXIT:
        forward.done(frame, output)
    elif stage == "before":
        frame.note = {"stage": "ready"}
    elif stage == "task":
        assert task.after is not None
        frame.note = {"stage": "after", "output": output, "then": then}
        forward.push(task.after, f"{frame.position}/after", output, frame.vars)
    elif stage == "after":
        frame.then = frame.note["then"]
        forward.done(frame, frame.note["output"])
    else:
        frame.then = then
        forward.done(frame, output)


def try_(forward: Forward, frame: Frame) -> Need | None:
    task: Try = frame.task  # type: ignore[assignment]
    note = frame.note
    match note.get("stage"):
        case None | "again":
            attempt = note.get("attempt", 0) + 1
            if attempt == 1 and task.catch.retry_limit_s is not None:
                note = {"began": forward.time(frame, "began")}
            frame.note = {"stage": "try", "attempt": attempt, "began": note.get("began")}
            name = "try" if attempt == 1 else f"try#{attempt}"
            forward.push(task.do, f"{frame.position}/{name}", frame.input, frame.vars)
        case "judge":
            return judge(forward, frame, task, Failure.from_json(note["failure"]))
        case "delay":
            return Sleep(Position(frame.position), note.get("delay"), note.get("until"))
    return None


def judge(forward: Forward, frame: Frame, task: Try, failure: Failure) -> Need | None:
    catch = task.catch
    problem = catching.problem(failure)
    named = {catch.name: problem}
    caught = catching.matches(catch.errors, problem)
    for slot, condition, wanted in (("when", catch.when, True), ("except", catch.except_when, False)):
        if caught and condition is not None:
            caught = forward.holds(frame, slot, condition, problem, **named) is wanted
    if not caught:
        forward.frames.pop()
        return forward.fail(failure)
    attempt = frame.note["attempt"]
    again = catch.retry is not None and attempt < catch.retry.max_attempts
    for slot, condition, wanted in (("retry when", catch.retry_when, True), ("retry except", catch.retry_except_when, False)):
        if again and condition is not None:
            again = forward.holds(frame, slot, condition, problem, **named) is wanted
    if again and catch.retry is not None:
        policy = policy_of(forward, frame, catch, named)
        delay = policy.delay_s(attempt, forward.luck(frame.position, attempt))
        if has_time(forward, frame, catch, delay, named):
            frame.note = {"stage": "delay", "attempt": attempt, "delay": delay, "began": frame.note.get("began")}
            return None
    if catch.do is not None:
        frame.note = {"stage": "catch"}
        forward.push(catch.do, f"{frame.position}/catch", frame.input, {**frame.vars, **named})
        return None
    if catch.retry is not None and catch.then is None:
        forward.frames.pop()
        return forward.fail(failure)
    frame.then = catch.then
    forward.done(frame, frame.input)
    return None


def policy_of(forward: Forward, frame: Frame, catch: Catch, named: dict[str, Any]) -> RetryPolicy:
    """The policy with what of it is computed before each retry: from what the try was given, and the error."""
    policy = catch.retry
    assert policy is not None
    if catch.retry_delay is not None:
        policy = replace(policy, base_s=length_of(forward, frame, "retry delay", catch.retry_delay, named))
    if catch.retry_jitter is not None:
        slots = ("retry jitter from", "retry jitter to")
        least, most = (length_of(forward, frame, *pair, named) for pair in zip(slots, catch.retry_jitter, strict=True))
        policy = replace(policy, added_s=(least, max(least, most)))
    return policy


def length_of(forward: Forward, frame: Frame, slot: str, length: float | Expression, named: dict[str, Any]) -> float:
    if isinstance(length, int | float):
        return float(length)
    return seconds(forward.value(frame, slot, length, frame.input, **named))


def has_time(forward: Forward, frame: Frame, catch: Catch, delay: float, named: dict[str, Any]) -> bool:
    if catch.retry_limit_s is None:
        return True
    limit_s = length_of(forward, frame, "retry limit", catch.retry_limit_s, named)
    began: float = frame.note["began"]
    return forward.time(frame, "judged at") + delay - began <= limit_s


def try_receives(forward: Forward, frame: Frame, output: Any, then: str | None) -> None:
    task: Try = frame.task  # type: ignore[assignment]
    if frame.note.get("stage") == "catch":
        frame.then = task.catch.then
    forward.done(frame, output)
