"""Timers that are due: their branches are queued and published. One that is known fires to the millisecond."""

from __future__ import annotations

import time

from orchestrator.engine import deadlines
from orchestrator.keeper.chore import BATCH, Chore, Desk
from orchestrator.store import timers
from orchestrator.store.connection import Connection
from orchestrator.store.timers import Probe
from orchestrator.telemetry import metrics


class Timers(Chore):
    name = "timers"

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._next_at: float | None = None
        self._heard: Probe | None = None

    def is_wanted(self, probe: Probe) -> bool:
        if probe is not self._heard:
            self._heard = probe
            self._next_at = moment_of(probe.next_timer, probe.now)
        return self._next_at is not None and self._next_at <= time.monotonic()

    def wakes_at(self) -> float | None:
        return self._next_at

    def do(self, c: Connection) -> None:
        self._next_at = None
        while True:
            fired = timers.fire(c, BATCH)
            for timer in fired:
                metrics.timer_fired(timer.lateness_s)
                if timer.kind != timers.UNBEGUN:
                    self.runtime.publisher.branches([timer.published])
            deadlines.came(self.runtime, fired)
            if len(fired) < BATCH:
                break
        self._next_at = moment_of(*timers.next_due(c))


def moment_of(at: float | None, now: float) -> float | None:
    """A moment of the database's clock on this process's monotonic one."""
    return None if at is None else time.monotonic() + max(0.0, at - now)
