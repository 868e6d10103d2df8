"""DSL 1.0.x: a document becomes a task tree. The kernel's tree has the DSL's meaning, so there is little to do but parse.

What the tree has no word of its own for is said with what it has: a call is a step, a function is a `do` whose input is
the call's arguments, an extension is an `Extended` around the task.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from orchestrator.definition import cron, paths
from orchestrator.definition.durations import BadDuration, from_now, seconds
from orchestrator.definition.expressions import SECRETS, Expression, Jq, Template, check_jq, embedded, names_in, sources
from orchestrator.definition.external import external
from orchestrator.definition.parsing import NOWHERE, Source, json_faults, printable, shown, suggestion_for
from orchestrator.definition.parsing import escaped as escaped_pointer
from orchestrator.definition.retry import NO_RETRY, UNLIMITED, RetryPolicy
from orchestrator.definition.serverless.endpoints import marked
from orchestrator.definition.serverless.growth import Growth, TooLarge
from orchestrator.definition.serverless.schema import CALLS, faults, kind_of
from orchestrator.definition.tree import (
    PLAIN,
    AnyTask,
    Around,
    Case,
    Catch,
    Definition,
    Do,
    Emit,
    EventFilter,
    Extended,
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
from orchestrator.errors import ExpressionError, Fault, Invalid
from orchestrator.ids import escaped, unescaped

RESERVED = ("continue", "exit", "end")
EXECUTORS = ("engine", "external")
"""Who does calls and programs: the engine, or executors that are asked by events (`document.metadata.executor`)."""
LANGUAGES = ("js", "javascript", "python")
EVENT_ATTRIBUTES = ("id", "source", "type", "time", "subject", "datacontenttype", "dataschema", "data", "specversion")
OWN_STEP = "step:"
"""`call: step:charge` is a step type of this project: a `@step` function, or an executor."""
LONGEST_DELAY_S = 366 * 86400.0
SHORTEST_EVERY_S = 0.1
DEEPEST_FUNCTIONS = 20
MOST_FAULTS = 200


def read(document: Any, source: Source = NOWHERE) -> Definition:
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
        raise Invalid([source.located(fault) for fault in found], "Serverless Workflow document")
    assert definition is not None
    return definition


class Reader:
    """One document. Faults are gathered; a task that has one stands as an empty `do` until all are reported."""

    def __init__(self, document: dict[str, Any], source: Source = NOWHERE) -> None:
        self.document = document
        self.use: dict[str, Any] = document.get("use") or {}
        self.faults: list[Fault] = []
        self.loose = (document.get("evaluate") or {}).get("mode") == "loose"
        self.written = Written(source)
        self.executor = (document["document"].get("metadata") or {}).get("executor", "engine")
        self._growth = Growth()
        self._inside: list[str] = []
        self._extending = False

    def fault(self, place: str, message: str, suggestion: str = "") -> None:
        self.faults.append(Fault(place, message, suggestion))

    def definition(self) -> Definition | None:
        try:
            return self._definition()
        except TooLarge as error:
            # What was found in the part that was read says less than this.
            self.faults = [error.fault]
            return None

    def _definition(self) -> Definition:
        document = self.document
        about = document["document"]
        if not about["dsl"].startswith("1.0."):
            self.fault("/document/dsl", f"Version {about['dsl']} of the DSL is not read here.", "Write 1.0.3, or an earlier 1.0.")
        if self.executor not in EXECUTORS:
            self.fault("/document/metadata/executor", f"Expected {' or '.join(EXECUTORS)}, got {shown(self.executor)}.")
        self._check_evaluate()
        self._check_use()
        if not document["do"]:
            self.fault("/do", "A workflow needs at least one task.")
        around = self._around(document, "", is_workflow=True)
        body = self.tasks(document["do"], "/do")
        schedule = dict(document["schedule"]) if "schedule" in document else None
        trigger = self._trigger(schedule)
        metadata = {**(about.get("metadata") or {}), **({"tags": about["tags"]} if about.get("tags") else {})}
        return Definition(
            name=about["name"],
            namespace=about["namespace"],
            version=about["version"],
            title=about.get("title") or about.get("summary") or "",
            do=Do(tasks=body, around=around),
            retry=NO_RETRY,
            step_events=(about.get("metadata") or {}).get("lifecycleEvents") == "tasks",
            document=document,
            secrets=tuple(self.use.get("secrets") or ()),
            schedule=schedule,
            trigger=trigger,
            metadata=metadata or None,
            written=self.written,
        )

    # ── the whole ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _check_evaluate(self) -> None:
        language = (self.document.get("evaluate") or {}).get("language", "jq")
        if language != "jq":
            self.fault("/evaluate/language", f"Expressions in {shown(language)} are not evaluated here.", "Write jq.")

    def _check_use(self) -> None:
        for name, policy in (self.use.get("retries") or {}).items():
            self._retry(policy, f"/use/retries/{name}")
        for name, held in (self.use.get("timeouts") or {}).items():
            self._duration(held["after"], f"/use/timeouts/{name}/after")
        for name, held in (self.use.get("authentications") or {}).items():
            self._authentication(held, f"/use/authentications/{name}")

    def _trigger(self, schedule: Any) -> Listen | None:
        if schedule is None:
            return None
        for key, least in (("every", SHORTEST_EVERY_S), ("after", 0.0)):
            if key in schedule:
                self._period(schedule[key], least, f"/schedule/{key}")
        if "cron" in schedule:
            try:
                schedule["cron"] = cron.check(schedule["cron"])
            except cron.BadCron as error:
                self.fault("/schedule/cron", str(error))
        if "on" not in schedule:
            return None
        mode, filters, until, until_event = self._strategy(schedule["on"], "/schedule/on")
        # 1.0.3 hands the events over as they are; `read`, which came later, says otherwise where it is written.
        read = schedule.get("read", "envelope")
        return self.written.at(
            Listen(name="on", mode=mode, filters=filters, until=until, until_event=until_event, read=read),  # type: ignore[arg-type]
            "/schedule/on",
        )

    def _period(self, given: Any, least: float, place: str) -> None:
        """Between two starts: known beforehand, and not too short."""
        try:
            if seconds(given) < least:
                self.fault(place, f"Expected at least {least:g} seconds, got {shown(given)}.")
        except BadDuration as error:
            self.fault(place, str(error))

    # ── tasks ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def tasks(self, given: list[dict[str, Any]], place: str) -> tuple[AnyTask, ...]:
        names: set[str] = set()
        found: list[AnyTask] = []
        for number, item in enumerate(given):
            [(name, task)] = item.items()
            here = f"{place}/{number}/{escaped_pointer(name)}"
            if name in names:
                self.fault(here, f"The task name {shown(name)} is used twice in this list.")
            names.add(name)
            found.append(self.task(name, task, here))
        for number, item in enumerate(given):
            [(name, task)] = item.items()
            for target, where in _targets(task):
                if target not in names and target not in RESERVED:
                    here = f"{place}/{number}/{escaped_pointer(name)}{where}"
                    self.fault(
                        here,
                        f"There is no task {shown(target)} in this list to go to.",
                        suggestion_for(target, [*names, *RESERVED], listed=False),
                    )
        return tuple(found)

    def task(self, name: str, given: dict[str, Any], place: str) -> AnyTask:
        kind = kind_of(given)
        assert kind is not None  # the schema said so
        with self._growth.inside(place):
            around = self._around(given, place)
            made: AnyTask = self.written.at(getattr(self, f"_{kind}")(escaped(name), given, place, around), place)
            return self._extended(made, kind, given, place)

    def _do(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        return Do(name=name, around=around, tasks=self.tasks(given["do"], f"{place}/do"))

    def _set(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        return Set(name=name, around=around, value=self._template(given["set"], f"{place}/set"))

    def _switch(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        cases: list[Case] = []
        names: set[str] = set()
        has_default = False
        for number, item in enumerate(given["switch"]):
            [(case, held)] = item.items()
            here = f"{place}/switch/{number}/{escaped_pointer(case)}"
            if case in names:
                self.fault(here, f"The case name {shown(case)} is used twice.")
            names.add(case)
            when = self._expression(held["when"], f"{here}/when") if "when" in held else None
            if when is None and has_default:
                self.fault(here, "This is a second default: only one case may have no `when`.")
            has_default = has_default or when is None
            cases.append(Case(name=case, when=when, then=_target(held["then"])))
        return Switch(name=name, around=around, cases=tuple(cases))

    def _for(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        loop = given["for"]
        items = loop["in"]
        return For(
            name=name,
            around=around,
            items=self._expression(items, f"{place}/for/in") if isinstance(items, str) else self._template(items, f"{place}/for/in"),
            each=self._variable(loop.get("each", "item"), f"{place}/for/each"),
            at=self._variable(loop.get("at", "index"), f"{place}/for/at"),
            condition=self._expression(given["while"], f"{place}/while") if "while" in given else None,
            do=Do(tasks=self.tasks(given["do"], f"{place}/do")),
        )

    def _fork(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        fork = given["fork"]
        branches = self.tasks(fork["branches"], f"{place}/fork/branches")
        return Fork(name=name, around=around, branches=branches, compete=fork.get("compete", False))

    def _wait(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        return Wait(name=name, around=around, duration=self._duration(given["wait"], f"{place}/wait"))

    def _emit(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        event = given["emit"]["event"].get("with", {})
        for key in event:
            if key not in EVENT_ATTRIBUTES and not re.fullmatch(r"[a-z0-9]{1,20}", key):
                here = f"{place}/emit/event/with/{escaped_pointer(key)}"
                self.fault(here, "This is not the name of a CloudEvents attribute: lower-case letters and digits, at most 20.")
        return Emit(name=name, around=around, event=self._template(event, f"{place}/emit/event/with"))

    def _raise(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        error = given["raise"]["error"]
        where = f"{place}/raise/error"
        if isinstance(error, str):
            known = self.use.get("errors") or {}
            if error not in known:
                self.fault(where, f"There is no error {shown(error)} in use.errors.", suggestion_for(error, known))
                return Do(name=name)
            error, where = known[error], f"/use/errors/{escaped_pointer(error)}"
        return Raise(name=name, around=around, error=self._template(error, where))

    def _try(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        held = given["catch"]
        here = f"{place}/catch"
        variable = self._variable(held.get("as", "error"), f"{here}/as")
        retry = self._retries(held.get("retry"), f"{here}/retry")
        catch = Catch(
            errors=_wanted(held.get("errors")),
            name=variable,
            when=self._expression(held["when"], f"{here}/when") if "when" in held else None,
            except_when=self._expression(held["exceptWhen"], f"{here}/exceptWhen") if "exceptWhen" in held else None,
            **retry,
            do=Do(tasks=self.tasks(held["do"], f"{here}/do")) if "do" in held else None,
            then=_target(held["then"]) if "then" in held else None,
        )
        attempt = self._attempt_of(held.get("retry"), f"{here}/retry")
        each_attempt = PLAIN if attempt is None else Around(timeout_s=attempt)
        body = Do(tasks=self.tasks(given["try"], f"{place}/try"), inline=True, around=each_attempt)
        return Try(name=name, around=around, do=body, catch=catch)

    def _listen(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        listen, each = given["listen"], given.get("foreach") or {}
        mode, filters, until, until_event = self._strategy(listen["to"], f"{place}/listen/to")
        body = None
        if "do" in each or "output" in each or "export" in each:
            inner = self._around({key: each[key] for key in ("output", "export") if key in each}, f"{place}/foreach")
            body = Do(tasks=self.tasks(each.get("do") or [], f"{place}/foreach/do"), around=inner)
        return Listen(
            name=name,
            around=around,
            mode=mode,  # type: ignore[arg-type]  # one, any or all
            filters=filters,
            until=until,
            until_event=until_event,
            read=listen.get("read", "data"),
            each=self._variable(each.get("item", "item"), f"{place}/foreach/item"),
            at=self._variable(each.get("at", "index"), f"{place}/foreach/at"),
            do=body,
        )

    def _run(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        run = given["run"]
        awaited = run.get("await", True)
        if "workflow" in run:
            child = run["workflow"]
            version = child.get("version", "latest")
            return Run(
                name=name,
                around=around,
                workflow=f"{child['namespace']}.{child['name']}",
                version=None if version == "latest" else version,
                input=self._template(child["input"], f"{place}/run/workflow/input") if "input" in child else Jq("."),
                awaited=awaited,
            )
        form = next(word for word in ("container", "script", "shell") if word in run)
        parameters = {**run[form], "return": run.get("return", "stdout"), "await": awaited}
        if form == "script" and run[form]["language"] not in LANGUAGES:
            language = run[form]["language"]
            self.fault(f"{place}/run/script/language", f"Scripts in {shown(language)} are not run here.", "Write js or python.")
        if self.executor == "external":
            return self._asked_of_others(name, f"run.{form}", run[form], f"{place}/run/{form}", around)
        if form == "container":
            return self._container(name, parameters, place, around)
        # Shells and scripts own `${ }`: what stands between them is ours only when it is an expression.
        text = {"shell": "command", "script": "code"}[form]
        literal = {text: parameters.pop(text)} if not self._is_expression(parameters.get(text)) and text in parameters else None
        return self._step(name, around, f"run.{form}", parameters, f"{place}/run/{form}", literal=literal)

    def _is_expression(self, given: Any) -> bool:
        source = embedded(given) if isinstance(given, str) else None
        if source is None:
            return False
        try:
            check_jq(source, tuple(names_in(source)))
        except ExpressionError:
            return False
        return True

    def _container(self, name: str, parameters: dict[str, Any], place: str, around: Around) -> AnyTask:
        """Named as the specification recommends, the same for every attempt; removed later by a workflow of its own."""
        about = self.document["document"]
        own = f'${{ "{about["name"]}-\\($workflow.id).{about["namespace"]}-" + ({json.dumps(unescaped(name))} | gsub("[^A-Za-z0-9_.-]"; "-")) }}'
        given = {**parameters, "name": parameters.get("name") or own}
        step = self._step(name, around, "run.container", given, f"{place}/run/container")
        lifetime = parameters.get("lifetime") or {}
        if lifetime.get("cleanup") != "eventually":
            return step
        after = self._duration(lifetime["after"], f"{place}/run/container/lifetime/after")
        document = {
            "document": {"dsl": "1.0.3", "namespace": "containers", "name": "remove-container", "version": "1.0.0"},
            "do": [
                {"wait": {"wait": "${ .after }"}},
                {"remove": {"call": f"{OWN_STEP}run.container_removal", "with": {"name": "${ .name }"}}},
            ],
        }
        later = f"PT{after}S" if isinstance(after, float) else lifetime["after"]
        removal = Run(
            name="removal",
            source=Jq(json.dumps(document)),
            input=self._template({"name": given["name"], "after": later}, place),
            awaited=False,
        )
        # The removal is asked for first: a container that is never removed would be the worse outcome.
        return Do(name=name, tasks=(removal, step))

    def _call(self, name: str, given: dict[str, Any], place: str, around: Around) -> AnyTask:
        call, arguments = given["call"], given.get("with") or {}
        if call == f"{OWN_STEP}external":
            if not isinstance(arguments, dict) or not isinstance(arguments.get("type"), str):
                self.fault(f"{place}/with/type", "This field is required: the kind of task, for its executor.")
                return Do(name=name)
            if not isinstance(arguments.get("config", {}), dict):
                self.fault(f"{place}/with/config", f"Expected a mapping, got {shown(arguments['config'])}.")
                return Do(name=name)
            asked = Template(arguments["input"]) if "input" in arguments else None
            return external(name, arguments["type"], asked, None, arguments.get("config"), around)
        if call.startswith(OWN_STEP):
            return self._step(name, around, call.removeprefix(OWN_STEP), arguments, f"{place}/with")
        if call not in CALLS:
            return self._function(name, call, arguments, place, around)
        where = f"{place}/with"
        if self.executor == "external":
            return self._asked_of_others(name, call, arguments, where, around)
        parameters = marked(self._with_authentications(copy.deepcopy(arguments), where))
        if call == "asyncapi" and "subscription" in parameters:
            return self._subscription(name, parameters, where, around)
        if call == "mcp" and "timeout" in parameters:
            timeout = self._duration(parameters["timeout"], f"{where}/timeout")
            if isinstance(timeout, float):
                parameters["timeout"] = timeout
        return self._step(name, around, f"call.{call}", parameters, where)

    def _asked_of_others(self, name: str, type: str, arguments: Any, where: str, around: Around) -> AnyTask:
        """The task goes out as an event, with its arguments as they were computed. Events are kept, and so hold no secret."""
        if any(names_in(source) & set(SECRETS) for source in sources(arguments)) or "authentication" in _names(arguments):
            self.fault(where, "What goes to executors outside is kept as an event: it may hold neither secrets nor authentication.")
        return external(name, type, None, None, {"parameters": arguments}, around)

    def _subscription(self, name: str, parameters: dict[str, Any], where: str, around: Around) -> AnyTask:
        subscription = parameters["subscription"]
        for key in ("while", "until"):
            if key in subscription["consume"]:
                self._expression(subscription["consume"][key], f"{where}/subscription/consume/{key}")
        if "for" in subscription["consume"]:
            self._duration(subscription["consume"]["for"], f"{where}/subscription/consume/for")
        each = subscription.pop("foreach", None)
        # The conditions see each message as it comes: they go along as they are, to be judged there.
        kept = {"filter": subscription.pop("filter", None), "consume": subscription.pop("consume")}
        step = self._step(name, PLAIN if each else around, "call.asyncapi", parameters, where, literal={"subscription": kept})
        if not each:
            return step
        inner = self._around({key: each[key] for key in ("output", "export") if key in each}, f"{where}/subscription/foreach")
        item = self._variable(each.get("item", "item"), f"{where}/subscription/foreach/item")
        body = Do(name="do", tasks=self.tasks(each.get("do") or [], f"{where}/subscription/foreach/do"), around=inner)
        # As a listener's: each round gets its message, and what the rounds give is gathered in a list.
        loop = For(
            name="foreach",
            around=Around(input_from=Jq("[]")),
            items=Jq("$task.input"),
            each=item,
            at=self._variable(each.get("at", "index"), f"{where}/subscription/foreach/at"),
            do=Do(tasks=(body,), around=Around(input_from=Jq(f"${item}"), output_as=Jq("$task.input + [.]"))),
        )
        return Do(name=name, around=around, tasks=(step, loop))

    def _step(
        self, name: str, around: Around, type: str, parameters: dict[str, Any], where: str, literal: dict[str, Any] | None = None
    ) -> Step:
        return Step(name=name, around=around, type=type, parameters=self._template(parameters, where), literal=literal, retry=NO_RETRY)

    # ── functions, catalogs, extensions ─────────────────────────────────────────────────────────────────────────────

    def _function(self, name: str, call: str, arguments: dict[str, Any], place: str, around: Around) -> AnyTask:
        functions = self.use.get("functions") or {}
        reference = _catalogued(call)
        if call in functions:
            if call in self._inside or len(self._inside) > DEEPEST_FUNCTIONS:
                self.fault(
                    f"{place}/call", f"The function {shown(call)} calls itself: {' → '.join(map(printable, [*self._inside, call]))}."
                )
                return Do(name=name)
            self._inside.append(call)
            body = self.task(call, functions[call], f"/use/functions/{escaped_pointer(call)}")
            self._inside.pop()
            handed = Around(input_from=self._template(arguments, f"{place}/with"))
            return Do(name=name, around=around, tasks=(Do(name="with", around=handed, tasks=(body,)),))
        if reference is None:
            known = [*functions, *CALLS, f"{OWN_STEP}NAME"]
            self.fault(
                f"{place}/call",
                f"There is no function {shown(call)}: not in use.functions, no URL, and not name:version@catalog.",
                suggestion_for(call, known, listed=False),
            )
            return Do(name=name)
        catalog = reference.get("catalog")
        endpoint = (self.use.get("catalogs") or {}).get(catalog, {}).get("endpoint") if catalog else None
        if catalog and endpoint is None and catalog != "default":
            self.fault(
                f"{place}/call",
                f"There is no catalog {shown(catalog)} in use.catalogs.",
                suggestion_for(catalog, self.use.get("catalogs") or ()),
            )
            return Do(name=name)
        parameters = {"reference": call, "arguments": arguments, **({"catalog": endpoint} if endpoint else {})}
        fetch = self._step("fetch", PLAIN, "call.function", parameters, f"{place}/with")
        return Do(name=name, around=around, tasks=(fetch, Run(name="run", workflow="", input=Jq(".input"), source=Jq(".definition"))))

    def _extended(self, task: AnyTask, kind: str, given: dict[str, Any], place: str) -> AnyTask:
        if self._extending:
            return task
        for number, item in reversed(list(enumerate(self.use.get("extensions") or []))):
            [(name, extension)] = item.items()
            extends = "do" if extension["extend"] == "composite" else extension["extend"]
            if extends not in ("all", kind):
                continue
            where = f"/use/extensions/{number}/{escaped_pointer(name)}"
            self._extending = True
            before = self.tasks(extension.get("before") or [], f"{where}/before")
            after = self.tasks(extension.get("after") or [], f"{where}/after")
            self._extending = False
            task = Extended(
                name=task.name,
                task=task,
                when=self._expression(extension["when"], f"{where}/when") if "when" in extension else None,
                before=Do(tasks=before, inline=True) if before else None,
                after=Do(tasks=after, inline=True) if after else None,
            )
        return task

    # ── around a task ───────────────────────────────────────────────────────────────────────────────────────────────

    def _around(self, given: dict[str, Any], place: str, *, is_workflow: bool = False) -> Around:
        held: dict[str, Any] = {}
        if "if" in given:
            held["condition"] = self._expression(given["if"], f"{place}/if")
        for part, from_or_as in (("input", "from"), ("output", "as"), ("export", "as")):
            inner = given.get(part)
            if not inner:
                continue
            if from_or_as in inner:
                held[f"{part}_{from_or_as}"] = self._mapping(inner[from_or_as], f"{place}/{part}/{from_or_as}")
            if "schema" in inner:
                held[f"{part}_schema"] = self._schema(inner["schema"], f"{place}/{part}/schema")
        if "timeout" in given:
            held["timeout_s"] = self._timeout(given["timeout"], f"{place}/timeout")
        if "then" in given and not is_workflow:
            held["then"] = _target(given["then"])
        if "metadata" in given and not is_workflow:
            held["metadata"] = given["metadata"]
        return Around(**held) if held else PLAIN

    def _schema(self, given: dict[str, Any], place: str) -> Any:
        kind = str(given.get("format", "json")).split(":")[0]
        if kind != "json":
            self.fault(f"{place}/format", f"Schemas of the format {shown(given['format'])} are not checked here.", "Write json.")
            return None
        if "resource" in given:
            return {"$resource": given["resource"]}
        if not isinstance(given["document"], dict | bool):
            self.fault(f"{place}/document", f"Expected a JSON Schema, got {shown(given['document'])}.")
            return None
        return given["document"]

    def _timeout(self, given: Any, place: str) -> float | Expression | None:
        if isinstance(given, str):
            known = self.use.get("timeouts") or {}
            if given not in known:
                self.fault(place, f"There is no timeout {shown(given)} in use.timeouts.", suggestion_for(given, known))
                return None
            return self._duration(known[given]["after"], f"/use/timeouts/{escaped_pointer(given)}/after")
        return self._duration(given["after"], f"{place}/after")

    def _duration(self, given: Any, place: str) -> float | Expression:
        if isinstance(given, str) and (source := embedded(given)) is not None:
            return self._expression(source, place)
        try:
            # A wait for a time that has passed is none; nothing else may be negative.
            return from_now(given) if place.endswith("/wait") else seconds(given)
        except BadDuration as error:
            self.fault(place, str(error))
            return 0.0

    def _expression(self, given: str, place: str) -> Expression:
        """Where an expression must stand, it may stand with or without its `${ }`."""
        source = embedded(given)
        return self.written.at(Jq(given if source is None else source), place)

    def _mapping(self, given: Any, place: str) -> Expression:
        return self._expression(given, place) if isinstance(given, str) else self._template(given, place)

    def _template(self, given: Any, place: str) -> Template:
        return self.written.at(Template(given, loose=self.loose), place)

    def _variable(self, name: str, place: str) -> str:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            self.fault(place, f"{shown(name)} cannot be a variable: write letters, digits and underscores.")
            return "item"
        return name

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _strategy(self, given: dict[str, Any], place: str) -> tuple[str, tuple[EventFilter, ...], Expression | None, EventFilter | None]:
        if "one" in given:
            return "one", (self._filter(given["one"], f"{place}/one"),), None, None
        if "all" in given:
            return "all", tuple(self._filter(item, f"{place}/all/{n}") for n, item in enumerate(given["all"])), None, None
        filters = tuple(self._filter(item, f"{place}/any/{n}") for n, item in enumerate(given["any"] or []))
        until = given.get("until")
        if until is None:
            return "any", filters, None, None
        if isinstance(until, str):
            return "any", filters, self._expression(until, f"{place}/until"), None
        mode, ends, inner, _ = self._strategy(until, f"{place}/until")
        if inner is not None:
            self.fault(f"{place}/until", "What ends a listener cannot have an `until` of its own.")
        if len(ends) != 1:
            self.fault(f"{place}/until", f"Expected one event that ends the listener, got {mode} of {len(ends)}.")
            return "any", filters, None, None
        return "any", filters, None, ends[0]

    def _filter(self, given: dict[str, Any], place: str) -> EventFilter:
        correlate = tuple(
            (
                key,
                self._expression(held["from"], f"{place}/correlate/{escaped_pointer(key)}/from"),
                self._expected(held["expect"], f"{place}/correlate/{escaped_pointer(key)}/expect") if "expect" in held else None,
            )
            for key, held in (given.get("correlate") or {}).items()
        )
        return EventFilter(attributes=given["with"], correlate=correlate)

    def _expected(self, given: str, place: str) -> Expression:
        """A constant, or an expression; a plain path such as `.id` or `$context.id` is one without its `${ }`, too."""
        source = embedded(given)
        if source is None and given.strip() != "." and paths.parsed(given) is not None:
            source = given
        return self.written.at(Template(given) if source is None else Jq(source), place)

    # ── errors, retries, authentications ────────────────────────────────────────────────────────────────────────────

    def _policy_of(self, given: Any, place: str) -> tuple[dict[str, Any], str] | None:
        """The retry policy that is meant, and where it is written."""
        if given is None:
            return None
        if isinstance(given, str):
            known = self.use.get("retries") or {}
            if given not in known:
                self.fault(place, f"There is no retry policy {shown(given)} in use.retries.", suggestion_for(given, known))
                return None
            return known[given], f"/use/retries/{escaped_pointer(given)}"
        return given, place

    def _retries(self, given: Any, place: str) -> dict[str, Any]:
        """What a catch says of retrying, as the fields of the tree."""
        found = self._policy_of(given, place)
        return {} if found is None else self._retry(*found)

    def _attempt_of(self, given: Any, place: str) -> float | Expression | None:
        found = None if isinstance(given, str) and given not in (self.use.get("retries") or {}) else self._policy_of(given, place)
        held = {} if found is None else (found[0].get("limit") or {}).get("attempt") or {}
        return self._duration(held["duration"], f"{found[1]}/limit/attempt/duration") if found and "duration" in held else None

    def _retry(self, given: dict[str, Any], place: str) -> dict[str, Any]:
        limit = given.get("limit") or {}
        attempt = limit.get("attempt") or {}
        count = attempt.get("count")
        if count is not None and count < 0:
            self.fault(f"{place}/limit/attempt/count", f"Expected a number of at least 0, got {count}.")
        backoff = next(iter(given.get("backoff") or {"constant": {}}))
        jitter = given.get("jitter") or {}
        delay = self._duration(given["delay"], f"{place}/delay") if "delay" in given else 0.0
        bounds = [self._duration(jitter[key], f"{place}/jitter/{key}") if key in jitter else 0.0 for key in ("from", "to")]
        least, most = (bound if isinstance(bound, float) else None for bound in bounds)
        if least is not None and most is not None and least > most:
            self.fault(f"{place}/jitter", "`from` is longer than `to`.")
        policy = RetryPolicy(
            # The count is of retries. Without any limit, and with a limit of time alone, there is always a next one.
            max_attempts=UNLIMITED if count is None else max(0, count) + 1,
            backoff=backoff,
            base_s=delay if isinstance(delay, float) else 0.0,
            factor=2.0,
            cap_s=LONGEST_DELAY_S,
            jitter=0.0,
            added_s=(0.0 if least is None else least, 0.0 if most is None else most),
        )
        return {
            "retry": policy,
            "retry_when": self._expression(given["when"], f"{place}/when") if "when" in given else None,
            "retry_except_when": self._expression(given["exceptWhen"], f"{place}/exceptWhen") if "exceptWhen" in given else None,
            "retry_limit_s": self._duration(limit["duration"], f"{place}/limit/duration") if "duration" in limit else None,
            "retry_delay": None if isinstance(delay, float) else delay,
            "retry_jitter": tuple(bounds) if least is None or most is None else None,
        }

    def _with_authentications(self, value: Any, place: str) -> Any:
        """Names of reusable policies become the policies; those of secrets stay names until the call."""
        if isinstance(value, dict):
            return {
                key: self._authentication(item, f"{place}/{key}")
                if key == "authentication" and isinstance(item, dict)
                else self._with_authentications(item, f"{place}/{key}")
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._with_authentications(item, f"{place}/{n}") for n, item in enumerate(value)]
        return value

    def _authentication(self, given: dict[str, Any], place: str) -> dict[str, Any]:
        if set(given) == {"use"}:
            known = self.use.get("authentications") or {}
            if given["use"] not in known:
                self.fault(
                    place, f"There is no authentication {shown(given['use'])} in use.authentications.", suggestion_for(given["use"], known)
                )
                return {}
            if place.startswith("/use/authentications"):
                self.fault(place, "A reusable authentication cannot use another one.")
                return {}
            found: dict[str, Any] = known[given["use"]]
            return found
        for scheme, held in given.items():
            name = held.get("use") if isinstance(held, dict) else None
            secrets = self.use.get("secrets") or ()
            if name is not None and name not in secrets:
                self.fault(
                    f"{place}/{escaped_pointer(scheme)}/use",
                    f"There is no secret {shown(name)} in use.secrets.",
                    suggestion_for(str(name), secrets),
                )
        return given


def _names(value: Any) -> Iterator[str]:
    """The names of all fields in it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _names(item)
    elif isinstance(value, list):
        for item in value:
            yield from _names(item)


def _wanted(errors: dict[str, Any] | None) -> Any:
    """The filter of a catch; up to 1.0.3 the detail of an error was called `details` there."""
    wanted = (errors or {}).get("with")
    if isinstance(wanted, dict) and "details" in wanted:
        return {("detail" if key == "details" else key): value for key, value in wanted.items()}
    return wanted


def _target(then: str) -> str:
    return then if then in RESERVED else escaped(then)


def _targets(task: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a task may send the flow, and where it says so."""
    if "then" in task:
        yield task["then"], "/then"
    for number, item in enumerate(task.get("switch") or ()):
        [(name, case)] = item.items()
        yield case["then"], f"/switch/{number}/{escaped_pointer(name)}/then"
    if isinstance(task.get("catch"), dict) and "then" in task["catch"]:
        yield task["catch"]["then"], "/catch/then"


def _catalogued(call: str) -> dict[str, str] | None:
    """A URL, `name:version@catalog`, or `name:version` of the runtime's own catalog."""
    if re.match(r"(https?|file)://", call):
        return {"url": call}
    found = re.fullmatch(r"([A-Za-z0-9_.-]+):([^@:]+)(?:@([A-Za-z0-9_.-]+))?", call)
    if found is None:
        return None
    name, version, catalog = found.groups()
    return {"name": name, "version": version, "catalog": catalog or "default"}
