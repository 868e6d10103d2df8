"""Documents: workflows written as YAML or JSON. This front end reads the graph form:

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

import hashlib
import json
from typing import Any

from orchestrator.definition.approval import approval
from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.definition.expressions import Jq, Merge, Template
from orchestrator.definition.external import external
from orchestrator.definition.parsing import NOWHERE, Source
from orchestrator.definition.reading import read
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.serverless import v08, v1
from orchestrator.definition.tree import AnyTask, Around, Compensation, Definition, Graph, Limits, Node, Run, Step
from orchestrator.errors import Fault, Invalid


def parse(text: str, name: str = "") -> Any:
    """YAML or JSON as data, within bounds; a syntax error is a fault with its line. `name` is the file's."""
    return read(text, name)


def read_document(text: str, name: str = "") -> Definition:
    """A definition from a document's text; every fault at once."""
    return definition_from(parse(text, name), Source(name, text))


def definition_from(data: Any, source: Source = NOWHERE) -> Definition:
    """By its keys a document says which front end it is for: `document` is the DSL 1.0, `states` 0.8, `steps` the graph form."""
    if isinstance(data, dict) and "document" in data:
        return v1.read(data, source)
    if isinstance(data, dict) and "states" in data:
        return v08.read(data, source)
    if not isinstance(data, dict):
        raise Invalid([Fault("", "a workflow document is a mapping with `type` and `steps`")])
    reader = _Reader(data)
    definition = reader.definition()
    if reader.faults:
        raise Invalid(reader.faults)
    assert definition is not None
    return definition


def inline(document: Any) -> Definition:
    """The definition of a document that was computed, under a name that follows from its content."""
    if isinstance(document, dict) and isinstance(document.get("document"), dict):
        text = json.dumps(document, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        about = {**document["document"], "name": f"{document['document'].get('name', 'inline')}-{digest}"[-63:]}
        return definition_from({**document, "document": about})
    raise Invalid([Fault("", "is no workflow document")], "computed workflow")


_DEFINITION_KEYS = {
    "type",
    "id",
    "name",
    "version",
    "namespace",
    "title",
    "description",
    "steps",
    "retries",
    "retry",
    "timeout",
    "metadata",
    "limits",
    "input",
    "dependencies",
}
_STEP_KEYS = {
    "id",
    "type",
    "name",
    "parameters",
    "dependencies",
    "retries",
    "retry",
    "timeout",
    "queue",
    "isolate",
    "once",
    "breaker",
    "compensation",
    "when",
}


class _Reader:
    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.faults: list[Fault] = []

    def fault(self, place: str, message: str) -> None:
        self.faults.append(Fault(place, message))

    def definition(self) -> Definition | None:
        data = self.data
        self._unknown(data, _DEFINITION_KEYS, "")
        name = data.get("type") or data.get("id") or data.get("name")
        if not isinstance(name, str) or not name:
            self.fault("type", "workflow type is required")
        steps = data.get("steps")
        if not isinstance(steps, list) or not steps:
            self.fault("steps", "workflow must have at least one step")
            steps = []
        metadata = data.get("metadata") or {}
        if not isinstance(metadata, dict):
            self.fault("metadata", "must be a mapping")
            metadata = {}
        for flag in ("saga", "compensate_on_cancel"):
            if flag in metadata and not isinstance(metadata[flag], bool):
                self.fault(f"metadata.{flag}", f"is {metadata[flag]!r}; write true or false")
        nodes = [node for number, step in enumerate(steps) if (node := self._node(step, f"steps[{number}]")) is not None]
        around = Around(timeout_s=self._duration(data.get("timeout"), "timeout"), input_schema=data.get("input"))
        if self.faults:
            return None
        return Definition(
            name=str(name),
            version=str(data.get("version", "1")),
            namespace=str(data.get("namespace", "default")),
            title=str(data.get("title") or data.get("description") or ""),
            do=Graph(nodes=tuple(nodes), around=around),
            saga=metadata.get("saga") is True,
            compensate_on_cancel=metadata.get("compensate_on_cancel") is True,
            retry=self._retry(data, ""),
            priority=metadata.get("priority"),
            step_events=True,
            limits=self._limits(data.get("limits")),
            dependencies=tuple(data.get("dependencies") or ()),
            metadata=metadata or None,
        )

    def _node(self, step: Any, place: str) -> Node | None:
        if not isinstance(step, dict):
            self.fault(place, "a step is a mapping with `id` and `type`")
            return None
        self._unknown(step, _STEP_KEYS, place)
        name, type = step.get("id") or step.get("name"), step.get("type")
        if not isinstance(name, str) or not name:
            self.fault(f"{place}.id", "step ID is required")
            return None
        if not isinstance(type, str) or not type:
            self.fault(f"{place}.type", "step type is required")
            return None
        after = step.get("dependencies") or []
        if not isinstance(after, list) or not all(isinstance(item, str) for item in after):
            self.fault(f"{place}.dependencies", "must be a list of step IDs")
            after = []
        task = self._task(name, type, step, place)
        return None if task is None else Node(task=task, after=tuple(after))

    def _task(self, name: str, type: str, step: dict[str, Any], place: str) -> AnyTask | None:
        parameters = step.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            self.fault(f"{place}.parameters", "must be a mapping")
            return None
        timeout_s = self._duration(step.get("timeout"), f"{place}.timeout")
        condition = Jq(step["when"]) if isinstance(step.get("when"), str) else None
        around = Around(output_as=Merge(name), condition=condition)
        given = parameters or {}
        if type == "approval":
            return approval(name, timeout_s)
        if type == "external":
            if not isinstance(given.get("type"), str):
                self.fault(f"{place}.parameters.type", "names the kind of task for its executor, and is required")
                return None
            given_input = Template(given["input"]) if "input" in given else None
            return external(name, given["type"], given_input, timeout_s, given.get("config"), around)
        if type == "workflow":
            workflow = given.get("workflow") or given.get("type")
            if not isinstance(workflow, str):
                self.fault(f"{place}.parameters.workflow", "names the workflow to run, and is required")
                return None
            task_input = Template(given["input"]) if "input" in given else Jq(".")
            around = Around(output_as=Merge(name), condition=condition, timeout_s=timeout_s)
            version = given.get("version")
            return Run(
                name=name,
                workflow=workflow,
                version=None if version is None else str(version),
                input=task_input,
                awaited=given.get("await", True) is not False,
                around=around,
            )
        return Step(
            name=name,
            type=type,
            parameters=Template(given),
            retry=self._retry(step, place),
            timeout_s=timeout_s,
            queue=step.get("queue"),
            isolate=step.get("isolate") is True,
            once=step.get("once") is True,
            breaker=self._name_of_breaker(step, place),
            compensation=self._compensation(step.get("compensation"), place),
            around=around,
        )

    def _name_of_breaker(self, step: dict[str, Any], place: str) -> str | None:
        given = step.get("breaker")
        if given is not None and (not isinstance(given, str) or not given):
            self.fault(f"{place}.breaker", "names a circuit breaker: a text is needed")
            return None
        return given

    def _compensation(self, given: Any, place: str) -> Compensation | None:
        if given is None:
            return None
        if isinstance(given, str):
            return Compensation(type=given)
        if not isinstance(given, dict) or not isinstance(given.get("type"), str):
            self.fault(f"{place}.compensation", "names a handler's type, or is a mapping with `type`")
            return None
        parameters = given.get("parameters")
        return Compensation(
            type=given["type"],
            parameters=None if parameters is None else Template(parameters),
            retry=self._retry(given, f"{place}.compensation"),
            timeout_s=self._duration(given.get("timeout"), f"{place}.compensation.timeout"),
        )

    def _retry(self, data: dict[str, Any], place: str) -> RetryPolicy | None:
        prefix = f"{place}." if place else ""
        if "retry" in data and data["retry"] is not None:
            return self._policy(data["retry"], f"{prefix}retry")
        retries = data.get("retries")
        if retries is None:
            return None
        if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 1000:
            self.fault(f"{prefix}retries", f"is {retries!r}; write a number of extra attempts, 0 for none")
            return None
        return RetryPolicy(max_attempts=retries + 1)

    _POLICY_KEYS = {
        "max_attempts": ("max_attempts", "maxAttempts", "attempts"),
        "backoff": ("backoff", "strategy"),
        "base_s": ("initial_delay", "initialDelay", "delay", "base"),
        "factor": ("factor", "backoffFactor", "backoff_factor"),
        "cap_s": ("max_delay", "maxDelay", "cap"),
        "jitter": ("jitter",),
        "retry_on": ("retry_on", "retryOn"),
        "no_retry_on": ("no_retry_on", "noRetryOn", "non_retryable"),
    }

    def _policy(self, given: Any, place: str) -> RetryPolicy | None:
        if not isinstance(given, dict):
            self.fault(place, "must be a mapping such as {max_attempts: 5, initial_delay: 1s, max_delay: 5m, factor: 2, jitter: true}")
            return None
        names = {alias: field for field, aliases in self._POLICY_KEYS.items() for alias in aliases}
        values: dict[str, Any] = {}
        for key, value in given.items():
            field = names.get(key)
            if field is None:
                self.fault(f"{place}.{key}", f"is unknown; known are {', '.join(sorted(names))}")
            elif field in ("base_s", "cap_s"):
                values[field] = self._duration(value, f"{place}.{key}")
            elif field in ("retry_on", "no_retry_on"):
                values[field] = tuple(str(item) for item in (value if isinstance(value, list) else [value]))
            elif field == "jitter":
                values[field] = 0.5 if value is True else 0.0 if value is False else value
            else:
                values[field] = value
        if "max_attempts" in values and (
            isinstance(values["max_attempts"], bool) or not isinstance(values["max_attempts"], int) or values["max_attempts"] < 1
        ):
            self.fault(f"{place}.max_attempts", "must be a number of at least 1")
            return None
        if values.get("backoff", "exponential") not in ("exponential", "linear", "constant"):
            self.fault(f"{place}.backoff", "write exponential, linear or constant")
            return None
        for field, least, most in (("factor", 1, 100), ("jitter", 0, 1)):
            number = values.get(field, 1)
            if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number <= most:
                self.fault(f"{place}.{field}", f"must be between {least} and {most}")
                return None
        return RetryPolicy(**{key: value for key, value in values.items() if value is not None})

    def _limits(self, given: Any) -> Limits | None:
        if given is None:
            return None
        if not isinstance(given, dict):
            self.fault("limits", "must be a mapping such as {concurrency: 5} or {key: .customer, per_key: 1}")
            return None
        key = given.get("key")
        return Limits(
            workflow=given.get("concurrency", given.get("workflow")),
            key=Jq(key) if isinstance(key, str) else None,
            per_key=given.get("per_key", 1 if key else None),
            **{name: self._amount(given.get(name), f"limits.{name}") for name in ("memory_mb", "cpu_percent", "disk_mb")},
        )

    def _amount(self, value: Any, place: str) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            self.fault(place, "must be a number above zero")
            return None
        return float(value)

    def _duration(self, value: Any, place: str) -> float | None:
        if value is None:
            return None
        try:
            return seconds(value)
        except BadDuration as error:
            self.fault(place, str(error))
            return None

    def _unknown(self, data: dict[str, Any], known: set[str], place: str) -> None:
        for key in data:
            if key not in known:
                close = [name for name in known if name.startswith(str(key)[:3])]
                hint = f"; did you mean {' or '.join(sorted(close))}?" if close else ""
                self.fault(f"{place}.{key}" if place else str(key), f"is no known key{hint}")
