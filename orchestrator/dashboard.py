"""Flower behind the API's own credentials: an API key as the password of Basic authentication, or a token.

Flower knows passwords of its own and OAuth alone, so its question "who is this?" is answered here: the same keys and tokens,
the same roles, the same lock-out for guessing. Who may operate workflows may see and revoke tasks.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import tornado.web

from orchestrator.config.settings import Settings
from orchestrator.errors import OrchestratorError
from orchestrator.security.gate import Gate
from orchestrator.store.connection import Database

NEEDED = "operate"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def arguments(settings: Settings) -> list[str]:
    """What `celery flower` is told."""
    if settings.auth != "on" and settings.flower_host not in LOOPBACK:
        raise OrchestratorError(f"FLOWER_HOST is {settings.flower_host}, which others can reach: set AUTH=on, or listen on 127.0.0.1")
    told = [
        f"--address={settings.flower_host}",
        f"--port={settings.flower_port}",
        "--max-tasks=10000",
        "--logging=none",
    ]  # logging is this process's own, at LOG_LEVEL
    # Flower asks whoever comes as soon as it has any password; whose they are is decided below.
    return [*told, "--basic-auth=keys:are-asked-for-instead"] if settings.auth == "on" else told


def guard(settings: Settings) -> None:
    """From here on Flower in this process asks the gate."""
    from flower.views import BaseHandler

    gate = Gate(settings, Database.of(settings, patience_s=2.0))

    def get_current_user(handler: Any) -> str:
        return identified(gate, handler.request.headers.get("Authorization", ""), handler.request.remote_ip or "")

    BaseHandler.get_current_user = get_current_user


def identified(gate: Gate, header: str, address: str) -> str:
    """The name of who asks; 401 for who is not known, 403 for who may not."""
    scheme, _, given = header.partition(" ")
    credential = given.strip()
    if scheme.lower() == "basic":
        try:
            credential = base64.b64decode(credential, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            credential = ""
    try:
        who = gate.authenticate(credential, address)
    except OrchestratorError as error:
        raise tornado.web.HTTPError(429 if error.code == "rate_limited" else 401, str(error)) from None
    if not (who.may(NEEDED) and who.may("everything")):
        raise tornado.web.HTTPError(403, f"'{who.name}' may not: {NEEDED} is needed, of the tenant 'default'")
    return who.name
