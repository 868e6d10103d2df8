"""Event loops of async steps: one per thread, kept open, so that a step may keep its connections between calls.

Whoever interrupts a step finds its task here: a coroutine is cancelled in its loop, not torn out of it. A loop that was left in the
middle of something is thrown away with all that ran in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Running:
    """A coroutine of a step, while it runs. `has_moved`: whether its loop has turned since it was last asked to cancel."""

    loop: asyncio.AbstractEventLoop
    task: asyncio.Task[Any] | None = None
    has_moved: bool = True

    def cancel(self) -> None:
        """May be called from any thread, and from a signal handler."""
        self.has_moved = False
        self.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self.has_moved = True
        if self.task is not None and not self.task.done():
            self.task.cancel()


class _Here(threading.local):
    runner: asyncio.Runner | None = None
    running: Running | None = None


_here = _Here()
_running: dict[int, Running] = {}


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The coroutine's result, from this thread's loop."""
    runner = _here.runner
    if runner is None:
        runner = _here.runner = asyncio.Runner()
    running = _here.running = _running[threading.get_ident()] = Running(runner.get_loop())
    try:
        return runner.run(_known(running, coroutine))
    except Exception:
        raise
    except BaseException:
        # It came out of the loop, or through it: what else runs there is in no state to be gone on with.
        if not (running.task is not None and running.task.done()):
            close()
        raise
    finally:
        _here.running = None
        _running.pop(threading.get_ident(), None)


async def _known(running: Running, coroutine: Coroutine[Any, Any, Any]) -> Any:
    running.task = asyncio.current_task()
    return await coroutine


def running() -> Running | None:
    """The coroutine that this thread runs."""
    return _here.running


def running_in(thread: int) -> Running | None:
    """The coroutine that another thread runs."""
    return _running.get(thread)


def close() -> None:
    """End this thread's loop with all that is left in it."""
    runner, _here.runner = _here.runner, None
    if runner is not None:
        with contextlib.suppress(RuntimeError):
            runner.close()
