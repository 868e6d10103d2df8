"""The history: facts at positions, in order. Append-only, and all that is ever needed to know where a branch stands.

A fact *settles* a position (a step completed, a wait ended) or happens on the way there (an attempt failed, an event
came). Facts of one branch are numbered 1, 2, 3 …; the number is what two writers race for, and the first one wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.errors import LONGEST_NAME, LONGEST_TEXT, plain
from orchestrator.ids import Position


class Kind(StrEnum):
    # settling
    STEP_COMPLETED = "step.completed"
    STEP_FAILED = "step.failed"
    TASK_SKIPPED = "task.skipped"
    WAITED = "wait.completed"
    JOINED = "branches.joined"
    CHILD_ENDED = "child.ended"
    EMITTED = "event.emitted"
    UNDONE = "step.compensated"
    UNDO_FAILED = "step.compensation_failed"
    # on the way
    DECIDED = "decided"
    INTENDED = "step.intended"
    RETRIED = "step.retried"
    CAUGHT_RETRY = "try.retried"
    WAITING = "wait.began"
    OPENED = "branches.opened"
    CHILD_STARTED = "child.started"
    RECEIVED = "event.received"
    DEADLINE = "deadline.set"
    TIMED_OUT = "deadline.passed"
    REOPENED = "branch.reopened"


@dataclass(frozen=True, slots=True)
class Fact:
    """`data` is JSON; `attempt` counts from 1 where attempts are made, 0 elsewhere."""

    position: Position
    kind: str
    data: Any = None
    attempt: int = 0


# What a retry by hand takes back: the facts by which a branch failed.
FAILING = frozenset({Kind.STEP_FAILED, Kind.TIMED_OUT, Kind.TASK_SKIPPED})


def is_failing(fact: Fact) -> bool:
    return fact.kind in FAILING or (fact.kind in (Kind.JOINED, Kind.CHILD_ENDED, Kind.DECIDED) and "error" in (fact.data or {}))


def that_count(facts: Iterable[tuple[int, Fact]]) -> list[tuple[int, Fact]]:
    """Of facts with their numbers those that count: nothing is ever deleted, but `branch.reopened` takes back what failed,
    and gives the tasks in progress the time that has passed since."""
    kept: list[tuple[int, Fact]] = []
    for seq, fact in facts:
        if fact.kind == Kind.REOPENED:
            kept = [(s, _shifted(f, fact.data)) for s, f in kept if s < fact.data["from"]]
        else:
            kept.append((seq, fact))
    return kept


def effective(facts: Sequence[Fact], base: int = 0) -> list[Fact]:
    return [fact for _, fact in that_count(enumerate(facts, base + 1))]


def _shifted(fact: Fact, reopened: dict[str, Any]) -> Fact:
    """A deadline is as much later as the instance stood still; one that had passed is named with its new moment."""
    if fact.kind != Kind.DEADLINE:
        return fact
    due = reopened.get("dues", {}).get(fact.position, fact.data["due"] + reopened["shift"])
    return Fact(fact.position, fact.kind, {**fact.data, "due": due}, fact.attempt)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a value: what a step, a task or an instance failed with. Whatever was raised, its texts can be kept."""

    code: str
    message: str
    position: Position = Position("")
    name: str = ""
    retryable: bool = False
    after_s: float | None = None
    attempts: int = 0
    details: Any = None
    cause: Any = None

    def __post_init__(self) -> None:
        # `frozen` forbids plain assignment, also here.
        for name, most in (("code", LONGEST_NAME), ("message", LONGEST_TEXT), ("name", LONGEST_NAME)):
            text = getattr(self, name)
            kept = plain(text, most) if isinstance(text, str) else plain(str(text), most)
            if kept is not text:
                object.__setattr__(self, name, kept)

    def to_json(self) -> dict[str, Any]:
        held = {
            "code": self.code,
            "message": self.message,
            "position": self.position,
            "name": self.name,
            "retryable": self.retryable,
            "after_s": self.after_s,
            "attempts": self.attempts,
            "details": self.details,
            "cause": self.cause,
        }
        return {key: value for key, value in held.items() if value not in (None, "", 0, False)} | {
            "code": self.code,
            "message": self.message,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Failure:
        known = {key: data[key] for key in Failure.__dataclass_fields__ if key in data}
        return Failure(**{"code": "error", "message": "", **known})


def error_names(error: BaseException) -> frozenset[str]:
    """The names a retry policy may use for an error: its class and that of every ancestor, bare and qualified."""
    names: set[str] = set()
    for cls in type(error).__mro__:
        if cls not in (object, BaseException):
            names |= {cls.__name__, f"{cls.__module__}.{cls.__qualname__}"}
    return frozenset(names)
