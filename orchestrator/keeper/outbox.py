"""The outbox: what is true leaves Postgres for whoever listens."""

from __future__ import annotations

from orchestrator.keeper.chore import BATCH, Chore
from orchestrator.store.connection import Connection
from orchestrator.store.timers import Probe


class Outbox(Chore):
    name = "outbox"

    def is_wanted(self, probe: Probe) -> bool:
        return probe.has_outbox and self.desk.relay is not None

    def do(self, c: Connection) -> None:
        assert self.desk.relay is not None
        while self.desk.relay.drain(c) == BATCH:
            pass
