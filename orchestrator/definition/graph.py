"""The graph form: named steps with dependencies, in YAML or JSON.

    type: pin_operation
    steps:
      - {id: validate, type: log, parameters: {message: checking}}
      - {id: execute, type: delay, parameters: {delay: 2s}, dependencies: [validate], retries: 5, timeout: 2m}
    retries: 3
    timeout: 5m
    metadata: {saga: true, priority: high}

Retries are extra attempts: 3 means four in all, 0 means none, absent means the default.
"""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from orchestrator.definition import nested
from orchestrator.definition.approval import approval
from orchestrator.definition.dependencies import Dependency
from orchestrator.definition.expressions import Jq, Merge, Template
from orchestrator.definition.external import external
from orchestrator.definition.nested import jq_of
from orchestrator.definition.parsing import Many, Model, Name, Seconds, SomeSeconds, Source, parse_as
from orchestrator.definition.retry import MOST_ATTEMPTS, RetryPolicy
from orchestrator.definition.tree import AnyTask, Around, Compensation, Definition, Graph, Limits, Node, Run, Step, Written
from orchestrator.definition.versions import Version

Retries = Annotated[int, Field(ge=0, le=1000)]
Parameters = dict[str, Any]


def _as_list(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


class RetryForm(Model):
    """`{max_attempts: 5, initial_delay: 1s, max_delay: 5m, factor: 2, jitter: true}`."""

    max_attempts: int = Field(3, ge=1, le=MOST_ATTEMPTS, validation_alias=AliasChoices("max_attempts", "maxAttempts", "attempts"))
    backoff: Literal["exponential", "linear", "constant"] = Field("exponential", validation_alias=AliasChoices("backoff", "strategy"))
    base_s: Seconds = Field(1.0, validation_alias=AliasChoices("initial_delay", "initialDelay", "delay", "base"))
    factor: StrictFloat | StrictInt = Field(2.0, ge=1, le=100, validation_alias=AliasChoices("factor", "backoffFactor", "backoff_factor"))
    cap_s: Seconds = Field(300.0, validation_alias=AliasChoices("max_delay", "maxDelay", "cap"))
    jitter: StrictBool | Annotated[float, Field(ge=0, le=1, strict=False)] = Field(True)
    retry_on: Annotated[tuple[Name, ...], Many] = Field((), validation_alias=AliasChoices("retry_on", "retryOn"))
    no_retry_on: Annotated[tuple[Name, ...], Many] = Field((), validation_alias=AliasChoices("no_retry_on", "noRetryOn", "non_retryable"))

    def policy(self) -> RetryPolicy:
        jitter = 0.5 if self.jitter is True else float(self.jitter)
        held = {name: getattr(self, name) for name in ("max_attempts", "backoff", "base_s", "cap_s", "retry_on", "no_retry_on")}
        return RetryPolicy(**held, factor=float(self.factor), jitter=jitter)


class Retried(Model):
    """What may be tried again: so many extra attempts, or a policy."""

    retries: Retries | None = None
    retry: RetryForm | None = None

    def policy(self) -> RetryPolicy | None:
        if self.retry is not None:
            return self.retry.policy()
        return None if self.retries is None else RetryPolicy(max_attempts=self.retries + 1)


class CompensationForm(Retried):
    """How a completed step is undone: `compensation: refund`, or `{type: refund, parameters: …, retries: 3}`."""

    type: Name
    parameters: Parameters | None = None
    timeout: SomeSeconds | None = None


NOT_GIVEN: Any = object()


def _template(given: Any) -> Template | None:
    return None if given is NOT_GIVEN else Template(given)


class ExternalForm(Model):
    """The parameters of a step of type `external`."""

    required: ClassVar[dict[Any, str]] = {"type": "The kind of task, for its executor, is required."}

    type: Name
    input: Any = NOT_GIVEN
    config: Parameters | None = None


class ChildForm(Model):
    """The parameters of a step of type `workflow`."""

    required: ClassVar[dict[Any, str]] = {"workflow": "The workflow to run is required."}

    workflow: Name = Field(validation_alias=AliasChoices("workflow", "type"))
    version: Version | None = None
    input: Any = NOT_GIVEN
    awaited: bool = Field(True, validation_alias="await")


FORMS: dict[str, builtins.type[Model]] = {"external": ExternalForm, "workflow": ChildForm, **nested.FORMS}
"""The parameters of steps that no executor does."""
# What only a step with an executor of its own has.
_OF_EXECUTORS = ("retries", "retry", "queue", "isolate", "once", "breaker", "compensation")
_OF_NONE = {"approval": (*_OF_EXECUTORS, "parameters"), **dict.fromkeys(FORMS, _OF_EXECUTORS)}


class StepForm(Retried):
    required: ClassVar[dict[Any, str]] = {
        "id": "step ID is required",
        "name": "step ID is required",
        "type": "step type is required",
    }

    depending: ClassVar[dict[str, tuple[builtins.type[Model], ...]]] = {"parameters": tuple(FORMS.values())}

    id: Name | None = None
    name: Name | None = None
    type: Name
    parameters: Annotated[Any, Parameters | None] = Field(None, validate_default=True)
    dependencies: Annotated[tuple[Name, ...], Many] = ()
    timeout: SomeSeconds | None = None
    queue: Name | None = None
    isolate: bool = False
    once: bool = False
    breaker: Name | None = None
    compensation: str | CompensationForm | None = None
    when: Name | None = None

    @field_validator("parameters", mode="after")
    @classmethod
    def _of_its_type(cls, given: Parameters | None, about: ValidationInfo) -> Any:
        form = FORMS.get(about.data.get("type", ""))
        return given if form is None else form.model_validate(given or {})

    @model_validator(mode="after")
    def _fits_its_type(self) -> StepForm:
        if not (self.id or self.name):
            raise ValueError("step ID is required")
        given = [name for name in _OF_NONE.get(self.type, ()) if name in self.model_fields_set]
        if given:
            raise ValueError(f'A step of type "{self.type}" does not take {", ".join(given)}.')
        return self

    @property
    def own(self) -> str:
        """What it is called in positions, dependencies and data."""
        return str(self.id or self.name)

    def node(self, written: Written, place: str) -> Node:
        return Node(task=written.at(self.task(written, place), place), after=self.dependencies)

    def task(self, written: Written, place: str) -> AnyTask:
        """`place` is the pointer of the step; where its parts stand is noted in `written`."""
        around = Around(output_as=Merge(self.own), condition=None if self.when is None else jq_of(self.when))
        given = self.parameters
        match given:
            case ExternalForm():
                return external(self.own, given.type, _template(given.input), self.timeout, given.config, around)
            case ChildForm():
                return Run(
                    name=self.own, workflow=given.workflow, version=given.version, input=_template(given.input) or Jq("."),
                    awaited=given.awaited, around=replace(around, timeout_s=self.timeout),
                )  # fmt: skip
            case nested.NestedForm():
                return given.task(self.own, replace(around, timeout_s=self.timeout), written, f"{place}/parameters")
        if self.type == "approval":
            return approval(self.own, self.timeout, around.condition)
        return Step(
            name=self.own,
            type=nested.ALIASES.get(self.type, self.type),
            parameters=written.at(Template(given or {}), f"{place}/parameters"),
            retry=self.policy(),
            timeout_s=self.timeout,
            queue=self.queue,
            isolate=self.isolate,
            once=self.once,
            breaker=self.breaker,
            compensation=self._undone_by(),
            around=around,
        )

    def _undone_by(self) -> Compensation | None:
        held = self.compensation
        if held is None or isinstance(held, str):
            return None if not held else Compensation(type=held)
        parameters = None if held.parameters is None else Template(held.parameters)
        return Compensation(type=held.type, parameters=parameters, retry=held.policy(), timeout_s=held.timeout)


for _form in nested.FORMS.values():
    _form.model_rebuild(_types_namespace={"StepForm": StepForm})


Count = Annotated[int, Field(ge=1, le=1_000_000)]
Amount = Annotated[float, Field(gt=0, strict=False)]


class LimitsForm(Model):
    """`{concurrency: 5}`, `{key: .customer, per_key: 1}`; `{memory_mb: 500, cpu_percent: 80, disk_mb: 10}`."""

    concurrency: Count | None = Field(None, validation_alias=AliasChoices("concurrency", "workflow"))
    key: Name | None = None
    per_key: Count | None = None
    memory_mb: Amount | None = None
    cpu_percent: Amount | None = None
    disk_mb: Amount | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> LimitsForm:
        if self.per_key is not None and self.key is None:
            raise ValueError("per_key needs a key: the expression whose values are limited.")
        return self

    def limits(self) -> Limits:
        return Limits(
            workflow=self.concurrency,
            key=None if self.key is None else jq_of(self.key),
            per_key=self.per_key or (1 if self.key else None),
            memory_mb=self.memory_mb,
            cpu_percent=self.cpu_percent,
            disk_mb=self.disk_mb,
        )


class Metadata(Model):
    """Kept and returned as it is; of these the engine knows a meaning."""

    model_config = ConfigDict(extra="allow")

    saga: bool = False
    compensate_on_cancel: bool = False
    priority: Literal["low", "normal", "high", "critical"] | None = None
    labels: dict[str, Any] | None = None


def _is_schema(given: Any) -> Any:
    if not isinstance(given, dict | bool):
        raise ValueError("Expected a JSON Schema: a mapping, or true or false.")  # noqa: TRY004  # pydantic takes ValueError for a fault
    return given


def _some(given: tuple[StepForm, ...]) -> tuple[StepForm, ...]:
    if not given:
        raise ValueError("workflow must have at least one step")
    return given


class GraphForm(Retried):
    required: ClassVar[dict[Any, str]] = {
        "type": "workflow type is required",
        "steps": "workflow must have at least one step",
    }

    type: Name | None = None
    id: Name | None = None
    name: Name | None = None
    version: Version = "1"
    namespace: Name = "default"
    title: str | None = None
    description: str | None = None
    steps: Annotated[tuple[StepForm, ...], Many, AfterValidator(_some)]
    timeout: SomeSeconds | None = None
    metadata: Metadata | None = None
    limits: LimitsForm | None = None
    input: Annotated[Any, AfterValidator(_is_schema)] = None
    dependencies: Annotated[tuple[str | Dependency, ...], Many] = ()

    @model_validator(mode="after")
    def _has_a_name(self) -> GraphForm:
        if not (self.type or self.id or self.name):
            raise ValueError("workflow type is required")
        return self

    def definition(self, source: Source) -> Definition:
        written = Written(source)
        nodes = tuple(step.node(written, f"/steps/{number}") for number, step in enumerate(self.steps))
        about = self.metadata or Metadata()
        return Definition(
            name=str(self.type or self.id or self.name),
            version=self.version,
            namespace=self.namespace,
            title=self.title or self.description or "",
            do=Graph(nodes=nodes, around=Around(timeout_s=self.timeout, input_schema=self.input)),
            saga=about.saga,
            compensate_on_cancel=about.compensate_on_cancel,
            retry=self.policy(),
            priority=about.priority,
            step_events=True,
            limits=None if self.limits is None else self.limits.limits(),
            dependencies=tuple(one if isinstance(one, str) else one.to_json() for one in self.dependencies),
            metadata=None if self.metadata is None else self.metadata.model_dump(exclude_unset=True) or None,
            written=written,
        )


def read(data: Any, source: Source) -> Definition:
    return parse_as(GraphForm, data, what="workflow", source=source).definition(source)
