"""How a walk ends for its worker."""

from __future__ import annotations

from orchestrator.store.branches import Held


class Stopped(Exception):
    """The walk is over here: parked, handed over, halted or closed. Carries what is held next, if anything."""

    def __init__(self, next_held: Held | None = None) -> None:
        self.next_held = next_held
