"""What has ended (`/workflow/history`): page by page, by day, why it failed; and deleted for good."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked
from orchestrator.api.described import Forget
from orchestrator.api.runner import runner
from orchestrator.errors import Fault, Invalid, NotFound
from orchestrator.state import TERMINAL
from orchestrator.store import lists
from orchestrator.store.queries import Filter

blueprint = Blueprint("history", __name__, url_prefix="/workflow/history")

ENDED = tuple(sorted(TERMINAL))


def _wanted(given: Any, **more: Any) -> Filter:
    states = [given["status"].upper()] if given.get("status") else list(ENDED)
    return Filter(
        state=tuple(states), workflow=given.get("workflow"), search=given.get("search"), tenant=asked.only_tenant(),
        since=_moment(given.get("since")), until=_moment(given.get("until")), **more,
    )  # fmt: skip


def _moment(text: str | None) -> dt.datetime | None:
    if text is None:
        return None
    at = dt.datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


@blueprint.get("")
def listing() -> Response:
    """Search the history of instances.

    `?status=`, `?workflow=`, `?search=`, `?since=`, `?until=`, `?page=`, `?limit=`: the newest first.
    """
    page, limit = asked.number("page", 1, 100_000), asked.number("limit", 50, 1000)
    wanted = _wanted(request.args, limit=limit, offset=(page - 1) * limit)
    rows, total = runner().database.patiently(lambda c: (lists.instances(c, wanted), lists.count(c, wanted)))
    return jsonify({"history": rows, "pagination": {"page": page, "limit": limit, "total": total, "pages": math.ceil(total / limit)}})


@blueprint.get("/days")
def days() -> Response:
    """Count instances by day.

    How many began on each day (UTC), and how they ended; `?workflow=`, `?since=`, `?until=`.
    """
    wanted = _wanted(request.args)
    return jsonify({"days": runner().database.patiently(lambda c: lists.per_day(c, wanted))})


@blueprint.get("/<instance_id>")
def one(instance_id: str) -> Response:
    """Get an instance from the history.

    An instance, and of one that failed the step, its attempts and its error.
    """
    shown = runner().get_workflow_status(instance_id)
    failed = [node for node in _all(shown["steps"]) if node["status"] == "FAILED"]
    return jsonify({**shown, "failedSteps": [{key: value for key, value in node.items() if key != "steps"} for node in failed]})


@blueprint.delete("/<instance_id>")
def forget(instance_id: str) -> Response:
    """Delete the record of an instance.

    The record of one that has ended, with all that belongs to it. The audit says that there was one.
    """
    whole = runner().resolve_id(instance_id)
    if not runner().forget_instances([whole], tenant=asked.only_tenant(), actor=asked.actor()):
        if not runner().instances_exist([whole]):
            raise NotFound("instance", instance_id)
        raise Invalid([Fault("instanceId", "has not ended: cancel it first")], "request")
    return jsonify({"deleted": [whole]})


@blueprint.delete("")
def forget_many() -> Response:
    """Delete the records of instances.

    `{ids}`, or `{workflow, status, since, until, search, limit}`, which must not be empty.
    """
    body = asked.body_as(Forget)
    given = body.model_dump(exclude_unset=True)
    limit = given.pop("limit", 1000)
    if not given:
        raise Invalid([Fault("body", "names nothing: ids, workflow, status, search, since or until is needed")], "request")
    ids = body.ids
    if ids is None:
        try:
            wanted = _wanted(given, limit=limit)
        except ValueError as error:
            raise Invalid([Fault("since", str(error))], "request") from None
        ids = runner().database.patiently(lambda c: lists.ids(c, wanted))
    return jsonify({"deleted": runner().forget_instances(ids, tenant=asked.only_tenant(), actor=asked.actor())})


def _all(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [found for step in steps for found in (step, *_all(step.get("steps", [])))]
