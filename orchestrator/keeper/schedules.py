"""Schedules whose time has come, what their runs need afterwards, their mirror in RedBeat, and those that listen to events."""

from __future__ import annotations

import time

from orchestrator.engine import scheduling
from orchestrator.keeper.chore import Chore, Desk
from orchestrator.keeper.timers import moment_of
from orchestrator.store import timers
from orchestrator.store.connection import Connection
from orchestrator.store.timers import Probe

TEND_EVERY_S = 1.0
BEATS_GRACE_S = 0.3


class Fires(Chore):
    """Beat has the first word, where there is one; what it missed is fired all the same."""

    name = "schedules"

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._next_at: float | None = None
        self._heard: Probe | None = None

    def is_wanted(self, probe: Probe) -> bool:
        if probe is not self._heard:
            self._heard = probe
            self._next_at = moment_of(probe.next_schedule, probe.now)
        return probe.has_schedules or (self._next_at is not None and self._next_at <= time.monotonic())

    def wakes_at(self) -> float | None:
        return self._next_at

    def do(self, c: Connection) -> None:
        self._next_at = None
        grace_s = self.grace_s()
        scheduling.fire_due(self.runtime, grace_s=grace_s)
        self._next_at = moment_of(*timers.next_schedule(c, grace_s))

    def grace_s(self) -> float:
        mirror = self.desk.mirror
        return BEATS_GRACE_S if mirror is not None and mirror.is_beating else 0.0


class Tended(Chore):
    """Runs that failed are tried again as their schedules say, those that take too long are stopped."""

    name = "schedule-runs"
    every_s = TEND_EVERY_S

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_fires

    def do(self, c: Connection) -> None:
        scheduling.tend(self.runtime)


class Mirrored(Chore):
    """RedBeat's entries say what Postgres says."""

    name = "beat-mirror"

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._has_moved = False

    def is_wanted(self, probe: Probe) -> bool:
        self._has_moved = probe.has_unmirrored
        return self.desk.mirror is not None

    def do(self, c: Connection) -> None:
        mirror = self.desk.mirror
        assert mirror is not None
        mirror.look(c)
        if self._has_moved:
            mirror.sync(c)


class Listeners(Chore):
    """Workflows that start when events come."""

    name = "listening-schedules"

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_triggers

    def do(self, c: Connection) -> None:
        scheduling.hear(self.runtime)
