"""What a document computes wrongly is a fault of the task that computes it: it can be caught, and it stops nobody else."""

from __future__ import annotations

import os
from typing import Any

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.embedded import Embedded, Instance
from orchestrator.errors import Invalid
from orchestrator.testing import ManualClock
from tests.stack import Stack, until

HEAD = "document: {dsl: '1.0.3', namespace: proofs, name: %s, version: '1.0.0'}\n"
CAUGHT = "do: [{t: {try: [%s], catch: {as: e, do: [{c: {set: {status: '${ $e.status }'}}}]}}}]"


TWO_OF_THREE = f"""id: x
specVersion: '0.8'
functions: [{{name: f, type: expression, operation: .x}}]
states:
- name: s
  type: parallel
  completionType: atLeast
  numCompleted: 2
  end: true
  branches: [{", ".join(f"{{name: {name}, actions: [{{functionRef: f}}]}}" for name in "abc")}]
"""


def register(stack: Stack, name: str, body: str) -> None:
    text = HEAD % name + body
    stack.runner.register_workflow(read_document(text), text)


def run(body: str, input: Any = None, more: str = "") -> Instance:
    engine = Embedded(clock=ManualClock())
    return engine.finish(engine.start(read_document(HEAD % "faulty" + more + body), input))


@pytest.mark.proves(27)
def test_an_emit_that_is_no_event_and_an_until_that_fails_can_be_caught_on_workers(stack: Stack) -> None:
    emit = "{e: {emit: {event: {with: {type: '${ .type }', id: '${ .id }', data: 1}}}}}"
    listen = "{l: {listen: {to: {any: [{with: {type: a}}], until: '.[0] | error'}}}}"
    register(stack, "emits", CAUGHT % emit)
    register(stack, "listens", CAUGHT % listen)
    stack.worker()
    for given in ({"type": "a", "id": {}}, {"type": [1], "id": "x"}, {"type": "", "id": "x"}, {"type": "a", "id": "y" * 3000}):
        assert stack.run("proofs.emits", given, 8)["output"] == {"status": 400}
    waiting = stack.runner.start_workflow("proofs.listens", input={})
    until(lambda: stack.sql("select count(*) from subscriptions")[0][0], 8)
    stack.runner.send_event({"specversion": "1.0", "id": "1", "source": "/proofs", "type": "a", "data": "x"})
    assert stack.ended(waiting, 8)["output"] == {"status": 400}


@pytest.mark.proves(27)
def test_a_schedule_whose_condition_fails_does_not_stop_what_others_wait_for(stack: Stack) -> None:
    register(stack, "scheduled", "schedule: {on: {any: [{with: {type: a}}], until: '.[0] | error'}}\ndo: [{s: {set: {x: 1}}}]")
    register(stack, "waits", "do: [{w: {wait: {seconds: 2}}}]")
    stack.worker()
    stack.runner.send_event({"specversion": "1.0", "id": "1", "source": "/proofs", "type": "a", "data": 1})
    assert stack.run("proofs.waits", {}, 15)["status"] == "COMPLETED"
    refused = until(lambda: stack.sql("select reason from fires where outcome = 'refused'"), 5)
    assert "until" in refused[0][0]


@pytest.mark.proves(27)
@pytest.mark.parametrize(
    "body", ["do: [{w: {wait: P10000Y}}]", "do: [{w: {wait: P300000Y}}]", "schedule: {every: PT0S}\ndo: [{s: {set: {x: 1}}}]"]
)
def test_a_time_that_no_calendar_has_is_refused_when_it_is_read(body: str) -> None:
    with pytest.raises(Invalid):
        read_document(HEAD % "long" + body)


@pytest.mark.proves(27)
def test_an_emit_that_is_no_event_can_be_caught_in_process() -> None:
    instance = run(CAUGHT % "{e: {emit: {event: {with: {type: '${ .type }', data: 1}}}}}", {"type": {}})
    assert (instance.state, instance.output) == ("COMPLETED", {"status": 400})


@pytest.mark.proves(29)
def test_the_arguments_of_a_command_are_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_SHELL", "true")
    assert run("do: [{r: {run: {shell: {command: echo, arguments: [a, 'b c']}}}}]").output == "a b c"
    assert run("do: [{r: {run: {shell: {command: 'echo \"$2\"', arguments: [a, 'b c']}}}}]").output == "b c"


@pytest.mark.proves(30)
def test_delays_and_limits_of_retries_may_be_computed() -> None:
    retry = "{delay: '${ .pause }', backoff: {linear: {}}, limit: {duration: '${ .most }', attempt: {count: 10}}}"
    body = f"do: [{{t: {{try: [{{r: {{raise: {{error: {{type: x, status: 500}}}}}}}}], catch: {{retry: {retry}, do: [{{c: {{set: {{x: 1}}}}}}]}}}}}}]"
    instance = run(body, {"pause": "PT10S", "most": "PT1M"})
    assert instance.ended is not None
    # 10, 20 and 30 seconds are a minute.
    assert (instance.output, round(instance.ended - instance.began)) == ({"x": 1}, 60)


@pytest.mark.proves(30)
def test_a_secret_that_is_not_declared_may_not_be_had() -> None:
    instance = run(CAUGHT % "{s: {set: {x: '${ $secrets.nope }'}}}", {})
    assert (instance.state, instance.output) == ("COMPLETED", {"status": 403})


@pytest.mark.proves(30)
def test_a_catch_that_says_where_to_go_goes_there_when_its_retries_are_exhausted() -> None:
    failing = "{t: {try: [{r: {raise: {error: {type: x, status: 500}}}}], catch: {retry: {limit: {attempt: {count: 2}}}, then: last}}}"
    instance = run(f"do: [{failing}, {{no: {{set: {{x: 1}}}}}}, {{last: {{set: {{x: 2}}}}}}]", {})
    assert (instance.state, instance.output) == ("COMPLETED", {"x": 2})


@pytest.mark.proves(30)
def test_arguments_of_a_script_that_are_a_map_are_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_SCRIPTS", "true")
    script = "{language: python, code: 'print(greetings)', arguments: {greetings: '${ .g }'}}"
    instance = run(f"do: [{{r: {{run: {{script: {script}}}}}}}]".replace("1.0.3", "1.0.0"), {"g": "Hello"})
    assert instance.output == "Hello", instance.error


@pytest.mark.proves(30)
@pytest.mark.parametrize("name", ["end", "continue", "exit"])
def test_a_task_may_be_named_as_a_directive_is(name: str) -> None:
    instance = run(f"do: [{{a: {{set: {{x: 1}}}}}}, {{{name}: {{set: {{x: 2}}, then: end}}}}, {{never: {{set: {{x: 3}}}}}}]", {})
    assert (instance.state, instance.output) == ("COMPLETED", {"x": 2})


@pytest.mark.proves(30)
def test_an_action_may_sleep_before_and_after() -> None:
    text = """id: sleeps
version: '1.0'
specVersion: '0.8'
functions: [{name: f, type: expression, operation: '{x: 1}'}]
states: [{name: s, type: operation, actions: [{functionRef: f, sleep: {before: PT1M, after: PT2M}}], end: true}]
"""
    engine = Embedded(clock=ManualClock())
    instance = engine.finish(engine.start(read_document(text), {}))
    assert instance.ended is not None
    assert (instance.state, round(instance.ended - instance.began)) == ("COMPLETED", 180)


@pytest.mark.proves(33)
@pytest.mark.parametrize(
    ("body", "given", "output"),
    [
        ("do: [{s: {set: {ids: '${ .items[].id }'}}}]", {"items": [{"id": 1}, {"id": 2}]}, {"ids": [1, 2]}),
        (
            "do: [{l: {for: {in: '.items[].id'}, do: [{s: {set: {n: '${ ((.n // 0) + $item) }'}}}]}}]",
            {"items": [{"id": 1}, {"id": 2}]},
            {"n": 3},
        ),
    ],
)
def test_several_outputs_are_a_list(body: str, given: Any, output: Any) -> None:
    instance = run(body, given)
    assert (instance.state, instance.output) == ("COMPLETED", output)


@pytest.mark.proves(33)
@pytest.mark.parametrize(
    "text",
    [
        (HEAD % "x").replace("namespace: proofs", "namespace: com.example.proofs") + "do: [{s: {set: {x: 1}}}]",
        HEAD % "x" + "schedule: {cron: '0 */5 * * * *'}\ndo: [{s: {set: {x: 1}}}]",
        HEAD % "x" + "do: [{s: {call: http, with: {method: get, endpoint: 'http://x', query: {limit: 5, all: true}}}}]",
        "id: x\nspecVersion: '0.8'\nstates: [{name: s, type: switch, dataConditions: [{condition: .x, end: true}]}]",
        TWO_OF_THREE,
    ],
    ids=["dotted namespace", "six fields", "numbers in a query", "no default", "two of three"],
)
def test_what_other_runtimes_take_is_taken(text: str) -> None:
    read_document(text)


@pytest.mark.proves(33)
def test_a_correlation_may_expect_what_the_task_was_given() -> None:
    body = "do: [{l: {listen: {to: {one: {with: {type: a}, correlate: {order: {from: .data.order, expect: .id}}}}}}}]"
    engine = Embedded(clock=ManualClock())
    instance = engine.start(read_document(HEAD % "correlates" + body), {"id": 7})
    for number in (1, 7):
        engine.settle()
        engine.send({"specversion": "1.0", "id": str(number), "source": "/", "type": "a", "data": {"order": number}})
    assert engine.finish(instance).output == [{"order": 7}]


@pytest.mark.proves(33)
def test_names_of_0_8_that_other_runtimes_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SECRET_TOKEN", "s3cr3t")
    look = "'{instance: ($WORKFLOW.instanceId | length), same: ($SECRET.token == $SECRETS.token)}'"
    state = "{name: s, type: operation, actions: [{functionRef: look}], end: true}"
    text = (
        f"id: x\nspecVersion: '0.8'\nsecrets: [token]\nfunctions: [{{name: look, type: expression, operation: {look}}}]\nstates: [{state}]"
    )
    engine = Embedded(clock=ManualClock())
    assert engine.finish(engine.start(read_document(text), {})).output == {"instance": 36, "same": True}
