"""Names that are held while something is looked at and then changed: a schedule, a trigger, a configuration.

Whoever writes one holds its name until the transaction ends. Who wants to look first and change then, with nobody in
between, holds it for longer: the same session is not held up by itself.

Advisory locks are the whole database's. The schema is part of every name, so that engines in two schemas do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.ids import key_of
from orchestrator.store.connection import Connection

_KEY = "hashtextextended(current_schema() || '/' || %s, 13)"


def hold(c: Connection, kind: str, *names: str) -> None:
    """Until the transaction ends."""
    c.execute(f"select pg_advisory_xact_lock({_KEY})", (_text(kind, names),))


def hold_all(c: Connection, kind: str, names: Sequence[str]) -> None:
    """Each of them, in one order for everybody, until the transaction ends."""
    texts = [_text(kind, (name,)) for name in names]
    c.execute(
        "select pg_advisory_xact_lock(key) from (select hashtextextended(current_schema() || '/' || unnest(%s::text[]), 13) as key order by 1) k",
        (texts,),
    )


def hold_on(c: Connection, kind: str, *names: str) -> None:
    """Until `let_go`, or until the connection ends."""
    c.execute(f"select pg_advisory_lock({_KEY})", (_text(kind, names),))


def let_go(c: Connection, kind: str, *names: str) -> None:
    c.execute(f"select pg_advisory_unlock({_KEY})", (_text(kind, names),))


def _text(kind: str, names: tuple[str, ...]) -> str:
    return key_of(kind, *names)
