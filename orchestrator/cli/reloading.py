"""A process that has everything loaded but the project's own code: on SIGHUP it forks a child that loads that anew, in a fraction of the
time of a new start. For `orchestrator up --dev`: `python -m orchestrator.cli.reloading worker …`, or `bridge`.

The child before is asked to end (SIGTERM) and finishes what it is at with the code it began with. A worker's successor begins beside it
at once; a bridge's waits a moment for its place in the consumer group.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

MODULES = {
    "worker": (
        "celery.apps.worker",
        "celery.backends.redis",
        "celery.bin.celery",
        "celery.concurrency.asynpool",
        "celery.concurrency.prefork",
        "celery.worker.consumer",
        "kombu.transport.redis",
    ),
    "bridge": ("orchestrator.cli", "orchestrator.stream.bridge"),
}
DRAINS_S = {"worker": 0.0, "bridge": 1.0}
PAUSE_S = 0.02


def worker(arguments: list[str]) -> None:
    from celery.__main__ import main

    sys.argv[:] = ["celery", "-q", "-A", "orchestrator.app", "worker", *arguments]
    main()


def bridge(arguments: list[str]) -> None:
    from orchestrator.cli import main

    sys.argv[:] = ["orchestrator", "bridge", *arguments]
    main()


def load_for(role: str) -> Callable[[list[str]], None]:
    """Import what the role needs besides the project's own code."""
    from orchestrator.app import app
    from orchestrator.steps.registry import REGISTRY

    for name in MODULES[role]:
        importlib.import_module(name)
    REGISTRY.load()
    app.finalize()
    return {"worker": worker, "bridge": bridge}[role]


class Reloading:
    def __init__(self, act: Callable[[list[str]], None], arguments: list[str], drains_s: float) -> None:
        self.act, self.arguments, self.drains_s = act, arguments, drains_s
        self.child = 0
        self.draining: list[int] = []
        self.shall_reload = self.shall_end = False

    def run(self) -> int:
        signal.signal(signal.SIGHUP, self._told)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        self.child = self._fork()
        while True:
            self.draining = [pid for pid in self.draining if _ended(pid) is None]
            code = _ended(self.child)
            if self.shall_end:
                return self._end(code)
            if code is not None:
                return code
            if self.shall_reload:
                self.shall_reload = False
                self._renew()
            time.sleep(PAUSE_S)  # children and signals are looked for in turn

    def _told(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.shall_reload = True
        else:
            self.shall_end = True

    def _renew(self) -> None:
        os.kill(self.child, signal.SIGTERM)
        deadline = time.monotonic() + self.drains_s
        while (code := _ended(self.child)) is None and time.monotonic() < deadline and not self.shall_end:
            time.sleep(PAUSE_S)
        if code is None:
            self.draining.append(self.child)
        self.child = self._fork()

    def _end(self, code: int | None) -> int:
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, signal.SIGTERM)
        while code is None:
            time.sleep(PAUSE_S)
            code = _ended(self.child)
        return code

    def _fork(self) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        # It ends as any program does, by way of the handlers that were registered for that.
        self.act(self.arguments)
        sys.exit(0)


def _ended(pid: int) -> int | None:
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if found else None


def main() -> None:
    role, *arguments = sys.argv[1:]
    sys.exit(Reloading(load_for(role), arguments, DRAINS_S[role]).run())


if __name__ == "__main__":
    main()
