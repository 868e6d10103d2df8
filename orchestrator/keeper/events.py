"""Events that are held, at work, or gathered in windows."""

from __future__ import annotations

from orchestrator.engine import effects, limits
from orchestrator.keeper.chore import Chore
from orchestrator.store import resources
from orchestrator.store.connection import Connection
from orchestrator.store.timers import Probe


class Held(Chore):
    name = "held-events"

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_held

    def do(self, c: Connection) -> None:
        effects.work_off(self.runtime)


class Settled(Chore):
    """Events that count as handled when what they began has ended."""

    name = "events-at-work"

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_working

    def do(self, c: Connection) -> None:
        limits.end_overdue(self.runtime)
        effects.settle(self.runtime)


class Abandoned(Chore):
    """Resources whose workflow ended before it began."""

    name = "abandoned-resources"
    every_s = 1.0

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_pending

    def do(self, c: Connection) -> None:
        resources.end_abandoned(c)


class Windows(Chore):
    name = "event-windows"

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_windows

    def do(self, c: Connection) -> None:
        effects.fire_windows(self.runtime)
