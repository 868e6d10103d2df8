"""The courier: delivers webhooks. A thread of the bridge; several bridges share the work.

Each delivery is a CloudEvent as JSON, signed as Standard Webhooks are: `webhook-signature: v1,<base64 of the HMAC-SHA256
over id.timestamp.body>`. Whatever is not answered with 2xx is sent again after 5, 10, 20 … seconds, at most an hour
apart, twelve times in all; what is given up stays, with its error, until somebody sends it again.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from orchestrator.config import secrets
from orchestrator.engine.hooks import BASE64, FAILING_WEBHOOK, fault_of
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import OrchestratorError, text_of
from orchestrator.net.client import send
from orchestrator.store import findings, webhooks
from orchestrator.store.connection import BROKEN, spelled
from orchestrator.store.webhooks import Delivery

logger = logging.getLogger("orchestrator.courier")

LOOK_EVERY_S = 0.5
AT_ONCE = 8
ATTEMPTS = 12
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 3600.0
TIMEOUT_S = 15.0


def signature(secret: str, id: str, timestamp: str, body: bytes) -> str:
    """A secret that begins with `whsec_` is base64, as the standard has it; any other is taken as its bytes."""
    key = base64.b64decode(secret.removeprefix(BASE64)) if secret.startswith(BASE64) else secret.encode()
    return "v1," + base64.b64encode(hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()).decode()


class Courier(threading.Thread):
    def __init__(self, runtime: Runtime) -> None:
        super().__init__(name="courier", daemon=True)
        self.runtime = runtime
        self._stopping = threading.Event()
        self._failing: dict[tuple[str, str], str] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="delivery")

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self.turn():
                    self._stopping.wait(LOOK_EVERY_S)
            except BROKEN as error:
                logger.warning("waiting for Postgres: %s", str(error).split("\n", 1)[0])
                self.runtime.database.drop()
                self._stopping.wait(1.0)
            except Exception:
                logger.exception("the courier goes on")
                self._stopping.wait(1.0)
        self._pool.shutdown()
        self.runtime.database.drop()

    def turn(self) -> int:
        """Send what is due; gives how many."""
        found = self.runtime.database.patiently(lambda c: webhooks.claim(c, AT_ONCE * 4))
        for delivery, error in zip(found, self._pool.map(_attempt, found), strict=True):
            self._note(delivery, error)
            if error is None:
                self.runtime.database.patiently(lambda c, d=delivery: webhooks.delivered(c, d.id))  # type: ignore[misc]
                continue
            pause = None if delivery.attempts >= ATTEMPTS else min(FIRST_PAUSE_S * 2 ** (delivery.attempts - 1), LONGEST_PAUSE_S)
            self.runtime.database.patiently(lambda c, d=delivery, e=error, p=pause: webhooks.refused(c, d.id, e, p))  # type: ignore[misc]
        return len(found)

    def _note(self, delivery: Delivery, error: str | None) -> None:
        """How a webhook does is said when it changes, and is a finding while it fails: not once for each of its deliveries."""
        whose = (delivery.tenant, delivery.name)
        before = self._failing.get(whose, "")
        if (error or "") == before:
            return
        if error is None:
            del self._failing[whose]
            logger.info("webhook %s is delivered again", delivery.name)
            self.runtime.database.patiently(lambda c: findings.clear(c, FAILING_WEBHOOK, delivery.name, tenant=delivery.tenant))
        else:
            self._failing[whose] = error
            logger.warning("webhook %s fails, and is tried again less and less often: %s", delivery.name, error)
            self.runtime.database.patiently(lambda c: findings.note(c, FAILING_WEBHOOK, delivery.name, error, tenant=delivery.tenant))


def _attempt(delivery: Delivery) -> str | None:
    """Gives what went wrong, whatever it is."""
    try:
        return _deliver(delivery)
    except Exception as error:  # noqa: BLE001  # what its row holds may be no event
        return f"{type(error).__name__}: {text_of(error)}"


def _deliver(delivery: Delivery) -> str | None:
    body = spelled(delivery.event).encode()
    if (wrong := fault_of(delivery.secret)) is not None:
        return wrong
    secret = str(secrets.resolve([delivery.secret])[delivery.secret])
    id, now = str(delivery.event["id"]), str(int(time.time()))
    headers = {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "webhook-id": id,
        "webhook-timestamp": now,
        "webhook-signature": signature(secret, id, now, body),
    }
    try:
        answer = send("POST", delivery.url, headers=headers, content=body, timeout_s=TIMEOUT_S, max_bytes=65536)
    except OrchestratorError as error:
        return str(error)
    return None if 200 <= answer.status < 300 else f"answered {answer.status}"
