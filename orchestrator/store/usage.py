"""What instances use: the memory and time of the processes that work for them, and the room their histories take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.store.connection import Connection


def of_instance(c: Connection, instance_id: str) -> dict[str, Any] | None:
    """Memory and processor of the processes that hold its branches now, as last measured; bytes of its history."""
    row = c.execute(
        """
        select
            coalesce(sum((b.usage ->> 'memory_mb')::float8) filter (where b.state = 'running'), 0),
            coalesce(sum((b.usage ->> 'cpu_percent')::float8) filter (where b.state = 'running'), 0),
            coalesce(sum(pg_column_size(b.*)), 0)::bigint
                + (select coalesce(sum(pg_column_size(k.*)), 0)::bigint from branches o join checkpoints k on k.branch_id = o.id
                   where o.instance_id = %(id)s),
            count(*) filter (where b.state = 'running')
        from branches b where b.instance_id = %(id)s having count(*) > 0
        """,
        {"id": instance_id},
    ).fetchone()
    return None if row is None else {"memory_mb": row[0], "cpu_percent": row[1], "disk_bytes": row[2], "processes": row[3]}


@dataclass(frozen=True, slots=True)
class Excess:
    instance_id: str
    what: str
    used: float
    allowed: float
    unit: str

    def __str__(self) -> str:
        return f"{self.what} limit exceeded: {self.used:,.1f} {self.unit} used, {self.allowed:,.1f} {self.unit} allowed"


def of_processes(c: Connection, memory_mb: float, cpu_percent: float) -> list[Excess]:
    """Instances whose processes were last measured above what their definition, or else the engine, allows. 0: no limit."""
    rows = c.execute(
        """
        select distinct on (id) id::text, what, used, allowed, unit from (
            select i.id, l.what, (b.usage ->> l.key)::float8 as used,
                coalesce((d.tree -> 'limits' ->> l.key)::float8, nullif(l.allowed, 0)) as allowed, l.unit
            from branches b join instances i on i.id = b.instance_id join definitions d on d.id = i.definition_id,
                (values ('memory_mb', 'memory', %s::float8, 'MB'), ('cpu_percent', 'CPU', %s::float8, '%%')) as l (key, what, allowed, unit)
            where b.state = 'running' and b.usage is not null and i.state = 'RUNNING' and i.phase = 'forward'
        ) measured where used > allowed order by id
        """,
        (memory_mb, cpu_percent),
    ).fetchall()
    return [Excess(*row) for row in rows]


def of_histories(c: Connection, disk_mb: float) -> list[Excess]:
    """Running instances whose history takes more room than is allowed."""
    rows = c.execute(
        """
        select id::text, 'disk', used, allowed, 'MB' from (
            select i.id, coalesce((d.tree -> 'limits' ->> 'disk_mb')::float8, nullif(%s::float8, 0)) as allowed,
                (select sum(pg_column_size(k.*)) / 1048576.0 from branches b join checkpoints k on k.branch_id = b.id
                 where b.instance_id = i.id)::float8 as used
            from instances i join definitions d on d.id = i.definition_id
            where i.state = 'RUNNING' and i.phase = 'forward' and (%s::float8 > 0 or d.tree -> 'limits' ->> 'disk_mb' is not null)
        ) measured where used > allowed
        """,
        (disk_mb, disk_mb),
    ).fetchall()
    return [Excess(*row) for row in rows]


def older_than(c: Connection, seconds: float, limit: int = 500) -> list[str]:
    """Live instances created longer ago than that."""
    rows = c.execute(
        "select id::text from instances where state in ('PENDING', 'RUNNING', 'PAUSED') and phase = 'forward'"
        " and created_at < now() - make_interval(secs => %s) limit %s",
        (seconds, limit),
    ).fetchall()
    return [row[0] for row in rows]
