"""Noticing that the database's clock was set: the keeper compares it with what it was, and with its own machine's monotonic one."""

from __future__ import annotations

import logging
import time

from orchestrator.store import clock
from orchestrator.store.connection import Connection

logger = logging.getLogger("orchestrator.clock")

# Less is what clocks differ by when nobody sets them.
TOLERANCE_S = 2.0


class Watch:
    """One keeper's. A clock that was set back is noticed by the office, too, whoever keeps it: `workers.lead`."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._last: tuple[float, float, float] | None = None

    def look(self, c: Connection, now: float, asked: float) -> None:
        """`now` is what the database said when it was asked at `asked`, by the monotonic clock. Before any lease is called expired.

        Its answer may have taken long: what passed between two of them is known within bounds, and only more or less is a clock set.
        """
        last, self._last = self._last, (now, asked, time.monotonic())
        if last is None:
            return
        passed = now - last[0]
        if (ahead := passed - (self._last[2] - last[1])) > TOLERANCE_S:
            logger.warning("the database's clock was set forth by %.0f s: leases are given anew", ahead)
            clock.set_forth(c, ahead, self.lease_s)
        elif (behind := (asked - last[2]) - passed) > TOLERANCE_S:
            self.set_back(c, behind)

    def set_back(self, c: Connection, by_s: float) -> None:
        """What the office said: see `workers.lead`."""
        if by_s <= TOLERANCE_S:
            return
        logger.warning("the database's clock was set back by %.0f s: leases, queues and schedules are brought to the new time", by_s)
        clock.set_back(c, by_s, self.lease_s)
        self._last = None
