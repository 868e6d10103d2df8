"""The envelope of an event that a workflow emits: a CloudEvent, held to what CloudEvents allow.

What is in it was computed, so it is looked at when it is: what does not fit is a fault of the task that emits it.
"""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from orchestrator.definition.expressions import Jq, evaluate
from orchestrator.definition.parsing import Model, read_as, shown
from orchestrator.definition.tree import Definition
from orchestrator.errors import Fault, InvalidEvent

_DATE = Jq("todate")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[-+]\d{2}:\d{2})")
_NAME = re.compile(r"[a-z0-9]{1,20}")
NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
# Its source and id are kept in an index, whose entries have about 2,700 bytes.
LONGEST_BYTES = 1000


def _short(given: str) -> str:
    if not given:
        raise ValueError("Expected text that is not empty.")
    if len(given.encode(errors="replace")) > LONGEST_BYTES:
        raise ValueError(f"Expected text of at most {LONGEST_BYTES:,} bytes.")
    return given


def _time(given: str) -> str:
    if not _TIME.fullmatch(given):
        raise ValueError(f"Expected a time such as 2027-01-01T00:00:00Z, got {shown(given)}.")
    return given


Text = Annotated[str, AfterValidator(_short)]


class Envelope(Model):
    """The attributes that CloudEvents name; extensions are looked at beside it."""

    specversion: Literal["1.0"]
    id: Text
    source: Text
    type: Text
    time: Annotated[str, AfterValidator(_time)]
    subject: Text | None = None
    datacontenttype: Text | None = None
    dataschema: Text | None = None
    data: Any = None


ATTRIBUTES = frozenset(Envelope.model_fields)


def envelope_of(given: Any, instance_id: str, position: str, definition: Definition, now: float) -> dict[str, Any]:
    """A CloudEvent. Its id follows from where it was emitted, so that emitting twice is emitting once.

    Raises `InvalidEvent` with everything that is wrong with it.
    """
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
    envelope = {**stamped, **{key: value for key, value in event.items() if value is not None or key == "data"}}
    _, faults = read_as(Envelope, {key: value for key, value in envelope.items() if key in ATTRIBUTES})
    faults += [fault for key, value in envelope.items() if key not in ATTRIBUTES for fault in _extension(key, value)]
    if faults:
        raise InvalidEvent(faults, "the event")
    return envelope


def _extension(name: str, value: Any) -> list[Fault]:
    if not _NAME.fullmatch(name):
        return [Fault(f"/{name[:80]}", "The name of an attribute has lower-case letters and digits, at most 20.")]
    if not isinstance(value, str | bool | int | float):
        return [Fault(f"/{name}", f"Expected text, a number, true or false, got {shown(value)}.")]
    if isinstance(value, str) and len(value.encode(errors="replace")) > LONGEST_BYTES:
        return [Fault(f"/{name}", f"Expected text of at most {LONGEST_BYTES:,} bytes.")]
    return []
