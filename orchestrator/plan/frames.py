"""Where a branch stands: a stack of frames, one per task it is inside of. Plain data; `plan/forward.py` moves it."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from orchestrator.definition.tree import AnyTask, find

EMPTY: dict[str, Any] = {}


class Phase(IntEnum):
    ENTER = 0
    BODY = 1
    LEAVE = 2


SHARED = ("raw", "input", "data", "output")


class Pool:
    """Values of frames, each kept once: what flows through a task untouched is one object in many places."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._at: dict[int, int] = {}

    def add(self, value: Any) -> int:
        at = self._at.get(id(value))
        if at is None:
            at = self._at[id(value)] = len(self.values)
            self.values.append(value)
        return at


class Frame:
    """A task in progress.

    raw → input (after filters) → data (as its children change it) → output. `index` counts children done, `visits`
    how often each was entered, `decided` the recorded values of this task, `note` what only its kind knows, `items` what a
    loop goes over, kept while the frame is in memory.
    """

    __slots__ = (
        "data", "decided", "due", "index", "input", "items", "note", "output", "phase", "position", "raw", "task", "then", "vars", "visits",
    )  # fmt: skip

    def __init__(self, task: AnyTask, position: str, raw: Any, variables: dict[str, Any]) -> None:
        self.task = task
        self.position = position
        self.raw = raw
        self.vars = variables
        self.phase = Phase.ENTER
        self.input: Any = raw
        self.data: Any = None
        self.output: Any = None
        self.index = 0
        self.visits: dict[int, int] = {}
        self.decided: dict[str, Any] = EMPTY
        self.due: float | None = None
        self.note: dict[str, Any] = EMPTY
        self.then: str | None = None
        self.items: list[Any] | None = None

    def decide(self, slot: str, value: Any) -> None:
        self.decided = {**self.decided, slot: value}

    def to_json(self, pool: Pool) -> dict[str, Any]:
        held = {name: getattr(self, name) for name in self.__slots__ if name not in ("items", "task", "visits")}
        held.update({name: pool.add(held[name]) for name in SHARED})
        return {**held, "phase": int(self.phase), "visits": list(self.visits.items())}

    @staticmethod
    def from_json(root: AnyTask, data: dict[str, Any], values: list[Any]) -> Frame:
        frame = Frame(find(root, data["position"]), data["position"], None, data["vars"])
        for name, value in data.items():
            setattr(frame, name, values[value] if name in SHARED else value)
        frame.phase = Phase(data["phase"])
        frame.visits = dict(data["visits"])
        return frame
