"""Server-sent events: an instance as it moves, and events as they come.

A request that looks on for a quarter of an hour would keep a thread of the server for so long. Under gunicorn its connection
is lent to the hub instead, and the thread is free at once; elsewhere (and where gunicorn itself speaks TLS) the thread stays.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from fnmatch import fnmatchcase
from typing import Any

from flask import Blueprint, Response, current_app, request

from orchestrator.api import asked
from orchestrator.api.hub import MOST, EventsWatch, Hub, InstanceWatch, Lent, Queued, Watch
from orchestrator.api.runner import runner
from orchestrator.errors import Fault, Invalid, NotFound
from orchestrator.security.gate import Allowance, TooMany
from orchestrator.store import live

blueprint = Blueprint("live", __name__, url_prefix="/workflow")

_making = threading.Lock()  # of two who are the first, one makes the hub

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",
    "Connection": "close",
}


@blueprint.get("/instance/<instance_id>/stream")
def instance(instance_id: str) -> Response:
    """Follow an instance as server-sent events.

    `status` when it moves, `fact` for each line of its history, `end`. After `Last-Event-ID` some facts may come again.
    """
    whole = runner().resolve_id(instance_id)
    if not runner().database.patiently(lambda c: live.standing(c, [whole])):
        raise NotFound("instance", instance_id)
    return _stream(InstanceWatch(whole, request.headers.get("Last-Event-ID")))


@blueprint.get("/events/stream")
def events() -> Response:
    """Follow events as server-sent events.

    `event` for each that is kept from now on, or after `Last-Event-ID`; `?type=order.*`, `?source=`, `?key=`.
    """
    after = request.headers.get("Last-Event-ID")
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 19):
        raise Invalid([Fault("Last-Event-ID", "is none that was given here")], "request")
    type, source, key = (request.args.get(name) for name in ("type", "source", "key"))

    def matches(event: dict[str, Any]) -> bool:
        return (
            (type is None or fnmatchcase(event["type"], type))
            and source in (None, event["source"])
            and (key is None or key == event["key"] or (event["key"] or "").endswith(f"/{key}"))
        )

    return _stream(EventsWatch(asked.only_tenant(), matches, None if after is None else int(after)))


def _stream(watch: Watch) -> Response:
    if request.method == "HEAD":
        return Response(headers={"Content-Type": HEADERS["Content-Type"]})
    hub = _hub()
    if len(hub) >= MOST:
        raise TooMany("so many look on already", Allowance(MOST, 0, 60))
    borrowed = _borrow()
    if borrowed is None:
        sink = Queued()
        hub.add(sink, watch)
        runner().database.drop()  # this thread needs none for as long as it waits
        return Response(iter(sink), headers={key: value for key, value in HEADERS.items() if key != "Connection"}, direct_passthrough=True)
    connection, far_end = borrowed
    hub.add(Lent(connection, _head()), watch)
    response = Response()
    response.call_on_close(far_end.close)
    return response


def _hub() -> Hub:
    with _making:
        held: Hub | None = current_app.extensions.get("hub")
        if held is None or held.pid != os.getpid():
            held = current_app.extensions["hub"] = Hub(runner().database)
        return held


def _borrow() -> tuple[socket.socket, socket.socket] | None:
    """The request's connection, and the far end of the one that the server is left with, which ends like any other.

    The door is the one by which WebSockets leave gunicorn's threads in Flask-Sock.
    """
    theirs = request.environ.get("gunicorn.socket")
    if not isinstance(theirs, socket.socket) or isinstance(theirs, ssl.SSLSocket):
        return None
    ours = socket.socket(fileno=os.dup(theirs.fileno()))
    near, far = socket.socketpair()
    os.dup2(near.fileno(), theirs.fileno())
    near.close()
    return ours, far


def _head() -> bytes:
    return ("HTTP/1.1 200 OK\r\n" + "".join(f"{key}: {value}\r\n" for key, value in HEADERS.items()) + "\r\n").encode()
