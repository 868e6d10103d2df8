"""Branches that wait for code: which, since when, and whether a living worker has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection
from orchestrator.store.workers import LIVES


def about(c: Connection, branch_id: int, key: str) -> tuple[float, bool]:
    """For how many seconds the branch has waited for this, and whether a worker that lives has it."""
    row = c.execute(
        f"""
        select case when b.lacks = %(key)s then extract(epoch from clock_timestamp() - b.lacking_since)::float8 else 0 end,
            exists (select 1 from workers w where w.{LIVES} and w.code @> array[%(key)s])
        from branches b where b.id = %(id)s
        """,
        {"key": key, "id": branch_id},
    ).fetchone()
    return (float(row[0]), bool(row[1])) if row else (0.0, False)


def note(c: Connection, branch_id: int, key: str, since_s: float) -> None:
    """Of a branch that was parked just now: it waits for this code."""
    c.execute(
        "update branches set lacks = %s, lacking_since = clock_timestamp() - make_interval(secs => %s) where id = %s",
        (key, since_s, branch_id),
    )


def wake(c: Connection, keys: Sequence[str]) -> list[Published]:
    """Publish the branches that wait for any of this code: a worker has come that has it."""
    return c.execute(
        """
        with woken as (
            update branches b set state = 'queued', generation = b.generation + 1, queued_at = now()
            from instances i
            where b.state = 'parked' and b.lacks = any (%s) and i.id = b.instance_id and i.state in ('PENDING', 'RUNNING')
            returning b.id, b.instance_id::text, b.position, b.generation, b.queue
        ), gone as (
            delete from timers where kind = 'wake' and branch_id in (select id from woken)
        )
        select instance_id, position, generation, queue from woken
        """,
        (list(keys),),
    ).fetchall()


def listing(c: Connection, tenant: str | None = None) -> list[dict[str, Any]]:
    """What code is waited for: by how many branches, since when, and an instance of them."""
    rows = c.execute(
        """
        select b.lacks, count(*), extract(epoch from clock_timestamp() - min(b.lacking_since))::float8, min(i.workflow),
            (array_agg(i.id::text order by b.lacking_since))[1]
        from branches b join instances i on i.id = b.instance_id
        where b.state = 'parked' and b.lacks is not null and i.state in ('PENDING', 'RUNNING', 'PAUSED')
          and (%(t)s::text is null or i.tenant = %(t)s)
        group by b.lacks order by 3 desc
        """,
        {"t": tenant},
    ).fetchall()
    return [dict(zip(("code", "branches", "for_s", "workflow", "instance"), row, strict=True)) for row in rows]
