"""Who one is; the audit, its export and its seals; security events; API keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked
from orchestrator.api.gate import who
from orchestrator.api.runner import runner
from orchestrator.engine import keyring
from orchestrator.errors import Fault, Invalid, NotFound
from orchestrator.store import security
from orchestrator.store.security import AuditFilter

blueprint = Blueprint("security", __name__, url_prefix="/workflow")

PAGE = 1000


@blueprint.get("/whoami")
def whoami() -> Response:
    """Get who is asking, and what they may do."""
    principal = who()
    return jsonify(
        {
            "name": principal.name, "tenant": principal.tenant, "roles": principal.roles, "scopes": principal.scopes,
            "workflows": principal.workflows, "permissions": sorted(principal.permissions),
        }
    )  # fmt: skip


@blueprint.get("/audit")
def audit() -> Response:
    """Search the audit.

    The newest first. actor (or user), action, source, workflow, instanceId, address, since, until; page and limit.

    `next` is the cursor of what follows, which stays the same however much is added meanwhile.
    """
    wanted = _filter()
    limit, page = asked.number("limit", 50, 1000), asked.number("page", 1, 100_000)
    database = runner().database
    total = database.patiently(lambda c: security.count_audited(c, wanted))
    before = asked.before()
    rows = database.patiently(lambda c: security.audited(c, wanted, limit, 0 if before else (page - 1) * limit, before))
    pages = {"page": page, "limit": limit, "total": total, "pages": -(-total // limit)}
    return jsonify({"audit": rows, "pagination": pages, "next": asked.next_of(rows, limit)})


@blueprint.get("/audit/export")
def export() -> Response:
    """Export the audit.

    Everything a filter finds, one JSON object a line, the newest first.
    """
    wanted, database = _filter(), runner().database

    def lines() -> Iterator[str]:
        before: int | None = None
        while rows := database.patiently(lambda c, b=before: security.audited(c, wanted, PAGE, 0, b)):  # type: ignore[misc]
            yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            before = security.cursor_after(rows)
            if before is None:
                return

    return Response(lines(), content_type="application/x-ndjson")


@blueprint.get("/audit/verify")
def verify() -> Response:
    """Verify the seals of the audit."""
    seals, rows, faults = runner().database.patiently(security.verify)
    return jsonify({"isIntact": not faults, "seals": seals, "rows": rows, "faults": faults})


def _filter() -> AuditFilter:
    args = request.args
    if (instance := args.get("instanceId")) is not None:
        instance = runner().resolve_id(instance)
    return AuditFilter(
        actor=args.get("actor") or args.get("user"), action=args.get("action"), source=args.get("source"), workflow=args.get("workflow"),
        instance_id=instance, address=args.get("address"), since=asked.moment("since"), until=asked.moment("until"), tenant=asked.only_tenant(),
    )  # fmt: skip


@blueprint.get("/security/events")
def security_events() -> Response:
    """List security events.

    The newest first. type, resolved (true or false), limit; `next` is the cursor of what follows.
    """
    resolved = {"true": True, "false": False}.get(request.args.get("resolved", ""))
    before, limit = asked.before(), asked.number("limit", 100, 1000)
    found = runner().database.patiently(
        lambda c: security.reported(c, asked.only_tenant(), request.args.get("type"), resolved, before, limit)
    )
    return jsonify({"events": found, "next": asked.next_of(found, limit)})


@blueprint.post("/security/events/<int:number>/resolve")
def resolve(number: int) -> Response:
    """Resolve a security event.

    `{resolution}`
    """
    how = str(asked.body().get("resolution") or "resolved")[:2000]
    if not runner().database.patiently(lambda c: security.resolve(c, number, asked.only_tenant(), asked.actor(), how)):
        raise NotFound("open security event", number)
    return jsonify({"id": number, "resolved": True})


@blueprint.get("/keys")
def keys() -> Response:
    """List API keys."""
    return jsonify({"keys": runner().database.patiently(lambda c: security.all_keys(c, asked.only_tenant()))})


@blueprint.post("/keys")
def add_key() -> tuple[Response, int]:
    """Create an API key.

    `{name, roles, tenant, scopes, workflows, lasts}`. The key is shown this once.
    """
    body = asked.body()
    faults = [Fault(key, "is not known") for key in body if key not in ("name", "roles", "tenant", "scopes", "workflows", "lasts")]
    faults += [Fault(key, "a list of texts is needed") for key in ("roles", "scopes", "workflows") if not _is_texts(body.get(key, []))]
    if not isinstance(body.get("name"), str) or not body["name"]:
        faults.append(Fault("name", "is required"))
    if faults:
        raise Invalid(faults, "key")
    tenant = asked.only_tenant() or str(body.get("tenant") or "default")
    made: dict[str, Any] = keyring.add(
        runner().runtime, body["name"], body.get("roles", ["user"]), tenant=tenant, scopes=body.get("scopes", ()),
        workflows=body.get("workflows", ()), lasts=body.get("lasts"), **asked.by_whom(),
    )  # fmt: skip
    return jsonify(made), 201


def _is_texts(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(one, str) for one in given)


@blueprint.post("/keys/<key_id>/rotate")
def rotate_key(key_id: str) -> tuple[Response, int]:
    """Rotate an API key: issue a replacement with the same permissions.

    A successor that may what it may; the old one ends after `{overlap}`, an hour if nothing is said.
    """
    overlap = asked.body().get("overlap", "1h")
    return jsonify(keyring.rotate(runner().runtime, key_id, overlap, only=asked.only_tenant(), **asked.by_whom())), 201


@blueprint.delete("/keys/<key_id>")
def revoke_key(key_id: str) -> Response:
    """Revoke an API key."""
    keyring.revoke(runner().runtime, key_id, only=asked.only_tenant(), **asked.by_whom())
    return jsonify({"id": key_id, "revoked": True})
