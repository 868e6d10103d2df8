"""Timers: what is due, and when the next thing is. A due timer is deleted and its branch queued in one statement.

wake        a wait is over, or a retry's delay
due         the time of a task that a branch is inside of is over, while it waits or joins
deadline    the instance's time is over, whatever its root branch is doing
dependency  the patience of an instance that has not begun
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.store.branches import Published
from orchestrator.store.clock import NOW, NOW_S, OFFSET
from orchestrator.store.connection import Connection

# Later than any: what came due while its instance was paused comes when that is resumed.
NEVER = "9999-01-01"
# Of a timer: what is longer would be no moment that the database can tell.
LONGEST_S = 200 * 365 * 86400

# What `fire` gives of an instance that is at its deadline and has not begun.
UNBEGUN = "unbegun"

# Whoever runs an instance at its deadline ends it there and then; the timer is for when nobody does.
DEADLINE_GRACE_S = 0.25
# An instance that could not be ended at its deadline, although it has not begun, is tried again.
AGAIN_S = 30

# A paused instance does not wake: the timer of its wait goes, and resuming walks the branch again, which sets a new one.
# One that has not begun is ended as a whole, and its timer stays until then: whoever begins it meanwhile is to see when its time was over.
_FIRE = f"""
with due as (
    select t.id, t.branch_id, t.kind, t.due_at, i.state as instance_state, b.owner,
        t.kind = 'deadline' and i.started_at is null and i.state <> 'PAUSED' as unbegun
    from timers t
    join branches b on b.id = t.branch_id join instances i on i.id = b.instance_id
    where t.due_at <= {NOW} order by t.due_at limit %s for update of t skip locked
), later as (
    update timers set due_at = '{NEVER}' where id in (select id from due where instance_state = 'PAUSED' and kind <> 'wake')
), again as (
    update timers set due_at = due_at + interval '{AGAIN_S} seconds' where id in (select id from due where unbegun)
), gone as (
    delete from timers where id in (select id from due where not unbegun and (instance_state <> 'PAUSED' or kind = 'wake'))
), unheard as (
    delete from subscriptions where branch_id in (select branch_id from due where kind in ('wake', 'due'))
), fired as (
update branches b
set state = 'queued', generation = b.generation + 1, queued_at = now(), owner = null, lease_until = null
from due
where b.id = due.branch_id and due.instance_state in ('PENDING', 'RUNNING') and not due.unbegun
  and (b.state = 'parked'
       or (due.kind = 'due' and b.state = 'joining')
       or (due.kind = 'deadline' and b.state in ('running', 'joining', 'queued'))
       or (due.kind = 'dependency' and b.state = 'blocked'
           and exists (select 1 from dependencies d where d.instance_id = b.instance_id and not d.met)))
returning b.instance_id::text, b.position, b.generation, b.queue,
    extract(epoch from due.due_at)::float8, due.kind, due.owner
)
select *, {NOW_S} from fired
union all
select b.instance_id::text, b.position, b.generation, b.queue, extract(epoch from due.due_at)::float8, '{UNBEGUN}', null, {NOW_S}
from due join branches b on b.id = due.branch_id where due.unbegun
"""


@dataclass(frozen=True, slots=True)
class Fired:
    published: Published
    lateness_s: float
    kind: str
    owner: str | None
    """Who was at work on the branch, and is fenced now."""


def fire(c: Connection, limit: int) -> list[Fired]:
    """Queue the branches whose timers are due. A deadline fences whoever still works past it."""
    rows = c.execute(_FIRE, (limit,)).fetchall()
    return [Fired(row[:4], row[7] - row[4], row[5], row[6]) for row in rows]


def now(c: Connection) -> float:
    """The engine's clock, within a transaction the same at every look."""
    row = c.execute(f"select extract(epoch from {NOW})::float8").fetchone()
    assert row is not None
    return float(row[0])


def end_waits(c: Connection, instance_id: str) -> list[Published]:
    """Publish parked branches that wait for a time; those whose time it is not park again."""
    return c.execute(
        """
        with woken as (
            update branches b set state = 'queued', generation = b.generation + 1, queued_at = now()
            where b.instance_id = %s and b.state = 'parked'
              and exists (select 1 from timers t where t.branch_id = b.id and t.kind in ('wake', 'due'))
            returning b.id, b.instance_id::text, b.position, b.generation, b.queue
        ), gone as (
            delete from timers where kind in ('wake', 'due') and branch_id in (select id from woken)
        )
        select instance_id, position, generation, queue from woken
        """,
        (instance_id,),
    ).fetchall()


def put(c: Connection, branch_id: int, due: float, kind: str) -> None:
    """The one timer of its kind of a branch."""
    c.execute("delete from timers where branch_id = %s and kind = %s", (branch_id, kind))
    c.execute("insert into timers (branch_id, due_at, kind) values (%s, to_timestamp(%s), %s)", (branch_id, due, kind))


def drop(c: Connection, branch_id: int, kind: str) -> None:
    c.execute("delete from timers where branch_id = %s and kind = %s", (branch_id, kind))


def drop_all(c: Connection, branch_id: int) -> None:
    c.execute("delete from timers where branch_id = %s", (branch_id,))


def drop_of_instance(c: Connection, instance_id: str) -> None:
    c.execute("delete from timers t using branches b where b.id = t.branch_id and b.instance_id = %s", (instance_id,))


def go_on(c: Connection, instance_id: str) -> None:
    """On resume: what came due during the pause is due now."""
    c.execute(
        f"update timers t set due_at = now() from branches b where b.id = t.branch_id and b.instance_id = %s and t.due_at >= '{NEVER}'",
        (instance_id,),
    )


def due_after(seconds: str) -> str:
    """An expression: the timer of the deadline of an instance that may begin now, given its time."""
    return f"({NOW} + make_interval(secs => least({seconds}, {LONGEST_S}) + {DEADLINE_GRACE_S}))"


def begin(c: Connection, branch_id: int) -> None:
    """The time of an instance that may begin now, by its root branch."""
    c.execute(
        f"insert into timers (branch_id, due_at, kind) select b.id, {due_after('i.timeout_s')}, 'deadline'"
        " from branches b join instances i on i.id = b.instance_id where b.id = %s and i.timeout_s is not null",
        (branch_id,),
    )


def deadline_of(c: Connection, branch_id: int) -> float | None:
    """When the time of an instance is over, if that was known when it was allowed to begin."""
    row = c.execute(
        "select extract(epoch from min(due_at))::float8 from timers where branch_id = %s and kind = 'deadline'", (branch_id,)
    ).fetchone()
    return None if row is None or row[0] is None else float(row[0]) - DEADLINE_GRACE_S


def set_patience(c: Connection, branch_id: int, seconds: float) -> None:
    """How long an instance that has not begun waits for what it depends on."""
    c.execute(
        f"insert into timers (branch_id, due_at, kind) values (%s, {NOW} + make_interval(secs => %s), 'dependency')", (branch_id, seconds)
    )


@dataclass(frozen=True, slots=True)
class Probe:
    """What there is to do, in one question that an idle system can afford to ask."""

    now: float
    next_timer: float | None
    next_schedule: float | None
    has_outbox: bool
    has_expired: bool
    has_overdue: bool
    has_waiting: bool
    has_schedules: bool
    has_triggers: bool
    has_unmirrored: bool
    has_fires: bool
    has_held: bool
    has_working: bool
    has_windows: bool
    has_pending: bool


def probe(c: Connection, queue_grace_s: float, beats_grace_s: float = 0.0) -> Probe:
    """`beats_grace_s`: how much later than beat the keeper comes to a schedule."""
    row = c.execute(
        f"""
        select extract(epoch from clock_timestamp())::float8,
            extract(epoch from (select min(due_at) - {OFFSET} from timers))::float8,
            extract(epoch from (select min(next_at) + make_interval(secs => %(beat)s) from schedules
                where enabled and next_at > now() - make_interval(secs => %(beat)s)))::float8,
            exists (select 1 from outbox where put_aside is null),
            exists (select 1 from branches where state = 'running' and lease_until < now()),
            exists (select 1 from branches where state = 'queued' and queued_at < now() - make_interval(secs => %(grace)s)),
            exists (select 1 from branches where state in ('joining', 'blocked') and queued_at < now() - make_interval(secs => %(grace)s)),
            exists (select 1 from schedules where enabled and retry_at is null
                and (next_at <= now() - make_interval(secs => %(beat)s) or (kind = 'after' and next_at is null))
                or enabled and retry_at <= now()),
            exists (select 1 from schedules where kind = 'on'),
            exists (select 1 from schedules where mirrored_at is distinct from next_at),
            exists (select 1 from fires where is_open),
            exists (select 1 from events where state = 'held' and try_at <= now()),
            exists (select 1 from events where state = 'working'),
            exists (select 1 from windows where due_at <= now()),
            exists (select 1 from resources where state = 'PENDING' and doing is not null)
        """,
        {"grace": queue_grace_s, "beat": beats_grace_s},
    ).fetchone()
    assert row is not None
    return Probe(*row)


def next_due(c: Connection) -> tuple[float | None, float]:
    """When the next timer is due, and what time it is."""
    row = c.execute(
        f"select extract(epoch from (select min(due_at) - {OFFSET} from timers))::float8, extract(epoch from clock_timestamp())::float8"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def next_schedule(c: Connection, grace_s: float) -> tuple[float | None, float]:
    """The same of schedules, so much later than their own time."""
    row = c.execute(
        "select extract(epoch from (select min(next_at) + make_interval(secs => %(grace)s) from schedules"
        " where enabled and next_at > now() - make_interval(secs => %(grace)s)))::float8, extract(epoch from clock_timestamp())::float8",
        {"grace": grace_s},
    ).fetchone()
    assert row is not None
    return row[0], row[1]
