"""The way back: a tree of undo steps for what was completed, dependants before what they depended on.

The tree of a definition is mirrored: sequences turn round, branches stay side by side, a graph's edges are reversed.
Only completed steps with a compensation appear. What comes out is a task tree like any other, so the way back has
checkpoints, retries, timeouts and crash recovery because everything has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.definition.tree import (
    AnyTask,
    Compensation,
    Do,
    Extended,
    For,
    Fork,
    Graph,
    Listen,
    Node,
    Step,
    Try,
    Undo,
)
from orchestrator.ids import Position


@dataclass(frozen=True, slots=True)
class Done:
    """A completed step: what it was given, what it gave, and what it kept for its undoing."""

    order: int
    input: Any
    parameters: Any
    output: Any
    checkpoint: Any


Completed = Mapping[Position, Done]
HasHandler = Callable[[str], bool]


def backward(task: AnyTask, completed: Completed, has_handler: HasHandler) -> AnyTask | None:
    """The undo tree for the completed steps of this task, or None when nothing is to be undone.

    `has_handler` says whether a compensation handler is registered for a step type: such steps are undone even
    without a compensation of their own in the definition.
    """
    return _Mirror(completed, has_handler, _places(completed)).task(task, "")


def without_handler(task: AnyTask, completed: Completed, has_handler: HasHandler) -> list[tuple[Position, str]]:
    """The completed steps that nothing undoes, as positions and step types: neither their definition nor their type says how."""
    mirror = _Mirror(completed, has_handler, _places(completed))
    mirror.task(task, "")
    return sorted(mirror.without)


def _places(completed: Completed) -> dict[str, list[tuple[Position, Done]]]:
    places: dict[str, list[tuple[Position, Done]]] = {}
    for position, done in completed.items():
        for prefix in _prefixes(position):
            places.setdefault(prefix, []).append((position, done))
    return places


def _prefixes(position: str) -> list[str]:
    parts = position.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]


class _Mirror:
    def __init__(self, completed: Completed, has_handler: HasHandler, places: dict[str, list[tuple[Position, Done]]]) -> None:
        self.completed = completed
        self.has_handler = has_handler
        self.places = places
        self.inside: dict[str, list[str]] = {}
        for place in places:
            self.inside.setdefault(place.rpartition("/")[0], []).append(place)
        self.last = {place: max((done.order for _, done in within), default=0) for place, within in places.items()}
        self.without: list[tuple[Position, str]] = []

    def task(self, task: AnyTask, position: str) -> AnyTask | None:
        if position not in self.places:
            return None
        match task:
            case Step():
                return self._step(task, Position(position))
            case Do(tasks=tasks, key=key):
                return self._sequence(
                    task.name, [(t, p) for i, t in enumerate(tasks) for p in self._visits(f"{position}{key}/{i}/{t.name}")]
                )
            case Fork(branches=branches, concurrency=most):
                return self._side_by_side(task.name, [(t, f"{position}/fork/{i}/{t.name}") for i, t in enumerate(branches)], most)
            case For(do=body, parallel=parallel, concurrency=most):
                rounds: list[tuple[AnyTask, str]] = [(body, f"{position}/for/{i}") for i in self._rounds(f"{position}/for/")]
                return self._side_by_side(task.name, rounds, most) if parallel else self._sequence(task.name, rounds)
            case Try(do=body, catch=catch):
                tries = [(body, p) for p in self._visits(f"{position}/try")]
                caught = [(catch.do, f"{position}/catch")] if catch.do else []
                return self._sequence(task.name, [*tries, *caught])
            case Listen(do=Do() as body):
                return self._sequence(task.name, [(body, f"{position}/foreach/{i}") for i in self._rounds(f"{position}/foreach/")])
            case Extended(task=inner, before=before, after=after):
                parts = [(inner, f"{position}/extended"), (before, f"{position}/before"), (after, f"{position}/after")]
                return self._sequence(task.name, [(part, place) for part, place in parts if part is not None])
            case Graph(nodes=nodes):
                return self._graph(task.name, nodes, position)
        return None

    def _step(self, task: Step, position: Position) -> AnyTask | None:
        done = self.completed.get(position)
        compensation = task.compensation
        if compensation is None and self.has_handler(task.type):
            compensation = Compensation(type=task.type, retry=task.retry)
        if done is None:
            return None
        if compensation is None:
            self.without.append((position, task.type))
            return None
        return Undo(
            name=task.name,
            origin=position,
            compensation=compensation,
            step_type=task.type,
            input=done.input,
            parameters=done.parameters,
            output=done.output,
            checkpoint=done.checkpoint,
        )

    def _mirrored(self, tasks: list[tuple[AnyTask, str]]) -> list[AnyTask]:
        # In the order in which they were completed, so that jumps and revisits turn round as they happened.
        ordered = sorted(tasks, key=lambda pair: self._last(pair[1]), reverse=True)
        return [undo for task, position in ordered if (undo := self.task(task, position)) is not None]

    def _sequence(self, name: str, tasks: list[tuple[AnyTask, str]]) -> AnyTask | None:
        undone = self._mirrored(tasks)
        return Do(name=name, tasks=tuple(undone)) if undone else None

    def _side_by_side(self, name: str, tasks: list[tuple[AnyTask, str]], concurrency: int | None) -> AnyTask | None:
        undone = self._mirrored(tasks)
        if len(undone) < 2:
            return Do(name=name, tasks=tuple(undone)) if undone else None
        return Fork(name=name, branches=tuple(undone), concurrency=concurrency)

    def _graph(self, name: str, nodes: tuple[Node, ...], position: str) -> AnyTask | None:
        undone = {
            node.task.name: undo for node in nodes if (undo := self.task(node.task, f"{position}/graph/{node.task.name}")) is not None
        }
        if not undone:
            return None
        order = sorted(undone, key=lambda n: self._last(f"{position}/graph/{n}"), reverse=True)
        after = _dependants(nodes, undone)
        if all(before in after[n] for before, n in itertools.pairwise(order)):
            return Do(name=name, tasks=tuple(undone[n] for n in order))
        place = {n: i for i, n in enumerate(order)}
        made = tuple(Node(task=undone[n], after=tuple(sorted(after[n], key=place.__getitem__))) for n in order)
        return Graph(name=name, nodes=made)

    def _last(self, position: str) -> int:
        return self.last.get(position, 0)

    def _visits(self, position: str) -> list[str]:
        """The position and its revisits, `…#2`, `…#3`."""
        near = self.inside.get(position.rpartition("/")[0], ())
        return [place for place in near if place == position or place.startswith(f"{position}#")]

    def _rounds(self, prefix: str) -> list[int]:
        return sorted(int(place[len(prefix) :]) for place in self.inside.get(prefix.removesuffix("/"), ()))


def _dependants(nodes: tuple[Node, ...], undone: Mapping[str, Any]) -> dict[str, set[str]]:
    """For each node that is undone, those that depended on it and are undone before it: the nearest ones, which wait for theirs."""
    followers: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.after:
            followers.setdefault(name, []).append(node.task.name)
    found: dict[str, set[str]] = {}
    for name in undone:
        nearest: set[str] = set()
        seen: set[str] = set()
        todo = list(followers.get(name, ()))
        while todo:
            current = todo.pop()
            if current in undone:
                nearest.add(current)
            elif current not in seen:
                seen.add(current)
                todo += followers.get(current, ())
        found[name] = nearest
    return found
