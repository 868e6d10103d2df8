"""Steps in threads, for the engine in one process: side by side, within their time, and ended when they shall end.

A thread cannot be made to end. What runs Python is interrupted where it stands, a coroutine is cancelled in its loop, and a call that
returns to no interpreter is left to itself: its step is over for the engine when its time is, and what it gives later is discarded.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from orchestrator.engine.interrupt import Guard, Interrupted, Why, judged
from orchestrator.steps import loops

AGAIN_S = 0.25
# How long a thread waits for its next job.
KEPT_FOR_S = 5.0
# How long a step that was left to itself is still interrupted, now and then.
LEFT_FOR_S = 60.0

Body = Callable[[Callable[[Callable[[], Any], float | None], Any]], Any]
"""What a job does; it is given what runs a step within its time, as `interrupt.run` does elsewhere."""


class Job:
    """One attempt of one step in a thread. `done` is called in that thread, once, with what the body gave; never after `leave`."""

    def __init__(self, body: Body, done: Callable[[Any], None]) -> None:
        self.body = body
        self.done = done
        self.guard = Guard(0, None)
        self.is_over = False
        self.is_left = False
        self._lock = threading.RLock()
        self._thread = 0
        self._is_in = False
        self._is_out = False

    # ── in its thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def work(self) -> None:
        try:
            value = self.body(self._run)
        except BaseException as error:  # noqa: BLE001  # whatever it is, somebody waits for word of it
            value = error
        with self._lock:
            self.is_over = True
            told = not self.is_left
        if told:
            self.done(value)

    def _run(self, step: Callable[[], Any], limit_s: float | None) -> Any:
        began = time.monotonic()
        value: Any = None
        error: BaseException | None = None
        with self._lock:
            self.guard.due = None if limit_s is None else began + limit_s
            self._thread = threading.get_ident()
            self._is_in = not self.guard.why
        try:
            if self._is_in:
                value = step()
        except BaseException as raised:  # noqa: BLE001  # told apart below
            error = raised
        self._come_out()
        return judged(self.guard, time.monotonic() - began, value, error or (Interrupted() if self.guard.why and value is None else None))

    def _come_out(self) -> None:
        """From here on nothing is delivered; what was sent and did not arrive yet is called back, or met here."""
        while self._is_in or not self._is_out:
            with contextlib.suppress(Interrupted), self._lock:
                self._is_in = False
                _raise_in(self._thread, None)
                self._is_out = True

    # ── from outside ────────────────────────────────────────────────────────────────────────────────────────────────

    def interrupt(self, why: Why) -> None:
        """Once more each time it is called; a step that cleans up has its grace."""
        with self._lock:
            now = time.monotonic()
            if not self.guard.why:
                self.guard.why, self.guard.since = why, now
            if not self._is_in or self.is_over:
                return
            if self.guard.deliveries and now - self.guard.last < self.guard.grace_s and self._cleans_up():
                return
            self.guard.deliveries, self.guard.last = self.guard.deliveries + 1, now
            coroutine = loops.running_in(self._thread)
            if coroutine is not None and coroutine.task is not None and (self.guard.deliveries == 1 or coroutine.has_moved):
                coroutine.cancel()
            else:
                _raise_in(self._thread, Interrupted)

    def leave(self) -> None:
        """Its step is over, whatever it does from now on."""
        with self._lock:
            self.is_left = True

    def _cleans_up(self) -> bool:
        found = sys._current_exceptions().get(self._thread)
        error = found[1] if isinstance(found, tuple) else found
        while error is not None:
            if isinstance(error, Interrupted):
                return True
            error = error.__context__
        return False


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error))


class Jobs:
    """Threads that are kept a while for the next job; what is left to itself is watched for a while."""

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[Job]] = []
        self._left: list[Job] = []
        self._lock = threading.Lock()
        self._watch: threading.Thread | None = None

    def start(self, job: Job) -> None:
        with self._lock:
            waiting = self._idle.pop() if self._idle else None
        if waiting is None:
            waiting = SimpleQueue()
            threading.Thread(target=self._work, args=(waiting,), name="step", daemon=True).start()
        waiting.put(job)

    def leave(self, job: Job) -> None:
        job.leave()
        with self._lock:
            self._left.append(job)
            if self._watch is None or not self._watch.is_alive():
                self._watch = threading.Thread(target=self._end_left, name="left-steps", daemon=True)
                self._watch.start()

    def _work(self, waiting: SimpleQueue[Job]) -> None:
        try:
            while True:
                try:
                    job = waiting.get(timeout=KEPT_FOR_S)
                except Empty:
                    if self._goes(waiting):
                        return
                    continue
                job.work()
                if job.is_left:
                    return
                with self._lock:
                    self._idle.append(waiting)
        finally:
            loops.close()

    def _goes(self, waiting: SimpleQueue[Job]) -> bool:
        """Whether nobody has chosen this thread for a job in the meantime."""
        with self._lock:
            if waiting not in self._idle:
                return False
            self._idle.remove(waiting)
            return True

    def _end_left(self) -> None:
        while True:
            time.sleep(AGAIN_S)  # between two interruptions
            with self._lock:
                self._left = [job for job in self._left if not job.is_over and time.monotonic() - job.guard.since < LEFT_FOR_S]
                if not self._left:
                    self._watch = None
                    return
                left = list(self._left)
            for job in left:
                job.interrupt("cancelled")


JOBS = Jobs()
"""Those of this process."""
