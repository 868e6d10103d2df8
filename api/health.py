"""`/health`: does the database answer, does Redis, is a worker alive."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import redis
from flask import Blueprint, Response, jsonify

from api.runner import runner
from orchestrator.store import queries

blueprint = Blueprint("health", __name__)
_began = time.monotonic()


@blueprint.get("/health")
def health() -> Response:
    current = runner()
    components: dict[str, Any] = {}
    try:
        workers = queries.workers(current.database.connection())
        alive = [worker for worker in workers if worker["silent_s"] < 3 * current.runtime.settings.heartbeat_s]
        components["database"] = {"status": "healthy"}
        components["workers"] = {"status": "healthy" if alive else "unhealthy", "count": len(alive)}
    except psycopg.Error:
        current.database.drop()
        components["database"] = {"status": "unhealthy"}
    try:
        redis.Redis.from_url(current.runtime.settings.redis_url, socket_timeout=1, socket_connect_timeout=1).ping()
        components["redis"] = {"status": "healthy"}
    except redis.RedisError:
        # Starts are accepted without Redis; recovery publishes them when it is back.
        components["redis"] = {"status": "unhealthy"}
    is_healthy = all(component["status"] == "healthy" for component in components.values())
    response = jsonify(
        {"status": "healthy" if is_healthy else "degraded", "components": components, "uptime_s": round(time.monotonic() - _began, 1)}
    )
    response.status_code = 200 if components["database"]["status"] == "healthy" else 503
    return response
