"""Ending the processes of a stack in order: those that serve first, then the servers they need. Used by the supervisor when it stops,
by its guard when the supervisor died, and by whoever finds what an earlier run left behind.

Processes are known by their number together with the moment they began; a number alone may be another program's by now.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config.processes import began, is_running, members

SERVICE, SERVER = "service", "server"
PATIENCE_S = {SERVICE: 8.0, SERVER: 10.0}
PAUSE_S = 0.02


@dataclass(frozen=True)
class Process:
    """One that was started in a session of its own, so that its number is also its group's."""

    name: str
    pid: int
    began: str
    kind: str = SERVICE
    sign: int = signal.SIGTERM

    @property
    def is_running(self) -> bool:
        return is_running(self.pid, self.began)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def process(name: str, pid: int, kind: str = SERVICE, sign: int = signal.SIGTERM) -> Process:
    return Process(name, pid, began(pid) or "", kind, int(sign))


def from_json(data: Any) -> Process:
    return Process(str(data["name"]), int(data["pid"]), str(data["began"]), str(data["kind"]), int(data["sign"]))


def end(processes: Sequence[Process], *, hurry: Callable[[], bool] = lambda: False, reap: Callable[[], None] = lambda: None) -> list[str]:
    """Ask them to end, then make them; gives the names of those that had to be killed. `hurry`: whether patience is over."""
    killed: list[str] = []
    for kind in (SERVICE, SERVER):
        here = [one for one in processes if one.kind == kind and one.is_running]
        for one in here:
            _signal(one.pid, one.sign)
        deadline = time.monotonic() + PATIENCE_S[kind]
        while any(one.is_running for one in here) and time.monotonic() < deadline:
            # Servers are never hurried: what they hold in memory is to be on the disk.
            if kind == SERVICE and hurry():
                break
            reap()
            time.sleep(PAUSE_S)  # not all of them are this process's children, whose end would be told
        killed += [one.name for one in here if one.is_running]
        for one in here:
            _end_group(one)
        reap()
    return killed


def _signal(pid: int, sign: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, sign)


def _end_group(one: Process) -> None:
    """What is left of its family: children of its own have its group."""
    if not one.is_running and not members(one.pid):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(one.pid, signal.SIGKILL)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and one.is_running:
        time.sleep(PAUSE_S)  # killed, and about to be gone
