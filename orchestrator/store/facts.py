"""Facts: appended by whoever holds the branch, numbered, never changed. Of two writers of one number the first wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg

from orchestrator.history import Fact
from orchestrator.store import sealing
from orchestrator.store.connection import Connection, dumps
from orchestrator.store.history import require_whole
from orchestrator.store.partitions import into
from orchestrator.store.sealing import sealed

if TYPE_CHECKING:
    from orchestrator.store.branches import Held


_COMMIT_ONE = """
with held as (
    select i.state, b.stopping from branches b join instances i on i.id = b.instance_id
    where b.id = %s and b.generation = %s and b.owner = %s and b.state || '' = 'running'
)
insert into checkpoints (branch_id, seq, position, kind, attempt, data)
select %s::bigint, %s::int, %s, %s, %s::int, %s::jsonb from held
returning (select state from held), (select stopping from held)
"""

_COMMIT_MANY = """
with held as (
    select i.state, b.stopping from branches b join instances i on i.id = b.instance_id
    where b.id = %s and b.generation = %s and b.owner = %s and b.state || '' = 'running'
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
    where b.id = %s and b.generation = %s and b.owner = %s and b.state || '' = 'running'
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
    try:
        return _commit(c, held, seq, facts, events)
    except psycopg.errors.UniqueViolation:
        # Rare. To ask Postgres to expect it would cost every commit a tenth more of WAL.
        return None


def _commit(c: Connection, held: Held, seq: int, facts: Sequence[Fact], events: Sequence[Event]) -> Standing | None:
    told = ([event[0] for event in events], [event[1] for event in events])
    if not facts:
        return c.execute(_TELL, (held.id, held.generation, held.owner, held.instance_id, *told)).fetchone()
    if len(facts) == 1 and not events:
        fact = facts[0]
        return c.execute(
            into(_COMMIT_ONE, held.id),
            (
                held.id,
                held.generation,
                held.owner,
                held.id,
                seq + 1,
                fact.position,
                fact.kind,
                fact.attempt,
                None if fact.data is None else sealed(dumps(fact.data)),
            ),
        ).fetchone()
    return c.execute(
        into(_COMMIT_MANY, held.id),
        (
            held.id,
            held.generation,
            held.owner,
            held.instance_id,
            *told,
            held.id,
            *columns(seq, facts),
        ),
    ).fetchone()


def columns(seq: int, facts: Sequence[Fact]) -> tuple[list[Any], ...]:
    return (
        list(range(seq + 1, seq + 1 + len(facts))),
        [str(fact.position) for fact in facts],
        [str(fact.kind) for fact in facts],
        [fact.attempt for fact in facts],
        [None if fact.data is None else sealed(dumps(fact.data)) for fact in facts],
    )


_WRITE = """
insert into checkpoints (branch_id, seq, position, kind, attempt, data)
select %s::bigint, f.seq, f.position, f.kind, f.attempt, f.data::jsonb
from unnest(%s::int[], %s::text[], %s::text[], %s::int[], %s::text[]) as f (seq, position, kind, attempt, data)
"""


def write(c: Connection, branch_id: int, seq: int, facts: Sequence[Fact]) -> None:
    """Append facts inside a transaction that already holds the branch's row. A taken number raises."""
    if facts:
        c.execute(_WRITE, (branch_id, *columns(seq, facts)))


def after(c: Connection, held: Held, seq: int) -> list[Fact]:
    """The facts after a number; raises `BrokenHistory` where some are missing."""
    rows = c.execute(
        "select position, kind, data, attempt, seq from checkpoints where branch_id = %s and seq > %s order by seq", (held.id, seq)
    ).fetchall()
    require_whole(held.position, [row[4] for row in rows], seq)
    sealing.readable(*(row[2] for row in rows))
    return [Fact(*row[:4]) for row in rows]


def last(c: Connection, branch_id: int) -> int:
    """The number of the newest fact; 0 when there is none."""
    row = c.execute("select coalesce(max(seq), 0) from checkpoints where branch_id = %s", (branch_id,)).fetchone()
    return int(row[0]) if row else 0
