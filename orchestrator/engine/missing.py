"""Code that is not here is no failure: the branch gives this worker up and waits for one that has it.

Workers sign with what code they have. Where one that lives has it, the branch is offered again after a second; else less and less
often, and at once when a worker comes that has it. With `MISSING_CODE_PATIENCE` it fails when that is over.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.definition.expressions import FUNCTIONS
from orchestrator.engine import ending, performing
from orchestrator.engine.stopped import Stopped
from orchestrator.errors import MissingCode
from orchestrator.history import Failure
from orchestrator.plan.needs import Perform
from orchestrator.steps import celery
from orchestrator.steps.registry import Registry
from orchestrator.store import branches, lacking
from orchestrator.store.connection import Connection

if TYPE_CHECKING:
    from orchestrator.engine.walk import Walk

logger = logging.getLogger("orchestrator.walk")

SOON_S = 1.0
LONGEST_PAUSE_S = 60.0


def key_of(kind: str, name: str) -> str:
    """How a piece of code is called where workers sign and branches wait: `step:ship`."""
    return f"{kind}:{name}"


def code_here(registry: Registry) -> list[str]:
    """All that this process has."""
    registry.load()
    return sorted(
        [
            *(key_of("step", type) for type in registry.executors),
            *(key_of("compensation", type) for type in registry.handlers),
            *(key_of("function", name) for name in FUNCTIONS),
            *(key_of(celery.KIND, name) for name in celery.known()),
        ]
    )


def wait_for_code(walk: Walk, error: MissingCode) -> None:
    """Park the branch until a worker that has the code takes it; fail it when patience is over."""
    held, key = walk.held, key_of(error.kind, error.name)
    walk.flush()
    since_s, has_one = walk.database.patiently(lambda c: lacking.about(c, held.id, key))
    patience_s = walk.settings.missing_code_patience_s
    if patience_s and since_s >= patience_s:
        _give_up(
            walk,
            Failure(error.code, f"{error} No worker had it for {since_s:.0f} s (MISSING_CODE_PATIENCE).", held.position, "MissingCode"),
        )
        return
    pause_s = SOON_S if has_one else min(max(2.0, since_s), LONGEST_PAUSE_S)
    if patience_s:
        pause_s = min(pause_s, max(0.1, patience_s - since_s))
    due = walk.forward.due if hasattr(walk, "forward") else None
    at = walk.now() + pause_s
    at = at if due is None else min(at, due[0])

    def park(c: Connection) -> None:
        branches.park(c, held.id, None, at)
        lacking.note(c, held.id, key, since_s)

    walk.transact(park)
    # Said once for each time that a branch begins to wait, not for each look.
    say = logger.warning if since_s == 0 else logger.debug
    say("waiting for a worker that has %s %s", error.kind, error.name, extra=walk.labels())
    raise Stopped


def _give_up(walk: Walk, failure: Failure) -> None:
    if not hasattr(walk, "forward"):
        walk.end_broken(failure)
    need = walk.forward.need
    if isinstance(need, Perform):
        performing.record_failure(walk, need, replace(failure, position=need.position))
    else:
        ending.end_failed(walk, failure)
