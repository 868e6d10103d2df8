"""The task tree: what every way of writing a workflow becomes. Immutable, without behaviour, the same for all.

A `Definition` holds one root task; tasks hold tasks. The semantics are those of the Serverless Workflow DSL 1.0, plus
`Graph` and compensation. Data flows from task to task: a task gets what the one before it gave. `Around` holds what
may stand around any task (condition, filters, schemas, timeout, where to go next).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from orchestrator.definition.codec import NOT_KEPT, tagged
from orchestrator.definition.expressions import Expression, Jq, Template
from orchestrator.definition.parsing import NOWHERE, Source
from orchestrator.definition.retry import RetryPolicy
from orchestrator.ids import Position

CONTINUE, EXIT, END = "continue", "exit", "end"


@tagged("around")
@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What stands around a task. Order: condition, input schema, input, the task, output, output schema, export."""

    condition: Expression | None = None
    input_schema: Any = None
    input_from: Expression | None = None
    output_as: Expression | None = None
    output_schema: Any = None
    export_as: Expression | None = None
    export_schema: Any = None
    timeout_s: float | Expression | None = None
    then: str | None = None
    metadata: Any = None


PLAIN = Around()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    name: str = ""
    around: Around = PLAIN


@tagged("do")
@dataclass(frozen=True, slots=True, kw_only=True)
class Do(Task):
    """One after another. `inline`: its tasks stand directly under its own place, as those of a try do."""

    tasks: tuple[AnyTask, ...] = ()
    inline: bool = False

    @property
    def key(self) -> str:
        return "" if self.inline else "/do"


@tagged("fork")
@dataclass(frozen=True, slots=True, kw_only=True)
class Fork(Task):
    """Side by side. Gives the outputs in order; merged into one object; or, competing, the first one's.

    `at_least`: it is done when so many branches are; the others are stopped. `concurrency`: at most so many are open at once.
    """

    branches: tuple[AnyTask, ...] = ()
    compete: bool = False
    at_least: int | None = None
    gather: Literal["list", "merge"] = "list"
    concurrency: int | None = None


@tagged("for")
@dataclass(frozen=True, slots=True, kw_only=True)
class For(Task):
    """The body once per item (or, without items, while the condition holds).

    In sequence, an iteration gets what the one before gave. In parallel, each gets the task's input, and the outputs
    come as a list in the order of the items, or are left aside (`gather="input"`). `concurrency`: at most so many at once.
    """

    do: Do = field(default_factory=lambda: Do())
    items: Expression | None = None
    each: str = "item"
    at: str = "index"
    condition: Expression | None = None
    parallel: bool = False
    gather: Literal["list", "merge", "input"] = "list"
    concurrency: int | None = None


@tagged("case")
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str = ""
    when: Expression | None = None
    then: str = CONTINUE


@tagged("switch")
@dataclass(frozen=True, slots=True, kw_only=True)
class Switch(Task):
    """The first case that holds says where to go; one without a condition is the default."""

    cases: tuple[Case, ...] = ()


@tagged("catch")
@dataclass(frozen=True, slots=True, kw_only=True)
class Catch:
    """Which errors a try handles, and how: again (retry), then instead (do)."""

    errors: Any = None
    name: str = "error"
    when: Expression | None = None
    except_when: Expression | None = None
    retry: RetryPolicy | None = None
    retry_when: Expression | None = None
    retry_except_when: Expression | None = None
    retry_limit_s: float | Expression | None = None
    """How long all attempts and the waits between them may take together."""
    retry_delay: Expression | None = None
    """Computed before each retry; it takes the place of the policy's base."""
    retry_jitter: tuple[float | Expression, float | Expression] | None = None
    """The same, of what is added to the delay."""
    do: Do | None = None
    then: str | None = None


@tagged("try")
@dataclass(frozen=True, slots=True, kw_only=True)
class Try(Task):
    do: Do = field(default_factory=lambda: Do(inline=True))
    catch: Catch = field(default_factory=lambda: Catch())


@tagged("extended")
@dataclass(frozen=True, slots=True, kw_only=True)
class Extended(Task):
    """A task with something before and after it, when the condition holds, that leaves its data alone.

    Unless what comes before ends with `exit`: then the task is left out, and what came before is its output.
    """

    task: AnyTask = field(default_factory=lambda: Do())
    when: Expression | None = None
    before: Do | None = None
    after: Do | None = None


@tagged("set")
@dataclass(frozen=True, slots=True, kw_only=True)
class Set(Task):
    value: Expression = field(default_factory=lambda: Template({}))


@tagged("wait")
@dataclass(frozen=True, slots=True, kw_only=True)
class Wait(Task):
    """Parks the branch for so long; nothing is held meanwhile."""

    duration: float | Expression = 0.0


@tagged("filter")
@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events count. Attributes compare literally (or by anchored pattern), `condition` sees the envelope.

    `correlate` maps a key to (from, expect): `from` is computed on the envelope; without `expect` the first value
    that comes is the one that later events must have.
    """

    attributes: Any = None
    condition: Expression | None = None
    correlate: tuple[tuple[str, Expression, Expression | None], ...] = ()


@tagged("listen")
@dataclass(frozen=True, slots=True, kw_only=True)
class Listen(Task):
    """Waits for events: one, any (until something), or all. Gives the list of what it consumed."""

    mode: Literal["one", "any", "all"] = "one"
    filters: tuple[EventFilter, ...] = ()
    until: Expression | None = None
    until_event: EventFilter | None = None
    read: Literal["data", "envelope", "raw"] = "data"
    each: str = "item"
    at: str = "index"
    do: Do | None = None


@tagged("emit")
@dataclass(frozen=True, slots=True, kw_only=True)
class Emit(Task):
    event: Expression = field(default_factory=lambda: Template({}))


@tagged("raise")
@dataclass(frozen=True, slots=True, kw_only=True)
class Raise(Task):
    error: Expression = field(default_factory=lambda: Template({}))


@tagged("run")
@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Task):
    """Another workflow, as a child instance; awaited or left to itself.

    `source`: the workflow is a document that is computed, not one that is registered under a name.
    """

    workflow: str = ""
    version: str | None = None
    input: Expression = field(default_factory=lambda: Jq("."))
    awaited: bool = True
    source: Expression | None = None


@tagged("compensation")
@dataclass(frozen=True, slots=True, kw_only=True)
class Compensation:
    """How a completed step is undone: by the handler of this type, retried and timed like a step."""

    type: str = ""
    parameters: Expression | None = None
    retry: RetryPolicy | None = None
    timeout_s: float | None = None


@tagged("step")
@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Task):
    """A task with effects: the executor of this type does it; its result is checkpointed.

    `once` runs it at most once; `isolate` gives it a message, and so a worker slot, of its own; `queue` names where it must run.
    """

    type: str = "noop"
    parameters: Expression | None = None
    retry: RetryPolicy | None = None
    timeout_s: float | None = None
    queue: str | None = None
    isolate: bool = False
    once: bool = False
    breaker: str | None = None
    """The circuit breaker of what it calls: while that is open, the step fails at once."""
    compensation: Compensation | None = None
    literal: Any = None
    """Handed to the executor as it is: conditions that it judges by itself, as messages come."""


@tagged("undo")
@dataclass(frozen=True, slots=True, kw_only=True)
class Undo(Task):
    """A completed step's way back. Only `plan/backward.py` makes these. A failing one is recorded, not raised."""

    origin: Position = field(default=Position(""))
    compensation: Compensation = field(default_factory=lambda: Compensation())
    step_type: str = ""
    input: Any = None
    parameters: Any = None
    output: Any = None
    checkpoint: Any = None


@tagged("node")
@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    task: AnyTask
    after: tuple[str, ...] = ()


@tagged("graph")
@dataclass(frozen=True, slots=True, kw_only=True)
class Graph(Task):
    """Named tasks with dependencies; each starts the moment its own are done. Gives all outputs, merged."""

    nodes: tuple[Node, ...] = ()


AnyTask = Do | Fork | For | Switch | Try | Set | Wait | Listen | Emit | Raise | Run | Step | Undo | Graph | Extended


@tagged("limits")
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many instances may run at once, of the workflow and per value of `key` (in start order); and how much one may use."""

    workflow: int | None = None
    key: Expression | None = None
    per_key: int | None = None
    memory_mb: float | None = None
    cpu_percent: float | None = None
    disk_mb: float | None = None


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """Where the parts of a definition stand in the text that it was read from."""

    source: Source = NOWHERE
    _places: dict[int, tuple[Any, str]] = field(default_factory=dict, repr=False)

    def at(self, part: T, place: str) -> T:
        """Note that a part of the tree stands at this JSON pointer. The part is held, so that its identity stays its own."""
        self._places.setdefault(id(part), (part, place))
        return part

    def place_of(self, part: Any) -> str | None:
        known = self._places.get(id(part))
        return None if known is None else known[1]


@tagged("definition")
@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    name: str
    version: str
    do: AnyTask
    namespace: str = "default"
    title: str = ""
    saga: bool = False
    compensate_on_cancel: bool = False
    retry: RetryPolicy | None = None
    priority: str | None = None
    step_events: bool = False
    limits: Limits | None = None
    dependencies: tuple[Any, ...] = ()
    dependency_timeout_s: float | None = None
    metadata: Any = None
    """Kept and returned; `labels` in it become labels of every instance."""
    document: Any = None
    """What the definition was read from, for expressions that look at it."""
    secrets: tuple[str, ...] = ()
    """The secrets its expressions and calls may use, by name."""
    constants: Any = None
    """What its expressions see as `$CONST`."""
    schedule: Any = None
    """When it starts by itself: every, cron, after, on."""
    trigger: AnyTask | None = None
    """The listener that `schedule.on` stands for."""
    written: Written | None = field(default=None, compare=False, repr=False, metadata=NOT_KEPT)
    """Where it was read from, for the lines of its faults."""

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


def children(task: AnyTask) -> Iterator[tuple[str, AnyTask]]:
    """The tasks inside a task, each with the part of the position that leads to it."""
    match task:
        case Do(tasks=tasks, key=key):
            yield from ((f"{key}/{i}/{t.name}", t) for i, t in enumerate(tasks))
        case Fork(branches=branches):
            yield from ((f"/fork/{i}/{t.name}", t) for i, t in enumerate(branches))
        case For(do=body):
            yield "/for", body
        case Try(do=body, catch=catch):
            yield "/try", body
            if catch.do:
                yield "/catch", catch.do
        case Listen(do=body) if body:
            yield "/foreach", body
        case Extended(task=inner, before=before, after=after):
            yield "/extended", inner
            if before:
                yield "/before", before
            if after:
                yield "/after", after
        case Graph(nodes=nodes):
            yield from ((f"/graph/{n.task.name}", n.task) for n in nodes)
        case _:
            return


def walk(task: AnyTask, place: str = "") -> Iterator[tuple[str, AnyTask]]:
    """Every task of the tree with its place in the definition."""
    yield place, task
    for segment, child in children(task):
        yield from walk(child, place + segment)


def find(root: AnyTask, position: str) -> AnyTask:
    """The task at a position; iterations and revisits in the position lead to the one task that is repeated."""
    task, parts = root, [part.split("#")[0] for part in position.split("/")[1:]]
    while parts:
        head = parts.pop(0)
        match task:
            case Do(tasks=tasks, inline=inline) if inline or head == "do":
                task = tasks[int(head if inline else parts.pop(0))]
                parts.pop(0)
            case Fork(branches=branches) if head == "fork":
                task = branches[int(parts.pop(0))]
                parts.pop(0)
            case For(do=body) if head == "for":
                parts.pop(0)
                task = body
            case Try(do=body) if head == "try":
                task = body
            case Try(catch=Catch(do=Do() as body)) if head == "catch":
                task = body
            case Listen(do=Do() as body) if head == "foreach":
                parts.pop(0)
                task = body
            case Extended(task=inner) if head == "extended":
                task = inner
            case Extended(before=Do() as body) if head == "before":
                task = body
            case Extended(after=Do() as body) if head == "after":
                task = body
            case Graph(nodes=nodes) if head == "graph":
                name = parts.pop(0)
                task = next(n.task for n in nodes if n.task.name == name)
            case _:
                raise KeyError(position)
    return task


def in_order(nodes: tuple[Node, ...]) -> list[Node]:
    """A graph's nodes with dependencies before what depends on them, else as they were written: round by round, those that may begin."""
    waiting_for = {node.task.name: len(set(node.after)) for node in nodes}
    followers: dict[str, list[str]] = {}
    for node in nodes:
        for name in set(node.after):
            followers.setdefault(name, []).append(node.task.name)
    round_of: dict[str, int] = {}
    ready = [name for name, count in waiting_for.items() if not count]
    number = 0
    while ready:
        round_of |= dict.fromkeys(ready, number)
        following: list[str] = []
        for name in ready:
            for follower in followers.get(name, ()):
                waiting_for[follower] -= 1
                if not waiting_for[follower]:
                    following.append(follower)
        ready, number = following, number + 1
    if len(round_of) < len(waiting_for):
        raise ValueError("the graph has a cycle")
    return sorted(nodes, key=lambda node: round_of[node.task.name])


def default_retry(definition: Definition) -> RetryPolicy:
    return definition.retry or RetryPolicy()
