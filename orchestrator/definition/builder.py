"""Workflows written in Python: `Workflow("order").start_with(validate).then(charge).parallel()…`.

What is written becomes the task tree, nothing else. Steps share data: what one returns is laid over what flows in.
Conditions and items are jq expressions (strings) or Python functions of the data.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Annotated, Any, Generic, Literal, NamedTuple, Protocol, Self, TypedDict, TypeVar, Unpack

from pydantic import Field, field_validator

from orchestrator.definition.approval import approval
from orchestrator.definition.dependencies import Dependency
from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.definition.expressions import FUNCTIONS, Bind, Expression, Function, Jq, Merge, Template
from orchestrator.definition.external import external
from orchestrator.definition.parsing import JsonObject, Many, Model, Name, SomeSeconds, read_as, scalar_fault, shown
from orchestrator.definition.retry import MOST_ATTEMPTS, RetryPolicy
from orchestrator.definition.tree import (
    CONTINUE,
    END,
    EXIT,
    AnyTask,
    Around,
    Case,
    Catch,
    Compensation,
    Definition,
    Do,
    Emit,
    EventFilter,
    For,
    Fork,
    Graph,
    Limits,
    Listen,
    Node,
    Run,
    Set,
    Step,
    Switch,
    Try,
    Wait,
)
from orchestrator.definition.versions import Version
from orchestrator.errors import Fault, Invalid

Condition = str | Callable[[Any], Any]
Items = Condition | Sequence[Any]
BUILT: dict[tuple[str, str, str, str], Workflow] = {}
"""Every workflow that was written in this process, by its module, namespace, name and version."""


VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


class StepLike(Protocol):
    """What `@step` makes. Spelt out here so that the definition layer does not know the executors."""

    type: str
    retry: RetryPolicy | None
    timeout_s: float | None
    queue: str | None
    isolate: bool
    once: bool
    breaker: str | None
    compensation: Compensation | None


class CeleryTask(Protocol):
    """A Celery task that exists already."""

    name: str

    def apply_async(self, *args: Any, **kwargs: Any) -> Any: ...


Doable = str | StepLike | CeleryTask | AnyTask
"""What a step may be: a step type's name, a function with `@step`, a Celery task, or a task of the tree."""


class StepOptions(TypedDict, total=False):
    """How a step is run; what is not said is as its `@step` says."""

    retries: int | None
    retry: RetryPolicy | None
    timeout: Any
    queue: str | None
    isolate: bool
    once: bool
    breaker: str | None
    compensation: Compensation | None


class Options(Model):
    """The same, read: `@step` and every verb that takes a step go through it."""

    retries: Annotated[int, Field(ge=0, le=MOST_ATTEMPTS - 1)] | None = None
    retry: RetryPolicy | None = None
    timeout: SomeSeconds | None = None
    queue: Name | None = None
    isolate: bool = False
    once: bool = False
    breaker: Name | None = None
    compensation: Compensation | None = None

    @field_validator("compensation", mode="before")
    @classmethod
    def _is_no_step(cls, given: Any) -> Any:
        if callable(given) or isinstance(given, str):
            raise ValueError("Expected a Compensation. What undoes a step is a function of its own below it, with @<the step>.undo.")  # noqa: TRY004
        return given

    def policy(self) -> RetryPolicy | None:
        return RetryPolicy(max_attempts=self.retries + 1) if self.retries is not None else self.retry


NO_OPTIONS = Options()


def step_of(what: Any, name: str | None, parameters: Any, options: Options) -> AnyTask:
    """The task that a verb was given. Raises `TypeError` when it is none."""
    if isinstance(what, AnyTask):
        return what
    if callable(what) and not hasattr(what, "compensation") and hasattr(what, "apply_async"):
        # A Celery task that exists already: called by its name, in the worker that walks.
        parameters = {"task": what.name, **({"kwargs": parameters} if parameters is not None else {})}
        what, name = "celery", name or str(what.name).rsplit(".", 1)[-1]
    if isinstance(what, str) and what:
        known: Any = None
        type = what
    elif isinstance(getattr(what, "type", None), str):
        known, type = what, what.type
    else:
        raise TypeError(f"Expected a step (a function with @step, the name of a step type, a Celery task), got {shown(what)}.")
    name = name or type.rsplit(".", 1)[-1]
    return Step(
        name=name,
        type=type,
        parameters=None if parameters is None else Template(parameters),
        retry=options.policy() or (known.retry if known else None),
        timeout_s=options.timeout or (known.timeout_s if known else None),
        queue=options.queue or (known.queue if known else None),
        isolate=options.isolate or bool(known and known.isolate),
        once=options.once or bool(known and known.once),
        breaker=options.breaker or (known.breaker if known else None),
        compensation=options.compensation or (known.compensation if known else None),
        around=Around(output_as=Merge(name)),
    )


class Place(NamedTuple):
    """Where in an author's program something was written."""

    file: str
    line: int

    def fault(self, message: str, suggestion: str = "", pointer: str = "") -> Fault:
        return Fault(pointer, message, suggestion, self.file, self.line)


def here() -> Place:
    """The line of the program that called into this module."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno) if frame is not None else Place("", 0)


class Draft:
    """What a workflow's flows share while it is written: the faults so far, and what is still open."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        # What is open is kept, or what comes after it might get its number, and close it.
        self.open: dict[int, tuple[object, Place, str, str]] = {}

    def fault(self, message: str, suggestion: str = "", pointer: str = "") -> None:
        self.faults.append(here().fault(message, suggestion, pointer))

    def opened(self, what: object, said: str, remedy: str) -> None:
        """Something that adds nothing to the workflow until it is closed."""
        self.open[id(what)] = (what, here(), said, remedy)

    def closed(self, what: object) -> None:
        self.open.pop(id(what), None)

    def check(self, name: str) -> None:
        """Raises `Invalid` with everything that is wrong with what was written."""
        left = [place.fault(said, remedy) for _, place, said, remedy in self.open.values()]
        if self.faults or left:
            raise Invalid([*self.faults, *left], f"workflow {name!r}")


F = TypeVar("F", bound="Flow")
"""The flow that a verb was said to, and that it gives back: a `Workflow`, or what stands inside of one."""


class Flow:
    """A sequence being written. Every verb gives the flow back, so that they can be chained."""

    def __init__(self, scope: str, draft: Draft) -> None:
        self._scope = scope
        self._draft = draft
        self._tasks: list[AnyTask] = []
        self._names: dict[str, int] = {}
        self._if: tuple[Do, Expression] | None = None

    # steps

    def start_with(self, what: Doable, name: str | None = None, *, parameters: Any = None, **options: Unpack[StepOptions]) -> Self:
        """The first step. The same as `then`; it reads better at the beginning."""
        return self.then(what, name, parameters=parameters, **options)

    def then(self, what: Doable, name: str | None = None, *, parameters: Any = None, **options: Unpack[StepOptions]) -> Self:
        """A step: a function with @step, a step type's name, a Celery task, or a task of the tree.

        Options: parameters (may hold `${ jq }`), retries or retry, timeout, queue, isolate, once, breaker, compensation.
        """
        return self._add(self._step(what, name, parameters, options))

    def set(self, value: Any, name: str = "set") -> Self:
        """Replace the data by a value, which may hold `${ jq }`."""
        return self._add(Set(name=name, value=self._value(value)))

    def wait(self, duration: Any, name: str = "wait") -> Self:
        """Wait so long, without holding a worker."""
        return self._add(Wait(name=name, duration=self._seconds(duration) or 0.0))

    def approval(self, name: str, *, timeout: Any = None) -> Self:
        """Wait until somebody approves; a refusal fails the workflow."""
        return self._add(approval(self._text(name, "name"), self._seconds(timeout)))

    def external(self, name: str, type: str, *, input: Any = None, timeout: Any = None, config: Any = None) -> Self:
        """A task that an executor outside does, told and answered by events; gives what it gave."""
        given = None if input is None else self._value(input)
        return self._add(external(self._text(name, "name"), self._text(type, "type"), given, self._seconds(timeout), config))

    def wait_for(self, type: str, name: str | None = None, *, where: Condition | None = None, timeout: Any = None) -> Self:
        """Wait for a signal or an event of this type, without holding a worker; its data is in the data under `name`.

        `where` is a condition of the event: of `.data`, `.source` and so on. Without a `timeout` it waits for ever; with one, it fails with
        `timeout`.
        """
        type = self._text(type, "type")
        name = type.rsplit(".", 1)[-1] if name is None else self._text(name, "name")
        condition = None if where is None else self._expression(where)
        heard = Listen(
            name="heard", filters=(EventFilter(attributes={"type": type}, condition=condition),), around=Around(output_as=Jq(".[0]"))
        )
        kept = Set(name="kept", value=Template({name: "${ . }"}))
        return self._add(Do(name=name, tasks=(heard, kept), around=Around(timeout_s=self._seconds(timeout), output_as=Merge(name))))

    def emit(self, type: str, data: Any = "${ . }", name: str | None = None) -> Self:
        """Send an event to whoever listens."""
        return self._add(Emit(name=name or "emit", event=Template({"type": type, "data": data}), around=Around(output_as=Jq("$input"))))

    def run(self, workflow: str, *, version: str | None = None, input: Any = None, awaited: bool = True, name: str | None = None) -> Self:
        """Run another workflow as a child."""
        given: Expression = Jq(".") if input is None else self._value(input)
        workflow = self._text(workflow, "workflow")
        name = name or workflow.split("@")[0].rsplit(".", 1)[-1]
        around = Around(output_as=Merge(name))
        return self._add(Run(name=name, workflow=workflow, version=version, input=given, awaited=awaited, around=around))

    # structures

    def parallel(self, *, compete: bool = False, concurrency: int | None = None, name: str = "parallel") -> Parallel[Self]:
        """Branches side by side: `.parallel().do(…).do(…).join_with(combine)`; with `concurrency`, at most so many of them at once."""
        if compete and concurrency is not None:
            self._draft.fault("Branches that compete all begin at once: `concurrency` has no meaning there.")
        return Parallel(self, compete=compete, concurrency=self._concurrency(concurrency), name=name)

    def if_(self, condition: Condition, name: str = "if") -> Body[Self]:
        """What follows in `.do(…)` runs only when the condition holds; what follows in `.else_(…)` after it, only when it does not."""
        expression = self._expression(condition)

        def conditional(inner: tuple[AnyTask, ...]) -> AnyTask:
            made = Do(name=self._free(name), tasks=inner, around=Around(condition=expression))
            self._if = made, expression
            return made

        return Body(self, conditional)

    def else_(self, write: Writer) -> Self:
        """What runs when the condition of the `if_` right before does not hold."""
        before = self._if
        if before is None or not self._tasks or self._tasks[-1] is not before[0]:
            self._draft.fault("An else belongs to the condition right before it, and there is none.", "Write .if_(…).do(…).else_(…).")
            return self
        made, condition = before
        inner = self._inner(_writer(write), f"{len(self._tasks) - 1}.else")
        cases = (Case(name="holds", when=condition, then="then"), Case(name="otherwise", then="else"))
        ways = (Do(name="then", tasks=made.tasks, around=Around(then=EXIT)), Do(name="else", tasks=inner))
        self._tasks[-1] = Do(name=made.name, tasks=(Switch(name="which", cases=cases), *ways))
        return self

    def switch(self, name: str = "switch") -> Cases[Self]:
        """The first case whose condition holds: `.switch().case(condition, …).case(condition, …).default(…)`."""
        return Cases(self, name)

    def try_(self, write: Writer, *, retries: int | None = None, retry: RetryPolicy | None = None, name: str = "try") -> Guarded[Self]:
        """What fails in here is handled by `.catch(…)`; with `retries` or `retry`, after all of it was tried so often again."""
        options: dict[str, Any] = {"retries": retries, "retry": retry}
        read, faults = read_as(Options, options, from_code=True)
        for fault in faults:
            self._draft.fault(fault.message, fault.suggestion, fault.place)
        inner = self._inner(_writer(write), f"{len(self._tasks)}.try")
        return Guarded(self, inner, (read or NO_OPTIONS).policy(), name)

    def foreach(
        self,
        items: Items,
        *,
        each: str = "item",
        at: str = "index",
        parallel: bool = False,
        gather: Literal["list", "input"] = "list",
        concurrency: int | None = None,
        name: str = "foreach",
    ) -> Body[Self]:
        """What follows in `.do(…)` runs for each item, which is in the data under `each`.

        One after another, sharing data; or, with `parallel`, side by side, giving a list under the loop's name. With `concurrency`, at
        most so many items are in work at once, and the next begins when one of them is done.
        """
        if concurrency is not None and not parallel:
            self._draft.fault("A loop does one item after another: `concurrency` limits one that is parallel.", "Add parallel=True.")
        most = self._concurrency(concurrency)
        expression = self._expression(items)
        each, at = self._variable(each, "each"), self._variable(at, "at")

        def loop(inner: tuple[AnyTask, ...]) -> AnyTask:
            own = self._free(name)
            output: Expression | None = Jq(f"del(.{each}, .{at})")
            if parallel:
                output = Merge(own) if gather == "list" else None
            return For(
                name=own,
                items=expression,
                each=each,
                at=at,
                do=Do(tasks=inner, around=Around(input_from=Bind((each, at)))),
                parallel=parallel,
                gather=gather,
                concurrency=most,
                around=Around(output_as=output),
            )

        return Body(self, loop)

    def while_(self, condition: Condition, *, at: str = "index", name: str = "while") -> Body[Self]:
        """What follows in `.do(…)` runs as long as the condition holds, looked at before each round."""
        expression, at = self._expression(condition), self._variable(at, "at")
        return Body(self, lambda inner: For(name=self._free(name), condition=expression, at=at, do=Do(tasks=inner)))

    def graph(self, name: str = "graph") -> GraphFlow[Self]:
        """Named steps with dependencies, as one task of this sequence."""
        return GraphFlow(self, name)

    # inside

    def _add(self, task: AnyTask) -> Self:
        name = self._free(task.name)
        self._tasks.append(task if task.name == name else replace(task, name=name))
        return self

    def _free(self, name: str) -> str:
        name = self._text(name, "name")
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}-{count}"

    def _inner(self, write: Callable[[Flow], Any], part: str) -> tuple[AnyTask, ...]:
        inner = Flow(f"{self._scope}/{part}", self._draft)
        if not callable(write):
            self._draft.fault(f"Expected a step, or a function that writes into a flow, got {shown(write)}.")
            return (Step(name="unknown"),)
        write(inner)
        if not inner._tasks:
            self._draft.fault("Nothing was written here: no step, and so nothing to run.")
        return tuple(inner._tasks)

    def _step(self, what: Any, name: Any, parameters: Any, options: Mapping[str, Any]) -> AnyTask:
        """A step with its options, read; what is wrong with them is kept for the end."""
        read, faults = read_as(Options, dict(options), from_code=True) if options else (NO_OPTIONS, [])
        for fault in faults:
            self._draft.fault(fault.message, fault.suggestion, fault.place)
        try:
            return step_of(what, None if name is None else self._text(name, "name"), parameters, read or NO_OPTIONS)
        except TypeError as error:
            self._draft.fault(str(error))
            return Step(name="unknown")

    def _text(self, given: Any, what: str) -> str:
        if not isinstance(given, str) or not given:
            self._draft.fault(f"Expected text as the {what}, got {shown(given)}.")
            return "unknown"
        if wrong := scalar_fault(given):
            self._draft.fault(f"As the {what}: {wrong}")
            return "unknown"
        return given

    def _variable(self, given: Any, what: str) -> str:
        if not isinstance(given, str) or not VARIABLE.fullmatch(given):
            self._draft.fault(f"Expected a name of letters, digits and _ for `{what}`, got {shown(given)}.")
            return "unknown"
        return given

    def _concurrency(self, given: Any) -> int | None:
        if given is None or (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
            return given
        self._draft.fault(f"Expected a whole number of at least 1 for `concurrency`, got {shown(given)}.")
        return None

    def _seconds(self, given: Any) -> float | None:
        try:
            return None if given is None else seconds(given)
        except BadDuration as error:
            self._draft.fault(str(error))
            return None

    def _expression(self, given: Items) -> Expression:
        if isinstance(given, str):
            return Jq(given)
        if isinstance(given, list | tuple):
            return Template(list(given))
        if not callable(given):
            self._draft.fault(f"Expected a jq expression or a function, got {shown(given)}.")
            return Template(None)
        name = f"{self._scope}/{getattr(given, '__name__', 'function').strip('<>')}-{len(self._tasks)}"
        FUNCTIONS[name] = given
        return Function(name)

    def _value(self, given: Any) -> Expression:
        return self._expression(given) if callable(given) else Template(given)


class Body(Generic[F]):
    """Waits for `.do(…)`, which writes what belongs inside."""

    def __init__(self, flow: F, make: Callable[[tuple[AnyTask, ...]], AnyTask]) -> None:
        self._flow = flow
        self._make = make
        flow._draft.opened(self, "A condition or loop without a body adds nothing to the workflow.", "Write .do(…) after it.")

    def do(self, write: Writer) -> F:
        flow = self._flow
        flow._draft.closed(self)
        inner = flow._inner(_writer(write), str(len(flow._tasks)))
        flow._tasks.append(self._make(inner))
        return flow


Writer = Callable[["Flow"], Any] | Doable
"""What stands in a body or a branch: a function that writes into a flow, or simply a step."""


def _writer(write: Any) -> Callable[[Flow], Any]:
    """A function that writes into a flow, or simply a step."""
    if isinstance(write, str) or hasattr(write, "type") or isinstance(write, AnyTask) or hasattr(write, "apply_async"):
        return lambda inner: inner.then(write)
    return write  # type: ignore[no-any-return]


class Cases(Generic[F]):
    """Collects the cases of a switch; ends with `default(…)`, or with `done()` or `then(step)` where nothing runs if none holds."""

    def __init__(self, flow: F, name: str) -> None:
        self._flow = flow
        self._name = name
        self._cases: list[Case] = []
        self._ways: list[Do] = []
        flow._draft.opened(
            self, "A switch that is not done adds nothing to the workflow.", "End it with .default(…), .done() or .then(step)."
        )

    def case(self, condition: Condition, write: Writer, name: str | None = None) -> Cases[F]:
        """What runs when this is the first condition that holds."""
        own = self._own(f"case{len(self._cases) + 1}" if name is None else self._flow._text(name, "name of a case"))
        self._cases.append(Case(name=own, when=self._flow._expression(condition), then=own))
        self._way(own, write)
        return self

    def default(self, write: Writer) -> F:
        """What runs when none of the conditions holds."""
        self._cases.append(Case(name="default", then="default"))
        self._way("default", write)
        return self._ended()

    def done(self) -> F:
        self._cases.append(Case(name="default", then=EXIT))
        return self._ended()

    def then(self, what: Doable, name: str | None = None, *, parameters: Any = None, **options: Unpack[StepOptions]) -> F:
        return self.done().then(what, name, parameters=parameters, **options)

    def _way(self, name: str, write: Writer) -> None:
        place = f"{len(self._flow._tasks)}.{len(self._cases)}"
        self._ways.append(Do(name=name, tasks=self._flow._inner(_writer(write), place), around=Around(then=EXIT)))

    def _own(self, name: str) -> str:
        if name in TARGETS or any(name == case.name for case in self._cases):
            self._flow._draft.fault(f"The name {shown(name)} of a case is taken.", "Give each case a name of its own.")
            return f"case{len(self._cases) + 1}"
        return name

    def _ended(self) -> F:
        flow = self._flow
        flow._draft.closed(self)
        if len(self._cases) == 1:
            flow._draft.fault("A switch needs at least one case.", "Write .case(condition, step) before its end.")
        flow._tasks.append(Do(name=flow._free(self._name), tasks=(Switch(name="which", cases=tuple(self._cases)), *self._ways)))
        return flow


TARGETS = ("which", "default", CONTINUE, END, EXIT)
"""Names that a case cannot have: where a switch can lead besides."""


class Guarded(Generic[F]):
    """Waits for `.catch(…)`, which says what happens when a try fails."""

    def __init__(self, flow: F, tasks: tuple[AnyTask, ...], retry: RetryPolicy | None, name: str) -> None:
        self._flow = flow
        self._tasks = tasks
        self._retry = retry
        self._name = name
        flow._draft.opened(self, "A try without a catch adds nothing to the workflow.", "Write .catch(…) after it.")

    def catch(self, write: Writer, *, on: str | Iterable[str] = (), error: str = "error") -> F:
        """What runs when the try failed, with the data that the try was given, and the error in it under `error`.

        `on`: the codes or names of the errors that are caught, such as `timeout` or `ConnectionError`; all of them when it says none.
        Other errors fail the workflow as if there were no try.
        """
        flow = self._flow
        flow._draft.closed(self)
        error = flow._variable(error, "error")
        inner = flow._inner(_writer(write), f"{len(flow._tasks)}.catch")
        without = Jq(f'if type == "object" then del(.{error}) else . end')
        handled = Do(tasks=inner, around=Around(input_from=Bind((error,)), output_as=without))
        caught = Catch(name=error, when=self._caught(on, error), retry=self._retry, do=handled)
        flow._tasks.append(Try(name=flow._free(self._name), do=Do(tasks=self._tasks, inline=True), catch=caught))
        return flow

    def _caught(self, on: Any, error: str) -> Expression | None:
        if not isinstance(on, str) and not isinstance(on, Iterable):
            self._flow._draft.fault(f"Expected codes or names of errors as `on`, got {shown(on)}.")
            return None
        names = [on] if isinstance(on, str) else list(on)
        if isinstance(on, str) or names:
            texts = [json.dumps(self._flow._text(name, "code of an error")) for name in names]
            return Jq(f"[${error}.code, ${error}.title] | any(IN({', '.join(texts)}))")
        return None


class Parallel(Generic[F]):
    """Collects branches; ends with `join_with(step)`, or with any other verb of the flow after `join()`."""

    def __init__(self, flow: F, *, compete: bool, concurrency: int | None, name: str) -> None:
        self._flow = flow
        self._compete = compete
        self._concurrency = concurrency
        self._name = name
        self._branches: list[AnyTask] = []
        flow._draft.opened(
            self,
            "Parallel branches that are not joined add nothing to the workflow.",
            "End them with .join(), .join_with(step) or .then(step).",
        )

    def do(self, write: Writer, name: str | None = None) -> Parallel[F]:
        number = len(self._branches) + 1
        tasks = self._flow._inner(_writer(write), f"{len(self._flow._tasks)}.{number}")
        own = f"branch{number}" if name is None else self._flow._text(name, "name of a branch")
        self._branches.append(Do(name=own, tasks=tasks))
        return self

    def join(self) -> F:
        gather: Literal["list", "merge"] = "list" if self._compete else "merge"
        self._flow._draft.closed(self)
        if not self._branches:
            self._flow._draft.fault("A parallel needs at least one branch.", "Write .do(step) before its end.")
        own = self._flow._free(self._name)
        made = Fork(name=own, branches=tuple(self._branches), compete=self._compete, gather=gather, concurrency=self._concurrency)
        self._flow._tasks.append(made)
        return self._flow

    def join_with(self, what: Doable, name: str | None = None, *, parameters: Any = None, **options: Unpack[StepOptions]) -> F:
        """The step that runs when all branches are done; it sees what all of them gave."""
        return self.join().then(what, name, parameters=parameters, **options)

    def then(self, what: Doable, name: str | None = None, *, parameters: Any = None, **options: Unpack[StepOptions]) -> F:
        return self.join().then(what, name, parameters=parameters, **options)


class GraphFlow(Generic[F]):
    """Named steps with `after=`; each starts the moment its own dependencies are done."""

    def __init__(self, flow: F, name: str) -> None:
        self._flow = flow
        self._name = name
        self._nodes: list[Node] = []
        flow._draft.opened(self, "A graph that is not done adds nothing to the workflow.", "End it with .done() or .then(step).")

    def step(
        self, name: str, what: Doable, *, after: str | Iterable[str] = (), parameters: Any = None, **options: Unpack[StepOptions]
    ) -> GraphFlow[F]:
        if not isinstance(after, Iterable):
            self._flow._draft.fault(f"Expected names of steps as `after`, got {shown(after)}.")
            after = ()
        names = (after,) if isinstance(after, str) else tuple(self._flow._text(one, "name of a step") for one in after)
        self._nodes.append(Node(task=self._flow._step(what, name, parameters, options), after=names))
        return self

    def done(self) -> F:
        self._flow._draft.closed(self)
        if not self._nodes:
            self._flow._draft.fault("A graph needs at least one step.", 'Write .step("name", step) before its end.')
        self._flow._tasks.append(Graph(name=self._flow._free(self._name), nodes=tuple(self._nodes)))
        return self._flow

    def then(self, what: Doable, name: str | None = None, *, parameters: Any = None, **options: Unpack[StepOptions]) -> F:
        return self.done().then(what, name, parameters=parameters, **options)


class About(Model):
    """What `Workflow(…)` takes beside its steps."""

    name: Name
    version: Version = "1"
    namespace: Name = "default"
    title: str = ""
    saga: bool = False
    compensate_on_cancel: bool = False
    retry: RetryPolicy | None = None
    timeout: SomeSeconds | None = None
    priority: Literal["low", "normal", "high", "critical"] | None = None
    limits: Limits | None = None
    dependencies: Annotated[tuple[str | Dependency, ...], Many] = ()
    dependency_timeout: SomeSeconds | None = None
    step_events: bool = False
    metadata: JsonObject | None = None
    labels: JsonObject | None = None


class Workflow(Flow):
    """A workflow in Python. It is found when its module is in ORCHESTRATOR_WORKFLOWS.

    `input` is a pydantic model or a JSON Schema; `limits` says how many may run at once; `saga` undoes completed steps
    when one fails for good.
    """

    def __init__(
        self,
        name: str,
        version: str | int = "1",
        *,
        namespace: str = "default",
        title: str = "",
        saga: bool = False,
        compensate_on_cancel: bool = False,
        retry: RetryPolicy | None = None,
        timeout: Any = None,
        priority: str | None = None,
        limits: Limits | None = None,
        dependencies: Iterable[Any] = (),
        dependency_timeout: Any = None,
        input: Any = None,
        output: Condition | None = None,
        step_events: bool = False,
        metadata: dict[str, Any] | None = None,
        labels: dict[str, Any] | None = None,
    ) -> None:
        draft = Draft()
        super().__init__(str(name), draft)
        frame = sys._getframe(1)
        self.module = frame.f_globals.get("__name__", "")
        self.file, self.line = frame.f_code.co_filename, frame.f_lineno
        given = {
            "name": name, "version": version, "namespace": namespace, "title": title, "saga": saga, "compensate_on_cancel": compensate_on_cancel,
            "retry": retry, "timeout": timeout, "priority": priority, "limits": limits, "dependencies": dependencies,
            "dependency_timeout": dependency_timeout, "step_events": step_events, "metadata": metadata, "labels": labels,
        }  # fmt: skip
        about, faults = read_as(About, given, from_code=True)
        for fault in faults:
            draft.fault(fault.message, fault.suggestion, fault.place)
        self._about = about or About(name="unknown")
        self.name, self.version, self.namespace = str(name), self._about.version if about else str(version), str(namespace)
        self._schema = self._schema_of(input)
        self._output = None if output is None else self._expression(output)
        self._keep()

    def _schema_of(self, given: Any) -> Any:
        if hasattr(given, "model_json_schema"):
            return given.model_json_schema()
        if given is not None and not isinstance(given, dict | bool):
            self._draft.fault(f"Expected a pydantic model or a JSON Schema, got {shown(given)}.", pointer="/input")
            return None
        return given

    def _keep(self) -> None:
        BUILT[self.module, self.namespace, self.name, self.version] = self

    def build(self) -> Definition:
        """The definition: the tree of what was written. Raises `Invalid` with everything that is wrong with it."""
        self._draft.check(self.name)
        about = self._about
        return Definition(
            name=about.name,
            version=about.version,
            namespace=about.namespace,
            title=about.title,
            do=Do(tasks=tuple(self._tasks), around=Around(input_schema=self._schema, output_as=self._output, timeout_s=about.timeout)),
            saga=about.saga,
            compensate_on_cancel=about.compensate_on_cancel,
            retry=about.retry,
            priority=about.priority,
            step_events=about.step_events,
            limits=about.limits,
            dependencies=tuple(one if isinstance(one, str) else one.to_json() for one in about.dependencies),
            dependency_timeout_s=about.dependency_timeout,
            metadata={**(about.metadata or {}), **({"labels": about.labels} if about.labels else {})} or None,
        )


class WorkflowBase:
    """A workflow as a class: `id`, `version`, and `build(builder)` that writes it."""

    id: str
    version: int | str = 1
    options: dict[str, Any] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if getattr(cls, "id", None):
            workflow = Workflow(cls.id, cls.version, **cls.options)
            del BUILT[workflow.module, workflow.namespace, workflow.name, workflow.version]
            workflow.module = cls.__module__
            frame = sys._getframe(1)
            workflow.file, workflow.line = frame.f_code.co_filename, frame.f_lineno
            workflow._keep()
            cls().build(workflow)

    def build(self, builder: Flow) -> Any:
        raise TypeError(f"{type(self).__name__} needs a build(self, builder) method")
