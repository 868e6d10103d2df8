"""API keys as people handle them: made, rotated, revoked; each act audited, and the key itself shown once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Fault, Invalid, NotFound
from orchestrator.security import keys
from orchestrator.security.principals import ROLES
from orchestrator.store import instances, security
from orchestrator.store.connection import Connection
from orchestrator.store.security import Key


def add(
    runtime: Runtime, name: str, roles: Sequence[str], *, tenant: str = "default", scopes: Sequence[str] = (), workflows: Sequence[str] = (),
    lasts: Any = None, actor: str = "anonymous", source: str = "api",
) -> dict[str, Any]:  # fmt: skip
    """Gives the key; it cannot be shown again."""
    unknown = [role for role in roles if role not in ROLES]
    faults = [Fault("roles", f"'{role}' is no role; there are {', '.join(ROLES)}") for role in unknown]
    lasts_s = _span(lasts, "lasts", faults)
    if faults:
        raise Invalid(faults, "key")
    identity, shown, digest = keys.make()
    kept = Key(identity, name, tenant, digest, list(roles), list(scopes), list(workflows))

    def act(c: Connection) -> None:
        with c.transaction():
            security.add_key(c, kept, lasts_s)
            instances.audit(
                c, actor, "add-key", source, None, None, {"key": identity, "name": name, "tenant": tenant, "roles": list(roles)}
            )

    runtime.database.patiently(act)
    return {"id": identity, "key": shown, "name": name, "tenant": tenant, "roles": list(roles)}


def rotate(
    runtime: Runtime, identity: str, overlap: Any = "1h", *, only: str | None = None, actor: str = "anonymous", source: str = "api"
) -> dict[str, Any]:
    """A successor that may the same; both hold during the overlap."""
    faults: list[Fault] = []
    overlap_s = _span(overlap, "overlap", faults)
    if faults:
        raise Invalid(faults, "key")
    held = runtime.database.patiently(lambda c: security.use_key(c, identity))
    if held is None or (only is not None and held.tenant != only):
        raise NotFound("API key", identity)
    made = add(runtime, held.name, held.roles, tenant=held.tenant, scopes=held.scopes, workflows=held.workflows, actor=actor, source=source)
    revoke(runtime, identity, only=only, after_s=overlap_s or 0.0, actor=actor, source=source)
    return {**made, "replaces": identity}


def revoke(
    runtime: Runtime, identity: str, *, only: str | None = None, after_s: float = 0.0, actor: str = "anonymous", source: str = "api"
) -> None:
    def act(c: Connection) -> None:
        with c.transaction():
            if not security.revoke_key(c, identity, only, after_s):
                raise NotFound("API key", identity)
            instances.audit(c, actor, "revoke-key", source, None, None, {"key": identity, "after_s": after_s})

    runtime.database.patiently(act)


def _span(given: Any, key: str, faults: list[Fault]) -> float | None:
    if given is None:
        return None
    try:
        return seconds(given)
    except BadDuration as error:
        faults.append(Fault(key, str(error)))
        return None
