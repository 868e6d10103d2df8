"""Documents: workflows written as YAML or JSON, read by the front end that their keys name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import yaml

from orchestrator import nesting
from orchestrator.definition import graph
from orchestrator.definition.parsing import Source, shown
from orchestrator.definition.serverless import v08, v1
from orchestrator.definition.tree import Definition
from orchestrator.definition.yaml12 import CoreLoader
from orchestrator.errors import Fault, Invalid

LIMIT_BYTES = 1024 * 1024


def parse(text: str, name: str = "document") -> Any:
    """YAML or JSON as data; a syntax error is a fault with its line."""
    if len(text.encode()) > LIMIT_BYTES:
        raise Invalid([Fault(name, f"is larger than {LIMIT_BYTES:,} bytes")], "document")
    data = _loaded(text, name)
    if nesting.is_deeper(data):
        raise Invalid([Fault(name, f"is nested more than {nesting.DEEPEST} levels deep")], "document")
    return data


def _loaded(text: str, name: str) -> Any:
    try:
        if name.endswith(".json") or text.lstrip().startswith("{"):
            try:
                return json.loads(text)
            except json.JSONDecodeError as error:
                if name.endswith(".json"):
                    raise Invalid([Fault(f"{name}:{error.lineno}:{error.colno}", error.msg)], "document") from None
        return yaml.load(text, Loader=CoreLoader)  # noqa: S506  # nosec B506 # a SafeLoader with other resolvers
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise Invalid([Fault(place, error.problem or str(error))], "document") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise Invalid([Fault(name, str(error) or "is nested too deeply")], "document") from None


def read_document(text: str, name: str = "document") -> Definition:
    """A definition from a document's text; every fault at once."""
    return definition_from(parse(text, name), text, name)


def definition_from(data: Any, text: str | None = None, name: str = "") -> Definition:
    """By its keys a document says which front end it is for: `document` is the DSL 1.0, `states` 0.8, `steps` the graph form."""
    if isinstance(data, dict) and "document" in data:
        return v1.read(data, text)
    if isinstance(data, dict) and "states" in data:
        return v08.read(data, text)
    if not isinstance(data, dict):
        raise Invalid([Fault("", f"Expected a mapping with `document`, `states` or `steps`, got {shown(data)}.", file=name)], "workflow")
    return graph.read(data, Source(name, text))


def inline(document: Any) -> Definition:
    """The definition of a document that was computed, under a name that follows from its content."""
    if isinstance(document, dict) and isinstance(document.get("document"), dict):
        text = json.dumps(document, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        about = {**document["document"], "name": f"{document['document'].get('name', 'inline')}-{digest}"[-63:]}
        return definition_from({**document, "document": about})
    raise Invalid([Fault("", "is no workflow document")], "computed workflow")
