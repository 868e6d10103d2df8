"""Workers as the database sees them, and which of them keeps timers, recovery and the outbox."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orchestrator.store import notices
from orchestrator.store.connection import Connection, dumps


@dataclass(frozen=True, slots=True)
class Sign:
    """A worker as it signs. `home` names the machine and its processes' numbers, `began` is when this process did: together with its
    number they say on the same machine, for certain, whether it still lives."""

    id: str
    hostname: str
    pid: int
    concurrency: int
    queues: Sequence[str]
    home: str = ""
    began: float | None = None
    code: Sequence[str] = ()
    left_out: Sequence[dict[str, object]] = ()
    """What code it has, and what it could not load."""


def sign(c: Connection, worker: Sign) -> bool:
    """A sign of life; silent ones are forgotten after a while. True: it was not known before."""
    row = c.execute(
        """
        with gone as (delete from workers where seen_at < now() - interval '10 minutes')
        insert into workers (id, hostname, pid, concurrency, queues, home, began, code, left_out)
        values (%s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb)
        on conflict (id) do update set seen_at = now(), left_out = excluded.left_out, code = excluded.code
        returning started_at = now()
        """,
        (
            worker.id, worker.hostname, worker.pid, worker.concurrency, list(worker.queues), worker.home, worker.began,
            list(worker.code), dumps(list(worker.left_out)) if worker.left_out else None,
        ),
    ).fetchone()  # fmt: skip
    return bool(row and row[0])


@dataclass(frozen=True, slots=True)
class Signed:
    id: str
    hostname: str
    pid: int
    home: str
    began: float | None
    silent_s: float


def signed(c: Connection) -> list[Signed]:
    """All that have signed and are not forgotten."""
    rows = c.execute("select id, hostname, pid, home, began, extract(epoch from now() - seen_at)::float8 from workers").fetchall()
    return [Signed(*row) for row in rows]


def holder(c: Connection, role: str) -> Signed | None:
    """The worker that holds a post, or held it last."""
    row = c.execute(
        "select w.id, w.hostname, w.pid, w.home, w.began, extract(epoch from now() - w.seen_at)::float8"
        " from leadership l join workers w on w.id = l.owner where l.role = %s",
        (role,),
    ).fetchone()
    return Signed(*row) if row else None


def end_posts(c: Connection, worker_id: str) -> None:
    c.execute("update leadership set owner = '', until = now() where owner = %s", (worker_id,))


def forget(c: Connection, worker_id: str) -> None:
    c.execute("delete from workers where id = %s", (worker_id,))


# Who signed within this time lives.
LIVES = "seen_at > now() - interval '30 seconds'"


def processes(c: Connection) -> int:
    """How many processes all living workers have together."""
    row = c.execute(f"select coalesce(sum(concurrency), 0) from workers where {LIVES}").fetchone()
    return int(row[0]) if row else 0


def served(c: Connection) -> set[str]:
    """The queues from which living workers take."""
    return {row[0] for row in c.execute(f"select distinct unnest(queues) from workers where {LIVES}").fetchall()}


@dataclass(frozen=True, slots=True)
class Unserved:
    queue: str
    branches: int
    for_s: float
    workflow: str
    instance: str
    """The one that has waited longest."""


def unserved(c: Connection) -> list[Unserved]:
    """Queues with branches that wait, from which no living worker takes."""
    rows = c.execute(
        f"""
        select b.queue, count(*), extract(epoch from now() - min(b.queued_at))::float8,
            (array_agg(i.workflow order by b.queued_at))[1], (array_agg(i.id::text order by b.queued_at))[1]
        from branches b join instances i on i.id = b.instance_id
        where b.state = 'queued' and b.queued_at < now() - interval '5 seconds' and i.state in ('PENDING', 'RUNNING')
          and not exists (select 1 from workers where {LIVES} and b.queue = any (queues))
        group by b.queue order by 3 desc limit 50
        """
    ).fetchall()
    return [Unserved(*row) for row in rows]


# No post is given for longer.
LONGEST_POST_S = 6.0


def lead(c: Connection, roles: Sequence[str], worker_id: str, seconds: float) -> dict[str, float]:
    """Take or renew these posts; gives those that are held, which are not those that others hold.

    With each, by how much the database's clock was set back since the post was last renewed: it cannot end later than it was given
    for. Whoever held it then, it is taken over, and the first to do so is the one who is told.
    """
    rows = c.execute(
        """
        with before as (select role, until from leadership where role = any (%(roles)s))
        insert into leadership (role, owner, until)
        select role, %(me)s, now() + make_interval(secs => %(s)s) from unnest(%(roles)s) as role order by role
        on conflict (role) do update set owner = excluded.owner, until = excluded.until
        where leadership.owner = %(me)s or leadership.until < now() or leadership.until > now() + make_interval(secs => %(most)s)
        returning role, (select extract(epoch from b.until - now())::float8 from before b where b.role = leadership.role)
        """,
        {"roles": list(roles), "me": worker_id, "s": seconds, "most": LONGEST_POST_S + 2},
    ).fetchall()
    return {role: left - seconds if left is not None and left > LONGEST_POST_S + 2 else 0.0 for role, left in rows}


def posts(c: Connection) -> list[str]:
    """The posts that somebody holds."""
    rows = c.execute("select role from leadership where until > now() order by role").fetchall()
    return [row[0] for row in rows]


def leave(c: Connection, worker_id: str) -> None:
    """Its posts are free. Their rows stay: they say until when the clock had come."""
    c.execute("update leadership set owner = '', until = now() where owner = %s", (worker_id,))
    c.execute("delete from workers where id = %s", (worker_id,))


CHANNEL = "interrupt"


def ask_to_interrupt(c: Connection, owners: Collection[str]) -> None:
    """Tell all workers whose processes shall break into the step they run."""
    notices.tell(c, CHANNEL, dumps(sorted(set(owners))))


def listen(c: Connection) -> None:
    notices.listen(c, CHANNEL)
