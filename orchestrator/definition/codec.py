"""The tree as JSON and back: how a definition is stored, compared and sent to another process.

Every class of the tree carries `@tagged("name")`; its JSON is `{"is": "name", …fields that differ from their default}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

TAG = "is"
NOT_KEPT = {"kept": False}
"""The metadata of a field that is true of this process alone, and no part of what is stored."""
T = TypeVar("T")
_CLASSES: dict[str, type] = {}
_FIELDS: dict[type, tuple[str, tuple[tuple[str, Any], ...]]] = {}


def tagged(name: str) -> Callable[[type[T]], type[T]]:
    def register(cls: type[T]) -> type[T]:
        if name in _CLASSES:
            raise ValueError(f"two classes are tagged '{name}'")
        _CLASSES[name] = cls
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # every tagged class is a dataclass
        _FIELDS[cls] = (name, tuple((f.name, f.default) for f in fields if f.metadata != NOT_KEPT))
        return cls

    return register


def to_json(value: Any) -> Any:
    if type(value) in _FIELDS:
        name, fields = _FIELDS[type(value)]
        shown = {TAG: name}
        for field, default in fields:
            held = getattr(value, field)
            if held is not default and held != default:
                shown[field] = to_json(held)
        return shown
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        # Data of an author may hold the tag as a key of its own: it is wrapped so that it comes back as data.
        plain = {key: to_json(item) for key, item in value.items()}
        return {TAG: "data", "data": list(plain.items())} if TAG in plain else plain
    return value


def from_json(value: Any) -> Any:
    """Sequences come back as tuples: the tree is immutable all the way down."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    tag = value.get(TAG)
    if tag is None:
        return {key: from_json(item) for key, item in value.items()}
    if tag == "data":
        return {key: from_json(item) for key, item in value["data"]}
    return _CLASSES[tag](**{key: from_json(item) for key, item in value.items() if key != TAG})


def plain(value: Any) -> Any:
    """Tuples back to lists: a constant of the tree as the JSON an author wrote."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
