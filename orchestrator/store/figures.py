"""Counts for those who watch. Each is quick on a large database: what has ended is counted by whoever ended it."""

from __future__ import annotations

from orchestrator.store.connection import Connection
from orchestrator.store.workers import LIVES

MOST_ACTORS = 200


def open_instances(c: Connection) -> dict[str, int]:
    rows = c.execute(
        "select s, (select count(*) from instances where state = s) from unnest(array['PENDING', 'RUNNING', 'PAUSED']) s"
    ).fetchall()
    return dict(rows)


def open_branches(c: Connection) -> dict[str, int]:
    return dict(c.execute("select state, count(*) from branches where state <> 'closed' group by state").fetchall())


def backlogs(c: Connection) -> list[tuple[str, str, float]]:
    row = c.execute(
        """
        select (select count(*) from timers), (select count(*) from outbox where put_aside is null), (select count(*) from dead_letters where resolved_at is null),
            coalesce((select extract(epoch from now() - min(at)) from outbox where put_aside is null), 0)::float8,
            (select count(*) from outbox where put_aside is not null)
        """
    ).fetchone()
    assert row is not None
    return [
        ("timers", "Waits that have not ended", row[0]),
        ("outbox", "Events that are true and not told yet", row[1]),
        ("dead_letters", "Steps that were given up and that nobody has dealt with", row[2]),
        ("outbox_age_seconds", "How long the oldest of them has waited", row[3]),
        ("outbox_put_aside", "Events that cannot be told", row[4]),
    ]


def findings(c: Connection) -> dict[str, int]:
    """What is at fault right now, by kind."""
    return dict(c.execute("select kind, count(*) from findings group by kind").fetchall())


def lacking(c: Connection) -> list[tuple[str, int, float]]:
    """Code that branches wait for: how many, and for how long by now."""
    return c.execute(
        """
        select lacks, count(*), extract(epoch from clock_timestamp() - min(lacking_since))::float8
        from branches where state = 'parked' and lacks is not null group by lacks order by 3 desc limit 100
        """
    ).fetchall()


def at_work_in_postgres(c: Connection) -> tuple[int, float]:
    """Connections to this database, and how long the statement that is longest at work has been so."""
    row = c.execute(
        """
        select count(*), coalesce(extract(epoch from max(clock_timestamp() - query_start) filter (where state = 'active')), 0)::float8
        from pg_stat_activity where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
        """
    ).fetchone()
    assert row is not None
    return int(row[0]), float(row[1])


def living_workers(c: Connection) -> tuple[int, int]:
    row = c.execute(f"select count(*), coalesce(sum(concurrency), 0) from workers where {LIVES}").fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def schedules(c: Connection) -> dict[str, float]:
    row = c.execute(
        """
        select count(*) filter (where enabled), count(*) filter (where not enabled), coalesce(sum(starts), 0), coalesce(sum(skips), 0),
            coalesce(sum(errors), 0), greatest(0, coalesce(extract(epoch from now() - min(next_at) filter (where enabled)), 0))::float8
        from schedules where origin <> 'deleted'
        """
    ).fetchone()
    assert row is not None
    return dict(zip(("active", "paused", "started", "skipped", "failed", "late_s"), map(float, row), strict=True))


def actions(c: Connection) -> list[tuple[str, str, int]]:
    return c.execute(
        "select actor, action, count(*) from audit where at > now() - interval '1 day' group by actor, action order by count(*) desc limit %s",
        (MOST_ACTORS,),
    ).fetchall()


def alerts_received(c: Connection) -> dict[str, int]:
    rows = c.execute(
        "select coalesce(envelope #>> '{data,labels,severity}', 'none'), count(*) from events"
        " where type in ('alert.firing', 'alert.resolved') and source = 'alertmanager' group by 1"
    ).fetchall()
    return dict(rows)
