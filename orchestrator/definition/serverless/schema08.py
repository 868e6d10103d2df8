"""What the 0.8 schema says of a document; each state against the schema of its type, so that faults are told where they are.

The schemas in `schemas/v08/` are the specification's own; what is understood beyond them, and that unknown fields are refused, is
added when they are loaded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema_rs

from orchestrator.definition.parsing import shown, suggestion_for
from orchestrator.definition.serverless.wording import Schema, worded
from orchestrator.errors import Fault

STATES = {
    "operation": "operationstate",
    "event": "eventstate",
    "parallel": "parallelstate",
    "inject": "injectstate",
    "foreach": "foreachstate",
    "sleep": "sleepstate",
    "callback": "callbackstate",
}
KINDS = [*STATES, "switch"]
_HOST = "https://serverlessworkflow.io/schemas/0.8/"
# What one misses in a state of a document that is otherwise looked at by itself.
_NO_STATE = {"name": "x", "type": "inject", "data": {}, "end": True}


@functools.cache
def _read(name: str) -> dict[str, Any]:
    text = resources.files(__package__).joinpath(f"schemas/v08/{name}").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    if name == "workflow.json":
        understood(schema)
    closed(schema)
    return schema


def understood(schema: dict[str, Any]) -> None:
    """What is read beyond the schema. `decisions.md` lists it."""
    definitions = schema["definitions"]
    # Said in `faults`, in words; two forms of a whole document cannot be told apart well.
    del schema["oneOf"]
    schema["properties"]["$schema"] = {"type": "string"}
    # Its three forms exclude one another, and so both fields together.
    definitions["sleep"]["anyOf"] = definitions["sleep"].pop("oneOf")
    # Most write the schema of their data where it is used.
    schema["properties"]["dataInputSchema"]["oneOf"][1]["properties"]["schema"] = {"type": ["string", "object"]}
    for name in ("databasedswitchstate", "eventbasedswitchstate"):
        definitions[name]["required"] = [field for field in definitions[name]["required"] if field != "defaultCondition"]


def closed(part: Any, *, is_part: bool = False) -> None:
    """Where the schema names fields, no others are allowed, said or not."""
    if isinstance(part, list):
        for inner in part:
            closed(inner, is_part=is_part)
    if not isinstance(part, dict):
        return
    if isinstance(part.get("properties"), dict):
        if not is_part and "additionalProperties" not in part:
            part["additionalProperties"] = False
        for inner in part["properties"].values():
            closed(inner)
    for inner in (part.get("definitions") or {}).values():
        closed(inner)
    for key in ("items", "additionalProperties"):
        closed(part.get(key))
    for key in ("allOf", "oneOf", "anyOf"):
        closed(part.get(key), is_part=is_part or "properties" in part)
    for key in ("if", "then", "else"):
        closed(part.get(key), is_part=True)


def _retrieve(uri: str) -> Any:
    return _read(uri.split("#")[0].rsplit("/", 1)[-1])


@functools.cache
def _validator(definition: str = "") -> tuple[Any, Any]:
    schema = _read("workflow.json")
    if definition:
        part = schema["definitions"][definition]
        schema = {"$id": f"{_HOST}workflow.json", "$schema": schema["$schema"], "definitions": schema["definitions"], **part}
    return jsonschema_rs.validator_for(schema, retriever=_retrieve, validate_formats=False), schema


def faults(document: dict[str, Any]) -> Iterator[Fault]:
    states = document.get("states")
    if not (document.get("id") or document.get("key")):
        yield Fault("/id", "This field is required: the workflow's id (or its `key`).")
    if "specVersion" not in document:
        yield Fault("/specVersion", 'This field is required: "0.8".')
    yield from _violations("", {**document, "states": [_NO_STATE]}, "")
    if not isinstance(states, list) or not states:
        yield Fault("/states", f"Expected a list of at least one state, got {shown(states)}.")
        return
    for number, state in enumerate(states):
        kind = state.get("type") if isinstance(state, dict) else None
        place = f"/states/{number}"
        if not isinstance(state, dict):
            yield Fault(place, f"Expected a state, a mapping with `name` and `type`, got {shown(state)}.")
        elif kind == "switch":
            has_conditions = [key for key in ("dataConditions", "eventConditions") if key in state]
            if len(has_conditions) != 1:
                yield Fault(place, "A switch has either `dataConditions` or `eventConditions`.")
            else:
                yield from _violations(f"{has_conditions[0].removesuffix('Conditions')}basedswitchstate", state, place)
        elif isinstance(kind, str) and kind in STATES:
            yield from _violations(STATES[kind], state, place)
        elif "type" not in state:
            yield Fault(f"{place}/type", f"This field is required: one of {', '.join(KINDS)}.")
        else:
            near = suggestion_for(kind, KINDS, listed=False) if isinstance(kind, str) else ""
            yield Fault(f"{place}/type", f"Expected one of {', '.join(KINDS)}, got {shown(kind)}.", near)


def _violations(name: str, data: Any, place: str) -> Iterator[Fault]:
    validator, schema = _validator(name)
    if not validator.is_valid(data):
        yield from worded(validator.iter_errors(data), place, Schema(schema, _retrieve))
