"""What the specification's schema says of a document, fault by fault, each at the innermost place it is about.

Validated as a whole, a document with one wrong word "is not valid under any of the given schemas". So each task is
looked at by itself, against the schema of the one kind its key names, with the task lists inside it left to themselves.

The schema in `schemas/` is the specification's own. What is understood beyond it, and that unknown fields are refused
everywhere, is added when it is loaded: `understood`, `closed`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema_rs

from orchestrator.definition import yaml12
from orchestrator.definition.parsing import escaped, shown, suggestion_for
from orchestrator.definition.serverless.wording import Schema, worded
from orchestrator.errors import Fault

# The key that makes a task what it is, and the schema of that kind. `for` before `do`: a loop has both.
KINDS = {
    "call": "callTask",
    "fork": "forkTask",
    "emit": "emitTask",
    "for": "forTask",
    "listen": "listenTask",
    "raise": "raiseTask",
    "run": "runTask",
    "set": "setTask",
    "switch": "switchTask",
    "try": "tryTask",
    "wait": "waitTask",
    "do": "doTask",
}
CALLS = ("asyncapi", "grpc", "http", "openapi", "a2a", "mcp")
RUNS = ("container", "script", "shell", "workflow")
PLAIN_DURATION = r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"
"""`2s`, `1m30s`: not the specification's, and understood."""


@functools.cache
def _schema() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("schemas/workflow-1.0.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml12.load(text)[0]
    understood(loaded)
    closed(loaded, parts=frozenset({"taskBase", "oauth2AuthenticationProperties", "asyncApiOutboundMessage", "eventProperties"}))
    return loaded


def understood(schema: dict[str, Any]) -> None:
    """What is read beyond the schema: older forms, and what other runtimes take. `decisions.md` lists it."""
    defs = schema["$defs"]
    scalar = {"type": ["string", "number", "boolean", "null"]}
    schema["properties"]["$schema"] = {"type": "string"}
    schema["properties"]["document"]["properties"]["namespace"]["pattern"] = "^[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$"
    # An expression may have several lines.
    defs["runtimeExpression"]["pattern"] = r"^\s*\$\{[\s\S]+\}\s*$"
    defs["duration"]["oneOf"].append({"type": "string", "pattern": PLAIN_DURATION})
    defs["errorFilter"]["properties"]["details"] = defs["errorFilter"]["properties"]["detail"]
    http = _variant(defs["callTask"], "http")["allOf"][1]["properties"]["with"]["properties"]
    http["headers"]["oneOf"][0]["additionalProperties"] = scalar
    http["query"]["oneOf"][0]["additionalProperties"] = {"anyOf": [scalar, {"type": "array", "items": scalar}]}
    _either_way(schema)
    run = defs["runTask"]["allOf"][1]["properties"]["run"]["oneOf"]
    for number, form in enumerate(("container", "script", "shell")):
        held = run[number]["properties"][form]["properties"]
        items = {"type": "array", "items": {"type": ["string", "number", "boolean"]}}
        # Up to 1.0.1 the arguments of scripts and shells were a map.
        held["arguments"] = items if form == "container" else {"anyOf": [items, {"type": "object"}]}


def _either_way(part: Any) -> None:
    """Text and an expression: an expression is text, too, and both forms hold where one must."""
    if isinstance(part, dict):
        if any(isinstance(form, dict) and form.get("$ref") == "#/$defs/runtimeExpression" for form in part.get("oneOf") or ()):
            part["anyOf"] = part.pop("oneOf")
        for inner in part.values():
            _either_way(inner)
    elif isinstance(part, list):
        for inner in part:
            _either_way(inner)


def closed(part: Any, parts: frozenset[str], *, is_part: bool = False) -> None:
    """Where the schema names fields, no others are allowed, said or not; `parts` are definitions that others are made with."""
    if not isinstance(part, dict):
        return
    is_closed = is_part or "additionalProperties" in part or "unevaluatedProperties" in part
    if isinstance(part.get("properties"), dict) and not is_closed:
        part["unevaluatedProperties"] = False
        is_closed = True
    for inner in (part.get("properties") or {}).values():
        closed(inner, parts)
    for name, inner in (part.get("$defs") or {}).items():
        closed(inner, parts, is_part=name in parts)
    for key in ("items", "additionalProperties"):
        closed(part.get(key), parts)
    for key in ("allOf", "oneOf", "anyOf"):
        for inner in part.get(key) or ():
            closed(inner, parts, is_part=is_closed or key == "allOf")


@functools.cache
def _validator(name: str, variant: str = "") -> tuple[Any, Any]:
    """For a named part of the schema, and that part; `variant` picks one of a call's or a run's forms by its word."""
    schema = _schema()
    if not name:
        return jsonschema_rs.validator_for(schema), schema
    part = schema["$defs"][name]
    if variant:
        part = _variant(part, variant)
    part = {"$schema": schema["$schema"], "$defs": schema["$defs"], **part}
    return jsonschema_rs.validator_for(part), part


def _variant(part: dict[str, Any], word: str) -> dict[str, Any]:
    if "oneOf" in part:  # a call
        named = [form for form in part["oneOf"] if form["allOf"][1]["properties"]["call"].get("const") == word]
        found: dict[str, Any] = named[0] if named else part["oneOf"][-1]
        return found
    copied: dict[str, Any] = json.loads(json.dumps(part))
    run = copied["allOf"][1]["properties"]["run"]
    form = next((form for form in run["oneOf"] if word in form["properties"]), None)
    if form is not None:
        run["properties"] |= form["properties"]
        run["required"] = form["required"]
        del run["oneOf"]
    return copied


def faults(document: Any) -> Iterator[Fault]:
    if not isinstance(document, dict):
        yield Fault("", f"Expected a workflow document, a mapping with `document` and `do`, got {shown(document)}.")
        return
    tasks, functions, extensions = document.get("do"), _used(document, "functions"), _used(document, "extensions")
    shell = {**document, **({"do": []} if "do" in document else {})}
    if isinstance(document.get("use"), dict):
        without: dict[str, Any] = {"functions": {}, "extensions": []}
        shell["use"] = {key: without.get(key, value) for key, value in document["use"].items()}
    yield from _violations("", shell, "")
    if "do" in document:
        yield from _task_list(tasks, "/do")
    if isinstance(functions, dict):
        for name, function in functions.items():
            yield from _task(function, f"/use/functions/{escaped(name)}")
    elif functions is not None:
        yield Fault("/use/functions", f"Expected a mapping of names to tasks, got {shown(functions)}.")
    if extensions is not None:
        yield from _extensions(extensions)


def _used(document: dict[str, Any], what: str) -> Any:
    use = document.get("use")
    return use.get(what) if isinstance(use, dict) else None


def _extensions(extensions: Any) -> Iterator[Fault]:
    if not isinstance(extensions, list):
        yield Fault("/use/extensions", f"Expected a list, got {shown(extensions)}.")
        return
    for number, item in enumerate(extensions):
        place = f"/use/extensions/{number}"
        if not isinstance(item, dict) or len(item) != 1:
            yield Fault(place, f"Expected a mapping with one name and its extension, got {shown(item)}.")
            continue
        [(name, extension)] = item.items()
        lists = [key for key in ("before", "after") if isinstance(extension, dict) and key in extension]
        shell = {**extension, **{key: [] for key in lists}} if isinstance(extension, dict) else extension
        yield from _violations("extension", shell, f"{place}/{escaped(name)}")
        for key in lists:
            yield from _task_list(extension[key], f"{place}/{escaped(name)}/{key}")


def _task_list(tasks: Any, place: str) -> Iterator[Fault]:
    if not isinstance(tasks, list):
        yield Fault(place, f"Expected a list of tasks, each a mapping with one name, got {shown(tasks)}.")
        return
    for number, item in enumerate(tasks):
        if not isinstance(item, dict) or len(item) != 1:
            yield Fault(f"{place}/{number}", f"Expected a mapping with one name and its task, got {shown(item)}.")
            continue
        [(name, task)] = item.items()
        yield from _task(task, f"{place}/{number}/{escaped(name)}")


def kind_of(task: Any) -> str | None:
    return next((key for key in KINDS if key in task), None) if isinstance(task, dict) else None


def _task(task: Any, place: str) -> Iterator[Fault]:
    kind = kind_of(task)
    if kind is None:
        if not isinstance(task, dict):
            yield Fault(place, f"Expected a task, a mapping with one of {', '.join(KINDS)}, got {shown(task)}.")
            return
        near = next((hint for key in task if (hint := suggestion_for(key, KINDS, listed=False))), "")
        yield Fault(place, f"A task has one of {', '.join(KINDS)}; this has {', '.join(map(str, task))[:80] or 'nothing'}.", near)
        return
    others = [key for key in KINDS if key in task and key != kind and (kind, key) != ("for", "do")]
    if others:
        yield Fault(f"{place}/{others[0]}", f"A task is only one of {', '.join(KINDS)}; this has {' and '.join([kind, *others])}.")
        return
    shell, inner = _emptied(task, kind)
    variant = ""
    if kind == "call":
        variant = task["call"] if task["call"] in CALLS else "function"
    elif kind == "run" and isinstance(task["run"], dict):
        named = [word for word in RUNS if word in task["run"]]
        if len(named) > 1:
            yield Fault(f"{place}/run", f"Expected only one of {', '.join(RUNS)}, got {' and '.join(named)}.")
            return
        variant = named[0] if named else ""
    yield from _violations(KINDS[kind], shell, place, variant)
    for path, tasks in inner:
        yield from _task_list(tasks, f"{place}/{path}")


def _emptied(task: dict[str, Any], kind: str) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The task with its inner lists taken out, and those lists with where they stood."""
    shell: dict[str, Any] = dict(task)
    inner: list[tuple[str, Any]] = []
    if kind in ("do", "for") and "do" in shell:
        inner.append(("do", shell["do"]))
        shell["do"] = []
    if kind == "try":
        inner.append(("try", shell["try"]))
        shell["try"] = []
    for key, part in (("fork", "branches"), ("catch", "do"), ("foreach", "do")):
        held = shell.get(key)
        if isinstance(held, dict) and part in held:
            inner.append((f"{key}/{part}", held[part]))
            shell[key] = {**held, part: []}
    return shell, inner


def _violations(name: str, data: Any, place: str, variant: str = "") -> Iterator[Fault]:
    validator, schema = _validator(name, variant)
    if not validator.is_valid(data):
        yield from worded(validator.iter_errors(data), place, Schema(schema))
