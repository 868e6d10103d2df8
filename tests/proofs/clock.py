"""The database's clock, set back by so many seconds: seen from it, every moment that was ever written is so much later."""

from __future__ import annotations

from typing import Any

import psycopg


def set_back(database_url: str, seconds: float) -> None:
    with psycopg.connect(database_url) as c:
        columns = c.execute(
            """
            select table_schema, table_name, array_agg(column_name::text) from information_schema.columns
            where data_type = 'timestamp with time zone' and table_schema not in ('pg_catalog', 'information_schema')
              and table_name not like 'checkpoints\\_%' group by 1, 2
            """
        ).fetchall()
        for schema, table, names in columns:
            later = ", ".join(f'"{name}" = "{name}" + make_interval(secs => {seconds})' for name in names)
            c.execute(f'update "{schema}"."{table}" set {later}')  # type: ignore[arg-type]
        for name in ("until", "not_before", "due"):
            _later(c, name, seconds)


def _later(c: psycopg.Connection[Any], name: str, seconds: float) -> None:
    """Moments that facts hold."""
    c.execute(
        "update checkpoints set data = data || jsonb_build_object(%s::text, (data ->> %s)::float8 + %s::float8) where data ? %s",
        (name, name, seconds, name),
    )
