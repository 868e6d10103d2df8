"""Odd values in every field of every form: a typed refusal, or something that runs; never an exception that nobody named.

The forms are written out with all of their fields, and a test holds that none was forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator import Limits, RetryPolicy, Workflow
from orchestrator.definition import configured, graph
from orchestrator.definition.documents import definition_from
from orchestrator.definition.expressions import ExpressionError
from orchestrator.definition.validate import check
from orchestrator.engine.options import options_of
from orchestrator.errors import OrchestratorError
from orchestrator.schedule import spec, times
from orchestrator.steps.registry import REGISTRY
from orchestrator.testing import Lab
from tests.odd import NAMES, ODD, places, with_value

RETRY = {
    "max_attempts": 2, "backoff": "linear", "initial_delay": "1s", "factor": 2, "max_delay": "5m", "jitter": False, "retry_on": ["timeout"],
    "no_retry_on": ["validation"],
}  # fmt: skip
GRAPH: dict[str, Any] = {
    "type": "odd",
    "id": "odd",
    "name": "odd",
    "version": "1.2",
    "namespace": "default",
    "title": "T",
    "description": "D",
    "steps": [
        {"id": "a", "type": "log", "parameters": {"message": "m", "level": "info"}, "retries": 1, "timeout": "5s", "when": "true"},
        {"id": "b", "name": "b", "type": "noop", "dependencies": ["a"], "retry": RETRY, "queue": "q", "isolate": False, "once": False,
         "breaker": "b", "compensation": {"type": "noop", "parameters": {"x": 1}, "retries": 1, "retry": RETRY, "timeout": "1s"}},
        {"id": "c", "type": "delay", "parameters": {"delay": "1s"}, "compensation": "noop"},
        {"id": "d", "type": "workflow", "parameters": {"workflow": "other", "version": "1", "input": {"a": 1}, "await": False}},
        {"id": "e", "type": "fail", "parameters": {"message": "m"}, "when": "false"},
        {"id": "f", "type": "conditional", "parameters": {"condition": "always_true"}},
    ],
    "retries": 1,
    "retry": RETRY,
    "timeout": "5m",
    "metadata": {"saga": True, "compensate_on_cancel": False, "priority": "high", "labels": {"a": "b"}, "owner": "me"},
    "limits": {"concurrency": 5, "key": ".customer", "per_key": 1, "memory_mb": 500, "cpu_percent": 80, "disk_mb": 10},
    "input": {"type": "object", "properties": {"n": {"type": "number"}}},
    "dependencies": ["x", {"workflow": "y", "condition": "any"}],
}  # fmt: skip
NESTED = {
    "id": "s", "name": "S", "description": "D", "workflow": {"id": "w", "version": "1", "nameSpace": "n"},
    "schedule": {"cron": "0 6 * * *", "timezone": "UTC", "enabled": True}, "properties": {"a": 1}, "retry": {"attempts": 1, "delay": 5},
    "timeout": "5s", "maxConcurrent": 1, "overlap": "skip", "catchup": "last", "catchupWindow": "1d", "jitter": "1s", "priority": "high",
    "labels": {"a": "b"},
}  # fmt: skip
FLAT = {"id": "s", "workflowId": "w", "version": "1", "nameSpace": "n", "every": "5m", "enabled": True, "input": {"a": 1}}
CRON = {"id": "s", "workflow": "w", "cron": "0 6 * * *"}
AT = {"id": "s", "workflow": "w", "at": "2027-01-01T00:00:00Z", "timezone": "Europe/Berlin"}
CONFIG = {
    "id": "c", "nameSpace": "n", "name": "N", "description": "D", "version": "1.0", "enabled": True, "maxRetries": 1, "timeout": 1000,
    "priority": "low", "concurrency": 1, "dependencies": ["a", {"workflow": "b"}], "properties": {"a": 1},
    "variants": [{"version": "1", "weight": 1}],
    "security": {"requireAuth": True, "permissions": ["a:b"], "allowedRoles": ["admin"]},
    "monitoring": {"enabled": True, "metrics": ["error_rate"], "alerts": ["high_error_rate"], "sla": 5, "errorRate": 0.5},
}  # fmt: skip
OPTIONS = {
    "priority": "high", "labels": {"a": "b"}, "metadata": {"a": 1}, "tenant": "t", "idempotency_key": "k",
    "dependencies": ["a", {"workflow": "b", "condition": "any"}], "trace_id": "x", "actor": "me", "source": "api",
}  # fmt: skip


def graph_form(document: Any) -> Any:
    definition = definition_from(document)
    check(definition, REGISTRY)
    return definition


def schedule_form(document: Any) -> Any:
    found = spec.read_schedule(document)
    at = times.first(found.when, 1_800_000_000.0)
    following = times.following(found.when, at, at)
    assert following is None or following > at
    return spec.Spec.of_json(found.as_json())


def config_form(document: Any) -> Any:
    return configured.applied(DEFINITION, configured.checked(document))


FORMS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "graph": (graph_form, GRAPH),
    "nested schedule": (schedule_form, NESTED),
    "flat schedule": (schedule_form, FLAT),
    "flat schedule of a cron line": (schedule_form, CRON),
    "moment": (schedule_form, AT),
    "configuration": (config_form, CONFIG),
    "options of a start": (lambda given: options_of(**given), OPTIONS),
}
DEFINITION = definition_from({"type": "t", "steps": [{"id": "a", "type": "noop"}]})


@pytest.mark.parametrize("form", FORMS)
def test_the_form_with_all_its_fields_is_accepted(form: str) -> None:
    read, document = FORMS[form]
    read(document)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_an_odd_value_in_any_field_is_refused_or_is_what_it_says(form: str, name: str) -> None:
    read, document = FORMS[form]
    value = dict(ODD)[name]
    for path in [*places(document), ("unknown",)]:
        try:
            read(with_value(document, path, value))
        except OrchestratorError:
            continue
        assert path != ("unknown",), "an unknown field was passed over"


@pytest.mark.parametrize("form", [form for form in FORMS if form != "options of a start"])
@pytest.mark.parametrize("name", NAMES)
def test_an_odd_value_in_place_of_the_whole_is_refused(form: str, name: str) -> None:
    read, _ = FORMS[form]
    with pytest.raises(OrchestratorError):
        read(dict(ODD)[name])


@pytest.mark.parametrize("name", NAMES)
def test_what_was_accepted_runs_to_an_end_that_has_a_name(name: str) -> None:
    value = dict(ODD)[name]
    small = {key: GRAPH[key] for key in ("type", "steps", "timeout", "limits")}
    for path in places(small):
        try:
            run = Lab().run(graph_form(with_value(small, path, value)), {"customer": "c"})
        except OrchestratorError:
            continue
        assert run.state in ("COMPLETED", "FAILED"), (path, run.state)


BUILDERS: dict[str, Callable[[Any], Workflow]] = {
    "name": lambda v: Workflow(v).then("noop"),
    "version": lambda v: Workflow("w", v).then("noop"),
    "namespace": lambda v: Workflow("w", namespace=v).then("noop"),
    "title": lambda v: Workflow("w", title=v).then("noop"),
    "saga": lambda v: Workflow("w", saga=v).then("noop"),
    "retry": lambda v: Workflow("w", retry=v).then("noop"),
    "retry.max_attempts": lambda v: Workflow("w", retry=RetryPolicy(max_attempts=v)).then("noop"),
    "retry.base_s": lambda v: Workflow("w", retry=RetryPolicy(base_s=v)).then("noop"),
    "retry.factor": lambda v: Workflow("w", retry=RetryPolicy(factor=v)).then("noop"),
    "retry.retry_on": lambda v: Workflow("w", retry=RetryPolicy(retry_on=v)).then("noop"),
    "timeout": lambda v: Workflow("w", timeout=v).then("noop"),
    "priority": lambda v: Workflow("w", priority=v).then("noop"),
    "limits": lambda v: Workflow("w", limits=v).then("noop"),
    "limits.workflow": lambda v: Workflow("w", limits=Limits(workflow=v)).then("noop"),
    "limits.memory_mb": lambda v: Workflow("w", limits=Limits(memory_mb=v)).then("noop"),
    "dependencies": lambda v: Workflow("w", dependencies=v).then("noop"),
    "dependency": lambda v: Workflow("w", dependencies=[v]).then("noop"),
    "input": lambda v: Workflow("w", input=v).then("noop"),
    "output": lambda v: Workflow("w", output=v).then("noop"),
    "metadata": lambda v: Workflow("w", metadata=v).then("noop"),
    "labels": lambda v: Workflow("w", labels=v).then("noop"),
    "then": lambda v: Workflow("w").then(v),
    "then.name": lambda v: Workflow("w").then("noop", v),
    "then.parameters": lambda v: Workflow("w").then("noop", parameters=v),
    "then.retries": lambda v: Workflow("w").then("noop", retries=v),
    "then.timeout": lambda v: Workflow("w").then("noop", timeout=v),
    "then.queue": lambda v: Workflow("w").then("noop", queue=v),
    "then.once": lambda v: Workflow("w").then("noop", once=v),
    "then.breaker": lambda v: Workflow("w").then("noop", breaker=v),
    "then.compensation": lambda v: Workflow("w").then("noop", compensation=v),
    "set": lambda v: Workflow("w").set(v),
    "wait": lambda v: Workflow("w").wait(v),
    "approval": lambda v: Workflow("w").approval(v),
    "approval.timeout": lambda v: Workflow("w").approval("a", timeout=v),
    "external": lambda v: Workflow("w").external(v, "t"),
    "external.type": lambda v: Workflow("w").external("n", v),
    "emit": lambda v: Workflow("w").emit(v),
    "run": lambda v: Workflow("w").run(v),
    "run.version": lambda v: Workflow("w").run("x", version=v),
    "if": lambda v: Workflow("w").if_(v).do("noop"),
    "foreach": lambda v: Workflow("w").foreach(v).do("noop"),
    "foreach.gather": lambda v: Workflow("w").foreach(".x", parallel=True, gather=v).do("noop"),
    "foreach.concurrency": lambda v: Workflow("w").foreach(".x", parallel=True, concurrency=v).do("noop"),
    "parallel.concurrency": lambda v: Workflow("w").parallel(concurrency=v).do("noop").join(),
    "while": lambda v: Workflow("w").while_(v).do("noop"),
    "foreach.each": lambda v: Workflow("w").foreach(".x", each=v).do("noop"),
    "do": lambda v: Workflow("w").if_(".x").do(v),
    "branch": lambda v: Workflow("w").parallel().do(v).join(),
    "branch.name": lambda v: Workflow("w").parallel().do("noop", v).join(),
    "graph.after": lambda v: Workflow("w").graph().step("a", "noop", after=v).done(),
    "graph.step": lambda v: Workflow("w").graph().step(v, "noop").done(),
    "graph.what": lambda v: Workflow("w").graph().step("a", v).done(),
    "wait_for": lambda v: Workflow("w").wait_for(v),
    "wait_for.name": lambda v: Workflow("w").wait_for("paid", v),
    "wait_for.where": lambda v: Workflow("w").wait_for("paid", where=v),
    "wait_for.timeout": lambda v: Workflow("w").wait_for("paid", timeout=v),
    "else": lambda v: Workflow("w").if_(".x").do("noop").else_(v),
    "switch": lambda v: Workflow("w").switch(v).case(".x", "noop").done(),
    "switch.condition": lambda v: Workflow("w").switch().case(v, "noop").done(),
    "switch.case": lambda v: Workflow("w").switch().case(".x", v).done(),
    "switch.case.name": lambda v: Workflow("w").switch().case(".x", "noop", v).done(),
    "switch.default": lambda v: Workflow("w").switch().case(".x", "noop").default(v),
    "try": lambda v: Workflow("w").try_(v).catch("noop"),
    "try.name": lambda v: Workflow("w").try_("noop", name=v).catch("noop"),
    "try.retries": lambda v: Workflow("w").try_("noop", retries=v).catch("noop"),
    "try.retry": lambda v: Workflow("w").try_("noop", retry=v).catch("noop"),
    "catch": lambda v: Workflow("w").try_("fail").catch(v),
    "catch.on": lambda v: Workflow("w").try_("fail").catch("noop", on=v),
    "catch.error": lambda v: Workflow("w").try_("fail").catch("noop", error=v),
}  # fmt: skip


@pytest.mark.parametrize("verb", BUILDERS)
def test_a_builder_takes_odd_values_for_what_they_are_or_refuses_them(verb: str) -> None:
    for name, value in ODD:
        flow = BUILDERS[verb](value)  # nothing is raised while it is written
        workflow = flow if isinstance(flow, Workflow) else None
        try:
            assert workflow is not None
            definition = workflow.build()
            check(definition, REGISTRY)
        except OrchestratorError:
            continue
        if verb == "while":
            continue  # one whose condition holds for ever is a loop without end, which is no fault of a definition
        try:
            run = Lab().start(definition, {"x": [1]})
        except ExpressionError:
            raise AssertionError((verb, name)) from None
        assert run.state in ("COMPLETED", "FAILED", "RUNNING"), (verb, name, run.state)


def test_no_field_of_a_form_is_forgotten() -> None:
    written: dict[type[BaseModel], list[Any]] = {
        graph.GraphForm: [GRAPH],
        graph.StepForm: GRAPH["steps"],
        graph.RetryForm: [RETRY],
        graph.CompensationForm: [GRAPH["steps"][1]["compensation"]],
        graph.LimitsForm: [GRAPH["limits"]],
        graph.Metadata: [GRAPH["metadata"]],
        spec.ScheduleForm: [NESTED, FLAT, CRON, AT],
        spec.When: [NESTED["schedule"], FLAT, AT],
        configured.ConfigForm: [CONFIG],
        configured.Security: [CONFIG["security"]],
        configured.Monitoring: [CONFIG["monitoring"]],
    }
    for model, documents in written.items():
        given = {key for document in documents for key in document}
        for field, info in model.model_fields.items():
            names = [field, *(getattr(info.validation_alias, "choices", None) or [info.validation_alias or field])]
            assert given & set(names), (model.__name__, field)
