"""Triggers and webhooks: made, changed, switched off, deleted."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from orchestrator.api import asked, gate
from orchestrator.api.runner import runner
from orchestrator.definition.documents import parse
from orchestrator.definition.triggers import read_triggers
from orchestrator.engine.hooks import read_webhook
from orchestrator.errors import NotFound

blueprint = Blueprint("triggers", __name__, url_prefix="/workflow")


@blueprint.post("/triggers")
@blueprint.put("/triggers")
def put() -> tuple[Response, int]:
    """Create or change triggers.

    One or several, in YAML or JSON. Every fault at once. `warnings`: what is allowed, and starts nothing as things are now.
    """
    text = request.get_data(as_text=True)
    spec = parse(text, "request.json" if request.is_json else "request.yaml")
    for trigger in read_triggers(spec):
        if trigger.action == "start":
            gate.may_start(trigger.literal_target, trigger.version)
    names = runner().put_trigger(spec, tenant=asked.tenant(), **asked.by_whom())
    warnings = runner().trigger_warnings(spec, tenant=asked.tenant())
    return jsonify({"triggers": names, **({"warnings": warnings} if warnings else {})}), 201


@blueprint.get("/triggers")
def listing() -> Response:
    """List triggers."""
    return jsonify({"triggers": runner().triggers(asked.tenant())})


@blueprint.get("/triggers/<name>")
def one(name: str) -> Response:
    """Get a trigger."""
    found = [trigger for trigger in runner().triggers(asked.tenant()) if trigger["name"] == name]
    if not found:
        raise NotFound("trigger", name)
    return jsonify(found[0])


@blueprint.post("/triggers/<name>/<any(enable, disable):verb>")
def enable(name: str, verb: str) -> Response:
    """Enable or disable a trigger."""
    runner().enable_trigger(name, verb == "enable", tenant=asked.tenant(), **asked.by_whom())
    return jsonify({"name": name, "enabled": verb == "enable"})


@blueprint.delete("/triggers/<name>")
def delete(name: str) -> Response:
    """Delete a trigger."""
    runner().delete_trigger(name, tenant=asked.tenant(), **asked.by_whom())
    return jsonify({"name": name, "deleted": True})


@blueprint.post("/webhooks")
def put_webhook() -> tuple[Response, int]:
    """Create or change a webhook.

    `{name, url, types, secret}`; `secret` names a secret of the bridge (SECRET_<NAME>), it is not one.
    """
    given = asked.body()
    hook = read_webhook(given)
    runner().put_webhook(hook.name, hook.url, hook.types, hook.secret, tenant=asked.tenant(), **asked.by_whom())
    return jsonify({"webhook": hook.name}), 201


@blueprint.get("/webhooks")
def webhooks() -> Response:
    """List webhooks."""
    return jsonify({"webhooks": runner().webhooks(asked.tenant())})


@blueprint.post("/webhooks/<name>/send-again")
def send_again(name: str) -> Response:
    """Send the given-up deliveries of a webhook again."""
    return jsonify({"deliveries": runner().send_webhook_again(name, tenant=asked.tenant(), **asked.by_whom())})


@blueprint.delete("/webhooks/<name>")
def delete_webhook(name: str) -> Response:
    """Delete a webhook."""
    runner().delete_webhook(name, tenant=asked.tenant(), **asked.by_whom())
    return jsonify({"name": name, "deleted": True})
