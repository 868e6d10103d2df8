"""Events as the older systems send them, and what their users see of it: input, ids that are missing, definitions that are gone, time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.api import create_app
from orchestrator.definition.documents import read_document
from orchestrator.definition.triggers import read_triggers
from orchestrator.errors import Invalid
from tests.stack import Stack, until

WAITS = "document: {dsl: '1.0.0', namespace: default, name: waits, version: '1.0.0'}\ndo: [{nap: {wait: PT1H}}, {s: {set: {done: true}}}]"
ASKS = (
    "document: {dsl: '1.0.0', namespace: default, name: asks, version: '1.0.0'}\n"
    "do: [{ask: {call: 'step:external', with: {type: t, input: {x: 1}}}}, {s: {set: {got: '${ . }'}}}]"
)


@pytest.fixture
def site(stack: Stack) -> Iterator[Stack]:
    stack.environment.update({"WORKER_STREAM_BLOCK": "100ms", "TIMER_SERVICE_PRECISION": "200ms"})
    stack.worker()
    with stack.bridge():
        yield stack


def stream(workflow: str, tenant: str = "acme") -> str:
    return f"tenant:{tenant}:workflow:{workflow}:events"


def send(stack: Stack, workflow: str, type: str, data: Any, **more: str) -> None:
    entry: dict[Any, Any] = {
        "source": "executor-service",
        "type": type,
        "workflowid": workflow,
        "tenantid": "acme",
        "data": json.dumps(data),
    }
    stack.redis.xadd(stream(workflow), {**entry, **more})


def log_of_bridge(stack: Stack) -> str:
    return (stack.folder / "bridge-0.log").read_text()


def letters(stack: Stack, name: str) -> list[dict[str, str]]:
    return [fields for _, fields in stack.redis.xrange(f"{name}:dlq")]


def test_an_event_without_an_execution_is_for_the_only_one_of_its_workflow(site: Stack) -> None:
    site.runner.register_workflow(read_document(WAITS), tenant="acme")
    site.runner.register_workflow(read_document(ASKS), tenant="acme")
    waits = site.runner.start_workflow("waits", tenant="acme")
    until(lambda: site.runner.get_workflow_status(waits)["waits_for"], 20)
    send(site, "waits", "io.flunq.timer.fired", {"task_name": "nap"}, source="timer-service")
    assert site.ended(waits, 20)["output"] == {"done": True}
    assert "io.flunq.timer.fired) names no execution" in log_of_bridge(site)

    asks = site.runner.start_workflow("asks", tenant="acme")
    told = until(lambda: [f for _, f in site.redis.xrange(stream("asks")) if f["type"] == "io.flunq.task.requested"], 20)
    send(site, "asks", "io.flunq.task.completed", {"task_id": told[0]["taskid"], "success": True, "output": 7})
    assert site.ended(asks, 20)["output"] == {"got": 7}

    # An execution is begun without an id, too.
    send(site, "waits", "io.flunq.execution.started", {"input": {}}, source="api-service")
    until(lambda: site.sql("select count(*) from instances where workflow = 'waits'") == [(2,)], 20)


def test_names_that_we_gave_out_are_understood(site: Stack) -> None:
    """`wf_…` is what the API of tenants calls a workflow, `ex_…` and `run_…` an instance."""
    site.runner.register_workflow(read_document(WAITS), tenant="acme")
    began = "select id::text from instances where workflow = 'waits' order by created_at desc"
    for number, form in enumerate(("ex_", "run_", "")):
        send(site, "waits", "io.flunq.execution.started", {"input": {}}, source="api-service", workflowid="wf_waits")
        until(lambda n=number + 1: len(site.sql(began)) == n, 20)  # type: ignore[misc]
        instance_id = site.sql(began)[0][0]
        until(lambda i=instance_id: site.runner.get_workflow_status(i)["waits_for"], 20)  # type: ignore[misc]
        send(site, "waits", "io.flunq.timer.fired", {"task_name": "nap"}, source="timer-service", executionid=f"{form}{instance_id}")
        assert site.ended(instance_id, 20)["output"] == {"done": True}


def test_an_execution_that_began_under_another_id_is_found_by_it(site: Stack) -> None:
    site.runner.register_workflow(read_document(WAITS), tenant="acme")
    send(site, "waits", "io.flunq.execution.started", {"input": {}}, source="api-service", executionid="ex_t1")
    [(instance_id,)] = until(lambda: site.sql("select id::text from instances where workflow = 'waits'"), 20)
    client = create_app(site.runner).test_client()
    assert client.get("/api/v1/acme/executions/ex_t1").get_json()["id"] == f"ex_{instance_id}"
    assert client.get("/api/v1/other/executions/ex_t1").status_code == 404
    assert client.get("/api/v1/acme/executions/ex_t2").status_code == 404


def test_where_several_run_an_event_must_say_which(site: Stack) -> None:
    site.runner.register_workflow(read_document(WAITS), tenant="acme")
    ids = [site.runner.start_workflow("waits", tenant="acme") for _ in range(2)]
    until(lambda: all(site.state(one) == "RUNNING" for one in ids), 20)
    send(site, "waits", "io.flunq.timer.fired", {"task_name": "nap"}, source="timer-service")

    [letter] = until(lambda: letters(site, stream("waits")), 20)
    assert "names none" in letter["reason"]
    assert [site.state(one) for one in ids] == ["RUNNING", "RUNNING"]


def test_a_definition_that_is_gone_is_critical_and_its_event_is_tried_again_then_put_aside(site: Stack) -> None:
    site.runner.register_workflow(read_document(WAITS), WAITS, tenant="acme")
    site.runner.withdraw_workflow("waits", tenant="acme", actor="test", source="test")
    send(site, "waits", "io.flunq.execution.started", {"input": {}}, source="api-service")

    [letter] = until(lambda: letters(site, stream("waits")), 20)
    assert (letter["attempts"], "waits" in letter["reason"]) == ("3", True)
    # By whoever comes to it first: the bridge, or the keeper.
    logs = log_of_bridge(site) + "".join(worker.log.read_text() for worker in site.workers)
    lines = [line for line in logs.splitlines() if "definition lookup failed" in line]
    assert len(lines) == 3
    assert all("CRITICAL" in line for line in lines)


def test_what_takes_longer_than_its_event_may_is_ended_and_tried_again(stack: Stack) -> None:
    """A timeout of one second, and a workflow of four."""
    stack.environment.update({"EVENT_PROCESSING_TIMEOUT": "1s", "EVENT_RETRY_DELAY_MS": "100", "TIMER_SERVICE_PRECISION": "200ms"})
    stack.worker()
    four = "document: {dsl: '1.0.0', namespace: default, name: four, version: '1.0.0'}\ndo: [{nap: {wait: {seconds: '${ .s }'}}}]"
    stack.runner.register_workflow(read_document(four.replace("'${ .s }'", "4")))
    stack.runner.put_trigger({"name": "slow", "on": "slow", "start": "four", "acknowledge": "ended"})
    stack.runner.put_trigger({"name": "patient", "on": "patient", "start": "four", "acknowledge": "ended", "timeout": "30s"})
    stack.runner.put_trigger({"name": "begun", "on": "begun", "start": "four"})
    with stack.bridge():
        for type in ("slow", "patient", "begun"):
            stack.redis.xadd("events:bus", {"eventType": type, "payload": "{}"})
        [letter] = until(lambda: letters(stack, "events:bus"), 30)
        until(lambda: stack.redis.xpending("events:bus", "workflow-group")["pending"] == 0, 20)

    assert (letter["event_type"], letter["attempts"]) == ("slow", "3")
    assert "event processing timeout: 1 s" in letter["reason"]
    rows = stack.sql(
        "select f.trigger, i.state, extract(epoch from i.ended_at - i.started_at)::float8 from effects f join instances i on i.id = f.instance_id"
        " order by f.trigger, f.replay"
    )
    assert [(trigger, state) for trigger, state, _ in rows] == [
        ("begun", "COMPLETED"), ("patient", "COMPLETED"), ("slow", "FAILED"), ("slow", "FAILED"), ("slow", "FAILED"),
    ]  # fmt: skip
    assert all(1 <= took < 3.5 for trigger, _, took in rows if trigger == "slow"), rows


def test_workflows_learn_from_their_input_what_began_them(stack: Stack) -> None:
    stack.environment.update({"TRIGGER_INPUT": "event", "TIMER_SERVICE_PRECISION": "200ms"})
    stack.worker()
    stack.runner.register_workflow(
        read_document("document: {dsl: '1.0.0', namespace: default, name: tells, version: '1.0.0'}\ndo: [{s: {set: {given: '${ . }'}}}]")
    )
    stack.runner.put_trigger({"name": "synced", "on": "cms.content.updated", "start": "tells"})
    stack.runner.put_trigger({"name": "mapped", "on": "cms.content.updated", "start": "tells", "input": ".data"})
    stack.runner.schedules.add({"id": "often", "workflow": "tells", "every": "1s"})
    with stack.bridge():
        stack.redis.xadd("events:bus", {"eventType": "cms.content.updated", "payload": '{"serviceId": 123}', "source": "cms", "id": "e1"})

        def inputs(source: str) -> list[Any]:
            return [row[0] for row in stack.sql("select input from instances where source = %s order by input::text", source)]

        until(lambda: len(inputs("trigger")) == 2, 20)
        until(lambda: inputs("schedule"), 20)
    [plain, wrapped] = inputs("trigger")
    assert plain == {"serviceId": 123}
    assert wrapped["triggerEvent"] | {"timestamp": None} == {
        "id": "e1", "type": "cms.content.updated", "payload": {"serviceId": 123}, "source": "cms", "timestamp": None,
    }  # fmt: skip
    assert inputs("schedule")[0] == {"triggeredBy": "scheduler"}


def test_the_debug_log_tells_seven_stages_of_each_event_in_their_order(stack: Stack) -> None:
    stack.environment.update({"WORKER_STREAM_BLOCK": "100ms", "LOG_LEVEL": "debug", "LOG_FORMAT": "json", "INLINE_WAIT": "0"})
    stack.worker("--loglevel", "DEBUG")
    text = ASKS.replace("name: asks", "name: staged").replace("{s: {set", "{nap: {wait: {milliseconds: 300}}}, {s: {set")
    stack.runner.register_workflow(read_document(text), text, tenant="acme")
    with stack.bridge():
        send(stack, "staged", "io.flunq.execution.started", {"input": {}}, source="api-service", executionid="ex_7")
        told = until(lambda: [f for _, f in stack.redis.xrange(stream("staged")) if f["type"] == "io.flunq.task.requested"], 20)
        send(stack, "staged", "io.flunq.task.completed", {"task_id": told[0]["taskid"], "success": True, "output": 7}, executionid="ex_7")
        instance = until(lambda: stack.sql("select id::text from instances where workflow = 'staged'"), 20)[0][0]
        assert stack.ended(instance, 20)["output"] == {"got": 7}

    taken = [line["message"] for line in stages(log_of_bridge(stack))]
    assert all(message.startswith("stage 1 of 7, event: ") for message in taken)
    # An entry may be looked at twice; it takes effect once.
    names = dict.fromkeys(message.rpartition(" is for ")[2] for message in taken)
    names.pop("no trigger", None)
    assert list(names) == ["io.flunq.execution.started", "io.flunq.task.completed"]

    # The execution begins, its task is done, its timer fires: each wakes the branch, and each goes the same way.
    lines = [line for line in stages(stack.workers[0].log.read_text()) if line["instance"] == instance]
    assert all(line["workflow"] == "staged" and line["trace_id"] for line in lines)
    said = [line["message"].removeprefix("stage ") for line in lines]
    walks: list[list[str]] = []
    for message in said:
        if message.startswith("2 "):
            walks.append([])
        walks[-1].append(message)
    assert len(walks) == 3, said
    for walk in walks:
        assert list(dict.fromkeys(message.split(" ")[0] for message in walk)) == ["2", "3", "4", "5", "6", "7"], walk
    assert "0 facts folded" in walks[0][2]
    assert "the branch is at Listening" in walks[1][2]
    assert "the branch is at Sleep" in walks[2][2]
    assert "the instance is COMPLETED" in walks[2][-1]


def stages(log: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line for line in lines if line["name"] == "orchestrator.stages"]


def test_a_timeout_is_for_what_is_awaited() -> None:
    wanted = {"name": "t", "on": "x", "start": "y"}
    for wrong in ({"timeout": "1s"}, {"timeout": "soon", "acknowledge": "ended"}, {"timeout": 0, "acknowledge": "ended"}):
        with pytest.raises(Invalid, match="timeout"):
            read_triggers({**wanted, **wrong})
    [trigger] = read_triggers({**wanted, "timeout": "1m", "acknowledge": "ended"})
    assert trigger.timeout_s == 60
