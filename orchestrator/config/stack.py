"""Where a running embedded stack writes down its addresses, so that a second terminal in the same folder finds it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.config.processes import is_running

FOLDER = ".orchestrator"
STATE_FILE = "stack.json"


@dataclass(frozen=True, slots=True)
class Stack:
    """What `stack.json` says: whose it is, and the variables that lead to it."""

    pid: int
    began: str
    environment: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        return is_running(self.pid, self.began)


def state_path(home: str = "") -> Path:
    return Path(home or os.environ.get("ORCHESTRATOR_HOME") or FOLDER) / STATE_FILE


def written_stack(path: Path) -> Stack | None:
    """The stack that wrote this file, whether or not it still runs; None when there is no such file."""
    try:
        held: Any = json.loads(path.read_text())
        return Stack(int(held["pid"]), str(held["began"]), dict(held["environment"]), dict(held.get("addresses", {})))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def running_stack(home: str = "") -> dict[str, str]:
    """The variables of the stack that runs from this folder; empty when none does."""
    found = written_stack(state_path(home))
    return {name: text for name, text in found.environment.items() if isinstance(text, str)} if found and found.is_running else {}
