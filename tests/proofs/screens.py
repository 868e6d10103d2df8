"""The command line on a terminal of so many columns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable

from tests.stack import Stack, until


class Screen:
    """A running command, and what it has shown."""

    def __init__(self, stack: Stack, columns: int, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = {key: value for key, value in stack.variables().items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm"}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.shown = b""
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours: int) -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while part := os.read(ours, 65536):
                self.shown += part
        os.close(ours)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown.decode(errors="replace")).replace("\r\n", "\n")

    def until(self, condition: Callable[[str], bool]) -> None:
        until(lambda: condition(self.text), 30, lambda: self.text)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def ended(self) -> str:
        self.process.wait(60)
        self._reader.join(5)
        return self.text


def screen(stack: Stack, columns: int, *arguments: str) -> str:
    return Screen(stack, columns, *arguments).ended()
