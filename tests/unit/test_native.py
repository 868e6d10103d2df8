"""What is evaluated without jq means what jq means by it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.definition import native, programs
from orchestrator.definition.expressions import jq_value, names_in
from orchestrator.errors import ExpressionError
from tests.chaos.crowd import LONG

pytestmark = pytest.mark.timeout(3600 if LONG else 180)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([2**53, -(2**60), 0.5, -1.25, 1e300, 3.0])
    | st.sampled_from(["", "a", "é", "b c"])
)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "c d"]), inner, max_size=3),
    max_leaves=10,
)
TERMS = st.sampled_from(
    [".", ".a", ".b", ".a.b", ".[0]", ".[-1]", ".a[1]", '."c d"', ".[1:]", ".a[:2]", "1", "2.5", "0", '"a"', "null", "true", "[]", "{}", "$x", "$x.a",
     "length", "first", "last", "keys", "type", "add", "not", "reverse", "tostring", "any", "all", '"<\\(.a)>"', "[range(3)]", "[.[]]"]
)  # fmt: skip


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two = st.tuples(inner, inner)
    signs = st.sampled_from(["+", "-", "*", "/", "//", "|", "==", "!=", "<", "<=", ">", ">=", "and", "or"])
    return st.one_of(
        st.tuples(inner, signs, inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, signs, inner).map(lambda t: f"{t[0]} {t[1]} {t[2]}"),
        two.map(lambda t: f"[{t[0]}, {t[1]}]"),
        two.map(lambda t: f"{{a: {t[0]}, b: ({t[1]})}}"),
        inner.map(lambda t: f"map({t})"),
        inner.map(lambda t: f"map(select({t}))"),
        inner.map(lambda t: f"[.a[] | {t}]"),
        inner.map(lambda t: f"any({t})"),
        inner.map(lambda t: f"({t}).a"),
        inner.map(lambda t: f"-({t})"),
        st.tuples(inner, inner, inner).map(lambda t: f"if {t[0]} then {t[1]} else {t[2]} end"),
        two.map(lambda t: f"_merged({t[0]}; {t[1]})"),
        inner.map(lambda t: f'_changed("a"; {t})'),
        two.map(lambda t: f"({t[0]}) as $y | {t[1]}"),
        two.map(lambda t: f"reduce .[] as $x ({t[0]}; {t[1]})"),
        inner.map(lambda t: f'setpath(["a", "b"]; {t})'),
    )


EXPRESSIONS = st.recursive(TERMS, joined, max_leaves=6)


@settings(max_examples=50_000 if LONG else 300, deadline=None)
@given(EXPRESSIONS, DATA, DATA)
def test_what_is_plain_means_what_jq_means_by_it(source: str, data: Any, named: Any) -> None:
    evaluator = native.compiled(source)
    if evaluator is None:
        return
    try:
        found = native.value(evaluator, data, {"x": named})
    except native.NotHere:
        return
    try:
        [expected] = programs.outputs(source, ("x",), [data, named])
    except ExpressionError as error:
        if "beyond 2^53" not in str(error):
            raise
        # jq would round such numbers, and so it is not asked for them.
        return
    assert alike(found, expected), (source, data, named, found, expected)


def alike(one: Any, other: Any) -> bool:
    """True is not 1; a number is what it counts."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(item, other[key]) for key, item in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


@pytest.mark.parametrize(
    "source",
    [". + {n: .n + 1}", "{n: ((.n // []) + [$item])}", ". | length >= 3", '.status == "ready" and (.items | length) > 0', '"Hello \\(.name)"',
     "map(select(.done)) | length", ".items | map(.price) | add", '.kind | startswith("a")', "if .n > 3 then \"big\" else \"small\" end", ".[-1].data.ok",
     "[.items[] | .id]", "[.a - 1, .b * 2]", "any(.n > 1)", "$context.total + .n", '._merged', '_merged(.; {"a": [1]})'],
)  # fmt: skip
def test_the_commonest_expressions_are_plain(source: str) -> None:
    assert native.compiled(source) is not None


@pytest.mark.parametrize(
    "source",
    [".[]", ".a[]", "..", "..[0]", "..a", '[ "a" - ]', "1 +", ".a?", ".a |= 1", "def f: 1; f", "$ENV", "$__loc__", "now", "try error catch .", "1, 2", "[1, 2 | 3]",
     '"\\\\(x)"', '"a\\("b")c"', "input", "1 < 2 < 3", "{a: 1,}", "", "(", ".a.", "99999999999999999999", "select(.a)", ". as [$a] | $a", "reduce . as $x (0; 1)", "foreach .[] as $x (0; 1)"],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_jq(source: str) -> None:
    assert native.compiled(source) is None


def test_what_is_long_is_handed_on_and_not_copied() -> None:
    long = [[n] for n in range(1000)]
    found = jq_value(".n + [1]", {"n": long}, {})
    assert all(one is other for one, other in zip(found, long, strict=False))
    assert jq_value("{kept: .n}", {"n": long}, {})["kept"] is long


def test_what_would_grow_without_end_is_left_to_jq_which_is_bounded() -> None:
    with pytest.raises(native.NotHere):
        native.value(native.compiled(". + ."), "x" * 600_000, {})  # type: ignore[arg-type]


def test_loops_in_loops_are_left_to_jq_which_is_watched() -> None:
    evaluator = native.compiled("map($x | map($x | map(1)))")
    assert evaluator is not None
    with pytest.raises(native.NotHere):
        native.value(evaluator, list(range(100)), {"x": list(range(100))})
    assert native.value(evaluator, [1, 2], {"x": [3]}) == [[[1]], [[1]]]


@pytest.mark.timeout(30)  # what looks twice at each part of a part takes longer than anybody waits
@pytest.mark.parametrize(
    "source", ["[" * 60 + "1" + "]" * 60, "[" * 2000, "(" * 2000, "{a: " * 500, "-" * 3000 + "1", ".a" * 2000, "[.[]|" * 300, "if " * 900]
)
def test_reading_an_expression_takes_no_longer_than_it_is(source: str) -> None:
    native.compiled.cache_clear()
    native.compiled(source)


TOKENS = [".", ".a", ".b", "[", "]", "(", ")", "{", "}", "|", ",", ":", ";", "+", "-", "*", "/", "//", "==", "<", "and", "or", "not", "if", "then", "else", "elif", "end", "1", "2.5", '"s"', '"x\\(.a)"', "$x", "as", "reduce", "map", "select", "length", "null", "true", ".[]", ".[0]", "a", "any", "_merged", "setpath", "range", "#", "?", "..", '.["a"]', '"a"']  # fmt: skip


def test_what_is_read_as_plain_is_an_expression_of_jq() -> None:
    """Random words in a row: whatever of them is read here, jq reads, too, and means the same."""
    chosen = random.Random(1126)
    for _ in range(500_000 if LONG else 20_000):
        words = [chosen.choice(TOKENS) for _ in range(chosen.randint(1, 8))]
        source = " ".join(words) if chosen.random() < 0.7 else "".join(words)
        evaluator = native.compiled(source)
        if evaluator is None or names_in(source) - {"x"}:
            continue
        programs.check(source, ("x",))
        for data in (None, {"a": 1, "b": {"a": [1]}}, [1, {"a": 2}], "s"):
            try:
                found = native.value(evaluator, data, {"x": {"a": 3}})
            except native.NotHere:
                continue
            assert programs.outputs(source, ("x",), [data, {"a": 3}]) == [found], (source, data)
