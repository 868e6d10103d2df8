"""What goes to Redis is small: payloads and long texts stay in PostgreSQL, and what is told refers to them. Pure.

Redis holds all it has in memory and reads all of it when it starts: a thousand recent events with 2 MB each would be 2 GB of that. So a
value whose JSON is larger than STREAM_PAYLOAD_LIMIT is left out, and `dataref` (the CloudEvents extension of that name) says where the
API has it. Texts, such as the messages of errors, are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

LONGEST_TEXT = 4_000

Dump = Callable[[Any], str]


def is_large(text: str, limit_bytes: int) -> bool:
    return len(text) > limit_bytes or (4 * len(text) > limit_bytes and len(text.encode()) > limit_bytes)


def of_instance(instance_id: str | None) -> str:
    """Where the API has the input, output and errors of an instance."""
    return f"/workflow/instance/{instance_id}" if instance_id else "/workflow/instances"


def of_event(envelope: dict[str, Any]) -> str:
    """Where the API has an event."""
    return f"/workflow/events?source={quote(str(envelope.get('source', '')), safe='')}&text={quote(str(envelope.get('id', '')), safe='')}"


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… (cut here; it has {len(text):,} characters)"


def brief(value: Any) -> Any:
    """Every text within, cut."""
    if isinstance(value, str):
        return cut(value)
    if isinstance(value, dict):
        return {key: brief(item) for key, item in value.items()}
    if isinstance(value, list):
        return [brief(item) for item in value]
    return value


def event(envelope: dict[str, Any]) -> dict[str, Any]:
    """An event without its data, which the API has."""
    return {**{key: value for key, value in envelope.items() if key not in ("data", "data_base64")}, "dataref": of_event(envelope)}


def fitted(body: dict[str, Any], limit_bytes: int, reference: str, dump: Dump, *, keep: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The body as it may be told: whole when it is small, else with its texts cut, and without its largest values."""
    if not is_large(dump(body), limit_bytes):
        return body
    held = {key: value if key in keep else brief(value) for key, value in body.items()}
    sizes = {key: len(dump(value)) for key, value in held.items() if key not in keep}
    left = sum(sizes.values())
    while sizes and left > limit_bytes // 2:
        largest = max(sizes, key=lambda key: sizes[key])
        left -= sizes.pop(largest)
        del held[largest]
    return {**held, "dataref": reference}
