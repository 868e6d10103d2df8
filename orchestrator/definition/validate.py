"""What is wrong with a definition, all of it: names, targets, references, cycles, expressions, unknown step types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any

from orchestrator.definition.expressions import Expression, Function, Jq, Template, check_jq, check_jq_together, sources
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.schemas import check_schema
from orchestrator.definition.tree import (
    CONTINUE,
    END,
    EXIT,
    AnyTask,
    Definition,
    Do,
    Emit,
    Extended,
    For,
    Fork,
    Graph,
    Listen,
    Node,
    Raise,
    Run,
    Set,
    Step,
    Switch,
    Try,
    Wait,
    children,
)
from orchestrator.definition.versions import BadVersion, parse_version
from orchestrator.errors import ExpressionError, Fault, Invalid

# Always in scope of an expression; loop and error variables come on top.
SCOPE = ("CONST", "SECRETS", "authorization", "context", "input", "output", "runtime", "secret", "secrets", "task", "workflow")
DIRECTIVES = (CONTINUE, EXIT, END)
LARGEST_TREE = 20_000


def check(definition: Definition, knows_type: Callable[[str], bool]) -> None:
    """Raises `Invalid` with every fault. `knows_type` says which step types there are."""
    found = list(faults(definition, knows_type))
    if found:
        raise Invalid(found, f"workflow '{definition.name}'")


def faults(definition: Definition, knows_type: Callable[[str], bool]) -> Iterator[Fault]:
    if not definition.name:
        yield Fault("type", "workflow type is required")
    elif not _is_name(definition.name):
        yield Fault("type", f"'{definition.name}' may not hold '/', '@', '#' or blanks")
    try:
        parse_version(definition.version)
    except BadVersion as error:
        yield Fault("version", str(error))
    if definition.priority is not None and str(definition.priority).lower() not in ("low", "normal", "high", "critical"):
        yield Fault("metadata.priority", f"is {definition.priority!r}; write low, normal, high or critical")
    if definition.limits:
        for name, number in (("workflow", definition.limits.workflow), ("per_key", definition.limits.per_key)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                yield Fault(f"limits.{name}", f"is {number!r}; write a number of at least 1")
    if isinstance(definition.do, Do) and not definition.do.tasks:
        yield Fault("do", "workflow must have at least one step")
    check_jq_together(_texts(definition.do, SCOPE))
    yield from _task(definition.do, "", SCOPE, knows_type)


def _texts(task: AnyTask, scope: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The jq of a tree, each with the names it may use there."""
    own = (*scope, *_bound(task))
    for held in (task.around, task):
        for field in fields(held):
            value = getattr(held, field.name)
            if isinstance(value, Jq):
                yield value.source, own
            elif isinstance(value, Template) and not value.loose:
                yield from ((source, own) for source in sources(value.value))
    for _, child in children(task):
        yield from _texts(child, own)


def _is_name(name: str) -> bool:
    return not any(character in name for character in "/@# \t\n")


def _task(task: AnyTask, place: str, scope: tuple[str, ...], knows_type: Callable[[str], bool]) -> Iterator[Fault]:
    if place and ("/" in task.name or "#" in task.name):
        yield Fault(place, f"name '{task.name}' may not hold '/' or '#'")
    yield from _around(task, place, scope)
    yield from _own(task, place, scope, knows_type)
    inner = scope + _bound(task)
    for segment, child in children(task):
        yield from _task(child, place + segment, inner, knows_type)


def _bound(task: AnyTask) -> tuple[str, ...]:
    match task:
        case For(each=each, at=at) | Listen(each=each, at=at):
            return (each, at)
        case Try(catch=catch):
            return (catch.name,)
    return ()


def _around(task: AnyTask, place: str, scope: tuple[str, ...]) -> Iterator[Fault]:
    around = task.around
    for name, expression in (
        ("if", around.condition),
        ("input", around.input_from),
        ("output", around.output_as),
        ("export", around.export_as),
    ):
        yield from _expression(expression, f"{place}.{name}", scope)
    for name, schema in (
        ("input.schema", around.input_schema),
        ("output.schema", around.output_schema),
        ("export.schema", around.export_schema),
    ):
        if schema is not None and (said := check_schema(schema)):
            yield Fault(f"{place}.{name}", f"is no JSON Schema: {said}")
    if isinstance(around.timeout_s, int | float) and around.timeout_s <= 0:
        yield Fault(f"{place}.timeout", "must be longer than nothing")


def _own(task: AnyTask, place: str, scope: tuple[str, ...], knows_type: Callable[[str], bool]) -> Iterator[Fault]:
    match task:
        case Do(tasks=tasks):
            yield from _names([t.name for t in tasks], place, "task")
            yield from _targets(tasks, place)
        case Fork(branches=branches):
            yield from _names([t.name for t in branches], place, "branch")
        case Graph(nodes=nodes):
            yield from _graph(nodes, place)
        case Step():
            if not knows_type(task.type):
                yield Fault(place, f"no executor found for step type: {task.type}")
            yield from _expression(task.parameters, f"{place}.parameters", scope)
            yield from _retry(task.retry, f"{place}.retry")
            if task.timeout_s is not None and task.timeout_s <= 0:
                yield Fault(f"{place}.timeout", "must be longer than nothing")
        case For(items=items, condition=condition, each=each, at=at):
            if items is None and condition is None:
                yield Fault(place, "a loop needs items or a condition")
            yield from _expression(items, f"{place}.for.in", scope)
            yield from _expression(condition, f"{place}.while", (*scope, each, at))
        case Switch(cases=cases):
            yield from _names([case.name for case in cases], place, "case")
            if sum(case.when is None for case in cases) > 1:
                yield Fault(place, "has more than one default case")
            for case in cases:
                yield from _expression(case.when, f"{place}.{case.name}.when", scope)
        case Try(catch=catch):
            for name, expression in (("when", catch.when), ("exceptWhen", catch.except_when), ("retry.when", catch.retry_when)):
                yield from _expression(expression, f"{place}.catch.{name}", (*scope, catch.name))
            yield from _retry(catch.retry, f"{place}.catch.retry")
        case Set(value=value):
            yield from _expression(value, f"{place}.set", scope)
        case Wait(duration=duration) if not isinstance(duration, int | float):
            yield from _expression(duration, f"{place}.wait", scope)
        case Emit(event=event):
            yield from _expression(event, f"{place}.emit", scope)
        case Raise(error=error):
            yield from _expression(error, f"{place}.raise", scope)
        case Extended(when=when):
            yield from _expression(when, f"{place}.when", scope)
        case Run(workflow=workflow, input=given, source=source):
            yield from _expression(source, f"{place}.run.source", scope)
            if not workflow and source is None:
                yield Fault(place, "names no workflow to run")
            yield from _expression(given, f"{place}.run.input", scope)
        case Listen(filters=filters, until=until):
            for number, candidate in enumerate(filters):
                yield from _expression(candidate.condition, f"{place}.listen[{number}]", scope)
            yield from _expression(until, f"{place}.listen.until", scope)


def _names(names: list[str], place: str, what: str) -> Iterator[Fault]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Fault(place, f"{'duplicate step ID' if what == 'step' else f'duplicate {what} name'}: '{name}'")
    for number, name in enumerate(names):
        if not name:
            yield Fault(f"{place}[{number}]", f"{what} has no name")


def _targets(tasks: tuple[AnyTask, ...], place: str) -> Iterator[Fault]:
    known = {task.name for task in tasks}
    for task in tasks:
        targets = [task.around.then] if task.around.then else []
        if isinstance(task, Switch):
            targets += [case.then for case in task.cases]
        if isinstance(task, Try) and task.catch.then:
            targets.append(task.catch.then)
        for target in targets:
            if target not in known and target not in DIRECTIVES:
                yield Fault(f"{place}/{task.name}", f"unreachable target '{target}': there is no such task in this list")


def _graph(nodes: tuple[Node, ...], place: str) -> Iterator[Fault]:
    names = [node.task.name for node in nodes]
    yield from _names(names, place, "step")
    for node in nodes:
        for name in node.after:
            if name not in names:
                yield Fault(f"{place}/{node.task.name}", f"unknown dependency '{name}'")
        if len(set(node.after)) < len(node.after):
            yield Fault(f"{place}/{node.task.name}", "names a dependency twice")
    for cycle in _cycles({node.task.name: [name for name in node.after if name in names] for node in nodes}):
        yield Fault(place, f"circular dependency: {' → '.join(cycle)}")


def _cycles(edges: dict[str, list[str]]) -> Iterator[list[str]]:
    """Each cycle once, as a way that ends where it began. Without recursion: a chain may be long."""
    colour: dict[str, int] = {}
    for start in edges:
        path: list[str] = []
        todo: list[tuple[str, bool]] = [(start, False)]
        while todo:
            name, leaving = todo.pop()
            if leaving:
                colour[name] = 2
                path.pop()
                continue
            if colour.get(name):
                continue
            colour[name] = 1
            path.append(name)
            todo.append((name, True))
            for other in edges[name]:
                if colour.get(other) == 1:
                    # Edges point at what comes before; people read from first to last.
                    yield [other, *reversed(path[path.index(other) :])]
                elif not colour.get(other):
                    todo.append((other, False))


def _retry(policy: RetryPolicy | None, place: str) -> Iterator[Fault]:
    if policy is None:
        return
    if policy.max_attempts < 1:
        yield Fault(place, "max_attempts must be at least 1")
    if policy.base_s < 0 or policy.cap_s < 0:
        yield Fault(place, "delays cannot be negative")


def _expression(expression: Expression | None, place: str, scope: tuple[str, ...]) -> Iterator[Fault]:
    texts: Iterable[Any] = ()
    if isinstance(expression, Jq):
        texts = (expression.source,)
    elif isinstance(expression, Template):
        texts = () if expression.loose else sources(expression.value)
    elif isinstance(expression, Function) and not expression.name:
        yield Fault(place, "names no function")
    for text in texts:
        try:
            check_jq(text, scope)
        except ExpressionError as error:
            yield Fault(place, str(error))
