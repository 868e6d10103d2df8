"""A lane: one thread that does a few chores in turn, so that what takes long in one lane holds up no other."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence

from orchestrator.engine import warden
from orchestrator.keeper.barrier import Barrier
from orchestrator.keeper.chore import Chore
from orchestrator.store.connection import Connection, Database, is_away
from orchestrator.store.timers import Probe
from orchestrator.telemetry import metrics

logger = logging.getLogger("orchestrator.keeper")

# What is locked for longer by somebody else is tried again later; what takes longer is stopped and is that chore's failure.
LIMITS = "set lock_timeout = '5s'; set statement_timeout = '60s'"
LONGEST_PAUSE_S = 2.0
# Moments may be thousands of years ahead: a thread cannot wait for these.
LONGEST_WAIT_S = 3600.0
# What one definition makes its conditions take, others wait for.
LONGEST_EXPRESSION_S = 0.8


class Lane(threading.Thread):
    """Its chores are looked at whenever the office hands in what its probe saw."""

    def __init__(self, name: str, chores: Sequence[Chore], database: Database) -> None:
        super().__init__(name=f"keeper-{name}", daemon=True)
        self.lane = name
        self.chores = chores
        self.barriers = {chore.name: Barrier(chore.name) for chore in chores}
        self.doing: tuple[str, float] | None = None
        self._database = database
        self._limited: Connection | None = None
        self._probe: Probe | None = None
        self._seen: Probe | None = None
        self._turn = threading.Condition()
        self._is_ending = False

    def hand_in(self, probe: Probe) -> None:
        with self._turn:
            self._probe = probe
            self._turn.notify()

    def end(self) -> None:
        with self._turn:
            self._is_ending = True
            self._turn.notify()

    def run(self) -> None:
        warden.hurry(LONGEST_EXPRESSION_S)
        pause_s = 0.1
        while not self._is_ending:
            try:
                if (probe := self._next_probe()) is not None:
                    self._work(probe)
                pause_s = 0.1
            except Exception as error:
                if is_away(error):
                    logger.warning("PostgreSQL does not answer; lane %s retries: %s", self.lane, str(error).split("\n", 1)[0])
                else:
                    logger.exception("lane %s failed, retrying", self.lane)
                self._database.drop()
                # Spread, so that lanes do not come back in step.
                time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311  # nosec B311 # a pause, no secret
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            finally:
                self.doing = None
        self._database.drop()

    def _next_probe(self) -> Probe | None:
        """A fresh probe, or the last one again when the moment has come that a chore waits for."""
        with self._turn:
            while self._probe is None and not self._is_ending:
                moments = [at for chore in self.chores if self.barriers[chore.name].is_open() and (at := chore.wakes_at()) is not None]
                pause_s = min(moments) - time.monotonic() if moments and self._seen is not None else LONGEST_WAIT_S
                if pause_s <= 0:
                    return self._seen
                self._turn.wait(min(pause_s, LONGEST_WAIT_S))
            self._seen, self._probe = self._probe or self._seen, None
            return None if self._is_ending else self._seen

    def _work(self, probe: Probe) -> None:
        for chore in self.chores:
            barrier = self.barriers[chore.name]
            if self._is_ending or not barrier.is_open() or not chore.is_due(probe):
                continue
            self.doing = (chore.name, time.monotonic())
            barrier.attempt(self._connection(), chore.do)
            self.doing = None

    def _connection(self) -> Connection:
        c = self._database.connection()
        if self._limited is not c:
            c.execute(LIMITS)
            self._limited = c
        return c

    def about(self) -> dict[str, object]:
        """The chores that fail, and what it has been at for long."""
        failing = {name: barrier.about() for name, barrier in self.barriers.items() if barrier.failures}
        doing = self.doing
        took_s = time.monotonic() - doing[1] if doing else 0.0
        return {"failing": failing, **({"doing": doing[0], "for_s": round(took_s, 1)} if doing and took_s > 1.0 else {})}


def forget_metrics(lanes: Sequence[Lane]) -> None:
    """A worker that holds a post no longer says nothing of its chores."""
    for lane in lanes:
        for name in lane.barriers:
            metrics.chore_failed(name, failing=False)
