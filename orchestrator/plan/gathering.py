"""What a branch hands over at its end, and what a join makes of it. Pure.

Branches share what flows into their fan-out. Where outputs are merged, a branch hands over only what it added or
changed: what it merely passed on must not cover what another branch wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.definition.tree import AnyTask, For, Fork, Graph


def handed_over(fan_out: AnyTask, output: Any, shared: Any) -> Any:
    """The output of a branch of this fan-out, as its join will see it."""
    match fan_out:
        case Fork(gather="merge", compete=False) | Graph() | For(gather="list" | "merge"):
            return changes(output, shared)
        case For(gather="input"):
            return None
    return output


def changes(output: Any, base: Any) -> Any:
    """The keys that are new or different. What is no object is handed over as it is."""
    if not isinstance(output, dict) or not isinstance(base, dict):
        return output
    return {key: value for key, value in output.items() if key not in base or (base[key] is not value and base[key] != value)}


def laid_over(under: Any, outputs: Iterable[Any]) -> Any:
    """Objects over one another, in order; what is no object is left aside."""
    base = dict(under) if isinstance(under, dict) else {}
    for output in outputs:
        if isinstance(output, dict):
            base.update(output)
    return base
