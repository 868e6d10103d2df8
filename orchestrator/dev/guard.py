"""Beside the supervisor, in a process of its own: when the supervisor dies without having stopped the stack (`kill -9`, out of memory),
the guard does it. It is told over a pipe what runs; the pipe's end is the supervisor's death.

It is run without the package and its dependencies, and so imports only what needs neither.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from orchestrator.dev.ending import end, from_json

_ALONE = (
    "import sys, types; package = types.ModuleType('orchestrator'); package.__path__ = [sys.argv[1]];"
    " sys.modules['orchestrator'] = package; from orchestrator.dev.guard import main; main()"
)


def command(home: Path) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", _ALONE, str(Path(__file__).parents[1]), f"guard of {home}"]


def main() -> None:
    """Lines of JSON: what runs now, and the files to be removed when it no longer does; `null`: nothing is left to be done."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Whoever ends the supervisor with these is answered by the supervisor.
        signal.signal(number, signal.SIG_IGN)
    told = None
    for line in sys.stdin:
        told = json.loads(line)
    if told is None:
        return
    end([from_json(one) for one in told["processes"]])
    for file in told["files"]:
        Path(file).unlink(missing_ok=True)
    os._exit(0)
