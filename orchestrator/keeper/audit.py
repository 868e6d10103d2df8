"""The audit is sealed by a chain of hashes, a stretch at a time."""

from __future__ import annotations

from orchestrator.keeper.chore import Chore
from orchestrator.store import security
from orchestrator.store.connection import Connection

AT_ONCE = 10_000


class Audit(Chore):
    name = "audit-seals"
    every_s = 30.0

    def do(self, c: Connection) -> None:
        while security.seal(c) == AT_ONCE:
            pass
