"""Going on after an instance stood still: what a retry by hand takes back, and the time that is left.

Deadlines are as much later as the instance stood still; those that had passed when it ended begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.history import Fact, Kind, is_failing
from orchestrator.store import branches, facts, history, timers
from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection

Kept = Sequence[tuple[int, Fact]]
"""The facts of a branch that count, with their numbers."""


def reopen(c: Connection, instance_id: str, shift: float) -> list[Published]:
    """The branches that had failed, and those around them; gives what is to be published."""
    told = history.of_instance(c, instance_id).readable()
    now = timers.now(c)
    published: list[Published] = []
    reopened: set[int] = set()
    undone = [b for b in told.branches if b.state != "closed" or b.outcome not in ("completed", "ended") or b.parent_id is None]
    held_back = told.beyond_limits(undone)
    for branch in sorted(undone, key=lambda b: -len(b.position)):
        rows = told.of_branch(branch.id)
        counted = told.counted(branch.id)
        failing = next((seq for seq, fact in reversed(counted) if is_failing(fact)), None)
        at = next((fact for seq, fact in counted if seq == failing), None)
        waits = (at is not None and at.kind == Kind.JOINED) or any(told.by_id[id].parent_id == branch.id for id in reopened)
        kept = [(seq, fact) for seq, fact in counted if failing is None or seq < failing]
        later = time_again(kept, rows, shift, now)
        if failing is not None or has_deadline(kept):
            later["from"] = len(rows) + 1 if failing is None else failing
            facts.write(c, branch.id, len(rows), [Fact(branch.position, Kind.REOPENED, later)])
        if branch.position == "":
            set_timer(c, branch.id, kept, later)
        blocked = branch.id in held_back or any(after in reopened for after in branch.after or [])
        state = "joining" if waits else "blocked" if blocked or branch.outcome == "skipped" else "queued"
        reopened.add(branch.id)
        address = branches.reopen(c, branch.id, state)
        if state == "queued":
            published.append(address)
    return published


def has_deadline(kept: Kept) -> bool:
    return any(fact.kind == Kind.DEADLINE for _, fact in kept)


def time_again(kept: Kept, rows: Sequence[history.FactRow], shift: float, now: float) -> dict[str, Any]:
    """What `branch.reopened` says of the deadlines of a branch whose instance stood still for `shift` seconds."""
    ended = now - shift
    fresh: dict[str, float] = {}
    for seq, fact in kept:
        if fact.kind == Kind.DEADLINE and fact.data["due"] <= ended:
            length = fact.data.get("seconds") or max(1.0, fact.data["due"] - rows[seq - 1].at)
            fresh[fact.position] = now + length
    return {"shift": shift, **({"dues": fresh} if fresh else {})}


def set_timer(c: Connection, branch_id: int, kept: Kept, later: dict[str, Any]) -> None:
    """That of the instance, by its root branch."""
    due = next((fact.data["due"] for _, fact in kept if fact.kind == Kind.DEADLINE and fact.position == ""), None)
    if due is None:
        timers.begin(c, branch_id)
    else:
        timers.put(c, branch_id, later.get("dues", {}).get("", due + later["shift"]) + timers.DEADLINE_GRACE_S, "deadline")
