"""Events: kept once each by (tenant, source, id), found by whoever listens. What a listener took stands in its history.

    held ──▶ taken          its effects are committed
     │  ╲──▶ working ──▶ taken     an instance that it started must end first
     ▼             ╲──▶ dead
    dead                    put aside with its error; replayed (held again) or discarded by a person

`held` also means: an earlier event of the same key is held, and this one waits behind it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.store import sealing
from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection, dumps

# What could not be understood is kept, too, to be looked at; nobody hears it.
POISON = "orchestrator.poison"


def keep(c: Connection, envelope: dict[str, Any], instance_id: str | None, tenant: str) -> int | None:
    """Store an event that only listeners hear. None: it was here before."""
    row = c.execute(
        """
        insert into events (source, event_id, type, instance_id, tenant, envelope) values (%s, %s, %s, %s, %s, %s::jsonb)
        on conflict (tenant, source, event_id) do nothing returning id
        """,
        (envelope["source"], envelope["id"], envelope["type"], instance_id, tenant, sealing.sealed_event(envelope, dumps)),
    ).fetchone()
    return row[0] if row else None


@dataclass(slots=True)
class Arrival:
    """An event on its way in: where it came from, whose it is, and the key whose order it must keep."""

    envelope: dict[str, Any]
    tenant: str = "default"
    key: str | None = None
    stream: str | None = None
    entry: str | None = None
    state: str = "taken"
    attempts: int = 0
    error: dict[str, Any] | None = None
    try_in_s: float | None = None
    number: int = 0
    is_new: bool = False
    tells: bool = False
    """Whether it is told on: on the bus, to subscribers, to webhooks."""
    effects: list[Any] = field(default_factory=list)

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.tenant, self.envelope["source"], self.envelope["id"]


_KEEP_ALL = """
insert into events (tenant, source, event_id, type, envelope, stream, entry, order_key, state, attempts, error, try_at)
select tenant, source, event_id, type, envelope::jsonb, stream, entry, order_key, state, attempts, error::jsonb,
    now() + make_interval(secs => due)
from unnest(%b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::int[],
            %b::text[], %b::float8[]) with ordinality
    as g (tenant, source, event_id, type, envelope, stream, entry, order_key, state, attempts, error, due, n)
order by n
on conflict (tenant, source, event_id) do nothing
returning id, tenant, source, event_id
"""


def keep_all(c: Connection, arrivals: Sequence[Arrival]) -> None:
    """Store a batch in its order and note on each whether it is new, and its number.

    A row that another transaction is inserting is waited for: what two bridges hold at once is decided by whoever commits.
    """
    rows = c.execute(
        _KEEP_ALL,
        (
            [a.tenant for a in arrivals],
            [a.envelope["source"] for a in arrivals],
            [a.envelope["id"] for a in arrivals],
            [a.envelope["type"] for a in arrivals],
            [sealing.sealed_event(a.envelope, dumps) for a in arrivals],
            [a.stream for a in arrivals],
            [a.entry for a in arrivals],
            [a.key for a in arrivals],
            [a.state for a in arrivals],
            [a.attempts for a in arrivals],
            [None if a.error is None else dumps(a.error) for a in arrivals],
            [a.try_in_s for a in arrivals],
        ),
    ).fetchall()
    numbers = {(tenant, source, event_id): number for number, tenant, source, event_id in rows}
    for arrival in arrivals:
        number = numbers.pop(arrival.identity, None)  # the first of several alike is the new one
        arrival.is_new, arrival.number = number is not None, number or 0


def tenant_of(c: Connection, number: int) -> str | None:
    row = c.execute("select tenant from events where id = %s", (number,)).fetchone()
    return row[0] if row else None


def look_up(c: Connection, arrivals: Sequence[Arrival]) -> None:
    """What became of events that were here before."""
    known = {
        (tenant, source, event_id): rest
        for tenant, source, event_id, *rest in c.execute(
            """
            select e.tenant, e.source, e.event_id, e.id, e.state, e.attempts, e.error
            from unnest(%s::text[], %s::text[], %s::text[]) as g (tenant, source, event_id)
            join events e on e.tenant = g.tenant and e.source = g.source and e.event_id = g.event_id
            """,
            ([a.tenant for a in arrivals], [a.envelope["source"] for a in arrivals], [a.envelope["id"] for a in arrivals]),
        ).fetchall()
    }
    for arrival in arrivals:
        if (found := known.get(arrival.identity)) is not None:
            arrival.number, arrival.state, arrival.attempts, arrival.error = found


def first_held(c: Connection, keys: Sequence[str]) -> dict[str, int]:
    """Keys at which an event waits, with the number of the first: later ones wait behind it."""
    rows = c.execute(
        "select order_key, min(id) from events where state = 'held' and order_key = any (%s::text[]) group by order_key", (list(keys),)
    ).fetchall()
    return dict(rows)


def hold(c: Connection, numbers: Sequence[int], try_in_s: float = 0.0) -> None:
    c.execute(
        "update events set state = 'held', try_at = now() + make_interval(secs => %s) where id = any (%s::bigint[])",
        (try_in_s, list(numbers)),
    )


# ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Effect:
    number: int
    trigger: str
    action: str
    instance_id: str | None = None
    detail: Any = None
    replay: int = 0


def note_effects(c: Connection, effects: Sequence[Effect]) -> None:
    c.execute(
        """
        insert into effects (event_id, trigger, replay, action, instance_id, detail)
        select * from unnest(%b::bigint[], %b::text[], %b::int[], %b::text[], %b::text[]::uuid[], %b::text[]::jsonb[])
        on conflict do nothing
        """,
        (
            [e.number for e in effects],
            [e.trigger for e in effects],
            [e.replay for e in effects],
            [e.action for e in effects],
            [e.instance_id for e in effects],
            [None if e.detail is None else dumps(e.detail) for e in effects],
        ),
    )


def effects_of(c: Connection, number: int) -> list[dict[str, Any]]:
    rows = c.execute(
        "select f.trigger, f.action, f.instance_id::text, i.state, f.detail, f.replay from effects f"
        " left join instances i on i.id = f.instance_id where f.event_id = %s order by f.replay, f.at, f.trigger",
        (number,),
    ).fetchall()
    return [dict(zip(("trigger", "action", "instance_id", "state", "detail", "replay"), row, strict=True)) for row in rows]


# ── held events: tried one after another ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class HeldEvent:
    number: int
    tenant: str
    envelope: dict[str, Any]
    attempts: int
    replays: int
    stream: str | None = None


def claim_held(c: Connection, limit: int, trying_s: float, only: Sequence[int] | None = None) -> list[HeldEvent]:
    """Held events whose time has come and that are the first of their key.

    When an attempt takes longer than `trying_s`, another process tries, too: every effect is harmless when repeated.
    """
    rows = c.execute(
        """
        with due as (
            select e.id from events e
            where e.state = 'held' and e.try_at <= now() and (%(only)s::bigint[] is null or e.id = any (%(only)s::bigint[]))
              and (e.order_key is null or not exists (
                    select 1 from events f where f.state = 'held' and f.order_key = e.order_key and f.id < e.id))
            order by e.id limit %(limit)s for update skip locked
        )
        update events e set try_at = now() + make_interval(secs => %(trying)s) from due where e.id = due.id
        returning e.id, e.tenant, e.envelope, e.attempts, e.replays, e.stream
        """,
        {"only": None if only is None else list(only), "limit": limit, "trying": trying_s},
    ).fetchall()
    return [HeldEvent(*row) for row in sorted(rows, key=lambda row: row[0])]


def release(c: Connection, number: int, state: str, attempts: int) -> bool:
    """It has had its effects. False: somebody else said so first."""
    row = c.execute(
        "update events set state = %s, attempts = %s, error = null, try_at = null where id = %s and state = 'held' returning id",
        (state, attempts, number),
    ).fetchone()
    return row is not None


def failed(c: Connection, number: int, attempts: int, error: dict[str, Any], try_in_s: float | None) -> None:
    """An attempt failed: tried again later, or (None) put aside."""
    c.execute(
        """
        update events set attempts = %(attempts)s, error = %(error)s::jsonb,
            state = case when %(due)s::float8 is null then 'dead' else 'held' end,
            try_at = now() + make_interval(secs => %(due)s::float8)
        where id = %(number)s and state = 'held'
        """,
        {"attempts": attempts, "error": dumps(error), "due": try_in_s, "number": number},
    )


# The kinds of steps that end with a failed instance tell how often they were tried.
_SETTLE = """
with ended as (
    select f.event_id, bool_or(i.error ->> 'code' = 'event_timeout') as timed_out, bool_or(coalesce(i.outcome, 'COMPLETED') <> 'COMPLETED') as failed,
        (array_agg(i.error order by f.trigger) filter (where i.outcome <> 'COMPLETED'))[1] as error,
        (array_agg(i.id order by f.trigger) filter (where i.outcome <> 'COMPLETED'))[1] as instance_id
    from events e join effects f on f.event_id = e.id and f.replay = e.replays left join instances i on i.id = f.instance_id
    where e.state = 'working' and (%(only)s::bigint[] is null or e.id = any (%(only)s::bigint[]))
    group by f.event_id having bool_and(i.id is null or i.outcome is not null or i.state = 'CLEANING_UP')
), tried as (
    select ended.event_id, count(*) as times, ended.timed_out and count(*) < %(attempts)s as is_tried_again
    from ended join effects f on f.event_id = ended.event_id join instances i on i.id = f.instance_id
    where i.error ->> 'code' = 'event_timeout' group by ended.event_id, ended.timed_out
)
update events e set
    state = case when tried.is_tried_again then 'held' when ended.failed then 'dead' else 'taken' end,
    replays = e.replays + case when tried.is_tried_again then 1 else 0 end,
    try_at = case when tried.is_tried_again then now() + make_interval(secs => least(3600, %(delay)s::float8 * 2 ^ (tried.times - 1))) end,
    attempts = coalesce(tried.times, greatest(1, (
        select max(k.attempt) from branches b join checkpoints k on k.branch_id = b.id
        where b.instance_id = ended.instance_id and k.kind in ('step.failed', 'step.retried')))),
    error = case when ended.failed
        then coalesce(ended.error, '{"message": "the instance did not complete"}') || jsonb_build_object('instance', ended.instance_id) end
from ended left join tried using (event_id) where e.id = ended.event_id and e.state = 'working'
returning e.id
"""


def settle_working(c: Connection, only: Sequence[int] | None = None, attempts: int = 1, delay_s: float = 1.0) -> list[int]:
    """Events whose instances have all ended are taken, or dead when one of them did not complete; tried again, up to so many
    attempts, when that was for its time."""
    given = {"only": None if only is None else list(only), "attempts": attempts, "delay": delay_s}
    return [row[0] for row in c.execute(_SETTLE, given).fetchall()]


def overdue(c: Connection) -> list[tuple[str, float]]:
    """Instances that events wait for, and that take longer than these may: with the seconds that are over."""
    return c.execute(
        """
        select distinct i.id::text, (f.detail ->> 'timeout_s')::float8
        from events e join effects f on f.event_id = e.id and f.replay = e.replays join instances i on i.id = f.instance_id
        where e.state = 'working' and f.detail ? 'timeout_s' and i.state = 'RUNNING' and i.phase = 'forward'
          and i.started_at < now() - make_interval(secs => (f.detail ->> 'timeout_s')::float8)
        """
    ).fetchall()


def states(c: Connection, numbers: Sequence[int]) -> dict[int, tuple[str, int, Any]]:
    rows = c.execute("select id, state, attempts, error from events where id = any (%s::bigint[])", (list(numbers),)).fetchall()
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


# ── for people ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    tenant: str | None = None
    state: str | None = None
    type: str | None = None
    source: str | None = None
    key: str | None = None
    stream: str | None = None
    text: str | None = None
    since: str | None = None
    until: str | None = None
    before: int | None = None
    numbers: tuple[int, ...] | None = None
    limit: int = 50


_WHERE = """
    (%(tenant)s::text is null or tenant = %(tenant)s) and (%(state)s::text is null or state = %(state)s)
    and (%(type)s::text is null or type like replace(%(type_like)s::text, '*', '%%'))
    and (%(source)s::text is null or source = %(source)s)
    and (%(key)s::text is null or order_key = %(key)s or order_key like '%%/' || %(key_like)s::text)
    and (%(stream)s::text is null or stream = %(stream)s)
    and (%(text)s::text is null or envelope::text ilike '%%' || %(text_like)s::text || '%%')
    and (%(since)s::timestamptz is null or at >= %(since)s::timestamptz)
    and (%(until)s::timestamptz is null or at < %(until)s::timestamptz)
    and (%(before)s::bigint is null or id < %(before)s) and (%(numbers)s::bigint[] is null or id = any (%(numbers)s::bigint[]))
"""
_NAMES = ("number", "id", "type", "source", "tenant", "state", "attempts", "replays", "error", "stream", "entry", "key", "at", "envelope")


def _as_it_stands(text: str | None) -> str | None:
    """What means something in a pattern means itself."""
    return None if text is None else re.sub(r"([\\%_])", r"\\\1", text)


def _parameters(wanted: EventFilter) -> dict[str, Any]:
    given = asdict(wanted)
    plain = {f"{name}_like": _as_it_stands(given[name]) for name in ("type", "key", "text")}
    return {**given, **plain, "numbers": None if wanted.numbers is None else list(wanted.numbers)}


def search(c: Connection, wanted: EventFilter) -> list[dict[str, Any]]:
    """Newest first; signals to single instances are not among them."""
    rows = c.execute(
        "select id, event_id, type, source, tenant, state, attempts, replays, error, stream, entry, order_key,"
        " to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), envelope"
        f" from events where instance_id is null and {_WHERE} order by id desc limit %(limit)s",
        _parameters(wanted),
    ).fetchall()
    return [dict(zip(_NAMES, row, strict=True)) for row in rows]


def replay(c: Connection, wanted: EventFilter) -> list[tuple[int, str | None, str, str | None]]:
    """Their effects once more, oldest first; gives (number, stream, id, what it was)."""
    rows = c.execute(
        f"""
        with wanted as (
            select id, state from events where instance_id is null and {_WHERE} and state in ('dead', 'taken', 'discarded')
              and coalesce(error ->> 'code', '') <> 'poison'
            order by id limit %(limit)s for update
        )
        update events e set state = 'held', replays = replays + 1, attempts = 0, error = null, try_at = now()
        from wanted where e.id = wanted.id returning e.id, e.stream, e.event_id, wanted.state
        """,
        _parameters(wanted),
    ).fetchall()
    return sorted(rows)


def discard(c: Connection, wanted: EventFilter) -> list[tuple[int, str | None, str, str | None]]:
    """Dead events that nobody wants any more."""
    return c.execute(
        f"update events set state = 'discarded', try_at = null where instance_id is null and {_WHERE} and state in ('dead', 'held')"
        " returning id, stream, event_id, state",
        _parameters(wanted),
    ).fetchall()


def waits(c: Connection, type: str, key: str) -> bool:
    """Whether such an event has still to have its effect."""
    return (
        c.execute("select 1 from events where order_key = %s and type = %s and state = 'held' limit 1", (key, type)).fetchone() is not None
    )


def came_lately(c: Connection, type: str, key: str, since: str | None) -> bool:
    """Whether there was such an event within a day, and after a moment."""
    row = c.execute(
        "select 1 from events where order_key = %s and type = %s and at > now() - interval '1 day'"
        " and at > coalesce(%s::timestamptz, '-infinity') limit 1",
        (key, type, since),
    ).fetchone()
    return row is not None


def is_signalled(c: Connection, instance_id: str, event_id: str) -> bool:
    return (
        c.execute("select 1 from events where instance_id = %s and event_id = %s limit 1", (instance_id, event_id)).fetchone() is not None
    )


def names_position(c: Connection, instance_id: str, type: str, position: str) -> bool:
    """Whether a signal of this type to the instance names a position among its `positions`."""
    row = c.execute(
        "select 1 from events where instance_id = %s and type = %s and envelope -> 'data' -> 'positions' ? %s limit 1",
        (instance_id, type, position),
    ).fetchone()
    return row is not None


def count_by_state(c: Connection) -> dict[str, int]:
    """How many wait, work, or are dead."""
    row = c.execute(
        "select (select count(*) from events where state = 'held'), (select count(*) from events where state = 'working'),"
        " (select count(*) from events where state = 'dead')"
    ).fetchone()
    assert row is not None
    return {"held": row[0], "working": row[1], "dead": row[2]}


def duplicates(c: Connection) -> int:
    """Triggers that had more than one effect for an event and replay: none, because the key forbids it."""
    row = c.execute(
        "select count(*) from (select 1 from effects where at > now() - interval '1 day' group by event_id, trigger, replay having count(*) > 1) d"
    ).fetchone()
    return int(row[0]) if row else 0


def forget(c: Connection, older_than_s: float, limit: int) -> int:
    """The end of retention. What is held, at work or dead stays; so does what a running instance may still want."""
    rows = c.execute(
        """
        delete from events where id in (
            select e.id from events e
            where e.at < now() - make_interval(secs => %s) and e.state in ('taken', 'discarded') and e.instance_id is null
            order by e.at limit %s)
        returning id
        """,
        (older_than_s, limit),
    ).fetchall()
    return len(rows)


# ── listeners ───────────────────────────────────────────────────────────────────────────────────────────────────────

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
          and type <> 'orchestrator.poison' and (instance_id is not null or type not like 'orchestrator:approval:%%')
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
            delete from timers where kind in ('wake', 'due') and branch_id in (select id from woken)
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
