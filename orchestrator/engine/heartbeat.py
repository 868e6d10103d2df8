"""Signs of life: one thread per process renews the leases of what the process holds, and notes which step each is in.

A branch held for less than a beat costs nothing. One that turns out to be lost (cancelled, or taken back) has its step
interrupted where that is possible.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time

import psutil

from orchestrator.engine import interrupt
from orchestrator.engine.runtime import Runtime
from orchestrator.store import leases
from orchestrator.store.connection import BROKEN

logger = logging.getLogger("orchestrator.heartbeat")
_started: dict[int, threading.Thread] = {}
_lock = threading.Lock()
_processes: dict[int, psutil.Process] = {}


def ensure(runtime: Runtime) -> None:
    """Start the thread of this process, once."""
    pid = os.getpid()
    if pid in _started:
        return
    with _lock:
        if pid not in _started:
            thread = threading.Thread(target=_beat, args=(runtime,), name="heartbeat", daemon=True)
            _started[pid] = thread
            thread.start()


def _beat(runtime: Runtime) -> None:
    pause = runtime.settings.heartbeat_s
    while True:
        time.sleep(pause)
        with contextlib.suppress(*BROKEN):
            beat(runtime)


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


def beat(runtime: Runtime) -> None:
    """Renew what has been held for half a beat or longer."""
    age = time.monotonic() - runtime.settings.heartbeat_s / 2
    held = [h for h in list(runtime.holdings.values()) if h.since < age]
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
    if any(h.id not in ids and h.id in runtime.holdings for h in held):
        logger.warning("a branch held here was taken back; its step is interrupted")
        interrupt.cancel_here()
