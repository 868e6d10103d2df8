"""When a failed attempt is made again. One policy serves every front end; each translates its own words into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.definition.codec import tagged

MOST_ATTEMPTS = 10_000
"""More than anybody waits for; attempts are counted in 16 bits."""

Backoff = Literal["exponential", "linear", "constant"]


@tagged("retry")
@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`max_attempts` counts the first one: 1 means no retry. Delays in seconds.

    `retry_on` and `no_retry_on` hold error codes or exception names; an empty `retry_on` means every retryable error.
    `jitter` is the share of a delay that is random: 0.5 means 50 to 100 % of it.
    """

    max_attempts: int = 3
    backoff: Backoff = "exponential"
    base_s: float = 1.0
    factor: float = 2.0
    cap_s: float = 300.0
    jitter: float = 0.5
    retry_on: tuple[str, ...] = ()
    no_retry_on: tuple[str, ...] = ()
    added_s: tuple[float, float] = (0.0, 0.0)
    """Between these two, evenly, is added to every delay."""
    step_s: float = 0.0
    """Added to the base once more with every further attempt, before it is multiplied."""

    def delay_s(self, failed_attempts: int, luck: float) -> float:
        """The wait after so many failed attempts; `luck` in [0, 1) is the caller's random number."""
        if self.backoff == "exponential":
            # Bounded before the power, so that the thousandth attempt cannot overflow.
            raw = (self.base_s + self.step_s * (failed_attempts - 1)) * self.factor ** min(failed_attempts - 1, 64)
        elif self.backoff == "linear":
            raw = self.base_s * failed_attempts
        else:
            raw = self.base_s
        capped = min(raw, self.cap_s)
        least, most = self.added_s
        return capped * (1 - self.jitter * luck) + least + (most - least) * luck

    def allows(self, code: str, names: frozenset[str], *, retryable: bool) -> bool:
        """Does an error of this code and these exception names deserve another attempt?"""
        labels = names | {code}
        if labels & set(self.no_retry_on):
            return False
        if self.retry_on:
            return bool(labels & set(self.retry_on))
        return retryable


NO_RETRY = RetryPolicy(max_attempts=1)
