"""Secrets that are kept here, sealed: for teams that have no better place. Without ENCRYPTION_KEYS nothing is taken."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.errors import Refused
from orchestrator.store import instances, sealing
from orchestrator.store.connection import Connection


def put(c: Connection, name: str, value: str, actor: str, source: str) -> None:
    if not sealing.is_on():
        raise Refused("secrets are kept sealed alone: set ENCRYPTION_KEYS first; `orchestrator new-key` makes a key")
    token = json.loads(sealing.sealed(json.dumps(value)))[sealing.MARK]
    with c.transaction():
        c.execute(
            "insert into secrets (name, value, changed_by) values (%s, %s, %s)"
            " on conflict (name) do update set value = excluded.value, changed_by = excluded.changed_by, changed_at = now()",
            (name, token, actor),
        )
        instances.audit(c, actor, "put-secret", source, None, None, {"secret": name})


def find(c: Connection, name: str) -> str | None:
    row = c.execute("select value from secrets where name = %s", (name,)).fetchone()
    return None if row is None else str(sealing.loads(json.dumps({sealing.MARK: row[0]})))


def names(c: Connection) -> list[dict[str, Any]]:
    rows = c.execute("select name, changed_at::text, changed_by from secrets order by name").fetchall()
    return [{"name": row[0], "changed_at": row[1], "changed_by": row[2]} for row in rows]


def delete(c: Connection, name: str, actor: str, source: str) -> bool:
    with c.transaction():
        gone = c.execute("delete from secrets where name = %s", (name,)).rowcount > 0
        if gone:
            instances.audit(c, actor, "delete-secret", source, None, None, {"secret": name})
        return gone
