"""The application's side of proxies (`/api/proxies`), which knows only what people configure; and what became of it
(`/workflow/proxies`), which is the orchestrator's."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify

from orchestrator import composition
from orchestrator.api import asked
from orchestrator.api.runner import runner
from orchestrator.errors import Fault, Invalid, NotFound
from orchestrator.proxies.application import Application
from orchestrator.store import resources
from orchestrator.store.resources import Resource

application = Blueprint("proxies", __name__, url_prefix="/api/proxies")
instances = Blueprint("proxy_instances", __name__, url_prefix="/workflow/proxies")


def _application() -> Application:
    return composition.application(runner().runtime.settings)


@application.post("")
def create() -> tuple[Response, int]:
    """Create a proxy.

    `{hostname, target, enable_http, enable_https, cert_name, routes, headers}`.
    """
    body = asked.body()
    if "hostname" not in body:
        raise Invalid([Fault("hostname", "is required")], "proxy")
    return jsonify(_application().create(body.pop("hostname"), body)), 201


@application.get("")
def listing() -> Response:
    """List proxies."""
    return jsonify({"proxies": _application().all()})


@application.get("/<hostname>")
def one(hostname: str) -> Response:
    """Get a proxy."""
    return jsonify(_application().get(hostname))


@application.put("/<hostname>")
@application.patch("/<hostname>")
def change(hostname: str) -> Response:
    """Change a proxy."""
    return jsonify(_application().change(hostname, asked.body()))


@application.delete("/<hostname>")
def delete(hostname: str) -> Response:
    """Delete a proxy."""
    _application().delete(hostname)
    return jsonify({"hostname": hostname, "deleted": True})


@application.post("/<hostname>/routes")
def put_route(hostname: str) -> tuple[Response, int]:
    """Add or change a route of a proxy.

    `{id, path, target}`.
    """
    return jsonify(_application().put_route(hostname, asked.body())), 201


@application.delete("/<hostname>/routes/<path:route_id>")
def delete_route(hostname: str, route_id: str) -> Response:
    """Delete a route of a proxy."""
    _application().delete_route(hostname, route_id)
    return jsonify({"route_id": route_id, "deleted": True})


# ── what became of it ───────────────────────────────────────────────────────────────────────────────────────────────


@instances.get("")
def all_instances() -> Response:
    """List what became of all proxies."""
    found = runner().database.patiently(lambda c: resources.all_resources(c, "proxy"))
    return jsonify({"proxies": [_shown(one) for one in found]})


@instances.get("/<hostname>")
def instance(hostname: str) -> Response:
    """Get what became of a proxy."""
    found = runner().database.patiently(lambda c: resources.find(c, "proxy", hostname))
    if found is None:
        raise NotFound("proxy", hostname)
    moves = runner().database.patiently(lambda c: resources.moves(c, "proxy", hostname))
    return jsonify({**_shown(found), "history": moves})


def _shown(resource: Resource) -> dict[str, Any]:
    return {
        "hostname": resource.name,
        "id": resource.id,
        "state": resource.state,
        "mode": resource.mode,
        "doing": resource.doing,
        "ports": resource.data.get("ports"),
        "certificate": resource.data.get("certificate"),
        "config": resource.data.get("wish") or resource.data.get("next"),
        "error": resource.error,
        "created_at": resource.created_at,
        "changed_at": resource.changed_at,
    }
