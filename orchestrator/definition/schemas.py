"""JSON Schema: compiled once, every violation reported.

A schema that refers to its own parts may take for ever for a little data. Such are judged where expressions are that might not
end: by another process, within limits (`set_judge`).
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs

from orchestrator.definition.codec import plain
from orchestrator.definition.tree import Definition
from orchestrator.errors import ExpressionError

RESOURCE = "$resource"
MOST_TOLD = 50
LONGEST_TOLD = 300
DEEPEST_DEFAULT = 32
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


def with_defaults(schema: Any, data: Any) -> Any:
    """The data with what its schema says of what is absent; of no data, an object where the schema wants one."""
    if not isinstance(schema, dict) or is_elsewhere(schema):
        return data
    root = plain(schema)
    if data is None and (root.get("type") == "object" or "properties" in root):
        data = {}
    return _filled(root, data, root, DEEPEST_DEFAULT)


def with_own_defaults(definition: Definition, data: Any) -> Any:
    """The input of a workflow with its defaults. Of a document of Serverless Workflow they are said to readers alone."""
    return data if definition.document is not None else with_defaults(definition.do.around.input_schema, data)


def _filled(schema: Any, data: Any, root: dict[str, Any], levels: int) -> Any:
    schema = _followed(schema, root)
    if schema is None or levels == 0:
        return data
    if isinstance(data, list):
        return [_filled(schema.get("items"), one, root, levels - 1) for one in data]
    properties = schema.get("properties")
    if not isinstance(data, dict) or not isinstance(properties, dict):
        return data
    absent = {
        name: copy.deepcopy(held["default"])
        for name, inner in properties.items()
        if name not in data and (held := _default_of(inner, root)) is not None
    }
    there = {name: _filled(properties[name], value, root, levels - 1) if name in properties else value for name, value in data.items()}
    return {**there, **absent}


def _default_of(schema: Any, root: dict[str, Any]) -> dict[str, Any] | None:
    """What holds the default: it may stand beside a reference, or where that leads to."""
    if isinstance(schema, dict) and "default" in schema:
        return schema
    followed = _followed(schema, root)
    return followed if followed is not None and "default" in followed else None


def _followed(schema: Any, root: dict[str, Any]) -> dict[str, Any] | None:
    """Where references to the schema's own parts lead; of a choice between one thing and null, the thing."""
    for _ in range(DEEPEST_DEFAULT):
        if not isinstance(schema, dict):
            return None
        if isinstance(ref := schema.get("$ref"), str):
            schema = _part(root, ref)
        elif isinstance(schema.get("anyOf"), list):
            kinds = [one for one in schema["anyOf"] if isinstance(one, dict) and one.get("type") != "null"]
            if len(kinds) != 1:
                return schema
            schema = kinds[0]
        else:
            return schema
    return None


def _part(root: dict[str, Any], ref: str) -> Any:
    if not ref.startswith("#/"):
        return None
    found: Any = root
    for part in ref[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found


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
