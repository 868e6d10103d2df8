"""When a failed attempt is made again. One policy serves every front end; each translates its own words into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from orchestrator.definition.codec import tagged
from orchestrator.definition.durations import LONGEST_S
from orchestrator.definition.parsing import shown

MOST_ATTEMPTS = 10_000
"""Of a step: more than anybody waits for; they are counted in 16 bits."""
UNLIMITED = 2**31
"""Of a `try`, whose rounds are tasks of their own."""

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

    def faults(self, most_attempts: int = MOST_ATTEMPTS) -> Iterator[tuple[str, str]]:
        """The fields that are not what they must be, each with what is wrong. A policy that was written in Python may hold anything."""
        if not _is_number(self.max_attempts, 1, most_attempts) or not isinstance(self.max_attempts, int):
            yield "max_attempts", f"Expected a whole number from 1 to {most_attempts:,}, got {shown(self.max_attempts)}."
        if self.backoff not in get_args(Backoff):
            yield "backoff", f"Expected {', '.join(get_args(Backoff))}, got {shown(self.backoff)}."
        for name in ("base_s", "cap_s", "step_s"):
            if not _is_number(value := getattr(self, name), 0, LONGEST_S):
                yield name, f"Expected a number of seconds that is not negative, got {shown(value)}."
        if not _is_number(self.factor, 0, 1_000):
            yield "factor", f"Expected a number from 0 to 1,000, got {shown(self.factor)}."
        if not _is_number(self.jitter, 0, 1):
            yield "jitter", f"Expected a number from 0 to 1, got {shown(self.jitter)}."
        if not (isinstance(self.added_s, tuple) and len(self.added_s) == 2 and all(_is_number(one, 0, LONGEST_S) for one in self.added_s)):
            yield "added_s", f"Expected two numbers of seconds that are not negative, got {shown(self.added_s)}."
        for name in ("retry_on", "no_retry_on"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or not all(isinstance(one, str) for one in value):
                yield name, f"Expected a list of error codes or names of exceptions, got {shown(value)}."

    def allows(self, code: str, names: frozenset[str], *, retryable: bool) -> bool:
        """Does an error of this code and these exception names deserve another attempt?"""
        labels = names | {code}
        if labels & set(self.no_retry_on):
            return False
        if self.retry_on:
            return bool(labels & set(self.retry_on))
        return retryable


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


NO_RETRY = RetryPolicy(max_attempts=1)
