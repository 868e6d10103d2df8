"""Breaking into a step that runs: at its deadline, or because its branch is held here no longer.

Works in a process's main thread (Celery's prefork children, solo). Elsewhere a step runs on, and what it gives late is discarded.

What is delivered is no `Exception`, so that a step which catches every exception does not take its end for a failure to be survived.
One that swallows it all the same is interrupted again at once; one that cleans up (a `finally`, a `with`, an `except` that is not
left yet) has `grace_s` for it. A coroutine is cancelled in its loop, and interrupted where it does not yield. Nothing is delivered to
any frame but those that the step called, so that no statement of the protocol is ever cut in two, and `run` gives a value or raises
an error of our own: an interruption never leaves it.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Literal, TypeVar, cast

from orchestrator.errors import Cancelled, StepTimeout, Terminal
from orchestrator.steps import loops

T = TypeVar("T")
Why = Literal["", "timeout", "cancelled"]

CANCEL_SIGNAL = signal.SIGUSR2
AGAIN_S = 0.25
GRACE_S = 5.0


class Interrupted(BaseException):
    """Delivered into a step; never seen outside of `run`."""


class StepExit(Terminal):
    """A step tried to end its process, or raised what is no `Exception`."""

    code = "runtime"


@dataclass(slots=True)
class Guard:
    """A step that may be broken into: whose it is, until when it may run, and why and since when it shall end."""

    key: int
    due: float | None
    grace_s: float = GRACE_S
    why: Why = ""
    since: float = 0.0
    deliveries: int = 0
    last: float = 0.0


_current: list[Guard | None] = [None]
# Called when a signal comes that is for no particular step: somebody should look whether what is held here is still held.
asked: list[Callable[[], None]] = []


def can_interrupt() -> bool:
    return threading.current_thread() is threading.main_thread()


def install() -> None:
    """In a worker and in its children, once each: what the signals do."""
    if can_interrupt():
        signal.signal(signal.SIGALRM, _on_alarm)
        signal.signal(CANCEL_SIGNAL, _on_cancel)


def is_pool_child() -> bool:
    """Whether this process may be ended: its pool makes another."""
    billiard = sys.modules.get("billiard.process")
    return billiard is not None and billiard.current_process().name != "MainProcess"


def run(body: Callable[[], T], limit_s: float | None = None, *, key: int = 0, grace_s: float = GRACE_S) -> T:
    """What `body` gives. Raises `StepTimeout` when `limit_s` has passed, whatever the body did with that, and `Cancelled` when it
    ended because `cancel(key)` was called."""
    began = time.monotonic()
    guard = Guard(key, None if limit_s is None else began + limit_s, grace_s)
    outer, left = _current[0], (0.0, 0.0)
    is_guarded = can_interrupt()
    value: T | None = None
    error: BaseException | None = None
    if is_guarded:
        _current[0] = guard
    try:
        if is_guarded and limit_s is not None:
            if signal.getsignal(signal.SIGALRM) is not _on_alarm:
                signal.signal(signal.SIGALRM, _on_alarm)
            left = signal.setitimer(signal.ITIMER_REAL, max(limit_s, 0.001), AGAIN_S)
        value = body()
    except BaseException as raised:  # noqa: BLE001  # told apart below
        error = raised
    finally:
        if is_guarded:
            if guard.due is not None or guard.why:
                signal.setitimer(signal.ITIMER_REAL, *(left if outer is not None else (0.0, 0.0)))
            _current[0] = outer
    return cast("T", judged(guard, time.monotonic() - began, value, error))


def judged(guard: Guard, took_s: float, value: T, error: BaseException | None) -> T:
    """The value, or an error of our own: what was delivered is seen by nobody else."""
    if guard.due is not None and (guard.why == "timeout" or (error is None and time.monotonic() > guard.due)):
        limit_s = guard.due - (time.monotonic() - took_s)
        if error is None and not guard.deliveries:
            raise StepTimeout(f"the step took {took_s:.1f} s, its timeout is {limit_s:.3g} s; its late result is discarded")
        raise StepTimeout(f"step timeout: no result within {limit_s:.3g} s") from _cause(error)
    if error is None:
        return value
    if guard.why == "cancelled":
        raise Cancelled("the instance was cancelled while this step ran") from None
    if isinstance(error, Exception):
        raise error
    if (isinstance(error, KeyboardInterrupt) and _heeds_the_terminal()) or _is_terminating():
        raise error
    raise StepExit(_said(error)) from None


def _cause(error: BaseException | None) -> BaseException | None:
    return error if isinstance(error, Exception) else None


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the step called sys.exit({error.code!r}); raise an error to fail, or return to complete"
    return f"the step raised {type(error).__name__}, which is no Exception: {error}"


def _heeds_the_terminal() -> bool:
    """Whether Ctrl-C raises in this process. A pool process ignores it: there a `KeyboardInterrupt` is the step's own doing."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _is_terminating() -> bool:
    """Whether this pool process was told to end: then `SystemExit` is its own, and what it held is for others to go on with."""
    billiard = sys.modules.get("billiard.common")
    return billiard is not None and bool(billiard.terminate_handler_fired())


_OWN = {run.__code__}


def cancel(key: int) -> bool:
    """Break into the step of this branch, if this process's main thread runs it. From any thread."""
    guard = _current[0]
    if guard is None or guard.key != key or guard.why or signal.getsignal(CANCEL_SIGNAL) is not _on_cancel:
        return False
    guard.why, guard.since = "cancelled", time.monotonic()
    signal.pthread_kill(threading.main_thread().ident or 0, CANCEL_SIGNAL)
    return True


def deaf() -> Guard | None:
    """A step that was interrupted, has had its grace and again as long, and runs on."""
    guard = _current[0]
    if guard is not None and guard.due is not None and not guard.why and time.monotonic() > guard.due + 2 * guard.grace_s:
        # It is in a call that returns to no interpreter, so the alarm was never seen.
        guard.why, guard.since = "timeout", guard.due
    return guard if guard is not None and guard.why and time.monotonic() > guard.since + 2 * guard.grace_s else None


def _on_alarm(number: int, frame: FrameType | None) -> None:
    guard = _current[0]
    if guard is None:
        return
    now = time.monotonic()
    if not guard.why:
        if guard.due is None or now < guard.due - 0.001:
            return
        guard.why, guard.since = "timeout", now
    _deliver(guard, now, frame)


def _on_cancel(number: int, frame: FrameType | None) -> None:
    guard = _current[0]
    if guard is None or not guard.why:
        for look in asked:
            look()
        return
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S, AGAIN_S)
    _deliver(guard, time.monotonic(), frame)


def _deliver(guard: Guard, now: float, frame: FrameType | None) -> None:
    if frame is None or frame.f_code in _OWN:
        return  # the step has not begun, or is over; where it has not begun, the next tick finds it
    if guard.deliveries and now - guard.last < guard.grace_s and _cleans_up():
        return
    coroutine = loops.running()
    if coroutine is not None and coroutine.task is not None:
        if not guard.deliveries or (coroutine.has_moved and now - guard.last >= guard.grace_s):
            guard.deliveries, guard.last = guard.deliveries + 1, now
            coroutine.cancel()
            return
        if coroutine.has_moved:
            return
        # It was asked a tick ago, and its loop has not turned since: it is in a call that does not yield.
    guard.deliveries, guard.last = guard.deliveries + 1, now
    raise Interrupted(guard.why)


def _cleans_up() -> bool:
    """Whether what was delivered is still on its way: the step is in a `finally`, an `except` or an `__exit__`."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Interrupted):
            return True
        error = error.__context__
    return False
