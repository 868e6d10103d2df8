"""JSON Schema: compiled once, every violation reported."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs

from orchestrator.definition.codec import plain

RESOURCE = "$resource"
Fetch = Callable[[Any], Any]
_fetch: list[Fetch | None] = [None]


def set_fetch(fetch: Fetch | None) -> None:
    """How schemas that stand elsewhere are had: given the resource of a definition, the schema."""
    _fetch[0] = fetch


def is_elsewhere(schema: Any) -> bool:
    return isinstance(schema, dict) and RESOURCE in schema


@functools.lru_cache(maxsize=1024)
def _validator(text: str) -> Any:
    return jsonschema_rs.validator_for(json.loads(text))


def violations(schema: Any, data: Any) -> list[str]:
    """What is wrong with the data, each with its place; nothing when it fits."""
    if is_elsewhere(schema):
        fetch = _fetch[0]
        if fetch is None:
            return ["the schema stands elsewhere and cannot be read here"]
        schema = fetch(plain(schema[RESOURCE]))
    validator = _validator(json.dumps(plain(schema), sort_keys=True))
    return [_shown(error) for error in validator.iter_errors(data)]


def _shown(error: Any) -> str:
    place = "/".join(str(part) for part in error.instance_path)
    return f"{place or '(root)'}: {error.message}"


def check_schema(schema: Any) -> str | None:
    """Why this is no JSON Schema, or None."""
    if is_elsewhere(schema):
        return None
    try:
        _validator(json.dumps(plain(schema), sort_keys=True))
    except (ValueError, jsonschema_rs.ValidationError) as error:
        return str(error).split("\n", 1)[0]
    return None
