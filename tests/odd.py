"""Values that nobody means and somebody sends: of every type, empty, huge, deep, out of every range, with names that mean something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def _deep(levels: int, *, is_list: bool = True) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value] if is_list else {"a": value}
    return value


ODD: list[tuple[str, Any]] = [
    ("null", None),
    ("true", True),
    ("false", False),
    ("empty text", ""),
    ("blank", " "),
    ("text", "nonsense"),
    ("half a surrogate pair", "\ud800"),
    ("null character", "a\x00b"),
    ("control characters", "\x1b[31m\r\n\t"),
    ("not a number", float("nan")),
    ("infinite", float("inf")),
    ("below everything", float("-inf")),
    ("400 digits", 10**400),
    ("beyond 2^53", 2**53 + 1),
    ("beyond 2^63", 2**70),
    ("zero", 0),
    ("minus one", -1),
    ("one", 1),
    ("a fraction", 0.5),
    ("the largest double", 1.7976931348623157e308),
    ("a number as text", "5"),
    ("empty mapping", {}),
    ("empty list", []),
    ("a mapping", {"a": {"b": 1}}),
    ("a list", [1, "a", None]),
    ("a list of mappings", [{"a": 1}, {"b": 2}]),
    ("an empty name", {"": 1}),
    ("names with slashes", {"a/b~c#d": {"%s": 1}}),
    ("a name that is a number", {1: 2}),
    ("deep", _deep(150)),
    ("too deep", _deep(300)),
    ("long text", "x" * 100_000),
    ("long list", list(range(3_000))),
    ("no time", "PT0S"),
    ("ten thousand years", "P10000Y"),
    ("a time below zero", {"seconds": -1}),
    ("a far year", "12020-01-01T00:00:00Z"),
    ("an expression", "${ . }"),
    ("an expression without end", "${ def f: f; f }"),
    ("half an expression", "${ .a | "),
    ("a directive", "end"),
    ("a reference", {"$ref": "#"}),
    ("a marker of ours", {"is": "do", "tasks": 5}),
    ("a sealed value", {"$sealed": "gAAAAx"}),
    ("a pattern", "(a+)+$"),
    ("a file", "file:///etc/passwd"),
    ("an address", "http://127.0.0.1:9/x"),
    ("bytes", b"bytes"),
    ("a set", {1, 2}),
    ("a whole float", 1.0),
    ("2^63", 2**63),
    ("a line break", "a\nb"),
    ("a terminal's escape sequence", "\x1b[31mred\x1b]0;title\x07"),
    ("right to left", "\u202egnp.exe"),
    ("an emoji", "🧨"),
    ("true as text", "true"),
    ("null as text", "null"),
    ("a path", "../../etc/passwd"),
    ("wildcards", "%_*?[]"),
    ("SQL", "'; drop table instances; --"),
    ("an expression that fails", "${ error }"),
    ("a date that is none", "2026-02-31T25:61:00Z"),
    ("a duration below zero", "-5s"),
    ("a duration without end", "1e999s"),
    ("a list of nothing", [None]),
    ("a list of lists", [[]]),
    ("a mixed list", [1, "a", None, {}]),
    ("a deep mapping", _deep(250, is_list=False)),
    ("half a character as a name", {"\ud800": 1}),
]
NAMES = [name for name, _ in ODD]


def places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a document: the path of every field and item, whatever it is."""
    if at:
        yield at
    items = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in items:
        yield from places(value, (*at, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with another value at a path."""
    if not path:
        return value
    head, *rest = path
    if isinstance(document, dict):
        return {**document, head: with_value(document.get(head), tuple(rest), value)}
    return [with_value(item, tuple(rest), value) if number == head else item for number, item in enumerate(document)]
