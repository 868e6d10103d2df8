"""The envelope of an event that a workflow emits."""

from __future__ import annotations

import uuid
from typing import Any

from orchestrator.definition.expressions import Jq, evaluate
from orchestrator.definition.tree import Definition

_DATE = Jq("todate")
NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


def envelope_of(given: Any, instance_id: str, position: str, definition: Definition, now: float) -> dict[str, Any]:
    """A CloudEvent. Its id follows from where it was emitted, so that emitting twice is emitting once."""
    event = dict(given) if isinstance(given, dict) else {"data": given}
    stamped = {
        "specversion": "1.0",
        "id": str(uuid.uuid5(NAMESPACE, f"{instance_id}{position}")),
        "source": f"/{definition.namespace}/{definition.name}/{definition.version}",
        "type": "orchestrator.event",
        "time": evaluate(_DATE, now, {}),
    }
    if "data" in event and not isinstance(event["data"], str):
        stamped["datacontenttype"] = "application/json"
    return {**stamped, **{key: value for key, value in event.items() if value is not None or key == "data"}}
