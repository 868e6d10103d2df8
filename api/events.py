"""Events: sent, searched, replayed, discarded; and the event bus as its publishers know it."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from typing import Any

import redis
from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked
from orchestrator.api.gate import who
from orchestrator.api.runner import runner
from orchestrator.errors import Fault, Invalid
from orchestrator.store.events import EventFilter
from orchestrator.stream.envelopes import source_of
from orchestrator.stream.outlets import RECENT

blueprint = Blueprint("events", __name__, url_prefix="/workflow/events")
bus = Blueprint("bus", __name__, url_prefix="/api/events")

SHOWN = 50


@blueprint.post("")
def send() -> tuple[Response, int]:
    """Send events.

    A CloudEvent, or a list of them. 202: taken; 200: this source and id were here before.
    """
    given = request.get_json(force=True)
    several = isinstance(given, list)
    envelopes = given if several else [given]
    if not envelopes or not all(isinstance(one, dict) for one in envelopes):
        raise Invalid([Fault("body", "must be a CloudEvent, or a list of them")], "event")
    arrivals = runner().send_events(envelopes, tenant=asked.tenant())
    told = [{"id": a.envelope["id"], "number": a.number, "status": "accepted" if a.is_new else "known"} for a in arrivals]
    return jsonify({"events": told} if several else told[0]), 202 if any(a.is_new for a in arrivals) else 200


@blueprint.get("")
def listing() -> Response:
    """List events.

    Newest first. state, type (with `*`), source, key, stream, text, since, until, limit; `next` is the cursor of what follows.
    """
    limit = asked.number("limit", SHOWN, 1000)
    found = runner().events(_filter(request.args.to_dict(), limit=limit, before=asked.before(), also=("limit", "before", "cursor")))
    return jsonify({"events": found, "next": asked.next_of(found, limit, "number")})


@blueprint.get("/<int:number>")
def one(number: int) -> Response:
    """Get an event with its effects."""
    return jsonify(runner().event(number))


@blueprint.post("/<int:number>/replay")
def replay_one(number: int) -> Response:
    """Replay an event."""
    runner().event(number)
    return jsonify({"replayed": runner().replay_events(EventFilter(numbers=(number,)), **asked.by_whom())})


@blueprint.post("/replay")
def replay() -> Response:
    """Replay the events that a filter finds.

    By filter: `{state: dead, type: proxy_*, since: …, limit: 100}`. An empty one is refused.
    """
    return jsonify({"replayed": runner().replay_events(_wanted(), **asked.by_whom())})


@blueprint.post("/discard")
def discard() -> Response:
    """Discard the dead events that a filter finds."""
    return jsonify({"discarded": runner().discard_events(_wanted(), **asked.by_whom())})


@blueprint.delete("/<int:number>")
def discard_one(number: int) -> Response:
    """Discard a dead event."""
    runner().event(number)
    return jsonify({"discarded": runner().discard_events(EventFilter(numbers=(number,)), **asked.by_whom())})


def _wanted() -> EventFilter:
    body = asked.body()
    limit = body.pop("limit", 1000)
    if not body:
        raise Invalid([Fault("body", 'names no filter; to mean all of them, say {"type": "*"}')], "request")
    if not isinstance(limit, int) or not 0 < limit <= 10_000:
        raise Invalid([Fault("limit", "a number from 1 to 10,000 is needed")], "request")
    return _filter({key: str(value) for key, value in body.items()}, limit=limit)


def _filter(given: dict[str, str], *, limit: int, before: int | None = None, also: tuple[str, ...] = ()) -> EventFilter:
    known = ("state", "type", "source", "key", "stream", "text", "since", "until")
    faults = [Fault(key, f"is not known; a filter has {', '.join(known)}") for key in given if key not in (*known, *also)]
    for key in ("since", "until"):
        if key in given:
            try:
                dt.datetime.fromisoformat(given[key])
            except ValueError:
                faults.append(Fault(key, f"is '{given[key]}'; a time like 2026-01-31T12:00:00Z is needed"))
    if faults:
        raise Invalid(faults, "filter")
    named: dict[str, Any] = {key: given[key] for key in known if given.get(key)}
    return EventFilter(**named, tenant=asked.only_tenant(), before=before, limit=limit)


# ── the bus ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@bus.post("")
def publish() -> Response:
    """Publish an event on the bus.

    `{eventType, payload}`: kept, told to whoever subscribes, and whatever is mapped to it starts.
    """
    body = asked.body()
    kind = body.get("eventType")
    if not isinstance(kind, str) or not kind:
        raise Invalid([Fault("eventType", "is required")], "event")
    envelope = {
        "id": str(body.get("id") or f"evt_{uuid.uuid4().hex}"),
        "source": str(body.get("source") or source_of("api", kind, body.get("id"))),
        "type": kind,
        "time": dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z"),
        "data": body.get("payload"),
    }
    [arrival] = runner().send_events([envelope], tenant=asked.tenant())
    started = [e["instance_id"] for e in runner().event(arrival.number)["effects"] if e["instance_id"]] if arrival.is_new else []
    return jsonify({"success": True, "id": envelope["id"], "eventType": kind, "timestamp": envelope["time"], "started": started})


@bus.get("")
def recent() -> Response:
    """List recent events of the bus.

    Newest first: what was sent here, and the life cycle of workflows.
    """
    limit = asked.number("limit", SHOWN, 1000)
    kept = [
        {
            "id": one["id"],
            "type": one["type"],
            "payload": one["envelope"].get("data"),
            "timestamp": one["envelope"].get("time") or one["at"],
            "source": one["source"],
        }
        for one in runner().events(EventFilter(tenant=asked.tenant(), limit=limit))
    ]
    known = {one["id"] for one in kept}
    # The list in Redis is everybody's.
    together = kept + [one for one in (_told(limit) if who().may("everything") else []) if one.get("id") not in known]
    together.sort(key=lambda one: str(one.get("timestamp")), reverse=True)
    return jsonify({"events": together[:limit], "count": len(together[:limit])})


def _told(limit: int) -> list[dict[str, Any]]:
    """Redis away: what Postgres has is shown."""
    settings = runner().runtime.settings
    client: Any = redis.Redis.from_url(settings.redis_url, decode_responses=True, socket_timeout=1, socket_connect_timeout=1, retry=None)
    try:
        return [json.loads(text) for text in client.lrange(settings.redis_prefix + RECENT, 0, limit - 1)]
    except redis.RedisError:
        return []
    finally:
        client.close()
