"""Workers that died whole: what their processes held is freed, and messages that they had taken are sent again.

A pool notices the death of its own processes. When the whole of a worker is gone, its leases run out, and branches whose messages it
had taken and not yet claimed would wait for the queue's grace. On the machine where it lived its death is plain: the process is not
there. Elsewhere it is known by its silence.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from orchestrator.engine.broker import depth
from orchestrator.engine.runtime import Runtime
from orchestrator.store import leases, workers
from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection
from orchestrator.store.workers import Signed

logger = logging.getLogger("orchestrator.deaths")

# A message that was sent is in the broker after that at the latest.
SENT_WITHIN_S = 0.5
MOST_AT_ONCE = 2000


@functools.cache
def home() -> str:
    """The machine since its last start, and the space in which numbers of processes mean something; empty where that is unknown."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    return ""


def sign_of(runtime: Runtime, concurrency: int, queues: Sequence[str], code: Sequence[str]) -> workers.Sign:
    left_out = [one.to_json() for one in runtime.left_out]
    began = psutil.Process().create_time()
    return workers.Sign(
        runtime.worker_id, runtime.settings.host_name, os.getpid(), concurrency, queues, home(), began, code=code, left_out=left_out
    )


def notice(runtime: Runtime, signed: Sequence[Signed]) -> list[Published]:
    """Free what those of the workers held that are dead; gives what is to be published again."""
    c = runtime.database.connection()
    silent_s = max(runtime.settings.lease_s, 3 * runtime.settings.heartbeat_s)
    found: list[Published] = []
    for worker in signed:
        if worker.id == runtime.worker_id:
            continue
        if is_dead(worker):
            found += _free(c, worker)
        elif worker.silent_s <= silent_s:
            continue
        logger.warning("worker is gone (%s, process %d): what it had taken is published again", worker.hostname, worker.pid)
        workers.forget(c, worker.id)
        found += _taken(c, runtime)
    return found


def depose(runtime: Runtime, role: str) -> bool:
    """Whether the process that holds a post is plainly dead: then its posts are free now, and not when they end."""
    c = runtime.database.connection()
    holder = workers.holder(c, role)
    if holder is None or holder.id == runtime.worker_id or not is_dead(holder):
        return False
    workers.end_posts(c, holder.id)
    return True


def is_dead(worker: Signed) -> bool:
    """For certain: it lived on this machine, and its process is not there, or is another's."""
    if not worker.home or worker.home != home():
        return False
    return not _lives(worker.pid, worker.began)


def _lives(pid: int, began: float | None) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and (began is None or abs(process.create_time() - began) < 1.0)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # it is there, and nobody may look at it


def _free(c: Connection, worker: Signed) -> list[Published]:
    """What its processes held; one that outlived its parent goes on with what it does, and signs for it."""
    freed: list[Published] = []
    for owner in leases.owners_of(c, f"{worker.hostname}/{worker.id}/"):
        pid = owner.rsplit("/", 1)[1]
        if pid.isdigit() and not _lives(int(pid), None):
            freed += leases.recover_owner(c, owner)
    return freed


def _taken(c: Connection, runtime: Runtime) -> list[Published]:
    """Branches without a message in the broker. Those that living workers have just taken are among them: their messages are void
    then, and nothing is done twice."""
    sent: list[Published] = []
    for queue, waiting in leases.overdue_queues(c, SENT_WITHIN_S):
        there = depth(runtime.publisher.app, queue)
        if there is not None and there < waiting:
            sent += leases.requeue_overdue(c, queue, SENT_WITHIN_S, min(waiting - there, MOST_AT_ONCE))
    return sent
