"""Deadlines that come: what is at work past one is interrupted, and a branch that no worker takes is seen to all the same.

The keeper fires the timers and publishes their branches, as it does with every timer. A pool whose processes are all busy takes none
of them, and a deadline must hold then, too: threads of the keeper's own process take the branch, record that its time is over, end it
where that is its end, and hand it back where something follows. They run no step. An instance that has not begun they end as a whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Sequence

from orchestrator.engine import lifecycle, tasks
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import IllegalMove, NotFound
from orchestrator.state import State
from orchestrator.store import workers
from orchestrator.store.timers import UNBEGUN, Fired

logger = logging.getLogger("orchestrator.deadlines")

# Folding a history may take its time, and an expression in it more.
THREADS = 3
TOO_LATE = "workflow timeout: its time was over before a process was free for it"


class Attendants:
    """The threads of one process, started when first needed."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Runtime, Fired]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pid = 0

    def see_to(self, runtime: Runtime, fired: Sequence[Fired]) -> None:
        with self._lock:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._waiting = queue.SimpleQueue()
                for number in range(THREADS):
                    threading.Thread(target=self._attend, args=(self._waiting,), name=f"deadlines-{number}", daemon=True).start()
        for one in fired:
            self._waiting.put((runtime, one))

    def _attend(self, waiting: queue.SimpleQueue[tuple[Runtime, Fired]]) -> None:
        while True:
            runtime, fired = waiting.get()
            instance_id, position, generation, _ = fired.published
            try:
                if fired.kind == UNBEGUN:
                    _end_unbegun(runtime, instance_id)
                else:
                    tasks.attend(runtime, instance_id, position, generation)
            except Exception:
                # The branch is queued: a worker will take it, and recovery sees that one does; or its timer comes again.
                logger.exception("a deadline could not be attended to", extra={"instance": instance_id, "position": position})
                runtime.database.drop()


def _end_unbegun(runtime: Runtime, instance_id: str) -> None:
    with contextlib.suppress(IllegalMove, NotFound):  # it ended, turned round or was deleted meanwhile
        lifecycle.stop(runtime, instance_id, State.FAILED, {"code": "timeout", "message": TOO_LATE}, actor="engine", source="engine")


_attendants = Attendants()


def came(runtime: Runtime, fired: Sequence[Fired]) -> None:
    """After the commit that fired them, and after their branches were published."""
    late = [one for one in fired if one.kind != "wake"]
    if not late:
        return
    owners = {one.owner for one in late if one.owner is not None}
    if owners:
        runtime.database.patiently(lambda c: workers.ask_to_interrupt(c, owners))
    _attendants.see_to(runtime, late)
