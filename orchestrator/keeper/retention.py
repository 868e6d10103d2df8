"""What is old goes: histories, events, fires, the audit, moves of resources; and histories get room ahead."""

from __future__ import annotations

import logging
import time

from orchestrator.engine.runner import WorkflowRunner
from orchestrator.keeper.chore import Chore, Desk
from orchestrator.store import events, partitions, resources, schedules, security
from orchestrator.store.connection import Connection

logger = logging.getLogger("orchestrator.keeper")

FIRES_KEPT_S = 90 * 86400.0


class Aging(Chore):
    """Every five minutes, and not at once: who takes the post may be one of many that come and go."""

    every_s = 300.0

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._next = time.monotonic() + self.every_s


class Histories(Aging):
    name = "retention-of-histories"

    def do(self, c: Connection) -> None:
        WorkflowRunner(self.runtime).cleanup()


class Events(Aging):
    name = "retention-of-events"

    def do(self, c: Connection) -> None:
        while events.forget(c, self.settings.event_retention_s, 1000) == 1000:
            pass


class Fires(Aging):
    name = "retention-of-fires"

    def do(self, c: Connection) -> None:
        while schedules.forget(c, self.settings.retention_s or FIRES_KEPT_S) == 10_000:
            pass


class Audit(Aging):
    name = "retention-of-audit"

    def do(self, c: Connection) -> None:
        while self.settings.audit_retention_s and security.let_go(c, self.settings.audit_retention_s):
            pass


class Resources(Aging):
    name = "retention-of-resources"

    def do(self, c: Connection) -> None:
        while resources.forget(c, self.settings.retention_s) == 10_000:
            pass


class Partitions(Aging):
    """Without room ahead no history could be written: this one waits for nobody."""

    name = "partitions"

    def do(self, c: Connection) -> None:
        for name in (*partitions.make_ahead(c), *partitions.drop_spent(c)):
            logger.info("partition %s was made or dropped", name)
