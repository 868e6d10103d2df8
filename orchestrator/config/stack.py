"""Where a running embedded stack writes down its addresses, so that a second terminal in the same folder finds it."""

from __future__ import annotations

import json
import os
from pathlib import Path

FOLDER = ".orchestrator"
STATE_FILE = "stack.json"


def state_path() -> Path:
    return Path(os.environ.get("ORCHESTRATOR_HOME") or FOLDER) / STATE_FILE


def running_stack() -> dict[str, str]:
    """The variables of the stack that runs from this folder; empty when none does."""
    try:
        held = json.loads(state_path().read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(held, dict) or not _alive(held.get("pid")):
        return {}
    return {str(key): str(value) for key, value in held.get("environment", {}).items()}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
