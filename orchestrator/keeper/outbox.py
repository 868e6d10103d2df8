"""The outbox: what is true leaves Postgres for whoever listens."""

from __future__ import annotations

from orchestrator.keeper.chore import BATCH, Chore
from orchestrator.store.connection import Connection
from orchestrator.store.timers import Probe


class PutAside(Chore):
    """What could not be told is tried again: by now the code may know it, or the key that was in its way is gone."""

    name = "outbox-put-aside"
    every_s = 60.0

    def do(self, c: Connection) -> None:
        if self.desk.relay is not None:
            self.desk.relay.take_up(c)


class Outbox(Chore):
    name = "outbox"

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_outbox and self.desk.relay is not None

    def do(self, c: Connection) -> None:
        assert self.desk.relay is not None
        while self.desk.relay.drain(c) == BATCH:
            pass
