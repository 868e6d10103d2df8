"""Expressions: what they mean, what they cost, and what hostile ones cannot do."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.definition import native, paths, programs
from orchestrator.definition.expressions import Jq, Secrets, Template, check_jq, condition, evaluate, jq_value
from orchestrator.engine.warden import Warden
from orchestrator.errors import ExpressionError, MissingSecret


@pytest.fixture(scope="module")
def warden() -> Iterator[Warden]:
    made = Warden(time_s=1.0)
    before = programs.set_warden(made)
    yield made
    programs.set_warden(before)  # without one, an expression of a later test might never end
    made.end()


@pytest.mark.parametrize("source", ["now()", "{at: now()}.at", "[1, now()] | last"])
def test_now_is_the_moment_as_older_documents_ask_for_it(source: str) -> None:
    check_jq(source)
    moment = str(jq_value(source, None, {}))
    assert abs((dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(moment)).total_seconds()) < 60


@pytest.mark.parametrize(("source", "value"), [('"now()"', "now()"), ('{"now": 5}.now', 5), ("now | type", "number")])
def test_what_only_looks_like_it_stays(source: str, value: object) -> None:
    assert jq_value(source, None, {}) == value


@pytest.mark.parametrize(
    "source",
    [
        "def f: f; f",
        "[range(1e9)] | length",
        "[limit(1e9; repeat(1))] | length",
        "last(range(1e12))",
        '"x" * 4000000000 | length',
        "[.[] as $a | .[] as $b | .[] as $c | .[] as $d | .[] as $e | .[] as $f | .[] as $g | 1] | length",
        ".[900000000] = 1 | length",
        '("a" * 40 + "b") | test("^(a+)+$")',
    ],
)
def test_an_expression_that_runs_away_is_stopped_and_the_next_one_works(warden: Warden, source: str) -> None:
    assert not programs.is_tame(source)
    with pytest.raises(ExpressionError):
        jq_value(source, list(range(60)), {})
    assert jq_value("[range(3)] | add", None, {}) == 3


@pytest.mark.parametrize(
    "source",
    [
        'import "a" as $d {search: "/etc"}; $d',
        'include "a"; .',
        ".a) | (1",
        "input",
        "halt",
        "error",
        "$nobody",
        "$__prog_args",
        "(" * 5000 + ")" * 5000,
        "[" * 200 + "]" * 200,
        "." + "a" * 100_000,
        ".a\x00b",
    ],
)
def test_what_is_no_expression_or_not_allowed_is_refused(warden: Warden, source: str) -> None:
    with pytest.raises(ExpressionError):
        jq_value(source, {"a": 1}, {})


@pytest.mark.parametrize("source", ["$ENV", "env", "$ENV.PATH", "env.HOME", "[env | keys[]] | length"])
def test_the_environment_is_not_seen(warden: Warden, source: str) -> None:
    assert jq_value(source, None, {}) in ({}, None, 0)


def test_data_is_never_an_expression() -> None:
    hostile = {"a": "${ env }", "b": ["${ .a }"]}
    assert jq_value(".", hostile, {}) == hostile
    assert evaluate(Template({"x": "${ .b }"}), hostile, {}) == {"x": ["${ .a }"]}


@pytest.mark.parametrize("number", [2**53 + 1, 2**60 + 1, 12345678901234567890123, -(2**55) - 1])
def test_large_whole_numbers_pass_unchanged_and_are_not_computed_with(number: int) -> None:
    data = {"id": number, "items": [{"id": number}]}
    assert jq_value(".id", data, {}) == number
    assert jq_value("{id, first: .items[0]}", data, {}) == {"id": number, "first": {"id": number}}
    assert jq_value("[.items[] | .id]", data, {}) == [number]
    assert jq_value(".id | tostring | length > 3", data, {}) is True
    with pytest.raises(ExpressionError, match="beyond 2\\^53"):
        jq_value(".id + 1", data, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c d"]), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.lists(st.sampled_from([".a", ".b", "[0]", "[1]", "[-1]", '["a"]', '["c d"]']), min_size=1, max_size=4)


@given(JSON, KEYS)
def test_a_path_means_what_jq_means_by_it(data: object, keys: list[str]) -> None:
    source = "." + "".join(keys).removeprefix(".")
    assert paths.parsed(source) is not None

    def by_jq() -> object:
        [output] = programs.outputs(source, (), [data])
        return output

    try:
        expected = by_jq()
    except ExpressionError:
        with pytest.raises(ExpressionError):
            jq_value(source, data, {})
        return
    assert jq_value(source, data, {}) == expected


def test_names_are_bound_when_they_are_mentioned() -> None:
    scope = {"context": {"n": 1}, "item": [1, 2], "input": None}
    assert jq_value("$item[1]", None, scope) == 2
    assert jq_value("$context.n + ($item | length)", None, scope) == 3
    assert jq_value("$input", {"x": 1}, scope) is None
    with pytest.raises(ExpressionError):
        check_jq("$nobody.x", ("context",))


def test_no_output_is_null_and_several_are_a_list() -> None:
    assert jq_value("empty", 1, {}) is None
    assert jq_value("(1, 2)", 1, {}) == [1, 2]
    assert jq_value(".items[].n", {"items": [{"n": 1}, {"n": 2}]}, {}) == [1, 2]
    with pytest.raises(ExpressionError, match="more than 10,000 values"):
        jq_value("range(20000)", None, {})


def test_a_condition_with_several_outputs_is_refused() -> None:
    assert condition(Jq(".n > 1"), {"n": 2}, {}) is True
    assert condition(Jq("empty"), None, {}) is False
    with pytest.raises(ExpressionError, match=r"gives 2 values; write any"):
        condition(Jq(".[] > 1"), [1, 2], {})


def test_a_secret_that_is_not_declared_may_not_be_had() -> None:
    scope = {"secrets": Secrets({"known": "x"})}
    assert jq_value("$secrets.known", None, scope) == "x"
    assert jq_value('{a: $secrets["known"]} | .a', None, scope) == "x"
    for source in (
        "$secrets.nope",
        '$secrets["nope"]',
        "{a: $secrets.nope}",
        "($secrets | .nope) // 1",
        '"\\($secrets.nope)"',
        "$secrets.nope.x",
    ):
        with pytest.raises(MissingSecret, match="nope"):
            jq_value(source, None, scope)


def test_loosely_a_string_that_is_no_expression_is_itself() -> None:
    template = Template({"a": ".name", "b": "Hello world", "c": "${ .n }"}, loose=True)
    assert evaluate(template, {"name": "Ada", "n": 3}, {}) == {"a": "Ada", "b": "Hello world", "c": 3}


def test_an_expression_is_read_once_however_often_it_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"user": {"name": "Ada", "age": 36}, "items": [1, 2, 3]}
    for source in (".user.name", ".user.age > 18", '"Hello \\(.user.name)"', ".items | length"):
        first = jq_value(source, data, {})
        read = (native.compiled.cache_info().misses, programs._program.cache_info().misses)
        assert [jq_value(source, data, {}) for _ in range(50)] == [first] * 50
        assert (native.compiled.cache_info().misses, programs._program.cache_info().misses) == read
