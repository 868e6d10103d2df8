"""What the 0.8 schema says of a document; each state against the schema of its type, so that faults are told where they are."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema_rs

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
_HOST = "https://serverlessworkflow.io/schemas/0.8/"


def _read(name: str) -> Any:
    return json.loads(resources.files(__package__).joinpath(f"schemas/v08/{name}").read_text(encoding="utf-8"))


def _retrieve(uri: str) -> Any:
    return _read(uri.split("#")[0].rsplit("/", 1)[-1])


@functools.cache
def _validator(definition: str = "") -> Any:
    schema = _read("workflow.json")
    if definition:
        part = schema["definitions"][definition]
        schema = {"$id": f"{_HOST}workflow.json", "$schema": schema["$schema"], "definitions": schema["definitions"], **part}
    return jsonschema_rs.validator_for(schema, retriever=_retrieve, validate_formats=False)


def faults(document: dict[str, Any]) -> Iterator[Fault]:
    states = document.get("states")
    yield from _violations(_validator(), {**document, "states": [{"name": "x", "type": "inject", "data": {}, "end": True}]}, "")
    if not isinstance(states, list) or not states:
        yield Fault("/states", "a workflow needs at least one state")
        return
    for number, state in enumerate(states):
        kind = state.get("type") if isinstance(state, dict) else None
        place = f"/states/{number}"
        if kind == "switch":
            name = "eventbasedswitchstate" if "eventConditions" in state else "databasedswitchstate"
        elif isinstance(kind, str) and kind in STATES:
            name = STATES[kind]
        else:
            yield Fault(place, f"is no state: type {kind!r} is none of {', '.join([*STATES, 'switch'])}")
            continue
        yield from _violations(_validator(name), state, place)


def _violations(validator: Any, data: Any, place: str) -> Iterator[Fault]:
    try:
        for error in validator.iter_errors(data):
            path = "".join(f"/{part}" for part in error.instance_path)
            yield Fault(f"{place}{path}", str(error.message)[:300])
    except (ValueError, TypeError) as error:
        yield Fault(place, f"is no JSON: {error}")
