"""Schedules: one row for each way in which something starts by itself; and their fires, each once.

Moving a schedule on, noting the fire and creating its instance are one transaction over a locked row: two keepers, two beats
or a repetition start one instance. Those of definitions have no `about`; those with names of their own keep their `Spec` there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.store import locks
from orchestrator.store.connection import Connection, dumps


@dataclass(frozen=True, slots=True)
class Schedule:
    id: int
    tenant: str
    name: str
    origin: str
    enabled: bool
    namespace: str
    workflow: str
    version: str
    kind: str
    spec: Any
    about: Any
    planned: float | None
    next: float | None
    seen_event: int
    note: Any
    fires: int
    starts: int
    skips: int
    errors: int
    last: float | None
    last_instance: str | None
    failures: int
    now: float


_COLUMNS = (
    "id, tenant, name, origin, enabled, namespace, workflow, version, kind, spec, about, extract(epoch from planned_at)::float8,"
    " extract(epoch from next_at)::float8, seen_event, note, fires, starts, skips, errors, extract(epoch from last_at)::float8,"
    " last_instance::text, failures, extract(epoch from clock_timestamp())::float8"
)


def replace(c: Connection, tenant: str, namespace: str, workflow: str, version: str, wanted: dict[str, tuple[Any, float | None]]) -> None:
    """The schedules of a definition, by kind, are these and no others. What has not changed keeps its place in time."""
    c.execute(
        "delete from schedules where origin = 'definition' and tenant = %s and namespace = %s and workflow = %s and kind <> all (%s)",
        (tenant, namespace, workflow, list(wanted)),
    )
    for kind, (spec, next_at) in wanted.items():
        c.execute(
            """
            insert into schedules (tenant, name, namespace, workflow, version, kind, spec, planned_at, next_at, seen_event)
            values (%(tenant)s, %(name)s, %(n)s, %(w)s, %(v)s, %(k)s, %(spec)s::jsonb, to_timestamp(%(next)s), to_timestamp(%(next)s),
                coalesce((select max(id) from events), 0))
            on conflict (tenant, name) do update set version = excluded.version, spec = excluded.spec, changed_at = now(),
                planned_at = case when schedules.spec = excluded.spec then schedules.planned_at else excluded.planned_at end,
                next_at = case when schedules.spec = excluded.spec then schedules.next_at else excluded.next_at end,
                note = case when schedules.spec = excluded.spec then schedules.note end
            """,
            {
                "tenant": tenant, "name": f"{namespace}.{workflow}:{kind}", "n": namespace, "w": workflow, "v": version, "k": kind, "spec": dumps(spec),
                "next": next_at,
            },
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A schedule with a name of its own, as it is put."""

    tenant: str
    name: str
    origin: str
    enabled: bool
    namespace: str
    workflow: str
    version: str
    kind: str
    when: dict[str, Any]
    about: dict[str, Any]
    planned: float | None
    next: float | None


def put(c: Connection, row: Row, *, only_new: bool = False) -> bool:
    """Make or change a schedule; what keeps its times keeps its place in time. `only_new`: False when the name is taken."""
    locks.hold(c, "schedules", row.tenant, row.name)
    done = c.execute(
        """
        insert into schedules (tenant, name, origin, enabled, namespace, workflow, version, kind, spec, about, planned_at, next_at, seen_event)
        values (%(tenant)s, %(name)s, %(origin)s, %(enabled)s, %(namespace)s, %(workflow)s, %(version)s, %(kind)s, %(when)s::jsonb,
            %(about)s::jsonb, to_timestamp(%(planned)s), to_timestamp(%(next)s), 0)
        on conflict (tenant, name) do update set origin = excluded.origin, enabled = excluded.enabled, namespace = excluded.namespace,
            workflow = excluded.workflow, version = excluded.version, kind = excluded.kind, spec = excluded.spec, about = excluded.about,
            planned_at = case when schedules.spec = excluded.spec and schedules.enabled and schedules.next_at is not null
                then schedules.planned_at else excluded.planned_at end,
            next_at = case when schedules.spec = excluded.spec and schedules.enabled and schedules.next_at is not null
                then schedules.next_at else excluded.next_at end,
            changed_at = now(), fires = schedules.fires + 1
        where not %(only_new)s or schedules.origin = 'deleted'
        returning id
        """,
        {
            "tenant": row.tenant, "name": row.name, "origin": row.origin, "enabled": row.enabled, "namespace": row.namespace,
            "workflow": row.workflow, "version": row.version, "kind": row.kind, "when": dumps(row.when), "about": dumps(row.about),
            "planned": row.planned, "next": row.next, "only_new": only_new,
        },
    ).fetchone()  # fmt: skip
    return done is not None


def enable(c: Connection, tenant: str, name: str, enabled: bool, planned: float | None, next_at: float | None) -> None:
    """Paused: no next time. Resumed: from the present on."""
    c.execute(
        "update schedules set enabled = %s, planned_at = to_timestamp(%s), next_at = to_timestamp(%s), changed_at = now(),"
        " fires = fires + 1 where tenant = %s and name = %s",
        (enabled, planned, next_at, tenant, name),
    )


def revision(c: Connection, tenant: str, name: str) -> str | None:
    """What people write of it, not where it stands in time."""
    row = c.execute(
        "select md5(jsonb_build_array(spec, about, enabled, origin)::text) from schedules"
        " where tenant = %s and name = %s and origin <> 'deleted'",
        (tenant, name),
    ).fetchone()
    return row[0] if row else None


def delete(c: Connection, tenant: str, name: str) -> bool:
    """It is gone for everybody but the mirror, which takes its entry out of Redis and then the row."""
    locks.hold(c, "schedules", tenant, name)
    row = c.execute(
        "update schedules set origin = 'deleted', enabled = false, planned_at = null, next_at = null, mirrored_at = 'infinity',"
        " fires = fires + 1, changed_at = now() where tenant = %s and name = %s and origin <> 'deleted' returning id",
        (tenant, name),
    ).fetchone()
    return row is not None


def forget_files(c: Connection, origin: str, names: Sequence[str]) -> list[str]:
    """What a file no longer names is deleted; gives the names."""
    rows = c.execute(
        "select name from schedules where origin = %s and name <> all (%s) and tenant = 'default'", (origin, list(names))
    ).fetchall()
    return [row[0] for row in rows if delete(c, "default", row[0])]


def forget_gone(c: Connection, roots: Sequence[str], origins: Sequence[str]) -> list[tuple[str, str]]:
    """What stood below these roots, in files that are not among these, is deleted; gives the names and where they stood."""
    rows = c.execute(
        "select name, origin from schedules where exists (select 1 from unnest(%s::text[]) root where starts_with(origin, root))"
        " and origin <> all (%s) and tenant = 'default'",
        (list(roots), list(origins)),
    ).fetchall()
    return [(name, origin) for name, origin in rows if delete(c, "default", name)]


def find(c: Connection, tenant: str, name: str, *, lock: bool = False) -> Schedule | None:
    row = c.execute(
        f"select {_COLUMNS} from schedules where tenant = %s and name = %s and origin <> 'deleted'" + (" for update" if lock else ""),
        (tenant, name),
    ).fetchone()
    return Schedule(*row) if row else None


def all_schedules(c: Connection, tenant: str | None = None, workflow: str | None = None, namespace: str | None = None) -> list[Schedule]:
    rows = c.execute(
        f"select {_COLUMNS} from schedules where origin <> 'deleted' and (%(t)s::text is null or tenant = %(t)s)"
        " and (%(w)s::text is null or workflow = %(w)s) and (%(n)s::text is null or namespace = %(n)s) order by tenant, name",
        {"t": tenant, "w": workflow, "n": namespace},
    ).fetchall()
    return [Schedule(*row) for row in rows]


# ── firing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def due(c: Connection, limit: int, grace_s: float = 0.0, only: int | None = None) -> list[Schedule]:
    """Those whose time has come."""
    rows = c.execute(
        f"select {_COLUMNS} from schedules where enabled and next_at <= now() - make_interval(secs => %(grace)s)"
        " and (retry_at is null or retry_at <= now()) and (%(only)s::bigint is null or id = %(only)s) order by next_at limit %(limit)s",
        {"grace": grace_s, "only": only, "limit": limit},
    ).fetchall()
    return [Schedule(*row) for row in rows]


def lock_unmoved(c: Connection, found: Sequence[Schedule]) -> set[int]:
    """Those of them that nobody has moved on and nobody is moving on: ours until the commit."""
    rows = c.execute(
        "select s.id from schedules s join unnest(%s::bigint[], %s::bigint[]) as g (id, fires) on g.id = s.id and g.fires = s.fires"
        " where s.enabled for update of s skip locked",
        ([one.id for one in found], [one.fires for one in found]),
    ).fetchall()
    return {row[0] for row in rows}


def running(c: Connection, ids: Sequence[int]) -> dict[int, list[str]]:
    """Instances of schedules that have not ended, the oldest first."""
    found: dict[int, list[str]] = {}
    for schedule_id, instance_id in c.execute(
        "select f.schedule_id, i.id::text from fires f join instances i on i.id = f.instance_id"
        " where f.is_open and f.schedule_id = any (%s::bigint[]) and i.outcome is null order by f.planned_at",
        (list(ids),),
    ).fetchall():
        found.setdefault(schedule_id, []).append(instance_id)
    return found


@dataclass(frozen=True, slots=True)
class Fire:
    """What became of one planned time: started, skipped, missed or refused."""

    schedule_id: int
    planned: float
    outcome: str
    by: str
    instance_id: str | None = None
    reason: str | None = None
    timeout_s: float | None = None


def note_fires(c: Connection, fires: Sequence[Fire]) -> set[tuple[int, float]]:
    """Gives those that are new: a time that has fired fires no more."""
    rows = c.execute(
        """
        insert into fires (schedule_id, planned_at, outcome, instance_id, reason, by, ends_at, is_open)
        select id, to_timestamp(planned), outcome, instance_id::uuid, reason, by, now() + make_interval(secs => ends), instance_id is not null
        from unnest(%b::bigint[], %b::float8[], %b::text[], %b::text[], %b::text[], %b::text[], %b::float8[])
            as g (id, planned, outcome, instance_id, reason, by, ends)
        on conflict do nothing returning schedule_id, extract(epoch from planned_at)::float8
        """,
        (
            [f.schedule_id for f in fires], [f.planned for f in fires], [f.outcome for f in fires], [f.instance_id for f in fires],
            [f.reason for f in fires], [f.by for f in fires], [f.timeout_s for f in fires],
        ),
    ).fetchall()  # fmt: skip
    return {(row[0], round(row[1], 3)) for row in rows}


@dataclass(frozen=True, slots=True)
class Moved:
    """A schedule after its fire."""

    id: int
    planned: float | None
    next: float | None
    starts: int = 0
    skips: int = 0
    errors: int = 0
    instance_id: str | None = None


def move_on(c: Connection, moved: Sequence[Moved]) -> None:
    c.execute(
        """
        update schedules s set fires = s.fires + 1, starts = s.starts + g.starts, skips = s.skips + g.skips, errors = s.errors + g.errors,
            planned_at = to_timestamp(g.planned), next_at = to_timestamp(g.next),
            failures = 0, retry_at = null, last_at = case when g.starts > 0 then now() else s.last_at end, last_instance = coalesce(g.instance_id::uuid, s.last_instance)
        from unnest(%b::bigint[], %b::float8[], %b::float8[], %b::bigint[], %b::bigint[], %b::bigint[], %b::text[])
            as g (id, planned, next, starts, skips, errors, instance_id) where s.id = g.id
        """,
        (
            [m.id for m in moved], [m.planned for m in moved], [m.next for m in moved], [m.starts for m in moved], [m.skips for m in moved],
            [m.errors for m in moved], [m.instance_id for m in moved],
        ),
    )  # fmt: skip


def note_start(c: Connection, schedule_id: int, instance_id: str) -> None:
    """A start out of turn: counted, and the schedule keeps its place in time, wherever that is by now."""
    c.execute(
        "update schedules set starts = starts + 1, last_at = now(), last_instance = %s::uuid where id = %s", (instance_id, schedule_id)
    )


def put_aside(c: Connection, schedule_id: int, pause_s: float) -> None:
    """It failed: it is left alone for so long, and is looked at by itself after that."""
    c.execute(
        "update schedules set failures = failures + 1, retry_at = now() + make_interval(secs => %s) where id = %s", (pause_s, schedule_id)
    )


def well_again(c: Connection, schedule_id: int) -> None:
    c.execute("update schedules set failures = 0, retry_at = null where id = %s and failures > 0", (schedule_id,))


def to_plan_after(c: Connection) -> list[Schedule]:
    """`after` schedules whose next time may be known by now."""
    rows = c.execute(
        f"select {_COLUMNS} from schedules where kind = 'after' and enabled and next_at is null and (retry_at is null or retry_at <= now())"
    ).fetchall()
    return [Schedule(*row) for row in rows]


def plan_after(c: Connection, only: int | None = None) -> int:
    """`after`: when the last instance has ended, the next one's time is known."""
    rows = c.execute(
        """
        update schedules s set planned_at = i.ended_at + make_interval(secs => (s.spec ->> 'seconds')::float8),
            next_at = i.ended_at + make_interval(secs => (s.spec ->> 'seconds')::float8)
        from instances i where s.kind = 'after' and s.enabled and s.next_at is null and i.id = s.last_instance and i.ended_at is not null
          and (s.retry_at is null or s.retry_at <= now()) and (%(only)s::bigint is null or s.id = %(only)s)
        returning s.id
        """,
        {"only": only},
    ).fetchall()
    return len(rows)


# ── after the fire ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Open:
    """A fire whose instance has ended, or should have."""

    schedule_id: int
    planned: float
    instance_id: str
    retries: int
    outcome: str | None
    state: str
    ended_s_ago: float
    about: Any


def open_fires(c: Connection, limit: int) -> list[Open]:
    rows = c.execute(
        """
        select f.schedule_id, extract(epoch from f.planned_at)::float8, i.id::text, f.retries, i.outcome, i.state,
            extract(epoch from now() - coalesce(i.ended_at, now()))::float8, s.about
        from fires f join schedules s on s.id = f.schedule_id join instances i on i.id = f.instance_id
        where f.is_open and (i.outcome is not null or f.ends_at < now()) order by f.at limit %s
        """,
        (limit,),
    ).fetchall()
    return [Open(*row) for row in rows]


def close(c: Connection, schedule_id: int, instance_id: str, *, failed: bool) -> None:
    row = c.execute(
        "update fires set is_open = false where schedule_id = %s and instance_id = %s and is_open returning 1", (schedule_id, instance_id)
    ).fetchone()
    if row is not None and failed:
        c.execute("update schedules set errors = errors + 1 where id = %s", (schedule_id,))


def retried(c: Connection, schedule_id: int, instance_id: str, retries: int, timeout_s: float | None) -> bool:
    """False: somebody else said so first."""
    row = c.execute(
        "update fires set retries = retries + 1, ends_at = now() + make_interval(secs => %s)"
        " where schedule_id = %s and instance_id = %s and retries = %s returning 1",
        (timeout_s, schedule_id, instance_id, retries),
    ).fetchone()
    return row is not None


def history(c: Connection, schedule_id: int, limit: int, before: float | None = None) -> list[dict[str, Any]]:
    """The newest fires first."""
    rows = c.execute(
        "select extract(epoch from f.planned_at)::float8, extract(epoch from f.at)::float8, f.outcome, f.instance_id::text, i.state, f.reason,"
        " f.by, f.retries from fires f left join instances i on i.id = f.instance_id where f.schedule_id = %(id)s"
        " and (%(before)s::float8 is null or f.planned_at < to_timestamp(%(before)s)) order by f.planned_at desc limit %(limit)s",
        {"id": schedule_id, "before": before, "limit": limit},
    ).fetchall()
    return [dict(zip(("planned", "at", "outcome", "instance_id", "state", "reason", "by", "retries"), row, strict=True)) for row in rows]


def forget(c: Connection, older_than_s: float, limit: int = 10_000) -> int:
    """The end of retention; and rows that no mirror came for."""
    c.execute("delete from schedules where origin = 'deleted' and changed_at < now() - interval '1 day'")
    rows = c.execute(
        "delete from fires where ctid = any (array (select ctid from fires where at < now() - make_interval(secs => %s) and not is_open"
        " limit %s)) returning 1",
        (older_than_s, limit),
    ).fetchall()
    return len(rows)


# ── the mirror ──────────────────────────────────────────────────────────────────────────────────────────────────────


def unmirrored(c: Connection, limit: int) -> list[Schedule]:
    rows = c.execute(
        f"select {_COLUMNS} from schedules where mirrored_at is distinct from next_at order by next_at nulls first limit %s", (limit,)
    ).fetchall()
    return [Schedule(*row) for row in rows]


def mirrored(c: Connection, found: Sequence[Schedule]) -> None:
    """What the mirror shows now. A schedule that moved on meanwhile is unmirrored again."""
    c.execute("delete from schedules where id = any (%s::bigint[]) and origin = 'deleted'", ([one.id for one in found],))
    c.execute(
        "update schedules s set mirrored_at = to_timestamp(g.next) from unnest(%b::bigint[], %b::float8[]) as g (id, next) where s.id = g.id",
        ([one.id for one in found], [one.next for one in found]),
    )


def unmirror_all(c: Connection) -> None:
    c.execute("update schedules set mirrored_at = 'infinity' where next_at is not null")


# ── definitions that listen ─────────────────────────────────────────────────────────────────────────────────────────


def listening(c: Connection) -> list[Schedule]:
    """Those that wait for events."""
    rows = c.execute(
        f"select {_COLUMNS} from schedules where kind = 'on' and enabled and (retry_at is null or retry_at <= now())"
    ).fetchall()
    return [Schedule(*row) for row in rows]


def heard(c: Connection, schedule: Schedule, seen_event: int, note: Any) -> None:
    c.execute(
        "update schedules set seen_event = %s, note = %s::jsonb where id = %s and seen_event = %s",
        (seen_event, dumps(note), schedule.id, schedule.seen_event),
    )


def events_since(c: Connection, after: int, limit: int = 200) -> list[tuple[int, dict[str, Any]]]:
    return c.execute(
        "select id, envelope from events where instance_id is null and type <> 'orchestrator.poison' and (id > %s or (at > now() - interval '60 seconds' and id > %s - 10000))"
        " order by id limit %s",
        (after, after, limit),
    ).fetchall()
