"""YAML and JSON as data: the one door through which every text comes that people or other systems wrote.

Definitions, configurations, schedules, triggers, and the documents that calls refer to are read here, within bounds of bytes,
depth, values and aliases that hold while the text is read. What comes out is JSON that every part of the system can keep.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

from orchestrator.definition import yaml12
from orchestrator.definition.parsing import Source, json_faults
from orchestrator.errors import Fault, Invalid
from orchestrator.nesting import DEEPEST, is_deeper

MOST_FAULTS = 100
TOO_DEEP = f"This is nested more than {DEEPEST} levels deep."


@dataclass(frozen=True, slots=True)
class Kind:
    """What is read, and how large it may be."""

    what: str
    bytes: int
    bounds: yaml12.Bounds
    is_ours: bool = True
    """Ours is read strictly. In what others wrote a name that is given twice means the last one, as JSON parsers have it."""


DOCUMENT = Kind("document", 1024 * 1024, yaml12.Bounds())
RESOURCE = Kind("resource", 8 * 1024 * 1024, yaml12.Bounds(values=1_000_000, are_keys_text=True), is_ours=False)


def read(text: str, name: str = "", kind: Kind = DOCUMENT) -> Any:
    """The data of a text. Raises `Invalid` with every fault, each with its line; `name` is the file's."""
    source = Source(name, text)
    if len(text) > kind.bytes or len(text.encode(errors="replace")) > kind.bytes:
        raise Invalid([Fault("", f"This text has more than {kind.bytes:,} bytes.", file=name)], kind.what)
    data = _loaded(text, name, kind)
    if not kind.is_ours:
        if is_deeper(data):
            raise _invalid(name, kind, TOO_DEEP)
        return data
    found = list(itertools.islice(json_faults(data), MOST_FAULTS))
    if found:
        raise Invalid([source.located(fault) for fault in found], kind.what)
    return data


def _loaded(text: str, name: str, kind: Kind) -> Any:
    is_json = name.endswith(".json")
    if is_json or not kind.is_ours or text.lstrip().startswith("{"):
        try:
            return json.loads(text, object_pairs_hook=_once if kind.is_ours else None)
        except json.JSONDecodeError as error:
            if is_json and kind.is_ours:
                raise _invalid(name, kind, f"Invalid JSON: {error.msg}.", error.lineno, error.colno) from None
        except (RecursionError, _Twice) as error:
            # The YAML reader finds the same, and says where.
            _yaml(text, name, kind)
            raise _invalid(name, kind, str(error) if isinstance(error, _Twice) else TOO_DEEP) from None
        except ValueError:
            raise _invalid(name, kind, "This holds a number of thousands of digits.") from None
    return _yaml(text, name, kind)


def _yaml(text: str, name: str, kind: Kind) -> Any:
    try:
        return yaml12.load(text, kind.bounds)[0]
    except yaml12.Refusal as refusal:
        raise _invalid(name, kind, refusal.message, refusal.line, refusal.column, refusal.suggestion) from None


def _invalid(name: str, kind: Kind, message: str, line: int | None = None, column: int | None = None, suggestion: str = "") -> Invalid:
    return Invalid([Fault("", message, suggestion, name, line, column)], kind.what)


class _Twice(Exception):
    """A name is given twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Twice(f'The key "{key[:80]}" is given twice.')
            seen.add(key)
    return made
