"""What a stack writes down in its folder, and who may: one supervisor at a time, by a lock.

lock             held as long as the stack, or the guard that ends it, is there
processes.json   what was started: numbers, moments, kinds
stack.json       the addresses, for the command line and other programs in this folder
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from orchestrator.config.processes import began
from orchestrator.config.stack import STATE_FILE, Stack, written_stack
from orchestrator.dev.ending import Process, end, from_json
from orchestrator.dev.privileges import DESCRIPTORS
from orchestrator.errors import WorldError

LEAST_FREE = 200 * 1024 * 1024
STOPPING_S = 30.0
GUARD = "guard"


class FolderError(WorldError):
    """Why the folder of a stack cannot be used, in a sentence."""

    code = "folder"


class Home:
    """The folder of a stack: `.orchestrator`, or what ORCHESTRATOR_HOME says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.stack_file = self.folder / STATE_FILE
        self.processes_file = self.folder / "processes.json"
        self._lock: IO[str] | None = None

    @property
    def stack(self) -> Stack | None:
        return written_stack(self.stack_file)

    @property
    def is_locked_here(self) -> bool:
        return self._lock is not None

    @property
    def lock_descriptor(self) -> int:
        assert self._lock is not None
        return self._lock.fileno()

    # ── the lock ────────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, say: Callable[[str], None]) -> None:
        """Make this folder ours. A stack that runs is left alone; one that is just being stopped is waited for."""
        with self._said():
            self.folder.mkdir(mode=0o700 if os.geteuid() or DESCRIPTORS.exists() else 0o711, parents=True, exist_ok=True)
            file = (self.folder / "lock").open("a")
        try:
            self._wait_for(file, say)
            self._check_room()
        except BaseException:
            file.close()
            raise
        self._lock = file

    def _wait_for(self, file: IO[str], say: Callable[[str], None]) -> None:
        deadline, told = time.monotonic() + STOPPING_S, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held = self.stack
                if held is None or held.is_running:
                    raise FolderError(self._taken(held)) from None
                if time.monotonic() > deadline:
                    self._end_guard()
                    deadline = time.monotonic() + STOPPING_S
            except OSError as error:
                raise FolderError(f"{self.folder} cannot be locked: {error.strerror or error}.") from None
            else:
                return
            if not told:
                say("the stack that ran here is being stopped; waiting for it")
                told = True
            time.sleep(0.1)  # a lock tells nobody when it is free, but those who wait for ever

    def _end_guard(self) -> None:
        """One that does not come to its end holds the lock; what it was to do is done by whoever waits for it."""
        for one in self.processes():
            if one.name == GUARD:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(one.pid, signal.SIGKILL)
                return
        raise FolderError(self._taken(None))

    def _taken(self, held: Stack | None) -> str:
        who = f" (process {held.pid})" if held is not None and held.is_running else ""
        return (
            f'A stack already runs from {self.folder}{who}. Stop it with "orchestrator down", or set ORCHESTRATOR_HOME to another folder for'
            " a second one."
        )

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_FREE:
            raise FolderError(
                f"Only {free // 1024 // 1024} MiB are free where {self.folder} lies, and PostgreSQL needs {LEAST_FREE // 1024 // 1024}: make"
                " room, or set ORCHESTRATOR_HOME to a folder on another disk."
            )

    @contextlib.contextmanager
    def _said(self) -> Any:
        try:
            yield
        except OSError as error:
            raise FolderError(f"The data folder {self.folder} cannot be used: {error.strerror or error}{self._owner()}.") from None

    def _owner(self) -> str:
        # `os.path.exists`: what may not even be looked at counts as absent, and its parent is what is in the way.
        place = next(one for one in (self.folder, *self.folder.parents) if os.path.exists(one))  # noqa: PTH110
        if os.access(place, os.W_OK):
            return ""
        uid = place.stat().st_uid
        with contextlib.suppress(KeyError):
            return f" ({place} belongs to {pwd.getpwuid(uid).pw_name}; this is {pwd.getpwuid(os.geteuid()).pw_name})"
        return f" ({place} belongs to user {uid}; this is user {os.geteuid()})"

    # ── what is written ─────────────────────────────────────────────────────────────────────────────────────────────

    def write_stack(self, environment: Mapping[str, str]) -> None:
        pid = os.getpid()
        self._write(self.stack_file, {"pid": pid, "began": began(pid), "environment": dict(environment)})

    def write_processes(self, processes: Sequence[Process]) -> None:
        self._write(self.processes_file, [one.to_json() for one in processes])

    def _write(self, path: Path, data: Any) -> None:
        """Whole or not at all, and for its owner's eyes: there are passwords in it."""
        with self._said():
            fresh = path.with_name(f"{path.name}.new")
            fresh.unlink(missing_ok=True)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123  # with its mode
                json.dump(data, file)
            fresh.replace(path)

    def processes(self) -> list[Process]:
        """What was started from here, as far as it still runs."""
        try:
            held = [from_json(one) for one in json.loads(self.processes_file.read_text())]
        except (OSError, ValueError, TypeError, KeyError):
            return []
        return [one for one in held if one.is_running]

    @property
    def files(self) -> list[Path]:
        return [self.stack_file, self.processes_file]

    def forget(self) -> None:
        """There is no stack here any more."""
        for file in self.files:
            file.unlink(missing_ok=True)

    def end_left_behind(self, say: Callable[[str], None]) -> int:
        """End what an earlier run started and did not stop; gives how many processes that were. Only under the lock."""
        found = self.processes()
        if found:
            say(f"ending {len(found)} processes that an earlier run left behind: {', '.join(sorted({one.name for one in found}))}")
            end(found)
        self.forget()
        return len(found)
