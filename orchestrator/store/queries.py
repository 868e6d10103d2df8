"""Questions about instances and what is around them. Those whose filters change from call to call are `lists`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg.rows import dict_row

from orchestrator.store import retention, security
from orchestrator.store.connection import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which instances. Everything given must hold."""

    state: tuple[str, ...] = ()
    namespace: str | None = None
    workflow: str | None = None
    version: str | None = None
    tenant: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    parent_id: str | None = None
    search: str | None = None
    id_prefix: str = ""
    limit: int = 100
    offset: int = 0
    after: tuple[dt.datetime, str] | None = None
    """When the last one seen was made, and its id: what is older follows, whatever was started since."""


_INSTANCE = """
select id::text, workflow, version, namespace, tenant, state, outcome, phase, compensation, input, output, error, labels, metadata, priority,
    trace_id, parent_id::text, forked_from::text, source, definition_id,
    to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as created_at,
    to_char(started_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as started_at,
    to_char(ended_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') as ended_at,
    round(extract(epoch from ended_at - coalesce(started_at, created_at)), 3)::float8 as duration_s,
    extract(epoch from coalesce(started_at, created_at))::float8 as began, extract(epoch from now())::float8 as now
from instances where id = %s
"""


def instance(c: Connection, instance_id: str) -> dict[str, Any] | None:
    """Everything about one instance."""
    with c.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_INSTANCE, (instance_id,)).fetchone()


def existing(c: Connection, ids: Sequence[str]) -> list[str]:
    rows = c.execute("select id::text from instances where id = any (%s::uuid[])", (list(ids),)).fetchall()
    return [row[0] for row in rows]


def plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    return str(value) if type(value).__name__ == "UUID" else value


def _dicts(c: Connection, sql: str, arguments: Any = ()) -> list[dict[str, Any]]:
    with c.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(sql, arguments).fetchall()
    return [{key: plain(value) for key, value in row.items()} for row in rows]


def now(c: Connection) -> float:
    row = c.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
    assert row is not None
    return float(row[0])


def matching_ids(c: Connection, text: str) -> list[str]:
    if len(text) < 4 or not set(text.lower()) <= set("0123456789abcdef-"):
        return []
    text = text.lower()
    rows = c.execute(
        "select id::text from instances where id::text like %s or id::text like %s order by created_at desc limit 2",
        (f"{text}%", f"%{text}"),
    ).fetchall()
    return [row[0] for row in rows]


def stats(c: Connection) -> dict[str, Any]:
    """Counts by state and workflow, average time, and what is on its way."""
    states = c.execute("select state, count(*) from instances group by state").fetchall()
    workflows = c.execute(
        """
        select workflow, count(*), count(*) filter (where outcome = 'COMPLETED'), count(*) filter (where outcome = 'FAILED'),
            avg(extract(epoch from ended_at - started_at))::float8
        from instances group by workflow order by workflow
        """
    ).fetchall()
    waiting = c.execute("select state, count(*) from branches where state <> 'closed' group by state").fetchall()
    average = c.execute(
        "select avg(extract(epoch from ended_at - started_at))::float8 from instances where outcome = 'COMPLETED'"
    ).fetchone()
    return {
        "total": sum(number for _, number in states),
        "states": dict(states),
        "workflows": [
            {"workflow": name, "total": total, "completed": done, "failed": failed, "average_s": seconds}
            for name, total, done, failed, seconds in workflows
        ],
        "branches": dict(waiting),
        "average_s": average[0] if average else None,
        "last_cleanup": retention.last_cleanup(c),
        "timers": _number(c, "select count(*) from timers"),
        "dead_letters": _number(c, "select count(*) from dead_letters where resolved_at is null"),
        "outbox": _number(c, "select count(*) from outbox where put_aside is null"),
    }


def _number(c: Connection, sql: str) -> int:
    row = c.execute(sql).fetchone()
    return int(row[0]) if row else 0


def history(c: Connection, instance_id: str) -> list[dict[str, Any]]:
    return _dicts(
        c,
        """
        select b.position as branch, k.seq, k.position, k.kind, k.attempt, k.data, k.at
        from branches b join checkpoints k on k.branch_id = b.id where b.instance_id = %s order by k.at, k.branch_id, k.seq
        """,
        (instance_id,),
    )


def audit(c: Connection, instance_id: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest first; of one instance, with what the engine did of itself."""
    return security.audited(c, security.AuditFilter(instance_id=instance_id), limit)


def dead_letters(c: Connection, tenant: str | None = None, before: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
    """The newest first."""
    return _dicts(
        c,
        """
        select d.id, d.instance_id, i.workflow, d.position, d.reason, d.error, d.at
        from dead_letters d join instances i on i.id = d.instance_id
        where d.resolved_at is null and (%(tenant)s::text is null or i.tenant = %(tenant)s) and (%(before)s::bigint is null or d.id < %(before)s)
        order by d.id desc limit %(limit)s
        """,
        {"tenant": tenant, "before": before, "limit": limit},
    )


def timers(c: Connection, limit: int) -> list[dict[str, Any]]:
    return _dicts(
        c,
        """
        select t.due_at, t.kind, b.instance_id, b.position, i.workflow, i.state
        from timers t join branches b on b.id = t.branch_id join instances i on i.id = b.instance_id
        where t.due_at < '9999-01-01' order by t.due_at limit %s
        """,
        (limit,),
    )


def workers(c: Connection) -> list[dict[str, Any]]:
    return _dicts(
        c,
        """
        select w.*, extract(epoch from now() - w.seen_at)::float8 as silent_s,
            (select count(*) from branches b where b.state = 'running' and b.owner like w.hostname || '/' || w.id || '/%%') as holds,
            exists (select 1 from leadership l where l.owner = w.id and l.until > now()) as leads
        from workers w order by started_at
        """,
        {},
    )


def without_progress(c: Connection, older_than_s: float) -> list[dict[str, Any]]:
    """Instances that run and have not moved for so long, and what each of their branches does."""
    return _dicts(
        c,
        """
        select i.id, i.workflow, b.position, b.state, b.doing, extract(epoch from now() - b.queued_at)::float8 as since_s
        from instances i join branches b on b.instance_id = i.id
        where i.state = 'RUNNING' and b.state in ('queued', 'running') and b.queued_at < now() - make_interval(secs => %s)
        order by b.queued_at limit 50
        """,
        (older_than_s,),
    )
