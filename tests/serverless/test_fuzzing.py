"""Nonsense in, typed faults out: mangled documents and random expressions neither crash nor hang. `make chaos` tries 100,000."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.definition import programs
from orchestrator.definition.codec import from_json, to_json
from orchestrator.definition.documents import definition_from, parse
from orchestrator.definition.drawing import mermaid
from orchestrator.definition.expressions import Jq, Template, evaluate
from orchestrator.definition.tree import Definition
from orchestrator.definition.validate import faults
from orchestrator.engine.warden import Warden
from orchestrator.errors import ExpressionError, Invalid
from orchestrator.steps.registry import REGISTRY
from tests.chaos.crowd import LONG

CASES = 50_000 if LONG else 300
MANY = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 180)]

V1 = parse(
    """
document: {dsl: '1.0.3', namespace: fuzz, name: fuzz, version: '1.0.0'}
input: {schema: {document: {type: object}}, from: .a}
use:
  errors: {e: {type: https://x/y, status: 500}}
  retries: {r: {delay: {seconds: 1}, backoff: {exponential: {}}, limit: {attempt: {count: 3}}}}
  functions: {f: {set: {x: 1}}}
  timeouts: {t: {after: PT1S}}
  authentications: {b: {basic: {username: u, password: p}}}
  extensions: [{x: {extend: all, when: .x, before: [{b: {set: {x: 1}}}]}}]
schedule: {every: PT1H, on: {one: {with: {type: t}}}}
timeout: t
do:
  - s: {set: {x: '${ .a.b | length }'}, if: .x, then: l, export: {as: .x}}
  - l: {for: {each: i, in: .items}, while: '$i < 3', do: [{c: {call: http, with: {method: get, endpoint: {uri: 'http://x/{y}', authentication: {use: b}}}}}]}
  - f: {fork: {compete: true, branches: [{a: {wait: PT1S}}, {b: {call: f, with: {x: 1}}}]}}
  - w: {switch: [{one: {when: .x == 1, then: end}}, {other: {then: continue}}]}
  - t: {try: [{r: {raise: {error: e}}}], catch: {errors: {with: {status: 500}}, as: q, when: $q.status, retry: r, do: [{h: {set: {x: 2}}}]}}
  - n: {listen: {to: {any: [{with: {type: a}, correlate: {k: {from: .x}}}], until: '. | length > 1'}}, foreach: {do: [{d: {emit: {event: {with: {type: z}}}}}]}}
  - r: {run: {shell: {command: echo}}}
  - k: {run: {workflow: {namespace: a, name: b, version: latest}}}
"""
)
V08 = parse(
    """
id: fuzz
version: '1.0'
specVersion: '0.8'
start: {stateName: a, schedule: R/PT1H}
functions: [{name: f, type: expression, operation: .x + 1}, {name: g, operation: 'http://x/y.json#z'}]
events: [{name: e, type: t, source: s, correlation: [{contextAttributeName: k}]}]
errors: [{name: bad, code: '500'}]
retries: [{name: r, delay: PT1S, maxAttempts: 3, multiplier: 2}]
timeouts: {workflowExecTimeout: {duration: P1D, runBefore: i}}
states:
  - {name: a, type: operation, actions: [{functionRef: {refName: g, arguments: {x: '${ .x } and ${ fn:f }'}}, retryRef: r, retryableErrors: [bad], actionDataFilter: {toStateData: .x}}], onErrors: [{errorRef: bad, transition: i}], transition: b, compensatedBy: i}
  - {name: b, type: switch, dataConditions: [{condition: .x, transition: c}], defaultCondition: {end: true}}
  - {name: c, type: event, onEvents: [{eventRefs: [e], actions: []}], transition: d}
  - {name: d, type: foreach, inputCollection: .x, iterationParam: y, actions: [{functionRef: f}], transition: p}
  - {name: p, type: parallel, branches: [{name: z, actions: [{subFlowRef: q}]}], end: {compensate: true, produceEvents: [{eventRef: e}]}}
  - {name: i, type: inject, data: {}, usedForCompensation: true}
"""
)
GRAPH = parse("type: fuzz\nsteps: [{id: a, type: log, parameters: {message: x}}, {id: b, type: noop, dependencies: [a]}]\nretries: 3\n")

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["${ . }", "${ .a", "end", "PT1S", "P", "a/b", "#", "~", "\x00", "${ def f: f; f }", "do", "set", "1.0.0"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(["do", "set", "for", "try"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def mangled(draw: st.DrawFn) -> Any:
    document = copy.deepcopy(draw(st.sampled_from([V1, V08, GRAPH])))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(document))))
        if not path:
            return draw(JUNK)
        holder = document
        for part in path[:-1]:
            holder = holder[part]
        match draw(st.sampled_from(["change", "remove", "add", "copy"])):
            case "change":
                holder[path[-1]] = draw(JUNK)
            case "remove":
                del holder[path[-1]]
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = draw(JUNK)
            case "copy":
                other = draw(st.sampled_from(list(places(document))))
                found = document
                for part in other:
                    found = found[part]
                holder[path[-1]] = copy.deepcopy(found)
    return document


def read(act: Callable[[], Definition]) -> Definition | None:
    """The definition, or None when it was refused, which is never without saying why."""
    try:
        return act()
    except Invalid as refused:
        if not refused.faults:
            raise
        return None


@MANY
@given(mangled())
def test_a_mangled_document_is_read_or_refused(document: Any) -> None:
    made = read(lambda: definition_from(document))
    if made is None:
        return
    list(faults(made, REGISTRY))
    mermaid(made)
    assert from_json(json.loads(json.dumps(to_json(made)))).ref == made.ref


@MANY
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_read_or_refused(text: str) -> None:
    read(lambda: definition_from(parse(text, "fuzz.yaml")))


WORDS = """
. .a .[] [ ] ( ) { } | , : + - * / == and or not $x $ENV 1 "s" null map(.) select(.) range(5) reduce foreach as if then else end try
catch .. ? // recurse env input limit(3; until( now @base64 test( "(a+)+$" tojson = |= path( getpath( "\\(.a)" ; f def
"""
TOKENS = st.sampled_from(WORDS.split())


@pytest.fixture(scope="module")
def warden() -> Iterator[None]:
    made = Warden(time_s=0.3)
    before = programs.set_warden(made)
    yield
    programs.set_warden(before)  # without one, an expression of a later test might never end
    made.end()


@pytest.mark.usefixtures("warden")
@MANY
@given(st.lists(TOKENS, min_size=1, max_size=12).map(" ".join) | st.text(max_size=40), JUNK)
def test_any_expression_gives_a_value_or_an_expression_error(source: str, data: Any) -> None:
    for expression in (Jq(source), Template({"x": f"${{ {source} }}"}, loose=True)):
        try:
            json.dumps(evaluate(expression, data, {"x": data}), allow_nan=False)
        except ExpressionError:
            continue
