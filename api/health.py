"""`/health`: does the database answer, does Redis, is a worker alive, are events consumed."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import psycopg
import redis
from flask import Blueprint, Response, jsonify

from orchestrator.api.runner import runner
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.schedule import beats
from orchestrator.store import findings, queries, workers
from orchestrator.store.connection import spelled
from orchestrator.stream.bridge import standing
from orchestrator.stream.state import StateKeys
from orchestrator.stream.stores import StoreAway

blueprint = Blueprint("health", __name__)
_began = time.monotonic()


@blueprint.get("/health/live")
def live() -> Response:
    """Check that this process answers.

    This process answers. Nothing else is asked: a database that is away is no reason to be started again.
    """
    return jsonify({"status": "alive", "uptime_s": round(time.monotonic() - _began, 1)})


@blueprint.get("/health/ready")
def ready() -> Response:
    """Check that requests can be served.

    Requests can be served: the database answers.
    """
    if database_answers(runner()):
        return jsonify({"status": "ready"})
    response = jsonify({"status": "not ready", "database": "unhealthy"})
    response.status_code = 503
    return response


@blueprint.get("/health")
def health() -> Response:
    """Get the health of every component."""
    about, code = overall()
    return Response(spelled(about), code, content_type="application/json")


def overall() -> tuple[dict[str, Any], int]:
    """What is known of every component, and the status to answer with."""
    current = runner()
    components: dict[str, Any] = {}
    try:
        alive = [
            worker
            for worker in queries.workers(current.database.connection())
            if worker["silent_s"] < 3 * current.runtime.settings.heartbeat_s
        ]
        components["database"] = {"status": "healthy"}
        components["workers"] = {"status": "healthy" if alive else "unhealthy", "count": len(alive), **_left_out(alive, current)}
        components["keeper"] = _keeper(current)
    except psycopg.Error:
        current.database.drop()
        components["database"] = {"status": "unhealthy"}
    # Asked once: where it hangs, nothing else waits for it again.
    has_redis = redis_answers(current)
    _beat(current, components, has_redis=has_redis)
    # Starts are accepted without Redis; recovery publishes them when it is back.
    components["redis"] = {"status": "healthy" if has_redis else "unhealthy"}
    bridge = _bridge(current, components, has_redis=has_redis)
    is_healthy = all(component["status"] == "healthy" for component in components.values())
    about = {
        "status": "healthy" if is_healthy else "degraded",
        "components": components,
        "uptime": round(time.monotonic() - _began, 1),
        "uptime_s": round(time.monotonic() - _began, 1),
        "timestamp": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "workflows": _registered(current) if components["database"]["status"] == "healthy" else None,
        **bridge,
    }
    return about, 200 if components["database"]["status"] == "healthy" else 503


def _left_out(alive: list[dict[str, Any]], current: WorkflowRunner) -> dict[str, Any]:
    """What workers could not load, and this process could not register: names and places; the reasons are in their logs and in
    `orchestrator doctor`."""
    found = {(one["kind"], one["name"]): one for worker in alive for one in worker["left_out"] or ()}
    found |= {(one.kind, one.name): one.to_json() for one in current.left_out if one.kind == "workflow"}
    shown = [{key: one[key] for key in ("kind", "name", "file", "line") if key in one} for one in found.values()]
    return {"status": "degraded", "left_out": shown} if shown else {}


def _keeper(current: WorkflowRunner) -> dict[str, Any]:
    """Who does what is done for all, and which chores fail since when."""
    c = current.database.connection()
    posts = workers.posts(c)
    failing = [
        {"chore": one["subject"], "since": one["since"], "times": one["times"]} for one in findings.listing(c) if one["kind"] == "chore"
    ]
    status = "unhealthy" if not posts else "degraded" if failing else "healthy"
    return {"status": status, "posts": posts, "failing": failing}


def _beat(current: WorkflowRunner, components: dict[str, Any], *, has_redis: bool) -> None:
    """One that was there within a day and stands still: the keeper fires schedules in its place, and somebody should look."""
    if components["database"]["status"] != "healthy":
        return
    try:
        beat = beats.standing(current.runtime.publisher.app if has_redis else None, current.database.connection())
    except psycopg.Error:
        current.database.drop()
        return
    components["beat"] = {
        "status": "unhealthy" if beat.is_missed else "healthy",
        "beating": beat.is_beating,
        "silent_s": None if beat.silent_s is None else round(beat.silent_s, 1),
        "detail": str(beat),
    }


def database_answers(current: WorkflowRunner) -> bool:
    try:
        current.database.connection().execute("select 1")
    except psycopg.Error:
        current.database.drop()
        return False
    return True


def redis_answers(current: WorkflowRunner) -> bool:
    """Asked shortly: who asks waits for it."""
    with redis.Redis.from_url(current.runtime.settings.redis_url, socket_timeout=1, socket_connect_timeout=1, retry=None) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _registered(current: WorkflowRunner) -> int | None:
    try:
        return len({(one.namespace, one.name) for one in current.workflows()})
    except psycopg.Error:
        current.database.drop()
        return None


def _bridge(current: WorkflowRunner, components: dict[str, Any], *, has_redis: bool) -> dict[str, Any]:
    """The event bus and who consumes it. Events wait where no bridge runs: that degrades, and loses nothing."""
    settings = current.runtime.settings
    try:
        if not has_redis and settings.eventstore_type == "redis":
            raise StoreAway("Redis does not answer")
        found = standing(settings, current.database.connection())
    except (StoreAway, psycopg.Error):
        components["event_bus"] = {"status": "unhealthy", "type": settings.eventstore_type}
        return {"consumer_active": False, "pending_events": None, "last_event_time": None, "error_count": None}
    info: dict[str, Any] = {}
    if has_redis:
        keys = StateKeys(settings)
        info = keys.info()
        keys.close()
    active = all(one["active"] for one in found)
    components["event_bus"] = {"status": "healthy", "type": settings.eventstore_type}
    components["bridge"] = {"status": "healthy" if active else "unhealthy", "streams": found}
    return {
        "consumer_active": active,
        "pending_events": sum(one["pending"] for one in found),
        "waiting_events": sum(one["waiting"] for one in found),
        "last_event_time": info.get("last_event_time") or None,
        "error_count": info.get("errors_count", 0),
        "processed_count": info.get("processed_count", 0),
    }
