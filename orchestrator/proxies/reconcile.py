"""Putting right what went wrong: events are published again for proxies that failed, got stuck, are missing, or could have
HTTPS by now. Nothing is created at start: what events bring then comes first. Nothing is done here but publishing.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import threading
import uuid
from typing import Any

from orchestrator.proxies.application import Application
from orchestrator.proxies.registry import Proxies, is_local
from orchestrator.store import streams

logger = logging.getLogger("orchestrator.reconcile")

STUCK_S = 300.0


class Reconciler(threading.Thread):
    """Reconciles every so often; of several one does."""

    def __init__(self, application: Application, proxies: Proxies, every_s: float) -> None:
        super().__init__(name="reconcile", daemon=True)
        self.application, self.proxies, self.every_s = application, proxies, every_s
        self._owner = uuid.uuid4().hex
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.wait(self.every_s):
            try:
                if self.proxies.database.patiently(lambda c: streams.lease_name(c, "reconciler", self._owner, self.every_s * 1.5)):
                    reconcile(self.application, self.proxies)
            except Exception:
                logger.exception("reconciliation goes on")
        self.proxies.database.drop()


def reconcile(application: Application, proxies: Proxies) -> dict[str, str]:
    """Gives the event that was published, by hostname."""
    wanted = {one["hostname"]: one for one in application.all()}
    known = {one.name: one for one in proxies.all()}
    published: dict[str, str] = {}
    for hostname, config in wanted.items():
        if is_local(hostname):
            continue
        held = known.get(hostname)
        if held is None or held.state in ("FAILED", "DELETED") or (held.state == "PENDING" and held.silent_s > STUCK_S):
            _publish(application, "proxy_created", hostname, {key: value for key, value in config.items() if key != "hostname"})
            published[hostname] = "proxy_created"
        elif held.state == "ACTIVE" and held.mode == "http_only" and config.get("enable_https"):
            certificate = proxies.certificates.find(hostname)
            if certificate is not None:
                application.certificate_ready(certificate.name, hostname)
                published[hostname] = "certificate_ready"
    if published:
        logger.info("published again: %s", ", ".join(f"{event} for {hostname}" for hostname, event in published.items()))
    return published


def _publish(application: Application, event: str, hostname: str, data: dict[str, Any]) -> None:
    application.announce({"event_type": event, "hostname": hostname, "data": json.dumps(data), "timestamp": _now(), "reconciled": "true"})


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
