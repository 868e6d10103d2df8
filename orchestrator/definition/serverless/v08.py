"""DSL 0.8: states become tasks. State data flows from state to state; what is chosen on the way (an event's case, the error
that a state ended with, the states that were completed and may be compensated) stands in the context.

What cannot be honoured is refused by its name. Decisions: docs/reference/serverless-workflow/decisions.md.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

from orchestrator.definition import cron, paths, programs
from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.definition.expressions import Expression, Jq, Template, embedded
from orchestrator.definition.parsing import NOWHERE, Source, json_faults, printable, shown, suggestion_for
from orchestrator.definition.retry import NO_RETRY, UNLIMITED, RetryPolicy
from orchestrator.definition.serverless.growth import Growth, TooLarge
from orchestrator.definition.serverless.schema08 import faults
from orchestrator.definition.tree import (
    END,
    EXIT,
    PLAIN,
    AnyTask,
    Around,
    Case,
    Catch,
    Definition,
    Do,
    Emit,
    EventFilter,
    For,
    Fork,
    Listen,
    Raise,
    Run,
    Set,
    Step,
    Switch,
    Try,
    Wait,
    Written,
)
from orchestrator.errors import Fault, Invalid
from orchestrator.ids import escaped

_FUNCTION = re.compile(r"fn:([A-Za-z_][\w-]*)")
FOREVER_S = 100 * 365 * 86400.0
SHORTEST_EVERY_S = 0.1
MOST_FAULTS = 200
DEEPEST_FUNCTIONS = 20
ERRORS = "https://open-workflow-specification.org/spec/1.0.0/errors"
Tail = tuple[tuple[AnyTask, ...], str]
"""What is done on leaving a state, and where the flow goes then."""


def read(document: dict[str, Any], source: Source = NOWHERE) -> Definition:
    """The definition; `Invalid` with every fault, each with its pointer, line and column."""
    # A text was looked at when it was read.
    found = list(itertools.islice(json_faults(document), MOST_FAULTS)) if source.text is None else []
    found = found or list(itertools.islice(faults(document), MOST_FAULTS))
    definition = None
    if not found:
        reader = Reader(document, source)
        definition = reader.definition()
        found = reader.faults
    if found:
        raise Invalid([source.located(fault) for fault in found], "Serverless Workflow 0.8 document")
    assert definition is not None
    return definition


def _named(items: Any) -> dict[str, Any]:
    return {item["name"]: item for item in items if isinstance(item, dict) and "name" in item} if isinstance(items, list) else {}


class Reader:
    def __init__(self, document: dict[str, Any], source: Source = NOWHERE) -> None:
        self.document = document
        self.faults: list[Fault] = []
        self.written = Written(source)
        self._growth = Growth()
        self._inside: list[str] = []
        self._sources: dict[str, str] = {}
        self.functions = _named(document.get("functions"))
        self.events = _named(document.get("events"))
        self.retries = _named(document.get("retries"))
        self.errors = _named(document.get("errors"))
        self.auth = _named(document.get("auth") if isinstance(document.get("auth"), list) else [document.get("auth")])
        self.states = {state["name"]: state for state in document["states"]}
        timeouts = document.get("timeouts")
        self.timeouts: dict[str, Any] = timeouts if isinstance(timeouts, dict) else {}
        self.place = ""
        self.helpers: list[AnyTask] = []

    def fault(self, message: str, place: str | None = None, suggestion: str = "") -> None:
        fault = Fault(self.place if place is None else place, message, suggestion)
        if fault not in self.faults[-10:]:
            self.faults.append(fault)

    # ── the whole ───────────────────────────────────────────────────────────────────────────────────────────────────

    def definition(self) -> Definition | None:
        try:
            return self._definition()
        except TooLarge as error:
            self.faults = [error.fault]
            return None

    def _definition(self) -> Definition:
        document = self.document
        name = document.get("id") or document.get("key")
        if not isinstance(name, str) or not name:
            self.fault("A workflow needs an `id` or a `key`.", "/id")
            name = "workflow"
        language = document.get("expressionLang", "jq")
        if language not in ("jq", ""):
            self.fault(f"Expressions in {shown(language)} are not evaluated here.", "/expressionLang", "Write jq.")
        names: set[str] = set()
        for number, state in enumerate(document["states"]):
            if state["name"] in names:
                self.fault(f"The state name {shown(state['name'])} is used twice: duplicate state name.", f"/states/{number}/name")
            names.add(state["name"])
        start = document.get("start")
        first = start.get("stateName") if isinstance(start, dict) else start
        first = first or document["states"][0]["name"]
        if first not in self.states:
            self.fault(f"There is no state {shown(first)} to start with.", "/start", self._near(first))
            first = document["states"][0]["name"]
        tasks: dict[str, AnyTask] = {}
        for number, state in enumerate(document["states"]):
            self.place = f"/states/{number}"
            tasks[state["name"]] = self.written.at(self._state(state), self.place)
        ordered = [tasks[first], *(task for name, task in tasks.items() if name != first), *self.helpers]
        if document.get("keepActive"):
            ordered.append(Wait(name="(kept active)", duration=FOREVER_S, around=Around(then=END)))
        return Definition(
            name=name,
            version=str(document.get("version") or "1"),
            title=document.get("name") or document.get("description") or "",
            do=self._root(tuple(ordered)),
            retry=NO_RETRY,
            document=document,
            constants=document.get("constants") if isinstance(document.get("constants"), dict) else None,
            secrets=tuple(document.get("secrets") or ()) if isinstance(document.get("secrets"), list) else (),
            schedule=self._schedule(start.get("schedule")) if isinstance(start, dict) else None,
            metadata=document.get("metadata"),
            written=self.written,
        )

    def _near(self, state: Any) -> str:
        return suggestion_for(str(state), self.states, listed=False)

    def _root(self, states: tuple[AnyTask, ...]) -> AnyTask:
        self.place = "/timeouts"
        limit = self.timeouts.get("workflowExecTimeout")
        held = limit if isinstance(limit, dict) else {"duration": limit}
        timeout_s = self._seconds(held.get("duration"))
        schema = self.document.get("dataInputSchema")
        inline = schema.get("schema") if isinstance(schema, dict) else schema
        input_schema = inline if isinstance(inline, dict) else {"$resource": {"endpoint": inline}} if isinstance(inline, str) else None
        if isinstance(schema, dict) and schema.get("failOnValidationErrors") is False:
            input_schema = None
        around = Around(input_from=Jq("if . == null then {} else . end"), input_schema=input_schema)
        before = held.get("runBefore")
        if timeout_s is None or before is None:
            return Do(
                tasks=states,
                around=around
                if timeout_s is None
                else Around(input_from=around.input_from, input_schema=input_schema, timeout_s=timeout_s),
            )
        if before not in self.states:
            self.fault(
                f"There is no state {shown(before)} to run before the end.", "/timeouts/workflowExecTimeout/runBefore", self._near(before)
            )
            return Do(tasks=states, around=around)
        last = next(task for task in states if task.name == escaped(before))
        main = Do(name="main", tasks=states, inline=True, around=Around(timeout_s=timeout_s))
        caught = Catch(errors={"status": 408, "instance": "/do/0/main/try"}, do=Do(tasks=(last,)))
        return Do(tasks=(Try(name="main", do=main, catch=caught),), around=around)

    def _schedule(self, given: Any) -> Any:
        if given is None:
            return None
        held = given if isinstance(given, dict) else {"interval": given}
        zone = held.get("timezone")
        place = "/start/schedule"
        if "cron" in held:
            written = held["cron"]["expression"] if isinstance(held["cron"], dict) else held["cron"]
            try:
                return {"cron": cron.check(cron.of_quartz(str(written))), "timezone": zone}
            except cron.BadCron as error:
                self.fault(str(error), f"{place}/cron")
                return None
        interval = str(held.get("interval", ""))
        found = re.search(r"P[^/]*$", interval) or re.search(r"/(P[^/]+)", interval)
        every = None if found is None else found.group(0).lstrip("/")
        try:
            if every is None or seconds(every) < SHORTEST_EVERY_S:
                self.fault(f"{shown(interval)} is not an interval of at least {SHORTEST_EVERY_S:g} seconds: write R/PT2H.", place)
        except BadDuration as error:
            self.fault(str(error), place)
        return {"every": every, "timezone": zone}

    # ── states ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _state(self, state: dict[str, Any]) -> AnyTask:
        with self._growth.inside(self.place):
            return self._state_of(state)

    def _state_of(self, state: dict[str, Any]) -> AnyTask:
        name, kind = state["name"], state["type"]
        data_filter = state.get("stateDataFilter") or {}
        build: Callable[[dict[str, Any]], tuple[tuple[AnyTask, ...], Tail]] = getattr(self, f"_{kind}")
        body, (leaving, target) = build(state)
        compensates = state.get("usedForCompensation")
        if compensates:
            target, leaving = EXIT, ()
        around = Around(
            input_from=self._maybe(data_filter.get("input")),
            output_as=self._maybe(data_filter.get("output")),
            timeout_s=self._seconds((state.get("timeouts") or {}).get("stateExecTimeout") or self.timeouts.get("stateExecTimeout")),
        )
        inner: AnyTask = Do(name="state", tasks=body, around=around)
        if state.get("compensatedBy"):
            self._check_compensation(state)
            done = Jq(f"($context // {{}}) | .completed = ((.completed // []) + [{json.dumps(name)}])")
            inner = Do(name="state", tasks=(inner,), around=Around(export_as=done))
        tasks: tuple[AnyTask, ...] = (inner, *leaving)
        if not state.get("onErrors"):
            return Do(name=escaped(name), tasks=tasks, around=Around(then=target))
        return self._with_errors(state, tasks, target)

    def _with_errors(self, state: dict[str, Any], tasks: tuple[AnyTask, ...], target: str) -> AnyTask:
        """The state as a try: a known error is kept in the context, and a switch beside it knows where each one leads."""
        name = state["name"]
        conditions: list[str] = []
        cases: list[Case] = []
        for number, held in enumerate(state["onErrors"]):
            references = held.get("errorRefs") or [held.get("errorRef")]
            condition = " or ".join(f"({self._is_error(str(reference))})" for reference in references)
            conditions.append(condition)
            cases.append(
                Case(
                    name=str(number), when=Jq(f"$context.error | {condition}"), then=self._tail_as_target(held, f"{name}/onErrors/{number}")
                )
            )
        keep = Set(name="error", value=Jq("."), around=Around(export_as=Jq("($context // {}) + {error: $error}")))
        routing = f"{escaped(name)}~1onErrors"
        catch = Catch(when=Jq(f"$error | {' or '.join(f'({c})' for c in conditions)}"), do=Do(tasks=(keep,)), then=routing)
        self.helpers.append(Switch(name=routing, cases=tuple(cases), around=Around(then=END)))
        return Try(name=escaped(name), do=Do(tasks=tasks, inline=True), catch=catch, around=Around(then=target))

    def _is_error(self, reference: str) -> str:
        """An error is known by its code (an HTTP status, or our word for it) or by its name."""
        code = str((self.errors.get(reference) or {}).get("code", reference))
        words = [f"(.status | tostring) == {json.dumps(code)}", f".code == {json.dumps(code)}", f".type == {json.dumps(code)}"]
        return " or ".join([*words, f".title == {json.dumps(reference)}"])

    def _operation(self, state: dict[str, Any]) -> tuple[tuple[AnyTask, ...], Tail]:
        limit = (state.get("timeouts") or {}).get("actionExecTimeout") or self.timeouts.get("actionExecTimeout")
        return self._actions(state.get("actions") or [], state.get("actionMode"), limit), self._tail(state)

    def _actions(self, given: list[dict[str, Any]], mode: Any, limit: Any = None) -> tuple[AnyTask, ...]:
        actions = [self._action(action, number, limit) for number, action in enumerate(given)]
        if mode != "parallel" or len(actions) < 2:
            return tuple(actions)
        together = Jq("reduce .[] as $each ($input; _merged(.; $each))")
        return (Fork(name="actions", branches=tuple(actions), around=Around(output_as=together)),)

    def _switch(self, state: dict[str, Any]) -> tuple[tuple[AnyTask, ...], Tail]:
        name = state["name"]
        default = self._default_of(state)
        routing = f"{escaped(name)}~1switch"
        cases: list[Case] = []
        if "dataConditions" in state:
            for number, held in enumerate(state["dataConditions"]):
                then = self._tail_as_target(held, f"{name}/{number}")
                cases.append(Case(name=str(number), when=self._expression(held["condition"]), then=then))
            self.helpers.append(Switch(name=routing, cases=(*cases, Case(name="default", then=default))))
            return (), ((), routing)
        conditions = state["eventConditions"]
        heard = self._first_event([([held["eventRef"]], held.get("eventDataFilter")) for held in conditions], self._event_timeout(state))
        for number, held in enumerate(conditions):
            then = self._tail_as_target(held, f"{name}/{number}")
            cases.append(Case(name=str(number), when=Jq(f"$context.event == {number}"), then=then))
        self.helpers.append(Switch(name=routing, cases=(*cases, Case(name="default", then=default))))
        return (heard,), ((), routing)

    def _default_of(self, state: dict[str, Any]) -> str:
        """Where a switch leads when nothing else holds. One that does not say so faults then."""
        name = state["name"]
        if state.get("defaultCondition"):
            return self._tail_as_target(state["defaultCondition"], f"{name}/default")
        helper = escaped(f"{name}/default")
        detail = f"no condition of the switch {shown(name)} holds, and it has no defaultCondition"
        error = {"type": f"{ERRORS}/configuration", "status": 400, "title": "No condition holds", "detail": detail}
        self.helpers.append(Raise(name=helper, error=Template(error)))
        return helper

    def _event(self, state: dict[str, Any]) -> tuple[tuple[AnyTask, ...], Tail]:
        groups = state["onEvents"]
        timeout_s = self._event_timeout(state)
        if state.get("exclusive", True):
            heard = self._first_event([(held["eventRefs"], held.get("eventDataFilter")) for held in groups], timeout_s)
            cases = tuple(Case(name=str(n), when=Jq(f"$context.event == {n}"), then=f"on {n}") for n in range(len(groups)))
            acts = tuple(
                Do(name=f"on {n}", tasks=self._actions(held.get("actions") or [], held.get("actionMode")), around=Around(then=EXIT))
                for n, held in enumerate(groups)
            )
            return (heard, Switch(name="which", cases=(*cases, Case(name="none", then=EXIT))), *acts), self._tail(state)
        branches = []
        for number, held in enumerate(groups):
            filters = tuple(self._filter(reference) for reference in held["eventRefs"])
            listen = Listen(name="events", mode="all", filters=filters, read="envelope")
            taken = self._taken(held["eventRefs"][0], held.get("eventDataFilter"), "reduce .[] as $event (%s; %s)")
            heard = Do(name="heard", tasks=(listen,), around=Around(output_as=taken))
            branches.append(Do(name=f"on {number}", tasks=(heard, *self._actions(held.get("actions") or [], held.get("actionMode")))))
        fork = Fork(name="events", branches=tuple(branches), around=Around(output_as=Jq("reduce .[] as $each ($input; _merged(.; $each))")))
        return self._patiently(fork, timeout_s), self._tail(state)

    def _first_event(self, groups: list[tuple[list[str], Any]], timeout_s: float | None) -> AnyTask:
        """Wait for the first of these; its number stands in the context, its data in the state's."""
        branches: list[AnyTask] = []
        for number, (references, event_filter) in enumerate(groups):
            filters = tuple(self._filter(reference) for reference in references)
            listen = Listen(name="event", mode="any", filters=filters, read="envelope")
            taken = self._taken(references[0], event_filter, ".[0] as $event | %s | %s")
            which = Jq(f"($context // {{}}) + {{event: {number}}}")
            branches.append(Do(name=f"event {number}", tasks=(listen,), around=Around(output_as=taken, export_as=which)))
        if timeout_s is not None:
            nothing = Around(export_as=Jq("($context // {}) + {event: null}"))
            branches.append(Do(name="timeout", tasks=(Wait(name="wait", duration=timeout_s),), around=nothing))
        return Fork(name="events", compete=True, branches=tuple(branches))

    def _patiently(self, task: AnyTask, timeout_s: float | None) -> tuple[AnyTask, ...]:
        """With an event timeout, what is not heard in time is gone without."""
        if timeout_s is None:
            return (task,)
        body = Do(tasks=(task,), inline=True, around=Around(timeout_s=timeout_s))
        return (Try(name="patience", do=body, catch=Catch(errors={"status": 408})),)

    def _taken(self, reference: str, event_filter: Any, form: str) -> Expression:
        """The state's data with what an event brings: its payload, or a part of it, at a place or all over."""
        held = event_filter or {}
        if held.get("useData") is False:
            return Jq("$input")
        payload = "$event" if (self.events.get(reference) or {}).get("dataOnly") is False else "$event.data"
        data = f"({payload})" if not held.get("data") else f"({payload} | ({self._source(held['data'])}))"
        place = self._place(held.get("toStateData"))
        brought = (
            f'(if ({data} | type) == "object" then {data} else {{}} end)'
            if place is None
            else f"(null | setpath({json.dumps(place)}; {data}))"
        )
        under = "$input" if form.startswith(".[0]") else "."
        return Jq(
            form % (("$input", f"_merged({under}; {brought})") if form.startswith("reduce") else ("$input", f"_merged($input; {brought})"))
        )

    def _callback(self, state: dict[str, Any]) -> tuple[tuple[AnyTask, ...], Tail]:
        limit = (state.get("timeouts") or {}).get("actionExecTimeout") or self.timeouts.get("actionExecTimeout")
        action = self._action(state["action"], 0, limit)
        heard = self._first_event([([state["eventRef"]], state.get("eventDataFilter"))], self._event_timeout(state))
        return (action, heard), self._tail(state)

    def _parallel(self, state: dict[str, Any]) -> tuple[tuple[AnyTask, ...], Tail]:
        branches = []
        for branch in state.get("branches") or []:
            limit = (branch.get("timeouts") or {}).get("branchExecTimeout") or (state.get("timeouts") or {}).get("branchExecTimeout")
            limit = limit or self.timeouts.get("branchExecTimeout")
            around = Around(timeout_s=self._seconds(limit))
            actions = self._actions(branch.get("actions") or [], "sequential", (branch.get("timeouts") or {}).get("actionExecTimeout"))
            branches.append(Do(name=escaped(branch["name"]), tasks=actions, around=around))
        least = self._number_completed(state, len(branches))
        compete = least == 1
        at_least = least if least is not None and 1 < least < len(branches) else None
        merged = Jq("_merged($input; .)" if compete else "reduce .[] as $each ($input; _merged(.; $each))")
        fork = Fork(name="branches", branches=tuple(branches), compete=compete, at_least=at_least, around=Around(output_as=merged))
        return (fork,), self._tail(state)

    def _number_completed(self, state: dict[str, Any], branches: int) -> int | None:
        """How many branches must have ended; None: all of them."""
        if state.get("completionType", "allOf") != "atLeast":
            return None
        given = state.get("numCompleted", 0)
        number = int(given) if str(given).isascii() and str(given).isdigit() and len(str(given)) < 10 else 0
        if not 1 <= number <= branches:
            place = f"{self.place}/numCompleted"
            self.fault(f"Expected a whole number from 1 to {branches}, the number of branches, got {shown(given)}.", place)
            return None
        return number

    def _inject(self, state: dict[str, Any]) -> tuple[tuple[AnyTask, ...], Tail]:
        return (Set(name="inject", value=Jq(f"_merged(.; {json.dumps(state.get('data') or {})})")),), self._tail(state)

    def _sleep(self, state: dict[str, Any]) -> tuple[tuple[AnyTask, ...], Tail]:
        return (Wait(name="sleep", duration=self._seconds(state["duration"]) or 0.0),), self._tail(state)

    def _foreach(self, state: dict[str, Any]) -> tuple[tuple[AnyTask, ...], Tail]:
        source = self._source(state["inputCollection"])
        parameter = str(state.get("iterationParam") or "item")
        parameter = self._source(parameter).lstrip(".") if "{" in parameter else parameter.lstrip(".")
        limit = (state.get("timeouts") or {}).get("actionExecTimeout") or self.timeouts.get("actionExecTimeout")
        actions = self._actions(state.get("actions") or [], "sequential", limit)
        place = self._place(state.get("outputCollection"))
        parallel = state.get("mode", "parallel") == "parallel"
        # Each round works on a copy of the state's data with its item in it; its results are what it changed there.
        given = f".state + {{{json.dumps(parameter)}: $item}}"
        changed = f"_changed({json.dumps(parameter)}; $input)"
        if parallel:
            body = Do(tasks=actions, around=Around(input_from=Jq(given), output_as=Jq(changed)))
        else:
            body = Do(
                tasks=actions,
                around=Around(input_from=Jq(given), output_as=Jq(f"$task.input + {{results: ($task.input.results + [{changed}])}}")),
            )
        results = "." if parallel else ".results"
        kept = "$task.input"
        if place is not None:
            kept = f"({results}) as $r | $task.input | setpath({json.dumps(place)}; ((getpath({json.dumps(place)}) // []) + $r))"
        loop = For(
            name="foreach",
            items=Jq(f'.state | ({source}) | if type == "array" then . else error("inputCollection is no array") end'),
            do=body,
            parallel=parallel,
            concurrency=self._batch_size(state.get("batchSize")) if parallel else None,
            around=Around(input_from=Jq("{state: ., results: []}"), output_as=Jq(kept)),
        )
        return (loop,), self._tail(state)

    def _batch_size(self, given: Any) -> int | None:
        """How many iterations run at the same time; 0 and nothing are no limit."""
        if given is None or given == 0:
            return None
        try:
            number = int(given) if isinstance(given, str) else given
        except ValueError:
            number = 0
        if number != int(number) or number < 1:
            self.fault(f"Expected a whole number of iterations that run at the same time, got {shown(given)}.", f"{self.place}/batchSize")
            return None
        return int(number)

    # ── leaving a state ─────────────────────────────────────────────────────────────────────────────────────────────

    def _tail(self, held: dict[str, Any]) -> Tail:
        """What a transition or an end asks for, in its order: compensate, produce events, go on as another workflow."""
        transition, end = held.get("transition"), held.get("end")
        said = end if isinstance(end, dict) else transition if isinstance(transition, dict) else {}
        tasks: list[AnyTask] = []
        if said.get("compensate"):
            tasks.append(self._compensation())
        for number, produced in enumerate(said.get("produceEvents") or []):
            tasks.append(self._produced(produced, f"produce {number}"))
        if "continueAs" in said:
            on = said["continueAs"]
            form = on if isinstance(on, dict) else {"workflowId": on}
            data = form.get("data")
            given = Jq(".") if data is None else self._maybe(data) if isinstance(data, str) else Template(self._filled(data))
            tasks.append(
                Run(name="continueAs", workflow=form["workflowId"], version=form.get("version"), input=given or Jq("."), awaited=False)
            )
        if transition is not None and not end:
            target = transition["nextState"] if isinstance(transition, dict) else transition
            if target not in self.states:
                self.fault(f"There is no state {shown(target)} to go to.", suggestion=self._near(target))
            return tuple(tasks), escaped(target)
        kept = self.document.get("keepActive") and not said.get("terminate") and "continueAs" not in said
        return tuple(tasks), "(kept active)" if kept else END

    def _tail_as_target(self, held: dict[str, Any], name: str) -> str:
        """Where a case leads: straight there, or by way of what is to be done on leaving."""
        tasks, target = self._tail(held)
        if not tasks:
            return target
        helper = escaped(name)
        self.helpers.append(Do(name=helper, tasks=tasks, around=Around(then=target)))
        return helper

    def _produced(self, produced: dict[str, Any], name: str) -> AnyTask:
        reference = produced["eventRef"]
        declared = self.events.get(reference) or {"type": reference}
        data = produced.get("data")
        given = None if data is None else self._filled(data)
        event = {
            "type": declared.get("type") or reference,
            **({"source": declared["source"]} if declared.get("source") else {}),
            "data": "${ . }" if given is None else given,
            **(produced.get("contextAttributes") or {}),
        }
        return Emit(name=name, event=Template(event), around=Around(output_as=Jq("$input")))

    def _compensation(self) -> AnyTask:
        """The way back: what was completed and can be compensated, last first, with the data as it is."""
        cases, acts = [], []
        for name, state in self.states.items():
            if not state.get("compensatedBy"):
                continue
            cases.append(Case(name=escaped(name), when=Jq(f"$state == {json.dumps(name)}"), then=f"undo {escaped(name)}"))
            chain = tuple(self._compensating(state["compensatedBy"], []))
            acts.append(Do(name=f"undo {escaped(name)}", tasks=chain, around=Around(then=EXIT)))
        which = Switch(name="which", cases=(*cases, Case(name="none", then=EXIT)))
        return For(
            name="compensate",
            items=Jq("($context.completed // []) | reverse"),
            each="state",
            do=Do(tasks=(which, *acts)),
            around=Around(export_as=Jq("($context // {}) + {completed: []}")),
        )

    def _compensating(self, name: str, before: list[str]) -> list[AnyTask]:
        state = self.states.get(name)
        if state is None or name in before:
            return []
        held = self.place
        task = self._state({**state, "onErrors": None, "transition": None, "end": True, "name": name})
        self.place = held
        following = state.get("transition")
        target = following["nextState"] if isinstance(following, dict) else following
        plain = Do(name=task.name, tasks=task.tasks if isinstance(task, Do) else (task,))
        return [plain, *(self._compensating(target, [*before, name]) if target else [])]

    def _check_compensation(self, state: dict[str, Any]) -> None:
        wanted = state["compensatedBy"]
        other = self.states.get(wanted)
        place = f"{self.place}/compensatedBy"
        if other is None:
            self.fault(f"There is no state {shown(wanted)} to compensate this one.", place, self._near(wanted))
        elif not other.get("usedForCompensation"):
            self.fault(f"The state {shown(wanted)} compensates this one and must say usedForCompensation.", place)
        elif other["type"] == "event":
            self.fault(f"The state {shown(wanted)} compensates this one and may not be an event state.", place)

    # ── actions ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _action(self, action: dict[str, Any], number: int, limit: Any) -> AnyTask:
        with self._growth.inside(self.place):
            return self._action_of(action, number, limit)

    def _action_of(self, action: dict[str, Any], number: int, limit: Any) -> AnyTask:
        name = escaped(str(action.get("name") or f"action {number}"))
        call = self._call(action)
        is_async = any(
            isinstance(action.get(k), dict) and action[k].get("invoke") == "async" for k in ("functionRef", "eventRef", "subFlowRef")
        )
        call = self._retried(call, action)
        sleep = action.get("sleep") or {}
        tasks: list[AnyTask] = []
        if sleep.get("before"):
            tasks.append(Wait(name="before", duration=self._seconds(sleep["before"]) or 0.0))
        tasks.append(call)
        if sleep.get("after"):
            tasks.append(Wait(name="after", duration=self._seconds(sleep["after"]) or 0.0))
        around = Around(
            condition=self._maybe(action.get("condition")),
            output_as=Jq("$input") if is_async else self._merged(action.get("actionDataFilter") or {}),
            timeout_s=self._seconds(limit),
        )
        body: AnyTask = Do(name=name, tasks=tuple(tasks), around=around)
        if not is_async:
            return body
        # Nobody waits for it, and what becomes of it fails nobody.
        return Try(name=name, do=Do(tasks=(body,), inline=True), catch=Catch())

    def _merged(self, data_filter: dict[str, Any]) -> Expression:
        if data_filter.get("useResults") is False:
            return Jq("$input")
        results = self._source(data_filter["results"]) if data_filter.get("results") else "."
        place = self._place(data_filter.get("toStateData"))
        if place is not None:
            return Jq(f"({results}) as $result | _merged($input; null | setpath({json.dumps(place)}; $result))")
        # A result that is no object has no place of its own in an object.
        return Jq(
            f'({results}) as $result | if ($result | type) == "object" or ($input | type) != "object" then _merged($input; $result) else $input end'
        )

    def _given(self, action: dict[str, Any]) -> Expression | None:
        return self._maybe((action.get("actionDataFilter") or {}).get("fromStateData"))

    def _call(self, action: dict[str, Any]) -> AnyTask:
        around = Around(input_from=self._given(action)) if self._given(action) else PLAIN
        if "functionRef" in action:
            return self._function(action["functionRef"], around)
        if "subFlowRef" in action:
            held = action["subFlowRef"]
            form = held if isinstance(held, dict) else {"workflowId": held}
            awaited = form.get("invoke", "sync") != "async"
            return Run(
                name="subflow", workflow=form["workflowId"], version=form.get("version"), input=Jq("."), awaited=awaited, around=around
            )
        if "eventRef" in action:
            return self._event_action(action["eventRef"], around)
        self.fault("An action has one of functionRef, subFlowRef and eventRef.")
        return Do(name="nothing")

    def _event_action(self, held: Any, around: Around) -> AnyTask:
        form = held if isinstance(held, dict) else {"triggerEventRef": held}
        produced = {"eventRef": form["triggerEventRef"], "data": form.get("data"), "contextAttributes": form.get("contextAttributes")}
        emit = self._produced(produced, "trigger")
        result = form.get("resultEventRef")
        if not result:
            return Do(name="event", tasks=(emit,), around=around)
        wanted = self.events.get(result) or {}
        read = "envelope" if wanted.get("dataOnly") is False else "data"
        limit = form.get("resultEventTimeout") or self.timeouts.get("actionExecTimeout")
        listen = Listen(
            name="result",
            filters=(self._filter(result),),
            read=read,  # type: ignore[arg-type]
            around=Around(output_as=Jq(".[0]"), timeout_s=self._seconds(limit)),
        )
        return Do(name="event", tasks=(emit, listen), around=around)

    def _function(self, held: Any, around: Around) -> AnyTask:
        form = held if isinstance(held, dict) else {"refName": held}
        name = str(form.get("refName"))
        arguments = self._filled(form.get("arguments") or {})
        declared = self.functions.get(name)
        if declared is None:
            # Functions may be declared in a file that is not here; then the call says so when it is made.
            return Step(name="call", type="call.undeclared", parameters=Template({"function": name}), retry=NO_RETRY, around=around)
        operation, kind = str(declared.get("operation", "")), declared.get("type", "rest")
        if kind == "expression":
            return Set(name="call", value=Jq(self._source(operation)), around=around)
        policy = self._policy(declared.get("authRef"))
        document: dict[str, Any] = {
            "endpoint": operation.split("#")[0] if policy is None else {"uri": operation.split("#")[0], "authentication": policy}
        }
        fragment = operation.split("#", 1)[1] if "#" in operation else ""
        if kind == "rest":
            return self._step("call.openapi", {"document": document, "operationId": fragment, "parameters": arguments}, around)
        if kind == "asyncapi":
            return self._step("call.asyncapi", {"document": document, "operation": fragment, "message": {"payload": arguments}}, around)
        if kind == "rpc":
            service, _, method = fragment.partition("#")
            about = declared.get("metadata") or {}
            if "host" not in about:
                self.fault(f"The function {shown(name)} (rpc) names no host: write it into its metadata as host and port.")
            target = {"name": service, "host": about.get("host", ""), "port": int(self._number(about.get("port", 80), "port"))}
            return self._step("call.grpc", {"proto": document, "service": target, "method": method, "arguments": arguments}, around)
        if kind == "graphql":
            verb, _, what = fragment.partition("#")
            selection = str(form.get("selectionSet", ""))
            call = f"${{ {json.dumps(verb + ' { ' + what + ' ' + selection + ' }')} }}"
            body = {"query": call, "variables": arguments}
            parameters = {"method": "post", "endpoint": operation.split("#")[0], "body": body}
            return self._step("call.http", parameters, Around(input_from=around.input_from, output_as=Jq(".data")))
        if kind == "custom" or kind not in ("odata",):
            return self._custom(operation, arguments, around)
        self.fault(f"The function {shown(name)} is of the type {shown(kind)}, which is not supported.")
        return Do(name="call")

    def _custom(self, operation: str, arguments: Any, around: Around) -> AnyTask:
        """`rest:METHOD:URL`, `sysout`, or the type of any executor that is registered."""
        scheme, _, rest = operation.partition(":")
        if scheme == "rest":
            method, _, address = rest.partition(":")
            given: dict[str, Any] = {"method": method, "endpoint": address}
            if method.lower() in ("post", "put", "patch") and arguments:
                given["body"] = arguments
            elif arguments:
                given["query"] = arguments
            return self._step("call.http", given, around)
        if scheme == "sysout":
            message = arguments.get("message") if isinstance(arguments, dict) else arguments
            level = rest.lower() or "info"
            return Step(
                name="call",
                type="log",
                parameters=Template({"message": message if isinstance(message, str) else "${ tojson }", "level": level}),
                retry=NO_RETRY,
                around=Around(input_from=around.input_from, output_as=Jq("null")),
            )
        return Step(name="call", type=operation or "undeclared", parameters=Template(arguments), retry=NO_RETRY, around=around)

    def _step(self, type: str, parameters: dict[str, Any], around: Around) -> Step:
        return Step(name="call", type=type, parameters=Template(parameters), retry=NO_RETRY, around=around)

    def _policy(self, reference: Any) -> dict[str, Any] | None:
        held = self.auth.get(str(reference)) if reference else None
        if held is None:
            return None
        fields = held.get("properties")
        scheme = str(held.get("scheme", "basic"))
        if isinstance(fields, str):
            source = embedded(fields) or fields
            name = source.replace("$SECRETS.", "").strip()
            return {scheme: {"use": name}}
        if scheme != "oauth2" or not isinstance(fields, dict):
            return {scheme: fields}
        grants = {
            "password": "password",  # nosec B105 # the name of a grant
            "clientCredentials": "client_credentials",
            "tokenExchange": "urn:ietf:params:oauth:grant-type:token-exchange",
        }
        made = {
            "authority": fields.get("authority", ""),
            "grant": grants.get(str(fields.get("grantType")), "client_credentials"),
            "client": {"id": fields.get("clientId"), "secret": fields.get("clientSecret")},
            "scopes": fields.get("scopes"),
            "audiences": fields.get("audiences"),
            "username": fields.get("username"),
            "password": fields.get("password"),
        }
        return {"oauth2": {key: value for key, value in made.items() if value is not None}}

    # ── retries ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _retried(self, call: AnyTask, action: dict[str, Any]) -> AnyTask:
        reference = action.get("retryRef")
        policy = self._retry(str(reference)) if reference else None
        if self.document.get("autoRetries"):
            policy = policy or RetryPolicy(max_attempts=UNLIMITED, base_s=1.0, factor=2.0, cap_s=86400.0, jitter=0.0)
            never = " or ".join(f"({self._is_error(str(e))})" for e in action.get("nonRetryableErrors") or [])
            when = Jq(f"$error | ({never}) | not") if never else None
        elif policy is not None and action.get("retryableErrors"):
            when = Jq("$error | " + " or ".join(f"({self._is_error(str(e))})" for e in action["retryableErrors"]))
        else:
            return call
        if policy is None or policy.max_attempts < 2:
            return call
        return Try(name="retried", do=Do(tasks=(call,), inline=True), catch=Catch(retry=policy, retry_when=when))

    def _retry(self, reference: str) -> RetryPolicy | None:
        held = self.retries.get(reference)
        if held is None:
            self.fault(f"There is no retry {shown(reference)}.", suggestion=suggestion_for(reference, self.retries, listed=False))
            return None
        base = self._seconds(held.get("delay")) or 0.0
        increment = self._seconds(held.get("increment")) or 0.0
        multiplier = self._number(held.get("multiplier") or 1, "multiplier")
        retries = int(self._number(held.get("maxAttempts", 1), "maxAttempts"))
        jitter = held.get("jitter", 0)
        absolute = self._seconds(jitter) if isinstance(jitter, str) else 0.0
        return RetryPolicy(
            max_attempts=max(retries, 0) + 1,
            backoff="exponential",
            base_s=base,
            factor=multiplier,
            step_s=increment,
            cap_s=self._seconds(held.get("maxDelay")) or 86400.0,
            jitter=min(1.0, self._number(jitter, "jitter")) if not isinstance(jitter, str) else 0.0,
            added_s=(0.0, absolute or 0.0),
        )

    def _number(self, given: Any, what: str) -> float:
        """Numbers may be written as text."""
        try:
            found = float(given)
        except (TypeError, ValueError):
            found = -1.0
        if not 0 <= found < 1e9:
            self.fault(f"Expected a number of at least 0 as {what}, got {shown(given)}.")
            return 1.0
        return found

    # ── expressions, events ─────────────────────────────────────────────────────────────────────────────────────────

    def _source(self, given: str) -> str:
        """The jq of an expression, with or without its `${ }`; `fn:name` stands for the expression of that function."""
        text = given.strip()
        source = embedded(text)
        source = text if source is None else source
        parts = _FUNCTION.split(source)
        length = 0
        for number in range(1, len(parts), 2):
            parts[number] = self._function_source(parts[number])
            length += len(parts[number])
            if length > programs.LONGEST:
                # Functions that use the next one twice: what they mean together is longer than any expression may be.
                self.fault(f"With its functions in place this expression has more than {programs.LONGEST:,} characters.")
                return "null"
        return "".join(parts)

    def _function_source(self, name: str) -> str:
        declared = self.functions.get(name)
        if declared is None or declared.get("type") != "expression":
            self.fault(f"There is no expression function {shown(name)}.", suggestion=suggestion_for(name, self.functions, listed=False))
            return "null"
        if name in self._inside or len(self._inside) > DEEPEST_FUNCTIONS:
            self.fault(f"The function {shown(name)} calls itself: {' → '.join(map(printable, [*self._inside, name]))}.")
            return "null"
        if name not in self._sources:
            self._inside.append(name)
            self._sources[name] = f"({self._source(str(declared['operation']))})"
            self._inside.pop()
        return self._sources[name]

    def _expression(self, given: str) -> Expression:
        return self.written.at(Jq(self._source(given)), self.place)

    def _maybe(self, given: Any) -> Expression | None:
        return None if given is None else self._expression(str(given))

    def _filled(self, value: Any) -> Any:
        """Arguments: strings that are expressions, and strings with expressions in the middle."""
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        if embedded(value) is not None and value.count("${") == 1:
            return f"${{ {self._source(value)} }}"
        parts = re.split(r"\$\{([^{}]*)\}", value)
        text = "".join(f"\\({self._source(part)})" if n % 2 else json.dumps(part)[1:-1] for n, part in enumerate(parts))
        return f'${{ "{text}" }}'

    def _place(self, given: Any) -> list[Any] | None:
        if given is None:
            return None
        found = paths.parsed(self._source(str(given)))
        if found is None or found[0] is not None:
            self.fault(f"{shown(given)} is not a place in the data: write a path such as .orders.last.")
            return None
        return list(found[1])

    def _filter(self, reference: str) -> EventFilter:
        declared = self.events.get(reference) or {"type": reference}
        attributes: dict[str, Any] = {"type": declared.get("type") or reference}
        if declared.get("source"):
            attributes["source"] = re.sub(r"[\\.^$*?{}\[\]()|]", r"\\\g<0>", str(declared["source"])).replace("+", "[^/]+")
        correlate = tuple(
            (
                item["contextAttributeName"],
                Jq(f".[{json.dumps(item['contextAttributeName'].lower())}] // .[{json.dumps(item['contextAttributeName'])}]"),
                self._correlated(item.get("contextAttributeValue")),
            )
            for item in declared.get("correlation") or []
        )
        return EventFilter(attributes=attributes, correlate=correlate)

    def _correlated(self, value: Any) -> Expression | None:
        if value is None:
            return None
        source = embedded(str(value))
        return Template(value) if source is None else Jq(f"$workflow.input | ({source})")

    def _event_timeout(self, state: dict[str, Any]) -> float | None:
        own = (state.get("timeouts") or {}).get("eventTimeout") or state.get("eventTimeout")
        return self._seconds(own or self.timeouts.get("eventTimeout"))

    def _seconds(self, given: Any) -> float | None:
        if given is None:
            return None
        held = given.get("total") or given.get("single") if isinstance(given, dict) else given
        # `PT2W` is written where P2W is meant.
        text = re.sub(r"^PT(\d+)([WD])$", r"P\1\2", str(held))
        try:
            return seconds(text)
        except BadDuration as error:
            self.fault(str(error))
            return None
