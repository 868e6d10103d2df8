"""Findings: what is at fault right now, since when, and why. One row while it lasts; gone when it is well again.

A chore that fails, a schedule that was put aside, a file that cannot be read. `/health`, `doctor` and a metric show them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from orchestrator.store.connection import Connection, dumps


def note(c: Connection, kind: str, subject: str, message: str, detail: Any = None, *, tenant: str = "default") -> None:
    """It is at fault, still or again."""
    c.execute(
        """
        insert into findings (kind, tenant, subject, message, detail) values (%s, %s, %s, %s, %s::jsonb)
        on conflict (kind, tenant, subject) do update
        set seen_at = now(), times = findings.times + 1, message = excluded.message, detail = excluded.detail
        """,
        (kind, tenant, subject[:500], message[:2000], None if detail is None else dumps(detail)),
    )


def clear(c: Connection, kind: str, subject: str, *, tenant: str = "default") -> None:
    """It is well again."""
    c.execute("delete from findings where kind = %s and tenant = %s and subject = %s", (kind, tenant, subject[:500]))


def clear_others(c: Connection, kind: str, subjects: Collection[str], *, tenant: str = "default") -> None:
    """Of this kind these are at fault and no others."""
    c.execute("delete from findings where kind = %s and tenant = %s and subject <> all (%s)", (kind, tenant, list(subjects)))


def listing(c: Connection, tenant: str | None = None) -> list[dict[str, Any]]:
    """All of them, or one tenant's; the oldest first."""
    rows = c.execute(
        """
        select kind, tenant, subject, message, detail, times, to_char(since at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
            extract(epoch from clock_timestamp() - since)::float8
        from findings where %(t)s::text is null or tenant = %(t)s order by since, kind, subject
        """,
        {"t": tenant},
    ).fetchall()
    names = ("kind", "tenant", "subject", "message", "detail", "times", "since", "for_s")
    return [dict(zip(names, row, strict=True)) for row in rows]


def not_told(c: Connection, older_than_s: float) -> list[dict[str, Any]]:
    """Those that lasted for so long and that no alert was raised for; from here on one was."""
    rows = c.execute(
        """
        update findings set told_at = now() where told_at is null and since < now() - make_interval(secs => %s)
        returning kind, tenant, subject, message, times, to_char(since at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        """,
        (older_than_s,),
    ).fetchall()
    return [dict(zip(("kind", "tenant", "subject", "message", "times", "since"), row, strict=True)) for row in rows]
