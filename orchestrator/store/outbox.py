"""The outbox: events that are true and not yet told."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from orchestrator.store.connection import Connection, dumps


@dataclass(frozen=True, slots=True)
class Told:
    id: int
    type: str
    instance_id: str | None
    data: dict[str, Any]
    at: str


def put(c: Connection, type: str, instance_id: str | None, data: str) -> None:
    """An event, its data as JSON text, in the transaction that makes it true."""
    c.execute("insert into outbox (type, instance_id, data) values (%s, %s, %s::jsonb)", (type, instance_id, data))


def tell(c: Connection, type: str, instance_id: str | None, data: Any) -> None:
    put(c, type, instance_id, dumps(data))


def take(c: Connection, limit: int) -> list[Told]:
    """Remove the oldest events; they come back when the transaction does not commit."""
    rows = c.execute(
        """
        with oldest as (select id from outbox order by id limit %s for update skip locked)
        delete from outbox o using oldest where o.id = oldest.id
        returning o.id, o.type, o.instance_id::text, o.data, to_char(o.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
        """,
        (limit,),
    ).fetchall()
    return [Told(*row) for row in sorted(rows)]


def about(c: Connection, instance_ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """What the events of these instances say beside themselves."""
    rows = c.execute(
        """
        select i.id::text, i.workflow, i.trace_id, case when i.outcome = 'COMPLETED' then 1.0 end::float8
        from instances i where i.id = any (%s::uuid[])
        """,
        (list(instance_ids),),
    ).fetchall()
    return {row[0]: {"workflow": row[1], "trace_id": row[2], "progress": row[3]} for row in rows}
