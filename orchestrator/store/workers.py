"""Workers as the database sees them, and which of them keeps timers, recovery and the outbox."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.store import notices
from orchestrator.store.connection import Connection, dumps


def sign(c: Connection, worker_id: str, hostname: str, pid: int, concurrency: int, queues: list[str]) -> None:
    """A sign of life; silent ones are forgotten after a while."""
    c.execute(
        """
        with gone as (delete from workers where seen_at < now() - interval '10 minutes')
        insert into workers (id, hostname, pid, concurrency, queues) values (%s, %s, %s, %s, %s)
        on conflict (id) do update set seen_at = now()
        """,
        (worker_id, hostname, pid, concurrency, queues),
    )


def processes(c: Connection) -> int:
    """How many processes all living workers have together."""
    row = c.execute("select coalesce(sum(concurrency), 0) from workers where seen_at > now() - interval '30 seconds'").fetchone()
    return int(row[0]) if row else 0


def lead(c: Connection, worker_id: str, seconds: float) -> bool:
    """Take or renew the keeper's office; False while another holds it."""
    row = c.execute(
        """
        insert into leadership (role, owner, until) values ('keeper', %(me)s, now() + make_interval(secs => %(s)s))
        on conflict (role) do update set owner = excluded.owner, until = excluded.until
        where leadership.owner = %(me)s or leadership.until < now()
        returning owner
        """,
        {"me": worker_id, "s": seconds},
    ).fetchone()
    return row is not None


def leave(c: Connection, worker_id: str) -> None:
    c.execute("delete from leadership where owner = %s", (worker_id,))
    c.execute("delete from workers where id = %s", (worker_id,))


CHANNEL = "interrupt"


def ask_to_interrupt(c: Connection, owners: Collection[str]) -> None:
    """Tell all workers whose processes shall break into the step they run."""
    notices.tell(c, CHANNEL, dumps(sorted(set(owners))))


def listen(c: Connection) -> None:
    notices.listen(c, CHANNEL)
