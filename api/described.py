"""What each route takes and gives, beside who may call it (`gate.RULES`): the source of `/openapi.json`.

A route that takes a body and is not described here does not start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from orchestrator.state import EventState, State

Json = dict[str, Any]
STATES = [state.value for state in State]
if TYPE_CHECKING:
    AnyState = str
else:
    AnyState = Literal[tuple(STATES)]


class Open(BaseModel):
    """Further keys are read as well."""

    model_config = ConfigDict(extra="allow")


class Closed(BaseModel):
    """A key that is none is refused."""

    model_config = ConfigDict(extra="forbid")


def _without_null(schema: Json) -> None:
    for about in schema["properties"].values():
        about.pop("default", None)
        kinds = [kind for kind in about.pop("anyOf", ()) if kind != {"type": "null"}]
        about |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}


class Narrowing(Closed):
    """What is to be acted on. A field that is null or empty narrows nothing and would mean more than is there: it is refused."""

    model_config = ConfigDict(json_schema_extra=_without_null)

    @field_validator("*", mode="before")
    @classmethod
    def _narrows(cls, given: Any) -> Any:
        if given in (None, "", [], {}):
            raise PydanticCustomError(
                "empty",
                "is {said}, which narrows nothing; leave it out, or say what is meant",
                {"said": "null" if given is None else "empty"},
            )
        return given


class Start(Closed):
    """With what the input is, beside options."""

    data: Any
    priority: Literal["low", "normal", "high", "critical"] | None = None
    metadata: Json | None = None
    labels: Json | None = None
    dependencies: list[Any] | None = None


class Signal(Open):
    data: Any = None
    id: str | None = None


class Approve(Closed):
    approved: bool = Field(description="Only true approves.")
    step: str | None = Field(None, description="The approval's name; else the only one that waits.")
    data: Any = Field(None, description="More to be said.")


class Acknowledge(Closed):
    numbers: list[int] = Field(min_length=1, max_length=1000)
    reason: str | None = Field(None, max_length=2000)


class SkipWait(Closed):
    step: str | None = Field(None, description="Else all waits end.")


class Cancel(Closed):
    reason: str | None = None
    compensate: bool | None = None


class Rerun(Closed):
    step: str
    input: Any = None


class Dependency(Open):
    workflowId: str | None = None
    instanceId: str | None = None
    condition: Literal["completed", "failed", "any"] = "completed"


class Bulk(Narrowing):
    state: AnyState | list[AnyState] | None = None
    workflow: str | None = None
    labels: dict[str, str | bool | int | float] | None = Field(None, description="All of them must hold.")
    search: str | None = None
    limit: int | None = Field(None, ge=1, le=10_000)


class Forget(Narrowing):
    ids: list[str] | None = Field(None, max_length=10_000)
    workflow: str | None = None
    status: Literal["completed", "failed", "cancelled"] | None = None
    search: str | None = None
    since: str | None = None
    until: str | None = None
    limit: int | None = Field(None, ge=1, le=10_000)


class Cleanup(Closed):
    olderThan: str | None = Field(None, description="As 30d; else RETENTION.")


class Event(Open):
    """A CloudEvent."""

    id: str
    source: str
    type: str
    data: Any = None


class EventFilter(Narrowing):
    model_config = ConfigDict(extra="ignore")

    state: str | None = None
    type: str | None = None
    source: str | None = None
    key: str | None = None
    stream: str | None = None
    text: str | None = None
    since: str | None = None
    until: str | None = None
    limit: int | None = Field(None, ge=1, le=10_000)


class BusEvent(Open):
    eventType: str
    payload: Any = None


class Webhook(BaseModel):
    name: str
    url: str
    secret: str = Field(description="The name of a secret of the bridge; it is not one.")
    types: list[str] | None = None


class Schedule(Open):
    """Nested or flat; docs/how-to/schedule-workflows.md."""

    id: str
    name: str | None = None
    workflow: Any = None
    workflowId: str | None = None
    schedule: Json | None = None
    cron: str | None = None
    timezone: str | None = None


class Range(BaseModel):
    from_: str = Field(alias="from")
    to: str


class Key(BaseModel):
    name: str
    roles: list[str] | None = None
    tenant: str | None = None
    scopes: list[str] | None = None
    workflows: list[str] | None = None
    lasts: str | None = None


class Overlap(BaseModel):
    overlap: str | None = None


class Resolution(BaseModel):
    resolution: str | None = None


class Configuration(Open):
    """docs/how-to/configure-workflows.md."""

    id: str | None = None
    nameSpace: str | None = None
    enabled: bool | None = None
    maxRetries: int | None = Field(None, ge=0, le=10)
    timeout: int | None = Field(None, ge=1000, le=3_600_000)
    concurrency: int | None = Field(None, ge=1, le=100)
    properties: Json | None = None


class Migration(BaseModel):
    from_: str = Field(alias="from")
    to: str


class Enabled(BaseModel):
    enabled: bool


class To(BaseModel):
    to: int


class Proxy(Open):
    hostname: str | None = None
    target: str | None = None
    enable_http: bool | None = None
    enable_https: bool | None = None


class Route(Open):
    id: str | None = None
    path: str
    target: str


class Alert(Open):
    status: Literal["firing", "resolved"] = "firing"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    startsAt: str | None = Field(None, max_length=64)
    endsAt: str | None = Field(None, max_length=64)
    fingerprint: str | None = Field(None, max_length=128)


class Alerts(Open):
    """As Alertmanager sends them."""

    alerts: list[Alert] = Field(max_length=1000)


class TenantWorkflow(Open):
    """A document, beside what it is called."""

    name: str | None = None
    description: str | None = None
    definition: Json


class TenantExecute(Open):
    input: Any = None
    correlation_id: str | None = Field(None, max_length=200)


class TenantAct(BaseModel):
    action: Literal["pause", "resume", "cancel", "retry"]
    reason: str | None = None


class Problem(BaseModel):
    """RFC 9457; `error` and `message` are what older clients read."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    status: int
    code: str
    error: str
    message: str
    detail: str


@dataclass(frozen=True, slots=True)
class Described:
    """`body` as JSON, and where `is_text` as YAML as well; `query` by name, with the schema of each."""

    body: Any = None
    gives: tuple[int, ...] = (200,)
    query: tuple[tuple[str, Json], ...] = ()
    is_text: bool = False
    is_optional: bool = True
    media: str = "application/json"
    checks_itself: bool = False
    """The route knows more of what is wrong than the model does, and says all of it at once."""
    is_asked_by_others: bool = False
    """By probes and scrapers, which send what they like."""


def _text(**more: Any) -> Json:
    return {"type": "string", **more}


def _several(one: Json) -> Json:
    """A parameter that may be given more than once."""
    return {"type": "array", "items": one}


def _number(most: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": most}


_MOMENT = _text(format="date-time")
_ENVIRONMENT = ("environment", _text(enum=["development", "staging", "production", "test"]))
_EVENTS = (
    ("state", _text(enum=[state.value for state in EventState])), *((name, _text()) for name in ("type", "source", "key", "stream", "text")), ("since", _MOMENT),
    ("until", _MOMENT), ("before", _number(2**62)), ("cursor", _number(2**62)), ("limit", _number(1000)),
)  # fmt: skip
_AUDIT = (
    *((name, _text()) for name in ("actor", "user", "action", "source", "workflow", "address")), ("instanceId", _text(format="uuid")),
    ("since", _MOMENT), ("until", _MOMENT), ("page", _number(100_000)), ("cursor", _number(2**62)), ("limit", _number(1000)),
)  # fmt: skip
_HISTORY = (
    ("status", _text(enum=["completed", "failed", "cancelled"])), ("workflow", _text()), ("search", _text()), ("since", _MOMENT),
    ("until", _MOMENT),
)  # fmt: skip

DESCRIBED: dict[str, Described] = {
    "health.health": Described(gives=(200, 503), is_asked_by_others=True),
    "health.ready": Described(gives=(200, 503), is_asked_by_others=True),
    "metrics.metrics": Described(media="text/plain", is_asked_by_others=True),
    # A body without `data` is the input as it stands.
    "instances.start": Described(Start | Json, (201,), (("version", _text()),)),
    "instances.listing": Described(
        query=(
            ("state", _several(_text(enum=STATES))),
            ("workflow", _text()),
            ("search", _text()),
            ("label", _several(_text(pattern="^[^=]+="))),
            ("limit", _number(1000)),
            ("cursor", _text()),
            ("offset", {"type": "integer", "minimum": 0}),
        )
    ),
    "instances.show": Described(query=(("data", _text(enum=["brief", "whole"])),)),
    "live.instance": Described(media="text/event-stream"),
    "live.events": Described(query=tuple((name, _text()) for name in ("type", "source", "key")), media="text/event-stream"),
    "instances.pause": Described(),
    "instances.resume": Described(),
    "instances.retry": Described(),
    "instances.rollback": Described(),
    "instances.signal": Described(Signal, (202,)),
    "instances.approve": Described(Approve, is_optional=False),
    "instances.skip_wait": Described(SkipWait),
    "instances.cancel": Described(Cancel),
    "history.listing": Described(query=(*_HISTORY, ("page", _number(100_000)), ("limit", _number(1000)))),
    "history.days": Described(query=_HISTORY),
    "history.forget_many": Described(Forget, is_optional=False),
    "instances.dead_letters": Described(query=(("cursor", _number(2**62)), ("limit", _number(1000)))),
    "instances.acknowledge": Described(Acknowledge, is_optional=False),
    "instances.rerun": Described(Rerun, (201,), is_optional=False),
    "instances.add_dependency": Described(Dependency, (201,), is_optional=False),
    "instances.bulk": Described(Bulk, is_optional=False),
    "instances.cleanup": Described(Cleanup),
    "instances.enforce": Described(),
    "instances.workflows": Described(query=(("nameSpace", _text()), ("search", _text()))),
    "instances.metrics": Described(query=(("format", _text(enum=["json", "prometheus"])),), media="*/*"),
    "instances.status": Described(gives=(200, 503)),
    "definitions.register": Described(Json, (200, 201), is_text=True, is_optional=False),
    "events.send": Described(Event | list[Event], (200, 202), is_optional=False),
    "events.listing": Described(query=_EVENTS),
    "events.replay_one": Described(),
    "events.replay": Described(EventFilter, is_optional=False),
    "events.discard": Described(EventFilter, is_optional=False),
    "bus.publish": Described(BusEvent, is_optional=False),
    "bus.recent": Described(query=(("limit", _number(1000)),)),
    "triggers.put": Described(Json, (201,), is_text=True, is_optional=False),
    "triggers.enable": Described(),
    "triggers.put_webhook": Described(Webhook, (201,), is_optional=False, checks_itself=True),
    "triggers.send_again": Described(),
    "schedules.listing": Described(query=(("workflow", _text()), ("nameSpace", _text()))),
    "schedules.create": Described(Schedule, (201,), is_text=True, is_optional=False, checks_itself=True),
    "schedules.validate": Described(Schedule, is_text=True, is_optional=False, checks_itself=True),
    "schedules.reload": Described(),
    "schedules.one": Described(query=(("upcoming", _number(1000)),)),
    "schedules.update": Described(Schedule, is_text=True, is_optional=False, checks_itself=True),
    "schedules.switch": Described(),
    "schedules.run": Described(gives=(202,)),
    "schedules.backfill": Described(Range, (202,), is_optional=False),
    "schedules.history": Described(query=(("before", _MOMENT), ("cursor", _MOMENT), ("limit", _number(1000)))),
    "breakers.reset": Described(),
    "configs.listing": Described(
        query=(
            _ENVIRONMENT,
            ("workflowId", _text()),
            ("nameSpace", _text()),
            ("version", _text()),
            ("format", _text(enum=["json", "yaml"])),
        ),
        media="*/*",
    ),
    "configs.save": Described(Configuration, (201,), (_ENVIRONMENT,), is_text=True, is_optional=False, checks_itself=True),
    "configs.validate": Described(Any, is_text=True, is_optional=False),
    "configs.reload": Described(),
    "configs.watch": Described(Enabled, is_optional=False),
    "configs.migrate": Described(Migration, is_optional=False),
    "configs.one": Described(query=(_ENVIRONMENT,)),
    "configs.update": Described(Configuration, (200,), (_ENVIRONMENT,), is_text=True, is_optional=False, checks_itself=True),
    "configs.delete": Described(query=(_ENVIRONMENT,)),
    "configs.versions": Described(query=(_ENVIRONMENT,)),
    "configs.diff": Described(query=(("from", _number(10**9)), ("to", _number(10**9)), _ENVIRONMENT)),
    "configs.rollback": Described(To, (200,), (_ENVIRONMENT,), is_optional=False),
    "proxies.create": Described(Proxy, (201,), is_optional=False, checks_itself=True),
    "proxies.change": Described(Proxy, is_optional=False, checks_itself=True),
    "proxies.put_route": Described(Route, (201,), is_optional=False, checks_itself=True),
    "security.audit": Described(query=_AUDIT),
    "security.export": Described(query=_AUDIT, media="application/x-ndjson"),
    "security.security_events": Described(
        query=(
            ("type", _text()),
            ("resolved", {"type": "boolean"}),
            ("before", _number(2**62)),
            ("cursor", _number(2**62)),
            ("limit", _number(1000)),
        )
    ),
    "security.resolve": Described(Resolution),
    "security.add_key": Described(Key, (201,), is_optional=False),
    "security.rotate_key": Described(Overlap, (201,)),
    "alerts.receive": Described(Alerts, is_optional=False),
    "alerts.receive_as": Described(Alerts, is_optional=False),
    "service.trigger": Described(Json, (202,)),
    "service.trigger_alias": Described(Json, (202,)),
    "service.history": Described(query=(("limit", _number(200)),)),
    "service.service_metrics": Described(media="text/plain"),
    "openapi.page": Described(media="text/html"),
    "openapi.home": Described(media="*/*"),
}

# By the route that makes something: the key of the answer that names it, the argument that takes it, and the routes about it.
LINKED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "instances.start": (
        "instanceId", "instance_id",
        ("instances.show", "instances.history", "instances.pause", "instances.resume", "instances.cancel", "instances.retry",
         "instances.rollback", "instances.resources", "history.one", "history.forget"),
    ),
    "instances.rerun": ("instanceId", "instance_id", ("instances.show", "instances.cancel")),
    "service.trigger": ("runId", "instance_id", ("instances.show", "instances.cancel")),
    "schedules.create": (
        "id", "schedule",
        ("schedules.one", "schedules.update", "schedules.switch", "schedules.run", "schedules.history", "schedules.delete"),
    ),
    "configs.save": ("id", "config", ("configs.one", "configs.update", "configs.versions", "configs.delete")),
    "security.add_key": ("id", "key_id", ("security.rotate_key", "security.revoke_key")),
    "tenants.create": ("id", "workflow", ("tenants.one", "tenants.execute", "tenants.delete")),
    "tenants.execute": ("id", "instance_id", ("tenants.execution", "tenants.act", "tenants.execution_events")),
    "proxies.create": ("hostname", "hostname", ("proxies.one", "proxies.change", "proxies.delete")),
}  # fmt: skip

for _version in ("", "_v1"):
    DESCRIBED |= {
        f"tenants.create{_version}": Described(TenantWorkflow | Json, (201,), is_text=True, is_optional=False, checks_itself=True),
        f"tenants.change{_version}": Described(TenantWorkflow | Json, is_text=True, is_optional=False, checks_itself=True),
        f"tenants.execute{_version}": Described(TenantExecute, (202,)),
        f"tenants.act{_version}": Described(TenantAct, is_optional=False),
        f"tenants.workflow_events{_version}": Described(query=(("execution_id", _text()), ("since", _MOMENT), ("limit", _number(1000)))),
        f"tenants.execution_events{_version}": Described(query=(("since", _MOMENT), ("limit", _number(1000)))),
        f"tenants.executions{_version}": Described(
            query=(
                ("workflow_id", _text()), ("status", _text(enum=[state.lower() for state in STATES])), ("limit", _number(1000)),
                ("offset", {"type": "integer", "minimum": 0, "maximum": 10**9}),
            )
        ),
    }  # fmt: skip
