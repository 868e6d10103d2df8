"""What the specification's schema says of a document, fault by fault, each at the innermost place it is about.

Validated as a whole, a document with one wrong word "is not valid under any of the given schemas". So each task is
looked at by itself, against the schema of the one kind its key names, with the task lists inside it left to themselves.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema_rs
import yaml

from orchestrator.definition.yaml12 import CoreLoader
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


@functools.cache
def _schema() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("schemas/workflow-1.0.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.load(text, Loader=CoreLoader)  # noqa: S506  # nosec B506 # a SafeLoader with other resolvers
    return loaded


@functools.cache
def _validator(name: str, variant: str = "") -> Any:
    """For a named part of the schema; `variant` picks one of a call's or a run's forms by its word."""
    schema = _schema()
    if not name:
        return jsonschema_rs.validator_for(schema)
    part = schema["$defs"][name]
    if variant:
        part = _variant(part, variant)
    text = json.dumps({"$schema": schema["$schema"], "$defs": schema["$defs"], **part})
    return jsonschema_rs.validator_for(json.loads(text))


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
        yield Fault("", "a workflow document is a mapping with `document` and `do`")
        return
    tasks, functions, extensions = document.get("do"), _used(document, "functions"), _used(document, "extensions")
    shell = {**document, **({"do": []} if "do" in document else {})}
    if isinstance(document.get("use"), dict):
        without: dict[str, Any] = {"functions": {}, "extensions": []}
        shell["use"] = {key: without.get(key, value) for key, value in document["use"].items()}
    yield from _violations(_validator(""), shell, "")
    if "do" in document:
        yield from _task_list(tasks, "/do")
    if isinstance(functions, dict):
        for name, function in functions.items():
            yield from _task(function, f"/use/functions/{name}")
    elif functions is not None:
        yield Fault("/use/functions", "must be a mapping of names to tasks")
    if extensions is not None:
        yield from _extensions(extensions)


def _used(document: dict[str, Any], what: str) -> Any:
    use = document.get("use")
    return use.get(what) if isinstance(use, dict) else None


def _extensions(extensions: Any) -> Iterator[Fault]:
    if not isinstance(extensions, list):
        yield Fault("/use/extensions", "must be a list")
        return
    for number, item in enumerate(extensions):
        place = f"/use/extensions/{number}"
        if not isinstance(item, dict) or len(item) != 1:
            yield Fault(place, "must be a mapping with one name")
            continue
        [(name, extension)] = item.items()
        lists = [key for key in ("before", "after") if isinstance(extension, dict) and key in extension]
        shell = {**extension, **{key: [] for key in lists}} if isinstance(extension, dict) else extension
        yield from _violations(_validator("extension"), shell, f"{place}/{name}")
        for key in lists:
            yield from _task_list(extension[key], f"{place}/{name}/{key}")


def _task_list(tasks: Any, place: str) -> Iterator[Fault]:
    if not isinstance(tasks, list):
        yield Fault(place, "must be a list of tasks, each a mapping with one name")
        return
    for number, item in enumerate(tasks):
        if not isinstance(item, dict) or len(item) != 1:
            yield Fault(f"{place}/{number}", "must be a mapping with one name and its task")
            continue
        [(name, task)] = item.items()
        yield from _task(task, f"{place}/{number}/{name}")


def kind_of(task: Any) -> str | None:
    return next((key for key in KINDS if key in task), None) if isinstance(task, dict) else None


def _task(task: Any, place: str) -> Iterator[Fault]:
    kind = kind_of(task)
    if kind is None:
        said = f"has none of {', '.join(KINDS)}" if isinstance(task, dict) else f"is {json.dumps(task, default=str)[:60]}"
        yield Fault(place, f"is no task: it {said}")
        return
    shell, inner = _emptied(task, kind)
    variant = ""
    if kind == "call":
        variant = task["call"] if task["call"] in CALLS else "function"
    elif kind == "run" and isinstance(task["run"], dict):
        variant = next((word for word in ("container", "script", "shell", "workflow") if word in task["run"]), "")
    yield from _violations(_validator(KINDS[kind], variant), shell, place)
    for path, tasks in inner:
        yield from _task_list(tasks, f"{place}/{path}")


def _emptied(task: dict[str, Any], kind: str) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The task with its inner lists taken out, and those lists with where they stood."""
    shell: dict[str, Any] = dict(task)
    inner: list[tuple[str, Any]] = []
    if kind in ("do", "for", "try") and "do" in shell and kind != "try":
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


def _violations(validator: Any, data: Any, place: str) -> Iterator[Fault]:
    try:
        for error in validator.iter_errors(data):
            path = "".join(f"/{part}" for part in error.instance_path)
            yield Fault(f"{place}{path}", _said(error))
    except (ValueError, TypeError) as error:
        yield Fault(place, f"is no JSON: {error}")


def _said(error: Any) -> str:
    message = str(error.message)
    return message if len(message) <= 300 else message[:297] + "…"
