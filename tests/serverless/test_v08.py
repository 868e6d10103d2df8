"""DSL 0.8: every state type runs, and what cannot be honoured is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.definition.validate import check
from orchestrator.embedded import Embedded, Instance
from orchestrator.errors import Invalid
from orchestrator.steps.registry import REGISTRY
from orchestrator.testing import ManualClock
from tests.serverless.standins import StandIn


def read(states: str, more: str = "") -> Any:
    text = f"id: case\nversion: '1.0'\nspecVersion: '0.8'\nname: Case\n{more}\nstates:\n{states}"
    made = read_document(text, "case.yaml")
    check(made, REGISTRY)
    return made


def run(states: str, input: Any = None, more: str = "", events: list[dict[str, Any]] | None = None, others: str = "") -> Instance:
    engine = Embedded(clock=ManualClock())
    if others:
        engine.register(read_document(others, "other.yaml"))
    instance = engine.start(read(states, more), {} if input is None else input)
    engine.settle()
    for number, event in enumerate(events or ()):
        engine.send({"specversion": "1.0", "id": f"e{number}", "source": "/tests", **event})
        engine.settle()
    return engine.finish(instance)


def output(states: str, input: Any = None, more: str = "", **options: Any) -> Any:
    instance = run(states, input, more, **options)
    assert instance.state == "COMPLETED", (instance.state, instance.error)
    return instance.output


EXPRESSIONS = """
functions:
  - {name: double, type: expression, operation: '{doubled: (.n * 2)}'}
  - {name: add, type: expression, operation: '.a + .b'}
  - {name: isLarge, type: expression, operation: '.n > 10'}
  - {name: wrap, type: expression, operation: '{list: [.tx]}'}
  - {name: note, type: expression, operation: '{log: [.say]}'}
  - {name: fail, type: custom, operation: fail}
errors:
  - {name: broken, code: failed}
  - {name: other, code: '404'}
"""


def test_inject_merges_its_data_into_the_state() -> None:
    states = "  - {name: s, type: inject, data: {b: {c: 2}, l: [2, 3]}, end: true}"
    assert output(states, {"a": 1, "b": {"d": 1}, "l": [1, 2]}) == {"a": 1, "b": {"d": 1, "c": 2}, "l": [1, 2, 3]}


def test_operation_runs_actions_in_order_and_merges_their_results() -> None:
    states = """
  - name: s
    type: operation
    actions:
      - {name: one, functionRef: double}
      - {name: two, functionRef: add, actionDataFilter: {fromStateData: '${ {a: .doubled, b: 1} }', toStateData: '${ .sum.total }'}}
      - {name: gone, functionRef: double, actionDataFilter: {useResults: false}}
      - {name: skipped, functionRef: double, condition: '${ .n == 100 }', actionDataFilter: {toStateData: .never}}
    end: true
"""
    assert output(states, {"n": 5}, EXPRESSIONS) == {"n": 5, "doubled": 10, "sum": {"total": 11}}


def test_parallel_actions_and_state_data_filters() -> None:
    states = """
  - name: s
    type: operation
    actionMode: parallel
    stateDataFilter: {input: '${ .inner }', output: '${ {x: .x, doubled} }'}
    actions:
      - {functionRef: double}
      - {functionRef: double, actionDataFilter: {results: '${ .doubled }', toStateData: .x}}
    end: true
"""
    assert output(states, {"inner": {"n": 2}}, EXPRESSIONS) == {"x": 4, "doubled": 4}


@pytest.mark.parametrize(("n", "way"), [(50, "large"), (5, "small"), (0, "none")])
def test_a_switch_takes_the_first_condition_that_holds(n: int, way: str) -> None:
    states = """
  - name: s
    type: switch
    dataConditions:
      - {condition: '${ fn:isLarge }', transition: large}
      - {condition: .n > 1, transition: small}
    defaultCondition: {transition: none}
  - {name: large, type: inject, data: {way: large}, end: true}
  - {name: small, type: inject, data: {way: small}, end: true}
  - {name: none, type: inject, data: {way: none}, end: true}
"""
    assert output(states, {"n": n}, EXPRESSIONS)["way"] == way


EVENTS = """
events:
  - {name: yes, type: visa.approved, source: /tests}
  - {name: no, type: visa.rejected, source: /tests}
  - {name: whole, type: visa.approved, source: /tests, dataOnly: false}
  - {name: mine, type: order, source: /tests, correlation: [{contextAttributeName: orderid, contextAttributeValue: '${ .id }'}]}
  - {name: told, type: told.event, kind: produced}
"""

VISA = """
  - name: s
    type: switch
    eventConditions:
      - {eventRef: yes, transition: good, eventDataFilter: {data: '${ .by }', toStateData: .by}}
      - {eventRef: no, transition: bad}
    timeouts: {eventTimeout: PT1H}
    defaultCondition: {transition: late}
  - {name: good, type: inject, data: {visa: yes}, end: true}
  - {name: bad, type: inject, data: {visa: no}, end: true}
  - {name: late, type: inject, data: {visa: none}, end: true}
"""


def test_an_event_switch_waits_for_the_first_of_its_events_or_its_timeout() -> None:
    assert output(VISA, {"n": 1}, EVENTS, events=[{"type": "visa.approved", "data": {"by": "Ada"}}]) == {"n": 1, "by": "Ada", "visa": "yes"}
    assert output(VISA, {}, EVENTS, events=[{"type": "visa.rejected", "data": {"why": "x"}}]) == {"why": "x", "visa": "no"}
    assert output(VISA, {}, EVENTS) == {"visa": "none"}


def test_an_event_state_acts_on_the_event_that_came() -> None:
    states = """
  - name: s
    type: event
    onEvents:
      - {eventRefs: [yes], actions: [{functionRef: {refName: note, arguments: {}}, actionDataFilter: {fromStateData: '{say: "yes"}'}}]}
      - {eventRefs: [no], actions: [{functionRef: note, actionDataFilter: {fromStateData: '{say: "no"}'}}]}
    end: true
"""
    assert output(states, {}, EVENTS + EXPRESSIONS, events=[{"type": "visa.rejected", "data": {"n": 1}}]) == {"n": 1, "log": ["no"]}


def test_an_event_state_that_is_not_exclusive_waits_for_all() -> None:
    states = "  - {name: s, type: event, exclusive: false, onEvents: [{eventRefs: [yes, no]}], end: true}"
    instance = run(states, {}, EVENTS, events=[{"type": "visa.rejected", "data": {"a": 1}}])
    assert instance.state == "RUNNING"
    events = [{"type": "visa.rejected", "data": {"a": 1}}, {"type": "visa.approved", "data": {"b": 2}}]
    assert output(states, {}, EVENTS, events=events) == {"a": 1, "b": 2}


def test_correlation_is_on_the_events_extension_attributes() -> None:
    states = "  - {name: s, type: event, onEvents: [{eventRefs: [mine]}], end: true}"
    events = [{"type": "order", "orderid": "8", "data": {"n": 8}}, {"type": "order", "orderid": "7", "data": {"n": 7}}]
    assert output(states, {"id": "7"}, EVENTS, events=events) == {"id": "7", "n": 7}


def test_a_callback_acts_then_waits() -> None:
    states = """
  - name: s
    type: callback
    action: {functionRef: double}
    eventRef: yes
    eventDataFilter: {toStateData: .answer}
    end: true
"""
    assert output(states, {"n": 2}, EVENTS + EXPRESSIONS, events=[{"type": "visa.approved", "data": {"ok": True}}]) == {
        "n": 2,
        "doubled": 4,
        "answer": {"ok": True},
    }


def test_branches_work_on_copies_and_are_merged() -> None:
    states = """
  - name: s
    type: parallel
    completionType: %s
    branches:
      - {name: a, actions: [{functionRef: double}]}
      - {name: b, actions: [{functionRef: add, actionDataFilter: {fromStateData: '{a: .n, b: 1}', toStateData: .sum}}]}
    end: true
"""
    assert output(states % "allOf", {"n": 3}, EXPRESSIONS) == {"n": 3, "doubled": 6, "sum": 4}
    one = output(states % "atLeast\n    numCompleted: 1", {"n": 3}, EXPRESSIONS)
    assert one in ({"n": 3, "doubled": 6}, {"n": 3, "sum": 4})
    for number in ("5", "0", "-1", "one"):
        with pytest.raises(Invalid, match="from 1 to 2"):
            read(states % f"atLeast\n    numCompleted: '{number}'", EXPRESSIONS)
    with pytest.raises(Invalid, match="from 1 to 2"):
        read(states % "atLeast\n    numCompleted: 5", EXPRESSIONS)


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_foreach_gathers_the_results_in_the_order_of_the_items(mode: str) -> None:
    states = f"""
  - name: s
    type: foreach
    mode: {mode}
    inputCollection: '${{ .items }}'
    iterationParam: n
    outputCollection: '${{ .out }}'
    actions: [{{functionRef: double}}]
    end: true
"""
    assert output(states, {"items": [1, 2, 3], "k": 1}, EXPRESSIONS) == {
        "items": [1, 2, 3],
        "k": 1,
        "out": [{"doubled": 2}, {"doubled": 4}, {"doubled": 6}],
    }
    assert run(states, {}, EXPRESSIONS).state == "FAILED"


def test_sleep_takes_its_time() -> None:
    instance = run("  - {name: s, type: sleep, duration: PT90S, end: true}", {"a": 1})
    assert instance.output == {"a": 1}
    assert instance.ended is not None
    assert round(instance.ended - instance.began) == 90


def test_a_known_error_leads_where_the_state_says_with_its_data() -> None:
    states = """
  - name: s
    type: operation
    actions: [{functionRef: fail}]
    onErrors:
      - {errorRef: other, transition: never}
      - {errorRef: broken, transition: mend}
    end: true
  - {name: mend, type: inject, data: {mended: true}, end: true}
  - {name: never, type: inject, data: {never: true}, end: true}
"""
    assert output(states, {"n": 1}, EXPRESSIONS) == {"n": 1, "mended": True}
    assert run(states.replace("errorRef: broken", "errorRef: unheard"), {}, EXPRESSIONS).state == "FAILED"


def test_retries_of_listed_errors_and_automatic_ones() -> None:
    states = """
  - name: s
    type: operation
    actions: [{functionRef: fail, retryRef: often, retryableErrors: [broken]}]
    end: true
"""
    more = EXPRESSIONS + "retries: [{name: often, delay: PT2S, maxAttempts: 3, multiplier: 2}]\n"
    instance = run(states, {}, more)
    assert instance.state == "FAILED"
    assert instance.ended is not None
    assert round(instance.ended - instance.began) == 2 + 4 + 8
    never = run(states.replace("[broken]", "[other]"), {}, more)
    assert never.ended == never.began


def test_produced_events_and_end_without_more() -> None:
    states = "  - {name: s, type: inject, data: {a: 1}, end: {produceEvents: [{eventRef: told, data: '${ .a }'}]}}"
    instance = run(states, {}, EVENTS)
    [emitted] = [fact for fact in instance.history if fact.kind == "event.emitted"]
    assert (emitted.data["event"]["type"], emitted.data["event"]["data"]) == ("told.event", 1)
    assert instance.output == {"a": 1}


def test_subflows_get_the_data_and_their_result_is_merged() -> None:
    other = "id: other\nversion: '1.0'\nspecVersion: '0.8'\nstates: [{name: o, type: inject, data: {from: other}, end: true}]"
    states = "  - {name: s, type: operation, actions: [{subFlowRef: other}], end: true}"
    assert output(states, {"n": 1}, others=other) == {"n": 1, "from": "other"}


def test_what_was_completed_is_compensated_last_first() -> None:
    states = """
  - name: one
    type: inject
    data: {log: [one]}
    compensatedBy: undoOne
    transition: two
  - name: two
    type: operation
    actions: [{functionRef: note, actionDataFilter: {fromStateData: '{say: "two"}'}}]
    compensatedBy: undoTwo
    transition: stop
  - {name: undoOne, type: operation, usedForCompensation: true, actions: [{functionRef: note, actionDataFilter: {fromStateData: '{say: "undo one"}'}}]}
  - {name: undoTwo, type: operation, usedForCompensation: true, actions: [{functionRef: note, actionDataFilter: {fromStateData: '{say: "undo two"}'}}]}
  - {name: stop, type: inject, data: {}, end: {compensate: true}}
"""
    assert output(states, {}, EXPRESSIONS)["log"] == ["one", "two", "undo two", "undo one"]
    with pytest.raises(Invalid, match="usedForCompensation"):
        read(states.replace("usedForCompensation: true", "end: true"), EXPRESSIONS)


def test_the_workflows_timeout_may_run_a_state_before_the_end() -> None:
    states = """
  - {name: s, type: sleep, duration: P1D, end: true}
  - {name: last, type: inject, data: {late: true}, end: true}
"""
    assert output(states, {"n": 1}, "timeouts: {workflowExecTimeout: {duration: PT1M, runBefore: last}}") == {"n": 1, "late": True}
    assert run(states, {}, "timeouts: {workflowExecTimeout: PT1M}").state == "FAILED"


def test_constants_and_text_with_expressions_in_it(standin: StandIn) -> None:
    more = f"""
constants: {{greeting: Hello}}
functions:
  - {{name: echo, type: custom, operation: 'rest:POST:{standin.address}/echo'}}
"""
    states = """
  - name: s
    type: operation
    actions:
      - functionRef: {refName: echo, arguments: {text: '${ $CONST.greeting }, Book ${ .title } is lent'}}
        actionDataFilter: {results: '${ .body | fromjson | .text }', toStateData: .said}
    end: true
"""
    states = states.replace("${ $CONST.greeting }, ", "")
    assert output(states, {"title": "Dune"}, more)["said"] == "Book Dune is lent"
    assert output(
        "  - {name: s, type: operation, actions: [{functionRef: c}], end: true}",
        {},
        "constants: {x: 7}\nfunctions: [{name: c, type: expression, operation: '{seen: $CONST.x}'}]",
    ) == {"seen": 7}


def test_rest_functions_are_operations_of_an_openapi_document(standin: StandIn) -> None:
    more = f"functions: [{{name: pet, operation: '{standin.address}/v2/swagger.json#getPetById'}}]"
    states = """
  - name: s
    type: operation
    actions: [{functionRef: {refName: pet, arguments: {petId: '${ .id }'}}, actionDataFilter: {results: '{pet: .name}'}}]
    end: true
"""
    assert output(states, {"id": 1}, more) == {"id": 1, "pet": "Milou"}


@pytest.mark.parametrize(
    ("states", "more", "said"),
    [
        ("  - {name: s, type: nothing, end: true}", "", "Expected one of operation, event"),
        ("  - {name: s, type: inject, data: {}, transition: nowhere}", "", 'no state "nowhere"'),
        ("  - {name: s, type: inject, data: {}, end: true}", "start: nowhere", 'no state "nowhere"'),
        ("  - {name: s, type: inject, data: {}, end: true}\n  - {name: s, type: inject, data: {}, end: true}", "", "duplicate"),
        (
            "  - {name: s, type: operation, actions: [{functionRef: o}], end: true}",
            "functions: [{name: o, type: odata, operation: 'http://x#y'}]",
            "odata",
        ),
        (
            "  - {name: s, type: operation, actions: [{functionRef: o}], end: true}",
            "functions: [{name: o, type: rpc, operation: 'x.proto#S#m'}]",
            "host",
        ),
        ("  - {name: s, type: inject, data: {}, end: true}", "expressionLang: cel", "Write jq"),
        ("  - {name: s, type: operation, actions: [{functionRef: x, retryRef: nope, retryableErrors: [e]}], end: true}", "", "no retry"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(states: str, more: str, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        read(states, more)


def test_starts_may_be_scheduled() -> None:
    states = "  - {name: s, type: inject, data: {}, end: true}"
    assert read(states, "start: {stateName: s, schedule: R/PT2H}").schedule == {"every": "PT2H", "timezone": None}
    assert read(states, "start: {stateName: s, schedule: {cron: '0 0/15 * * * ?', timezone: Europe/Paris}}").schedule == {
        "cron": "*/15 * * * *",
        "timezone": "Europe/Paris",
    }
    assert json.dumps(read(states).schedule) == "null"


def test_some_of_several_branches_are_enough() -> None:
    states = """
  - name: s
    type: parallel
    completionType: atLeast
    numCompleted: 2
    branches:
      - {name: a, actions: [{functionRef: double}]}
      - {name: slow, actions: [{functionRef: double, sleep: {before: PT1H}}]}
      - {name: b, actions: [{functionRef: {refName: add}, actionDataFilter: {fromStateData: '{a: .n, b: 1}', toStateData: .sum}, sleep: {before: PT1S}}]}
    end: true
"""
    assert output(states, {"n": 3}, EXPRESSIONS) == {"n": 3, "doubled": 6, "sum": 4}


def test_a_branch_that_fails_before_enough_are_done_decides() -> None:
    states = """
  - name: s
    type: parallel
    completionType: atLeast
    numCompleted: 2
    branches:
      - {name: a, actions: [{functionRef: double}]}
      - {name: bad, actions: [{functionRef: broken}]}
      - {name: slow, actions: [{functionRef: double, sleep: {before: PT1H}}]}
    end: true
"""
    functions = EXPRESSIONS.replace("errors:", "  - {name: broken, type: expression, operation: '.n | error'}\nerrors:")
    instance = run(states, {"n": 3}, functions)
    assert (instance.state, instance.error["code"]) == ("FAILED", "expression")  # type: ignore[index]


def test_a_switch_without_a_default_says_that_nothing_held() -> None:
    states = """
  - {name: s, type: switch, dataConditions: [{condition: .n > 1, transition: t}]}
  - {name: t, type: inject, data: {at: t}, end: true}
"""
    assert output(states, {"n": 2}) == {"n": 2, "at": "t"}
    instance = run(states, {"n": 0})
    assert instance.error is not None
    assert (instance.state, instance.error["code"]) == ("FAILED", "configuration")
    assert "no defaultCondition" in instance.error["message"]


def test_an_action_may_sleep_before_and_after() -> None:
    states = "  - {name: s, type: operation, actions: [{functionRef: double, sleep: {before: PT1M, after: PT2M}}], end: true}"
    instance = run(states, {"n": 1}, EXPRESSIONS)
    assert instance.ended is not None
    assert (instance.state, round(instance.ended - instance.began)) == ("COMPLETED", 180)


def test_the_names_that_other_runtimes_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cr3t")
    states = """
  - name: s
    type: operation
    actions: [{functionRef: look}]
    end: true
"""
    look = "'{id: $WORKFLOW.id, instance: ($WORKFLOW.instanceId | length), version: $WORKFLOW.version, same: ($SECRET.token == $SECRETS.token)}'"
    more = f"secrets: [token]\nfunctions: [{{name: look, type: expression, operation: {look}}}]"
    assert output(states, {}, more) == {"id": "case", "instance": 36, "version": "1.0", "same": True}


def test_a_function_that_calls_itself_is_refused() -> None:
    states = "  - {name: s, type: operation, actions: [{functionRef: f}], end: true}"
    with pytest.raises(Invalid, match="calls itself: g → f → g"):
        read(states, "functions: [{name: f, type: expression, operation: 'fn:g'}, {name: g, type: expression, operation: 'fn:f + 1'}]")


def test_quartz_cron_means_what_quartz_means() -> None:
    states = "  - {name: s, type: inject, data: {}, end: true}"
    for written, meant in (
        ("0 30 9 ? * 2-6", "30 9 * * 1-5"),
        ("15 0 12 ? * 1 2027", "15 0 12 * * 0"),
        ("0 0 12 ? * 6#3", "0 12 * * 5#3"),
        ("*/5 * * * *", "*/5 * * * *"),
    ):
        assert read(states, f"start: {{stateName: s, schedule: {{cron: '{written}'}}}}").schedule["cron"] == meant
    for schedule in ("{cron: 'a b c d e'}", "R/PT0S", "R/P10000Y", "soon"):
        with pytest.raises(Invalid):
            read(states, f"start: {{stateName: s, schedule: {schedule}}}")
