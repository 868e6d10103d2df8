"""Breaking into a step that runs: at its deadline, or because its instance was cancelled.

Works in a process's main thread (Celery's prefork children, solo). Elsewhere a step runs on, and what it gives late is
discarded. Signals are armed only around the step itself, so that no statement of the protocol is ever cut in two.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.errors import Cancelled, StepTimeout

CANCEL_SIGNAL = signal.SIGUSR2

_armed: list[bool] = [False]


def can_interrupt() -> bool:
    return threading.current_thread() is threading.main_thread()


def install() -> None:
    """In a worker's child, once: what the signals do."""
    if can_interrupt():
        signal.signal(signal.SIGALRM, _on_alarm)
        signal.signal(CANCEL_SIGNAL, _on_cancel)


def cancel_here() -> None:
    """Break into the step that this process's main thread runs, if signals were installed."""
    if signal.getsignal(CANCEL_SIGNAL) is _on_cancel:
        os.kill(os.getpid(), CANCEL_SIGNAL)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    if _armed[0]:
        _armed[0] = False
        raise StepTimeout("the step was interrupted at its deadline")


def _on_cancel(number: int, frame: FrameType | None) -> None:
    if _armed[0]:
        _armed[0] = False
        raise Cancelled("the instance was cancelled while this step ran")


@contextmanager
def armed(timeout_s: float | None) -> Iterator[None]:
    """Inside, the step may be broken into; `timeout_s` is when it is."""
    if not can_interrupt():
        yield
        return
    if timeout_s is None:
        _armed[0] = True
        try:
            yield
        finally:
            _armed[0] = False
        return
    if signal.getsignal(signal.SIGALRM) is not _on_alarm:
        signal.signal(signal.SIGALRM, _on_alarm)
    _armed[0] = True
    signal.setitimer(signal.ITIMER_REAL, max(timeout_s, 0.001))
    try:
        yield
    finally:
        _armed[0] = False
        signal.setitimer(signal.ITIMER_REAL, 0)
