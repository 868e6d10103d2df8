"""Credentials of a call: basic, bearer, digest, OAuth 2 and OpenID Connect, from the definition or from a secret.

Tokens are kept per process until shortly before they expire, by everything they were asked for with.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import urlencode

import httpx

from orchestrator.net import client
from orchestrator.net.problems import Problem

EARLY_S = 30.0
DISCOVERY = "/.well-known/openid-configuration"


def authentication(policy: Mapping[str, Any] | None, secrets: Mapping[str, Any]) -> httpx.Auth | None:
    """What to hand to the request. A policy that names a secret takes its fields from there."""
    if not policy:
        return None
    [(scheme, held)] = list(policy.items())[:1]
    fields = _from_secret(held, secrets) if isinstance(held, dict) and set(held) == {"use"} else held
    if not isinstance(fields, dict):
        raise Problem("configuration", f"{scheme} authentication needs its fields")
    match scheme:
        case "basic":
            return httpx.BasicAuth(_text(fields, "username", scheme), _text(fields, "password", scheme))
        case "digest":
            return httpx.DigestAuth(_text(fields, "username", scheme), _text(fields, "password", scheme))
        case "bearer":
            return Bearer(_text(fields, "token", scheme))
        case "oauth2" | "oidc":
            return Bearer(TOKENS.token(scheme, fields), renew=lambda: TOKENS.token(scheme, fields, fresh=True))
    raise Problem("configuration", f"'{scheme}' is no authentication; write basic, bearer, digest, oauth2 or oidc")


def _from_secret(held: Mapping[str, Any], secrets: Mapping[str, Any]) -> Any:
    name = held["use"]
    found = secrets.get(name)
    if found is None:
        raise Problem("authorization", f"the secret '{name}' is not given to this worker")
    if isinstance(found, str):
        return {"token": found}
    return found


def _text(fields: Mapping[str, Any], name: str, scheme: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str | int):
        raise Problem("configuration", f"{scheme} authentication needs '{name}'")
    return str(value)


class Bearer(httpx.Auth):
    """Sends the token; when it is refused and there is a way to a fresh one, once again with that."""

    def __init__(self, token: str, renew: Any = None) -> None:
        self.token = token
        self.renew = renew

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self.token}"
        response = yield request
        if self.renew is not None and response.status_code == 401:
            request.headers["Authorization"] = f"Bearer {self.renew()}"
            yield request


class Tokens:
    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def token(self, scheme: str, fields: Mapping[str, Any], *, fresh: bool = False) -> str:
        key = hashlib.sha256(json.dumps([scheme, fields], sort_keys=True, default=str).encode()).hexdigest()
        with self._lock:
            held = self._kept.get(key)
        if held is not None and not fresh and held[1] > time.monotonic():
            return held[0]
        answer = self._ask(scheme, fields)
        token = answer.get("access_token") or answer.get("id_token")
        if not isinstance(token, str):
            raise Problem("authentication", "the authority gave no access_token")
        lasts_s = _lasts_s(answer.get("expires_in"))
        with self._lock:
            self._kept[key] = (token, time.monotonic() + max(lasts_s - EARLY_S, lasts_s / 2))
            while len(self._kept) > 1000:
                self._kept.pop(next(iter(self._kept)))
        return token

    def _ask(self, scheme: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        form, headers, auth = request_of(fields)
        encoding = (fields.get("request") or {}).get("encoding", "application/x-www-form-urlencoded")
        content: Any = urlencode(form, doseq=True)
        if encoding == "application/json":
            content = json.dumps({key: value if len(value) > 1 else value[0] for key, value in form.items()})
        try:
            answer = client.send(
                "POST", self._endpoint(scheme, fields), headers={**headers, "Content-Type": encoding}, content=content, auth=auth
            )
            client.judged(answer, redirect=False)
        except Problem as problem:
            raise Problem("authentication", f"no token: {problem}", retryable=problem.retryable) from None
        found = answer.content
        if not isinstance(found, dict):
            raise Problem("authentication", "the authority's answer is no JSON object")
        self._check_issuer(fields, found)
        return found

    def _endpoint(self, scheme: str, fields: Mapping[str, Any]) -> str:
        authority = _text(fields, "authority", scheme)
        if scheme == "oauth2":
            path = (fields.get("endpoints") or {}).get("token", "/oauth2/token")
            return str(path) if str(path).startswith("http") else f"{authority.rstrip('/')}/{str(path).lstrip('/')}"
        address = authority if authority.endswith(DISCOVERY) else authority.rstrip("/") + DISCOVERY
        found = client.judged(client.send("GET", address, follow=True), redirect=False).content
        endpoint = found.get("token_endpoint") if isinstance(found, dict) else None
        if not isinstance(endpoint, str):
            raise Problem("authentication", f"{address} names no token_endpoint")
        return endpoint

    def _check_issuer(self, fields: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        issuers = fields.get("issuers")
        token = answer.get("access_token")
        if not issuers or not isinstance(token, str) or token.count(".") != 2:
            return
        body = token.split(".")[1]
        try:
            issuer = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))).get("iss")
        except ValueError:
            return
        if issuer is not None and issuer not in issuers:
            raise Problem("authentication", f"the token is issued by '{issuer}', which is not among the issuers")


def _lasts_s(given: Any) -> float:
    """How long a token holds, as authorities say it: a number, or one written as text. Else not long."""
    text = str(given)
    return float(text) if text.isascii() and text.isdigit() and 0 < len(text) < 12 and text.strip("0") else 60.0


def request_of(fields: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, str], httpx.Auth | None]:
    """The token request's form, headers and authentication."""
    grant = str(fields.get("grant", ""))
    form: dict[str, list[str]] = {"grant_type": [grant]}
    if fields.get("scopes"):
        form["scope"] = [" ".join(str(scope) for scope in fields["scopes"])]
    if fields.get("audiences"):
        form["audience"] = [str(audience) for audience in fields["audiences"]]
    for name in ("username", "password"):
        if fields.get(name) is not None:
            form[name] = [str(fields[name])]
    for name in ("subject", "actor"):
        held = fields.get(name)
        if isinstance(held, dict):
            form[f"{name}_token"] = [str(held["token"])]
            form[f"{name}_token_type"] = [str(held["type"])]
            if grant == "refresh_token" and name == "subject":
                form["refresh_token"] = [str(held["token"])]
            if grant == "authorization_code" and name == "subject":
                form["code"] = [str(held["token"])]
    who = fields.get("client") or {}
    way = who.get("authentication", "client_secret_post")
    auth: httpx.Auth | None = None
    if way == "client_secret_basic":
        auth = httpx.BasicAuth(str(who.get("id", "")), str(who.get("secret", "")))
    elif way in ("client_secret_jwt", "private_key_jwt"):
        if not who.get("assertion"):
            raise Problem("configuration", f"client authentication {way} needs `client.assertion`")
        form["client_assertion_type"] = ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]
        form["client_assertion"] = [str(who["assertion"])]
        if who.get("id"):
            form["client_id"] = [str(who["id"])]
    else:
        if who.get("id"):
            form["client_id"] = [str(who["id"])]
        if who.get("secret") and way != "none":
            form["client_secret"] = [str(who["secret"])]
    return form, {"Accept": "application/json"}, auth


TOKENS = Tokens()
