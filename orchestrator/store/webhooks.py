"""Webhooks: who wants to be told what, and what is still to be delivered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.store import sealing
from orchestrator.store.connection import Connection, dumps


@dataclass(frozen=True, slots=True)
class Webhook:
    id: int
    tenant: str
    name: str
    url: str
    types: list[str]
    secret: str
    """The secret's name; its value is in no table."""
    enabled: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    id: int
    event: dict[str, Any]
    attempts: int
    url: str
    secret: str
    name: str
    tenant: str


_COLUMNS = "id, tenant, name, url, types, secret, enabled"
SENDING_S = 60.0


def put(c: Connection, tenant: str, name: str, url: str, types: Sequence[str], secret: str) -> None:
    c.execute(
        "insert into webhooks (tenant, name, url, types, secret) values (%s, %s, %s, %s, %s)"
        " on conflict (tenant, name) do update set url = excluded.url, types = excluded.types, secret = excluded.secret, enabled = true,"
        " changed_at = now()",
        (tenant, name, url, list(types), secret),
    )


def delete(c: Connection, tenant: str, name: str) -> bool:
    return c.execute("delete from webhooks where tenant = %s and name = %s returning id", (tenant, name)).fetchone() is not None


def enabled(c: Connection) -> list[Webhook]:
    return [Webhook(*row) for row in c.execute(f"select {_COLUMNS} from webhooks where enabled").fetchall()]


def listing(c: Connection) -> list[dict[str, Any]]:
    rows = c.execute(
        """
        select w.tenant, w.name, w.url, w.types, w.secret, w.enabled,
            (select count(*) from deliveries d where d.webhook_id = w.id and d.try_at < 'infinity'),
            (select count(*) from deliveries d where d.webhook_id = w.id and d.try_at = 'infinity'),
            (select d.error from deliveries d where d.webhook_id = w.id and d.error is not null order by d.id desc limit 1)
        from webhooks w order by w.tenant, w.name
        """
    ).fetchall()
    names = ("tenant", "name", "url", "types", "secret", "enabled", "waiting", "given_up", "last_error")
    return [dict(zip(names, row, strict=True)) for row in rows]


def queue(c: Connection, wanted: Sequence[tuple[int, dict[str, Any]]]) -> None:
    if wanted:
        c.execute(
            "insert into deliveries (webhook_id, event) select h, e::jsonb from unnest(%s::bigint[], %s::text[]) as g (h, e)",
            ([one[0] for one in wanted], [sealing.sealed_event(one[1], dumps) for one in wanted]),
        )


def claim(c: Connection, limit: int) -> list[Delivery]:
    """Deliveries that are due; others leave them alone for a minute."""
    rows = c.execute(
        """
        with due as (select id from deliveries where try_at <= now() order by try_at limit %s for update skip locked)
        update deliveries d set try_at = now() + make_interval(secs => %s), attempts = d.attempts + 1
        from due, webhooks w where d.id = due.id and w.id = d.webhook_id
        returning d.id, d.event, d.attempts, w.url, w.secret, w.name, w.tenant
        """,
        (limit, SENDING_S),
    ).fetchall()
    return [Delivery(*row) for row in sorted(rows, key=lambda row: row[0])]


def delivered(c: Connection, id: int) -> None:
    c.execute("delete from deliveries where id = %s", (id,))


def refused(c: Connection, id: int, error: str, try_in_s: float | None) -> None:
    """Tried again later, or (None) given up and kept to be looked at."""
    c.execute(
        "update deliveries set error = %(e)s, try_at = case when %(s)s::float8 is null then 'infinity'::timestamptz"
        " else now() + make_interval(secs => %(s)s::float8) end where id = %(id)s",
        {"e": error[:2000], "s": try_in_s, "id": id},
    )


def send_again(c: Connection, tenant: str, name: str) -> int:
    rows = c.execute(
        "update deliveries d set try_at = now(), attempts = 0 from webhooks w"
        " where w.id = d.webhook_id and w.tenant = %s and w.name = %s and d.try_at = 'infinity' returning d.id",
        (tenant, name),
    ).fetchall()
    return len(rows)
