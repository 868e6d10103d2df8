"""An instance as people look at it: the task tree with what became of each task, now or after any number of facts."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config import secrets
from orchestrator.definition.approval import name_of
from orchestrator.definition.codec import to_json
from orchestrator.definition.tree import (
    AnyTask,
    Definition,
    Do,
    Extended,
    For,
    Fork,
    Graph,
    Listen,
    Step,
    Try,
)
from orchestrator.engine.rebuild import forward_of
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import BrokenHistory, NotFound, OrchestratorError
from orchestrator.history import Fact, Kind, that_count
from orchestrator.ids import Position
from orchestrator.plan.forward import Forward
from orchestrator.plan.needs import AwaitChild, Decide, Failed, Finished, Join, Listening, Perform, Sleep
from orchestrator.state import TERMINAL, StepState
from orchestrator.store import admission, history, queries, workers
from orchestrator.store.connection import Connection, dumps
from orchestrator.store.sealing import Unopened


@dataclass(slots=True)
class Node:
    """One task of one instance."""

    position: str
    name: str
    kind: str
    state: str = StepState.SCHEDULED
    attempts: int = 0
    began: float | None = None
    ended: float | None = None
    error: Any = None
    input: Any = None
    output: Any = None
    note: str = ""
    approval: str | None = None
    undone: str | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def took_s(self) -> float | None:
        return self.ended - self.began if self.ended is not None and self.began is not None else None

    def all(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.all()

    def to_json(self, *, whole: bool = False) -> dict[str, Any]:
        """`whole`: inputs and outputs however large they are."""
        shown = {
            "position": self.position,
            "name": self.name,
            "type": self.kind,
            "status": self.state,
            "attempts": self.attempts or None,
            "started_at": _moment(self.began),
            "completed_at": _moment(self.ended),
            "duration_s": None if self.took_s is None else round(self.took_s, 6),
            "input": self.input if whole else _brief(self.input),
            "output": self.output if whole else _brief(self.output),
            "error": self.error,
            "waits_for": self.note or None,
            "compensation": self.undone,
            "steps": [child.to_json(whole=whole) for child in self.children] or None,
        }
        return {key: value for key, value in shown.items() if value is not None}


@dataclass(slots=True)
class Seen:
    instance: dict[str, Any]
    definition: Definition
    root: Node
    facts: int
    unmet: list[str]
    order: list[Position]
    missing: list[tuple[Position, int]]
    """Facts that somebody deleted, by their branch and number. What followed from them is not known."""

    def steps(self) -> list[Node]:
        """The tasks with effects, where progress is counted."""
        return [node for node in self.root.all() if not node.children and node.kind not in ("do", "for", "try", "graph", "fork", "switch")]

    def waiting(self) -> list[Node]:
        return [node for node in self.root.all() if node.note]

    @property
    def progress(self) -> float:
        steps = self.steps()
        if self.instance["outcome"] == "COMPLETED" or not steps:
            return 1.0 if self.instance["outcome"] == "COMPLETED" else 0.0
        done = sum(node.state in (StepState.COMPLETED, StepState.SKIPPED, StepState.COMPENSATED) for node in steps)
        return round(done / len(steps), 4)

    @property
    def message(self) -> str:
        state = self.instance["state"]
        error = self.instance["error"] or {}
        if state == "PENDING":
            return f"Workflow waits for {'; '.join(self.unmet)}" if self.unmet else "Workflow is pending execution"
        if state == "PAUSED":
            return "Workflow is paused"
        if self.instance["phase"] == "compensating" and state == "RUNNING":
            return f"Compensating after: {error.get('message', 'roll back')}"
        outcome = self.instance["outcome"] or state
        if outcome == "COMPLETED":
            return "Workflow completed successfully"
        if outcome == "CANCELLED":
            return "Workflow was cancelled"
        if outcome == "FAILED":
            return f"Workflow failed: {explained(error)}"
        steps = self.steps()
        done = sum(node.state in (StepState.COMPLETED, StepState.SKIPPED) for node in steps)
        notes = [f"{node.name} {node.note}" for node in self.waiting()]
        return f"Executing step {min(done + 1, len(steps))} of {len(steps)}" + (f" ({notes[0]})" if notes else "")

    def status(self, *, whole: bool = False) -> dict[str, Any]:
        i = self.instance
        return {
            "id": i["id"],
            "workflow": i["workflow"],
            "version": i["version"],
            "namespace": i["namespace"],
            "tenant": i["tenant"],
            "status": i["state"],
            "outcome": i["outcome"],
            "phase": i["phase"],
            "progress": self.progress,
            "message": self.message,
            "input": i["input"],
            "output": i["output"],
            "error": i["error"],
            "compensation": i["compensation"],
            "labels": i["labels"],
            "metadata": i["metadata"],
            "priority": i["priority"],
            "trace_id": i["trace_id"],
            "parent_id": i["parent_id"],
            "forked_from": i["forked_from"],
            "source": i["source"],
            "created_at": i["created_at"],
            "started_at": i["started_at"],
            "completed_at": i["ended_at"],
            "duration_s": i["duration_s"],
            "waits_for": [{"step": node.name, "position": node.position, "for": node.note} for node in self.waiting()] or self.unmet,
            "missing_facts": [{"branch": branch, "number": number} for branch, number in self.missing],
            "steps": [node.to_json(whole=whole) for node in self.root.children] or [self.root.to_json(whole=whole)],
        }


SHOWN_ROUNDS = 200
LARGEST_SHOWN = 4_000


def _brief(value: Any) -> Any:
    """A task's input or output where many are shown: a large one by its size alone."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Unopened):
        return value
    size = len(dumps(value))
    return value if size <= LARGEST_SHOWN else {"omitted": f"{size:,} characters of JSON; ask with data=whole"}


def _moment(at: float | None) -> str | None:
    return None if at is None else dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def explained(error: dict[str, Any]) -> str:
    attempts = error.get("attempts", 0)
    message = error.get("message", "")
    where = f" at {error['position']}" if error.get("position") else ""
    return f"step failed after {attempts} attempts: {message}{where}" if attempts else f"{message}{where}"


def see(c: Connection, runtime: Runtime, instance_id: str, at: int | None = None) -> Seen:
    instance = queries.instance(c, instance_id)
    if instance is None:
        raise NotFound("instance", instance_id)
    definition = runtime.definition(instance["definition_id"])
    told = history.of_instance(c, instance_id)
    missing = [(branch.position, number) for branch in told.branches for number in told.missing(branch.id)]
    unmet = [*admission.unmet(c, instance_id), *admission.slots_wanted(c, instance_id)] if instance["state"] == "PENDING" else []
    if at is not None:
        ordered = sorted(told.facts, key=lambda row: (row.at, row.branch_id, row.seq))[:at]
        kept = {(row.branch_id, row.seq) for row in ordered}
        if len(kept) < len(told.facts):
            # As it was then: on its way, there or back, whatever came of it later.
            goes_back = any(branch.position.startswith("/undo") and (branch.id, 1) in kept for branch in told.branches)
            instance |= {
                "state": "RUNNING" if kept else "PENDING", "phase": "compensating" if goes_back else "forward", "outcome": None,
                "error": instance["error"] if goes_back else None, "output": None, "compensation": None, "ended_at": None,
            }  # fmt: skip
        told = history.Told(told.branches, [row for row in told.facts if (row.branch_id, row.seq) in kept])
    waits = at is None and any(branch.state == "queued" for branch in told.branches)
    found = _Found(definition, instance, told, looks_back=at is not None, served=workers.served(c) if waits else frozenset())
    root = found.node(definition.do, "")
    order = [
        row.fact.position for row in sorted(told.facts, key=lambda r: (r.at, r.branch_id, r.seq)) if row.fact.kind == Kind.STEP_COMPLETED
    ]
    return Seen(instance, definition, root, len(told.facts), unmet, order, missing)


CHANGED = (AttributeError, KeyError, TypeError, ValueError)
"""What comes of a fact that says what no fact says, since somebody changed it: what follows from it is not shown."""


class _Found:
    """What the histories of all branches say of each position."""

    def __init__(self, definition: Definition, instance: dict[str, Any], told: history.Told, *, looks_back: bool, served: Set[str]) -> None:
        self.definition = definition
        self.instance = instance
        self.served = served
        self.is_live = looks_back or (instance["state"] not in TERMINAL and instance["state"] != "CLEANING_UP")
        self.nodes: dict[str, Node] = {}
        self.undone: dict[str, str] = {}
        self.hidden = secrets.values_in(list(secrets.resolve(definition.secrets).values())) if definition.secrets else []
        for branch in told.branches:
            if branch.position.startswith("/undo"):
                for row in told.of_branch(branch.id):
                    if row.fact.kind in (Kind.UNDONE, Kind.UNDO_FAILED) and not isinstance(row.fact.data, Unopened):
                        with contextlib.suppress(*CHANGED):
                            self.undone[row.fact.data["origin"]] = "compensated" if row.fact.kind == Kind.UNDONE else "failed"
            else:
                self._branch(branch, told, looks_back=looks_back)

    def _branch(self, branch: history.BranchRow, told: history.Told, *, looks_back: bool) -> None:
        """Up to a hole what follows from the facts; beyond it each fact as it stands."""
        rows = told.of_branch(branch.id)
        forward = self._fold_of(branch, told)
        hole = told.hole(branch.id)
        sound = [(row.seq, row.fact) for row in rows if hole is None or row.seq < hole]
        beyond = [(row.seq, row.fact) for row in rows[len(sound) :]]
        at = {row.seq: row.at for row in rows}
        last = self.instance["began"] if branch.parent_id is None else branch.queued_at
        for seq, fact in [*that_count(sound), *beyond]:
            node = self._at(fact.position)
            if node.began is None:
                node.began = min(last, at[seq])
            last = at[seq]
            try:
                _mark(node, fact.kind, fact.data, fact.attempt, last)
            except CHANGED:
                return
            if fact.kind == Kind.TASK_SKIPPED:
                return
            if forward is None or (hole is not None and seq >= hole):
                continue
            try:
                self._note_data(forward, fact)
                forward.apply(fact)
            except (BrokenHistory, *CHANGED):
                return
            if fact.kind == Kind.RECEIVED and _has_left(forward, fact.position):
                node.state, node.ended = StepState.COMPLETED, last
        if forward is not None and hole is None:
            self._stand(branch, forward, looks_back=looks_back)

    def _fold_of(self, branch: history.BranchRow, told: history.Told) -> Forward | None:
        """None: what the branch began with cannot be read, nor what follows from it."""
        shared, before = told.flows_into(branch)
        given = (branch.instance_input, branch.vars, branch.context, shared, *(one.output for one in before))
        if any(isinstance(value, Unopened) for value in given):
            return None
        return forward_of(self.definition, self.definition.do, branch, shared, before)

    def _stand(self, branch: history.BranchRow, forward: Forward, *, looks_back: bool) -> None:
        """Where a branch is after its last fact."""
        if isinstance(forward.need, Failed) and branch.state == "closed":
            failure = forward.need.failure
            raised = self._at(failure.position)
            raised.state, raised.error = StepState.FAILED, raised.error or failure.to_json()
        if branch.state == "closed" and not looks_back:
            return
        need = forward.need
        for frame in forward.frames:
            node = self._at(frame.position)
            node.state = StepState.RUNNING
            if frame is forward.frames[-1] and node.input is None:
                node.input = secrets.masked(frame.input, self.hidden)
        self._current(need, branch)

    def _note_data(self, forward: Forward, fact: Fact) -> None:
        """What flowed into the task that a fact is about, and a value that was made and not written down. Secrets are for
        expressions, and not for those who look on."""
        if fact.kind == Kind.RECEIVED or isinstance(need := forward.need, Finished | Failed):
            return
        node, frame = self.nodes[fact.position], forward.frames[-1]
        if node.input is None and frame.position == fact.position:
            node.input = secrets.masked(frame.input, self.hidden)
        if isinstance(need, Decide) and need.slot == "set" and fact.data.get("again"):
            with contextlib.suppress(OrchestratorError):
                node.output = secrets.masked(need.compute(), self.hidden)

    def _current(self, need: Any, branch: history.BranchRow) -> None:
        if isinstance(need, Finished | Failed) or not self.is_live:
            return
        node = self._at(need.position)
        waits = branch.state in ("queued", "blocked", "parked", "halted") and branch.owner is None
        node.state = (
            StepState.SCHEDULED if waits and isinstance(need, Perform) and need.attempt == 1 and not need.pending else StepState.RUNNING
        )
        match need:
            case Perform(pending=dict() as pending):
                node.note = f"until {_clock(pending['until'])}"
            case Perform(not_before=float() as when) if when > self.instance["now"]:
                node.note = f"for its next attempt at {_clock(when)}"
            case Sleep(until=float() as when):
                node.note = f"until {_clock(when)}"
            case Listening(task=task):
                names = [str((f.attributes or {}).get("type", "any event")) for f in task.filters] or ["any event"]
                node.approval = next(filter(None, map(name_of, names)), None)
                node.note = f"for {', '.join(names)}" if node.approval is None else f"for the approval {node.approval}"
            case AwaitChild(instance_id=child):
                node.note = f"for child {child}"
            case Join():
                pass
        if branch.state == "queued" and branch.queue not in self.served:
            node.note = node.note or f"for a worker that takes from the queue {branch.queue}"
        if branch.doing:
            self._at(branch.doing).state = StepState.RUNNING

    def _at(self, position: str) -> Node:
        node = self.nodes.get(position)
        if node is None:
            node = self.nodes[position] = Node(position, "", "")
        return node

    # ── the tree ────────────────────────────────────────────────────────────────────────────────────────────────────

    def node(self, task: AnyTask, position: str) -> Node:
        node = self.nodes.get(position) or Node(position, "", "")
        node.name, node.kind = task.name or _kind(task), task.type if isinstance(task, Step) else _kind(task)
        node.undone = self.undone.get(position)
        if node.undone == "compensated":
            node.state = StepState.COMPENSATED
        node.children = list(self._children(task, position))
        if node.children and node.state not in (StepState.FAILED, StepState.SKIPPED):
            node.state = _summed(node.children, node.state)
        if node.state == StepState.SKIPPED:
            for below in node.all():
                below.state = StepState.SKIPPED
        if not self.is_live and node.state in (StepState.RUNNING, StepState.SCHEDULED) and not node.children:
            node.state = StepState.SKIPPED
        return node

    def _children(self, task: AnyTask, position: str) -> Iterator[Node]:
        match task:
            case Do(tasks=tasks, key=key):
                for i, inner in enumerate(tasks):
                    yield from (self.node(inner, p) for p in self._visits(f"{position}{key}/{i}/{inner.name}"))
            case Fork(branches=branches):
                for i, inner in enumerate(branches):
                    yield self.node(inner, f"{position}/fork/{i}/{inner.name}")
            case Graph(nodes=nodes):
                for entry in nodes:
                    yield self.node(entry.task, f"{position}/graph/{entry.task.name}")
            case For(do=body):
                yield from self._loop(body, position)
            case Try(do=body, catch=catch):
                for p in self._visits(f"{position}/try"):
                    yield self._named(body, p, p.rsplit("/", 1)[1])
                if catch.do and any(p.startswith(f"{position}/catch") for p in self.nodes):
                    yield self._named(catch.do, f"{position}/catch", "catch")
            case Extended(task=inner, before=before, after=after):
                for part, name in ((before, "before"), (inner, "extended"), (after, "after")):
                    if part is not None and (part is inner or any(p.startswith(f"{position}/{name}") for p in self.nodes)):
                        yield self._named(part, f"{position}/{name}", inner.name if part is inner else name)
            case Listen(do=Do() as body):
                for i in self._rounds(f"{position}/foreach/"):
                    yield self._named(body, f"{position}/foreach/{i}", f"[{i}]")

    def _loop(self, body: Do, position: str) -> Iterator[Node]:
        """The rounds that there were, up to a number a person can look at; one to come, while it may still come."""
        rounds = self._rounds(f"{position}/for/")
        for i in rounds[:SHOWN_ROUNDS] or ([0] if self.is_live else []):
            node = self._named(body, f"{position}/for/{i}", f"[{i}]")
            yield from node.children if len(node.children) == 1 and len(rounds) > 20 else [node]

    def _named(self, task: AnyTask, position: str, name: str) -> Node:
        node = self.node(task, position)
        node.name = name
        return node

    def _visits(self, position: str) -> list[str]:
        later = sorted(
            (p for p in self.nodes if p.startswith(position + "#") and "/" not in p[len(position) :]),
            key=lambda p: int(p.rsplit("#", 1)[1]),
        )
        return [position, *later]

    def _rounds(self, prefix: str) -> list[int]:
        return sorted({int(p[len(prefix) :].split("/")[0]) for p in self.nodes if p.startswith(prefix)})


def _has_left(forward: Forward, position: str) -> bool:
    """Whether the branch is no longer inside of the task at a position."""
    return isinstance(forward.need, Finished | Failed) or all(frame.position != position for frame in forward.frames)


def _kind(task: AnyTask) -> str:
    return str(to_json(task)["is"])


def _mark(node: Node, kind: str, held: Any, attempt: int, at: float) -> None:
    node.attempts = max(node.attempts, attempt)
    data: dict[str, Any] = {"output": held} if isinstance(held, Unopened) else held or {}
    match kind:
        case Kind.STEP_COMPLETED | Kind.WAITED | Kind.JOINED | Kind.CHILD_ENDED | Kind.EMITTED:
            node.state, node.ended = (StepState.FAILED, at) if "error" in data else (StepState.COMPLETED, at)
            node.error = data.get("error")
            node.output = data.get("output", data.get("outputs"))
        case Kind.STEP_FAILED | Kind.TIMED_OUT:
            node.state, node.ended, node.error = StepState.FAILED, at, data.get("error") or {"code": "timeout", "message": "timeout"}
        case Kind.TASK_SKIPPED:
            node.state, node.ended = StepState.SKIPPED, at
        case Kind.DECIDED if "error" in data:
            node.state, node.ended, node.error = StepState.FAILED, at, data["error"]
        case Kind.DECIDED if data.get("slot") == "if" and data["value"] in (None, False):
            node.state, node.ended = StepState.SKIPPED, at
        case Kind.DECIDED if data.get("slot") in ("set", "case"):
            node.state, node.ended, node.output = StepState.COMPLETED, at, data.get("value")
        case Kind.RETRIED | Kind.CAUGHT_RETRY:
            node.state, node.error = StepState.RUNNING, data.get("error")
        case _:
            node.state = StepState.RUNNING


def _summed(children: list[Node], own: str) -> str:
    states = {child.state for child in children}
    if StepState.RUNNING in states:
        return StepState.RUNNING
    if states <= {StepState.COMPLETED, StepState.SKIPPED} and StepState.COMPLETED in states:
        return StepState.COMPLETED
    if StepState.FAILED in states:
        return StepState.FAILED
    if states == {StepState.SKIPPED}:
        return StepState.SKIPPED
    if StepState.COMPENSATED in states:
        return StepState.COMPENSATED
    return StepState.RUNNING if states != {StepState.SCHEDULED} else own


def _clock(instant: float) -> str:
    return dt.datetime.fromtimestamp(instant, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
