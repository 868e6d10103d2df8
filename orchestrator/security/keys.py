"""API keys: `ok_<id>_<secret>`. The secret has 256 random bits, so that its SHA-256 is all that needs keeping: there is nothing to
guess, and a slow hash would only slow down every request."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

_KEY = re.compile(r"ok_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


def make() -> tuple[str, str, str]:
    """A new key's id, the key as it is shown once, and the hash that is kept."""
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return identity, f"ok_{identity}_{secret}", digest(secret)


def parse(text: str) -> tuple[str, str] | None:
    """The id and the secret of what looks like a key."""
    found = _KEY.fullmatch(text)
    return (found.group(1), found.group(2)) if found else None


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, kept: str) -> bool:
    return hmac.compare_digest(digest(secret), kept)
