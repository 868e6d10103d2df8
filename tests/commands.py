"""The `orchestrator` command as its users call it, without the second that importing it takes: processes forked from one that has done so.

Each command is a process of its own, with its own environment, folder, arguments and streams. What runs for long, and what asks how a
process begins, starts the console script instead.
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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LONGEST_REQUEST = 1_000_000
SEARCHED = [place for place in sys.path[1:] if place not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]


def run(
    arguments: Sequence[str], env: Mapping[str, str], cwd: Path | str | None = None, input: str | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with captured text."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write((input or "").encode())
        given.seek(0)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                request = {"arguments": list(arguments), "environment": dict(env), "folder": str(cwd or Path.cwd())}
                _ask(json.dumps(request).encode(), [given.fileno(), out.fileno(), err.fileno(), theirs.fileno()])
            code = _code(ours, [*arguments], timeout)
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode())
    return subprocess.CompletedProcess(["orchestrator", *arguments], code, *said)


def _code(answers: socket.socket, arguments: list[str], timeout: float) -> int:
    answers.settimeout(timeout)
    stream = answers.makefile("rb")
    pid = int(stream.readline())
    try:
        return int(stream.readline())
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise subprocess.TimeoutExpired(arguments, timeout) from None


def _ask(request: bytes, files: list[int]) -> None:
    socket.send_fds(_server(), [request], files)


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


def serve(requests: socket.socket) -> None:
    """One request after another, until nobody is left to ask."""
    import orchestrator.cli  # noqa: F401  # what takes its time

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
    os.write(answers, f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        os.write(answers, f"{code}\n".encode())
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    code: Any = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        time.tzset()
        os.chdir(request["folder"])
        sys.argv = ["orchestrator", *request["arguments"]]
        added = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:] = [request["folder"], *filter(None, added), *SEARCHED]
        from orchestrator.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
