"""Instances that use more than they may are stopped."""

from __future__ import annotations

import time

from orchestrator.engine import limits
from orchestrator.keeper.chore import Chore, Desk
from orchestrator.store.connection import Connection

WEIGH_EVERY_S = 60.0


class Lifetimes(Chore):
    """Instances that live longer than they may end."""

    name = "lifetimes"

    def do(self, c: Connection) -> None:
        limits.end_old(self.runtime)


class Limits(Chore):
    name = "limits"
    every_s = 5.0

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._weigh_at = 0.0

    def do(self, c: Connection) -> None:
        # Weighing histories reads them: not as often as a look at processes.
        weighs = time.monotonic() >= self._weigh_at
        if weighs:
            self._weigh_at = time.monotonic() + WEIGH_EVERY_S
        limits.enforce(self.runtime, with_disk=weighs)
