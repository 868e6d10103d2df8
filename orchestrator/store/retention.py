"""The end of ended instances: their history goes, their record stays or goes, too."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.store import partitions, security
from orchestrator.store.connection import Connection


def claim_old(c: Connection, older_than_s: float, limit: int, only: Sequence[str] | None = None) -> list[str]:
    rows = c.execute(
        """
        select id::text from instances
        where state in ('COMPLETED', 'FAILED', 'CANCELLED') and ended_at < now() - make_interval(secs => %s)
          and (%s::uuid[] is null or id = any (%s::uuid[]))
        order by ended_at limit %s for update skip locked
        """,
        (older_than_s, *(None if only is None else list(only),) * 2, limit),
    ).fetchall()
    return [row[0] for row in rows]


def strip(c: Connection, ids: Sequence[str]) -> None:
    """Remove branches, facts and signals, and say so in the audit.

    Facts in a range of histories that is full stay where they are, found by nobody, until the range is dropped whole.
    """
    c.execute(
        "delete from checkpoints k using branches b where b.id = k.branch_id and b.instance_id = any (%s::uuid[]) and b.id >= %s",
        (list(ids), partitions.open_from(c)),
    )
    c.execute("delete from branches where instance_id = any (%s::uuid[])", (list(ids),))
    c.execute("delete from events where instance_id = any (%s::uuid[])", (list(ids),))
    c.execute(
        "insert into audit (actor, action, source, instance_id, workflow, from_state, to_state)"
        " select 'engine', 'cleanup', 'engine', id, workflow, state, 'CLEANING_UP' from instances where id = any (%s::uuid[])",
        (list(ids),),
    )


def archive(c: Connection, ids: Sequence[str]) -> None:
    """The record stays readable, with its outcome."""
    c.execute("update instances set state = 'CLEANING_UP' where id = any (%s::uuid[])", (list(ids),))


def delete(c: Connection, ids: Sequence[str]) -> None:
    """The audit keeps when they began and how they ended."""
    security.keep_moves(c, ids, "begin", "complete", "fail", "cancel")
    c.execute("delete from instances where id = any (%s::uuid[])", (list(ids),))


def claim_ended(c: Connection, ids: Sequence[str], tenant: str | None) -> list[str]:
    """Those that have ended, of these, locked."""
    rows = c.execute(
        "select id::text from instances where id = any (%s::uuid[]) and (%s::text is null or tenant = %s)"
        " and state in ('COMPLETED', 'FAILED', 'CANCELLED', 'CLEANING_UP') for update",
        (list(ids), tenant, tenant),
    ).fetchall()
    return [row[0] for row in rows]


def note_cleanup(c: Connection, count: int) -> None:
    """When histories were last cleaned up, and how many: `orchestrator stats` tells."""
    c.execute(
        "insert into chores (name, at, data) values ('cleanup', now(), jsonb_build_object('cleaned', %s::int))"
        " on conflict (name) do update set at = excluded.at, data = excluded.data",
        (count,),
    )


def last_cleanup(c: Connection) -> dict[str, object] | None:
    row = c.execute(
        "select to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), data from chores where name = 'cleanup'"
    ).fetchone()
    return None if row is None else {"at": row[0], **row[1]}
