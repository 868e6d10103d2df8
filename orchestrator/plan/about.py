"""What the expressions of an instance may know of it: `$workflow`, `$secrets`, and what was written at a task's place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.definition.codec import plain
from orchestrator.definition.expressions import Jq, Lazy, Names, evaluate
from orchestrator.definition.tree import Definition
from orchestrator.ids import pointer, unescaped

_STAMPED = Jq("{iso8601: todate, epoch: {seconds: floor, milliseconds: (. * 1000 | floor)}}")


def facts_of(definition: Definition, instance_id: str, input: Any, created_at: float | None, secrets: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "workflow": Names(
            {
                "id": instance_id,
                "input": input,
                "definition": Lazy(lambda: _shown(definition)),
                "startedAt": None if created_at is None else Lazy(lambda: evaluate(_STAMPED, created_at, {})),
            }
        ),
        # As other runtimes of DSL 0.8 have it.
        "WORKFLOW": {
            "instanceId": instance_id,
            "id": definition.name,
            "name": definition.title or definition.name,
            "version": definition.version,
            "namespace": definition.namespace,
        },
        "secrets": secrets,
        "constants": None if definition.constants is None else plain(definition.constants),
        "written": _written(definition),
    }


def _shown(definition: Definition) -> Any:
    if definition.document is not None:
        return plain(definition.document)
    return {"name": definition.name, "version": definition.version, "namespace": definition.namespace}


def _written(definition: Definition) -> Callable[[str], Any] | None:
    if definition.document is None:
        return None
    return lambda position: at(plain(definition.document), pointer(position))


def at(document: Any, place: str) -> Any:
    """What stands at a JSON pointer; None when nothing does."""
    found = document
    for part in place.split("/")[1:]:
        name = unescaped(part)
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found
