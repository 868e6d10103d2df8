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


# What is held is little, what runs may be much: the branches are found first, and instances by their ids alone.
_OF_PROCESSES = """
with held as materialized (
    select instance_id, usage from branches where state = 'running' and lease_until > now() - interval '1 hour' and usage is not null
)
select distinct on (id) id::text, what, used, allowed, unit from (
    select i.id, l.what, (h.usage ->> l.key)::float8 as used,
        coalesce((d.tree -> 'limits' ->> l.key)::float8, nullif(l.allowed, 0)) as allowed, l.unit
    from held h join instances i on i.id = h.instance_id join definitions d on d.id = i.definition_id,
        (values ('memory_mb', 'memory', %s::float8, 'MB'), ('cpu_percent', 'CPU', %s::float8, '%%')) as l (key, what, allowed, unit)
    where i.state || '' = 'RUNNING' and i.phase = 'forward'
) measured where used > allowed order by id
"""


def of_processes(c: Connection, memory_mb: float, cpu_percent: float) -> list[Excess]:
    """Instances whose processes were last measured above what their definition, or else the engine, allows. 0: no limit."""
    return [Excess(*row) for row in c.execute(_OF_PROCESSES, (memory_mb, cpu_percent)).fetchall()]


def of_histories(c: Connection, disk_mb: float) -> list[Excess]:
    """Running instances whose history takes more room than is allowed; weighed only where a limit is set."""
    limited = c.execute(
        "select id, name, coalesce((tree -> 'limits' ->> 'disk_mb')::float8, nullif(%s::float8, 0)) from definitions"
        " where %s::float8 > 0 or tree -> 'limits' ->> 'disk_mb' is not null",
        (disk_mb, disk_mb),
    ).fetchall()
    found = []
    for definition_id, workflow, allowed in limited:
        rows = c.execute(
            """
            select id::text, used from (
                select i.id, (select sum(pg_column_size(k.*)) / 1048576.0 from branches b join checkpoints k on k.branch_id = b.id
                    where b.instance_id = i.id)::float8 as used
                from instances i where i.workflow = %s and i.definition_id = %s and i.state || '' = 'RUNNING' and i.phase = 'forward'
            ) measured where used > %s
            """,
            (workflow, definition_id, allowed),
        ).fetchall()
        found += [Excess(instance_id, "disk", used, allowed, "MB") for instance_id, used in rows]
    return found


def older_than(c: Connection, seconds: float, limit: int = 500) -> list[str]:
    """Live instances that were created, or retried, longer ago than that."""
    rows = c.execute(
        "select id::text from instances i where state in ('PENDING', 'RUNNING', 'PAUSED') and phase = 'forward'"
        " and created_at < now() - make_interval(secs => %s)"
        " and not exists (select 1 from audit a where a.instance_id = i.id and a.action = 'retry' and a.at >= now() - make_interval(secs => %s))"
        " limit %s",
        (seconds, seconds, limit),
    ).fetchall()
    return [row[0] for row in rows]
