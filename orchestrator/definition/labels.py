"""Labels as people write them: `shop=north`. What is not written so is refused, never passed over."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import StrictBool, StrictFloat, StrictInt

from orchestrator.definition.parsing import Model, Name, shown
from orchestrator.errors import Fault, Invalid

Label = str | StrictBool | StrictInt | StrictFloat | None


class Labelled(Model):
    """Whatever has labels."""

    labels: dict[Name, Label] | None = None


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
