"""Checklist 2 and 3: what flows into, through and out of tasks, and what expressions see."""

from __future__ import annotations

import pytest

from orchestrator.errors import Invalid
from tests.serverless.running import definition, fault, output, run


def test_the_workflows_input_is_checked_then_mapped_and_its_output_mapped_then_checked() -> None:
    body = """
    input:
      schema: {document: {type: object, required: [n]}}
      from: '{m: .n}'
    do:
      - add: {set: {m: '${ .m + 1 }'}}
    output:
      as: .m
      schema: {document: {type: integer}}
    """
    assert output(body, {"n": 1}) == 2
    assert fault(body.replace("type: integer", "type: string"), {"n": 1})["type"].endswith("/validation")
    with pytest.raises(AssertionError):
        output(body, {})


def test_a_tasks_input_schema_sees_the_raw_input_and_its_output_schema_the_mapped_output() -> None:
    body = """
    do:
      - one:
          input: {schema: {document: {required: [raw]}}, from: .raw}
          set: {got: '${ . }'}
          output: {as: .got, schema: {document: {type: string}}}
    """
    assert output(body, {"raw": "x"}) == "x"
    assert fault(body, {"cooked": "x"})["status"] == 400
    assert fault(body, {"raw": 7})["instance"] == "/do/0/one"


def test_a_skipped_task_hands_its_raw_input_on_and_nothing_of_it_applies() -> None:
    body = """
    do:
      - skipped: {if: .yes, input: {from: .a}, set: {x: 1}, output: {as: .b}, export: {as: '"no"'}, then: end}
      - after: {set: {seen: '${ . }', context: '${ $context }'}}
    """
    assert output(body, {"yes": False, "a": 1}) == {"seen": {"yes": False, "a": 1}, "context": None}


@pytest.mark.parametrize("value", [1, "text", True, None, [1, 2], {"a": 1}])
def test_data_may_be_any_json(value: object) -> None:
    assert output("do: [{same: {set: '${ $input }'}}]", value) == value


def test_set_replaces_the_data_and_nests_templates() -> None:
    assert output("do: [{s: {set: {a: {b: ['${ .n }', 'text', 3]}}}}]", {"n": 1, "gone": True}) == {"a": {"b": [1, "text", 3]}}


def test_export_replaces_the_context_for_all_that_follows() -> None:
    body = """
    do:
      - one: {set: {n: 1}, export: {as: '{first: .n}'}}
      - two: {set: {n: 2}, export: {as: '$context + {second: .n}'}}
      - three: {set: '${ $context }'}
    """
    assert output(body) == {"first": 1, "second": 2}


def test_a_nested_tasks_export_is_seen_by_what_follows_outside() -> None:
    body = """
    do:
      - outer: {do: [{inner: {set: {n: 5}, export: {as: .n}}}]}
      - after: {set: {context: '${ $context }'}}
    """
    assert output(body) == {"context": 5}


def test_contexts_of_branches_are_merged_in_the_order_they_are_written() -> None:
    body = """
    do:
      - fork:
          fork:
            branches:
              - a: {set: {x: 1}, export: {as: '{a: 1, both: "a"}'}}
              - b: {set: {x: 2}, export: {as: '{b: 2, both: "b"}'}}
      - after: {set: '${ $context }'}
    """
    assert output(body) == {"a": 1, "b": 2, "both": "b"}


def test_a_childs_first_input_is_its_parents_mapped_input_and_the_last_output_is_the_parents() -> None:
    body = """
    do:
      - outer:
          input: {from: .inside}
          do:
            - one: {set: {n: '${ .n + 1 }'}}
            - two: {set: {n: '${ .n * 10 }'}}
    """
    assert output(body, {"inside": {"n": 1}}) == {"n": 20}


def test_the_mapping_may_be_an_object_of_templates() -> None:
    assert output("do: [{s: {input: {from: {x: '${ .a }', y: 2}}, set: '${ $input }'}}]", {"a": 1}) == {"x": 1, "y": 2}


def test_values_are_expressions_only_as_a_whole_and_the_brackets_come_off_once() -> None:
    body = """
    do:
      - s:
          set:
            whole: '${ .name }'
            spaced: '  ${ .name }  '
            object: '${ {a: {b: .name}} }'
            middle: 'Hello ${ .name }!'
            shell: '$HOME ${HOME:-x'
    """
    assert output(body, {"name": "Ada"}) == {
        "whole": "Ada",
        "spaced": "Ada",
        "object": {"a": {"b": "Ada"}},
        "middle": "Hello ${ .name }!",
        "shell": "$HOME ${HOME:-x",
    }


def test_in_loose_mode_any_string_is_tried_and_stands_for_itself_when_it_is_none() -> None:
    body = "evaluate: {mode: loose}\ndo: [{s: {set: {a: .name, b: 'not an expression!', c: '${ .name }'}}}]"
    assert output(body, {"name": "Ada"}) == {"a": "Ada", "b": "not an expression!", "c": "Ada"}


def test_another_language_than_jq_is_refused() -> None:
    with pytest.raises(Invalid, match="Write jq"):
        definition("evaluate: {language: javascript}\ndo: [{s: {set: {a: 1}}}]")


def test_the_arguments_of_expressions() -> None:
    body = """
    do:
      - first/odd name: {set: {n: 1}, export: {as: '{k: 7}'}}
      - look:
          input: {from: '{raw: .}'}
          set:
            context: '${ $context }'
            input: '${ $input }'
            same: '${ . == $input }'
            name: '${ $task.name }'
            reference: '${ $task.reference }'
            rawTask: '${ $task.input }'
            written: '${ $task.set.written }'
            definition: '${ $task.definition.set.name }'
            workflow: '${ $workflow.definition.document.name }'
            id: '${ $workflow.id | type }'
            given: '${ $workflow.input }'
            started: '${ $workflow.startedAt.epoch.seconds > 0 }'
            taskStarted: '${ $task.startedAt.iso8601 | type }'
            runtime: '${ $runtime.name }'
            secrets: '${ $secrets }'
            authorization: '${ $authorization }'
    """
    seen = output(body, {"in": True})
    assert seen.pop("written").startswith("${ $task.set.written")
    assert seen == {
        "context": {"k": 7},
        "input": {"raw": {"n": 1}},
        "same": True,
        "name": "look",
        "reference": "/do/1/look",
        "rawTask": {"n": 1},
        "definition": "${ $task.name }",
        "workflow": "case",
        "id": "string",
        "given": {"in": True},
        "started": True,
        "taskStarted": "string",
        "runtime": "celery-orchestrator",
        "secrets": {},
        "authorization": None,
    }


def test_names_with_slashes_and_tildes_are_escaped_in_references() -> None:
    body = "do: [{'a/b~c#d': {set: {r: '${ $task.reference }', n: '${ $task.name }'}}}]"
    assert output(body) == {"r": "/do/0/a~1b~0c#d", "n": "a/b~c#d"}


def test_an_expression_that_fails_is_an_expression_error_at_its_task() -> None:
    problem = fault("do: [{ok: {set: {a: 1}}}, {bad: {set: {x: '${ .a.b.c }'}}}]")
    assert (problem["type"].rsplit("/", 1)[1], problem["status"], problem["instance"]) == ("expression", 400, "/do/1/bad")


def test_an_unknown_variable_is_found_when_the_document_is_read() -> None:
    with pytest.raises(Invalid, match="nobody"):
        definition("do: [{s: {set: {x: '${ $nobody }'}}}]")


def test_what_differs_from_time_to_time_is_decided_once() -> None:
    instance = run("do: [{s: {set: {at: '${ now }'}}}, {t: {set: {same: '${ .at }'}}}]")
    assert next(fact.data["value"] for fact in instance.history if fact.data.get("slot") == "set") == {"at": instance.output["same"]}


def test_secrets_reach_expressions_of_calls_and_must_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_API", '{"key": "abc"}')
    body = "use: {secrets: [api]}\ndo: [{s: {if: '$secrets.api.key == \"abc\"', set: {ok: true}}}]"
    assert output(body, {}) == {"ok": True}
    monkeypatch.delenv("SECRET_API")
    assert fault(body, {})["status"] == 403


def test_a_schema_that_takes_for_ever_is_stopped() -> None:
    parts = ", ".join(f"a{n}: {{allOf: [{{$ref: '#/$defs/a{n + 1}'}}, {{$ref: '#/$defs/a{n + 1}'}}]}}" for n in range(40))
    schema = f"{{$ref: '#/$defs/a0', $defs: {{{parts}, a40: {{type: object}}}}}}"
    error = fault(f"do: [{{s: {{set: {{x: 1}}, output: {{schema: {{document: {schema}}}}}}}}}]")
    assert error["type"].endswith("/expression")
    assert "not done within" in error["detail"]


def test_a_schema_may_refer_to_its_own_parts() -> None:
    schema = "{$ref: '#/$defs/tree', $defs: {tree: {type: object, properties: {left: {$ref: '#/$defs/tree'}, n: {type: integer}}}}}"
    body = f"do: [{{s: {{set: '${{ . }}', output: {{schema: {{document: {schema}}}}}}}}}]"
    assert output(body, {"left": {"left": {"n": 1}}}) == {"left": {"left": {"n": 1}}}
    error = fault(body, {"left": {"left": {"n": "one"}}})
    assert (error["type"].rsplit("/", 1)[1], "left/left/n" in error["detail"]) == ("validation", True)


def test_what_a_schema_refers_to_on_the_network_is_not_fetched() -> None:
    with pytest.raises(Invalid, match=r"cannot fetch http://127\.0\.0\.1:9"):
        definition("do: [{s: {set: {x: 1}, output: {schema: {document: {$ref: 'http://127.0.0.1:9/x.json'}}}}}]")
