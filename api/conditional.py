"""ETag and If-Match: who changes something as they saw it does so only if it still is.

The check and the change are one: from looking until the answer is there the thing's name is held, which every writer asks
for, the command line and files too.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
from flask import Flask, Response, g, request

from orchestrator.api.gate import tenant
from orchestrator.api.runner import runner
from orchestrator.definition.configured import key
from orchestrator.errors import ChangedMeanwhile
from orchestrator.store import configs, locks, schedules, triggers
from orchestrator.store.connection import Connection

# What a route is about: the kind, the argument of its path, and how what is there now is told from what was.
Revision = Callable[[Connection, tuple[str, ...]], str | None]
KINDS: dict[str, tuple[str, Revision]] = {
    "schedules": ("schedule", lambda c, names: schedules.revision(c, *names)),
    "triggers": ("name", lambda c, names: triggers.revision(c, *names)),
    "configs": ("config", lambda c, names: configs.revision(c, *names)),
}
SHOWN = ("schedules.one", "schedules.update", "schedules.switch", "triggers.one", "configs.one", "configs.update", "configs.rollback")
CHANGED = (
    "schedules.update", "schedules.delete", "schedules.switch", "triggers.enable", "triggers.delete",
    "configs.update", "configs.delete", "configs.rollback",
)  # fmt: skip
# These say nothing that is not part of what the tag tells apart: who has it need not get it again.
CACHED = ("configs.one", "openapi.document", "openapi.page")


def register(app: Flask) -> None:
    app.before_request(_enter)
    app.after_request(_leave)
    app.teardown_request(_let_go)


def _named() -> tuple[str, ...]:
    kind = (request.endpoint or "").partition(".")[0]
    argument, _ = KINDS[kind]
    name = str((request.view_args or {})[argument])
    if kind == "configs":
        configs = runner().configs
        environment = request.args.get("environment")
        about = key(name, request.args.get("nameSpace"), request.args.get("version"))
        return tenant(), environment or configs.environment, configs.key_of(about, tenant(), environment)
    return tenant(), name


def _enter() -> None:
    wanted = request.if_match
    if request.method in ("GET", "HEAD", "OPTIONS") or not (wanted or wanted.star_tag):
        return
    if request.endpoint not in CHANGED:
        if wanted.star_tag:
            return
        raise ChangedMeanwhile("this has no ETag, and so none that could match")
    kind, names = request.endpoint.partition(".")[0], _named()
    c = runner().database.connection()
    locks.hold_on(c, kind, *names)
    g.held = (c, kind, names)
    now = KINDS[kind][1](c, names)
    if now is None or not (wanted.star_tag or any(tag.partition(":")[0] == now for tag in wanted.as_set())):
        raise ChangedMeanwhile(f"it is now {_tag(now)}: look again, and change that" if now else "it is not there (any more)")


def _leave(response: Response) -> Response:
    if response.status_code >= 300:
        return response
    if request.endpoint in SHOWN:
        now = KINDS[request.endpoint.partition(".")[0]][1](runner().database.connection(), _named())
        if now is not None:
            response.set_etag(now)
    elif request.endpoint in CACHED:
        response.add_etag()
    if request.endpoint in CACHED and request.method == "GET":
        response.headers["Cache-Control"] = "no-cache"  # it may be kept, and is asked for each time
        response.make_conditional(request)
    return response


def _let_go(_: BaseException | None) -> None:
    held = g.pop("held", None)
    if held is not None:
        c, kind, names = held
        try:
            locks.let_go(c, kind, *names)
        except psycopg.Error:
            runner().database.drop()  # and with the connection goes what it held


def _tag(revision: str) -> str:
    return f'"{revision}"'
