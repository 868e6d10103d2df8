"""Resources: things with a life cycle of their own that workflows bring about, each move kept.

    PENDING → CREATING → ACTIVE → UPDATING → ACTIVE
                           │  DELETING → DELETED            FAILED: when what was being done failed for good

A move belongs to the step that makes it (instance and name): repeated, it is made once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.ids import new_instance_id
from orchestrator.store import locks, outbox
from orchestrator.store.connection import Connection, dumps

MOVES: dict[str, tuple[str | None, ...]] = {
    "PENDING": (None, "DELETED", "FAILED"),
    "CREATING": ("PENDING", "FAILED"),
    "ACTIVE": ("CREATING", "UPDATING"),
    "UPDATING": ("ACTIVE", "FAILED"),
    "DELETING": ("PENDING", "CREATING", "ACTIVE", "UPDATING", "FAILED"),
    "DELETED": ("DELETING",),
    "FAILED": ("PENDING", "CREATING", "ACTIVE", "UPDATING", "DELETING"),
}


@dataclass(frozen=True, slots=True)
class Resource:
    kind: str
    name: str
    tenant: str
    id: str
    state: str
    mode: str | None
    doing: str | None
    data: dict[str, Any]
    error: Any
    created_at: str
    changed_at: str
    silent_s: float = 0.0


_AT = "to_char({0} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
_COLUMNS = (
    f"kind, name, tenant, id::text, state, mode, doing, data, error, {_AT.format('created_at')}, {_AT.format('changed_at')},"
    " extract(epoch from now() - changed_at)::float8"
)


def find(c: Connection, kind: str, name: str, tenant: str = "default", *, lock: bool = False) -> Resource | None:
    row = c.execute(
        f"select {_COLUMNS} from resources where tenant = %s and kind = %s and name = %s" + (" for update" if lock else ""),
        (tenant, kind, name),
    ).fetchone()
    return Resource(*row) if row else None


def all_resources(c: Connection, kind: str | None = None, state: str | None = None, tenant: str | None = None) -> list[Resource]:
    rows = c.execute(
        f"select {_COLUMNS} from resources where (%(kind)s::text is null or kind = %(kind)s)"
        " and (%(state)s::text is null or state = %(state)s) and (%(tenant)s::text is null or tenant = %(tenant)s) order by kind, name",
        {"kind": kind, "state": state, "tenant": tenant},
    ).fetchall()
    return [Resource(*row) for row in rows]


def by_names(c: Connection, names: list[str]) -> list[Resource]:
    return [Resource(*row) for row in c.execute(f"select {_COLUMNS} from resources where name = any (%s::text[])", (names,)).fetchall()]


def lock_telling(c: Connection) -> None:
    locks.hold(c, "telling")


def move(
    c: Connection,
    kind: str,
    name: str,
    to: str,
    *,
    tenant: str = "default",
    by: tuple[str, str] | None = None,
    mode: str | None = None,
    doing: str | None = None,
    data: dict[str, Any] | None = None,
    error: Any = None,
    anew: bool = False,
) -> tuple[str, bool]:
    """Move a resource; gives its state before, and whether the move was made (False: it was made already).

    The caller holds the transaction. A move the table lacks raises `ValueError` with the state it is in.
    `anew`: a resource that was deleted begins a fresh life, with a new id.
    """
    held = find(c, kind, name, tenant, lock=True)
    if by is not None and was_moved(c, by):
        return (held.state if held else ""), False
    before = held.state if held else None
    if before not in MOVES[to]:
        raise ValueError(before or "nothing")
    if held is None or anew:
        c.execute(
            """
            insert into resources (kind, name, tenant, id, state, mode, doing, data)
            values (%(kind)s, %(name)s, %(tenant)s, %(id)s, %(to)s, %(mode)s, %(doing)s, %(data)s::jsonb)
            on conflict (tenant, kind, name) do update set id = excluded.id, state = excluded.state, mode = excluded.mode,
                doing = excluded.doing, data = excluded.data, error = null, created_at = now(), changed_at = now()
            """,
            {
                "kind": kind, "name": name, "tenant": tenant, "id": new_instance_id(), "to": to, "mode": mode, "doing": doing,
                "data": dumps(data or {}),
            },
        )  # fmt: skip
    else:
        c.execute(
            """
            update resources set state = %(to)s, mode = coalesce(%(mode)s, mode), doing = %(doing)s, changed_at = now(),
                data = case when %(data)s::jsonb is null then data else %(data)s::jsonb end, error = %(error)s::jsonb
            where tenant = %(tenant)s and kind = %(kind)s and name = %(name)s
            """,
            {
                "to": to, "mode": mode, "doing": doing, "data": None if data is None else dumps(data),
                "error": None if error is None else dumps(error), "tenant": tenant, "kind": kind, "name": name,
            },
        )  # fmt: skip
    c.execute(
        """
        insert into resource_moves (tenant, kind, name, resource_id, from_state, to_state, by_instance, by_step, detail)
        select tenant, kind, name, id, %(from)s, %(to)s, %(instance)s, %(step)s, %(detail)s::jsonb
        from resources where tenant = %(tenant)s and kind = %(kind)s and name = %(name)s
        """,
        {
            "from": before, "to": to, "instance": by[0] if by else None, "step": by[1] if by else None,
            "detail": dumps({key: value for key, value in (("mode", mode), ("error", error)) if value is not None}),
            "tenant": tenant, "kind": kind, "name": name,
        },
    )  # fmt: skip
    said = {"kind": kind, "name": name, "tenant": tenant, "state": to, "before": before, "mode": mode, "pending": doing is not None}
    outbox.tell(c, "resource.moved", by[0] if by else None, said)
    return before or "", True


def moves(c: Connection, kind: str, name: str, tenant: str = "default", limit: int = 200) -> list[dict[str, Any]]:
    """What became of it, oldest first, through all of its lives."""
    rows = c.execute(
        f"""
        select resource_id::text, from_state, to_state, by_instance::text, by_step, detail, {_AT.format("at")} from (
            select * from resource_moves where tenant = %s and kind = %s and name = %s order by id desc limit %s) m order by id
        """,
        (tenant, kind, name, limit),
    ).fetchall()
    names = ("id", "from", "to", "instance", "step", "detail", "at")
    return [dict(zip(names, row, strict=True)) for row in rows]


def last_deleted_at(c: Connection, kind: str, name: str, tenant: str = "default") -> str | None:
    row = c.execute(
        "select max(at)::text from resource_moves where tenant = %s and kind = %s and name = %s and to_state = 'DELETED'",
        (tenant, kind, name),
    ).fetchone()
    return row[0] if row else None


def was_moved(c: Connection, by: tuple[str, str]) -> bool:
    return c.execute("select 1 from resource_moves where by_instance = %s and by_step = %s", by).fetchone() is not None


def put_data(c: Connection, kind: str, name: str, data: dict[str, Any], tenant: str = "default") -> None:
    """What is known of a resource beside its state."""
    c.execute("update resources set data = %s::jsonb where tenant = %s and kind = %s and name = %s", (dumps(data), tenant, kind, name))


def lock_ports(c: Connection) -> None:
    """One at a time gives out ports."""
    locks.hold(c, "ports")


def ports_in_use(c: Connection, kind: str, but: str) -> set[int]:
    rows = c.execute(
        "select p.value::int from resources r, jsonb_each_text(r.data -> 'ports') p"
        " where r.kind = %s and r.name <> %s and r.state <> 'DELETED' and jsonb_typeof(r.data -> 'ports') = 'object'",
        (kind, but),
    ).fetchall()
    return {row[0] for row in rows}


def queue(c: Connection, kind: str, name: str, tenant: str, by: str) -> None:
    """Something that will be created waits for its turn."""
    held = find(c, kind, name, tenant, lock=True)
    if held is None or held.state in ("DELETED", "FAILED"):
        move(c, kind, name, "PENDING", tenant=tenant, by=(by, "queued"), doing=by, anew=True)


def note_error(c: Connection, kind: str, name: str, error: Any, tenant: str = "default") -> None:
    """What was asked for cannot be, and what is stays."""
    c.execute("update resources set error = %s::jsonb where tenant = %s and kind = %s and name = %s", (dumps(error), tenant, kind, name))


def end_abandoned(c: Connection) -> int:
    """What waits for an instance that ended before it began with it has failed, with that instance's error; gives how many."""
    rows = c.execute(
        r"""
        select r.tenant, r.kind, r.name, r.doing, i.error from resources r
        join instances i on i.id = case when r.doing ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then r.doing::uuid end
        where r.state = 'PENDING' and r.doing is not null and i.ended_at is not null
        """
    ).fetchall()
    for tenant, kind, name, doing, error in rows:
        with c.transaction():
            held = find(c, kind, name, tenant, lock=True)
            if held is not None and held.state == "PENDING" and held.doing == doing:
                move(c, kind, name, "FAILED", tenant=tenant, by=(doing, "never-begun"), error=error or {"message": "cancelled"})
    return len(rows)


def forget(c: Connection, older_than_s: float, limit: int = 10_000) -> int:
    """The end of retention: moves that are long past, and resources that were deleted long ago."""
    rows = c.execute(
        "delete from resource_moves where id in (select id from resource_moves where at < now() - make_interval(secs => %s)"
        " order by id limit %s) returning id",
        (older_than_s, limit),
    ).fetchall()
    c.execute("delete from resources where state = 'DELETED' and changed_at < now() - make_interval(secs => %s)", (older_than_s,))
    return len(rows)
