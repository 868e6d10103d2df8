"""How deeply JSON may be nested. All that reads and writes it goes down by recursion: here, in Postgres, in those who ask."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

# What comes in, and what steps give. What is kept has it inside of more: facts, snapshots, definitions.
DEEPEST = 200
DEEPEST_KEPT = 500


def is_deeper(value: Any, limit: int = DEEPEST) -> bool:
    """By levels, each thing of a level once: aliases of YAML may stand for one thing in a thousand places."""
    level: Iterable[Any] = [value]
    for _ in range(limit):
        below: dict[int, Any] = {}
        for one in level:
            items = one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple) else ()
            below.update((id(item), item) for item in items if isinstance(item, dict | list | tuple))
        if not below:
            return False
        level = below.values()
    return True


def is_deep(value: Any, text: str, limit: int = DEEPEST) -> bool:
    """The same, of a value whose JSON is at hand: with fewer brackets than that it is not worth a look."""
    return text.count("[") + text.count("{") > limit and is_deeper(value, limit)


def parse(text: str | bytes, **options: Any) -> Any:
    """JSON as it comes in; `ValueError` where it is none, or nested too deeply."""
    try:
        value = json.loads(text, **options)
    except RecursionError:
        raise ValueError(f"is nested more than {DEEPEST} levels deep") from None
    shown = text if isinstance(text, str) else text.decode("latin-1")
    if is_deep(value, shown):
        raise ValueError(f"is nested more than {DEEPEST} levels deep")
    return value
