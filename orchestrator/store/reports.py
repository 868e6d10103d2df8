"""Sums over a span of time, for reports that somebody reads later."""

from __future__ import annotations

import datetime as dt

from orchestrator.store.connection import Connection


def events_by_type(c: Connection, tenant: str, prefix: str, since: dt.datetime, until: dt.datetime) -> dict[str, int]:
    rows = c.execute(
        "select type, count(*) from events where tenant = %s and starts_with(type, %s) and at >= %s and at < %s group by type order by type",
        (tenant, prefix, since, until),
    ).fetchall()
    return {row[0]: row[1] for row in rows}


def ended_by_workflow(c: Connection, tenant: str, since: dt.datetime, until: dt.datetime) -> dict[str, dict[str, int]]:
    rows = c.execute(
        """
        select workflow, coalesce(outcome, state), count(*) from instances
        where tenant = %s and ended_at >= %s and ended_at < %s group by 1, 2 order by 1, 2
        """,
        (tenant, since, until),
    ).fetchall()
    found: dict[str, dict[str, int]] = {}
    for workflow, outcome, number in rows:
        found.setdefault(workflow, {})[outcome] = number
    return found


def by_state(c: Connection, tenant: str) -> dict[str, int]:
    rows = c.execute("select state, count(*) from instances where tenant = %s group by 1 order by 1", (tenant,)).fetchall()
    return {row[0]: row[1] for row in rows}


def size(c: Connection) -> int:
    row = c.execute("select pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


def analyze(c: Connection) -> None:
    """The statistics of what grows: queries are planned by them."""
    c.execute("analyze instances, branches, checkpoints, outbox, audit")
