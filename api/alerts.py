"""Alerts of Prometheus' Alertmanager come in as events: triggers start what answers them, webhooks send them on."""

from __future__ import annotations

import hashlib
from typing import Any

from flask import Blueprint, Response, jsonify

from orchestrator.api import asked
from orchestrator.api.described import Alert, Alerts
from orchestrator.api.runner import runner

blueprint = Blueprint("alerts", __name__, url_prefix="/api/webhooks")

SOURCE = "alertmanager"


@blueprint.post("/alerts")
@blueprint.post("/alerts/<any(critical, warning):severity>", endpoint="receive_as")
def receive(severity: str | None = None) -> Response:
    """Receive alerts from Alertmanager.

    Alertmanager's webhook: `alert.firing` or `alert.resolved` for each alert, each once however often it is sent.
    """
    body = asked.body_as(Alerts)
    taken = runner().send_events([_event(alert, severity) for alert in body.alerts], tenant=asked.tenant()) if body.alerts else []
    return jsonify({"success": True, "received": len(taken), "new": sum(one.is_new for one in taken)})


def _event(alert: Alert, severity: str | None) -> dict[str, Any]:
    labels = {**alert.labels, **({"severity": severity} if severity else {})}
    name = "/".join((alert.fingerprint or _digest(labels), alert.startsAt or "", alert.status))
    data = {"status": alert.status, "labels": labels, "annotations": alert.annotations, "startsAt": alert.startsAt, "endsAt": alert.endsAt}
    envelope = {"id": name, "source": SOURCE, "type": f"alert.{alert.status}", "subject": labels.get("alertname"), "data": data}
    return {key: value for key, value in envelope.items() if value is not None}


def _digest(labels: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()[:16]
