"""LISTEN and NOTIFY. Channels are the whole database's: the schema is part of every name, as a hash, since names are short."""

from __future__ import annotations

from psycopg import sql

from orchestrator.store.connection import Connection

_NAME = "'orchestrator_' || %s || '_' || md5(current_schema())"


def tell(c: Connection, channel: str, text: str) -> None:
    c.execute(f"select pg_notify({_NAME}, %s)", (channel, text))


def listen(c: Connection, channel: str) -> None:
    row = c.execute(f"select {_NAME}", (channel,)).fetchone()
    assert row is not None
    c.execute(sql.SQL("listen {}").format(sql.Identifier(row[0])))
