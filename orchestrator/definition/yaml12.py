"""YAML as version 1.2 has it, and nothing executable: a text becomes data, within bounds, and every value's line is known.

The text is read event by event and never by recursion, so what is hostile in it is refused where it shows: nesting before it
is entered, aliases before they are expanded, the number of values before they are all made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from orchestrator.nesting import DEEPEST

# Written in C where PyYAML was built so: ten times as quick.
_Events: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a text may hold. What aliases stand for counts as often as it is named."""

    depth: int = DEEPEST
    values: int = 500_000
    values_by_aliases: int = 50_000
    characters_by_aliases: int = 1024 * 1024
    are_keys_text: bool = False
    """A key that is a number is taken as it is written: `200:` in an OpenAPI document is the key "200"."""


class Refusal(Exception):
    """Why a text is refused, and where: line and column, from 1."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None, suggestion: str = "") -> None:
        self.message = message
        self.line = line
        self.column = column
        self.suggestion = suggestion
        super().__init__(message)


@dataclass(slots=True)
class Mark:
    """Where a value begins (an entry of a mapping: at its key), and the marks of what is in it."""

    line: int
    column: int
    inner: dict[Any, Mark] | None = None


_NONE = object()


@dataclass(slots=True)
class _Open:
    """A mapping or a list that is being read."""

    made: Any
    anchor: str | None
    values: int
    characters: int
    mark: Mark | None
    key: Any = _NONE


def load(text: str, bounds: Bounds = Bounds(), *, is_marked: bool = False) -> tuple[Any, Mark | None]:
    """The data of a text, and where everything stands if that is wanted. Raises `Refusal`."""
    return _Reader(bounds, is_marked=is_marked).read(text)


class _Reader:
    def __init__(self, bounds: Bounds, *, is_marked: bool) -> None:
        self.bounds = bounds
        self.is_marked = is_marked
        self.opened: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int, int, Mark | None]] = {}
        self.values = self.characters = 0
        self.values_by_aliases = self.characters_by_aliases = 0
        self.root: Any = None
        self.root_mark: Mark | None = None
        self.documents = 0

    def read(self, text: str) -> tuple[Any, Mark | None]:
        for event in _events(text):
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._scalar(event)
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                self._open(event, {} if kind is yaml.MappingStartEvent else [])
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                self._close()
            elif kind is yaml.AliasEvent:
                self._alias(event)
            elif kind is yaml.DocumentStartEvent:
                self.documents += 1
                if self.documents > 1:
                    raise _refused(event, "Expected one document, got several.", "Remove what follows `---`.")
        return self.root, self.root_mark

    def _scalar(self, event: Any) -> None:
        value = _value(event)
        self.characters += len(event.value)
        self._count(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, 1, len(event.value), None)
        self._put(value, event, None)

    def _open(self, event: Any, made: Any) -> None:
        if len(self.opened) >= self.bounds.depth:
            raise _refused(event, f"This is nested more than {self.bounds.depth} levels deep.")
        if event.tag not in (None, "!", "tag:yaml.org,2002:map" if isinstance(made, dict) else "tag:yaml.org,2002:seq"):
            raise _unknown_tag(event)
        mark = Mark(event.start_mark.line + 1, event.start_mark.column + 1, {}) if self.is_marked else None
        self._put(made, event, mark)
        if event.anchor is not None:
            # Known, and not yet whole: an alias of it inside of it would have no end.
            self.anchors[event.anchor] = (_NONE, 0, 0, None)
        self.opened.append(_Open(made, event.anchor, self.values, self.characters, mark))
        self._count(event)

    def _close(self) -> None:
        closed = self.opened.pop()
        if closed.anchor is not None:
            size = self.values - closed.values, self.characters - closed.characters
            self.anchors[closed.anchor] = (closed.made, *size, closed.mark)

    def _alias(self, event: Any) -> None:
        if event.anchor not in self.anchors:
            raise _refused(event, f'There is no anchor "&{event.anchor}" before this alias.')
        value, values, characters, mark = self.anchors[event.anchor]
        if value is _NONE:
            raise _refused(event, f'The alias "*{event.anchor}" stands inside of what it names.')
        self.values += values - 1
        self.characters += characters
        self.values_by_aliases += values
        self.characters_by_aliases += characters
        if self.values_by_aliases > self.bounds.values_by_aliases or self.characters_by_aliases > self.bounds.characters_by_aliases:
            most = f"{self.bounds.values_by_aliases:,} values or {self.bounds.characters_by_aliases:,} characters"
            raise _refused(event, f"The aliases of this text stand for more than {most}.")
        self._count(event)
        self._put(value, event, mark)

    def _count(self, event: Any) -> None:
        self.values += 1
        if self.values > self.bounds.values:
            raise _refused(event, f"This text holds more than {self.bounds.values:,} values.")

    def _put(self, value: Any, event: Any, mark: Mark | None) -> None:
        """Where the value belongs: into the list or mapping that is open, as its next item, key or value."""
        if not self.opened:
            self.root, self.root_mark = value, mark or self._mark(event)
            return
        parent = self.opened[-1]
        if type(parent.made) is list:
            if parent.mark is not None:
                assert parent.mark.inner is not None
                parent.mark.inner[len(parent.made)] = self._here(event, mark)
            parent.made.append(value)
        elif parent.key is _NONE:
            parent.key = self._key(value, event, parent)
        else:
            if parent.mark is not None:
                assert parent.mark.inner is not None
                known = parent.mark.inner[parent.key]
                known.inner = mark.inner if mark is not None else None
            parent.made[parent.key] = value
            parent.key = _NONE

    def _key(self, value: Any, event: Any, parent: _Open) -> Any:
        if isinstance(value, dict | list):
            kind = "a mapping" if isinstance(value, dict) else "a list"
            raise _refused(event, f"Expected text as the name of a field, got {kind}.", 'Put text that begins with "{" or "[" into quotes.')
        if self.bounds.are_keys_text and not isinstance(value, str) and type(event) is yaml.ScalarEvent:
            value = event.value
        if value in parent.made:
            raise _refused(event, f'The key "{str(value)[:80]}" is given twice.')
        if parent.mark is not None:
            assert parent.mark.inner is not None
            parent.mark.inner[value] = Mark(event.start_mark.line + 1, event.start_mark.column + 1)
        return value

    def _mark(self, event: Any) -> Mark | None:
        return Mark(event.start_mark.line + 1, event.start_mark.column + 1) if self.is_marked else None

    def _here(self, event: Any, mark: Mark | None) -> Mark:
        """An item of a list stands where it is written, also where that is an alias."""
        return Mark(event.start_mark.line + 1, event.start_mark.column + 1, mark.inner if mark is not None else None)


def _events(text: str) -> Iterator[Any]:
    try:
        loader = _Events(text)
    except (yaml.YAMLError, UnicodeError) as error:
        raise Refusal(_said(error)) from None
    try:
        while loader.check_event():
            yield loader.get_event()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Refusal(_said(error), *((mark.line + 1, mark.column + 1) if mark else ())) from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise Refusal(_said(error)) from None
    finally:
        loader.dispose()


def _said(error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "This is not Unicode text: it holds half of a surrogate pair."
    if isinstance(error, yaml.MarkedYAMLError):
        return f"Invalid YAML: {error.problem or error.context}."
    return f"Invalid YAML: {str(error).splitlines()[0]}."


def _refused(event: Any, message: str, suggestion: str = "") -> Refusal:
    return Refusal(message, event.start_mark.line + 1, event.start_mark.column + 1, suggestion)


# ── scalars ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_WORDS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_FIRST_OF_NUMBERS = frozenset("-+.0123456789")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_TAG = "tag:yaml.org,2002:"
_MOST_DIGITS = 400


def _value(event: Any) -> Any:
    """A scalar as the core schema has it: `on`, `yes` and `12:30` are text."""
    text: str = event.value
    if event.implicit[0]:
        return _plain(text, event)
    if event.implicit[1] or event.tag in ("!", f"{_TAG}str"):
        return text
    found = _plain(text, event)
    if event.tag == f"{_TAG}float" and type(found) is int:
        found = float(found)
    if {bool: "bool", type(None): "null", int: "int", float: "float"}.get(type(found)) != str(event.tag).removeprefix(_TAG):
        if str(event.tag).removeprefix(_TAG) in ("bool", "null", "int", "float"):
            raise _refused(event, f'"{text[:80]}" does not have the type that its tag says.')
        raise _unknown_tag(event)
    return found


def _plain(text: str, event: Any) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _FIRST_OF_NUMBERS:
        return text
    if _INT.fullmatch(text):
        if len(text) > _MOST_DIGITS:
            raise _refused(event, f"This number has more than {_MOST_DIGITS} digits.", "Put it into quotes.")
        return _int(text)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".nan", "nan").replace(".N", "n"))
    return text


def _int(text: str) -> int:
    """Leading zeros mean nothing; octal is 0o17."""
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.lstrip("+"))
    for prefix, base in (("0o", 8), ("0x", 16)):
        if digits.startswith(prefix):
            return sign * int(digits[2:], base)
    return sign * int(digits)


def _unknown_tag(event: Any) -> Refusal:
    return _refused(
        event, f'Unknown tag "{str(event.tag).replace(_TAG, "!!")[:80]}".', "Known tags: !!str, !!int, !!float, !!bool, !!null."
    )
