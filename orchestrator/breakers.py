"""Circuit breakers: one per target and tenant, shared by all workers through Redis.

    CLOSED ──threshold failures in a row──▶ OPEN ──recovery time──▶ HALF_OPEN ──a success──▶ CLOSED
                                              ▲                         │
                                              └───────a failure─────────┘

While it is open a step fails at once with `circuit_open`, without touching its target; half-open, so many attempts are let
through at a time. Redis away: each process keeps its own count, so that targets stay protected and no step waits for Redis.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import redis

from orchestrator.config.settings import Settings
from orchestrator.errors import NotFound, Retryable

logger = logging.getLogger("orchestrator.breakers")

NAMES = "orchestrator:breakers"
KEPT_FOR_S = 30 * 86400
OWN_FOR_S = 5.0
State = Literal["CLOSED", "OPEN", "HALF_OPEN"]
Outcome = Literal["good", "bad", "neither"]
NUMBERS: dict[str, int] = {"CLOSED": 0, "HALF_OPEN": 1, "OPEN": 2}


def name_for(tenant: str, breaker: str) -> str:
    """What one tenant's calls make of a target is no other's affair. A name that a step gives holds no `@` (`validate.py`)."""
    return breaker if tenant == "default" else f"{breaker}@{tenant}"


class CircuitOpen(Retryable):
    """The target failed too often; it is left alone until the recovery time is over."""

    code = "circuit_open"


@dataclass(frozen=True, slots=True)
class Breaker:
    """One target's breaker. Pure: what it becomes is asked of it, with the time."""

    name: str
    state: State = "CLOSED"
    failures: int = 0
    """In a row."""
    trials: int = 0
    """Let through while half-open, and not yet heard of."""
    since: float = 0.0
    """When it came into this state."""
    opened: int = 0
    refused: int = 0
    error: str = ""

    def asked(self, now: float, rules: Rules) -> tuple[Breaker, float | None]:
        """May a call go through? Gives None, or in how many seconds to ask again."""
        current = self
        if self.state == "OPEN":
            left = self.since + rules.recovery_s - now
            if left > 0:
                return replace(self, refused=self.refused + 1), left
            current = replace(self, state="HALF_OPEN", trials=0, since=now)
        if current.state == "HALF_OPEN":
            if current.trials >= rules.trials:
                if now - current.since < rules.recovery_s:
                    return replace(current, refused=current.refused + 1), max(1.0, rules.recovery_s / 10)
                # Those who were let through died with their answers.
                current = replace(current, trials=0, since=now)
            current = replace(current, trials=current.trials + 1)
        return current, None

    def heard(self, now: float, rules: Rules, outcome: Outcome, error: str = "") -> Breaker:
        """What became of a call. `neither`: it failed, and not for its target's sake."""
        if outcome == "neither":
            return replace(self, trials=max(0, self.trials - 1)) if self.state == "HALF_OPEN" else self
        if outcome == "good":
            # A call that began before the breaker opened says nothing about now.
            return self if self.state == "OPEN" or self == (calm := self._calm(now)) else calm
        if self.state == "OPEN":
            return self
        failures = self.failures + 1
        if self.state == "HALF_OPEN" or failures >= rules.threshold:
            return replace(self, state="OPEN", failures=failures, trials=0, since=now, opened=self.opened + 1, error=error[:300])
        return replace(self, failures=failures, error=error[:300])

    def _calm(self, now: float) -> Breaker:
        return replace(self, state="CLOSED", failures=0, trials=0, since=self.since if self.state == "CLOSED" else now, error="")

    def to_json(self, rules: Rules, now: float) -> dict[str, Any]:
        left = self.since + rules.recovery_s - now if self.state == "OPEN" else 0.0
        return {
            "name": self.name, "state": "HALF_OPEN" if self.state == "OPEN" and left <= 0 else self.state, "failures": self.failures,
            "threshold": rules.threshold, "recovery_s": rules.recovery_s, "retry_in_s": round(max(0.0, left), 1) or None,
            "opened": self.opened, "refused": self.refused, "error": self.error or None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    threshold: int
    recovery_s: float
    trials: int


class MemoryBreakers:
    """Breakers of one process, where there is no Redis to share them through."""

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules(5, 60.0, 3)
        self._held: dict[str, Breaker] = {}
        self._lock = threading.Lock()

    def ask(self, name: str, now: float) -> None:
        """Raises `CircuitOpen` where the call must not be made."""
        with self._lock:
            self._held[name], wait = self._held.get(name, Breaker(name)).asked(now, self.rules)
        if wait is not None:
            raise _open(name, wait)

    def tell(self, name: str, now: float, outcome: Outcome, error: str = "") -> None:
        with self._lock:
            self._held[name] = self._held.get(name, Breaker(name)).heard(now, self.rules, outcome, error)


def _open(name: str, wait: float) -> CircuitOpen:
    return CircuitOpen(f"the breaker '{name}' is open: its target failed too often, and is left alone", after=wait)


class Breakers:
    """All breakers of a process; their state is in Redis, changed there by whoever sees it unchanged."""

    def __init__(self, settings: Settings) -> None:
        self.rules = Rules(settings.breaker_threshold, settings.breaker_recovery_s, settings.breaker_trials)
        self._url, self._prefix = settings.redis_url, settings.redis_prefix
        self._lock = threading.Lock()
        self._client: Any = None
        self._own: dict[str, Breaker] = {}
        self._own_until = 0.0

    def ask(self, name: str) -> None:
        """Raises `CircuitOpen` where the call must not be made."""
        verdict: list[float | None] = []

        def change(held: Breaker, now: float) -> Breaker:
            changed, wait = held.asked(now, self.rules)
            verdict[:] = [wait]
            return changed

        self._change(name, change)
        if verdict[0] is not None:
            raise _open(name, verdict[0])

    def tell(self, name: str, outcome: Outcome, error: str = "") -> None:
        self._change(name, lambda held, now: held.heard(now, self.rules, outcome, error))

    def all(self) -> list[dict[str, Any]]:
        client, now = self._redis(), time.time()
        names = sorted(client.smembers(self._prefix + NAMES))
        texts = client.mget([self._key(name) for name in names]) if names else []
        return [_read(name, text).to_json(self.rules, now) for name, text in zip(names, texts, strict=True)]

    def find(self, name: str) -> dict[str, Any]:
        text = self._redis().get(self._key(name))
        if text is None:
            raise NotFound("breaker", name, "`orchestrator breakers` lists those that have been asked")
        return _read(name, text).to_json(self.rules, time.time())

    def reset(self, name: str) -> None:
        """Closed again, by hand."""
        self.find(name)
        self._change(name, lambda held, now: held._calm(now))

    # ── where it is kept ────────────────────────────────────────────────────────────────────────────────────────────

    def _change(self, name: str, change: Callable[[Breaker, float], Breaker]) -> None:
        if time.monotonic() >= self._own_until:
            try:
                self._change_shared(name, change)
            except redis.RedisError as error:
                logger.warning("breakers count in this process alone while Redis is away: %s", error)
                self._own_until = time.monotonic() + OWN_FOR_S
            else:
                return
        with self._lock:
            self._own[name] = change(self._own.get(name, Breaker(name)), time.time())

    def _change_shared(self, name: str, change: Callable[[Breaker, float], Breaker]) -> None:
        client, key = self._redis(), self._key(name)
        with client.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(key)
                    text = pipe.get(key)
                    held = _read(name, text)
                    changed = change(held, time.time())
                    if text is not None and changed == held:
                        return
                    pipe.multi()
                    pipe.set(key, json.dumps(asdict(changed)), ex=KEPT_FOR_S)
                    if text is None:
                        pipe.sadd(self._prefix + NAMES, name)
                    pipe.execute()
                except redis.WatchError:
                    continue  # somebody else was first: look again
                else:
                    _say(held, changed)
                    return

    def _key(self, name: str) -> str:
        return f"{self._prefix}orchestrator:breaker:{name}"

    def _redis(self) -> Any:
        if self._client is None:
            self._client = redis.Redis.from_url(self._url, decode_responses=True, socket_timeout=1, socket_connect_timeout=1)
        return self._client


def _say(held: Breaker, changed: Breaker) -> None:
    if held.state != changed.state:
        logger.warning("breaker %s: %s → %s%s", held.name, held.state, changed.state, f" ({changed.error})" if changed.error else "")


def _read(name: str, text: str | None) -> Breaker:
    return Breaker(name) if text is None else Breaker(**json.loads(text))
