"""What a branch hands over at its end, and what a join makes of it. Pure.

Branches share what flows into their fan-out. Where outputs are merged, a branch hands over only what it added or
changed: what it merely passed on must not cover what another branch wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from orchestrator.definition.tree import AnyTask, For, Fork, Graph
from orchestrator.history import Failure
from orchestrator.ids import Position
from orchestrator.plan.needs import Join


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


class Closed(Protocol):
    """A branch at its end."""

    @property
    def position(self) -> Position: ...
    @property
    def outcome(self) -> str | None: ...
    @property
    def output(self) -> Any: ...
    @property
    def error(self) -> Any: ...
    @property
    def context(self) -> Any: ...


def joined(need: Join, children: Sequence[Closed]) -> dict[str, Any]:
    """What the branches came to, as the one fact that their join records."""
    ended = next((child for child in children if child.outcome == "ended"), None)
    if ended is not None:
        return {"ended": ended.output}
    completed = [child for child in children if child.outcome == "completed"]
    if need.mode == "compete" and completed:
        won = {"outputs": completed[0].output, "winner": completed[0].position}
        return won if completed[0].context is None else {**won, "context": completed[0].context}
    is_enough = need.mode == "some" and len(completed) >= need.least
    failed = next((child for child in children if child.outcome == "failed"), None)
    if failed is not None and not is_enough:
        return {"error": failed.error}
    if len(completed) < len(children) and need.mode != "graph" and not is_enough:
        return {"error": Failure("cancelled", "a branch was stopped before its end", need.position, "Cancelled").to_json()}
    fact: dict[str, Any] = {"outputs": [child.output for child in completed]}
    contexts = [child.context for child in completed if isinstance(child.context, dict)]
    if contexts:
        fact["context"] = {key: value for context in contexts for key, value in context.items()}
    return fact
