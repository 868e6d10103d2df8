"""Payloads at rest: what workflows are given, what their steps give, what events carry, sealed with keys that Postgres has not.

Off until `ENCRYPTION_KEYS` names keys: the first seals, all open, so that keys change without a pause (`orchestrator reseal`).
A sealed value is `{"$sealed": "…"}` in place of the value, in the same column, and is opened wherever JSON is read.

In the clear stay names, states, labels, metadata, error messages, definitions, configurations, and what is told: streams,
Pub/Sub and the outbox before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from orchestrator.errors import OrchestratorError

MARK = "$sealed"
_IN_TEXT = f'"{MARK}"'


class SealedAway(OrchestratorError):
    """A payload is sealed with a key that this process is not given."""

    code = "sealed_away"


class _Keys:
    def __init__(self) -> None:
        self.all: MultiFernet | None = None
        self.first: Fernet | None = None


_keys = _Keys()


def use(keys: Iterable[str]) -> None:
    """From here on this process seals with the first key, and opens what any of them sealed. None: nothing is sealed."""
    try:
        made = [Fernet(key.strip()) for key in keys]
    except ValueError:
        raise OrchestratorError("ENCRYPTION_KEYS: a key is 32 bytes in URL-safe base64; `orchestrator new-key` makes one") from None
    _keys.all, _keys.first = (MultiFernet(made), made[0]) if made else (None, None)


def is_on() -> bool:
    return _keys.all is not None


def new_key() -> str:
    return Fernet.generate_key().decode()


def sealed(text: str) -> str:
    """JSON as it is to be kept."""
    if _keys.first is None:
        return text
    return f'{{"{MARK}":"{_token(text)}"}}'


def seal_data(envelope: dict[str, Any]) -> dict[str, Any]:
    """An event with its data sealed: who it is from, about what and when stays to be seen."""
    if _keys.first is None or stays_clear(envelope.get("data")):
        return envelope
    return {**envelope, "data": {MARK: _token(json.dumps(envelope["data"], ensure_ascii=False, separators=(",", ":")))}}


def _token(text: str) -> str:
    assert _keys.first is not None
    return _keys.first.encrypt(text.encode()).decode()


def loads(text: str | bytes) -> Any:
    """JSON as it was given."""
    if isinstance(text, bytes | bytearray):
        text = text.decode()
    return json.loads(text, object_hook=_opened) if _IN_TEXT in text else json.loads(text)


def _opened(found: dict[str, Any]) -> Any:
    token = found.get(MARK)
    if len(found) != 1 or not isinstance(token, str):
        return found
    if _keys.all is None:
        if token.startswith("gAAAA"):
            raise SealedAway("a payload is sealed, and ENCRYPTION_KEYS is not given to this process")
        return found
    try:
        return json.loads(_keys.all.decrypt(token))
    except InvalidToken:
        if token.startswith("gAAAA"):
            raise SealedAway("a payload is sealed with a key that is not among ENCRYPTION_KEYS") from None
        return found  # somebody's own data, which looks like it


def is_sealed(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(MARK), str)


def stays_clear(data: Any) -> bool:
    """What a person skipped waits with is looked for by its positions, in Postgres."""
    return data is None or (isinstance(data, dict) and "positions" in data)


def rotated(token: str) -> str | None:
    """Sealed by the first key; None where it is so already."""
    assert _keys.first is not None
    assert _keys.all is not None
    try:
        _keys.first.decrypt(token)
    except InvalidToken:
        try:
            return _keys.all.rotate(token).decode()
        except InvalidToken:
            raise SealedAway("a payload is sealed with a key that is not among ENCRYPTION_KEYS") from None
    return None
