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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import Definition, Limits
from orchestrator.errors import Fault, Invalid

ENVIRONMENTS = ("development", "staging", "production", "test")
LARGEST_BYTES = 1024 * 1024
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_PRIORITIES = ("low", "normal", "high", "critical")
_METRICS = ("execution_time", "error_rate")
_ALERTS = ("execution_timeout", "high_error_rate")
_KEYS = (
    "id", "nameSpace", "name", "description", "version", "enabled", "maxRetries", "timeout", "priority", "concurrency", "dependencies",
    "properties", "variants", "security", "monitoring",
)  # fmt: skip


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings go into one another, everything else is replaced."""
    found = dict(base)
    for key, value in over.items():
        held = found.get(key)
        found[key] = merged(held, value) if isinstance(held, dict) and isinstance(value, dict) else value
    return found


def faults_of(config: Any) -> list[Fault]:
    """All of them, by the names of their keys."""
    if not isinstance(config, dict):
        return [Fault("", "a configuration is a mapping")]
    reader = _Reader(config)
    reader.read()
    return reader.faults


def checked(config: Any) -> dict[str, Any]:
    if faults := faults_of(config):
        raise Invalid(faults, "configuration")
    return dict(config)


def warnings_of(config: Mapping[str, Any], known: Sequence[str]) -> list[Fault]:
    """What is allowed, and probably not meant."""
    found: list[Fault] = []
    security = config.get("security") or {}
    if security.get("requireAuth") and not security.get("permissions") and not security.get("allowedRoles"):
        found.append(Fault("security", "requireAuth without permissions or allowedRoles: everybody who is known may start it"))
    return found + unknown_of(config, known)


def unknown_of(config: Mapping[str, Any], known: Sequence[str]) -> list[Fault]:
    """Workflows that it names and that are not there."""
    found: list[Fault] = []
    for name in config.get("dependencies") or ():
        workflow = name if isinstance(name, str) else name.get("workflow") or name.get("workflowId")
        if workflow and workflow not in known:
            found.append(Fault("dependencies", f"'{workflow}' is no workflow that is known"))
    if config.get("id") not in known:
        found.append(Fault("id", f"'{config.get('id')}' is no workflow that is known"))
    return found


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


class _Reader:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.faults: list[Fault] = []

    def fault(self, place: str, message: str) -> None:
        self.faults.append(Fault(place, message))

    def read(self) -> None:
        config = self.config
        self._known(config, _KEYS, "")
        if not isinstance(config.get("id"), str) or not _ID.fullmatch(config["id"]):
            self.fault("id", "names the workflow: letters, digits and ._- are needed")
        for key in ("nameSpace", "name", "description"):
            self._is(config, key, str, "a text")
        if config.get("version") is not None and not isinstance(config["version"], str | int | float):
            self.fault("version", "is no version")
        self._is(config, "enabled", bool, "true or false")
        self._number("maxRetries", 0, 10)
        self._number("timeout", 1000, 3_600_000)
        self._number("concurrency", 1, 100)
        if config.get("priority") is not None and config["priority"] not in _PRIORITIES:
            self.fault("priority", f"is {config['priority']!r}; one of {', '.join(_PRIORITIES)} is needed")
        dependencies = config.get("dependencies")
        if dependencies is not None and not (isinstance(dependencies, list) and all(isinstance(one, str | dict) for one in dependencies)):
            self.fault("dependencies", "a list of workflows is needed")
        self._is(config, "properties", dict, "a mapping")
        self._variants(config.get("variants"))
        self._security(config.get("security"))
        self._monitoring(config.get("monitoring"))

    def _variants(self, given: Any) -> None:
        if given is None:
            return
        if not isinstance(given, list) or not given:
            self.fault("variants", "a list of {version, weight} is needed")
            return
        for number, one in enumerate(given):
            is_one = isinstance(one, dict) and isinstance(one.get("version"), str | int | float) and set(one) <= {"version", "weight"}
            weight = one.get("weight") if is_one else None
            if not is_one or isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
                self.fault(f"variants/{number}", "{version, weight} is needed, and a weight that is not negative")
                return
        if not sum(one["weight"] for one in given):
            self.fault("variants", "one of them needs a weight")

    def _security(self, given: Any) -> None:
        if given is None:
            return
        if not isinstance(given, dict):
            self.fault("security", "a mapping is needed")
            return
        self._known(given, ("permissions", "requireAuth", "allowedRoles"), "security/")
        self._is(given, "requireAuth", bool, "true or false", "security/")
        for key in ("permissions", "allowedRoles"):
            self._texts(given.get(key), f"security/{key}")

    def _monitoring(self, given: Any) -> None:
        if given is None:
            return
        if not isinstance(given, dict):
            self.fault("monitoring", "a mapping is needed")
            return
        self._known(given, ("enabled", "metrics", "alerts", "sla", "errorRate"), "monitoring/")
        sla, rate = given.get("sla"), given.get("errorRate")
        if sla is not None and (isinstance(sla, bool) or not isinstance(sla, int) or not 1 <= sla <= 86_400_000):
            self.fault("monitoring/sla", f"is {sla!r}; milliseconds from 1 to 86,400,000 are needed")
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1):
            self.fault("monitoring/errorRate", f"is {rate!r}; a share above 0, up to 1, is needed")
        self._is(given, "enabled", bool, "true or false", "monitoring/")
        for key, allowed in (("metrics", _METRICS), ("alerts", _ALERTS)):
            if self._texts(given.get(key), f"monitoring/{key}"):
                for one in set(given.get(key) or ()) - set(allowed):
                    self.fault(f"monitoring/{key}", f"'{one}' is none of {', '.join(allowed)}")

    def _known(self, given: dict[str, Any], keys: Sequence[str], place: str) -> None:
        for key in sorted(set(given) - set(keys)):
            self.fault(f"{place}{key}", f"is not known; there are {', '.join(keys)}")

    def _is(self, given: dict[str, Any], key: str, kind: type, said: str, place: str = "") -> None:
        if given.get(key) is not None and not isinstance(given[key], kind):
            self.fault(f"{place}{key}", f"is {given[key]!r}; {said} is needed")

    def _texts(self, given: Any, place: str) -> bool:
        if given is not None and not (isinstance(given, list) and all(isinstance(one, str) for one in given)):
            self.fault(place, "a list of texts is needed")
            return False
        return True

    def _number(self, key: str, least: int, most: int) -> None:
        given = self.config.get(key)
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most):
            self.fault(key, f"is {given!r}; a number from {least:,} to {most:,} is needed")
