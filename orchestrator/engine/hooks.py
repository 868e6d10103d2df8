"""Webhooks as they may be registered: an address that can be asked, types of events, and a secret that is there to sign with."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from orchestrator.config import secrets
from orchestrator.definition.parsing import Model, Name, parse_as
from orchestrator.errors import Fault, Invalid

BASE64 = "whsec_"
FAILING_WEBHOOK = "webhook"
"""The kind of its finding."""


def _address(given: str) -> str:
    try:
        parts = urlsplit(given)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.username is None
    except ValueError:
        usable = False
    if not usable or not given.isprintable() or " " in given:
        raise ValueError("Expected an address such as https://shop.example.com/hook, without a user or password.")
    return given


class Webhook(Model):
    """`secret` is the name of one: what it holds is in no table."""

    name: Name
    url: Annotated[str, Field(max_length=2048), AfterValidator(_address)]
    types: Annotated[list[Name], Field(min_length=1, max_length=100)] = ["*"]
    secret: Name


def read_webhook(given: Any) -> Webhook:
    """Raises `Invalid` with every fault; also where its secret is not given to this process, which could sign nothing then."""
    found = parse_as(Webhook, given, what="webhook")
    if (wrong := fault_of(found.secret)) is not None:
        raise Invalid([Fault("/secret", wrong)], "webhook")
    return found


def fault_of(name: str) -> str | None:
    """Why nothing can be signed with the secret of this name."""
    secret = secrets.resolve([name])[name]
    if not isinstance(secret, str) or not secret:
        return f"The secret '{name}' is not given to this process: a file of SECRETS_DIR, SECRET_<NAME>, or `orchestrator secrets put`."
    if secret.startswith(BASE64):
        try:
            base64.b64decode(secret.removeprefix(BASE64), validate=True)
        except binascii.Error:
            return f"The secret '{name}' begins with {BASE64}, and what follows is not base64."
    return None
