"""Schedules: one row for each way in which a workflow starts by itself.

A fire starts its instance under a key of its own, then moves the schedule on, if nobody else has: dying in between, or
two at once, start one instance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.store.connection import Connection, dumps


@dataclass(frozen=True, slots=True)
class Schedule:
    id: int
    namespace: str
    workflow: str
    version: str
    kind: str
    spec: Any
    planned: float | None
    seen_event: int
    note: Any
    fires: int
    last_instance: str | None
    now: float
    created: float


_COLUMNS = (
    "id, namespace, workflow, version, kind, spec, extract(epoch from next_at)::float8, seen_event, note, fires, last_instance::text,"
    " extract(epoch from clock_timestamp())::float8, extract(epoch from created_at)::float8"
)


def replace(c: Connection, namespace: str, workflow: str, version: str, wanted: dict[str, tuple[Any, float | None]]) -> None:
    """The schedules of a workflow, by kind, are these and no others. What has not changed keeps its place in time."""
    c.execute("delete from schedules where namespace = %s and workflow = %s and kind <> all (%s)", (namespace, workflow, list(wanted)))
    for kind, (spec, next_at) in wanted.items():
        c.execute(
            """
            insert into schedules (namespace, workflow, version, kind, spec, next_at, seen_event)
            values (%(n)s, %(w)s, %(v)s, %(k)s, %(spec)s::jsonb, to_timestamp(%(next)s), coalesce((select max(id) from events), 0))
            on conflict (namespace, workflow, kind) do update set version = excluded.version, spec = excluded.spec,
                next_at = case when schedules.spec = excluded.spec then schedules.next_at else excluded.next_at end,
                note = case when schedules.spec = excluded.spec then schedules.note end
            """,
            {"n": namespace, "w": workflow, "v": version, "k": kind, "spec": dumps(spec), "next": next_at},
        )


def due(c: Connection, limit: int) -> list[Schedule]:
    """Those whose time has come."""
    rows = c.execute(f"select {_COLUMNS} from schedules where next_at <= now() order by next_at limit %s", (limit,)).fetchall()
    return [Schedule(*row) for row in rows]


def listening(c: Connection) -> list[Schedule]:
    """Those that wait for events."""
    rows = c.execute(f"select {_COLUMNS} from schedules where kind = 'on'").fetchall()
    return [Schedule(*row) for row in rows]


def fired(c: Connection, schedule: Schedule, instance_id: str | None, next_at: float | None) -> None:
    c.execute(
        "update schedules set fires = fires + 1, last_at = now(), last_instance = %s, next_at = to_timestamp(%s)"
        " where id = %s and fires = %s",
        (instance_id, next_at, schedule.id, schedule.fires),
    )


def heard(c: Connection, schedule: Schedule, seen_event: int, note: Any) -> None:
    c.execute(
        "update schedules set seen_event = %s, note = %s::jsonb where id = %s and seen_event = %s",
        (seen_event, dumps(note), schedule.id, schedule.seen_event),
    )


def plan_after(c: Connection) -> int:
    """`after`: when the last instance has ended, the next one's time is known."""
    rows = c.execute(
        """
        update schedules s set next_at = i.ended_at + make_interval(secs => (s.spec ->> 'seconds')::float8)
        from instances i where s.kind = 'after' and s.next_at is null and i.id = s.last_instance and i.ended_at is not null
        returning s.id
        """
    ).fetchall()
    return len(rows)


def events_since(c: Connection, after: int, limit: int = 200) -> list[tuple[int, dict[str, Any]]]:
    return c.execute(
        "select id, envelope from events where instance_id is null and type <> 'orchestrator.poison' and (id > %s or (at > now() - interval '60 seconds' and id > %s - 10000))"
        " order by id limit %s",
        (after, after, limit),
    ).fetchall()


def all_schedules(c: Connection) -> list[Schedule]:
    return [Schedule(*row) for row in c.execute(f"select {_COLUMNS} from schedules order by namespace, workflow, kind").fetchall()]
