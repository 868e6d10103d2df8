"""What an alert looks at. Without a namespace, workflows of that name in all of a tenant's namespaces."""

from __future__ import annotations

from orchestrator.store.connection import Connection


def timed_out(c: Connection, tenant: str, namespace: str | None, workflow: str, lately_s: float) -> list[tuple[str, str]]:
    """Instances that ended lately because their time, or that of a step, was over; with what was said."""
    return c.execute(
        """
        select id::text, coalesce(error ->> 'message', '') from instances
        where workflow = %s and (%s::text is null or namespace = %s) and tenant = %s and ended_at > now() - make_interval(secs => %s)
          and created_at > now() - interval '30 days'
          and (error ->> 'code' = 'timeout' or error ->> 'message' ilike '%%maximum duration exceeded%%')
        limit 1000
        """,
        (workflow, namespace, namespace, tenant, lately_s),
    ).fetchall()


def ended_and_failed(c: Connection, tenant: str, namespace: str | None, workflow: str, lately_s: float) -> tuple[int, int, float]:
    row = c.execute(
        """
        select count(*), count(*) filter (where outcome = 'FAILED'), extract(epoch from now())::float8 from instances
        where workflow = %s and (%s::text is null or namespace = %s) and tenant = %s and ended_at > now() - make_interval(secs => %s) and created_at > now() - interval '30 days'
        """,
        (workflow, namespace, namespace, tenant, lately_s),
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), float(row[2])


def within(c: Connection, tenant: str, namespace: str | None, workflow: str, target_s: float, lately_s: float) -> float | None:
    """The share of what completed lately that took no longer than it should; None where nothing did."""
    row = c.execute(
        """
        select avg((ended_at - created_at <= make_interval(secs => %s))::int)::float8 from instances
        where workflow = %s and (%s::text is null or namespace = %s) and tenant = %s and outcome = 'COMPLETED' and ended_at > now() - make_interval(secs => %s)
          and created_at > now() - interval '30 days'
        """,
        (target_s, workflow, namespace, namespace, tenant, lately_s),
    ).fetchone()
    return None if row is None or row[0] is None else float(row[0])
