"""Rerun from a step: a new instance that shares the old one's history up to there.

Before the step everything is kept: facts, closed branches. The step itself, and what came after it, is not.
"""

from __future__ import annotations

from typing import Any

from orchestrator.engine.reopening import has_deadline, set_timer, time_again
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import NotFound
from orchestrator.history import Fact, Kind, that_count
from orchestrator.store import facts, forks, history, outbox, timers
from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection, sized
from orchestrator.store.history import BranchRow, Told
from orchestrator.store.instances import Locked


def fork_history(
    c: Connection, runtime: Runtime, instance: Locked, new_id: str, position: str, actor: str, source: str, input: Any
) -> list[Published]:
    """Create the instance and copy what stays; gives the branches to be published."""
    told = history.of_instance(c, instance.id).whole()
    branch, seq = _cut(told, position)
    forks.copy_instance(
        c, instance, new_id, actor, source, None if input is None else sized("input", input, runtime.settings.payload_limit_bytes)
    )
    reset = _reset(told, branch)
    ancestors = _ancestors(told, branch)
    kept: dict[int, tuple[BranchRow, int | None, str]] = {}
    for row in told.branches:
        if row.position.startswith("/undo") or (row.parent_id is not None and row.parent_id not in kept):
            continue
        limit = seq - 1 if row.id == branch.id else _opened_at(told, row, ancestors) if row.id in ancestors else None
        if row.id in reset and row.id != branch.id and row.id not in ancestors:
            limit = 0
        elif (
            row.parent_id is not None
            and row.id not in ancestors
            and row.id != branch.id
            and _opened_later(told, row, branch, seq, ancestors)
        ):
            continue
        kept[row.id] = row, limit, _state_of(row, branch, reset, ancestors, limit)
    now = timers.now(c)
    stood_s = max(0.0, now - _reached_at(told, branch, seq))
    held_back = told.beyond_limits(row for row, _, state in kept.values() if state in ("queued", "joining"))
    ids: dict[int, int] = {}
    published: list[Published] = []
    for row, limit, wanted in kept.values():
        state = "blocked" if row.id in held_back else wanted
        created = forks.copy_branch(c, row.id, new_id, ids.get(row.parent_id or 0), state, [ids[before] for before in row.after or []])
        ids[row.id] = created[0]
        forks.copy_facts(c, row.id, created[0], limit)
        if state != "closed":
            _give_time(c, told, row, created[0], limit, stood_s, now)
        if state == "queued":
            published.append(created[1:])
    outbox.tell(c, "workflow.created", new_id, {"forked_from": instance.id, "from": position})
    return published


def _cut(told: Told, position: str) -> tuple[BranchRow, int]:
    """The branch in which the step stands, and the number of the first fact about it (or inside of it)."""
    found = [
        (row.at, row.branch_id, row.seq)
        for row in told.facts
        if row.fact.position == position or row.fact.position.startswith(position + "/")
    ]
    if not found:
        raise NotFound("step", position, "it has no fact in this instance's history; `orchestrator history` lists them")
    at_branch = min(found, key=lambda item: (len(told.by_id[item[1]].position), item[2]))
    return told.by_id[at_branch[1]], at_branch[2]


def _reached_at(told: Told, branch: BranchRow, seq: int) -> float:
    """When the old instance came to the step: with the fact before those about it, where its branch has one."""
    rows = told.of_branch(branch.id)
    return next((row.at for row in reversed(rows) if row.seq < seq), next(row.at for row in rows if row.seq == seq))


def _give_time(c: Connection, told: Told, row: BranchRow, new_id: int, limit: int | None, stood_s: float, now: float) -> None:
    """The new instance has the time that the old one had left when it came to the step."""
    rows = [one for one in told.of_branch(row.id) if limit is None or one.seq <= limit]
    kept = that_count((one.seq, one.fact) for one in rows)
    later = time_again(kept, rows, stood_s, now)
    if has_deadline(kept):
        facts.write(c, new_id, len(rows), [Fact(row.position, Kind.REOPENED, {"from": len(rows) + 1, **later})])
    if row.position == "":
        set_timer(c, new_id, kept, later)


def _ancestors(told: Told, branch: BranchRow) -> dict[int, str]:
    """The branches above, each with the join position through which the branch came to be."""
    found: dict[int, str] = {}
    while branch.parent_id is not None:
        found[branch.parent_id] = branch.join_position or ""
        branch = told.by_id[branch.parent_id]
    return found


def _opened_at(told: Told, row: BranchRow, ancestors: dict[int, str]) -> int:
    return next(f.seq for f in told.of_branch(row.id) if f.fact.kind == Kind.OPENED and f.fact.position == ancestors[row.id])


def _opened_later(told: Told, row: BranchRow, branch: BranchRow, seq: int, ancestors: dict[int, str]) -> bool:
    """Does this branch belong to a fan-out that the new history does not hold?"""
    assert row.parent_id is not None
    opened = next((f.seq for f in told.of_branch(row.parent_id) if f.fact.kind == Kind.OPENED and f.fact.position == row.join_position), 0)
    if row.parent_id == branch.id:
        return opened >= seq
    if row.parent_id in ancestors:
        return opened > _opened_at(told, told.by_id[row.parent_id], ancestors)
    return False


def _reset(told: Told, branch: BranchRow) -> set[int]:
    """In a graph: what depended on this branch, directly or not, is done anew, too."""
    reset = {branch.id}
    for row in told.branches:
        if any(before in reset for before in row.after or []):
            reset.add(row.id)
    return reset


def _state_of(row: BranchRow, branch: BranchRow, reset: set[int], ancestors: dict[int, str], limit: int | None) -> str:
    if row.id == branch.id:
        return "queued"
    if row.id in ancestors:
        return "joining"
    if row.id in reset:
        return "blocked"
    return "closed" if row.outcome in ("completed", "ended") else "queued" if limit is None else "closed"
