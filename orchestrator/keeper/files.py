"""Files of configurations and schedules are read again when they change."""

from __future__ import annotations

from typing import Any

from orchestrator.engine.runner import WorkflowRunner
from orchestrator.keeper.chore import Chore, Desk
from orchestrator.store.connection import Connection


class Files(Chore):
    """What is still being written is faulty, and read again at its next change."""

    name = "files"
    every_s = 1.0

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._seen: tuple[Any, ...] | None = None

    def do(self, c: Connection) -> None:
        runner = WorkflowRunner(self.runtime)
        self._seen = runner.look_at_files(self._seen)
