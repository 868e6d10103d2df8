"""Triggers as they are stored, and the windows in which they gather events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.store import locks
from orchestrator.store.connection import Connection, dumps


@dataclass(frozen=True, slots=True)
class StoredTrigger:
    tenant: str
    name: str
    spec: dict[str, Any]
    origin: str
    enabled: bool
    changed_at: str


_COLUMNS = "tenant, name, spec, origin, enabled, to_char(changed_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"


def put(c: Connection, tenant: str, name: str, spec: dict[str, Any], origin: str) -> bool:
    """Make or change one. False: it was so already, or (a file) somebody made one of that name by hand, which stays."""
    locks.hold(c, "triggers", tenant, name)
    row = c.execute(
        """
        insert into triggers (tenant, name, spec, origin) values (%(tenant)s, %(name)s, %(spec)s::jsonb, %(origin)s)
        on conflict (tenant, name) do update set spec = excluded.spec, origin = excluded.origin, changed_at = now()
        where triggers.spec <> excluded.spec and (triggers.origin like 'file:%%' or excluded.origin not like 'file:%%')
        returning id
        """,
        {"tenant": tenant, "name": name, "spec": dumps(spec), "origin": origin},
    ).fetchone()
    return row is not None


def revision(c: Connection, tenant: str, name: str) -> str | None:
    row = c.execute(
        "select md5(jsonb_build_array(spec, enabled, origin)::text) from triggers where tenant = %s and name = %s", (tenant, name)
    ).fetchone()
    return row[0] if row else None


def enable(c: Connection, tenant: str, name: str, enabled: bool) -> bool:
    locks.hold(c, "triggers", tenant, name)
    row = c.execute(
        "update triggers set enabled = %s, changed_at = now() where tenant = %s and name = %s returning id", (enabled, tenant, name)
    ).fetchone()
    return row is not None


def delete(c: Connection, tenant: str, name: str) -> bool:
    locks.hold(c, "triggers", tenant, name)
    return c.execute("delete from triggers where tenant = %s and name = %s returning id", (tenant, name)).fetchone() is not None


def forget_files(c: Connection, origin: str, names: Sequence[str]) -> list[str]:
    """Triggers of a file that it no longer names."""
    rows = c.execute("delete from triggers where origin = %s and name <> all (%s::text[]) returning name", (origin, list(names))).fetchall()
    return [row[0] for row in rows]


def all_triggers(c: Connection, tenant: str | None = None) -> list[StoredTrigger]:
    rows = c.execute(
        f"select {_COLUMNS} from triggers where %(tenant)s::text is null or tenant = %(tenant)s order by tenant, name", {"tenant": tenant}
    ).fetchall()
    return [StoredTrigger(*row) for row in rows]


def effects_per_trigger(c: Connection) -> dict[tuple[str, str], int]:
    """By tenant and name."""
    counted = "select e.tenant, f.trigger, count(*) from effects f join events e on e.id = f.event_id group by e.tenant, f.trigger"
    return {(tenant, name): count for tenant, name, count in c.execute(counted)}


# ── windows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Window:
    id: int
    tenant: str
    trigger: str
    key: str
    events: list[int]


def debounce(c: Connection, tenant: str, trigger: str, key: str, number: int, quiet_s: float) -> None:
    """Only the last event counts, once it has been quiet for so long."""
    c.execute(
        """
        insert into windows (tenant, trigger, key, due_at, events, count)
        values (%(tenant)s, %(trigger)s, %(key)s, now() + make_interval(secs => %(s)s), array[%(number)s]::bigint[], 1)
        on conflict (tenant, trigger, key) do update
            set due_at = excluded.due_at, events = array[greatest(excluded.events[1], windows.events[1])], count = windows.count + 1
        """,
        {"tenant": tenant, "trigger": trigger, "key": key, "number": number, "s": quiet_s},
    )


def throttle(c: Connection, tenant: str, trigger: str, key: str, number: int, limit: int, per_s: float) -> bool:
    """Whether this event may pass: at most so many in a window that begins with the first."""
    row = c.execute(
        """
        insert into windows (tenant, trigger, key, due_at, events, count)
        values (%(tenant)s, %(trigger)s, %(key)s, now() + make_interval(secs => %(s)s), array[%(number)s]::bigint[], 1)
        on conflict (tenant, trigger, key) do update
            set due_at = case when windows.due_at <= now() then excluded.due_at else windows.due_at end,
                events = case when windows.due_at <= now() then excluded.events
                              when %(number)s = any (windows.events) then windows.events else windows.events || %(number)s::bigint end,
                count = case when windows.due_at <= now() then 1
                             when %(number)s = any (windows.events) then windows.count else windows.count + 1 end
        returning array_position(events, %(number)s::bigint)
        """,
        {"tenant": tenant, "trigger": trigger, "key": key, "number": number, "s": per_s},
    ).fetchone()
    assert row is not None
    return int(row[0]) <= limit


def gather(c: Connection, tenant: str, trigger: str, key: str, number: int, size: int, within_s: float) -> None:
    """Events are gathered until they are so many or the first has waited so long. A full window is due at once."""
    c.execute(
        """
        insert into windows (tenant, trigger, key, due_at, events, count)
        values (%(tenant)s, %(trigger)s, %(key)s, now() + make_interval(secs => case when %(size)s <= 1 then 0 else %(s)s end),
                array[%(number)s]::bigint[], 1)
        on conflict (tenant, trigger, key) do update
            set events = case when %(number)s = any (windows.events) then windows.events else windows.events || %(number)s::bigint end,
                count = windows.count + 1,
                due_at = case when cardinality(windows.events) + 1 >= %(size)s then now() else windows.due_at end
        """,
        {"tenant": tenant, "trigger": trigger, "key": key, "number": number, "size": size, "s": within_s},
    )


def due_windows(c: Connection, limit: int) -> list[Window]:
    """Taken one by one, inside the transaction that lets them have their effect."""
    rows = c.execute(
        "select id, tenant, trigger, key, events from windows where due_at <= now() order by due_at limit %s for update skip locked",
        (limit,),
    ).fetchall()
    return [Window(*row) for row in rows]


def close_window(c: Connection, id: int) -> None:
    c.execute("delete from windows where id = %s", (id,))


def envelopes(c: Connection, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """In their order."""
    return [
        row[0] for row in c.execute("select envelope from events where id = any (%s::bigint[]) order by id", (list(numbers),)).fetchall()
    ]
