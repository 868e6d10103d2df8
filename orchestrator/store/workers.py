"""Workers as the database sees them, and which of them keeps timers, recovery and the outbox."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.store import notices
from orchestrator.store.connection import Connection, dumps


def sign(
    c: Connection,
    worker_id: str,
    hostname: str,
    pid: int,
    concurrency: int,
    queues: list[str],
    *,
    code: Sequence[str] = (),
    left_out: Sequence[dict[str, object]] = (),
) -> bool:
    """A sign of life, with what code this worker has and what it could not load; silent ones are forgotten after a while.

    True: it was not known before.
    """
    row = c.execute(
        """
        with gone as (delete from workers where seen_at < now() - interval '10 minutes')
        insert into workers (id, hostname, pid, concurrency, queues, code, left_out) values (%s, %s, %s, %s, %s, %s, %s::jsonb)
        on conflict (id) do update set seen_at = now(), left_out = excluded.left_out, code = excluded.code
        returning started_at = now()
        """,
        (worker_id, hostname, pid, concurrency, queues, list(code), dumps(list(left_out)) if left_out else None),
    ).fetchone()
    return bool(row and row[0])


def processes(c: Connection) -> int:
    """How many processes all living workers have together."""
    row = c.execute("select coalesce(sum(concurrency), 0) from workers where seen_at > now() - interval '30 seconds'").fetchone()
    return int(row[0]) if row else 0


def lead(c: Connection, role: str, worker_id: str, seconds: float) -> bool:
    """Take or renew a post; False while another holds it."""
    row = c.execute(
        """
        insert into leadership (role, owner, until) values (%(role)s, %(me)s, now() + make_interval(secs => %(s)s))
        on conflict (role) do update set owner = excluded.owner, until = excluded.until
        where leadership.owner = %(me)s or leadership.until < now()
        returning owner
        """,
        {"role": role, "me": worker_id, "s": seconds},
    ).fetchone()
    return row is not None


def posts(c: Connection) -> list[str]:
    """The posts that somebody holds."""
    rows = c.execute("select role from leadership where until > now() order by role").fetchall()
    return [row[0] for row in rows]


def leave(c: Connection, worker_id: str) -> None:
    c.execute("delete from leadership where owner = %s", (worker_id,))
    c.execute("delete from workers where id = %s", (worker_id,))


CHANNEL = "interrupt"


def ask_to_interrupt(c: Connection, owners: Collection[str]) -> None:
    """Tell all workers whose processes shall break into the step they run."""
    notices.tell(c, CHANNEL, dumps(sorted(set(owners))))


def listen(c: Connection) -> None:
    notices.listen(c, CHANNEL)
