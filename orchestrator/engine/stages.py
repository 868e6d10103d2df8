"""The way of an event through the engine, as the debug log tells it: seven stages, always in this order.

    event         a trigger of its tenant wants it, or none does
    history       the facts of the branch that it wakes are read
    definition    the tree that they are about
    replay        the facts are folded: how many, and where the branch stands after them
    update        what the event changes: a new fact
    next          the step, timer, request or end that follows
    persistence   facts and what follows from them are committed

The first is told by whoever takes the event in, the others by the worker that walks the branch; the labels say of which instance.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, get_args

logger = logging.getLogger("orchestrator.stages")

Stage = Literal["event", "history", "definition", "replay", "update", "next", "persistence"]
STAGES: tuple[str, ...] = get_args(Stage)


def are_told() -> bool:
    """Whether it is worth to put together what would be told."""
    return logger.isEnabledFor(logging.DEBUG)


def tell(labels: Mapping[str, Any], stage: Stage, message: str, *arguments: object) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug(f"stage {STAGES.index(stage) + 1} of 7, {stage}: {message}", *arguments, extra=dict(labels))
