"""The terminal of `orchestrator up`: what every process says, line by line, behind its name. A terminal that was closed is no fault."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import IO

COLOURS = {"web": 36, "worker": 32, "beat": 35, "flower": 33, "bridge": 96, "gateway": 95, "up": 34}


class Terminal:
    def __init__(self, echo: Callable[[str], None] = print) -> None:
        self._echo = echo
        self._coloured = sys.stdout.isatty()
        self._printing = threading.Lock()

    def say(self, text: str, name: str = "up") -> None:
        prefix = f"{name:<7}| "
        if self._coloured:
            prefix = f"\033[{COLOURS.get(name, 37)}m{prefix}\033[0m"
        # Nobody may be there any more to read it.
        with self._printing, contextlib.suppress(OSError, ValueError):
            self._echo(prefix + text)

    def pump(self, stream: IO[str], name: str, note: Callable[[str], None]) -> None:
        """What a process writes, until it ends; `note` gets each line, too."""

        def run() -> None:
            for line in stream:
                if line.strip():
                    note(line.rstrip())
                    self.say(line.rstrip(), name)

        threading.Thread(target=run, name=f"output of {name}", daemon=True).start()
