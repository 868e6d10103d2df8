"""Fan-outs: branches opened in bulk, taken one after another, closed, joined, and stopped with all that is below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.history import Fact
from orchestrator.ids import Position
from orchestrator.plan.needs import FanOut
from orchestrator.store.branches import FREE, HELD, Held, Published
from orchestrator.store.clock import OFFSET_S
from orchestrator.store.connection import Connection, dumps
from orchestrator.store.facts import Event, columns
from orchestrator.store.partitions import into
from orchestrator.store.sealing import readable, sealed

# Open to whoever helps with a join: a branch that was not handed to a queue, or was handed to this one. Others have messages of their
# own, and who took one all the same would give it back at once, and take it again.
_OPEN = "state || '' = 'queued' and (generation = 1 or queue = %(queue)s)"
_CLAIM_NEXT = f"""
with next as (
    select id from branches where parent_id = %(parent)s and {_OPEN} order by id limit 1 for update skip locked
)
update branches b
set state = 'running', owner = %(owner)s, lease_until = now() + make_interval(secs => %(lease)s), claims = b.claims + 1
from next, instances i
where b.id = next.id and i.id = b.instance_id and i.state || '' = 'RUNNING'
returning {HELD}
"""


def claim_next(c: Connection, parent_id: int, queue: str, owner: str, lease_s: float) -> Held | None:
    """Take the next open branch of a join, as one who serves this queue; None when there is none left."""
    row = c.execute(_CLAIM_NEXT, {"parent": parent_id, "queue": queue, "owner": owner, "lease": lease_s}).fetchone()
    return Held(*(*row, owner)) if row else None


def open_children(c: Connection, held: Held, need: FanOut, queue: str, context: Any) -> None:
    """Bulk insert. What flows into all of them is kept once, with the branch that opens them."""
    openings = need.openings
    c.execute(f"update branches set state = 'joining', shared = %s::jsonb, {FREE} where id = %s", (sealed(dumps(need.shared)), held.id))
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
            need.position,
            need.mode,
            queue,
            None if context is None else sealed(dumps(context)),
            [opening.position for opening in openings],
            [None if opening.vars is None else sealed(dumps(opening.vars)) for opening in openings],
            ["queued" if need.is_ready(number) else "blocked" for number in range(len(openings))],
        ),
    ).fetchall()
    ids = sorted(row[0] for row in inserted)
    edges = [([ids[k] for k in opening.after], ids[n]) for n, opening in enumerate(openings) if opening.after]
    if edges:
        with c.cursor() as cursor:
            cursor.executemany("update branches set after = %s where id = %s", edges)


def shared_input(c: Connection, parent_id: int) -> Any:
    row = c.execute("select shared from branches where id = %s", (parent_id,)).fetchone()
    if row is None:
        return None
    readable(row[0])
    return row[0]


# One statement closes the branch with its last facts and takes the next one of the same join: of a limited one, the next of those that
# are held back, since those that are not have helpers of their own.
_CLOSE_AND_NEXT = """
with closed as (
    update branches set state = 'closed', outcome = %(outcome)s, output = %(output)s::jsonb, error = %(error)s::jsonb,
        context = %(context)s::jsonb, owner = null, lease_until = null, doing = null, snapshot = null
    where id = %(id)s and generation = %(generation)s and owner = %(owner)s and state || '' = 'running' returning id
), written as (
    insert into checkpoints (branch_id, seq, position, kind, attempt, data)
    select closed.id, f.seq, f.position, f.kind, f.attempt, f.data::jsonb
    from closed, unnest(%(seqs)s::int[], %(positions)s::text[], %(kinds)s::text[], %(attempts)s::int[], %(datas)s::text[])
         as f (seq, position, kind, attempt, data)
), told as (
    insert into outbox (type, instance_id, data)
    select e.type, %(instance)s::uuid, e.data::jsonb from closed, unnest(%(types)s::text[], %(events)s::text[]) as e (type, data)
), next as (
    select id from branches where parent_id = %(next_of)s and {next} order by id limit 1 for update skip locked
), claimed as (
    update branches b
    set state = 'running', owner = %(owner)s, lease_until = now() + make_interval(secs => %(lease)s), claims = b.claims + 1
    from next, closed, instances i
    where b.id = next.id and i.id = %(instance)s::uuid and i.state || '' = 'RUNNING'
    returning b.id, b.position, b.generation, b.claims, b.crashes, b.crash_seq, b.queue, b.after, b.vars, b.snapshot,
        b.stopping
)
select closed.id, claimed.*, extract(epoch from clock_timestamp())::float8, {offset} from closed left join claimed on true
"""
_HELD_BACK = "mode = 'limited' and state || '' = 'blocked'"
_CLOSE = _CLOSE_AND_NEXT.format(next=_OPEN, offset=OFFSET_S)
_CLOSE_LIMITED = _CLOSE_AND_NEXT.format(next=_HELD_BACK, offset=OFFSET_S)


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
    queue: str,
    lease_s: float,
) -> tuple[bool, Held | None]:
    """Close the branch; with `next_of`, take the next open branch of that join in the same statement, as one who serves this queue."""
    seqs, positions, kinds, attempts, datas = columns(seq, facts)
    row = c.execute(
        into(_CLOSE_LIMITED if held.mode == "limited" else _CLOSE, held.id),
        {
            "id": held.id,
            "generation": held.generation,
            "owner": held.owner,
            "instance": held.instance_id,
            "outcome": closing.outcome,
            "output": None if closing.output is None else sealed(dumps(closing.output)),
            "error": None if closing.error is None else dumps(closing.error),
            "context": None if closing.context is None else sealed(dumps(closing.context)),
            "seqs": seqs,
            "positions": positions,
            "kinds": kinds,
            "attempts": attempts,
            "datas": datas,
            "types": [event[0] for event in events],
            "events": [event[1] for event in events],
            "next_of": next_of,
            "queue": queue,
            "lease": lease_s,
        },
    ).fetchone()
    if row is None:
        return False, None
    _, id, position, generation, claims, crashes, crash_seq, queue, after, variables, snapshot, stopping, now, offset = row
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
        offset=offset,
        owner=held.owner,
    )


def release_next(c: Connection, closed: Held) -> list[Published]:
    """Queue the next branch that a limit holds back, in the transaction that closed one of those that were open.

    So many are open until none is held back: each that closes lets one in, and one that cannot be had has just been let in by another.
    """
    return c.execute(
        f"""
        with next as (select id from branches where parent_id = %s and {_HELD_BACK} order by id limit 1 for update skip locked)
        update branches b set state = 'queued', queued_at = now() from next where b.id = next.id
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (closed.parent_id,),
    ).fetchall()


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
select b.id, b.state, b.owner from branches b join below using (id) where b.state <> 'closed' order by b.id for update of b
"""


@dataclass(slots=True)
class Cut:
    """What a stop leaves to be done after its commit: processes that are at work on what was closed, and instances that were
    awaited by it. `lifecycle.follow` does it."""

    owners: set[str] = field(default_factory=set)
    children: list[str] = field(default_factory=list)


def stop_siblings(c: Connection, held: Held, *, gently: bool) -> Cut:
    """The rest of a fan-out is not wanted any more. `gently`: one that is in a step may end that step."""
    siblings = c.execute(
        "select id from branches where parent_id = %s and join_position = %s and id <> %s and state <> 'closed'",
        (held.parent_id, held.join_position, held.id),
    ).fetchall()
    return stop(c, held.instance_id, [row[0] for row in siblings], gently=gently)


def is_among_the_first(c: Connection, held: Held, least: int) -> bool:
    """Whether with this branch so many are done. The one that opened them is locked first: of two that end at once, the later one
    counts the earlier one."""
    c.execute("select 1 from branches where id = %s for update", (held.parent_id,))
    row = c.execute(
        "select count(*) from branches where parent_id = %s and join_position = %s and outcome = 'completed'",
        (held.parent_id, held.join_position),
    ).fetchone()
    return row is not None and row[0] + 1 >= least


def stop(c: Connection, instance_id: str, ids: Sequence[int], *, gently: bool) -> Cut:
    """Close these branches and all below them; gently, those at work (or whose children are) close by themselves soon."""
    open_rows = c.execute(_BELOW, {"ids": list(ids)}).fetchall() if ids else []
    at_work = {row[0] for row in open_rows if gently and row[1] in ("running", "joining")}
    idle = [row for row in open_rows if row[0] not in at_work]
    if at_work:
        c.execute("update branches set stopping = true where id = any (%s)", (list(at_work),))
    _shut(c, [row[0] for row in idle])
    parked = [row[0] for row in idle if row[1] == "parked"]
    return Cut({row[2] for row in idle if row[2] is not None}, awaited(c, instance_id, parked) if parked else [])


def awaited(c: Connection, instance_id: str, branch_ids: Sequence[int]) -> list[str]:
    """The child instances that these branches wait for."""
    rows = c.execute(
        "select id::text from instances where parent_id = %s and parent_branch = any (%s) and state in ('PENDING', 'RUNNING', 'PAUSED')",
        (instance_id, list(branch_ids)),
    ).fetchall()
    return [row[0] for row in rows]


def _shut(c: Connection, ids: Sequence[int]) -> None:
    if not ids:
        return
    c.execute(
        f"update branches set state = 'closed', outcome = 'cancelled', generation = generation + 1, {FREE} where id = any (%s)",
        (list(ids),),
    )
    c.execute("delete from timers where branch_id = any (%s)", (list(ids),))
    c.execute("delete from subscriptions where branch_id = any (%s)", (list(ids),))


def stop_children(c: Connection, held: Held, *, gently: bool) -> Cut:
    rows = c.execute("select id from branches where parent_id = %s and state <> 'closed'", (held.id,)).fetchall()
    return stop(c, held.instance_id, [row[0] for row in rows], gently=gently)


def stop_instance(c: Connection, instance_id: str, *, gently: bool) -> Cut:
    """Stop everything an instance does."""
    rows = c.execute(
        "select id from branches where instance_id = %s and parent_id is null and state <> 'closed'", (instance_id,)
    ).fetchall()
    return stop(c, instance_id, [row[0] for row in rows], gently=gently)


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
    return _children(rows)


def _children(rows: Sequence[Any]) -> list[Child]:
    for row in rows:
        readable(row[4], row[6])
    return [Child(*row) for row in rows]


def by_ids(c: Connection, ids: Sequence[int]) -> list[Child]:
    rows = c.execute(
        "select id, position, state, outcome, output, error, context from branches where id = any (%s) order by id", (list(ids),)
    ).fetchall()
    return _children(rows)
