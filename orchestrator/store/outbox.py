"""The outbox: events that are true and not yet told. One that cannot be told is put aside with the reason, and keeps no other waiting."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.store.connection import Connection, dumps


@dataclass(slots=True)
class Told:
    id: int
    type: str
    instance_id: str | None
    data: dict[str, Any]
    at: str
    progress: float | None = None


def put(c: Connection, type: str, instance_id: str | None, data: str) -> None:
    """An event, its data as JSON text, in the transaction that makes it true."""
    c.execute("insert into outbox (type, instance_id, data) values (%s, %s, %s::jsonb)", (type, instance_id, data))


def tell(c: Connection, type: str, instance_id: str | None, data: Any) -> None:
    put(c, type, instance_id, dumps(data))


def tell_all(c: Connection, type: str, datas: Sequence[Any]) -> None:
    """Several events without an instance."""
    c.execute("insert into outbox (type, data) select %s, d::jsonb from unnest(%s::text[]) d", (type, [dumps(data) for data in datas]))


def take(c: Connection, limit: int) -> list[Told]:
    """Remove the oldest events; they come back when the transaction does not commit."""
    rows = c.execute(
        """
        with oldest as (select id from outbox where put_aside is null order by id limit %s for update skip locked)
        delete from outbox o using oldest where o.id = oldest.id
        returning o.id, o.type, o.instance_id::text, o.data, to_char(o.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        """,
        (limit,),
    ).fetchall()
    return [Told(*row) for row in sorted(rows)]


def put_aside(c: Connection, reasons: Mapping[int, str]) -> None:
    c.execute(
        "update outbox o set put_aside = g.reason from unnest(%s::bigint[], %s::text[]) as g (id, reason) where o.id = g.id",
        (list(reasons), list(reasons.values())),
    )


def put_back(c: Connection, refused: Sequence[tuple[Told, str]]) -> None:
    """Events that this transaction took."""
    c.execute(
        "insert into outbox (id, type, instance_id, data, at, put_aside) overriding system value"
        " select * from unnest(%s::bigint[], %s::text[], %s::uuid[], %s::text[]::jsonb[], %s::timestamptz[], %s::text[])",
        (
            [event.id for event, _ in refused],
            [event.type for event, _ in refused],
            [event.instance_id for event, _ in refused],
            [dumps(event.data) for event, _ in refused],
            [event.at for event, _ in refused],
            [reason for _, reason in refused],
        ),
    )


def take_up(c: Connection) -> int:
    """What was put aside is tried again; gives how many."""
    return c.execute("update outbox set put_aside = null where put_aside is not null").rowcount


def aside(c: Connection) -> dict[str, tuple[int, str]]:
    """How many are put aside, by type, and a reason."""
    rows = c.execute("select type, count(*), min(put_aside) from outbox where put_aside is not null group by type").fetchall()
    return {type: (count, reason) for type, count, reason in rows}


def about(c: Connection, instance_ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """What the events of these instances say beside themselves."""
    rows = c.execute(
        """
        select i.id::text, i.workflow, i.trace_id, i.definition_id, i.namespace, i.version, d.tree ? 'document',
            case when d.tree ? 'document' then i.output end, i.tenant, extract(epoch from i.ended_at - i.created_at)::float8
        from instances i join definitions d on d.id = i.definition_id where i.id = any (%s::uuid[])
        """,
        (list(instance_ids),),
    ).fetchall()
    names = ("workflow", "trace_id", "definition_id", "namespace", "version", "is_document", "output", "tenant", "duration_s")
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}


_AT_ONCE = {"workflow.created": 0.0, "workflow.started": 0.0, "workflow.completed": 1.0}


def note_progress(c: Connection, told: Sequence[Told], steps_of: Callable[[str], int]) -> None:
    """How much of its instance was done when each event became true: steps done or skipped, of the definition's steps."""
    asked = [event for event in told if event.instance_id and event.type not in _AT_ONCE]
    counted = dict(
        c.execute(
            """
            select e.id, (select count(distinct k.position) from branches b join checkpoints k on k.branch_id = b.id
                where b.instance_id = e.instance_id and k.kind in ('step.completed', 'task.skipped') and k.at <= e.at)
            from unnest(%s::bigint[], %s::uuid[], %s::timestamptz[]) as e (id, instance_id, at)
            """,
            ([event.id for event in asked], [event.instance_id for event in asked], [event.at for event in asked]),
        ).fetchall()
        if asked
        else []
    )
    for event in told:
        if event.instance_id:
            done = counted.get(event.id)
            steps = steps_of(event.instance_id) if done else 0
            event.progress = _AT_ONCE.get(event.type, round(min(1.0, done / steps), 4) if done and steps else 0.0)


def count_steps(c: Connection, definition_id: int) -> int:
    row = c.execute(
        "select count(*) from definitions d, jsonb_path_query(d.tree, 'strict $.**?(@.is == \"step\")') where d.id = %s", (definition_id,)
    ).fetchone()
    return int(row[0]) if row else 0
