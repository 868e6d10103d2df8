"""Branches: claimed, held, parked, given up. Every statement here is fenced by owner and generation.

Lock order, everywhere: the instance's row before its branches' rows, branches by id. A statement that cannot find its
branch under its owner and generation changes nothing and gives nothing back: the caller was fenced.

What a branch commits stands in `facts`, the branches it opens in `fanouts`, how lost ones are found in `leases`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.history import Fact
from orchestrator.ids import Position
from orchestrator.store.clock import NOW, OFFSET_S
from orchestrator.store.connection import Connection
from orchestrator.store.facts import Standing, columns
from orchestrator.store.partitions import into
from orchestrator.store.sealing import sealed


@dataclass(slots=True)
class Held:
    """A branch this process holds, as it was when claimed."""

    id: int
    instance_id: str
    position: Position
    generation: int
    claims: int
    crashes: int
    crash_seq: int | None
    queue: str
    parent_id: int | None
    join_position: str | None
    mode: str | None
    after: list[int] | None
    vars: Any
    context: Any
    snapshot: Any
    stopping: bool
    # of the instance
    definition_id: int
    instance_input: Any
    phase: str
    priority: int
    trace_id: str | None
    step_events: bool
    slots: int
    tenant: str
    parent_branch: int | None
    created_at: float
    now: float
    """The database's clock, to which `offset` is added for the engine's: see `store/clock.py`."""
    offset: float
    owner: str = ""


HELD = f"""
    b.id, b.instance_id::text, b.position, b.generation, b.claims, b.crashes, b.crash_seq, b.queue, b.parent_id,
    b.join_position, b.mode, b.after, b.vars, b.context, b.snapshot, b.stopping,
    i.definition_id, i.input, i.phase, i.priority, i.trace_id, i.step_events, i.slots, i.tenant, i.parent_branch,
    extract(epoch from i.created_at)::float8, extract(epoch from clock_timestamp())::float8, {OFFSET_S}
"""

# `state || ''` keeps the planner from the index on states: these statements know the row they mean, and a plan made
# while the tables were small would go through all running instances instead.
# The instance's row is touched first (lock order), and only when this claim is the one that begins it.
_CLAIM = f"""
with begun as (
    update instances set state = 'RUNNING', started_at = coalesce(started_at, now())
    where id = %(instance)s and state || '' = 'PENDING' and exists (
        select 1 from branches where instance_id = %(instance)s and position = %(position)s
        and generation = %(generation)s and state = 'queued')
    returning id
), told as (
    insert into outbox (type, instance_id, data) select 'workflow.started', id, '{{}}' from begun
)
update branches b
set state = 'running', owner = %(owner)s, lease_until = now() + make_interval(secs => %(lease)s), claims = b.claims + 1,
    doing = null
from instances i
where b.instance_id = %(instance)s and b.position = %(position)s and b.generation = %(generation)s
  and i.id = %(instance)s and i.state || '' in ('PENDING', 'RUNNING')
  and (b.state = 'queued'
       or (b.state = 'joining' and not exists (select 1 from branches c where c.parent_id = b.id and c.state <> 'closed')))
  and (select count(*) from begun) >= 0
returning {HELD}
"""  # only constants are put together


def claim(c: Connection, instance_id: str, position: str, generation: int, owner: str, lease_s: float) -> Held | None:
    """Take the branch a message is about; None when the message is void."""
    row = c.execute(
        _CLAIM, {"instance": instance_id, "position": position, "generation": generation, "owner": owner, "lease": lease_s}
    ).fetchone()
    return Held(*(*row, owner)) if row else None


def standing(c: Connection, held: Held) -> Standing | None:
    """The instance's state and whether the branch shall stop; None when it is held no longer."""
    return c.execute(
        "select i.state, b.stopping from branches b join instances i on i.id = b.instance_id"
        " where b.id = %s and b.generation = %s and b.owner = %s and b.state || '' = 'running'",
        (held.id, held.generation, held.owner),
    ).fetchone()


def hand_over(c: Connection, held: Held, queue: str) -> bool:
    """Give the branch to another queue under a new generation; False when fenced."""
    row = c.execute(
        f"update branches set state = 'queued', generation = generation + 1, queue = %s, queued_at = now(), {FREE}"
        " where id = %s and generation = %s and owner = %s and state || '' = 'running' returning 1",
        (queue, held.id, held.generation, held.owner),
    ).fetchone()
    return row is not None


def id_at(c: Connection, instance_id: str, position: str) -> int | None:
    row = c.execute("select id from branches where instance_id = %s and position = %s", (instance_id, position)).fetchone()
    return row[0] if row else None


def address_of(c: Connection, branch_id: int) -> tuple[str, int, str] | None:
    """Position, generation and queue."""
    return c.execute("select position, generation, queue from branches where id = %s", (branch_id,)).fetchone()


def block_root(c: Connection, instance_id: str) -> None:
    """An instance that has not begun waits (again) for what it depends on; a message on its way is void, and its time begins later."""
    c.execute(
        "with blocked as (update branches set state = 'blocked', generation = generation + 1 where instance_id = %s and position = ''"
        " and state in ('queued', 'blocked') returning id)"
        " delete from timers where kind = 'deadline' and branch_id in (select id from blocked)",
        (instance_id,),
    )


def drop_undo(c: Connection, instance_id: str) -> None:
    c.execute("delete from branches where instance_id = %s and position like '/undo%%'", (instance_id,))


def shelve_undo(c: Connection, instance_id: str) -> None:
    """Keep an earlier way back beside the one to come: `/undo` becomes `/undo#1`, and so on."""
    c.execute(
        """
        with rounds as (select count(*) + 1 as n from branches where instance_id = %(id)s and position ~ '^/undo#[0-9]+$')
        update branches set position = '/undo#' || rounds.n || substr(position, 6)
        from rounds where instance_id = %(id)s and (position = '/undo' or position like '/undo/%%')
        """,
        {"id": instance_id},
    )


def reopen(c: Connection, branch_id: int, state: str) -> Published:
    """A closed branch that a retry by hand opens again."""
    row = c.execute(
        "update branches set state = %s, outcome = null, error = null, output = null, snapshot = null, stopping = false, crashes = 0,"
        " generation = generation + 1, queued_at = now() where id = %s returning instance_id::text, position, generation, queue",
        (state, branch_id),
    ).fetchone()
    assert row is not None
    return (row[0], row[1], row[2], row[3])


def lock(c: Connection, held: Held) -> tuple[str, bool] | None:
    """Take the row locks a transaction of this branch needs, in the one order; None when fenced."""
    state = c.execute("select state from instances where id = %s for no key update", (held.instance_id,)).fetchone()
    mine = c.execute(
        "select stopping from branches where id = %s and generation = %s and owner = %s and state || '' = 'running' for update",
        (held.id, held.generation, held.owner),
    ).fetchone()
    return (state[0], mine[0]) if state and mine else None


def lock_branch(c: Connection, held: Held) -> bool:
    """Lock only the branch: for transactions that do not touch the instance."""
    row = c.execute(
        "select 1 from branches where id = %s and generation = %s and owner = %s and state || '' = 'running' for update",
        (held.id, held.generation, held.owner),
    ).fetchone()
    return row is not None


FREE = "owner = null, lease_until = null, doing = null"


def park(c: Connection, branch_id: int, snapshot: str | None, due: float | None) -> None:
    """Until something wakes it; `due` is when the time of a task around it is over."""
    c.execute(
        f"update branches set state = 'parked', {FREE}, lacks = null, lacking_since = null, snapshot = coalesce(%s::jsonb, snapshot) where id = %s",
        (None if snapshot is None else sealed(snapshot), branch_id),
    )
    if due is not None:
        c.execute("insert into timers (branch_id, due_at, kind) values (%s, to_timestamp(%s), 'due')", (branch_id, due))


_PARK = f"""
with parked as (
    update branches set state = 'parked', {FREE}, lacks = null, lacking_since = null, snapshot = coalesce(%s::jsonb, snapshot)
    where id = %s and generation = %s and owner = %s and state || '' = 'running' returning id
), written as (
    insert into checkpoints (branch_id, seq, position, kind, attempt, data)
    select parked.id, f.seq, f.position, f.kind, f.attempt, f.data::jsonb
    from parked, unnest(%s::int[], %s::text[], %s::text[], %s::int[], %s::text[]) as f (seq, position, kind, attempt, data)
)
insert into timers (branch_id, due_at, kind) select id, to_timestamp(%s), %s from parked returning branch_id
"""


def park_until(c: Connection, held: Held, seq: int, facts: Sequence[Fact], due: float, kind: str, snapshot: str | None) -> bool:
    """Facts, timer (`wake` or `due`) and state in one statement. False: fenced."""
    row = c.execute(
        into(_PARK, held.id),
        (None if snapshot is None else sealed(snapshot), held.id, held.generation, held.owner, *columns(seq, facts), due, kind),
    ).fetchone()
    return row is not None


def release(c: Connection, held: Held, state: str, queue: str | None = None, *, snapshot: str | None = None) -> bool:
    """Give the branch up without closing it: to another queue, to the end of its own, or halted by a pause."""
    row = c.execute(
        f"update branches set state = %s, queue = coalesce(%s, queue), queued_at = now(), {FREE}, snapshot = coalesce(%s::jsonb, snapshot)"
        " where id = %s and generation = %s and owner = %s and state || '' = 'running' returning id",
        (state, queue, None if snapshot is None else sealed(snapshot), held.id, held.generation, held.owner),
    ).fetchone()
    return row is not None


_STUMBLE = f"""
with held as (
    select b.id, coalesce((select max(seq) from checkpoints where branch_id = b.id), 0) as seq
    from branches b where b.id = %(id)s and b.generation = %(generation)s and b.owner = %(owner)s and b.state || '' = 'running' for update
), counted as (
    select b.id, k.seq, case when b.crash_seq = k.seq then b.crashes + 1 else 1 end as times from branches b join held k on k.id = b.id
), parked as (
    update branches b set crashes = k.times, crash_seq = k.seq, state = 'parked', {FREE} from counted k
    where b.id = k.id and k.times < %(limit)s returning b.id, k.times
), noted as (
    update branches b set crashes = k.times, crash_seq = k.seq from counted k where b.id = k.id and k.times >= %(limit)s
), again as (
    insert into timers (branch_id, due_at, kind)
    select id, {NOW} + make_interval(secs => %(pause)s * (2 ^ (times - 1))), 'wake' from parked
)
select times from counted
"""


def stumble(c: Connection, held: Held, limit: int, pause_s: float) -> int | None:
    """Note that a walk broke at this place, and let it be tried again after a pause; at the limit, the branch stays held.

    Gives how often it broke there. None: fenced.
    """
    row = c.execute(
        _STUMBLE, {"id": held.id, "generation": held.generation, "owner": held.owner, "limit": max(1, limit), "pause": pause_s}
    ).fetchone()
    return row[0] if row else None


def join(c: Connection, branch_id: int) -> None:
    c.execute(f"update branches set state = 'joining', {FREE} where id = %s", (branch_id,))


Published = tuple[str, str, int, str]
"""(instance id, position, generation, queue): what a message says, and where it goes."""
