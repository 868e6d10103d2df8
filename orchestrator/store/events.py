"""Events: kept once each by (source, id), found by whoever listens. What a listener took stands in its history."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection, dumps


def keep(c: Connection, envelope: dict[str, Any], instance_id: str | None, tenant: str) -> int | None:
    """Store an event. None: it was here before."""
    row = c.execute(
        """
        insert into events (source, event_id, type, instance_id, tenant, envelope) values (%s, %s, %s, %s, %s, %s::jsonb)
        on conflict (source, event_id) do nothing returning id
        """,
        (envelope["source"], envelope["id"], envelope["type"], instance_id, tenant, dumps(envelope)),
    ).fetchone()
    return row[0] if row else None


# An event's number is taken before its commit: a lower one may become visible after a higher one was considered. Whoever
# reads on from a number therefore looks back this far, and leaves out by number what was taken already.
_LOOK_BACK_S = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a listener wants to hear: types (None: any) since its instance was created, after a number, less what it considered."""

    instance: str
    tenant: str
    types: list[str] | None
    since: float
    after: int
    forgotten: int
    considered: list[int]


def after(c: Connection, asked: Asked, limit: int = 200) -> list[tuple[int, dict[str, Any]]]:
    """Events a listener of this instance has not considered: its own, and those for everyone."""
    return c.execute(
        """
        select id, envelope from events
        where (id > %(after)s or (id > %(forgotten)s and at > now() - make_interval(secs => %(back)s)))
          and id <> all (%(considered)s::bigint[]) and (%(types)s::text[] is null or type = any (%(types)s::text[]))
          and tenant = %(tenant)s and (instance_id = %(instance)s or (instance_id is null and at >= to_timestamp(%(since)s)))
        order by id limit %(limit)s
        """,
        {**asdict(asked), "back": _LOOK_BACK_S, "limit": limit},
    ).fetchall()


def subscribe(c: Connection, branch_id: int, instance_id: str, tenant: str, types: tuple[str | None, ...]) -> None:
    c.execute("delete from subscriptions where branch_id = %s", (branch_id,))
    c.execute(
        "insert into subscriptions (branch_id, instance_id, tenant, event_type) select %s, %s, %s, unnest(%s::text[])",
        (branch_id, instance_id, tenant, list(types)),
    )


def wake_listeners(c: Connection, type: str, instance_id: str | None, tenant: str) -> list[Published]:
    """Queue the parked branches that wait for such an event. Asked after the event's commit: a listener that parks at
    the same time asks for events after its own, so one of the two sees the other."""
    return c.execute(
        """
        with wanted as (
            select branch_id from subscriptions
            where (event_type = %(type)s or event_type is null) and tenant = %(tenant)s
              and (%(instance)s::uuid is null or instance_id = %(instance)s::uuid)
        ), woken as (
            update branches b set state = 'queued', generation = b.generation + 1, queued_at = now()
            where b.id in (select branch_id from wanted) and b.state = 'parked'
            returning b.id, b.instance_id::text, b.position, b.generation, b.queue
        ), timers_gone as (
            delete from timers where kind = 'wake' and branch_id in (select id from woken)
        ), heard as (
            delete from subscriptions where branch_id in (select id from woken)
        )
        select instance_id, position, generation, queue from woken
        """,
        {"type": type, "instance": instance_id, "tenant": tenant},
    ).fetchall()


def wake_forgotten(c: Connection, limit: int) -> list[Published]:
    """Listeners parked beside an event they have not seen: the one who owed them the wake died first."""
    return c.execute(
        """
        with missed as (
            select distinct b.id from subscriptions s join branches b on b.id = s.branch_id
            join instances i on i.id = b.instance_id
            where b.state = 'parked' and i.state = 'RUNNING' and b.queued_at < now() - interval '5 seconds'
              and exists (select 1 from events e where (s.event_type is null or e.type = s.event_type) and e.tenant = s.tenant
                          and (e.instance_id = s.instance_id or e.instance_id is null) and e.at > b.queued_at - interval '5 seconds')
            limit %s
        )
        update branches b set state = 'queued', generation = b.generation + 1, queued_at = now()
        from missed where b.id = missed.id and b.state = 'parked'
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (limit,),
    ).fetchall()
