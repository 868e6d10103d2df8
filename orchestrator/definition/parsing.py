"""Parse, don't hope: what comes in through a door becomes a typed value, or is refused with every fault at once.

A door declares a `Model`; `parse_as` reads data into it. Unknown fields, wrong types and values out of range are faults, each with
its JSON pointer, its file, line and column where the data was written in a text, and a suggestion where a name is nearly right.
Nothing is converted in silence: "5" is not a number and "yes" is not a boolean.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Strict, StringConstraints

from orchestrator.definition.durations import seconds
from orchestrator.definition.marks import Marks
from orchestrator.errors import Fault, Invalid
from orchestrator.nesting import DEEPEST, is_deeper

M = TypeVar("M", bound=BaseModel)


class Model(BaseModel):
    """What a door takes: these fields and no others, of these types and no others."""

    required: ClassVar[Mapping[Any, str]] = {}
    """What is said when a field is missing, where more can be said than that."""
    depending: ClassVar[Mapping[str, Sequence[type[Model]]]] = {}
    """Of fields whose model depends on another field, all the models there are."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True, arbitrary_types_allowed=True)


@dataclass(frozen=True, slots=True)
class Source:
    """The text that data was read from, for the lines of its faults."""

    file: str = ""
    text: str | None = None
    _marks: list[Marks] = field(default_factory=list, compare=False, repr=False)

    def located(self, fault: Fault) -> Fault:
        if fault.file or fault.line or not (self.file or self.text):
            return fault
        at = self._read().of(fault.place) if self.text else None
        line, column = at or (None, None)
        return replace(fault, file=self.file, line=line, column=column)

    def _read(self) -> Marks:
        if not self._marks:
            self._marks.append(Marks(self.text or ""))
        return self._marks[0]


NOWHERE = Source()


def parse_as(model: type[M], data: Any, *, what: str, place: str = "", source: Source = NOWHERE) -> M:
    """The data as the model says it must be. Raises `Invalid` with every fault; `place` is the pointer of the data in its text."""
    found, faults = read_as(model, data, place=place)
    if found is None:
        raise Invalid([source.located(fault) for fault in faults], what)
    return found


def read_as(model: type[M], data: Any, *, place: str = "", from_code: bool = False) -> tuple[M | None, list[Fault]]:
    """The same, for callers who collect the faults of several things: the value, or why there is none.

    `from_code`: the data is values of a program and need not all be JSON.
    """
    if not isinstance(data, dict):
        return None, [Fault(place, f"Expected a mapping, got {shown(data)}.")]
    faults = [] if from_code else list(json_faults(data, place))
    if faults:
        return None, faults
    try:
        return model.model_validate(data), []
    except pydantic.ValidationError as error:
        return None, faults_of(error, model, data, place)


# ── faults of a model ───────────────────────────────────────────────────────────────────────────────────────────────

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_LENGTHS = {
    "string_too_short": "Expected at least {min_length} characters.",
    "string_too_long": "Expected at most {max_length} characters.",
    "too_short": "Expected at least {min_length} items, got {actual_length}.",
    "too_long": "Expected at most {max_length} items, got {actual_length}.",
}


def faults_of(error: pydantic.ValidationError, model: type[BaseModel], data: Any, place: str = "") -> list[Fault]:
    """What pydantic found, said in this project's words, each at a place that exists in the data."""
    expected: dict[str, list[str]] = {}
    said: list[tuple[str, str, str, Any]] = []
    for one in error.errors(include_url=False):
        at = place + _pointer(one["loc"], data, is_absent=one["type"] in ("missing", "extra_forbidden"))
        kind = one["type"]
        if kind in _EXPECTED:
            if at not in expected:
                said.append((at, kind, "", one["input"]))
            if _EXPECTED[kind] not in expected.setdefault(at, []):
                expected[at].append(_EXPECTED[kind])
            continue
        message, suggestion = _message(one, model)
        said.append((at, message, suggestion, None))
    around = {at[:end] for at, *_ in said for end, character in enumerate(at) if character == "/"}
    faults: dict[Fault, None] = {}
    for at, message, suggestion, given in said:
        if message in _EXPECTED:
            # Of a field that may be several things, what lies deeper says more than that it is none of the others.
            if at in around:
                continue
            message = f"Expected {' or '.join(expected[at])}, got {shown(given)}."
        faults[Fault(at, message, suggestion)] = None
    return list(faults)


def _message(one: Any, model: type[BaseModel]) -> tuple[str, str]:
    kind, context, given = one["type"], one.get("ctx", {}), one["input"]
    if kind == "missing" or (kind == "string_too_short" and context["min_length"] == 1):
        name = one["loc"][-1]
        words = [held.required[name] for held in _models_at(model, one["loc"][:-1]) if issubclass(held, Model) and name in held.required]
        return (*words, "This field is required." if kind == "missing" else "Expected text, got nothing.")[0], ""
    if kind == "extra_forbidden":
        name = str(one["loc"][-1])
        models = _models_at(model, one["loc"][:-1])
        known = sorted({known for held in models for known in names_of(held)})
        return f'Unknown field "{printable(name)}".', suggestion_for(name, known, listed=len(models) == 1)
    if kind in _BOUNDS:
        relation, key = _BOUNDS[kind]
        return f"Expected a number {relation} {context[key]:,}, got {shown(given)}.", ""
    if kind in _LENGTHS:
        return _LENGTHS[kind].format(**context), ""
    if kind in ("literal_error", "enum"):
        allowed = [part.strip().strip("'") for part in str(context["expected"]).replace(" or ", ", ").split(",")]
        return f"Expected {_either(allowed)}, got {shown(given)}.", suggestion_for(str(given), allowed, listed=False)
    if kind == "string_pattern_mismatch":
        return f"Expected text that matches {context['pattern']}, got {shown(given)}.", ""
    if kind in ("value_error", "assertion_error"):
        return str(context["error"]), ""
    return f"{one['msg']}, got {shown(given)}.", ""


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _pointer(loc: tuple[int | str, ...], data: Any, *, is_absent: bool) -> str:
    """Without the names of a union's members, which pydantic writes into the path as well."""
    parts: list[str] = []
    node: Any = data
    for number, part in enumerate(loc):
        is_there = part in node if isinstance(node, dict) else isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        if is_there:
            node = node[part]
        elif not (is_absent and number == len(loc) - 1):
            continue
        parts.append(escaped(str(part)))
    return "".join(f"/{part}" for part in parts)


def _models_at(model: Any, loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The models whose fields may stand at a place."""
    found = _models_of(model)
    for part in loc:
        fields = [one for held in found for name, one in held.model_fields.items() if part in (name, *_aliases(one))]
        if fields:
            depending: list[type[BaseModel]] = [
                one for held in found if issubclass(held, Model) for one in held.depending.get(str(part), ())
            ]
            found = [inner for one in fields for inner in _models_of(one.annotation)] or depending
        elif named := [held for held in found if held.__name__ == part]:
            found = named
    return found


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is None and not isinstance(annotation, types.UnionType):
        return []
    return [held for inner in typing.get_args(annotation) for held in _models_of(inner)]


def _aliases(one: pydantic.fields.FieldInfo) -> list[str]:
    alias = one.validation_alias
    if isinstance(alias, pydantic.AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [str(alias)] if alias else [one.alias] if one.alias else []


def names_of(model: type[BaseModel]) -> list[str]:
    """The names by which a document may give the fields of a model."""
    found: list[str] = []
    for name, one in model.model_fields.items():
        found += _aliases(one) or [name]
    return found


MOST_COMPARED = 300
"""Of more names than that none is suggested: comparing texts takes its time."""


def suggestion_for(name: str, known: Iterable[str], *, listed: bool = True) -> str:
    """`Did you mean "retries"?`, or what there is, when nothing is near."""
    known = list(known)
    if len(known) > MOST_COMPARED:
        return ""
    lowered = {one.lower().replace("_", "").replace("-", ""): one for one in known}
    near = difflib.get_close_matches(name.lower().replace("_", "").replace("-", ""), lowered, 1, 0.7)
    if near:
        return f'Did you mean "{lowered[near[0]]}"?'
    return f"Known fields: {', '.join(known)}." if listed and known else ""


def printable(text: str, most: int = 80) -> str:
    """A name from outside, fit for a message: no control characters, no half characters, not long."""
    held = "".join(character if character.isprintable() else "?" for character in text[: most + 1])
    return held if len(held) <= most else f"{held[:most]}…"


def shown(value: Any, most: int = 60) -> str:
    """A value for a message: as JSON, short, and printable whatever it is."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=lambda one: type(one).__name__)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


def escaped(part: str) -> str:
    """A part of a JSON pointer, RFC 6901."""
    return part.replace("~", "~0").replace("/", "~1")


def unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────

LARGEST = 1.7976931348623157e308


def json_faults(value: Any, place: str = "") -> Iterator[Fault]:
    """Why a value is not JSON that every part of the system can hold: jq counts in doubles, Postgres keeps Unicode text."""
    if is_deeper(value):
        yield Fault(place, f"This is nested more than {DEEPEST} levels deep.")
        return
    todo: list[tuple[Any, str]] = [(value, place)]
    seen: set[int] = set()
    while todo:
        one, at = todo.pop()
        if isinstance(one, dict | list | tuple):
            # Aliases of YAML may stand for one thing in a thousand places.
            if id(one) in seen:
                continue
            seen.add(id(one))
        if isinstance(one, dict):
            for key, item in one.items():
                if not isinstance(key, str):
                    yield Fault(at, f"Expected text as the name of a field, got {shown(key)}.", "Put it into quotes.")
                elif wrong := _text_fault(key):
                    yield Fault(at, f"The name of a field {wrong}.")
                else:
                    todo.append((item, f"{at}/{escaped(key)}"))
        elif isinstance(one, list | tuple):
            todo += [(item, f"{at}/{number}") for number, item in enumerate(one)]
        elif (wrong := scalar_fault(one)) is not None:
            yield Fault(at, wrong)


def scalar_fault(one: Any) -> str | None:
    """Why this is not a JSON scalar that can be kept, or None."""
    if one is None or isinstance(one, bool):
        return None
    if isinstance(one, str):
        wrong = _text_fault(one)
        return f"This text {wrong}." if wrong else None
    if isinstance(one, int):
        return None if abs(one) <= LARGEST else "This number is too large: at most 1.8e308 can be counted with."
    if isinstance(one, float):
        return None if math.isfinite(one) else f"{one} is not a number of JSON."
    return f"Expected JSON, got a {type(one).__name__}."


def _text_fault(text: str) -> str | None:
    if text.isascii():
        return "holds the character U+0000, which PostgreSQL cannot keep" if "\x00" in text else None
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is not Unicode text"
    return "holds the character U+0000, which PostgreSQL cannot keep" if "\x00" in text else None


# ── types of fields ─────────────────────────────────────────────────────────────────────────────────────────────────


def _duration(given: Any) -> float:
    return seconds(given)


def _some(given: float) -> float:
    if given <= 0:
        raise ValueError("Expected a duration above zero.")
    return given


def _as_tuple(given: Any) -> Any:
    return tuple(given) if isinstance(given, list | set | frozenset) else given


def _json(given: dict[str, Any]) -> dict[str, Any]:
    wrong = next(json_faults(given), None)
    if wrong is not None:
        raise ValueError(f"{wrong.place}: {wrong.message}")
    return given


Seconds = Annotated[float, Strict(False), BeforeValidator(_duration)]
"""A duration as people write it, in seconds."""
SomeSeconds = Annotated[Seconds, pydantic.AfterValidator(_some)]
"""One that is longer than nothing."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""What is called by name: short, and not empty."""
_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")


def identity(given: str) -> str:
    """What names a schedule or a trigger, in addresses as well."""
    if not _IDENTITY.fullmatch(given):
        raise ValueError(f"Expected up to 200 letters, digits and . _ : -, beginning with a letter or digit, got {shown(given)}.")
    return given


Many = BeforeValidator(_as_tuple)
"""Beside a `tuple[…, …]`: it is written as a list."""
JsonObject = Annotated[dict[str, Any], pydantic.AfterValidator(_json)]
"""A mapping of JSON, where the rest need not be JSON."""
