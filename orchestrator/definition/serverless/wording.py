"""What a JSON Schema finds, said in plain words: each fault at the innermost place it is about, with what was expected there.

Where a value may have several forms, only the form is spoken of that the author most likely meant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from jsonschema_rs import ValidationError
from jsonschema_rs import ValidationErrorKind as Kind

from orchestrator.definition.parsing import escaped, printable, shown, suggestion_for
from orchestrator.errors import Fault

TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "a mapping",
    "array": "a list",
    "null": "null",
}
# Patterns of the specification's schemas, by how they begin, as people would say them.
PATTERNS = (
    (r"^(\d+(\.\d+)?(ms", "one such as 1m30s"),
    (r"^(?!\s*\$\{)(?=\S)", "a URI"),
    (r"^(0|[1-9]\d*)\.(0|[1-9]\d*)", "a semantic version such as 1.0.0"),
    (r"^[a-zA-Z0-9]", "a name of letters, digits and hyphens, at most 63 characters"),
    (r"^[a-z0-9]([-a-z0-9]", "a name of lower-case letters, digits and hyphens, at most 63 characters"),
    (r"^\s*\$\{", "an expression such as ${ .name }"),
    (r"^P(?!$)", "a duration such as PT1M30S"),
    (r"^[a-z0-9.-]", "a name of letters, digits and hyphens"),
    (r"^[A-Za-z][A-Za-z0-9+\-.]*:\/\/", "a URI such as https://example.com/path"),
)


@dataclass(frozen=True, slots=True)
class Schema:
    """What the data was held against; `others` gives the files that it refers to, by their addresses."""

    root: Any
    others: Callable[[str], Any] | None = None

    def around(self, error: ValidationError, *, up: int = 1) -> tuple[Any, Schema]:
        """The part of a schema that found an error, less the last so many steps to it; and the schema that this is a part of."""
        where = error.absolute_keyword_location
        file = self if where is None or self.others is None else Schema(self.others(where), self.others)
        path = error.schema_path[: len(error.schema_path) - up]
        return _at(file.root, path), file

    def followed(self, reference: str) -> tuple[Any, Schema]:
        address, _, pointer = reference.partition("#")
        file = Schema(self.others(address), self.others) if address and self.others is not None else self
        return _at(file.root, list(pointer.strip("/").split("/")) if pointer.strip("/") else []), file


def worded(errors: Iterable[ValidationError], place: str, schema: Schema) -> Iterator[Fault]:
    """The faults of some data that stands at `place`."""
    yield from _faults(list(errors), place, schema)


def _faults(errors: list[ValidationError], place: str, schema: Schema) -> Iterator[Fault]:
    told: set[tuple[str, str]] = set()
    wrong = [tuple(error.instance_path) for error in errors if not _is_unknown(error)]
    for error in errors:
        for fault in _said(error, place, schema, wrong):
            if (fault.place, fault.message) not in told:
                told.add((fault.place, fault.message))
                yield fault


def _is_unknown(error: ValidationError) -> bool:
    return isinstance(error.kind, Kind.AdditionalProperties | Kind.UnevaluatedProperties)


def _said(error: ValidationError, place: str, schema: Schema, wrong: list[tuple[str | int, ...]]) -> Iterator[Fault]:
    kind, given, here = error.kind, error.instance, f"{place}{_pointer(error.instance_path)}"
    match kind:
        case Kind.AdditionalProperties(unexpected) | Kind.UnevaluatedProperties(unexpected):
            known = sorted(_names(*schema.around(error)))
            for name in unexpected:
                # What is wrong inside of a known field makes some schemas forget that they know it.
                if name not in known and (*error.instance_path, name) not in wrong:
                    yield Fault(f"{here}/{escaped(name)}", f'Unknown field "{printable(name)}".', suggestion_for(name, known))
        case Kind.Required(property):
            known = sorted(_names(*schema.around(error)))
            unknown = [name for name in given if name not in known] if isinstance(given, dict) and known else []
            yield Fault(f"{here}/{escaped(property)}", "This field is required.", _misspelt(property, unknown))
        case Kind.OneOfNotValid(context) | Kind.AnyOf(context):
            yield from _form(error, context, place, schema)
        case Kind.OneOfMultipleValid():
            forms = _forms(schema.around(error, up=0)[0])
            yield Fault(here, f"Expected only one of {_either(forms)}." if forms else f"This fits several forms at once: {shown(given)}.")
        case Kind.PropertyNames(inner):
            yield Fault(here, f"The name of a field is wrong: {_plain(inner)}")
        case _:
            yield Fault(here, _plain(error), _nearly(kind, given))


def _plain(error: ValidationError) -> str:
    kind, given = error.kind, shown(error.instance)
    match kind:
        case Kind.Type(types):
            return f"Expected {_types(types)}, got {given}."
        case Kind.Enum(options):
            return f"Expected {_either([_shown(option) for option in options])}, got {given}."
        case Kind.Constant(value):
            return f"Expected {_shown(value)}, got {given}."
        case Kind.Pattern(pattern):
            words = next((words for start, words in PATTERNS if pattern.startswith(start)), f"text that matches {pattern}")
            return f"Expected {words}, got {given}."
        case Kind.Format(form):
            return f"Expected a {form}, got {given}."
        case Kind.MinItems(limit):
            return f"Expected at least {limit} {'item' if limit == 1 else 'items'}."
        case Kind.MaxItems(limit):
            return f"Expected at most {limit} {'item' if limit == 1 else 'items'}."
        case Kind.MinProperties(limit):
            return f"Expected at least {limit} {'field' if limit == 1 else 'fields'}, got {given}."
        case Kind.MaxProperties(limit):
            return f"Expected at most {limit} {'field' if limit == 1 else 'fields'}, got {given}."
        case Kind.MinLength(limit):
            return f"Expected at least {limit} {'character' if limit == 1 else 'characters'}."
        case Kind.MaxLength(limit):
            return f"Expected at most {limit} {'character' if limit == 1 else 'characters'}."
        case Kind.Minimum(limit):
            return f"Expected a number of at least {limit}, got {given}."
        case Kind.Maximum(limit):
            return f"Expected a number of at most {limit}, got {given}."
        case Kind.ExclusiveMinimum(limit):
            return f"Expected a number above {limit}, got {given}."
        case Kind.ExclusiveMaximum(limit):
            return f"Expected a number below {limit}, got {given}."
        case Kind.UniqueItems():
            return "Expected items that differ from one another."
        case Kind.Not({"required": [str(first), *_]}):
            return f"The field {first} is not allowed here."
        case Kind.FalseSchema():
            return "Nothing is allowed here."
    message = str(error.message)
    return f"{message if len(message) <= 200 else message[:197] + '…'}."


def _form(error: ValidationError, context: list[list[ValidationError]], place: str, schema: Schema) -> Iterator[Fault]:
    """Of several forms, the one that the data resembles: of its type, and with the fewest things wrong with it as a whole."""
    here, given = tuple(error.instance_path), error.instance
    at = f"{place}{_pointer(here)}"
    forms = list(_leaves(context, here))
    fitting = [form for form in forms if not any(_is(Kind.Type, one, here) for one in form)]
    if not fitting:
        types = [name for form in forms for one in form if _is(Kind.Type, one, here) for name in one.kind.types]  # type: ignore[attr-defined]
        yield Fault(at, f"Expected {_types(types)}, got {shown(given)}.")
        return
    alike = [form[0] for form in fitting if len(form) == 1 and _is(_OF_A_VALUE, form[0], here)]
    if len(alike) == len(fitting) > 1:
        said = dict.fromkeys(_plain(one).removeprefix("Expected ").partition(", got ")[0] for one in alike)
        yield Fault(at, f"Expected {_either(list(said))}, got {shown(given)}.")
        return
    wanting = {one.kind.property for form in fitting for one in form if _is(Kind.Required, one, here)}  # type: ignore[attr-defined]
    if len(wanting) > 1 and all(any(_is(Kind.Required, one, here) for one in form) for form in fitting):
        known = _names(*schema.around(error))
        unknown = [name for name in given if name not in known] if isinstance(given, dict) else []
        suggestion = suggestion_for(unknown[0], sorted(wanting), listed=False) if unknown else ""
        yield Fault(at, f"Expected one of the fields {_either(sorted(wanting))}, got {shown(given)}.", suggestion)
        return
    yield from _faults(min(fitting, key=lambda form: (sum(tuple(one.instance_path) == here for one in form), len(form))), place, schema)


_OF_A_VALUE = Kind.Pattern | Kind.Enum | Kind.Constant | Kind.Format


def _is(kinds: Any, error: ValidationError, here: tuple[str | int, ...]) -> bool:
    return isinstance(error.kind, kinds) and tuple(error.instance_path) == here


def _leaves(context: list[list[ValidationError]], here: tuple[str | int, ...]) -> Iterator[list[ValidationError]]:
    """The forms, with those that have forms of their own replaced by these."""
    for form in context:
        inner = [one for one in form if _is(Kind.OneOfNotValid | Kind.AnyOf, one, here)]
        if not inner:
            yield form
        for one in inner:
            yield from _leaves(one.kind.context, here)  # type: ignore[attr-defined]


def _forms(forms: Any) -> list[str]:
    """What tells the forms of a value apart: the fields that each requires."""
    required = [form.get("required", []) for form in forms if isinstance(form, dict)] if isinstance(forms, list) else []
    return [" with ".join(names) for names in required if names]


def _names(part: Any, schema: Schema, seen: frozenset[str] = frozenset()) -> set[str]:
    """The fields that a part of the schema knows, by whatever way."""
    if not isinstance(part, dict):
        return set()
    found = set(part["properties"]) if isinstance(part.get("properties"), dict) else set()
    for way in ("allOf", "oneOf", "anyOf"):
        for inner in part.get(way) or ():
            found |= _names(inner, schema, seen)
    for way in ("if", "then", "else"):
        found |= _names(part.get(way), schema, seen)
    reference = part.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        found |= _names(*schema.followed(reference), seen | {reference})
    return found


def _at(schema: Any, path: list[str | int]) -> Any:
    for part in path:
        if isinstance(schema, dict):
            schema = schema.get(part)
        elif isinstance(schema, list) and isinstance(part, int) and part < len(schema):
            schema = schema[part]
        else:
            return None
    return schema


def _nearly(kind: Any, given: Any) -> str:
    if not isinstance(kind, Kind.Enum) or not isinstance(given, str):
        return ""
    return suggestion_for(given, [option for option in kind.options if isinstance(option, str)], listed=False)


def _misspelt(wanted: str, unknown: list[str]) -> str:
    near = suggestion_for(wanted, unknown, listed=False)
    return near.replace("Did you mean", "It looks like").replace("?", " was meant to be it.") if near else ""


def _types(types: Iterable[str]) -> str:
    return _either(list(dict.fromkeys(TYPES.get(name, name) for name in types)))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _pointer(path: Iterable[str | int]) -> str:
    return "".join(f"/{escaped(str(part))}" for part in path)
