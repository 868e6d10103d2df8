"""What is recorded of a decision: its value; or why there is none; or, of what is long and plain, only that it was made.

A plain value is computed from what flows into its task, by the same few operations everywhere and always: when the history is read
again, so is it computed again. A list that grows in every round of a loop is then not written down in every round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.errors import Endless, MissingCode, OrchestratorError
from orchestrator.history import Failure
from orchestrator.ids import Position
from orchestrator.plan.needs import Decide

LARGEST = 4096


def once(make: Callable[[], Any]) -> Callable[[], Any]:
    """The same value for whoever records it and for whoever goes on with it."""
    made: list[Any] = []

    def compute() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return compute


def at_what_time(position: Position, slot: str, made: Callable[[float], Any] = float) -> Decide:
    """The present, recorded."""
    return Decide(position, slot, _never, of_time=made)


def _never() -> Any:
    raise AssertionError("a time is decided by a clock")


def decided(need: Decide, now: Callable[[], float]) -> dict[str, Any]:
    try:
        value = need.compute() if need.of_time is None else need.of_time(now())
    except MissingCode:
        raise
    except OrchestratorError as error:
        return {"slot": need.slot, "error": Failure(error.code, str(error), need.position, type(error).__name__).to_json()}
    if need.is_plain and is_large(value):
        return {"slot": need.slot, "again": True}
    return {"slot": need.slot, "value": value}


def is_large(value: Any, most: int = LARGEST) -> bool:
    """Whether its JSON has more characters than that, looked at no further than it takes to know."""
    todo = [value]
    size = 0
    while todo:
        one = todo.pop()
        size += 1
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, dict):
            size += sum(map(len, one)) + len(one)
            if len(one) > most:
                return True
            todo += one.values()
        elif isinstance(one, list | tuple):
            if len(one) > most:
                return True
            todo += one
        else:
            size += 4
        if size > most:
            return True
    return False


def endless(need: Decide, decisions: int) -> Failure:
    """Of a branch that would decide for ever, and fill the database with it."""
    message = f"{decisions} decisions in a row, without a step, a wait or an event between them (DECISION_LIMIT): a loop without an end?"
    return Failure(Endless.code, message, need.position, Endless.__name__)
