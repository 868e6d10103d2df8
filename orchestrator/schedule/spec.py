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

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orchestrator.definition.parsing import NOWHERE, Model, Name, Seconds, SomeSeconds, Source, identity, parse_as, read_as, shown
from orchestrator.definition.versions import Version
from orchestrator.errors import Fault, Invalid
from orchestrator.schedule import times

Overlap = Literal["allow", "skip", "queue", "cancel"]
Catchup = Literal["last", "all", "none"]


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


def entries_of(data: Any) -> list[tuple[str, Any]]:
    """A file holds one schedule, a list of them, or a mapping with `schedules`: each with its pointer."""
    if isinstance(data, dict) and "schedules" in data:
        given, place = data["schedules"], "/schedules"
        return [(f"{place}/{number}", one) for number, one in enumerate(given)] if isinstance(given, list) else [(place, given)]
    return [(f"/{number}", one) for number, one in enumerate(data)] if isinstance(data, list) else [("", data)]


def read_schedules(data: Any, source: Source = NOWHERE) -> list[Spec]:
    """Every fault of all of them at once."""
    faults: list[Fault] = []
    found: list[Spec] = []
    for place, entry in entries_of(data):
        form, wrong = read_as(ScheduleForm, entry, place=place)
        faults += wrong
        if form is not None:
            if any(spec.id == form.id for spec in found):
                faults.append(Fault(f"{place}/id", f'Another schedule here has the id "{form.id}", too.'))
            found.append(form.spec())
    if faults:
        raise Invalid([source.located(fault) for fault in faults], "schedule")
    return found


def read_schedule(data: Any) -> Spec:
    return parse_as(ScheduleForm, data, what="schedule").spec()


def changed(spec: Spec, **changes: Any) -> Spec:
    return replace(spec, **changes)


# ── as people write it ──────────────────────────────────────────────────────────────────────────────────────────────


def _zone(given: Any) -> Any:
    if given is not None:
        if not isinstance(given, str):
            raise ValueError(f"Expected the name of a time zone, got {shown(given)}.")
        times.zone(given)
    return given


def _every(given: float) -> float:
    if given < 0.1:
        raise ValueError("Expected at least a tenth of a second.")
    return given


class Moments(Model):
    """When: by cron, every so often, or at a moment."""

    timezone: Annotated[str | None, BeforeValidator(_zone)] = None
    cron: str | None = None
    every: Annotated[Seconds, AfterValidator(_every)] | None = None
    at: Any = None

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, given: str | None, info: ValidationInfo) -> str | None:
        if given is not None:
            _told(lambda: times.check_cron(given, info.data.get("timezone") or "UTC"), given)
        return given

    @field_validator("at")
    @classmethod
    def _is_a_moment(cls, given: Any, info: ValidationInfo) -> Any:
        if given is not None:
            _told(lambda: times.moment(given, info.data.get("timezone") or "UTC"), given)
        return given

    def kinds(self) -> dict[str, Any]:
        return {kind: value for kind in ("cron", "every", "at") if (value := getattr(self, kind)) is not None}


def _told(check: Callable[[], object], given: Any) -> None:
    try:
        check()
    except times.BadTime as error:
        raise ValueError(f"{shown(given)} {error}.") from None


class When(Moments):
    enabled: bool | None = None


class Target(Model):
    """`workflow: {id: generate-reports, version: "1.0", nameSpace: reporting}`."""

    required: ClassVar[dict[Any, str]] = {"id": "The id of a workflow is required."}

    id: Name
    version: Version | None = None
    namespace: Name | None = Field(None, validation_alias=AliasChoices("nameSpace", "namespace"))


class Again(Model):
    attempts: int = Field(0, ge=0, le=100)
    delay: Seconds = 300.0


class ScheduleForm(Moments):
    """Nested or flat: `workflowId`, `cron`, `timezone`, `enabled` beside `id` and `name`."""

    required: ClassVar[dict[Any, str]] = {"id": "A schedule needs an id."}

    id: Annotated[str, AfterValidator(identity)]
    name: str | None = None
    description: str | None = None
    workflow: Name | Target | None = None
    workflow_id: Name | None = Field(None, validation_alias="workflowId")
    version: Version | None = None
    namespace: Name | None = Field(None, validation_alias=AliasChoices("nameSpace", "namespace"))
    schedule: When | None = None
    enabled: bool | None = None
    input: Any = Field(default_factory=dict, validation_alias=AliasChoices("properties", "input", "data"))
    retry: Again | None = None
    timeout: SomeSeconds | None = None
    max_concurrent: int | None = Field(None, ge=1, le=10_000, validation_alias="maxConcurrent")
    overlap: Overlap | None = None
    catchup: Catchup = "last"
    catchup_window: Seconds = Field(86400.0, validation_alias="catchupWindow")
    jitter: Seconds = 0.0
    priority: Literal["low", "normal", "high", "critical"] | None = None
    labels: dict[Name, str | StrictBool | StrictInt | StrictFloat] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> ScheduleForm:
        if (self.workflow is None) == (self.workflow_id is None):
            raise ValueError("The id of a workflow is required, as workflow or as workflowId.")
        kinds = [*self.kinds(), *(self.schedule.kinds() if self.schedule else ())]
        if len(kinds) != 1:
            raise ValueError("One of cron, every and at is required." if not kinds else f"Only one of {' and '.join(kinds)} can hold.")
        return self

    def spec(self) -> Spec:
        nested = self.schedule or When()
        target = self.workflow if isinstance(self.workflow, Target) else Target.model_validate({"id": self.workflow or self.workflow_id})
        enabled = next((one for one in (nested.enabled, self.enabled) if one is not None), True)
        return Spec(
            id=self.id,
            name=self.name or self.id,
            description=self.description or "",
            workflow=target.id,
            version=target.version or self.version,
            namespace=target.namespace or self.namespace,
            when=self._when(nested),
            enabled=enabled,
            input=self.input,
            retry_attempts=self.retry.attempts if self.retry else 0,
            retry_delay_s=self.retry.delay if self.retry else 300.0,
            timeout_s=self.timeout,
            max_concurrent=self.max_concurrent,
            overlap=self.overlap or ("skip" if self.max_concurrent else "allow"),
            catchup=self.catchup,
            catchup_window_s=self.catchup_window,
            jitter_s=self.jitter,
            priority=self.priority,
            labels=self.labels,
        )

    def _when(self, nested: When) -> dict[str, Any]:
        zone = nested.timezone or self.timezone or "UTC"
        [(kind, value)] = {**self.kinds(), **nested.kinds()}.items()
        match kind:
            case "cron":
                return {"cron": value, "timezone": zone}
            case "every":
                return {"every": value}
        return {"at": times.moment(value, zone)}
