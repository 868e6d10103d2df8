"""Names that are held while something is looked at and then changed: a schedule, a trigger, a configuration.

Whoever writes one holds its name until the transaction ends. Who wants to look first and change then, with nobody in
between, holds it for longer: the same session is not held up by itself.
"""

from __future__ import annotations

from orchestrator.store.connection import Connection

_KEY = "hashtextextended(%s, 13)"


def hold(c: Connection, kind: str, *names: str) -> None:
    """Until the transaction ends."""
    c.execute(f"select pg_advisory_xact_lock({_KEY})", (_text(kind, names),))


def hold_on(c: Connection, kind: str, *names: str) -> None:
    """Until `let_go`, or until the connection ends."""
    c.execute(f"select pg_advisory_lock({_KEY})", (_text(kind, names),))


def let_go(c: Connection, kind: str, *names: str) -> None:
    c.execute(f"select pg_advisory_unlock({_KEY})", (_text(kind, names),))


def _text(kind: str, names: tuple[str, ...]) -> str:
    return "/".join((kind, *names))
