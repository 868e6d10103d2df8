"""Checklist 4 and 5: where the flow goes, and what each kind of task does."""

from __future__ import annotations

import json

import pytest

from orchestrator.definition.documents import read_document
from orchestrator.embedded import Embedded
from orchestrator.errors import Invalid
from orchestrator.testing import ManualClock
from tests.serverless.running import HEAD, definition, fault, output, run


def names(body: str, input: object = None) -> list[str]:
    """The order in which tasks added their names to the list."""
    return list(output(body, {"log": [], **(input or {})}).get("log"))  # type: ignore[dict-item]


def log(name: str, then: str = "") -> str:
    return f"{{set: '${{ . + {{log: (.log + [\"{name}\"])}} }}'{f', then: {then}' if then else ''}}}"


def test_continue_goes_on_exit_leaves_the_list_end_leaves_everything() -> None:
    body = f"""
    do:
      - outer:
          do:
            - a: {log("a", "%s")}
            - b: {log("b")}
      - c: {log("c")}
    """
    assert names(body % "continue") == ["a", "b", "c"]
    assert names(body % "exit") == ["a", "c"]
    assert names(body % "end") == ["a"]
    assert names(body % "b") == ["a", "b", "c"]


def test_a_jump_may_go_back_and_a_task_may_be_visited_again() -> None:
    body = """
    do:
      - count: {set: {n: '${ .n + 1 }'}}
      - again: {switch: [{more: {when: .n < 3, then: count}}, {done: {then: end}}]}
    """
    assert output(body, {"n": 0}) == {"n": 3}


@pytest.mark.parametrize(
    "body",
    [
        "do: [{a: {set: {x: 1}, then: nowhere}}]",
        "do: [{a: {do: [{b: {set: {x: 1}, then: c}}]}}, {c: {set: {x: 2}}}]",
        "do: [{a: {switch: [{one: {when: .x, then: nowhere}}]}}]",
        "do: [{a: {try: [{b: {set: {x: 1}}}], catch: {then: nowhere}}}]",
    ],
)
def test_a_target_that_is_not_in_the_list_is_refused(body: str) -> None:
    with pytest.raises(Invalid, match="no task"):
        definition(body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("do: [{a: {set: {x: 1}}}, {a: {set: {x: 2}}}]", "used twice"),
        ("if: .x\ndo: [{a: {set: {x: 1}}}]", 'Unknown field "if"'),
        ("schedul: {every: PT1S}\ndo: [{a: {set: {x: 1}}}]", 'Did you mean "schedule"'),
        ("schedule: {every: PT0S}\ndo: [{a: {set: {x: 1}}}]", "at least 0.1 seconds"),
        ("schedule: {every: {seconds: -1}}\ndo: [{a: {set: {x: 1}}}]", "Invalid duration"),
        ("schedule: {after: P10000Y}\ndo: [{a: {set: {x: 1}}}]", "Invalid duration"),
        ("schedule: {cron: 'a b c d e'}\ndo: [{a: {set: {x: 1}}}]", '"A" is not a minute'),
        ("schedule: {cron: '0 0 30 2 *'}\ndo: [{a: {set: {x: 1}}}]", "never comes"),
        ("do: [{a: {wait: P10000Y}}]", "Invalid duration"),
        (f"do: [{{{'a' * 301}: {{set: {{x: 1}}}}}}]", "at most 300 characters"),
        (f"do: [{{a: {{listen: {{to: {{one: {{with: {{type: {'a' * 1001}}}}}}}}}}}}}]", "at most 1,000 bytes"),
        (
            "do: [{a: "
            + "".join(f"{{do: [{{{'b' * 290}{n}: " for n in range(6))
            + "{fork: {branches: [{x: {set: {y: 1}}}]}}"
            + "}]}" * 6
            + "}]",
            "around branches at most",
        ),
        ("do: []", "at least one task"),
        ("do: [{a: {switch: [{x: {then: end}}, {y: {then: end}}]}}]", "second default"),
        ("do: [{a: {call: unknown}}]", "no function"),
        ("do: [{a: {raise: {error: unknown}}}]", "no error"),
        ("do: [{a: {set: {x: 1}, timeout: unknown}}]", "no timeout"),
        ("do: [{a: {try: [{b: {set: {x: 1}}}], catch: {retry: unknown}}}]", "no retry policy"),
        ("do: [{a: {call: http, with: {method: get, endpoint: {uri: 'http://x', authentication: {use: nope}}}}}]", "no authentication"),
        ("do: [{a: {call: http, with: {method: get, endpoint: {uri: 'http://x', authentication: {basic: {use: nope}}}}}}]", "no secret"),
        ("do: [{a: {nothing: 1}}]", "A task has one of"),
        ("do: [{a: {wait: P1X}}]", "a"),
        ("do: [{a: {set: {x: 1}, surprise: true}}]", "surprise"),
        ("do: [{a: {set: {x: '${ .a | }'}}}]", "jq"),
        ("do: [{a: {set: {x: 1}}, b: {set: {x: 1}}}]", "one name"),
        ("do: [{a: {for: {in: .x, each: 'no good'}, do: [{b: {set: {x: 1}}}]}}]", "variable"),
        ("schedule: {cron: '* * *'}\ndo: [{a: {set: {x: 1}}}]", "five fields"),
    ],
)
def test_faults_are_told_with_their_place_line_and_column(body: str, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        definition(body)
    assert all(fault.line and fault.column and fault.file == "case.yaml" for fault in caught.value.faults), caught.value.faults


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        definition("do: [{a: {call: nope}}, {b: {raise: {error: nope}}}, {c: {set: {x: 1}, then: nope}}]")
    assert len(caught.value.faults) == 3


def test_end_inside_of_everything_ends_the_workflow_and_its_output_is_still_mapped() -> None:
    body = """
    do:
      - loop:
          for: {in: '[1, 2, 3]'}
          do:
            - try: {try: [{stop: {if: $item == 2, set: {stopped: '${ $item }'}, then: end}}], catch: {}}
      - never: {set: {never: true}}
    output: {as: '{got: .}'}
    """
    assert output(body) == {"got": {"stopped": 2}}


def test_end_in_a_branch_ends_the_workflow() -> None:
    body = """
    do:
      - f: {fork: {branches: [{a: {set: {x: 1}, then: end}}, {b: {wait: {hours: 1}}}]}}
      - never: {set: {never: true}}
    """
    assert "never" not in output(body)


def test_exit_in_a_loop_goes_to_the_next_round() -> None:
    body = f"""
    do:
      - loop:
          for: {{in: '["x", "y"]'}}
          do:
            - a: {log("a", "exit")}
            - b: {log("b")}
    """
    assert names(body) == ["a", "a"]


def test_a_switch_takes_the_first_that_holds_and_its_then_wins() -> None:
    body = """
    do:
      - s: {switch: [{d: {then: c}}, {one: {when: .n == 1, then: a}}, {two: {when: .n >= 1, then: b}}], then: end}
      - a: {set: {at: a}, then: end}
      - b: {set: {at: b}, then: end}
      - c: {set: {at: c}}
    """
    assert [output(body, {"n": n})["at"] for n in (1, 2, 0)] == ["a", "b", "c"]


def test_a_switch_without_a_match_takes_the_tasks_own_then() -> None:
    body = "do: [{s: {switch: [{one: {when: .n == 1, then: a}}], then: b}}, {a: {set: {at: a}}}, {b: {set: '${ . + {b: true} }'}}]"
    assert output(body, {"n": 5}) == {"n": 5, "b": True}


# ── for ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_round_gets_what_the_one_before_gave_and_the_items_are_read_once() -> None:
    body = "do: [{l: {for: {each: x, in: .items, at: i}, do: [{s: {set: {items: [], sum: '${ .sum + $x * ($i + 1) }'}}}]}}]"
    assert output(body, {"items": [1, 2, 3], "sum": 0}) == {"items": [], "sum": 14}


def test_a_loop_over_nothing_gives_its_input_and_over_no_list_fails() -> None:
    body = "do: [{l: {for: {in: .items}, do: [{s: {set: {x: 1}}}]}}]"
    assert output(body, {"items": []}) == {"items": []}
    assert fault(body, {"items": 7})["type"].endswith("/expression")


def test_while_is_looked_at_before_each_round_with_the_rounds_variables() -> None:
    body = "do: [{l: {for: {in: '[1, 2, 3, 4]'}, while: '$item < 3', do: [{s: {set: {last: '${ $item }'}}}]}}]"
    assert output(body) == {"last": 2}


def test_inner_loops_shadow_outer_ones_and_variables_end_with_the_loop() -> None:
    body = """
    do:
      - outer:
          for: {in: '[1, 2]'}
          do:
            - inner: {for: {in: '["a"]'}, do: [{s: {set: {seen: '${ (.seen // []) + [$item] }'}}}]}
            - after: {set: {seen: '${ .seen + [$item] }'}}
    """
    assert output(body, {}) == {"seen": ["a", 1, "a", 2]}
    with pytest.raises(Invalid):
        definition("do: [{l: {for: {in: .x}, do: [{s: {set: {x: 1}}}]}}, {after: {set: '${ $item }'}}]")


def test_the_items_may_be_written_inline() -> None:
    body = "do: [{l: {for: {in: [{n: 1}, {n: 2}]}, do: [{s: {set: {all: '${ (.all // []) + [$item.n] }'}}}]}}]"
    assert output(body, {}) == {"all": [1, 2]}


# ── fork ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fork_gives_an_array_in_the_order_in_which_it_is_written() -> None:
    body = "do: [{f: {fork: {branches: [{a: {wait: {seconds: 5}, output: {as: '\"a\"'}}}, {b: {set: {x: '${ .n }'}}}]}}}]"
    assert output(body, {"n": 3}) == ["a", {"x": 3}]


def test_a_fork_without_branches_gives_an_empty_array() -> None:
    assert output("do: [{f: {fork: {branches: []}}}]", {"n": 3}) == []


def test_the_quickest_of_competing_branches_gives_the_output_and_the_context() -> None:
    body = """
    do:
      - f:
          fork:
            compete: true
            branches:
              - slow: {do: [{w: {wait: {hours: 1}}}, {s: {set: {won: slow}}}]}
              - quick: {set: {won: quick}, export: {as: '{by: "quick"}'}}
      - after: {set: {won: '${ .won }', context: '${ $context }'}}
    """
    assert output(body) == {"won": "quick", "context": {"by": "quick"}}


def test_a_fault_in_a_branch_faults_the_fork() -> None:
    body = """
    do:
      - f:
          fork:
            branches:
              - bad: {raise: {error: {type: https://x/y, status: 418}}}
              - wait: {wait: {hours: 1}}
    """
    assert fault(body)["instance"] == "/do/0/f/fork/branches/0/bad"


# ── emit, listen ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_emitted_event_is_a_cloud_event_with_a_stable_id() -> None:
    body = "do: [{e: {emit: {event: {with: {type: t.y, data: {n: '${ .n }'}, traceid: abc}}}}}]"
    event = output(body, {"n": 1})
    assert event["data"] == {"n": 1}
    assert event["specversion"] == "1.0"
    assert event["source"] == "/tests/case/1.0.0"
    assert event["traceid"] == "abc"
    assert event["datacontenttype"] == "application/json"
    assert event["time"].endswith("Z")
    assert len(event["id"]) == 36


def test_an_attribute_that_cloud_events_do_not_allow_is_refused() -> None:
    with pytest.raises(Invalid, match="CloudEvents attribute"):
        definition("do: [{e: {emit: {event: {with: {type: t, Bad-Name: x}}}}}]")


TEMPERATURE, BPM = "vitals.temperature", "vitals.bpm"


def test_listening_to_one_gives_an_array_of_its_data() -> None:
    body = "do: [{l: {listen: {to: {one: {with: {type: vitals.temperature}}}}}}]"
    assert output(body, events=[{"type": "other", "data": 1}, {"type": TEMPERATURE, "data": {"t": 39}}]) == [{"t": 39}]


def test_reading_the_envelope_gives_the_whole_event() -> None:
    body = "do: [{l: {listen: {to: {one: {with: {type: vitals.temperature}}}, read: envelope}}}]"
    [event] = output(body, events=[{"type": TEMPERATURE, "data": {"t": 39}}])
    assert (event["type"], event["data"]) == (TEMPERATURE, {"t": 39})


def test_listening_to_all_takes_each_once_in_any_order() -> None:
    body = "do: [{l: {listen: {to: {all: [{with: {type: vitals.temperature}}, {with: {type: vitals.bpm}}]}}}}]"
    events = [{"type": BPM, "data": 1}, {"type": BPM, "data": 2}, {"type": TEMPERATURE, "data": 3}]
    assert output(body, events=events) == [1, 3]


def test_listening_to_any_takes_the_first() -> None:
    body = "do: [{l: {listen: {to: {any: [{with: {type: a}}, {with: {type: b}}]}}}}]"
    assert output(body, events=[{"type": "c", "data": 0}, {"type": "b", "data": 1}]) == [1]
    assert output("do: [{l: {listen: {to: {any: []}}}}]", events=[{"type": "whatever", "data": 5}]) == [5]


def test_any_until_a_condition_is_looked_at_after_each_event() -> None:
    body = "do: [{l: {listen: {to: {any: [], until: '(. | length) > 2'}}}}]"
    assert output(body, events=[{"type": "t", "data": n} for n in range(5)]) == [0, 1, 2]


def test_any_until_another_event_leaves_that_event_out() -> None:
    body = "do: [{l: {listen: {to: {any: [{with: {type: a}}], until: {one: {with: {type: stop}}}}}}}]"
    assert output(body, events=[{"type": "a", "data": 1}, {"type": "b", "data": 2}, {"type": "a", "data": 3}, {"type": "stop"}]) == [1, 3]


@pytest.mark.parametrize(
    ("wanted", "event", "counts"),
    [
        ("{type: my.type}", {"type": "myxtype"}, True),  # an anchored pattern, as the specification has it
        ("{type: my.type}", {"type": "my.type.more"}, False),
        ("{type: 'a.*'}", {"type": "abc"}, True),
        ("{type: t, data: '${ .n > 1 }'}", {"type": "t", "data": {"n": 2}}, True),
        ("{type: t, data: '${ .n > 1 }'}", {"type": "t", "data": {"n": 1}}, False),
        ("{type: t, data: {n: 1}}", {"type": "t", "data": {"n": 1, "m": 2}}, True),
        ("{type: t, source: /tests}", {"type": "t"}, True),
        ("{type: t, source: /other}", {"type": "t"}, False),
        ("{type: t, roomid: x}", {"type": "t", "roomid": "x"}, True),
        ("{type: t, roomid: x}", {"type": "t"}, False),
    ],
)
def test_which_events_count(wanted: str, event: dict[str, object], counts: bool) -> None:
    instance = run(f"do: [{{l: {{listen: {{to: {{one: {{with: {wanted}}}}}}}}}}}]", events=[event])
    assert (instance.state == "COMPLETED") is counts


def test_the_first_correlated_event_pins_the_value_for_the_others() -> None:
    body = """
    do:
      - l:
          listen:
            to:
              all:
                - {with: {type: a}, correlate: {room: {from: .roomid}}}
                - {with: {type: b}, correlate: {room: {from: .data.room}}}
    """
    events = [{"type": "a", "roomid": "1", "data": "A"}, {"type": "b", "data": {"room": "2"}}, {"type": "b", "data": {"room": "1"}}]
    assert output(body, events=events) == ["A", {"room": "1"}]


def test_a_correlation_may_expect_a_value_or_an_expression() -> None:
    body = "do: [{s: {set: {id: x7}}}, {l: {listen: {to: {one: {with: {type: a}, correlate: {id: {from: .data.id, expect: '%s'}}}}}}}]"
    events = [{"type": "a", "data": {"id": "other"}}, {"type": "a", "data": {"id": "x7"}}]
    assert output(body % "x7", events=events) == [{"id": "x7"}]
    assert output(body % "${ $input.id }", events=events) == [{"id": "x7"}]


def test_foreach_handles_each_event_in_turn_and_shapes_the_output() -> None:
    body = """
    do:
      - l:
          listen: {to: {any: [{with: {type: n}}], until: '(. | length) == 3'}}
          foreach:
            item: event
            at: i
            do:
              - double: {set: {doubled: '${ $event * 2 }', at: '${ $i }'}}
            output: {as: '[.doubled, .at]'}
            export: {as: '(. | add)'}
      - after: {set: {all: '${ . }', context: '${ $context }'}}
    """
    assert output(body, events=[{"type": "n", "data": n} for n in (5, 6, 7)]) == {"all": [[10, 0], [12, 1], [14, 2]], "context": 16}


def test_events_that_came_before_the_listener_are_kept_for_it() -> None:
    body = "do: [{w: {listen: {to: {one: {with: {type: first}}}}}}, {l: {listen: {to: {one: {with: {type: second}}}}}}]"
    assert output(body, events=[{"type": "second", "data": 2}, {"type": "first", "data": 1}]) == [2]


# ── raise, try ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_raised_error_has_its_expressions_filled_in_and_its_place() -> None:
    body = """
    use: {errors: {teapot: {type: https://x/teapot, status: 418, title: '${ "I am \\(.what)" }', detail: short and stout}}}
    do: [{r: {raise: {error: teapot}}}]
    """
    problem = fault(body, {"what": "a teapot"})
    assert {key: problem[key] for key in ("type", "status", "title", "detail", "instance")} == {
        "type": "https://x/teapot",
        "status": 418,
        "title": "I am a teapot",
        "detail": "short and stout",
        "instance": "/do/0/r",
    }


CAUGHT = """
do:
  - t:
      try:
        - r: {raise: {error: {type: https://x/boom, status: 500, title: Boom, detail: d}}}
      catch: %s
  - after: {set: '${ {after: .} }'}
"""


@pytest.mark.parametrize(
    ("catch", "caught"),
    [
        ("{}", True),
        ("{errors: {with: {type: https://x/boom}}}", True),
        ("{errors: {with: {type: https://x/boom, status: 500}}}", True),
        ("{errors: {with: {status: 404}}}", False),
        ("{errors: {with: {title: Boom, detail: d}}}", True),
        ("{errors: {with: {details: d}}}", True),
        ("{errors: {with: {instance: /do/0/t/try/0/r}}}", True),
        ("{when: $error.status == 500}", True),
        ("{when: $error.status == 404}", False),
        ("{as: e, when: $e.status == 500}", True),
        ("{exceptWhen: $error.status == 500}", False),
        ("{exceptWhen: $error.status == 404}", True),
    ],
)
def test_which_errors_are_caught(catch: str, caught: bool) -> None:
    instance = run(CAUGHT % catch, {"n": 1})
    assert (instance.state == "COMPLETED") is caught
    if not caught:
        assert fault(CAUGHT % catch)["instance"] == "/do/0/t/try/0/r"


def test_the_handler_sees_the_error_and_its_output_is_the_tries() -> None:
    assert output(CAUGHT % "{as: e, do: [{h: {set: {was: '${ $e.status }', input: '${ .n }'}}}]}", {"n": 1}) == {
        "after": {"was": 500, "input": 1}
    }


def test_an_error_in_the_handler_is_not_caught_by_the_same_try() -> None:
    body = CAUGHT % "{do: [{h: {raise: {error: {type: https://x/second, status: 400}}}}]}"
    assert fault(body)["instance"] == "/do/0/t/catch/do/0/h"


def test_the_handlers_then_wins_on_the_caught_path() -> None:
    body = """
    do:
      - t: {try: [{r: {raise: {error: {type: https://x/y, status: 500}}}}], catch: {then: recover}, then: end}
      - skipped: {set: {at: skipped}, then: end}
      - recover: {set: {at: recover}}
    """
    assert output(body) == {"at": "recover"}


@pytest.mark.parametrize("prefix", ["https://serverlessworkflow.io", "https://open-workflow-specification.org"])
@pytest.mark.parametrize("path", ["/spec/1.0.0/errors/", "/dsl/errors/types/"])
def test_standard_error_types_are_known_by_all_their_names(prefix: str, path: str) -> None:
    body = f"""
    do:
      - t:
          try: [{{bad: {{set: '${{ .a.b.c }}'}}}}]
          catch: {{errors: {{with: {{type: '{prefix}{path}expression'}}}}, do: [{{h: {{set: {{caught: true}}}}}}]}}
    """
    assert output(body, {"a": 1}) == {"caught": True}


def test_retries_are_counted_without_the_first_attempt_and_run_the_whole_list() -> None:
    body = """
    do:
      - t:
          try:
            - count: {set: {n: '${ .n }'}, export: {as: '{tries: (($context.tries // 0) + 1)}'}}
            - fail: {raise: {error: {type: https://x/y, status: 503}}}
          catch:
            retry: {delay: {seconds: 1}, backoff: {exponential: {}}, limit: {attempt: {count: 3}}}
            do: [{h: {set: {tries: '${ $context.tries }'}}}]
    """
    assert output(body, {"n": 1}) == {"tries": 4}


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        ("{delay: {seconds: 2}, limit: {attempt: {count: 3}}}", [2, 2, 2]),
        ("{delay: {seconds: 2}, backoff: {constant: {}}, limit: {attempt: {count: 3}}}", [2, 2, 2]),
        ("{delay: {seconds: 2}, backoff: {linear: {}}, limit: {attempt: {count: 3}}}", [2, 4, 6]),
        ("{delay: PT2S, backoff: {exponential: {}}, limit: {attempt: {count: 3}}}", [2, 4, 8]),
    ],
)
def test_the_waits_between_attempts(policy: str, delays: list[int]) -> None:
    body = f"do: [{{t: {{try: [{{f: {{raise: {{error: {{type: 'https://x/y', status: 503}}}}}}}}], catch: {{retry: {policy}}}}}}}]"
    instance = run(body)
    assert instance.state == "FAILED"
    assert instance.ended is not None
    assert round(instance.ended - instance.began) == sum(delays)


def test_jitter_is_added_and_stays_within_its_bounds() -> None:
    policy = "{delay: {seconds: 1}, jitter: {from: {seconds: 1}, to: {seconds: 2}}, limit: {attempt: {count: 1}}}"
    instance = run(f"do: [{{t: {{try: [{{f: {{raise: {{error: {{type: 'https://x/y', status: 503}}}}}}}}], catch: {{retry: {policy}}}}}}}]")
    assert instance.ended is not None
    assert 2 <= instance.ended - instance.began <= 3


def test_a_retry_that_its_condition_forbids_is_the_end_of_retrying() -> None:
    body = """
    use: {retries: {never: {when: $error.status == 404, limit: {attempt: {count: 5}}}}}
    do:
      - t:
          try: [{f: {raise: {error: {type: https://x/y, status: 503}}}}]
          catch: {retry: never, do: [{h: {set: {gave: up}}}]}
    """
    assert output(body) == {"gave": "up"}


# ── wait, timeouts ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "duration", ["{seconds: 90}", "PT1M30S", "'${ .for }'", "{minutes: 1, seconds: 29, milliseconds: 1000}", "1m30s", "90s"]
)
def test_a_wait_takes_its_time_and_hands_its_input_on(duration: str) -> None:
    instance = run(f"do: [{{w: {{wait: {duration}}}}}]", {"for": "PT90S"})
    assert instance.output == {"for": "PT90S"}
    assert instance.ended is not None
    assert round(instance.ended - instance.began) == 90


def test_a_tasks_timeout_is_a_catchable_408_at_the_task() -> None:
    body = """
    use: {timeouts: {short: {after: {seconds: 5}}}}
    do:
      - t:
          try: [{w: {timeout: short, wait: {hours: 1}}}]
          catch: {errors: {with: {status: 408}}, as: e, do: [{h: {set: {at: '${ $e.instance }', type: '${ $e.type }'}}}]}
    """
    found = output(body)
    assert found["at"] == "/do/0/t/try/0/w"
    assert found["type"].endswith("/timeout")


def test_a_workflows_timeout_faults_it() -> None:
    problem = fault("timeout: {after: {seconds: 5}}\ndo: [{t: {try: [{w: {wait: {hours: 1}}}], catch: {}}}]")
    assert (problem["status"], problem["type"].rsplit("/", 1)[1]) == (408, "timeout")


def test_an_attempt_may_have_a_time_of_its_own() -> None:
    body = """
    do:
      - t:
          try: [{w: {wait: {minutes: 10}}}]
          catch: {retry: {limit: {attempt: {count: 2, duration: {seconds: 3}}}}, do: [{h: {set: {gave: up}}}]}
    """
    instance = run(body)
    assert instance.output == {"gave": "up"}
    assert instance.ended is not None
    assert round(instance.ended - instance.began) == 9


# ── functions, extensions ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_function_gets_its_arguments_as_input_and_its_own_schema_and_output_apply() -> None:
    body = """
    use:
      functions:
        twice:
          input: {schema: {document: {required: [n], properties: {n: {type: integer}}}}}
          set: {n: '${ .n * 2 }'}
          output: {as: .n}
    do:
      - call: {call: twice, with: {n: '${ .x }'}, output: {as: '{result: .}'}}
    """
    assert output(body, {"x": 21}) == {"result": 42}
    assert fault(body, {"x": "no"})["type"].endswith("/validation")


def test_a_function_that_calls_itself_is_refused() -> None:
    with pytest.raises(Invalid, match="calls itself"):
        definition("use: {functions: {a: {call: b}, b: {call: a}}}\ndo: [{s: {call: a}}]")


def test_extensions_go_around_the_tasks_they_extend_and_leave_the_data_alone() -> None:
    body = """
    use:
      extensions:
        - logging:
            extend: set
            when: $task.name != "quiet"
            before: [{note: {set: {gone: true}, export: {as: '$context + ["before \\($task.name)"]'}}}]
            after: [{note: {set: {gone: true}, export: {as: '$context + ["after"]'}}}]
    do:
      - one: {set: {n: '${ .n + 1 }'}}
      - quiet: {set: {n: '${ .n + 1 }', log: '${ $context }'}}
    """
    assert output(body, {"n": 0}) == {"n": 2, "log": ["before note", "after"]}


def test_an_extension_that_exits_before_replaces_the_task() -> None:
    body = """
    use:
      extensions:
        - mock:
            extend: call
            when: $task.with.endpoint.uri | startswith("https://mocked")
            before: [{mock: {set: {mocked: '${ .id }'}, then: exit}}]
    do:
      - call: {call: http, with: {method: get, endpoint: {uri: 'https://mocked.example/x'}}}
      - after: {set: '${ {after: .} }'}
    """
    assert output(body, {"id": 7}) == {"after": {"mocked": 7}}


def test_an_extended_tasks_then_still_counts_and_all_extends_everything() -> None:
    body = """
    use: {extensions: [{x: {extend: all, after: [{n: {set: {}, export: {as: '($context // 0) + 1'}}}]}}]}
    do:
      - a: {set: {at: a}, then: c}
      - b: {set: {at: b}}
      - c: {set: '${ . + {count: $context} }'}
    """.replace("set: {}", "set: {x: 1}")
    assert output(body) == {"at": "a", "count": 1}


def test_older_documents_are_read_in_their_own_words() -> None:
    made = definition("do: [{t: {try: [{s: {set: {delay: 2s}}}], catch: {errors: {with: {details: x}}, retry: {delay: 1m30s}}}}]")
    [task] = made.do.tasks  # type: ignore[union-attr]
    assert (task.catch.errors, task.catch.retry.base_s) == ({"detail": "x"}, 90.0)
    # What is data stays as it is written, whatever its names are.
    assert task.do.tasks[0].value.value == {"delay": "2s"}


def test_tasks_may_be_asked_of_executors_outside() -> None:
    head = HEAD % "outside"
    text = head.replace("version: '1.0.0'}", "version: '1.0.0', metadata: {executor: external}}") + (
        "do: [{get: {call: http, with: {method: get, endpoint: 'http://x/{id}', query: {n: '${ .n }'}}, timeout: {after: PT1M}}}, {s: {set: {got: '${ . }'}}}]"
    )
    engine = Embedded(clock=ManualClock())
    instance = engine.start(read_document(text, "case.yaml"), {"n": 5, "id": 7})
    engine.settle()
    [asked] = [fact.data["event"] for fact in instance.history if fact.kind == "event.emitted"]
    assert asked["type"] == "io.flunq.task.requested"
    data = asked["data"]
    assert (data["task_name"], data["task_type"], data["input"]) == ("get", "http", {"n": 5, "id": 7})
    assert data["config"]["parameters"] == {"method": "get", "endpoint": "http://x/{id}", "query": {"n": 5}}
    done = {"task_id": data["task_id"], "success": True, "output": {"ok": True}}
    engine.send({"specversion": "1.0", "id": "1", "source": "/executor", "type": "external.completed", "data": done})
    assert engine.finish(instance).output == {"got": {"ok": True}}
    for wrong in ("executor: somebody", "executor: 5"):
        with pytest.raises(Invalid, match="engine or external"):
            read_document(text.replace("executor: external", wrong))
    with pytest.raises(Invalid, match="neither secrets nor authentication"):
        read_document(text.replace("${ .n }", "${ $secrets.token }"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("pattern", "kind", "counts"),
    [
        ("a.*z", "abcz", True),
        ("a.*z", "abczx", False),
        ("com\\.x\\..+", "com.x.y", True),
        ("com.x", "com.x", True),
        ("[", "[", True),
        ("(a+)+b", "a" * 60, False),
        ("(?=a)(a+)+b(?<!c)", "a" * 60, False),
    ],
)
def test_a_pattern_takes_no_longer_than_it_reads(pattern: str, kind: str, counts: bool) -> None:
    body = f"do: [{{l: {{listen: {{to: {{one: {{with: {{type: {json.dumps(pattern)}}}}}}}}}}}}}]"
    assert (run(body, events=[{"type": kind, "data": 1}]).state == "COMPLETED") is counts
