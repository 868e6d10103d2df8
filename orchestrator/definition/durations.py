"""Durations as people write them: 30, 0.5, "30s", "1m30s", "100ms", "PT1M30S", {"minutes": 5}. Internally: seconds."""

from __future__ import annotations

import re
from typing import Any

UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
FIELDS_S = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0, "milliseconds": 1e-3}

_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")
_PLAIN = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h|d))+")
_ISO = re.compile(
    r"P(?=.)(?:(\d+(?:\.\d+)?)Y)?(?:(\d+(?:\.\d+)?)M)?(?:(\d+(?:\.\d+)?)W)?(?:(\d+(?:\.\d+)?)D)?"
    r"(?:T(?=\d)(?:(\d+(?:\.\d+)?)H)?(?:(\d+(?:\.\d+)?)M)?(?:(\d+(?:\.\d+)?)S)?)?"
)
LONGEST_S = 1000 * 31536000.0
# A year is 365 days here and a month 30: what they are in truth depends on when they begin.
_ISO_S = (31536000.0, 2592000.0, 604800.0, 86400.0, 3600.0, 60.0, 1.0)


class BadDuration(ValueError):
    def __init__(self, value: Any) -> None:
        try:
            text = repr(value)
        except ValueError:  # a number of thousands of digits
            text = type(value).__name__
        text = text if len(text) <= 80 else f"{text[:79]}…"
        super().__init__(f"Invalid duration {text}: write seconds (1.5), '30s', '1m30s', 'PT1M30S' or {{'minutes': 5}}, up to 1,000 years.")


def from_now(value: Any) -> float:
    """The same, of a time that may have passed: what is below zero is now."""
    if isinstance(value, dict) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value.values()) and _sum(value) <= 0:
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
        return 0.0
    return seconds(value)


def _sum(value: dict[str, Any]) -> float:
    try:
        return float(sum(FIELDS_S[unit] * number for unit, number in value.items()))
    except (KeyError, OverflowError):
        raise BadDuration(value) from None


def seconds(value: Any) -> float:
    """The duration in seconds; `BadDuration` when it is none, is negative, or is longer than any calendar."""
    found = _read(value)
    if not 0 <= found <= LONGEST_S:
        raise BadDuration(value)
    return float(found)


def _read(value: Any) -> float:
    if isinstance(value, bool):
        raise BadDuration(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, dict):
        return _fields(value)
    if isinstance(value, str):
        return _text(value.strip())
    raise BadDuration(value)


def _fields(value: dict[str, Any]) -> float:
    if not value or not set(value) <= set(FIELDS_S):
        raise BadDuration(value)
    if any(isinstance(n, bool) or not isinstance(n, int | float) or n < 0 for n in value.values()):
        raise BadDuration(value)
    return _sum(value)


def _text(text: str) -> float:
    if _PLAIN.fullmatch(text):
        return sum(float(number) * UNITS_S[unit] for number, unit in _PART.findall(text))
    iso = _ISO.fullmatch(text)
    if iso and any(iso.groups()):
        return sum(float(part) * unit for part, unit in zip(iso.groups(), _ISO_S, strict=True) if part)
    try:
        return float(text)
    except ValueError:
        raise BadDuration(text) from None


def shown(duration_s: float) -> str:
    """A duration for people: 950 ms, 2.4 s, 1 m 30 s, 2 h 5 m."""
    if duration_s < 1:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    minutes, rest = divmod(int(duration_s), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    return f"{minutes // 60} h {minutes % 60} m"
