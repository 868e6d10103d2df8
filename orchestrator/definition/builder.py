"""Workflows written in Python: `Workflow("order").start_with(validate).then(charge).parallel()…`.

What is written becomes the task tree, nothing else. Steps share data: what one returns is laid over what flows in.
Conditions and items are jq expressions (strings) or Python functions of the data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from orchestrator.definition.approval import approval
from orchestrator.definition.durations import seconds
from orchestrator.definition.expressions import FUNCTIONS, Bind, Expression, Function, Jq, Merge, Template
from orchestrator.definition.external import external
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import (
    AnyTask,
    Around,
    Compensation,
    Definition,
    Do,
    Emit,
    For,
    Fork,
    Graph,
    Limits,
    Node,
    Run,
    Set,
    Step,
    Wait,
)

Condition = str | Callable[[Any], Any]
BUILT: dict[tuple[str, str, str, str], Workflow] = {}
"""Every workflow that was written in this process, by its module, namespace, name and version."""


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


Doable = "str | StepLike | AnyTask | Callable[..., Any]"


def _step(
    what: Any,
    name: str | None,
    parameters: Any,
    *,
    retries: int | None = None,
    retry: RetryPolicy | None = None,
    timeout: Any = None,
    queue: str | None = None,
    isolate: bool = False,
    once: bool = False,
    breaker: str | None = None,
    compensation: Compensation | None = None,
    condition: Expression | None = None,
) -> AnyTask:
    if isinstance(what, AnyTask):
        return what
    if callable(what) and not hasattr(what, "compensation") and hasattr(what, "apply_async"):
        # A Celery task that exists already: called by its name, in the worker that walks.
        parameters = {"task": what.name, **({"kwargs": parameters} if parameters is not None else {})}
        what, name = "celery", name or str(what.name).rsplit(".", 1)[-1]
    if isinstance(what, str):
        known: Any = None
        type = what
    elif hasattr(what, "type"):
        known, type = what, what.type
    else:
        raise TypeError(f"{what!r} is no step: decorate the function with @step, or name a step type")
    own = RetryPolicy(max_attempts=retries + 1) if retries is not None else retry
    name = name or type.rsplit(".", 1)[-1]
    return Step(
        name=name,
        type=type,
        parameters=None if parameters is None else Template(parameters),
        retry=own or (known.retry if known else None),
        timeout_s=seconds(timeout) if timeout is not None else (known.timeout_s if known else None),
        queue=queue or (known.queue if known else None),
        isolate=isolate or bool(known and known.isolate),
        once=once or bool(known and known.once),
        breaker=breaker or (known.breaker if known else None),
        compensation=compensation or (known.compensation if known else None),
        around=Around(output_as=Merge(name), condition=condition),
    )


class Flow:
    """A sequence being written. Every verb gives the flow back, so that they can be chained."""

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self._tasks: list[AnyTask] = []
        self._names: dict[str, int] = {}

    # steps

    def start_with(self, what: Any, name: str | None = None, **options: Any) -> Flow:
        """The first step. The same as `then`; it reads better at the beginning."""
        return self.then(what, name, **options)

    def then(self, what: Any, name: str | None = None, *, parameters: Any = None, **options: Any) -> Flow:
        """A step: a function with @step, a step type's name, a Celery task, or a task of the tree.

        Options: parameters (may hold `${ jq }`), retries or retry, timeout, queue, isolate, once, breaker, compensation.
        """
        return self._add(_step(what, name, parameters, **options))

    def set(self, value: Any, name: str = "set") -> Flow:
        """Replace the data by a value, which may hold `${ jq }`."""
        return self._add(Set(name=name, value=self._value(value)))

    def wait(self, duration: Any, name: str = "wait") -> Flow:
        """Wait so long, without holding a worker."""
        return self._add(Wait(name=name, duration=seconds(duration)))

    def approval(self, name: str, *, timeout: Any = None) -> Flow:
        """Wait until somebody approves; a refusal fails the workflow."""
        return self._add(approval(name, None if timeout is None else seconds(timeout)))

    def external(self, name: str, type: str, *, input: Any = None, timeout: Any = None, config: Any = None) -> Flow:
        """A task that an executor outside does, told and answered by events; gives what it gave."""
        given = None if input is None else self._value(input)
        return self._add(external(name, type, given, None if timeout is None else seconds(timeout), config))

    def emit(self, type: str, data: Any = "${ . }", name: str | None = None) -> Flow:
        """Send an event to whoever listens."""
        return self._add(Emit(name=name or "emit", event=Template({"type": type, "data": data}), around=Around(output_as=Jq("$input"))))

    def run(self, workflow: str, *, version: str | None = None, input: Any = None, awaited: bool = True, name: str | None = None) -> Flow:
        """Run another workflow as a child."""
        given: Expression = Jq(".") if input is None else self._value(input)
        name = name or workflow.split("@")[0].rsplit(".", 1)[-1]
        around = Around(output_as=Merge(name))
        return self._add(Run(name=name, workflow=workflow, version=version, input=given, awaited=awaited, around=around))

    # structures

    def parallel(self, *, compete: bool = False, name: str = "parallel") -> Parallel:
        """Branches side by side: `.parallel().do(…).do(…).join_with(combine)`."""
        return Parallel(self, compete=compete, name=name)

    def if_(self, condition: Condition, name: str = "if") -> Body:
        """What follows in `.do(…)` runs only when the condition holds."""
        expression = self._expression(condition)
        return Body(self, lambda inner: Do(name=self._free(name), tasks=inner, around=Around(condition=expression)))

    def foreach(
        self,
        items: Condition,
        *,
        each: str = "item",
        at: str = "index",
        parallel: bool = False,
        gather: Literal["list", "input"] = "list",
        name: str = "foreach",
    ) -> Body:
        """What follows in `.do(…)` runs for each item, which is in the data under `each`.

        One after another, sharing data; or, with `parallel`, side by side, giving a list under the loop's name.
        """
        expression = self._expression(items)

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
                around=Around(output_as=output),
            )

        return Body(self, loop)

    def while_(self, condition: Condition, *, at: str = "index", name: str = "while") -> Body:
        """What follows in `.do(…)` runs as long as the condition holds, looked at before each round."""
        expression = self._expression(condition)
        return Body(self, lambda inner: For(name=self._free(name), condition=expression, at=at, do=Do(tasks=inner)))

    def graph(self, name: str = "graph") -> GraphFlow:
        """Named steps with dependencies, as one task of this sequence."""
        return GraphFlow(self, name)

    # inside

    def _add(self, task: AnyTask) -> Flow:
        name = self._free(task.name)
        self._tasks.append(task if task.name == name else _renamed(task, name))
        return self

    def _free(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}-{count}"

    def _inner(self, write: Callable[[Flow], Any], part: str) -> tuple[AnyTask, ...]:
        inner = Flow(f"{self._scope}/{part}")
        write(inner)
        return tuple(inner._tasks)

    def _expression(self, given: Condition) -> Expression:
        if isinstance(given, str):
            return Jq(given)
        if isinstance(given, list | tuple):
            return Template(list(given))
        name = f"{self._scope}/{getattr(given, '__name__', 'function').strip('<>')}-{len(self._tasks)}"
        FUNCTIONS[name] = given
        return Function(name)

    def _value(self, given: Any) -> Expression:
        return self._expression(given) if callable(given) else Template(given)


def _renamed(task: AnyTask, name: str) -> AnyTask:
    import dataclasses

    return dataclasses.replace(task, name=name)


class Body:
    """Waits for `.do(…)`, which writes what belongs inside."""

    def __init__(self, flow: Flow, make: Callable[[tuple[AnyTask, ...]], AnyTask]) -> None:
        self._flow = flow
        self._make = make

    def do(self, write: Callable[[Flow], Any] | Any) -> Flow:
        flow = self._flow
        inner = flow._inner(_writer(write), str(len(flow._tasks)))
        flow._tasks.append(self._make(inner))
        return flow


def _writer(write: Any) -> Callable[[Flow], Any]:
    """A function that writes into a flow, or simply a step."""
    if isinstance(write, str) or hasattr(write, "type") or isinstance(write, AnyTask) or hasattr(write, "apply_async"):
        return lambda inner: inner.then(write)
    return write  # type: ignore[no-any-return]


class Parallel:
    """Collects branches; ends with `join_with(step)`, or with any other verb of the flow after `join()`."""

    def __init__(self, flow: Flow, *, compete: bool, name: str) -> None:
        self._flow = flow
        self._compete = compete
        self._name = name
        self._branches: list[AnyTask] = []

    def do(self, write: Callable[[Flow], Any] | Any, name: str | None = None) -> Parallel:
        number = len(self._branches) + 1
        tasks = self._flow._inner(_writer(write), f"{len(self._flow._tasks)}.{number}")
        self._branches.append(Do(name=name or f"branch{number}", tasks=tasks))
        return self

    def join(self) -> Flow:
        gather: Literal["list", "merge"] = "list" if self._compete else "merge"
        own = self._flow._free(self._name)
        self._flow._tasks.append(Fork(name=own, branches=tuple(self._branches), compete=self._compete, gather=gather))
        return self._flow

    def join_with(self, what: Any, name: str | None = None, **options: Any) -> Flow:
        """The step that runs when all branches are done; it sees what all of them gave."""
        return self.join().then(what, name, **options)

    def then(self, what: Any, name: str | None = None, **options: Any) -> Flow:
        return self.join().then(what, name, **options)


class GraphFlow:
    """Named steps with `after=`; each starts the moment its own dependencies are done."""

    def __init__(self, flow: Flow, name: str) -> None:
        self._flow = flow
        self._name = name
        self._nodes: list[Node] = []

    def step(self, name: str, what: Any, *, after: str | Iterable[str] = (), parameters: Any = None, **options: Any) -> GraphFlow:
        names = (after,) if isinstance(after, str) else tuple(after)
        self._nodes.append(Node(task=_step(what, name, parameters, **options), after=names))
        return self

    def done(self) -> Flow:
        self._flow._tasks.append(Graph(name=self._flow._free(self._name), nodes=tuple(self._nodes)))
        return self._flow

    def then(self, what: Any, name: str | None = None, **options: Any) -> Flow:
        return self.done().then(what, name, **options)


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
        super().__init__(name)
        self.name = name
        self.version = str(version)
        frame = sys._getframe(1)
        self.module = frame.f_globals.get("__name__", "")
        self.file, self.line = frame.f_code.co_filename, frame.f_lineno
        self._schema = input.model_json_schema() if hasattr(input, "model_json_schema") else input
        self._output = None if output is None else self._expression(output)
        self._timeout_s = None if timeout is None else seconds(timeout)
        self._graph: Graph | None = None
        self._options: dict[str, Any] = {
            "namespace": namespace,
            "title": title,
            "saga": saga,
            "compensate_on_cancel": compensate_on_cancel,
            "retry": retry,
            "priority": priority,
            "limits": limits,
            "dependencies": tuple(dependencies),
            "dependency_timeout_s": None if dependency_timeout is None else seconds(dependency_timeout),
            "step_events": step_events,
            "metadata": {**(metadata or {}), **({"labels": labels} if labels else {})} or None,
        }
        self.namespace = namespace
        self._keep()

    def _keep(self) -> None:
        BUILT[self.module, self.namespace, self.name, self.version] = self

    def build(self) -> Definition:
        """The definition: the tree of what was written."""
        around = Around(input_schema=self._schema, output_as=self._output, timeout_s=self._timeout_s)
        return Definition(name=self.name, version=self.version, do=Do(tasks=tuple(self._tasks), around=around), **self._options)


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
