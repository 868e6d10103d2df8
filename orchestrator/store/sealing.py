"""Payloads at rest: what workflows are given, what their steps give, what events carry, sealed with keys that Postgres has not.

Off until `ENCRYPTION_KEYS` names keys: the first seals, all open, so that keys change without a pause (`orchestrator reseal`).
A sealed value is `{"$sealed": "…"}` in place of the value, in the same column, and is opened where JSON is read.

Only what was sealed here is opened. The mark in data that somebody gave is written as `$$sealed`, wherever it stands in whatever column,
and read as it was given (`escaped`): nobody's data makes a reader fail, or shows what was sealed for others. What cannot be opened, for
its key is not here, is read as `Unopened`: no other row fails with it, and whoever needs the payload raises `SealedAway`.

In the clear stay names, states, labels, metadata, error messages, definitions, configurations, and what is told: streams,
Pub/Sub and the outbox before them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from orchestrator.errors import MissingCode, OrchestratorError, WorldError

MARK = "$sealed"
_SUSPICIOUS = 'sealed"'
# A key of compact JSON. Within a text its quotes would stand behind backslashes.
_MARK_AS_KEY = re.compile(r'(?<=[{,])"(\$+sealed)":')
_ESCAPED_MARK = re.compile(r"\$\$+sealed")
NO_KEYS = "it is sealed, and ENCRYPTION_KEYS is not given to this process"
NO_SUCH_KEY = "it is sealed with a key that is not among ENCRYPTION_KEYS"


class SealedAway(MissingCode):
    """A payload is sealed with a key that this process is not given: like code that is not here, it may be elsewhere, or come."""

    code = "sealed_away"

    def __init__(self, why: str) -> None:
        self.kind, self.name = "key", "ENCRYPTION_KEYS"
        WorldError.__init__(self, f"a payload cannot be read: {why}")


@dataclass(frozen=True, slots=True)
class Unopened:
    """Stands for a payload that cannot be opened here. It is shown as what it is, and never kept or counted with."""

    why: str

    def shown(self) -> dict[str, str]:
        return {"$unreadable": self.why}


def unkept(value: object) -> Any:
    """For JSON encoders: what they do not know."""
    if isinstance(value, Unopened):
        raise SealedAway(value.why)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def readable(*payloads: Any) -> None:
    """Raises `SealedAway` when one of them could not be opened."""
    for payload in payloads:
        if isinstance(payload, Unopened):
            raise SealedAway(payload.why)


def escaped(text: str) -> str:
    """Compact JSON in which nothing looks like what is sealed."""
    return _MARK_AS_KEY.sub(r'"$\1":', text) if _SUSPICIOUS in text else text


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


def sealed_event(envelope: dict[str, Any], dumps: Callable[[Any], str]) -> str:
    """An event's JSON with its data sealed: who it is from, about what and when stays to be seen."""
    if _keys.first is None or stays_clear(envelope.get("data")):
        return dumps(envelope)
    rest = dumps({key: value for key, value in envelope.items() if key != "data"})
    return f'{rest[:-1]}{"," if len(rest) > 2 else ""}"data":{sealed(dumps(envelope["data"]))}}}'


def _token(text: str) -> str:
    assert _keys.first is not None
    return _keys.first.encrypt(text.encode()).decode()


def loads(text: str | bytes) -> Any:
    """JSON as it was given."""
    if isinstance(text, bytes | bytearray):
        text = text.decode()
    return json.loads(text, object_hook=_opened) if _SUSPICIOUS in text else json.loads(text)


def _opened(found: dict[str, Any]) -> Any:
    if not is_sealed(found):
        return _as_given(found)
    token = found[MARK]
    if not token.startswith("gAAAA"):
        return found  # somebody's own data, kept when nothing was escaped
    if _keys.all is None:
        return Unopened(NO_KEYS)
    try:
        return json.loads(_keys.all.decrypt(token), object_hook=_as_given)
    except InvalidToken:
        return Unopened(NO_SUCH_KEY)


def _as_given(found: dict[str, Any]) -> dict[str, Any]:
    if any(_ESCAPED_MARK.fullmatch(key) for key in found):
        return {key[1:] if _ESCAPED_MARK.fullmatch(key) else key: value for key, value in found.items()}
    return found


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
            raise SealedAway(NO_SUCH_KEY) from None
    return None
