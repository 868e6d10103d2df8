"""A workflow's configuration: what operators set without touching its definition. Read with every fault, and applied. Pure.

id: data-processing            # the workflow
nameSpace: etl                 # and its namespace, where several have one name
enabled: true                  # false: nothing starts it
maxRetries: 3                  # attempts after the first, of steps that say nothing themselves
timeout: 300000                # milliseconds, of a whole instance
priority: normal
concurrency: 5                 # instances at once
dependencies: [data-validation]
properties: {batchSize: 1000}  # defaults under the input
variants: [{version: "1.0", weight: 80}, {version: "2.0", weight: 20}]    # which version a start gets that names none
security: {requireAuth: true, allowedRoles: [admin], permissions: ["data:read"]}
monitoring: {enabled: true, metrics: [execution_time, error_rate], alerts: [high_error_rate], errorRate: 0.2, sla: 5000}
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, AliasChoices, Field, StrictFloat, StrictInt

from orchestrator.definition.dependencies import Dependency
from orchestrator.definition.parsing import NOWHERE, Many, Model, Name, Source, parse_as, read_as, shown, suggestion_for
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import Definition, Limits
from orchestrator.definition.versions import Version, parse_version
from orchestrator.errors import Fault

ENVIRONMENTS = ("development", "staging", "production", "test")
LARGEST_BYTES = 1024 * 1024
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings go into one another, everything else is replaced."""
    found = dict(base)
    for key, value in over.items():
        held = found.get(key)
        found[key] = merged(held, value) if isinstance(held, dict) and isinstance(value, dict) else value
    return found


def faults_of(config: Any) -> list[Fault]:
    """All of them, by the pointers of their fields."""
    return read_as(ConfigForm, config)[1]


def checked(config: Any, source: Source = NOWHERE) -> dict[str, Any]:
    parse_as(ConfigForm, config, what="configuration", source=source)
    return dict(config)


def key(workflow: str, namespace: str | None = None, version: object = None) -> str:
    """What a configuration is about, as it is kept: `etl/data-processing@2.0`, or `data-processing` for all of that name."""
    return f"{f'{namespace}/' if namespace else ''}{workflow}{f'@{version}' if version not in (None, '') else ''}"


def key_of(config: Mapping[str, Any]) -> str:
    return key(str(config["id"]), config.get("nameSpace") or config.get("namespace"), config.get("version"))


def keys_for(namespace: str, workflow: str, version: str) -> list[str]:
    """Of what the configuration of a version of a workflow may be kept under; the most general first."""
    parts = parse_version(version)
    written = [version, *(".".join(str(part) for part in parts[:count]) for count in (1, 2, 3))]
    versions = [None, *dict.fromkeys(sorted(written, key=len))]
    return [key(workflow, where, one) for where in (None, namespace) for one in versions]


def misplaced(config: Mapping[str, Any], known: Collection[tuple[str, str]]) -> list[Fault]:
    """A namespace in which the workflow is not, while another has it: what it forbids would be forbidden to nobody."""
    namespace, workflow = config.get("nameSpace") or config.get("namespace"), config.get("id")
    elsewhere = sorted(where for where, name in known if name == workflow)
    if namespace is None or not elsewhere or namespace in elsewhere:
        return []
    place = "/nameSpace" if config.get("nameSpace") else "/namespace"
    return [
        Fault(
            place,
            f'The workflow "{workflow}" is not in namespace "{namespace}".',
            suggestion_for(str(namespace), elsewhere) or f"It is in {', '.join(elsewhere)}.",
        )
    ]


def warnings_of(config: Mapping[str, Any], known: Collection[str]) -> list[Fault]:
    """What is allowed, and probably not meant."""
    found: list[Fault] = []
    security = config.get("security") or {}
    if security.get("requireAuth") and not security.get("permissions") and not security.get("allowedRoles"):
        found.append(Fault("/security", "requireAuth without permissions or allowedRoles lets everybody who is authenticated start it."))
    return found + unknown_of(config, known)


def unknown_of(config: Mapping[str, Any], known: Collection[str]) -> list[Fault]:
    """Workflows that it names and that are not there."""
    found: list[Fault] = []
    for name in config.get("dependencies") or ():
        workflow = name if isinstance(name, str) else name.get("workflow") or name.get("workflowId")
        if workflow and workflow not in known:
            found.append(Fault("/dependencies", f'Unknown workflow "{workflow}".', suggestion_for(str(workflow), known, listed=False)))
    if config.get("id") not in known:
        found.append(Fault("/id", f'Unknown workflow "{config.get("id")}".', suggestion_for(str(config.get("id")), known, listed=False)))
    return found


def without_definition(config: Mapping[str, Any], versions: Collection[str]) -> list[Fault]:
    """Variants of a workflow that has these versions, and not theirs: a start that is given one of them is refused."""
    return [
        Fault(
            f"/variants/{number}/version",
            f'The workflow "{config.get("id")}" has no version "{variant["version"]}".',
            f"It has {', '.join(sorted(versions))}.",
        )
        for number, variant in enumerate(config.get("variants") or ())
        if versions and str(variant["version"]) not in versions
    ]


def applied(definition: Definition, config: Mapping[str, Any]) -> Definition:
    """The definition as it is under a configuration. Instances keep the one they began with."""
    changes: dict[str, Any] = {}
    if config.get("maxRetries") is not None:
        changes["retry"] = replace(definition.retry or RetryPolicy(), max_attempts=config["maxRetries"] + 1)
    if config.get("timeout") is not None:
        around = replace(definition.do.around, timeout_s=config["timeout"] / 1000)
        changes["do"] = replace(definition.do, around=around)
    if config.get("priority") is not None:
        changes["priority"] = config["priority"]
    if config.get("concurrency") is not None:
        changes["limits"] = replace(definition.limits or Limits(), workflow=config["concurrency"])
    if config.get("dependencies"):
        changes["dependencies"] = (*definition.dependencies, *config["dependencies"])
    return replace(definition, **changes) if changes else definition


def with_properties(config: Mapping[str, Any], input: Any) -> Any:
    """Properties are defaults: what the start says goes before them."""
    properties = config.get("properties")
    if not properties or not isinstance(input, dict | type(None)):
        return input
    return merged(properties, input or {})


def chosen(config: Mapping[str, Any], luck: float) -> str | None:
    """The version of a start that names none, by the weights of the variants; `luck` is in [0, 1)."""
    variants = config.get("variants") or ()
    total = sum(one["weight"] for one in variants)
    mark = luck * total
    for one in variants:
        mark -= one["weight"]
        if mark < 0:
            return str(one["version"])
    return None


def differences(before: Any, after: Any, place: str = "") -> list[dict[str, Any]]:
    """What was added, removed and modified, by place."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: list[dict[str, Any]] = []
        for key in sorted({*before, *after}):
            where = f"{place}/{key}"
            if key not in before:
                found.append({"change": "added", "place": where, "after": after[key]})
            elif key not in after:
                found.append({"change": "removed", "place": where, "before": before[key]})
            else:
                found += differences(before[key], after[key], where)
        return found
    return [] if before == after else [{"change": "modified", "place": place or "/", "before": before, "after": after}]


# ── as people write it ──────────────────────────────────────────────────────────────────────────────────────────────


def _identity(given: str) -> str:
    if not _ID.fullmatch(given):
        raise ValueError(f"Expected up to 200 letters, digits and . _ -, beginning with a letter or digit, got {shown(given)}.")
    return given


class Variant(Model):
    version: Version
    weight: StrictInt | StrictFloat = Field(ge=0, le=1_000_000)


def _weighty(given: tuple[Variant, ...] | None) -> tuple[Variant, ...] | None:
    if given is not None and not sum(one.weight for one in given):
        raise ValueError("One of the variants needs a weight above zero.")
    return given


class Security(Model):
    require_auth: bool | None = Field(None, validation_alias="requireAuth")
    permissions: Annotated[tuple[Name, ...], Many] | None = None
    allowed_roles: Annotated[tuple[Name, ...], Many] | None = Field(None, validation_alias="allowedRoles")


class Monitoring(Model):
    enabled: bool | None = None
    metrics: Annotated[tuple[Literal["execution_time", "error_rate"], ...], Many] | None = None
    alerts: Annotated[tuple[Literal["execution_timeout", "high_error_rate"], ...], Many] | None = None
    sla: int | None = Field(None, ge=1, le=86_400_000)
    error_rate: StrictInt | StrictFloat | None = Field(None, gt=0, le=1, validation_alias="errorRate")


class ConfigForm(Model):
    """Null says nothing, wherever it stands."""

    required: ClassVar[dict[Any, str]] = {"id": "The id of the workflow is required."}

    id: Annotated[str, AfterValidator(_identity)]
    namespace: Name | None = Field(None, validation_alias=AliasChoices("nameSpace", "namespace"))
    name: str | None = None
    description: str | None = None
    version: Version | None = None
    enabled: bool | None = None
    max_retries: int | None = Field(None, ge=0, le=10, validation_alias="maxRetries")
    timeout: int | None = Field(None, ge=1000, le=3_600_000)
    priority: Literal["low", "normal", "high", "critical"] | None = None
    concurrency: int | None = Field(None, ge=1, le=100)
    dependencies: Annotated[tuple[str | Dependency, ...], Many] | None = None
    properties: dict[str, Any] | None = None
    variants: Annotated[tuple[Variant, ...], Many, Field(min_length=1), AfterValidator(_weighty)] | None = None
    security: Security | None = None
    monitoring: Monitoring | None = None
