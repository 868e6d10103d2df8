"""What is new since a moment ago: asked by those who show it as it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row

from orchestrator.store.connection import Connection

_AT = "to_char({} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"


def standing(c: Connection, instance_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How instances are."""
    with c.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            f"""
            select id::text, workflow, state as status, outcome, phase, {_AT.format("started_at")} as started_at,
                {_AT.format("ended_at")} as ended_at,
                case when ended_at is not null then output end as output, error
            from instances where id = any (%s::uuid[])
            """,
            (list(instance_ids),),
        ).fetchall()
    return {row["id"]: row for row in rows}


def facts(c: Connection, instance_ids: Sequence[str], lately_s: float | None, limit: int) -> list[dict[str, Any]]:
    """Facts of instances, of the last seconds or all of them, the oldest first; each with a name of its own."""
    with c.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            f"""
            select * from (
                select b.instance_id::text as instance_id, k.branch_id || '-' || k.seq as name, b.position as branch, k.seq, k.position,
                    k.kind, k.attempt, k.data, {_AT.format("k.at")} as at, k.at as moment, k.branch_id
                from branches b join checkpoints k on k.branch_id = b.id
                where b.instance_id = any (%s::uuid[]) and (%s::float8 is null or k.at > now() - make_interval(secs => %s))
                order by k.at desc, k.branch_id desc, k.seq desc limit %s
            ) newest order by moment, branch_id, seq
            """,
            (list(instance_ids), lately_s, lately_s, limit),
        ).fetchall()


def facts_since(c: Connection, instance_ids: Sequence[str], since: str | None, limit: int) -> list[dict[str, Any]]:
    """The oldest first, after a moment."""
    with c.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            f"""
            select b.instance_id::text as instance_id, k.branch_id || '-' || k.seq as name, k.position, k.kind, k.data, {_AT.format("k.at")} as at
            from branches b join checkpoints k on k.branch_id = b.id
            where b.instance_id = any (%s::uuid[]) and (%s::timestamptz is null or k.at > %s::timestamptz)
            order by k.at, k.branch_id, k.seq limit %s
            """,
            (list(instance_ids), since, since, limit),
        ).fetchall()


@dataclass(slots=True)
class Tide:
    """Up to which number events are complete: a number is taken before its transaction commits, and may be seen after a later one.

    What was the newest when those transactions began that write now is complete once they have ended.
    """

    complete: int | None = None
    _mark: tuple[int, int] | None = None

    def rise(self, c: Connection) -> int | None:
        row = c.execute(
            "select pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8, coalesce((select max(id) from events), 0)"
            " from pg_current_snapshot() s"
        ).fetchone()
        assert row is not None
        oldest, next_one, newest = row
        if self._mark is None:
            self._mark = (newest, next_one)
        elif oldest >= self._mark[1]:
            self.complete, self._mark = self._mark[0], (newest, next_one)
        return self.complete


def events(c: Connection, after: int, until: int, limit: int) -> list[dict[str, Any]]:
    with c.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            f"""
            select id as number, event_id as id, type, source, tenant, instance_id, order_key as key, envelope, {_AT.format("at")} as at
            from events e where e.id > %s and e.id <= %s order by e.id limit %s
            """,
            (after, until, limit),
        ).fetchall()
