"""A schedule as people write it, nested or flat, one or many in a file; and as it is kept.

id: daily-reports                    # flat: workflowId, cron, timezone, enabled beside id and name
name: Daily Report Generation
workflow: {id: generate-reports, version: "1.0", nameSpace: reporting}
schedule: {cron: "0 6 * * *", timezone: UTC, enabled: true}      # or every: 5m, or at: 2027-01-01T00:00:00Z
properties: {reportTypes: [sales]}   # the input
retry: {attempts: 3, delay: 300}     # seconds; a run that failed goes on from its failed step
timeout: 1800                        # seconds
maxConcurrent: 1
overlap: skip                        # or queue, cancel, allow
catchup: last                        # or all, none: what becomes of times that passed while nothing ran
jitter: 30s
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.errors import Fault, Invalid
from orchestrator.schedule import times

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
Overlap = Literal["allow", "skip", "queue", "cancel"]
Catchup = Literal["last", "all", "none"]
KNOWN = {
    "id", "name", "description", "workflow", "workflowId", "version", "nameSpace", "namespace", "schedule", "cron", "timezone", "every", "at",
    "enabled", "properties", "input", "data", "retry", "timeout", "maxConcurrent", "overlap", "catchup", "catchupWindow", "jitter",
    "priority", "labels",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One schedule, understood."""

    id: str
    name: str = ""
    description: str = ""
    workflow: str
    version: str | None = None
    namespace: str | None = None
    when: dict[str, Any]
    """`{cron, timezone}`, `{every}` in seconds or `{at}` as a moment of the epoch."""
    enabled: bool = True
    input: Any = field(default_factory=dict)
    retry_attempts: int = 0
    retry_delay_s: float = 300.0
    timeout_s: float | None = None
    max_concurrent: int | None = None
    overlap: Overlap = "allow"
    catchup: Catchup = "last"
    catchup_window_s: float = 86400.0
    jitter_s: float = 0.0
    priority: str | int | None = None
    labels: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        return next(kind for kind in ("cron", "every", "at") if kind in self.when)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of_json(kept: dict[str, Any]) -> Spec:
        return Spec(**kept)

    @property
    def target(self) -> str:
        return f"{self.namespace}.{self.workflow}" if self.namespace else self.workflow


def entries_of(data: Any) -> list[Any]:
    """A file holds one schedule, a list of them, or a mapping with `schedules`."""
    given = data.get("schedules", data) if isinstance(data, dict) else data
    return given if isinstance(given, list) else [given]


def read_schedules(data: Any, place: str = "") -> list[Spec]:
    """Every fault of all of them at once."""
    faults: list[Fault] = []
    found: list[Spec] = []
    entries = entries_of(data)
    for number, entry in enumerate(entries):
        try:
            found.append(read_schedule(entry, place if len(entries) == 1 else f"{place}/{number}"))
        except Invalid as error:
            faults += error.faults
    ids = [spec.id for spec in found]
    faults += [Fault(place, f"two schedules have the id '{one}'") for one in sorted({i for i in ids if ids.count(i) > 1})]
    if faults:
        raise Invalid(faults, "schedule")
    return found


def changed(spec: Spec, **changes: Any) -> Spec:
    return replace(spec, **changes)


def read_schedule(data: Any, place: str = "") -> Spec:
    reader = _Reader(data, place)
    spec = reader.spec()
    if spec is None or reader.faults:
        raise Invalid(reader.faults, "schedule")
    return spec


class _Reader:
    def __init__(self, data: Any, place: str) -> None:
        self.data = data if isinstance(data, dict) else {}
        self.place = place
        self.faults: list[Fault] = [] if isinstance(data, dict) else [Fault(place, "a schedule is a mapping")]

    def fault(self, key: str, message: str) -> None:
        self.faults.append(Fault(f"{self.place}/{key}", message))

    def spec(self) -> Spec | None:
        if self.faults:
            return None
        for key in sorted(set(self.data) - KNOWN):
            self.fault(key, f"is not known; a schedule has {', '.join(sorted(KNOWN))}")
        nested = self._mapping("schedule")
        workflow, version, namespace = self._workflow()
        enabled = self._flag(nested, "schedule/enabled", self._flag(self.data, "enabled", True))
        identity = self.data.get("id")
        if not isinstance(identity, str) or not NAME.fullmatch(identity):
            self.fault("id", "a text of letters, digits and ._:- is needed")
            identity = ""
        retry = self._mapping("retry")
        found = {
            "id": identity,
            "name": self._text("name") or identity,
            "description": self._text("description") or "",
            "workflow": workflow,
            "version": version,
            "namespace": namespace,
            "when": self._when({**{k: self.data[k] for k in ("cron", "timezone", "every", "at") if k in self.data}, **nested}),
            "enabled": enabled,
            "input": next((self.data[key] for key in ("properties", "input", "data") if key in self.data), {}),
            "retry_attempts": self._number(retry, "retry/attempts", 0, 0, 100),
            "retry_delay_s": self._span(retry.get("delay"), "retry/delay", 300.0),
            "timeout_s": self._span(self.data.get("timeout"), "timeout", None),
            "max_concurrent": self._number(self.data, "maxConcurrent", None, 1, 10_000),
            "catchup": self._one_of("catchup", get_args(Catchup), "last"),
            "catchup_window_s": self._span(self.data.get("catchupWindow"), "catchupWindow", 86400.0),
            "jitter_s": self._span(self.data.get("jitter"), "jitter", 0.0),
            "priority": self.data.get("priority"),
            "labels": self._mapping("labels") or None,
        }
        found["overlap"] = self._one_of("overlap", get_args(Overlap), "skip" if found["max_concurrent"] else "allow")
        return None if self.faults else Spec(**found)

    def _workflow(self) -> tuple[str, str | None, str | None]:
        given = self.data.get("workflow", self.data.get("workflowId"))
        about: dict[str, Any] = given if isinstance(given, dict) else {"id": given}
        identity = about.get("id")
        if not isinstance(identity, str) or not identity:
            self.fault("workflow", "the id of a workflow is needed")
            identity = ""
        version = about.get("version", self.data.get("version"))
        namespace = about.get("nameSpace", about.get("namespace", self.data.get("nameSpace", self.data.get("namespace"))))
        return identity, None if version is None else str(version), namespace if isinstance(namespace, str) else None

    def _when(self, given: dict[str, Any]) -> dict[str, Any]:
        kinds = [kind for kind in ("cron", "every", "at") if given.get(kind) is not None]
        if len(kinds) != 1:
            self.fault("schedule", "one of cron, every, at is needed" if not kinds else f"only one of {', '.join(kinds)} can hold")
            return {"every": 1.0}
        zone = given.get("timezone") or "UTC"
        try:
            times.zone(zone)
        except times.BadTime as error:
            self.fault("schedule/timezone", str(error))
            zone = "UTC"
        try:
            match kinds[0]:
                case "cron":
                    times.check_cron(given["cron"], zone)
                    return {"cron": given["cron"], "timezone": zone}
                case "every":
                    every = seconds(given["every"])
                    if every < 0.1:
                        raise times.BadTime("is shorter than a tenth of a second")
                    return {"every": every}
                case _:
                    return {"at": times.moment(given["at"], zone)}
        except (times.BadTime, BadDuration) as error:
            self.fault(f"schedule/{kinds[0]}", f"{given[kinds[0]]!r} {error}")
            return {"every": 1.0}

    def _mapping(self, key: str) -> dict[str, Any]:
        given = self.data.get(key) or {}
        if not isinstance(given, dict):
            self.fault(key, "a mapping is needed")
            return {}
        return given

    def _text(self, key: str) -> str | None:
        given = self.data.get(key)
        if given is not None and not isinstance(given, str):
            self.fault(key, "a text is needed")
            return None
        return given

    def _flag(self, holder: dict[str, Any], key: str, default: bool) -> bool:
        given = holder.get(key.rpartition("/")[2], default)
        if not isinstance(given, bool):
            self.fault(key, "true or false is needed")
            return default
        return given

    def _number(self, holder: dict[str, Any], key: str, default: int | None, least: int, most: int) -> int | None:
        given = holder.get(key.rpartition("/")[2], default)
        if given is not None and (not isinstance(given, int) or isinstance(given, bool) or not least <= given <= most):
            self.fault(key, f"is {given!r}; a number from {least} to {most:,} is needed")
            return default
        return given

    def _span(self, given: Any, key: str, default: float | None) -> float | None:
        """A number is seconds; a text says its unit."""
        if given is None:
            return default
        try:
            found = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else seconds(given)
        except BadDuration as error:
            self.fault(key, f"{given!r} {error}")
            return default
        if found < 0:
            self.fault(key, "is below zero")
        return found

    def _one_of(self, key: str, allowed: tuple[str, ...], default: str) -> Any:
        given = self.data.get(key, default)
        if given not in allowed:
            self.fault(key, f"is {given!r}; one of {', '.join(allowed)} is needed")
            return default
        return given
