"""What arrives on a stream, whichever way it was written, as one CloudEvent. Pure.

    CloudEvents        specversion, id, source, type, time, data …, as fields of the entry
    flat               event_type | eventType | type, hostname, data | payload
    nested             one field `event` (or `data`, or `message`) that holds any of these as JSON

Booleans and numbers may come as text; what is JSON is read as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import nesting

LARGEST_BYTES = 1024 * 1024
LONGEST_NAME = 1024
_TYPES = ("event_type", "eventType", "type")
_DATA = ("data", "payload")
_KNOWN = frozenset({"specversion", "id", "source", "type", "time", "timestamp", "subject", "datacontenttype", "dataschema", "data"})


class Poison(ValueError):
    """An entry that can never be understood. It is put aside with this reason."""


def envelope_of(stream: str, entry_id: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """The CloudEvent of an entry; its id is the entry's when it brings none."""
    size = sum(len(key) + len(value) for key, value in fields.items())
    if size > LARGEST_BYTES:
        raise Poison(f"has {size:,} bytes; at most {LARGEST_BYTES:,} are read")
    held: dict[str, Any] = {key: _read(key, value) for key, value in fields.items()}
    for key in ("event", "message", "data"):
        inner = held.get(key)
        if isinstance(inner, dict) and any(name in inner for name in _TYPES) and not any(name in held for name in _TYPES):
            held = {**{k: v for k, v in held.items() if k != key}, **inner}
    kind = next((held[name] for name in _TYPES if held.get(name)), None)
    if not isinstance(kind, str):
        raise Poison(f"names no type: one of {', '.join(_TYPES)} is needed")
    for name, text in (("id", held.get("id")), ("source", held.get("source")), ("type", kind)):
        if len(str(text or "")) > LONGEST_NAME:
            raise Poison(f"has {len(str(text)):,} characters in '{name}'; at most {LONGEST_NAME:,} are read")
    data = next((held[name] for name in _DATA if name in held), None)
    rest = {k: v for k, v in held.items() if k not in (*_TYPES, *_DATA) and k not in _KNOWN}
    if data is None and rest:
        data = rest
    elif isinstance(data, dict):
        # `hostname` and its like stand beside the data in flat entries: whoever listens finds them in it.
        data = {**{k: v for k, v in rest.items() if not isinstance(v, dict | list)}, **data}
    envelope = {
        "specversion": "1.0",
        "id": str(held.get("id") or entry_id),
        "source": str(held.get("source") or source_of(f"redis:{stream}", kind, held.get("id"))),
        "type": kind,
        "data": data,
        **{key: held[key] for key in ("time", "subject") if held.get(key)},
        **({"time": held["timestamp"]} if isinstance(held.get("timestamp"), str) and not held.get("time") else {}),
        **{key.lower(): value for key, value in rest.items() if isinstance(value, str | int | bool) and key.isalnum()},
    }
    return {key: value for key, value in envelope.items() if value is not None or key == "data"}


def source_of(place: str, type: str, id: Any) -> str:
    """Who an event is from that does not say so: the place where it was found, which gives each entry an id of its own. An id that it
    brings is its sender's, who is not known: it counts among those of its type alone."""
    return f"{place}/{type}" if id else place


def _read(key: str, value: str) -> Any:
    """Ids and names stay text; everything else is what its text says."""
    if key in ("id", "source", "type", "subject", "time", "specversion", "event_type", "eventType", "hostname"):
        return value
    text = value.strip()
    if text[:1] in "{[":
        try:
            return nesting.parse(text)
        except ValueError as error:
            raise Poison(f"field '{key}' looks like JSON and is none: {error}") from None
    return {"true": True, "false": False, "null": None, "none": None}.get(text.lower(), value)


def tenant_of(stream: str) -> str:
    """`tenant:{tenant}:workflow:{workflow}:events` says whose events it holds; any other stream is everybody's."""
    parts = stream.split(":")
    return parts[1] if len(parts) >= 5 and parts[0] == "tenant" and parts[-1] == "events" else "default"
