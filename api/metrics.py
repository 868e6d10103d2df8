"""`/metrics`: what is true at the moment of asking, and what this process uses."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from orchestrator.api.collectors import Everything

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Get metrics for Prometheus."""
    return shown(Everything())


def shown(*collectors: Any) -> Response:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collector in collectors:
        registry.register(collector)
    return Response(generate_latest(registry), content_type="text/plain; version=0.0.4; charset=utf-8")
