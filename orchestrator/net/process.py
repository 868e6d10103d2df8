"""Programs of others: in a process of their own, with little time, memory and output, and none of this worker's environment.

Off unless the operator says so (RUN_SCRIPTS, RUN_SHELL, RUN_CONTAINERS): a definition that may run programs may do
whatever the worker's user may do.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config.process import settings
from orchestrator.net.problems import Problem

MOST_OUTPUT = 4 * 1024 * 1024
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    stdout: str
    stderr: str


def allowed(switch: str, what: str) -> None:
    held = settings()
    if not {"RUN_SCRIPTS": held.run_scripts, "RUN_SHELL": held.run_shell, "RUN_CONTAINERS": held.run_containers}[switch]:
        raise Problem("authorization", f"{what} are not run by this worker; set {switch}=true to allow them", title="Not enabled")


def program(name: str) -> str:
    found = shutil.which(name, path=SEARCH) or shutil.which(name)
    if found is None:
        raise Problem("configuration", f"the program '{name}' is not installed where this worker runs")
    return found


def run(
    command: Sequence[str],
    *,
    stdin: str = "",
    environment: Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    limit_memory: bool = True,
    awaited: bool = True,
) -> Ended | None:
    """Run a program to its end; None when its end is not waited for. What takes too long or says too much is killed."""
    limit_s = min(settings().run_timeout_s, timeout_s or math.inf)
    folder = tempfile.mkdtemp(prefix="orchestrator-run-")
    limits = [f"ulimit -t {int(limit_s) + 5}", "ulimit -c 0", "ulimit -f 1048576"]
    if limit_memory:
        limits.append(f"ulimit -v {settings().run_memory_mb * 1024}")
    wrapped = ["/bin/sh", "-c", f'{"; ".join(limits)}; exec "$@"', "sh", *command]
    try:
        process = subprocess.Popen(
            wrapped,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if awaited else subprocess.DEVNULL,
            stderr=subprocess.PIPE if awaited else subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": SEARCH, "HOME": folder, "LANG": "C.UTF-8", "TMPDIR": folder, **_strings(environment)},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        # Too long, not there, or with a null character in it.
        shutil.rmtree(folder, ignore_errors=True)
        raise Problem("runtime", f"the program could not be started: {error}") from None
    if not awaited:
        threading.Thread(target=_see_off, args=(process, stdin.encode(), folder), name=f"program-{process.pid}", daemon=True).start()
        return None
    try:
        stdout, stderr = _talk(process, stdin.encode(), time.monotonic() + limit_s, limit_s)
        return Ended(process.wait(), stdout, stderr)
    finally:
        _kill(process)
        shutil.rmtree(folder, ignore_errors=True)


def _see_off(process: subprocess.Popen[bytes], given: bytes, folder: str) -> None:
    """A program that nobody waits for is fed, and cleaned up after, all the same."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(given)
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _strings(environment: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(key): value if isinstance(value, str) else str(value) for key, value in (environment or {}).items() if value is not None}


def _talk(process: subprocess.Popen[bytes], given: bytes, deadline: float, limit_s: float) -> tuple[str, str]:
    """Write all of stdin and read both outputs, side by side, up to the limits."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said: dict[Any, list[bytes]] = {process.stdout: [], process.stderr: []}
    size = 0
    with selectors.DefaultSelector() as waiting:
        for pipe in said:
            waiting.register(pipe, selectors.EVENT_READ)
        if given:
            os.set_blocking(process.stdin.fileno(), False)
            waiting.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while waiting.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise Problem("timeout", f"the program did not end within {limit_s:g} s; it was killed")
            for key, _ in waiting.select(left):
                if key.fileobj is process.stdin:
                    given = _fed(process, given)
                    if not given:
                        waiting.unregister(process.stdin)
                        with contextlib.suppress(BrokenPipeError):
                            process.stdin.close()
                    continue
                part = os.read(key.fd, 65536)
                if not part:
                    waiting.unregister(key.fileobj)
                    continue
                size += len(part)
                if size > MOST_OUTPUT:
                    raise Problem("runtime", f"the program said more than {MOST_OUTPUT:,} bytes; it was killed")
                said[key.fileobj].append(part)
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise Problem("timeout", f"the program did not end within {limit_s:g} s; it was killed") from None
    stdout, stderr = (b"".join(said[pipe]).decode(errors="replace") for pipe in (process.stdout, process.stderr))
    return stdout, stderr


def _fed(process: subprocess.Popen[bytes], given: bytes) -> bytes:
    assert process.stdin is not None
    try:
        written = os.write(process.stdin.fileno(), given[:65536])
    except BrokenPipeError:
        return b""
    return given[written:]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """It and everything it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError, ValueError):
                pipe.close()


def outcome(ended: Ended | None, form: str, what: str) -> Any:
    """What a `run` task gives. A program that failed fails the task, unless its code is what was asked for."""
    if ended is None:
        return None
    if ended.code != 0 and form in ("stdout", "stderr", "none"):
        said = ended.stderr.strip()[-500:]
        raise Problem("runtime", f"{what} ended with code {ended.code}" + (f": {said}" if said else ""), title="Program failed")
    match form:
        case "stdout":
            return ended.stdout.removesuffix("\n")
        case "stderr":
            return ended.stderr.removesuffix("\n")
        case "code":
            return ended.code
        case "none":
            return None
    return {"code": ended.code, "stdout": ended.stdout.removesuffix("\n"), "stderr": ended.stderr.removesuffix("\n")}
