"""What is wrong with a definition, all of it: names, targets, references, cycles, expressions, unknown step types.

A fault's place is the JSON pointer of what was read; of a definition that was built in Python, the position in its tree.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields

from orchestrator.definition.expressions import Expression, Function, Jq, Template, check_jq, check_jq_together, placed, sources
from orchestrator.definition.parameters import StepTypes, faults_in
from orchestrator.definition.parsing import NOWHERE, escaped, json_faults, printable, shown, suggestion_for
from orchestrator.definition.retry import MOST_ATTEMPTS, UNLIMITED, RetryPolicy
from orchestrator.definition.schemas import check_schema
from orchestrator.definition.tree import (
    CONTINUE,
    END,
    EXIT,
    AnyTask,
    Compensation,
    Definition,
    Do,
    Emit,
    EventFilter,
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
    Written,
    children,
)
from orchestrator.definition.versions import BadVersion, parse_version
from orchestrator.errors import ExpressionError, Fault, Invalid

# Always in scope of an expression; loop and error variables come on top.
SCOPE = (
    "CONST", "SECRET", "SECRETS", "WORKFLOW", "authorization", "context", "input", "output", "runtime", "secret", "secrets", "task",
    "workflow",
)  # fmt: skip
DIRECTIVES = (CONTINUE, EXIT, END)
LARGEST_TREE = 50_000
DEEPEST_TREE = 70
LONGEST_NAME = 200
LONGEST_TASK_NAME = 300
# Positions of what branches, and types that are listened for, are kept in indexes, whose entries have about 2,700 bytes.
LONGEST_POSITION_BYTES = 1500
LONGEST_TYPE_BYTES = 1000
MOST_FAULTS = 200
MOST_CYCLES = 20


def check(definition: Definition, types: StepTypes) -> None:
    """Raises `Invalid` with every fault, each with its line if the definition was read from a text."""
    found = list(itertools.islice(faults(definition, types), MOST_FAULTS))
    if found:
        source = definition.written.source if definition.written else None
        raise Invalid([source.located(fault) if source else fault for fault in found], f"workflow '{definition.name}'")


def faults(definition: Definition, types: StepTypes) -> Iterator[Fault]:
    if not definition.name:
        yield Fault("/type", "A workflow needs a type.")
    elif not _is_name(definition.name):
        yield Fault("/type", f"The name {shown(definition.name)} holds a character that is not allowed: '/', '@', '#' and blanks are not.")
    for field, name in (("type", definition.name), ("namespace", definition.namespace)):
        if len(name) > LONGEST_NAME:
            yield Fault(f"/{field}", f"Expected a name of at most {LONGEST_NAME} characters, got {len(name):,}.")
    try:
        parse_version(definition.version)
    except BadVersion as error:
        yield Fault("/version", str(error))
    if definition.priority is not None and str(definition.priority).lower() not in ("low", "normal", "high", "critical"):
        yield Fault(
            "/metadata/priority", f"Expected one of the priorities, got {shown(definition.priority)}: write low, normal, high or critical."
        )
    if definition.limits:
        for name, number in (("workflow", definition.limits.workflow), ("per_key", definition.limits.per_key)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                yield Fault(f"/limits/{name}", f"Expected a whole number of at least 1, got {shown(number)}.")
    if isinstance(definition.do, Do) and not definition.do.tasks:
        yield Fault("/do", "A workflow needs at least one step.")
    roots = [definition.do, *([definition.trigger] if definition.trigger is not None else [])]
    too_large = next((fault for root in roots for fault in _size(root)), None)
    if too_large is not None:
        yield too_large
        return
    check_jq_together(text for root in roots for text in _texts(root, SCOPE))
    reader = _Check(types, definition.written or Written())
    if definition.limits:
        yield from reader.expression(definition.limits.key, "/limits/key", SCOPE)
    for root in roots:
        yield from reader.task(root, "", SCOPE)


def _size(root: AnyTask) -> Iterator[Fault]:
    """Without recursion: what is too deep for that is just what is to be found."""
    todo: list[tuple[AnyTask, int]] = [(root, 0)]
    count = 0
    while todo:
        task, depth = todo.pop()
        count += 1
        if count > LARGEST_TREE:
            yield Fault("", f"This workflow has more than {LARGEST_TREE:,} tasks.", "Split it into several that run one another.")
            return
        if depth > 3 * DEEPEST_TREE:
            yield Fault("", f"The tasks of this workflow are nested more than {DEEPEST_TREE} levels deep.")
            return
        todo += [(child, depth + 1) for _, child in children(task)]


_JQ_FIELDS: dict[type, tuple[str, ...]] = {}


def _texts(task: AnyTask, scope: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The jq of a tree, each with the names it may use there."""
    own = (*scope, *_bound(task))
    for held in (task.around, task):
        names = _JQ_FIELDS.get(type(held))
        if names is None:
            names = _JQ_FIELDS[type(held)] = tuple(field.name for field in fields(held))
        for name in names:
            value = getattr(held, name)
            if isinstance(value, Jq):
                yield value.source, own
            elif isinstance(value, Template) and not value.loose:
                yield from ((source, own) for source in sources(value.value))
    for _, child in children(task):
        yield from _texts(child, own)


def _is_name(name: str) -> bool:
    return not any(character in name for character in "/@# \t\n")


def _bound(task: AnyTask) -> tuple[str, ...]:
    match task:
        case For(each=each, at=at) | Listen(each=each, at=at):
            return (each, at)
        case Try(catch=catch):
            return (catch.name,)
    return ()


class _Check:
    def __init__(self, types: StepTypes, written: Written) -> None:
        self.types = types
        self.written = written

    def task(self, task: AnyTask, place: str, scope: tuple[str, ...], length: int = 0) -> Iterator[Fault]:
        """`length`: how many bytes its position has."""
        place = self.written.place_of(task) or place
        if len(task.name) > LONGEST_TASK_NAME:
            yield Fault(place, f"Expected a name of at most {LONGEST_TASK_NAME} characters, got {len(task.name):,}.")
        is_branching = isinstance(task, Fork | Graph) or (isinstance(task, For) and task.parallel)
        if is_branching and length > LONGEST_POSITION_BYTES:
            yield Fault(
                place,
                f"The names of the tasks around this one have {length:,} bytes; around branches at most {LONGEST_POSITION_BYTES:,} are kept.",
            )
        if place and ("/" in task.name or "#" in task.name):
            yield Fault(place, f"The name {shown(task.name)} holds a character that is not allowed: '/' and '#' are not.")
        yield from self._around(task, place, scope)
        yield from self._own(task, place, scope)
        inner = scope + _bound(task)
        for segment, child in children(task):
            yield from self.task(child, place + segment, inner, length + len(segment.encode(errors="replace")))

    def _around(self, task: AnyTask, place: str, scope: tuple[str, ...]) -> Iterator[Fault]:
        around = task.around
        for name, expression in (
            ("if", around.condition),
            ("input/from", around.input_from),
            ("output/as", around.output_as),
            ("export/as", around.export_as),
            ("timeout", around.timeout_s),
        ):
            yield from self.expression(expression, f"{place}/{name}", scope)
        for name, schema in (("input", around.input_schema), ("output", around.output_schema), ("export", around.export_schema)):
            if schema is not None and (said := check_schema(schema)):
                yield Fault(f"{place}/{name}/schema", f"This is not a JSON Schema: {said}.")
        if isinstance(around.timeout_s, int | float) and around.timeout_s <= 0:
            yield Fault(f"{place}/timeout", "A timeout must be greater than zero.")

    def _own(self, task: AnyTask, place: str, scope: tuple[str, ...]) -> Iterator[Fault]:
        match task:
            case Do(tasks=tasks):
                yield from self._names([t.name for t in tasks], place, "task")
                yield from self._targets(tasks, place)
            case Fork(branches=branches):
                yield from self._names([t.name for t in branches], place, "branch")
            case Graph(nodes=nodes):
                yield from self._graph(nodes, place)
            case Step():
                yield from self._step(task, place, scope)
            case For(items=items, condition=condition, each=each, at=at):
                if items is None and condition is None:
                    yield Fault(place, "A loop needs items or a condition.")
                yield from self.expression(items, f"{place}/for/in", scope)
                yield from self.expression(condition, f"{place}/while", (*scope, each, at))
            case Switch(cases=cases):
                yield from self._names([case.name for case in cases], place, "case")
                if sum(case.when is None for case in cases) > 1:
                    yield Fault(place, "This switch has more than one default case: only one may have no condition.")
                for case in cases:
                    yield from self.expression(case.when, f"{place}/switch/{escaped(case.name)}/when", scope)
            case Try(catch=catch):
                names = (*scope, catch.name)
                jitter = catch.retry_jitter or (None, None)
                for name, expression in (
                    ("when", catch.when),
                    ("exceptWhen", catch.except_when),
                    ("retry/when", catch.retry_when),
                    ("retry/exceptWhen", catch.retry_except_when),
                    ("retry/delay", catch.retry_delay),
                    ("retry/limit/duration", catch.retry_limit_s),
                    ("retry/jitter/from", jitter[0]),
                    ("retry/jitter/to", jitter[1]),
                ):
                    yield from self.expression(expression, f"{place}/catch/{name}", names)
                yield from self._retry(catch.retry, f"{place}/catch/retry", UNLIMITED)
            case Set(value=value):
                yield from self.expression(value, f"{place}/set", scope)
            case Wait(duration=duration):
                yield from self.expression(duration, f"{place}/wait", scope)
            case Emit(event=event):
                yield from self.expression(event, f"{place}/emit/event/with", scope)
            case Raise(error=error):
                yield from self.expression(error, f"{place}/raise/error", scope)
            case Extended(when=when):
                yield from self.expression(when, f"{place}/when", scope)
            case Run(workflow=workflow, input=given, source=source):
                yield from self.expression(source, f"{place}/run/source", scope)
                if not workflow and source is None:
                    yield Fault(place, "This names no workflow to run.")
                yield from self.expression(given, f"{place}/run/input", scope)
            case Listen(filters=filters, until=until, until_event=until_event):
                for number, candidate in enumerate(filters):
                    yield from self._filter(candidate, f"{place}/listen/{number}", scope)
                if until_event is not None:
                    yield from self._filter(until_event, f"{place}/listen/until", scope)
                yield from self.expression(until, f"{place}/listen/until", scope)

    def _step(self, task: Step, place: str, scope: tuple[str, ...]) -> Iterator[Fault]:
        if not self.types.knows(task.type):
            yield Fault(
                place, f"no executor found for step type: {printable(task.type)}", suggestion_for(task.type, self.types, listed=False)
            )
        elif (model := self.types.parameters_of(task.type)) is not None:
            yield from faults_in(model, task.parameters, self.written.place_of(task.parameters) or f"{place}/parameters")
        if task.breaker is not None and "@" in task.breaker:
            yield Fault(f"{place}/breaker", f"The name of a breaker holds no '@', got {shown(task.breaker)}.")
        yield from self._done(task, place, scope)
        undo = task.compensation
        if undo is not None:
            if not self.types.has_handler(undo.type):
                yield Fault(f"{place}/compensation", f"no compensation found for type: {printable(undo.type)}")
            yield from self._done(undo, f"{place}/compensation", scope)

    def _done(self, one: Step | Compensation, place: str, scope: tuple[str, ...]) -> Iterator[Fault]:
        yield from self.expression(one.parameters, f"{place}/parameters", scope)
        yield from self._retry(one.retry, f"{place}/retry")
        if one.timeout_s is not None and one.timeout_s <= 0:
            yield Fault(f"{place}/timeout", "A timeout must be greater than zero.")

    def _filter(self, candidate: EventFilter, place: str, scope: tuple[str, ...]) -> Iterator[Fault]:
        kind = (candidate.attributes or {}).get("type")
        if isinstance(kind, str) and len(kind.encode(errors="replace")) > LONGEST_TYPE_BYTES:
            yield Fault(f"{place}/with/type", f"Expected the type of an event, at most {LONGEST_TYPE_BYTES:,} bytes.")
        yield from self.expression(candidate.condition, place, scope)
        yield from self.expression(Template(candidate.attributes), f"{place}/with", scope)
        for name, source, expected in candidate.correlate:
            yield from self.expression(source, f"{place}/correlate/{escaped(str(name))}/from", scope)
            yield from self.expression(expected, f"{place}/correlate/{escaped(str(name))}/expect", scope)

    def _names(self, names: list[str], place: str, what: str) -> Iterator[Fault]:
        for name, count in Counter(names).items():
            if count > 1:
                yield Fault(place, f"{'duplicate step ID' if what == 'step' else f'duplicate {what} name'}: '{printable(name)}'")
        for number, name in enumerate(names):
            if not name:
                yield Fault(f"{place}/{number}", f"This {what} has no name.")

    def _targets(self, tasks: tuple[AnyTask, ...], place: str) -> Iterator[Fault]:
        known = {task.name for task in tasks}
        for task in tasks:
            targets = [task.around.then] if task.around.then else []
            if isinstance(task, Switch):
                targets += [case.then for case in task.cases]
            if isinstance(task, Try) and task.catch.then:
                targets.append(task.catch.then)
            for target in targets:
                if target not in known and target not in DIRECTIVES:
                    here = self.written.place_of(task) or f"{place}/{task.name}"
                    near = suggestion_for(target, [*known, *DIRECTIVES], listed=False)
                    yield Fault(here, f"unreachable target '{printable(target)}': there is no such task in this list.", near)

    def _graph(self, nodes: tuple[Node, ...], place: str) -> Iterator[Fault]:
        names = [node.task.name for node in nodes]
        known = set(names)
        yield from self._names(names, place, "step")
        for node in nodes:
            here = self.written.place_of(node.task) or f"{place}/{node.task.name}"
            for name in node.after:
                if name not in known:
                    yield Fault(here, f"unknown dependency '{printable(name)}'", suggestion_for(name, known, listed=False))
            if len(set(node.after)) < len(node.after):
                yield Fault(here, "This names a dependency twice.")
        edges = {node.task.name: [name for name in node.after if name in known] for node in nodes}
        for cycle in itertools.islice(_cycles(edges), MOST_CYCLES):
            told = cycle if len(cycle) <= 20 else [*cycle[:10], "…", *cycle[-9:]]
            yield Fault(place, f"circular dependency: {' → '.join(told)}")

    def _retry(self, policy: RetryPolicy | None, place: str, most_attempts: int = MOST_ATTEMPTS) -> Iterator[Fault]:
        if policy is not None:
            for field, said in policy.faults(most_attempts):
                yield Fault(f"{place}/{field}", said)

    def expression(self, expression: Expression | float | None, place: str, scope: tuple[str, ...]) -> Iterator[Fault]:
        if expression is None or isinstance(expression, int | float):
            return
        place = self.written.place_of(expression) or place
        texts: Iterable[tuple[str, str]] = ()
        if isinstance(expression, Jq):
            texts = (("", expression.source),)
        elif isinstance(expression, Template):
            if self.written.source is NOWHERE and (wrong := [*json_faults(expression.value, place)]):
                yield from wrong  # what was written in a document was read as JSON
                return
            texts = () if expression.loose else placed(expression.value)
        elif isinstance(expression, Function) and not expression.name:
            yield Fault(place, "This names no function.")
        for inner, text in texts:
            try:
                check_jq(text, scope)
            except ExpressionError as error:
                yield Fault(f"{place}{inner}", str(error))


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
