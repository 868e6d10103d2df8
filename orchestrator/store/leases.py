"""Signs of life, and what happens to branches that give none: expired, orphaned, never claimed, never asked for."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.store.branches import FREE, Published
from orchestrator.store.connection import Connection, dumps


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
        where b.id = h.id and b.generation = h.generation and b.owner = %s and b.state || '' = 'running' and i.id = b.instance_id
        returning b.id, i.state
        """,
        (lease_s, dumps(usage), [h[0] for h in held], [h[1] for h in held], [h[2] for h in held], owner),
    ).fetchall()


# A branch that was lost counts against the place where it was lost: three in a row at one place is a poison step.
_RECOVERED = f"""
    state = 'queued', queued_at = now(), generation = b.generation + 1, {FREE},
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


def owners_of(c: Connection, prefix: str) -> list[str]:
    """Processes of a worker that hold branches."""
    rows = c.execute(
        "select distinct owner from branches where state = 'running' and starts_with(owner, %s) order by owner", (prefix,)
    ).fetchall()
    return [row[0] for row in rows]


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
