"""Documents: workflows written as YAML or JSON, read by the front end that their keys name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from orchestrator.definition import graph
from orchestrator.definition.parsing import NOWHERE, Source, shown
from orchestrator.definition.reading import read
from orchestrator.definition.serverless import v08, v1
from orchestrator.definition.tree import Definition
from orchestrator.errors import Fault, Invalid


def parse(text: str, name: str = "") -> Any:
    """YAML or JSON as data, within bounds; a syntax error is a fault with its line. `name` is the file's."""
    return read(text, name)


def read_document(text: str, name: str = "") -> Definition:
    """A definition from a document's text; every fault at once."""
    return definition_from(parse(text, name), Source(name, text))


def definition_from(data: Any, source: Source = NOWHERE) -> Definition:
    """By its keys a document says which front end it is for: `document` is the DSL 1.0, `states` 0.8, `steps` the graph form."""
    if isinstance(data, dict) and "document" in data:
        return v1.read(data, source)
    if isinstance(data, dict) and "states" in data:
        return v08.read(data, source)
    if not isinstance(data, dict):
        raise Invalid(
            [Fault("", f"Expected a mapping with `document`, `states` or `steps`, got {shown(data)}.", file=source.file)], "workflow"
        )
    return graph.read(data, source)


def inline(document: Any) -> Definition:
    """The definition of a document that was computed, under a name that follows from its content."""
    if isinstance(document, dict) and isinstance(document.get("document"), dict):
        text = json.dumps(document, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        about = {**document["document"], "name": f"{document['document'].get('name', 'inline')}-{digest}"[-63:]}
        return definition_from({**document, "document": about})
    raise Invalid([Fault("", "is no workflow document")], "computed workflow")
