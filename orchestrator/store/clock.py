"""The engine's clock: the database's, which may be set back or forth, made one that only goes on.

Every moment the engine waits for is a moment of this clock: the database's own, plus an offset that grows by as much as the
database's clock was set back. Leases, offices, signs of life and queues are measured by the database's clock alone, because they are
short and renewed; when that is set back, they are cut to what they can be at most. Planned times of `cron` stay wall-clock times.
"""

from __future__ import annotations

from orchestrator.store.connection import Connection

CLOCK = "clock"
OFFSET_S = f"coalesce((select (data ->> 'offset_s')::float8 from chores where name = '{CLOCK}'), 0)"
NOW_S = f"(extract(epoch from clock_timestamp())::float8 + {OFFSET_S})"
"""An expression: this moment, in seconds, on the engine's clock."""
NOW = f"(now() + make_interval(secs => {OFFSET_S}))"
"""An expression: this transaction's moment on the engine's clock."""
OFFSET = f"make_interval(secs => {OFFSET_S})"


def _add(c: Connection, by_s: float) -> None:
    c.execute(
        "insert into chores (name, at, data) values (%(name)s, now(), jsonb_build_object('offset_s', greatest(0, %(by)s::float8)))"
        " on conflict (name) do update set at = now(),"
        " data = jsonb_build_object('offset_s', greatest(0, coalesce((chores.data ->> 'offset_s')::float8, 0) + %(by)s::float8))",
        {"name": CLOCK, "by": by_s},
    )


def set_back(c: Connection, by_s: float, lease_s: float) -> None:
    """The database's clock was set back: what was measured by it is brought to what it can be at most from now."""
    with c.transaction():
        _add(c, by_s)
        c.execute(
            "update branches set lease_until = now() + make_interval(secs => %(lease)s)"
            " where state = 'running' and lease_until > now() + make_interval(secs => %(lease)s)",
            {"lease": lease_s},
        )
        c.execute("update branches set queued_at = now() where state in ('queued', 'joining', 'blocked') and queued_at > now()")
        # By what is left of the office the setting is noticed, once.
        c.execute("update leadership set until = now() + interval '5 seconds' where until > now() + interval '5 seconds'")
        c.execute("update workers set seen_at = now() where seen_at > now()")
        by = {"by": by_s}
        c.execute("update events set try_at = try_at - make_interval(secs => %(by)s) where state = 'held' and try_at > now()", by)
        c.execute("update deliveries set try_at = try_at - make_interval(secs => %(by)s) where try_at > now() and try_at < 'infinity'", by)
        c.execute("update windows set due_at = due_at - make_interval(secs => %(by)s) where due_at > now()", by)
        # What comes every so often comes as soon as it would have. Its moments have been before, by their names: a few milliseconds
        # make them others.
        c.execute(
            """
            update schedules set mirrored_at = null,
                next_at = next_at - make_interval(secs => %(by)s) + aside, planned_at = planned_at - make_interval(secs => %(by)s) + aside
            from (select make_interval(secs => (1 + floor(random() * 998)) / 1000.0) as aside) a
            where kind in ('every', 'after') and next_at > now()
            """,
            by,
        )


def set_forth(c: Connection, by_s: float, lease_s: float) -> None:
    """The database's clock was set forth: whoever lives has a lease to say so, and what the clock had lost it has again."""
    with c.transaction():
        row = c.execute(f"select least(%s::float8, {OFFSET_S})", (by_s,)).fetchone()
        assert row is not None
        _add(c, -by_s)
        c.execute(
            "update branches set lease_until = now() + make_interval(secs => %s) where state = 'running' and lease_until is not null",
            (lease_s,),
        )
        c.execute("update branches set queued_at = now() where state in ('queued', 'joining', 'blocked')")
        # What was moved back with the clock goes forth with it, unless it was late before, or was fired since.
        c.execute(
            """
            update schedules s set mirrored_at = null, next_at = s.next_at + a.aside, planned_at = s.planned_at + a.aside
            from (
                select id, least(
                    make_interval(secs => %(again)s),
                    greatest(now() + make_interval(secs => coalesce(spec ->> 'every', spec ->> 'seconds')::float8) - next_at, interval '0')
                ) as aside
                from schedules where kind in ('every', 'after') and next_at > now() - make_interval(secs => %(by)s)
            ) a
            where a.id = s.id and %(again)s > 0
            """,
            {"by": by_s, "again": row[0]},
        )
