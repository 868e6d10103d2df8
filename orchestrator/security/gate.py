"""The gate: who asks is found out, guessing is stopped, and nobody asks more than is fair.

Where Redis is away, each process counts for itself: limits become wider by the number of processes, and never vanish.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter
from redis import RedisError

from orchestrator.config.settings import Settings
from orchestrator.errors import OrchestratorError
from orchestrator.security import keys
from orchestrator.security.principals import Principal, principal
from orchestrator.security.tokens import BadToken, Tokens
from orchestrator.store import security
from orchestrator.store.connection import Database

logger = logging.getLogger("orchestrator.security")

KEYS_FOR_S = 2.0
GUESSES = "10/5 minute"


class Unauthenticated(OrchestratorError):
    code = "unauthenticated"


class Forbidden(OrchestratorError):
    code = "forbidden"


class TooMany(OrchestratorError):
    code = "rate_limited"

    def __init__(self, message: str, allowance: Allowance) -> None:
        super().__init__(message)
        self.allowance = allowance


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a limit."""

    limit: int
    remaining: int
    resets_in_s: int

    def headers(self) -> dict[str, str]:
        return {"RateLimit-Limit": str(self.limit), "RateLimit-Remaining": str(self.remaining), "RateLimit-Reset": str(self.resets_in_s)}


class Counting:
    """Sliding windows in Redis, shared by all processes; in this process's memory while Redis is away."""

    def __init__(self, settings: Settings) -> None:
        self._shared = SlidingWindowCounterRateLimiter(
            storage_from_string(
                settings.redis_url,
                key_prefix=f"{settings.redis_prefix}LIMITS",
                wrap_exceptions=True,
                socket_timeout=1,
                socket_connect_timeout=1,
            )
        )
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._shared_from = 0.0

    def hit(self, limit: RateLimitItem, *who: str) -> Allowance | None:
        """None: it is used up."""
        found: Allowance | None = self._asked(lambda limiter: self._stand(limiter, limit, who) if limiter.hit(limit, *who) else None)
        return found

    def peek(self, limit: RateLimitItem, *who: str) -> Allowance:
        found: Allowance = self._asked(lambda limiter: self._stand(limiter, limit, who))
        return found

    def _asked(self, ask: Callable[[SlidingWindowCounterRateLimiter], Any]) -> Any:
        if time.monotonic() >= self._shared_from:
            try:
                return ask(self._shared)
            except (StorageError, RedisError, OSError) as error:
                logger.warning("limits are counted by each process alone: %s", error)
                self._shared_from = time.monotonic() + 5.0
        return ask(self._own)

    @staticmethod
    def _stand(limiter: SlidingWindowCounterRateLimiter, limit: RateLimitItem, who: tuple[str, ...]) -> Allowance:
        stats = limiter.get_window_stats(limit, *who)
        return Allowance(limit.amount, max(0, stats.remaining), max(1, math.ceil(stats.reset_time - time.time())))


class Gate:
    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database
        self.tokens = Tokens(settings)
        self.counting = Counting(settings)
        self._guesses = parse(GUESSES)
        self._requests = parse(settings.rate_limit) if settings.rate_limit else None
        self._starts = parse(settings.start_limit) if settings.start_limit else None
        self._known: dict[str, tuple[float, security.Key | None]] = {}
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        return self.settings.auth == "on"

    def authenticate(self, credential: str, address: str) -> Principal:
        """Raises `Unauthenticated`, or `TooMany` for an address that has guessed too often."""
        if self.counting.peek(self._guesses, "guess", address).remaining == 0:
            allowance = self.counting.peek(self._guesses, "guess", address)
            raise TooMany("too many attempts that failed; try again later", allowance)
        if not credential:
            raise Unauthenticated("an API key or a token is needed: `Authorization: Bearer …` or `X-API-Key: …`")
        try:
            return self._by_key(*found) if (found := keys.parse(credential)) else self._by_token(credential)
        except (BadToken, Unauthenticated) as error:
            self.counting.hit(self._guesses, "guess", address)
            raise Unauthenticated(str(error)) from None

    def _by_key(self, identity: str, secret: str) -> Principal:
        kept = self._find(identity)
        if kept is None or not keys.matches(secret, kept.digest):
            raise Unauthenticated("this API key is not known, was revoked, or has ended")
        return principal(kept.name, kept.tenant, kept.roles, kept.scopes, kept.workflows)

    def _find(self, identity: str) -> security.Key | None:
        """Keys are read again every two seconds: one that is revoked opens nothing for longer."""
        now = time.monotonic()
        with self._lock:
            held = self._known.get(identity)
        if held is None or held[0] < now:
            held = (now + KEYS_FOR_S, self.database.patiently(lambda c: security.use_key(c, identity)))
            with self._lock:
                if len(self._known) > 10_000:
                    self._known.clear()
                self._known[identity] = held
        return held[1]

    def _by_token(self, text: str) -> Principal:
        if not self.tokens.are_taken:
            raise BadToken("this is no API key, and tokens are not accepted here (AUTH_JWKS)")
        return self.tokens.principal(text)

    def count_request(self, who: Principal) -> Allowance | None:
        """None: there is no limit."""
        if self._requests is None:
            return None
        allowance = self.counting.hit(self._requests, "request", who.tenant, who.name)
        if allowance is None:
            raise TooMany(f"more than {self._requests} were asked for", self.counting.peek(self._requests, "request", who.tenant, who.name))
        return allowance

    def count_start(self, who: Principal, workflow: str) -> None:
        if self._starts is not None and self.counting.hit(self._starts, "start", who.tenant, who.name, workflow) is None:
            raise TooMany(
                f"'{workflow}' was started more than {self._starts}",
                self.counting.peek(self._starts, "start", who.tenant, who.name, workflow),
            )
