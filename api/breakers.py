"""Circuit breakers: how they stand, and closed by hand."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from orchestrator.api import asked
from orchestrator.api.runner import runner

blueprint = Blueprint("breakers", __name__, url_prefix="/workflow/breakers")


@blueprint.get("")
def listing() -> Response:
    """List circuit breakers."""
    return jsonify({"breakers": runner().runtime.breakers.all()})


@blueprint.get("/<path:breaker>")
def one(breaker: str) -> Response:
    """Get a circuit breaker."""
    return jsonify(runner().runtime.breakers.find(breaker))


@blueprint.post("/<path:breaker>/reset")
def reset(breaker: str) -> Response:
    """Close a circuit breaker by hand."""
    runner().reset_breaker(breaker, **asked.by_whom())
    return jsonify(runner().runtime.breakers.find(breaker))
