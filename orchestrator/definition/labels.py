"""Labels as people write them: `shop=north`. What is not written so is refused, never passed over."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.definition.parsing import shown
from orchestrator.errors import Fault, Invalid


def read_labels(texts: Iterable[str], what: str = "--label ") -> dict[str, str]:
    """Raises `Invalid` with everything that is no label."""
    pairs: dict[str, str] = {}
    faults = []
    for text in texts:
        key, found, value = text.partition("=")
        if not found or not key:
            faults.append(Fault("", f"Expected KEY=VALUE, got {shown(text)}.", f"Write {what}{key or 'KEY'}=VALUE."))
        elif pairs.setdefault(key, value) != value:
            faults.append(Fault("", f"The label {shown(key)} is given with two values, {shown(pairs[key])} and {shown(value)}."))
    if faults:
        raise Invalid(faults, what)
    return pairs
