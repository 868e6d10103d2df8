"""Schedules: listed, made, changed, paused, resumed, run, backfilled, deleted (`/workflow/schedules`)."""

from __future__ import annotations

import time
from typing import Any

from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked, gate
from orchestrator.api.runner import runner
from orchestrator.definition.documents import parse
from orchestrator.engine import lifecycle
from orchestrator.engine.timetable import Timetable
from orchestrator.errors import Fault, Invalid, NotFound
from orchestrator.schedule import times
from orchestrator.schedule.spec import Spec, read_schedule

blueprint = Blueprint("schedules", __name__, url_prefix="/workflow/schedules")


def _timetable() -> Timetable:
    return runner().schedules


def _spec() -> Any:
    """The body, in YAML or JSON."""
    return parse(request.get_data(as_text=True), "request.json" if request.is_json else "request.yaml")


@blueprint.get("")
def listing() -> Response:
    """List schedules.

    `?workflow=…&nameSpace=…`; with the sums of all, and the files that are faulty now.
    """
    found = _timetable().all(asked.tenant(), request.args.get("workflow"), request.args.get("nameSpace"))
    return jsonify({"schedules": found, "stats": _timetable().stats(asked.tenant()), "faulty": _faulty()})


@blueprint.post("")
def create() -> tuple[Response, int]:
    """Create a schedule.

    One, nested or flat: id, name, workflow or workflowId, cron or every or at, and how. 409 when its id is taken.
    """
    given = _spec()
    _may_start(read_schedule(given))
    spec = _timetable().add(given, tenant=asked.tenant(), **asked.by_whom())
    return jsonify(_kept(spec.id)), 201


@blueprint.post("/validate")
def validate() -> Response:
    """Validate a schedule and preview its next times.

    Nothing is kept: faults, or the next ten times.
    """
    spec = read_schedule(_spec())
    return jsonify({"isValid": True, "upcoming": [times.iso(at) for at in times.preview(spec.when, time.time(), 10)]})


@blueprint.post("/reload")
def reload() -> Response:
    """Read the files of schedules again.

    Read the files in `schedules/` folders again. `faulty`: those that cannot be read; what they held before stays.
    """
    return jsonify({"reloaded": runner().load_schedules(), "faulty": _faulty()})


def _faulty() -> list[dict[str, str]]:
    return _timetable().faulty_files(asked.tenant())


@blueprint.get("/<schedule>")
def one(schedule: str) -> Response:
    """Get a schedule."""
    return jsonify(_timetable().status(schedule, asked.tenant(), asked.number("upcoming", 5, 1000)))


@blueprint.put("/<schedule>")
def update(schedule: str) -> Response:
    """Replace a schedule."""
    given = _spec()
    if isinstance(given, dict):
        _may_start(read_schedule({"id": schedule, **given}))
    _timetable().update(schedule, given, tenant=asked.tenant(), **asked.by_whom())
    return jsonify(_kept(schedule))


def _may_start(spec: Spec) -> None:
    """Who makes a schedule starts what it starts."""
    gate.may_start(spec.target, spec.version)


def _may_run(schedule: str) -> None:
    held = _timetable().find(schedule, asked.tenant())
    gate.may_start(f"{held.namespace}.{held.workflow}", held.version or None)


def _kept(schedule: str) -> dict[str, Any]:
    """With what is allowed, and probably not meant: a workflow that is not there may come later."""
    about: dict[str, Any] = _timetable().status(schedule, asked.tenant())
    wanted = about["workflow"]
    try:
        lifecycle.find_definition(runner().runtime, f"{wanted['nameSpace']}.{wanted['id']}", wanted["version"], asked.tenant())
    except (NotFound, Invalid) as error:
        about["warnings"] = [{"place": "workflow", "message": f"each run will fail: {error}"}]
    return about


@blueprint.delete("/<schedule>")
def delete(schedule: str) -> Response:
    """Delete a schedule."""
    _timetable().delete(schedule, tenant=asked.tenant(), **asked.by_whom())
    return jsonify({"id": schedule, "deleted": True})


@blueprint.post("/<schedule>/<any(pause, stop, resume, start):verb>")
def switch(schedule: str, verb: str) -> Response:
    """Pause or resume a schedule.

    `stop` is `pause`, `start` is `resume`.
    """
    _timetable().enable(schedule, verb in ("resume", "start"), tenant=asked.tenant(), **asked.by_whom())
    return jsonify(_timetable().status(schedule, asked.tenant()))


@blueprint.post("/<schedule>/run")
def run(schedule: str) -> tuple[Response, int]:
    """Run a schedule now."""
    _may_run(schedule)
    return jsonify(_timetable().run_now(schedule, tenant=asked.tenant(), **asked.by_whom())), 202


@blueprint.post("/<schedule>/backfill")
def backfill(schedule: str) -> tuple[Response, int]:
    """Run a schedule for past times that have no run.

    `{from, to}`: a run for each moment in between that has none.
    """
    body = asked.body()
    if missing := [Fault(key, "is required") for key in ("from", "to") if key not in body]:
        raise Invalid(missing, "backfill")
    _may_run(schedule)
    found = _timetable().backfill(schedule, body["from"], body["to"], tenant=asked.tenant(), **asked.by_whom())
    return jsonify({"started": found}), 202


@blueprint.get("/<schedule>/history")
def history(schedule: str) -> Response:
    """List the runs of a schedule.

    The newest fires first; `?cursor=` (or `?before=` a moment) for what came earlier.
    """
    before = request.args.get("cursor", request.args.get("before"))
    try:
        at = None if before is None else times.moment(before, "UTC")
    except times.BadTime as error:
        raise Invalid([Fault("before", f"{before!r} {error}")], "request") from None
    limit = asked.number("limit", 50, 1000)
    found = _timetable().history(schedule, asked.tenant(), limit, at)
    return jsonify({"fires": found, "next": asked.next_of(found, limit, "scheduledAt")})
