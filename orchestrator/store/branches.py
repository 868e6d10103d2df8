"""Branches: claimed, committed to, parked, opened, closed. Every statement here is fenced by owner and generation.

Lock order, everywhere: the instance's row before its branches' rows, branches by id. A statement that cannot find its
branch under its owner and generation changes nothing and gives nothing back: the caller was fenced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.history import Fact
from orchestrator.ids import Position
from orchestrator.plan.needs import Opening
from orchestrator.store.connection import Connection, dumps


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
    owner: str = ""


_HELD = """
    b.id, b.instance_id::text, b.position, b.generation, b.claims, b.crashes, b.crash_seq, b.queue, b.parent_id,
    b.join_position, b.mode, b.after, b.vars, b.context, b.snapshot, b.stopping,
    i.definition_id, i.input, i.phase, i.priority, i.trace_id, i.step_events, i.slots, i.tenant, i.parent_branch,
    extract(epoch from i.created_at)::float8, extract(epoch from clock_timestamp())::float8
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
       or (b.state = 'running' and b.lease_until < now())
       or (b.state = 'joining' and not exists (select 1 from branches c where c.parent_id = b.id and c.state <> 'closed')))
  and (select count(*) from begun) >= 0
returning {_HELD}
"""  # only constants are put together


def claim(c: Connection, instance_id: str, position: str, generation: int, owner: str, lease_s: float) -> Held | None:
    """Take the branch a message is about; None when the message is void."""
    row = c.execute(
        _CLAIM, {"instance": instance_id, "position": position, "generation": generation, "owner": owner, "lease": lease_s}
    ).fetchone()
    return Held(*(*row, owner)) if row else None


_CLAIM_NEXT = f"""
with next as (
    select id from branches where parent_id = %(parent)s and state = 'queued' order by id limit 1 for update skip locked
)
update branches b
set state = 'running', owner = %(owner)s, lease_until = now() + make_interval(secs => %(lease)s), claims = b.claims + 1
from next, instances i
where b.id = next.id and i.id = b.instance_id and i.state || '' = 'RUNNING'
returning {_HELD}
"""


def claim_next(c: Connection, parent_id: int, owner: str, lease_s: float) -> Held | None:
    """Take the next open branch of a join; None when there is none left."""
    row = c.execute(_CLAIM_NEXT, {"parent": parent_id, "owner": owner, "lease": lease_s}).fetchone()
    return Held(*(*row, owner)) if row else None


_COMMIT_ONE = """
with held as (
    select i.state, b.stopping from branches b join instances i on i.id = b.instance_id
    where b.id = %s and b.generation = %s and b.owner = %s and b.state = 'running'
)
insert into checkpoints (branch_id, seq, position, kind, attempt, data)
select %s::bigint, %s::int, %s, %s, %s::int, %s::jsonb from held
on conflict (branch_id, seq) do nothing
returning (select state from held), (select stopping from held)
"""

_COMMIT_MANY = """
with held as (
    select i.state, b.stopping from branches b join instances i on i.id = b.instance_id
    where b.id = %s and b.generation = %s and b.owner = %s and b.state = 'running'
), told as (
    insert into outbox (type, instance_id, data)
    select e.type, %s::uuid, e.data::jsonb from held, unnest(%s::text[], %s::text[]) as e (type, data)
)
insert into checkpoints (branch_id, seq, position, kind, attempt, data)
select %s::bigint, f.seq, f.position, f.kind, f.attempt, f.data::jsonb
from held, unnest(%s::int[], %s::text[], %s::text[], %s::int[], %s::text[]) as f (seq, position, kind, attempt, data)
returning (select state from held), (select stopping from held)
"""

_TELL = """
with held as (
    select i.state, b.stopping from branches b join instances i on i.id = b.instance_id
    where b.id = %s and b.generation = %s and b.owner = %s and b.state = 'running'
)
insert into outbox (type, instance_id, data)
select e.type, %s::uuid, e.data::jsonb from held, unnest(%s::text[], %s::text[]) as e (type, data)
returning (select state from held), (select stopping from held)
"""

Standing = tuple[str, bool]
Event = tuple[str, str]


def commit(c: Connection, held: Held, seq: int, facts: Sequence[Fact], events: Sequence[Event]) -> Standing | None:
    """Append the facts after `seq`. Gives the instance's state and whether the branch shall stop.

    None: fenced, or somebody wrote these numbers already; read again before anything else.
    """
    told = ([event[0] for event in events], [event[1] for event in events])
    if not facts:
        return c.execute(_TELL, (held.id, held.generation, held.owner, held.instance_id, *told)).fetchone()
    if len(facts) == 1 and not events:
        fact = facts[0]
        return c.execute(
            _COMMIT_ONE,
            (
                held.id,
                held.generation,
                held.owner,
                held.id,
                seq + 1,
                fact.position,
                fact.kind,
                fact.attempt,
                None if fact.data is None else dumps(fact.data),
            ),
        ).fetchone()
    return c.execute(
        _COMMIT_MANY,
        (
            held.id,
            held.generation,
            held.owner,
            held.instance_id,
            *told,
            held.id,
            *_columns(seq, facts),
        ),
    ).fetchone()


def _columns(seq: int, facts: Sequence[Fact]) -> tuple[list[Any], ...]:
    return (
        list(range(seq + 1, seq + 1 + len(facts))),
        [str(fact.position) for fact in facts],
        [str(fact.kind) for fact in facts],
        [fact.attempt for fact in facts],
        [None if fact.data is None else dumps(fact.data) for fact in facts],
    )


_WRITE = """
insert into checkpoints (branch_id, seq, position, kind, attempt, data)
select %s::bigint, f.seq, f.position, f.kind, f.attempt, f.data::jsonb
from unnest(%s::int[], %s::text[], %s::text[], %s::int[], %s::text[]) as f (seq, position, kind, attempt, data)
"""


def write(c: Connection, branch_id: int, seq: int, facts: Sequence[Fact]) -> None:
    """Append facts inside a transaction that already holds the branch's row. A taken number raises."""
    if facts:
        c.execute(_WRITE, (branch_id, *_columns(seq, facts)))


def facts_after(c: Connection, branch_id: int, seq: int) -> list[Fact]:
    rows = c.execute(
        "select position, kind, data, attempt from checkpoints where branch_id = %s and seq > %s order by seq", (branch_id, seq)
    ).fetchall()
    return [Fact(*row) for row in rows]


def standing(c: Connection, held: Held) -> Standing | None:
    """The instance's state and whether the branch shall stop; None when it is held no longer."""
    return c.execute(
        "select i.state, b.stopping from branches b join instances i on i.id = b.instance_id"
        " where b.id = %s and b.generation = %s and b.owner = %s and b.state = 'running'",
        (held.id, held.generation, held.owner),
    ).fetchone()


def hand_over(c: Connection, held: Held, queue: str) -> bool:
    """Give the branch to another queue under a new generation; False when fenced."""
    row = c.execute(
        f"update branches set state = 'queued', generation = generation + 1, queue = %s, queued_at = now(), {_FREE}"
        " where id = %s and generation = %s and owner = %s and state = 'running' returning 1",
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
    """An instance that has not begun waits (again) for what it depends on; a message on its way is void."""
    c.execute(
        "update branches set state = 'blocked', generation = generation + 1 where instance_id = %s and position = ''"
        " and state in ('queued', 'blocked')",
        (instance_id,),
    )


def drop_undo(c: Connection, instance_id: str) -> None:
    c.execute("delete from branches where instance_id = %s and position like '/undo%%'", (instance_id,))


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
        "select stopping from branches where id = %s and generation = %s and owner = %s and state = 'running' for update",
        (held.id, held.generation, held.owner),
    ).fetchone()
    return (state[0], mine[0]) if state and mine else None


def lock_branch(c: Connection, held: Held) -> bool:
    """Lock only the branch: for transactions that do not touch the instance."""
    row = c.execute(
        "select 1 from branches where id = %s and generation = %s and owner = %s and state = 'running' for update",
        (held.id, held.generation, held.owner),
    ).fetchone()
    return row is not None


_FREE = "owner = null, lease_until = null, doing = null"


def park(c: Connection, branch_id: int, snapshot: str | None, due: float | None) -> None:
    c.execute(
        f"update branches set state = 'parked', {_FREE}, snapshot = coalesce(%s::jsonb, snapshot) where id = %s",
        (snapshot, branch_id),
    )
    if due is not None:
        c.execute("insert into timers (branch_id, due_at, kind) values (%s, to_timestamp(%s), 'wake')", (branch_id, due))


_PARK = f"""
with parked as (
    update branches set state = 'parked', {_FREE}, snapshot = coalesce(%s::jsonb, snapshot)
    where id = %s and generation = %s and owner = %s and state = 'running' returning id
), written as (
    insert into checkpoints (branch_id, seq, position, kind, attempt, data)
    select parked.id, f.seq, f.position, f.kind, f.attempt, f.data::jsonb
    from parked, unnest(%s::int[], %s::text[], %s::text[], %s::int[], %s::text[]) as f (seq, position, kind, attempt, data)
)
insert into timers (branch_id, due_at, kind) select id, to_timestamp(%s), 'wake' from parked returning branch_id
"""


def park_until(c: Connection, held: Held, seq: int, facts: Sequence[Fact], due: float, snapshot: str | None) -> bool:
    """Facts, timer and state in one statement. False: fenced."""
    row = c.execute(_PARK, (snapshot, held.id, held.generation, held.owner, *_columns(seq, facts), due)).fetchone()
    return row is not None


def release(c: Connection, held: Held, state: str, queue: str | None = None) -> bool:
    """Give the branch up without closing it: to another queue, or halted by a pause."""
    row = c.execute(
        f"update branches set state = %s, queue = coalesce(%s, queue), queued_at = now(), {_FREE}"
        " where id = %s and generation = %s and owner = %s and state = 'running' returning id",
        (state, queue, held.id, held.generation, held.owner),
    ).fetchone()
    return row is not None


def join(c: Connection, branch_id: int) -> None:
    c.execute(f"update branches set state = 'joining', {_FREE} where id = %s", (branch_id,))


def open_children(
    c: Connection, held: Held, join_position: str, mode: str, queue: str, shared: Any, openings: Sequence[Opening], context: Any
) -> None:
    """Bulk insert. What flows into all of them is kept once, with the branch that opens them."""
    c.execute(f"update branches set state = 'joining', shared = %s::jsonb, {_FREE} where id = %s", (dumps(shared), held.id))
    inserted = c.execute(
        """
        insert into branches (instance_id, parent_id, join_position, mode, queue, context, position, vars, state)
        select %s, %s, %s, %s, %s, %s::jsonb, o.position, o.vars::jsonb, o.state
        from unnest(%s::text[], %s::text[], %s::text[]) with ordinality as o (position, vars, state, n)
        order by n returning id
        """,
        (
            held.instance_id,
            held.id,
            join_position,
            mode,
            queue,
            None if context is None else dumps(context),
            [opening.position for opening in openings],
            [None if opening.vars is None else dumps(opening.vars) for opening in openings],
            ["blocked" if opening.after else "queued" for opening in openings],
        ),
    ).fetchall()
    ids = sorted(row[0] for row in inserted)
    edges = [([ids[k] for k in opening.after], ids[n]) for n, opening in enumerate(openings) if opening.after]
    if edges:
        with c.cursor() as cursor:
            cursor.executemany("update branches set after = %s where id = %s", edges)


def shared_input(c: Connection, parent_id: int) -> Any:
    row = c.execute("select shared from branches where id = %s", (parent_id,)).fetchone()
    return row[0] if row else None


# One statement closes the branch with its last facts and takes the next one of the same join.
_CLOSE_AND_NEXT = """
with closed as (
    update branches set state = 'closed', outcome = %(outcome)s, output = %(output)s::jsonb, error = %(error)s::jsonb,
        context = %(context)s::jsonb, owner = null, lease_until = null, doing = null, snapshot = null
    where id = %(id)s and generation = %(generation)s and owner = %(owner)s and state = 'running' returning id
), written as (
    insert into checkpoints (branch_id, seq, position, kind, attempt, data)
    select closed.id, f.seq, f.position, f.kind, f.attempt, f.data::jsonb
    from closed, unnest(%(seqs)s::int[], %(positions)s::text[], %(kinds)s::text[], %(attempts)s::int[], %(datas)s::text[])
         as f (seq, position, kind, attempt, data)
), told as (
    insert into outbox (type, instance_id, data)
    select e.type, %(instance)s::uuid, e.data::jsonb from closed, unnest(%(types)s::text[], %(events)s::text[]) as e (type, data)
), next as (
    select id from branches where parent_id = %(next_of)s and state = 'queued' order by id limit 1 for update skip locked
), claimed as (
    update branches b
    set state = 'running', owner = %(owner)s, lease_until = now() + make_interval(secs => %(lease)s), claims = b.claims + 1
    from next, closed, instances i
    where b.id = next.id and i.id = %(instance)s::uuid and i.state || '' = 'RUNNING'
    returning b.id, b.position, b.generation, b.claims, b.crashes, b.crash_seq, b.queue, b.after, b.vars, b.snapshot,
        b.stopping
)
select closed.id, claimed.*, extract(epoch from clock_timestamp())::float8 from closed left join claimed on true
"""


@dataclass(frozen=True, slots=True)
class Closing:
    """How a branch ends."""

    outcome: str
    output: Any = None
    error: Any = None
    context: Any = None


def close(
    c: Connection,
    held: Held,
    seq: int,
    facts: Sequence[Fact],
    closing: Closing,
    events: Sequence[Event],
    *,
    next_of: int | None,
    lease_s: float,
) -> tuple[bool, Held | None]:
    """Close the branch; with `next_of`, take the next open branch of that join in the same statement."""
    seqs, positions, kinds, attempts, datas = _columns(seq, facts)
    row = c.execute(
        _CLOSE_AND_NEXT,
        {
            "id": held.id,
            "generation": held.generation,
            "owner": held.owner,
            "instance": held.instance_id,
            "outcome": closing.outcome,
            "output": None if closing.output is None else dumps(closing.output),
            "error": None if closing.error is None else dumps(closing.error),
            "context": None if closing.context is None else dumps(closing.context),
            "seqs": seqs,
            "positions": positions,
            "kinds": kinds,
            "attempts": attempts,
            "datas": datas,
            "types": [event[0] for event in events],
            "events": [event[1] for event in events],
            "next_of": next_of,
            "lease": lease_s,
        },
    ).fetchone()
    if row is None:
        return False, None
    _, id, position, generation, claims, crashes, crash_seq, queue, after, variables, snapshot, stopping, now = row
    if id is None:
        return True, None
    return True, Held(
        id=id,
        instance_id=held.instance_id,
        position=position,
        generation=generation,
        claims=claims,
        crashes=crashes,
        crash_seq=crash_seq,
        queue=queue,
        parent_id=held.parent_id,
        join_position=held.join_position,
        mode=held.mode,
        after=after,
        vars=variables,
        context=held.context,
        snapshot=snapshot,
        stopping=stopping,
        definition_id=held.definition_id,
        instance_input=held.instance_input,
        phase=held.phase,
        priority=held.priority,
        trace_id=held.trace_id,
        step_events=held.step_events,
        slots=held.slots,
        tenant=held.tenant,
        parent_branch=held.parent_branch,
        created_at=held.created_at,
        now=now,
        owner=held.owner,
    )


Published = tuple[str, str, int, str]
"""(instance id, position, generation, queue): what a message says, and where it goes."""


def release_successors(c: Connection, branch_id: int, parent_id: int) -> list[Published]:
    """Queue the branches of a graph that waited for this one last.

    Asked after the commit of what they wait for: of two that end at the same time, at least the later one sees both,
    and the update lets exactly one of them through.
    """
    return c.execute(
        """
        update branches b set state = 'queued', queued_at = now()
        where b.parent_id = %s and b.state = 'blocked' and %s = any (b.after)
          and not exists (select 1 from branches p where p.id = any (b.after) and p.state <> 'closed')
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (parent_id, branch_id),
    ).fetchall()


def wake_parent(c: Connection, parent_id: int) -> list[Published]:
    """Queue a joining branch whose children are all closed. Asked after the commit that closed one of them."""
    return c.execute(
        """
        update branches b set state = 'queued', queued_at = now(), generation = b.generation + 1
        from instances i
        where b.id = %s and b.state = 'joining' and i.id = b.instance_id and i.state = 'RUNNING'
          and not exists (select 1 from branches k where k.parent_id = b.id and k.state <> 'closed')
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (parent_id,),
    ).fetchall()


_BELOW = """
with recursive below as (
    select id from branches where id = any (%(ids)s)
    union all select k.id from branches k join below on k.parent_id = below.id where k.state <> 'closed'
)
select b.id, b.state from branches b join below using (id) where b.state <> 'closed' order by b.id for update of b
"""


def stop_siblings(c: Connection, held: Held, *, gently: bool) -> None:
    """The rest of a fan-out is not wanted any more. `gently`: one that is in a step may end that step."""
    siblings = c.execute(
        "select id from branches where parent_id = %s and join_position = %s and id <> %s and state <> 'closed'",
        (held.parent_id, held.join_position, held.id),
    ).fetchall()
    stop(c, [row[0] for row in siblings], gently=gently)


def stop(c: Connection, ids: Sequence[int], *, gently: bool) -> None:
    """Close these branches and all below them; gently, those at work (or whose children are) close by themselves soon."""
    open_rows = c.execute(_BELOW, {"ids": list(ids)}).fetchall() if ids else []
    at_work = {row[0] for row in open_rows if gently and row[1] in ("running", "joining")}
    idle = [row[0] for row in open_rows if row[0] not in at_work]
    if at_work:
        c.execute("update branches set stopping = true where id = any (%s)", (list(at_work),))
    _shut(c, idle)


def _shut(c: Connection, ids: Sequence[int]) -> None:
    if not ids:
        return
    c.execute(
        f"update branches set state = 'closed', outcome = 'cancelled', generation = generation + 1, {_FREE} where id = any (%s)",
        (list(ids),),
    )
    c.execute("delete from timers where branch_id = any (%s)", (list(ids),))
    c.execute("delete from subscriptions where branch_id = any (%s)", (list(ids),))


def stop_children(c: Connection, parent_id: int, *, gently: bool) -> None:
    rows = c.execute("select id from branches where parent_id = %s and state <> 'closed'", (parent_id,)).fetchall()
    stop(c, [row[0] for row in rows], gently=gently)


def stop_instance(c: Connection, instance_id: str, *, gently: bool) -> list[str]:
    """Stop everything an instance does; gives the owners that were at work, so that they can be interrupted."""
    owners = c.execute(
        "select distinct owner from branches where instance_id = %s and state = 'running' and owner is not null", (instance_id,)
    ).fetchall()
    rows = c.execute(
        "select id from branches where instance_id = %s and parent_id is null and state <> 'closed'", (instance_id,)
    ).fetchall()
    stop(c, [row[0] for row in rows], gently=gently)
    return [row[0] for row in owners]


@dataclass(frozen=True, slots=True)
class Child:
    id: int
    position: Position
    state: str
    outcome: str | None
    output: Any
    error: Any
    context: Any


def children(c: Connection, parent_id: int, join_position: str) -> list[Child]:
    rows = c.execute(
        "select id, position, state, outcome, output, error, context from branches where parent_id = %s and join_position = %s order by id",
        (parent_id, join_position),
    ).fetchall()
    return [Child(*row) for row in rows]


def by_ids(c: Connection, ids: Sequence[int]) -> list[Child]:
    rows = c.execute(
        "select id, position, state, outcome, output, error, context from branches where id = any (%s) order by id", (list(ids),)
    ).fetchall()
    return [Child(*row) for row in rows]


# ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def renew(
    c: Connection, owner: str, held: Sequence[tuple[int, int, str]], lease_s: float, usage: dict[str, float]
) -> list[tuple[int, str]]:
    """Renew the leases of (branch, generation, what it is doing), and note what their process uses.

    Gives (branch, instance state) of those still held.
    """
    return c.execute(
        """
        update branches b set lease_until = now() + make_interval(secs => %s), doing = h.doing, usage = %s::jsonb
        from unnest(%s::bigint[], %s::int[], %s::text[]) as h (id, generation, doing), instances i
        where b.id = h.id and b.generation = h.generation and b.owner = %s and b.state = 'running' and i.id = b.instance_id
        returning b.id, i.state
        """,
        (lease_s, dumps(usage), [h[0] for h in held], [h[1] for h in held], [h[2] for h in held], owner),
    ).fetchall()


# A branch that was lost counts against the place where it was lost: three in a row at one place is a poison step.
_RECOVERED = f"""
    state = 'queued', queued_at = now(), generation = b.generation + 1, {_FREE},
    crashes = case when b.crash_seq = k.seq then b.crashes + 1 else 1 end, crash_seq = k.seq
"""


def recover_expired(c: Connection, limit: int) -> list[Published]:
    """Take back branches whose lease ran out."""
    return c.execute(
        f"""
        with lost as (
            select b.id, coalesce((select max(seq) from checkpoints where branch_id = b.id), 0) as seq
            from branches b join instances i on i.id = b.instance_id
            where b.state = 'running' and b.lease_until < now() and i.state in ('PENDING', 'RUNNING', 'PAUSED')
            order by b.id limit %s for update of b skip locked
        )
        update branches b set {_RECOVERED} from lost k where b.id = k.id
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (limit,),
    ).fetchall()


def recover_owner(c: Connection, owner: str) -> list[Published]:
    """Take back what a process held that is known to be dead."""
    return c.execute(
        f"""
        with lost as (
            select b.id, coalesce((select max(seq) from checkpoints where branch_id = b.id), 0) as seq
            from branches b where b.state = 'running' and b.owner = %s order by b.id for update
        )
        update branches b set {_RECOVERED} from lost k where b.id = k.id
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (owner,),
    ).fetchall()


def overdue_queues(c: Connection, grace_s: float) -> list[tuple[str, int]]:
    """How many branches of each queue have waited longer than the grace for a message to arrive."""
    return c.execute(
        """
        select queue, count(*) from (
            select b.queue from branches b join instances i on i.id = b.instance_id
            where b.state = 'queued' and b.queued_at < now() - make_interval(secs => %s) and i.state in ('PENDING', 'RUNNING')
            limit 20000) overdue
        group by queue
        """,
        (grace_s,),
    ).fetchall()


def requeue_overdue(c: Connection, queue: str, grace_s: float, limit: int) -> list[Published]:
    return c.execute(
        """
        with lost as (
            select b.id from branches b join instances i on i.id = b.instance_id
            where b.state = 'queued' and b.queue = %s and b.queued_at < now() - make_interval(secs => %s)
              and i.state in ('PENDING', 'RUNNING')
            order by b.queued_at limit %s for update of b skip locked
        )
        update branches b set generation = b.generation + 1, queued_at = now() from lost where b.id = lost.id
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (queue, grace_s, limit),
    ).fetchall()


def recover_joins(c: Connection, grace_s: float, limit: int) -> list[Published]:
    """Joins and graph edges whose message or question was lost with the process that owed it."""
    return c.execute(
        """
        with ready as (
            select b.id from branches b join instances i on i.id = b.instance_id
            where b.state in ('joining', 'blocked') and b.queued_at < now() - make_interval(secs => %s) and i.state = 'RUNNING'
              and ((b.state = 'joining' and not exists (select 1 from branches k where k.parent_id = b.id and k.state <> 'closed'))
                or (b.state = 'blocked' and b.after is not null
                    and not exists (select 1 from branches p where p.id = any (b.after) and p.state <> 'closed')))
            order by b.id limit %s for update of b skip locked
        )
        update branches b set state = 'queued', queued_at = now(), generation = b.generation + 1 from ready where b.id = ready.id
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (grace_s, limit),
    ).fetchall()
