"""Everything sealed anew with the first key: what older keys sealed, and what was kept in the clear before there were any.

Row by row and only where the row is still as it was read, beside everything that runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from orchestrator.store import sealing
from orchestrator.store.connection import Connection

AT_ONCE = 500
# What is read here is written as it stands: marks in it are escaped already.
_text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Kept:
    """A column that holds payloads; `part`: only that key of it."""

    table: str
    key: tuple[str, ...]
    column: str
    part: str | None = None


KEPT = (
    Kept("instances", ("id",), "input"),
    Kept("instances", ("id",), "output"),
    *(Kept("branches", ("id",), column) for column in ("shared", "vars", "context", "output", "snapshot")),
    Kept("checkpoints", ("branch_id", "seq"), "data"),
    Kept("events", ("id",), "envelope", part="data"),
    Kept("deliveries", ("id",), "event", part="data"),
)


def reseal(c: Connection) -> Iterator[tuple[str, int]]:
    """(table.column, rows changed), one after another."""
    for kept in KEPT:
        yield f"{kept.table}.{kept.column}", _column(c, kept)
    yield "secrets.value", _secrets(c)


def _column(c: Connection, kept: Kept) -> int:
    key = sql.SQL(", ").join(map(sql.Identifier, kept.key))
    table, column = sql.Identifier(kept.table), sql.Identifier(kept.column)
    last: tuple[Any, ...] | None = None
    changed = 0
    while True:
        after = sql.SQL("and ({}) > ({})").format(key, sql.SQL(", ").join(sql.Literal(one) for one in last)) if last else sql.SQL("")
        rows = c.execute(
            sql.SQL("select {column}::text, {key} from {table} where {column} is not null {after} order by {key} limit {limit}").format(
                column=column, key=key, table=table, after=after, limit=sql.Literal(AT_ONCE)
            )
        ).fetchall()
        if not rows:
            return changed
        for text, *values in rows:
            new = _new(json.loads(text), kept.part)
            if new is not None:
                same = sql.SQL(" and ").join(
                    sql.SQL("{} = {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in zip(kept.key, values, strict=True)
                )
                done = c.execute(
                    sql.SQL("update {table} set {column} = %s::jsonb where {same} and {column} = %s::jsonb").format(
                        table=table, column=column, same=same
                    ),
                    (new, text),
                )
                changed += done.rowcount
            last = tuple(values)


def _new(value: Any, part: str | None) -> str | None:
    """What is to be kept instead; None where that is what is kept."""
    if part is not None:
        inner = value.get(part) if isinstance(value, dict) else None
        text = None if sealing.stays_clear(inner) else _new(inner, None)
        return None if text is None else _text({**value, part: json.loads(text)})
    if sealing.is_sealed(value):
        token = sealing.rotated(value[sealing.MARK])
        return None if token is None else _text({sealing.MARK: token})
    return sealing.sealed(_text(value))


def _secrets(c: Connection) -> int:
    changed = 0
    for name, value in c.execute("select name, value from secrets").fetchall():
        if (token := sealing.rotated(value)) is not None:
            changed += c.execute("update secrets set value = %s where name = %s and value = %s", (token, name, value)).rowcount
    return changed
