"""Triggers: what an event does. Pure; how it is done is `engine/intake.py`'s.

    name: sync-content
    on: cms.content.*                    # a type, a list of types; `*` stands for anything
    source: /cms                         # optional, with `*` as well
    filter: .data.serviceId > 0          # jq over the CloudEvent; only true passes
    start: cms-sync                      # or wake, signal, cancel, skip
    input: {service: "${ .data.serviceId }"}
    order: .data.serviceId               # instances of one value run one after another, in the events' order
    idempotency: .id                     # further events with this value start nothing
    acknowledge: ended                   # it counts as handled only when the instance has ended
    timeout: 30s                         # which is ended after so long, and the event tried again
    resource: {kind: proxy, name: .data.hostname}   # what it will create is PENDING from the event on
    debounce: 5s                         # or throttle: {per: 1m, limit: 10}, batch: {size: 100, within: 10s}

Every jq expression sees the CloudEvent as `.`; one that fails fails the event, which is then tried again and put aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.definition.expressions import Expression, Jq, Template, check_jq, embedded, evaluate, is_true, sources
from orchestrator.definition.labels import Labelled
from orchestrator.definition.parsing import identity, read_as
from orchestrator.errors import ExpressionError, Fault, Invalid
from orchestrator.ids import EXECUTION, RUN, id_for, is_instance_id

ACTIONS = ("start", "wake", "signal", "cancel", "skip")
_KNOWN = {
    "name", "on", "source", "filter", *ACTIONS, "version", "input", "order", "idempotency", "debounce", "throttle", "batch",
    "acknowledge", "labels", "priority", "enabled", "description", "reason", "resource", "instance", "timeout",
}  # fmt: skip

_TOLD_AS = (("id", "id"), ("type", "type"), ("timestamp", "time"), ("source", "source"))


@dataclass(frozen=True, slots=True)
class Window:
    """`debounce`: the last one after so much quiet. `throttle`: so many per span. `batch`: many at once."""

    kind: Literal["debounce", "throttle", "batch"]
    seconds: float
    limit: int = 1
    key: Jq | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    name: str
    types: tuple[str, ...]
    sources: tuple[str, ...] = ()
    filter: Jq | None = None
    action: Literal["start", "wake", "signal", "cancel", "skip"] = "start"
    target: Expression = field(default_factory=lambda: Template(""))
    """What is started, the type that wakes, the signal's name; for `cancel` the instances."""
    instances: Jq | None = None
    step: Jq | None = None
    """Of `skip`: the task whose wait is over; else all of them are."""
    version: str | None = None
    input: Expression = field(default_factory=lambda: Jq(".data"))
    order: Jq | None = None
    scope: str = ""
    idempotency: Jq | None = None
    instance: Jq | None = None
    """The id of the instance that is started: the same one is started once."""
    window: Window | None = None
    awaited: bool = False
    """Whether the event counts as handled only when the instance has ended."""
    labels: Template | None = None
    priority: str | int | None = None
    reason: str | None = None
    timeout_s: float | None = None
    """How long what is awaited may take, where that is said."""
    says_input: bool = True
    workflow: Jq | None = None
    """Of `signal` and `skip`: whose only running instance is meant where the event names none."""
    resource_kind: str | None = None
    resource_name: Jq | None = None
    enabled: bool = True

    def input_of(self, event: Mapping[str, Any], *, wrapped: bool) -> Any:
        """What a start gets of an event. `wrapped`: where the trigger says nothing of it, the event as it came."""
        if self.says_input or not wrapped:
            return evaluate(self.input, event, {})
        return {"triggerEvent": {**{ours: event.get(theirs) for ours, theirs in _TOLD_AS}, "payload": event.get("data")}}

    @property
    def literal_target(self) -> str | None:
        """None: which one it is shows only with an event."""
        value = self.target.value if isinstance(self.target, Template) else None
        return value if isinstance(value, str) and embedded(value) is None else None

    def wants(self, event: Mapping[str, Any]) -> bool:
        """By type and source alone."""
        return _like(event.get("type"), self.types) and (not self.sources or _like(event.get("source"), self.sources))

    def passes(self, event: Mapping[str, Any]) -> bool:
        return self.filter is None or is_true(evaluate(self.filter, event, {}))

    def order_of(self, event: Mapping[str, Any]) -> str | None:
        return _key(self.order, event, "order")

    def idempotency_of(self, event: Mapping[str, Any]) -> str | None:
        return _key(self.idempotency, event, "idempotency")

    def resource_of(self, event: Mapping[str, Any]) -> tuple[str, str] | None:
        name = _key(self.resource_name, event, "resource")
        return None if name is None or self.resource_kind is None else (self.resource_kind, name)

    def instance_of(self, event: Mapping[str, Any], tenant: str) -> str | None:
        found = _key(self.instance, event, "instance")
        return None if found is None else instance_id_of(found, tenant)

    def window_key(self, event: Mapping[str, Any]) -> str:
        return "" if self.window is None else _key(self.window.key, event, "key") or ""


def instance_id_of(text: str, tenant: str) -> str:
    """Ids of other systems stand for ids of ours: always the same for the same. One that we gave out as `ex_…` or `run_…` is ours."""
    own = text.removeprefix(EXECUTION).removeprefix(RUN)
    return own if is_instance_id(own) else id_for(f"execution/{tenant}/{text}")


def _like(text: Any, patterns: tuple[str, ...]) -> bool:
    return isinstance(text, str) and any(text == p or (("*" in p or "?" in p) and fnmatchcase(text, p)) for p in patterns)


def _key(expression: Jq | None, event: Mapping[str, Any], what: str) -> str | None:
    if expression is None:
        return None
    value = evaluate(expression, event, {})
    if value is None or isinstance(value, dict | list):
        if value is not None:
            raise ExpressionError(f"`{what}` of a trigger gave {type(value).__name__}; a text or number is needed")
        return None
    return str(value)


def read_triggers(data: Any, place: str = "", *, is_kept: bool = False) -> list[Trigger]:
    """One trigger, a list of them, or a mapping with `triggers`; every fault at once.

    `is_kept`: it was taken once, and goes on under a name and with labels that nobody could give it today.
    """
    given = data.get("triggers", data) if isinstance(data, dict) else data
    entries = given if isinstance(given, list) else [given]
    faults: list[Fault] = []
    found: list[Trigger] = []
    for number, entry in enumerate(entries):
        where = f"{place}/{number}" if isinstance(given, list) else place
        reader = _Reader(entry, where, is_kept)
        trigger = reader.trigger()
        faults += reader.faults
        if trigger is not None and not reader.faults:
            found.append(trigger)
    names = [trigger.name for trigger in found]
    faults += [Fault(place, f"two triggers are named '{name}'") for name in sorted({n for n in names if names.count(n) > 1})]
    if faults:
        raise Invalid(faults, "trigger")
    return found


def entries_of(data: Any) -> list[dict[str, Any]]:
    """The mappings of triggers as they are written, for keeping."""
    given = data.get("triggers", data) if isinstance(data, dict) else data
    return list(given) if isinstance(given, list) else [given]


class _Reader:
    def __init__(self, data: Any, place: str, is_kept: bool) -> None:
        self.is_kept = is_kept
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        self.place = place
        self.faults: list[Fault] = [] if isinstance(data, dict) else [Fault(place, "a trigger is a mapping with `name`, `on` and `start`")]

    def fault(self, key: str, message: str) -> None:
        self.faults.append(Fault(f"{self.place}/{key}", message))

    def trigger(self) -> Trigger | None:
        if self.faults:
            return None
        for key in sorted(set(self.data) - _KNOWN):
            self.fault(key, f"is not known; a trigger has {', '.join(sorted(_KNOWN))}")
        actions = [name for name in ACTIONS if name in self.data]
        if len(actions) != 1:
            self.fault("start", f"one of {', '.join(ACTIONS)} is needed" + (f", not {' and '.join(actions)}" if actions else ""))
        action = actions[0] if actions else "start"
        name = self.data.get("name")
        if not isinstance(name, str):
            self.fault("name", "a name is needed")
        elif not self.is_kept:
            try:
                identity(name)
            except ValueError as error:
                self.fault("name", str(error))
        types = self._texts("on", required=True)
        target, instances = self._target(action)
        window = self._window()
        if window is not None and action != "start":
            self.fault(window.kind, "is for triggers that start something")
        acknowledge = self.data.get("acknowledge", "started")
        if acknowledge not in ("started", "ended"):
            self.fault("acknowledge", f"is {acknowledge!r}; write started or ended")
        if "timeout" in self.data and acknowledge != "ended":
            self.fault("timeout", "is for triggers with `acknowledge: ended`")
        order = self._jq("order")
        written = self.data.get("input")
        resource = self._resource()
        return Trigger(
            name=str(name),
            types=types,
            sources=self._texts("source"),
            filter=self._jq("filter"),
            action=action,  # type: ignore[arg-type]
            target=target,
            instances=instances,
            step=self._jq("skip/step", self.data["skip"].get("step")) if isinstance(self.data.get("skip"), dict) else None,
            version=None if self.data.get("version") is None else str(self.data["version"]),
            input=self._expression("input", written) if "input" in self.data else Jq(".data"),
            order=order,
            scope=order.source if order else "",
            idempotency=self._jq("idempotency"),
            instance=self._jq("instance"),
            window=window,
            awaited=acknowledge == "ended",
            labels=self._labels(),
            priority=self.data.get("priority"),
            reason=None if self.data.get("reason") is None else str(self.data["reason"]),
            timeout_s=self._seconds("timeout"),
            says_input="input" in self.data,
            workflow=self._jq(f"{action}/workflow", self.data[action].get("workflow")) if isinstance(self.data.get(action), dict) else None,
            enabled=self.data.get("enabled", True) is not False,
            resource_kind=resource[0],
            resource_name=resource[1],
        )

    def _seconds(self, key: str) -> float | None:
        given = self.data.get(key)
        if given is None:
            return None
        try:
            length = seconds(given)
        except (BadDuration, TypeError):
            length = 0.0
        if length <= 0:
            self.fault(key, f"is {given!r}; a duration above zero, such as 30s, is needed")
        return length

    def _texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        given = self.data.get(key)
        texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        if (required and not texts) or not all(isinstance(text, str) and text for text in texts):
            self.fault(key, "a text or a list of texts is needed")
            return ()
        if given is not None and not texts:
            self.fault(key, "a text or a list of texts is needed")
        return tuple(texts)

    def _jq(self, key: str, given: Any = None) -> Jq | None:
        given = self.data.get(key) if given is None else given
        if given is None:
            return None
        if not isinstance(given, str):
            self.fault(key, "a jq expression is needed")
            return None
        source = embedded(given) or given
        try:
            check_jq(source)
        except (ExpressionError, ValueError) as error:
            self.fault(key, str(error))
        return Jq(source)

    def _expression(self, key: str, given: Any) -> Expression:
        if isinstance(given, str):
            return self._jq(key, given) or Jq(".data")
        self._check_inside(key, given)
        return Template(given)

    def _check_inside(self, key: str, given: Any) -> None:
        for source in sources(given):
            try:
                check_jq(source)
            except (ExpressionError, ValueError) as error:
                self.fault(key, str(error))

    def _target(self, action: str) -> tuple[Expression, Jq | None]:
        given = self.data.get(action)
        if action == "signal":
            if not isinstance(given, dict) or not isinstance(given.get("name"), str) or "instance" not in given:
                self.fault("signal", "a mapping with `name` and `instance` (jq that gives an id or several) is needed")
                return Template(""), None
            return Template(given["name"]), self._jq("signal/instance", given["instance"])
        if action in ("cancel", "skip"):
            source = given.get("instance") if isinstance(given, dict) else given
            if not isinstance(source, str):
                self.fault(action, "jq that gives the id of an instance, or several, is needed")
                return Template(""), None
            return Template(""), self._jq(action, source)
        if not isinstance(given, str) or not given:
            self.fault(action, "a name is needed, or `${ jq }` that gives it")
            return Template(""), None
        self._check_inside(action, given)
        return Template(given), None

    def _resource(self) -> tuple[str | None, Jq | None]:
        given = self.data.get("resource")
        if given is None:
            return None, None
        if not isinstance(given, dict) or not isinstance(given.get("kind"), str) or not isinstance(given.get("name"), str):
            self.fault("resource", "a mapping with `kind` and `name` (jq) is needed")
            return None, None
        return given["kind"], self._jq("resource/name", given["name"])

    def _labels(self) -> Template | None:
        given = self.data.get("labels")
        if given is None:
            return None
        if not isinstance(given, dict):
            self.fault("labels", "a mapping is needed")
            return None
        if not self.is_kept:
            self.faults += read_as(Labelled, {"labels": given}, place=self.place)[1]
        self._check_inside("labels", given)
        return Template(given)

    def _window(self) -> Window | None:
        kinds = [kind for kind in ("debounce", "throttle", "batch") if kind in self.data]
        if len(kinds) > 1:
            self.fault(kinds[1], f"cannot stand beside {kinds[0]}")
        if not kinds:
            return None
        kind = kinds[0]
        given = self.data[kind]
        body = given if isinstance(given, dict) else {"for": given}
        span_key = {"debounce": "for", "throttle": "per", "batch": "within"}[kind]
        limit_key = {"debounce": None, "throttle": "limit", "batch": "size"}[kind]
        span = body.get(span_key, body.get("for"))
        try:
            length = seconds(span)
            if length <= 0:
                raise BadDuration(span)
        except (BadDuration, TypeError):
            self.fault(kind, f"`{span_key}` is {span!r}; a duration like 5s is needed")
            length = 1.0
        limit: Any = body.get(limit_key, 1 if kind != "batch" else 100) if limit_key else 1
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= 10_000:
            self.fault(kind, f"`{limit_key}` is {limit!r}; a number from 1 to 10,000 is needed")
            limit = 1
        key = self._jq(f"{kind}/key", body["key"]) if body.get("key") is not None else None
        return Window(kind, length, limit, key)
