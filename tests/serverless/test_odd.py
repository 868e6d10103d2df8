"""Odd values in every field and out of every expression: a typed refusal, or a fault that can be caught; no crash, no hang."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.definition.codec import from_json, to_json
from orchestrator.definition.documents import definition_from, parse, read_document
from orchestrator.definition.parsing import json_faults
from orchestrator.definition.serverless import schema, schema08
from orchestrator.definition.validate import check
from orchestrator.embedded import Embedded, Instance
from orchestrator.errors import Invalid
from orchestrator.net import authentication, resources
from orchestrator.plan.catching import STATUS_OF
from orchestrator.steps.registry import REGISTRY
from orchestrator.testing import ManualClock
from tests.chaos.crowd import LONG
from tests.odd import ODD
from tests.pace import patient
from tests.serverless.standins import StandIn
from tests.stack import Stack, until

pytestmark = pytest.mark.timeout(3600 if LONG else 180)
FOLDER = Path(__file__).parent / "fields"
MOST_S = patient(20.0)
HEAD = {"document": {"dsl": "1.0.3", "namespace": "odd", "name": "odd", "version": "1.0.0"}}
HEAD08 = {"id": "odd", "specVersion": "0.8", "version": "1", "events": [{"name": "e", "source": "s", "type": "t"}],
          "functions": [{"name": "f", "type": "expression", "operation": ".x"}], "retries": [{"name": "r", "maxAttempts": 1}]}  # fmt: skip
WHOLE = [
    *({**HEAD, **part} for part in parse((FOLDER / "v1.yaml").read_text(), "v1.yaml")),
    *({**HEAD08, **part} for part in parse((FOLDER / "v08.yaml").read_text(), "v08.yaml")),
]
VALUES = [(name, value) for name, value in ODD if not list(json_faults(value))]


# ── in every field ──────────────────────────────────────────────────────────────────────────────────────────────────


def names_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values()))
    return set().union(*map(names_in, value)) if isinstance(value, list) else set()


def fields_of(part: Any) -> set[str]:
    if isinstance(part, list):
        return set().union(*map(fields_of, part))
    if not isinstance(part, dict):
        return set()
    own = set(part["properties"]) if isinstance(part.get("properties"), dict) else set()
    return own.union(*map(fields_of, part.values()))


def test_the_documents_use_every_field_of_the_schemas() -> None:
    used = names_in(WHOLE)
    files = [
        schema08._read(f.name)
        for f in sorted((Path(schema08.__file__).parent / "schemas" / "v08").glob("*.json"))
        if f.name != "odata.json"
    ]
    ours = {"$schema", "details"}
    assert fields_of(schema._schema()) - used - ours - {"stdout", "stderr", "correlationId"} == set()
    assert fields_of(files) - used - ours - {"oneOf"} == set()


@pytest.mark.parametrize("number", range(len(WHOLE)))
def test_the_documents_are_read_as_they_are(number: int) -> None:
    check(definition_from(WHOLE[number]), REGISTRY)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def with_odd(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(document)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return changed


def read(document: Any) -> None:
    """Read and checked, or refused with faults that say something."""
    try:
        definition = definition_from(document)
        check(definition, REGISTRY)
    except Invalid as refused:
        faults = refused.faults
        # What is said of a value is short, and fit to be shown.
        is_told = bool(faults) and all(isinstance(fault.place, str) and 0 < len(fault.message) < 1_000 for fault in faults)
        if not is_told or not str(refused).encode():
            raise AssertionError(ascii(refused)[:500]) from None
    else:
        assert from_json(json.loads(json.dumps(to_json(definition)))) == from_json(to_json(definition))


CASES = [(number, path, odd) for number, document in enumerate(WHOLE) for path in places(document) for odd in ODD]
random.Random(20261125).shuffle(CASES)


def test_an_odd_value_in_any_field_is_read_or_refused() -> None:
    slowest = 0.0
    for number, path, (name, value) in CASES if LONG else CASES[:2_500]:
        began = time.monotonic()
        try:
            read(with_odd(WHOLE[number], path, value))
        except Exception as error:
            raise AssertionError(f"{name} at {path!a} of document {number}: {error!a}") from None
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < MOST_S


def test_an_odd_name_of_any_field_is_read_or_refused() -> None:
    names = [value for _, value in ODD if isinstance(value, str) and len(value) < 1000]
    chosen = random.Random(1126)
    for number, document in enumerate(WHOLE):
        for path in places(document):
            # By its first names a document says which front end is meant.
            if isinstance(path[-1], str) and path not in (("document",), ("states",)) and (LONG or chosen.random() < 0.3):
                name = chosen.choice(names)
                changed = with_odd(document, path, None)
                holder = changed
                for key in path[:-1]:
                    holder = holder[key]
                holder[name] = holder.pop(path[-1]) or {"a": 1}
                read(changed)
                assert number >= 0


@pytest.mark.parametrize(("name", "value"), ODD, ids=[name for name, _ in ODD])
def test_an_odd_value_instead_of_a_document_is_refused(name: str, value: Any) -> None:
    for document in (value, {"document": value, "do": value}, {"states": value}, {**HEAD, "do": value}, {**HEAD08, "states": value}):
        if not isinstance(document, dict) or document.get("document") is not None:
            with pytest.raises(Invalid):
                definition_from(document)


# ── out of every expression ─────────────────────────────────────────────────────────────────────────────────────────

TASKS = {
    "if": "{s: {if: .odd, set: {x: 1}}}",
    "input.from": "{s: {input: {from: .odd}, set: {x: '${ . }'}}}",
    "input.from.x": "{s: {input: {from: {x: '${ .odd }'}}, set: {x: '${ .x.a }'}}}",
    "output.as": "{s: {set: '${ . }', output: {as: .odd}}}",
    "export.as": "{s: {set: '${ . }', export: {as: .odd}}}, {t: {set: {c: '${ $context }'}}}",
    "set": "{s: {set: '${ .odd }'}}, {t: {set: {x: '${ .a.b }'}}}",
    "set.x": "{s: {set: {x: '${ .odd }', y: ['${ .odd }']}}}",
    "a computed name": "{s: {set: '${ {(.odd | tostring): 1} }'}}",
    "schema": "{s: {input: {from: .odd, schema: {document: {type: object, required: [odd]}}}, set: {x: 1}, output: {schema: {document: {properties: {x: {const: 2}}}}}}}",
    "a schema that refers to itself": "{s: {set: '${ .odd }', output: {schema: {document: {$ref: '#/$defs/a', $defs: {a: {anyOf: [{type: object}, {items: {$ref: '#/$defs/a'}}]}}}}}}}",
    "switch.when": "{s: {switch: [{a: {when: .odd, then: end}}, {b: {when: .odd == 1, then: continue}}]}}",
    "for.in": "{l: {for: {in: .odd}, do: [{s: {set: {x: '${ $item }'}}}]}}",
    "while": "{l: {for: {in: '[1, 2]'}, while: $input.odd, do: [{s: {set: {x: 1}}}]}}",
    "wait": "{w: {wait: '${ .odd }'}}",
    "timeout": "{s: {timeout: {after: '${ .odd }'}, wait: PT1S}}",
    **{
        f"raise.{name}": f"{{r: {{raise: {{error: {{type: https://x/y, status: 500, {name}: '${{ .odd }}'}}}}}}}}"
        for name in ("title", "detail", "instance")
    },
    "raise.type": "{r: {raise: {error: {type: '${ .odd }', status: 500}}}}",
    **{
        f"emit.{name}": f"{{e: {{emit: {{event: {{with: {{type: t, {name}: '${{ .odd }}'}}}}}}}}}}"
        for name in ("id", "source", "time", "subject", "datacontenttype", "dataschema", "data", "ext")
    },
    "emit.type": "{e: {emit: {event: {with: {type: '${ .odd }'}}}}}",
    "listen.with": "{l: {listen: {to: {one: {with: {type: odd, data: '${ $input.odd }'}}}}}}",
    "listen.with.type": "{l: {listen: {to: {one: {with: {type: '${ $input.odd }'}}}}}}",
    "listen.correlate": "{l: {listen: {to: {one: {with: {type: odd}, correlate: {k: {from: .data.odd, expect: '${ .odd }'}}}}}}}",
    "listen.until": "{l: {listen: {to: {any: [{with: {type: odd}}], until: '.[0].odd'}}}}",
    "listen.foreach": "{l: {listen: {to: {one: {with: {type: odd}}}}, foreach: {do: [{s: {set: {x: '${ $item.odd.a }'}}}], output: {as: .x.y}}}}",
    "catch.when": "{t: {try: [{r: {raise: {error: {type: x, status: 500}}}}], catch: {when: $input.odd, exceptWhen: $input.odd == 1, do: [{c: {set: {y: 1}}}]}}}",
    **{
        f"retry.{name}": f"{{t: {{try: [{{r: {{raise: {{error: {{type: x, status: 500}}}}}}}}], catch: {{retry: {{limit: {{attempt: {{count: 2}}}}, {written}}}}}}}}}"
        for name, written in (
            ("when", "when: $input.odd"),
            ("delay", "delay: '${ .odd }'"),
            ("jitter", "jitter: {from: '${ .odd }', to: PT1S}"),
        )
    },
    "retry.limit": "{t: {try: [{r: {raise: {error: {type: x, status: 500}}}}], catch: {retry: {delay: PT1S, limit: {duration: '${ .odd }', attempt: {count: 2}}}}}}",
    "retry.attempt": "{t: {try: [{w: {wait: PT1S}}], catch: {retry: {limit: {attempt: {count: 2, duration: '${ .odd }'}}}}}}",
    "run.workflow": "{w: {run: {workflow: {namespace: odd, name: child, version: latest, input: {x: '${ .odd }'}}}}}",
    "fork": "{f: {fork: {branches: [{a: {set: '${ .odd }'}}, {b: {if: .odd, set: {x: 1}}}]}}}",
    "function": "{c: {call: f, with: {a: '${ .odd }'}}}",
    "extension": "{c: {set: {x: 1}, metadata: {odd: true}}}",
}
PROGRAMS = {
    "shell.command": "{r: {run: {shell: {command: '${ .odd }'}}}}",
    "shell.arguments": "{r: {run: {shell: {command: 'true', arguments: ['${ .odd }']}}}}",
    "shell.environment": "{r: {run: {shell: {command: 'true', stdin: '${ .odd }', environment: {A: '${ .odd }'}}}}}",
    "shell.return": "{r: {run: {await: false, shell: {command: 'true', stdin: '${ .odd }'}}}}",
}
CALLS = {
    "http.endpoint": "{h: {call: http, with: {method: get, endpoint: '${ .odd }'}}}",
    "http.uri": "{h: {call: http, with: {method: post, endpoint: {uri: 'http://127.0.0.1:9/{odd}'}, body: '${ .odd }'}}}",
    "http.method": "{h: {call: http, with: {method: '${ .odd }', endpoint: 'http://127.0.0.1:9'}}}",
    "http.headers": "{h: {call: http, with: {method: get, endpoint: 'http://127.0.0.1:9', headers: '${ .odd }'}}}",
    "http.header": "{h: {call: http, with: {method: get, endpoint: 'http://127.0.0.1:9', headers: {A: '${ .odd }'}}}}",
    "http.query": "{h: {call: http, with: {method: get, endpoint: 'http://127.0.0.1:9', query: '${ .odd }'}}}",
    "http.authentication": "{h: {call: http, with: {method: get, endpoint: {uri: 'http://127.0.0.1:9', authentication: {basic: {username: '${ .odd }', password: '${ .odd }'}}}}}}",
    "http.oauth2": "{h: {call: http, with: {method: get, endpoint: {uri: 'http://127.0.0.1:9', authentication: {oauth2: {authority: 'http://127.0.0.1:9', grant: password, client: {id: '${ .odd }', secret: '${ .odd }'}, username: '${ .odd }', password: '${ .odd }'}}}}}}",
    "openapi": "{o: {call: openapi, with: {document: {endpoint: '${ .odd }'}, operationId: '${ .odd }', parameters: {a: '${ .odd }'}}}}",
    "asyncapi": "{a: {call: asyncapi, with: {document: {endpoint: '${ .odd }'}, channel: '${ .odd }', message: {payload: {a: '${ .odd }'}}}}}",
    "grpc": "{g: {call: grpc, with: {proto: {endpoint: '${ .odd }'}, service: {name: '${ .odd }', host: localhost, port: 9}, method: '${ .odd }', arguments: {a: '${ .odd }'}}}}",
    "a2a": "{a: {call: a2a, with: {server: '${ .odd }', method: message/send, parameters: {message: '${ .odd }'}}}}",
    "mcp.http": "{m: {call: mcp, with: {method: tools/call, parameters: {name: '${ .odd }'}, timeout: '${ .odd }', transport: {http: {endpoint: '${ .odd }', headers: {a: '${ .odd }'}}}}}}",
    "mcp.stdio": "{m: {call: mcp, with: {method: tools/list, transport: {stdio: {command: '${ .odd }', arguments: ['${ .odd }'], environment: {A: '${ .odd }'}}}}}}",
    "script.source": "{s: {run: {script: {language: python, source: {endpoint: '${ .odd }'}, arguments: ['${ .odd }']}}}}",
    "container": "{c: {run: {container: {image: '${ .odd }', name: '${ .odd }', command: '${ .odd }', environment: {A: '${ .odd }'}, arguments: ['${ .odd }'], stdin: '${ .odd }', ports: {'80': '${ .odd }'}, volumes: {a: '${ .odd }'}}}}}",
    "catalog": "{c: {call: 'f:1@c', with: {a: '${ .odd }'}}}",
}
STATES08 = {
    "stateDataFilter": "{name: s, type: inject, data: {x: 1}, stateDataFilter: {input: .odd, output: .odd}, end: true}",
    "dataCondition": "{name: s, type: switch, dataConditions: [{condition: .odd, end: true}], defaultCondition: {end: true}}",
    "action": "{name: s, type: operation, actions: [{functionRef: {refName: f, arguments: {a: '${ .odd }', b: 'x ${ .odd } y'}}, condition: .odd, actionDataFilter: {fromStateData: .odd, results: .odd, toStateData: .a.b}}], end: true}",
    "inputCollection": "{name: s, type: foreach, inputCollection: .odd, outputCollection: .odd, iterationParam: i, actions: [{functionRef: f}], end: true}",
    "produceEvents": "{name: s, type: inject, data: {}, end: {produceEvents: [{eventRef: e, data: '${ .odd }', contextAttributes: {a: '${ .odd }'}}]}}",
    "event": "{name: s, type: event, onEvents: [{eventRefs: [e], eventDataFilter: {data: .odd, toStateData: .x}, actions: []}], end: true}",
    "subFlow": "{name: s, type: operation, actions: [{subFlowRef: child, actionDataFilter: {fromStateData: .odd}}], end: true}",
    "continueAs": "{name: s, type: inject, data: {}, end: {continueAs: {workflowId: child, data: '${ .odd }'}}}",
}
USE = {
    "use": {
        "functions": {"f": {"set": {"x": "${ .a.b }"}}},
        "extensions": [{"x": {"extend": "set", "when": "$task.metadata.odd and .odd", "before": [{"b": {"set": {"x": "${ .odd }"}}}]}}],
        "catalogs": {"c": {"endpoint": "http://127.0.0.1:9"}},
    }
}
CHILD = "document: {dsl: '1.0.3', namespace: odd, name: child, version: '1.0.0'}\ndo: [{s: {set: {x: '${ .x.a }'}}}]"
CAUGHT = "do: [{whole: {try: [%s], catch: {as: whole_error, do: [{c: {set: {caught: '${ $whole_error.status }'}}}]}}}]"


def caught(tasks: str, name: str = "odd") -> Any:
    data = parse(CAUGHT % tasks)
    return definition_from({**HEAD, "document": {**HEAD["document"], "name": name}, **USE, **data})


def state08(state: str, name: str = "odd") -> Any:
    return definition_from({**HEAD08, "id": name, "states": [parse(state)]})


def run(definition: Any, odd: Any) -> Instance:
    engine = Embedded(clock=ManualClock())
    engine.register(read_document(CHILD))
    instance = engine.start(definition, {"odd": odd})
    for number, kind in enumerate(("odd", "t")):
        engine.settle()
        engine.send({"specversion": "1.0", "id": f"e{number}", "source": "s", "type": kind, "data": {"odd": odd}})
    return engine.finish(instance)


def try_out(definition: Any, *, catches: bool) -> None:
    for name, value in VALUES:
        began = time.monotonic()
        try:
            instance = run(definition, value)
        except Exception as error:
            raise AssertionError(f"{name}: {error!a}") from error
        assert time.monotonic() - began < MOST_S, name
        if catches:
            assert instance.state != "FAILED", (name, instance.error)
        if instance.error is not None:
            assert instance.error["code"], name
            assert len(instance.error["message"]) < 5_000, name


@pytest.mark.parametrize("place", TASKS)
def test_an_odd_result_of_an_expression_is_used_or_caught(place: str) -> None:
    try_out(caught(TASKS[place]), catches=True)


@pytest.mark.parametrize("place", CALLS)
def test_an_odd_argument_of_a_call_is_used_or_caught(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in ("RUN_SCRIPTS", "RUN_CONTAINERS"):
        monkeypatch.setenv(switch, "true")
    monkeypatch.setenv("CONTAINER_HOST", "tcp://127.0.0.1:9")
    try_out(caught(CALLS[place]), catches=True)


@pytest.mark.parametrize("place", PROGRAMS)
def test_an_odd_argument_of_a_program_is_used_or_caught(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_SHELL", "true")
    try_out(caught(PROGRAMS[place]), catches=True)


@pytest.mark.parametrize("place", STATES08)
def test_an_odd_result_in_a_state_of_0_8_is_used_or_a_fault(place: str) -> None:
    try_out(state08(STATES08[place]), catches=False)


@pytest.mark.parametrize("place", ["input", "output", "timeout"])
def test_an_odd_result_around_a_workflow_is_used_or_a_fault(place: str) -> None:
    around = {"input": {"input": {"from": ".odd"}}, "output": {"output": {"as": ".odd"}}, "timeout": {"timeout": {"after": "${ .odd }"}}}
    definition = definition_from({**HEAD, **around[place], "do": [{"s": {"set": "${ . }"}}, {"w": {"wait": {"seconds": 1}}}]})
    try_out(definition, catches=False)


# ── in what calls refer to ──────────────────────────────────────────────────────────────────────────────────────────

OPENAPI = {
    "openapi": "3.0.0",
    "servers": [{"url": "/{v}", "variables": {"v": {"default": "x"}}}],
    "paths": {"/p/{id}": {"parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}], "post": {
        "operationId": "o", "servers": [{"url": "/"}],
        "parameters": [{"name": "q", "in": "query", "style": "form", "explode": True, "schema": {"default": [1]}}, {"name": "h", "in": "header"},
                       {"$ref": "#/components/parameters/z"}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}}}},
    "components": {"parameters": {"z": {"name": "z", "in": "cookie"}}},
}  # fmt: skip
SWAGGER = {"swagger": "2.0", "host": "127.0.0.1:9", "basePath": "/v2", "schemes": ["http"], "paths": {"/p/{id}": {"post": {
    "operationId": "o", "parameters": [{"name": "id", "in": "path"}, {"name": "b", "in": "body"}, {"name": "f", "in": "formData"}]}}}}  # fmt: skip
ASYNC_2 = {
    "asyncapi": "2.6.0",
    "servers": {"s": {"url": "127.0.0.1:9/{v}", "protocol": "http", "variables": {"v": {"default": "x"}}}},
    "channels": {"c": {"publish": {"operationId": "o"}}},
}
ASYNC_3 = {
    "asyncapi": "3.0.0",
    "servers": {"s": {"host": "127.0.0.1:9", "pathname": "/x", "protocol": "http"}},
    "channels": {"c": {"address": "a"}},
    "operations": {"o": {"channel": {"$ref": "#/channels/c"}}},
}
MESSAGE = {"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": "x"}, "error": {"code": 1, "message": "m"}}
REFERRED: list[tuple[Any, str]] = [
    (OPENAPI, "{call: openapi, with: {document: {endpoint: '%s'}, operationId: o, parameters: {id: 1, h: x, z: y, a: 2}}}"),
    (SWAGGER, "{call: openapi, with: {document: {endpoint: '%s'}, operationId: o, parameters: {id: 1, b: {a: 1}, f: g}}}"),
    (ASYNC_2, "{call: asyncapi, with: {document: {endpoint: '%s'}, channel: c, message: {payload: {a: 1}}}}"),
    (ASYNC_3, "{call: asyncapi, with: {document: {endpoint: '%s'}, operation: o, message: {payload: {a: 1}}}}"),
    ({"input": {"from": "."}, "set": {"x": 1}}, "{call: '%s', with: {}}"),
    ({"url": "/rpc"}, "{call: a2a, with: {agentCard: {endpoint: '%s'}, method: tasks/get, parameters: {id: x}}}"),
    (MESSAGE, "{call: a2a, with: {server: '%s', method: tasks/get, parameters: {id: x}}}"),
    (MESSAGE, "{call: mcp, with: {method: tools/list, transport: {http: {endpoint: '%s'}}}}"),
    ({"type": "object", "properties": {"x": {"type": "string"}}}, "{set: {x: 1}, output: {schema: {resource: {endpoint: '%s'}}}}"),
    ({"access_token": "t", "token_type": "bearer", "expires_in": 5},
     "{call: http, with: {method: get, endpoint: {uri: 'http://127.0.0.1:9', authentication: {oauth2: {authority: '%s', grant: client_credentials}}}}}"),
    ({"token_endpoint": "http://127.0.0.1:9"},
     "{call: http, with: {method: get, endpoint: {uri: 'http://127.0.0.1:9', authentication: {oidc: {authority: '%s', grant: client_credentials}}}}}"),
]  # fmt: skip
TYPED = {"Problem", "Invalid", "ValidationError", "ExpressionError", "TooDeep"}


def test_an_odd_document_that_a_call_refers_to_is_a_problem_that_says_what_is_odd(standin: StandIn) -> None:
    kinds = [definition_from({**HEAD, "do": [{"c": parse(task % f"{standin.address}/odd")}]}) for _, task in REFERRED]
    cases = [
        (number, path, name, value)
        for number, (document, _) in enumerate(REFERRED)
        for path in [(), *places(document)]
        for name, value in ODD
        if is_json(value)
    ]
    random.Random(27).shuffle(cases)
    for number, path, name, value in cases if LONG else cases[:500]:
        raw = json.dumps(with_odd(REFERRED[number][0], path, value) if path else value).encode()
        for method in ("GET", "POST"):
            for ending in ("", "/.well-known/openid-configuration", "/oauth2/token"):
                standin.answers[method, f"/odd{ending}"] = lambda _, raw=raw: (200, raw, {"content-type": "application/json"})  # type: ignore[misc]
        resources._kept.clear()
        authentication.TOKENS._kept.clear()
        began = time.monotonic()
        engine = Embedded(clock=ManualClock())
        instance = engine.finish(engine.start(kinds[number], {}))
        assert time.monotonic() - began < MOST_S, (number, path, name)
        assert instance.error is None or instance.error["name"] in TYPED or instance.error["code"] in STATUS_OF, (
            number,
            path,
            name,
            instance.error,
        )


def is_json(value: Any) -> bool:
    try:
        json.dumps(value).encode()
    except (TypeError, ValueError):
        return False
    return True


# ── on workers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_odd_results_on_workers_end_their_instances_and_nothing_else(running: Stack) -> None:
    """Some of all these, at once: each ends, or waits for a time or an event; none is taken up again and again."""
    chosen = random.Random(112)
    # What looks sealed is looked at where data is sealed: tests/acceptance/test_sealing.py.
    values = [pair for pair in VALUES if pair[0] != "a sealed value"]
    started: dict[str, str] = {}
    running.runner.register_workflow(read_document(CHILD))
    for number, (place, tasks) in enumerate(TASKS.items()):
        running.runner.register_workflow(caught(tasks, f"odd-{number}"))
        for name, value in values if LONG else chosen.sample(values, 5):
            started[running.runner.start_workflow(f"odd.odd-{number}", input={"odd": value})] = f"{place}: {name}"
    for number, (place, state) in enumerate(STATES08.items()):
        running.runner.register_workflow(state08(state, f"odd08-{number}"))
        for name, value in values if LONG else chosen.sample(values, 3):
            started[running.runner.start_workflow(f"odd08-{number}", input={"odd": value})] = f"{place}: {name}"

    def at_work() -> list[Any]:
        return running.sql(
            "select b.instance_id::text, b.state, b.claims, b.crashes from branches b join instances i on i.id = b.instance_id"
            " where b.instance_id = any (%s::uuid[]) and b.state in ('queued', 'running') and i.state in ('PENDING', 'RUNNING')",
            list(started),
        )

    def events_were_sent() -> bool:
        for number in range(2):
            envelope = {"specversion": "1.0", "source": "s", "data": {"odd": None}}
            running.runner.send_event({**envelope, "id": f"odd-{number}", "type": ("odd", "t")[number]})
        return True

    until(lambda: not at_work(), 90, lambda: str([(started[row[0]], row) for row in at_work()][:5]))
    assert events_were_sent()
    until(lambda: not at_work(), 60, lambda: str([(started[row[0]], row) for row in at_work()][:5]))
    crashed = running.sql("select instance_id::text from branches where instance_id = any (%s::uuid[]) and crashes > 0", list(started))
    assert [started[row[0]] for row in crashed] == []
    logs = running.logs()
    assert "Traceback" not in logs, logs[-3000:]
    failed = running.sql("select id::text, error from instances where id = any (%s::uuid[]) and state = 'FAILED'", list(started))
    tasks = [started[id] for id, error in failed if started[id].split(":")[0] in TASKS]
    assert tasks == []
