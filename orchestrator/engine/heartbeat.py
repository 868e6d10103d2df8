"""Signs of life: one thread per process renews the leases of what the process holds, and notes which step each is in.

A branch held for less than a beat costs nothing. One that turns out to be lost (cancelled, timed out, or taken back) has its step
interrupted where that is possible: at the next beat, or at once when the worker is told to look.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time

import psutil

from orchestrator.engine import interrupt
from orchestrator.engine.runtime import Runtime
from orchestrator.store import leases
from orchestrator.store.connection import BROKEN

logger = logging.getLogger("orchestrator.heartbeat")
LOOK_S = 1.0
_started: dict[int, threading.Thread] = {}
_asked: dict[int, queue.SimpleQueue[None]] = {}
_lock = threading.Lock()
_processes: dict[int, psutil.Process] = {}


def ensure(runtime: Runtime) -> None:
    """Start the thread of this process, once."""
    pid = os.getpid()
    if pid in _started:
        return
    with _lock:
        if pid not in _started:
            # Of this process alone: a fork may find its parent's in the middle of something.
            _asked[pid] = queue.SimpleQueue()
            interrupt.asked[:] = [_look]
            # What its parent held when it was forked is its parent's.
            runtime.holdings.clear()
            thread = threading.Thread(target=_beat, args=(runtime, _asked[pid]), name="heartbeat", daemon=True)
            _started[pid] = thread
            thread.start()


def _look() -> None:
    """Beat now. Called from a signal handler."""
    own = _asked.get(os.getpid())
    if own is not None:
        own.put(None)


def _beat(runtime: Runtime, asked: queue.SimpleQueue[None]) -> None:
    pause = runtime.settings.heartbeat_s
    due = time.monotonic() + pause
    while True:
        is_asked = True
        try:
            asked.get(timeout=max(0.0, min(due - time.monotonic(), LOOK_S)))
        except queue.Empty:
            is_asked = False
        try:
            end_deaf(runtime)
            if is_asked or time.monotonic() >= due:
                due = time.monotonic() + pause
                beat(runtime, everything=is_asked)
        except BROKEN:
            continue  # the next beat comes before a lease is over
        except Exception:
            logger.exception("heartbeat failed; the next one is in %g s", pause)


def end_deaf(runtime: Runtime) -> None:
    """A step that no interruption reaches (a call into C that never comes back, or one that swallows every end) keeps its process
    for ever: what its walk would have recorded is recorded here, and the process ends. Its worker starts another."""
    guard = interrupt.deaf()
    holding = runtime.holdings.get(guard.key) if guard is not None else None
    if guard is None or holding is None or not interrupt.is_pool_child():
        return
    logger.error(
        "step ignored its interruption for %.0f s; its process is ended", time.monotonic() - guard.since,
        extra={"instance": holding.instance_id, "position": holding.doing},
    )  # fmt: skip
    try:
        if guard.why == "timeout" and holding.time_out is not None:
            holding.time_out()
    except Exception:
        logger.exception("the timeout of a step could not be recorded")
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def _usage() -> dict[str, float]:
    """Of this process and of those it started: memory now, processor time since the beat before."""
    own = _processes.setdefault(os.getpid(), psutil.Process())
    memory, cpu = own.memory_info().rss, own.cpu_percent()
    for child in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # Kept, because processor time is counted between two looks at the same object.
            known = _processes.setdefault(child.pid, child)
            if known != child:
                known = _processes[child.pid] = child
            memory, cpu = memory + known.memory_info().rss, cpu + known.cpu_percent()
    return {"memory_mb": round(memory / 1048576, 1), "cpu_percent": round(cpu, 1)}


def beat(runtime: Runtime, *, everything: bool = False) -> None:
    """Renew what has been held for half a beat or longer, or all of it; what turns out to be lost is interrupted."""
    age = time.monotonic() - (0.0 if everything else runtime.settings.heartbeat_s / 2)
    held = [h for h in list(runtime.holdings.values()) if h.since <= age]
    if not held:
        return
    try:
        kept = leases.renew(
            runtime.database.connection(),
            runtime.owner,
            [(h.id, h.generation, h.doing) for h in held],
            runtime.settings.lease_s,
            _usage(),
        )
    except BROKEN:
        runtime.database.drop()
        raise
    ids = {branch_id for branch_id, _ in kept}
    for lost in held:
        if lost.id not in ids and runtime.holdings.get(lost.id) is lost and interrupt.cancel(lost.id):
            logger.warning("branch was taken back; its step is interrupted", extra={"instance": lost.instance_id, "position": lost.doing})
