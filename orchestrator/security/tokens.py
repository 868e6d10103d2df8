"""Tokens of an identity provider: JWTs whose signatures its published keys verify (OIDC). PyJWT does the cryptography; what
is fixed here is what a token must say."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import jwt

from orchestrator.config.settings import Settings
from orchestrator.security.principals import Principal, principal

# No `none`, and no HMAC: a public key must never be taken for a shared secret.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_S = 30
KEYS_FOR_S = 300


class BadToken(ValueError):
    """It is no token, it has ended, or somebody else signed it."""


class Tokens:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._remote: Any = None
        self._local: Any = None

    @property
    def are_taken(self) -> bool:
        return bool(self.settings.auth_jwks)

    def principal(self, text: str) -> Principal:
        try:
            claims = jwt.decode(
                text,
                self._key(text),
                algorithms=list(ALGORITHMS),
                audience=self.settings.auth_audience or None,
                issuer=self.settings.auth_issuer or None,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub"], "verify_aud": bool(self.settings.auth_audience)},
            )
        except (jwt.PyJWTError, OSError, ValueError, KeyError, TypeError) as error:
            raise BadToken(f"the token is not accepted: {error}") from None
        return principal(
            str(claims["sub"]),
            str(claims.get(self.settings.auth_tenant_claim) or "default"),
            _texts(_at(claims, self.settings.auth_roles_claim)),
            _texts(claims.get("scope")),
        )

    def _key(self, text: str) -> Any:
        """With the algorithm it is for: a token cannot choose another."""
        where = self.settings.auth_jwks
        with self._lock:
            if where.startswith(("http://", "https://")):
                if self._remote is None:
                    self._remote = jwt.PyJWKClient(where, cache_keys=True, lifespan=KEYS_FOR_S, timeout=5)
                return self._remote.get_signing_key_from_jwt(text)
            if self._local is None:
                self._local = jwt.PyJWKSet.from_dict(json.loads(Path(where).read_text(encoding="utf-8")))
        wanted = jwt.get_unverified_header(text).get("kid")
        found = next((key for key in self._local.keys if wanted is None or key.key_id == wanted), None)
        if found is None:
            raise BadToken(f"no key '{wanted}' is known")
        return found


def _at(claims: dict[str, Any], path: str) -> Any:
    """`roles`, or `realm_access.roles` as some providers nest them."""
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _texts(given: Any) -> list[str]:
    if isinstance(given, str):
        return given.split()
    return [str(one) for one in given] if isinstance(given, list) else []
