"""JSON Schema: compiled once, every violation reported.

A schema that refers to its own parts may take for ever for a little data. Such are judged where expressions are that might not
end: by another process, within limits (`set_judge`).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs

from orchestrator.definition.codec import plain
from orchestrator.errors import ExpressionError

RESOURCE = "$resource"
MOST_TOLD = 50
LONGEST_TOLD = 300
Fetch = Callable[[Any], Any]
Judge = Callable[[str, Any], list[str]]
_fetch: list[Fetch | None] = [None]
_judge: list[Judge | None] = [None]


def set_fetch(fetch: Fetch | None) -> None:
    """How schemas that stand elsewhere are had: given the resource of a definition, the schema."""
    _fetch[0] = fetch


def set_judge(judge: Judge | None) -> None:
    """Who holds data against a schema that might not come to an end: given the schema's text and the data, the violations."""
    _judge[0] = judge


def is_elsewhere(schema: Any) -> bool:
    return isinstance(schema, dict) and RESOURCE in schema


@functools.lru_cache(maxsize=1024)
def _validator(text: str) -> Any:
    # What a schema refers to on the network is not fetched: calls go out elsewhere, under the egress policy.
    return jsonschema_rs.validator_for(json.loads(text), offline=True)


def violations(schema: Any, data: Any) -> list[str]:
    """What is wrong with the data, each with its place; nothing when it fits."""
    if is_elsewhere(schema):
        fetch = _fetch[0]
        if fetch is None:
            return ["the schema stands elsewhere and cannot be read here"]
        schema = fetch(plain(schema[RESOURCE]))
        if not isinstance(schema, dict | bool):
            return ["what stands at the schema's address is not a JSON Schema"]
    text = json.dumps(plain(schema), sort_keys=True)
    judge = _judge[0]
    if judge is not None and is_wild(text):
        return judge(text, data)
    return judged(text, data)


def judged(text: str, data: Any) -> list[str]:
    try:
        return [shown(error) for error in itertools.islice(_validator(text).iter_errors(data), MOST_TOLD)]
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        raise ExpressionError(f"the schema cannot be used: {_first_line(error)}") from None


def is_wild(text: str) -> bool:
    """Whether it refers to parts of itself, so that its length does not bound what it costs."""
    return '"$ref"' in text or '"$dynamicRef"' in text or '"$recursiveRef"' in text


def shown(error: Any) -> str:
    place = "/".join(str(part) for part in error.instance_path)
    message = str(error.message)
    return f"{place or '(root)'}: {message if len(message) <= LONGEST_TOLD else message[: LONGEST_TOLD - 1] + '…'}"


def check_schema(schema: Any) -> str | None:
    """Why this is not a JSON Schema, or None."""
    if is_elsewhere(schema):
        return None
    try:
        _validator(json.dumps(plain(schema), sort_keys=True))
    except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:LONGEST_TOLD]
