"""What configurations ask to be alerted about, and what of the engine itself is at fault."""

from __future__ import annotations

from orchestrator.engine import alerting
from orchestrator.keeper.chore import Chore
from orchestrator.store.connection import Connection


class Alerts(Chore):
    name = "alerts"
    every_s = 5.0

    def do(self, c: Connection) -> None:
        alerting.look(self.runtime)
