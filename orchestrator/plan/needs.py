"""What a branch needs next, as values. The planner says them; the engine meets them and records what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.definition.tree import EventFilter, Listen, Step, Undo
from orchestrator.history import Failure
from orchestrator.ids import Position

Mode = Literal["fork", "limited", "compete", "some", "graph"]
"""`limited` is a fork of whose branches only so many are open at once: the others are blocked until one of these is closed."""
"""All branches; the first one; the first few; as the edges say."""


@dataclass(frozen=True, slots=True)
class Perform:
    """Run a step's executor.

    `not_before` is the instant (epoch) a retry waits for, `intended` an at-most-once step's mark, `pending` the result
    of an attempt that counts only later.
    """

    position: Position
    step: Step | Undo
    input: Any
    parameters: Any
    attempt: int
    not_before: float | None = None
    intended: bool = False
    pending: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Decide:
    """Compute a value and record it, so that a later walk does not decide again. See `deciding` for what is plain.

    `of_time`: the value is made of the present, by the clock of whoever meets this need.
    """

    position: Position
    slot: str
    compute: Callable[[], Any]
    is_plain: bool = False
    of_time: Callable[[float], Any] | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait until an instant, or (not begun yet) for a duration."""

    position: Position
    seconds: float | None
    until: float | None


@dataclass(frozen=True, slots=True)
class Deadline:
    """Record when a task's time is over."""

    position: Position
    seconds: float


@dataclass(frozen=True, slots=True)
class Opening:
    """A branch to be opened: its task is found at its position."""

    position: Position
    vars: dict[str, Any] | None = None
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FanOut:
    """`shared` flows into every branch. `concurrency`: of a limited one, how many branches may be open at once."""

    position: Position
    mode: Mode
    shared: Any
    openings: tuple[Opening, ...]
    concurrency: int | None = None

    def is_ready(self, number: int) -> bool:
        """Whether this branch begins at once."""
        return not self.openings[number].after and (self.concurrency is None or number < self.concurrency)

    @property
    def width(self) -> int:
        return sum(self.is_ready(number) for number in range(len(self.openings)))


@dataclass(frozen=True, slots=True)
class Join:
    """`least`: how many branches must be done, where the first few decide."""

    position: Position
    mode: Mode
    least: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """Which events this branch took already: the newest one per kind of listener, and the numbers of the last ones."""

    after: int = 0
    taken: tuple[int, ...] = ()
    forgotten: int = 0

    def is_new(self, number: int) -> bool:
        """By number alone, where numbers come in order."""
        return number > self.after and number not in self.taken


@dataclass(frozen=True, slots=True)
class Listening:
    position: Position
    task: Listen
    filters: tuple[EventFilter, ...]
    scope: dict[str, Any]
    received: int
    heard: Heard


@dataclass(frozen=True, slots=True)
class Publish:
    position: Position
    compute: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class StartChild:
    position: Position
    workflow: str
    version: str | None
    compute: Callable[[], Any]
    awaited: bool
    document: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True)
class AwaitChild:
    position: Position
    instance_id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing remains. `ended` says that an `end` was met, which closes the branches above, too."""

    output: Any
    context: Any
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    failure: Failure


Need = Perform | Decide | Sleep | Deadline | FanOut | Join | Listening | Publish | StartChild | AwaitChild | Finished | Failed
