"""Programs as users call them, without the seconds that importing them takes: processes forked from one that has done so.

Each is a process of its own, with its own environment, folder, arguments and streams. What asks how a process begins, and what other
programs import, starts the console script instead.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

LONGEST_REQUEST = 1_000_000
SEARCHED = [place for place in sys.path[1:] if place not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]


def run(
    arguments: Sequence[str], env: Mapping[str, str], cwd: Path | str | None = None, input: str | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """`orchestrator` with these arguments; as `subprocess.run` with captured text."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write((input or "").encode())
        given.seek(0)
        process = Process(["orchestrator", *arguments], env, cwd, [given.fileno(), out.fileno(), err.fileno()])
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode())
    return subprocess.CompletedProcess(process.args, code, *said)


def start(command: Sequence[str], env: Mapping[str, str], log: IO[bytes], *, start_new_session: bool = False) -> Process:
    """One of `PROGRAMS` with its arguments; what it says goes to a file."""
    with Path(os.devnull).open("rb") as nothing:
        return Process(command, env, None, [nothing.fileno(), log.fileno(), log.fileno()], start_new_session)


class Process:
    """As `subprocess.Popen`. Its parent is a process between, which tells its number and its end."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], cwd: Path | str | None, streams: list[int], start_new_session: bool = False
    ) -> None:
        self.args = [*command]
        self.returncode: int | None = None
        request = {"command": self.args, "environment": dict(env), "folder": str(cwd or Path.cwd()), "session": start_new_session}
        self._answers, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_server(), [json.dumps(request).encode()], [*streams, theirs.fileno()])
        self._said = b""
        self.pid = int(self._line(None))

    def __del__(self) -> None:
        self._answers.close()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = int(self._line(timeout))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _line(self, timeout: float | None) -> bytes:
        self._answers.settimeout(timeout)
        while b"\n" not in self._said:
            try:
                more = self._answers.recv(100)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
            assert more, f"nobody knows what came of {self.args}"
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.commands", str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[1]
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours


# ── the process that is forked ──────────────────────────────────────────────────────────────────────────────────────


def _orchestrator() -> None:
    from orchestrator.cli import main

    main()


def _celery() -> None:
    from celery.__main__ import main

    main()


def _gunicorn() -> None:
    from gunicorn.app.wsgiapp import run

    run()


PROGRAMS = {"orchestrator": _orchestrator, "celery": _celery, "gunicorn": _gunicorn}


def serve(requests: socket.socket) -> None:
    """One request after another, until nobody is left to ask."""
    # What takes its time.
    import celery.apps.worker
    import celery.bin.celery
    import celery.concurrency.prefork
    import celery.worker.consumer  # noqa: F401
    import gunicorn.app.wsgiapp
    import gunicorn.workers.gthread  # noqa: F401

    import orchestrator.cli
    import orchestrator.stream.bridge

    with contextlib.suppress(ModuleNotFoundError):  # it had another place in what proofs are tried on
        import orchestrator.api  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()
    while True:
        request, files, _, _ = socket.recv_fds(requests, LONGEST_REQUEST, 4)
        if not request:
            return
        if os.fork() == 0:
            # One between: it waits, so that this one need not.
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _attend(json.loads(request), files)
        for file in files:
            os.close(file)


def _attend(request: dict[str, Any], files: list[int]) -> None:
    *streams, answers = files
    pid = os.fork()
    if pid == 0:
        os.close(answers)
        _become(request, streams)
    for stream in streams:
        os.close(stream)
    os.write(answers, f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        os.write(answers, f"{code}\n".encode())
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    code: Any = 1
    try:
        if request["session"]:
            os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for stream in {*streams} - {0, 1, 2}:
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        time.tzset()
        os.chdir(request["folder"])
        if "PYTHONUNBUFFERED" in os.environ:
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        warnings._processoptions(filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")))  # type: ignore[attr-defined]
        sys.argv = request["command"]
        added = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:] = [request["folder"], *filter(None, added), *SEARCHED]
        PROGRAMS[sys.argv[0]]()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
