"""Names that moved since the faults were found."""

from __future__ import annotations

import importlib
from typing import Any
from urllib.parse import urlsplit


def named(*places: str) -> Any:
    """The first of `module:name` that is there."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(" or ".join(places))


create_app = named("orchestrator.api:create_app", "api:create_app")
SERVING = "orchestrator.api" if create_app.__module__.startswith("orchestrator.") else "api"
SHIPPED = "orchestrator.workflows" if SERVING.startswith("orchestrator.") else "workflows"


def schema_of(c: Any) -> str:
    """Where the engine's tables are."""
    found = c.execute(
        "select n.nspname::text from pg_class t join pg_namespace n on n.oid = t.relnamespace where t.relname = 'checkpoints'"
    ).fetchall()
    assert len(found) == 1, found
    return str(found[0][0])


def as_user(url: str, user: str) -> str:
    """The same database, by a user whose password is their name."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{user}@{parts.hostname}:{parts.port}").geturl()
