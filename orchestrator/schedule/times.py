"""Which moments a schedule means. Cron as Unix and node have it: five fields, day of month *or* day of week when both are
given, 7 is Sunday; in a time zone, through its changes of the clock. Moments are seconds of the epoch."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

LATEST = 253402300800.0
"""The end of the year 9999: no calendar here goes further."""


class BadTime(ValueError):
    """No moment can be made of it."""


def zone(name: Any) -> ZoneInfo:
    try:
        return ZoneInfo(str(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadTime(f"'{name}' is no time zone that is known") from None


def check_cron(cron: Any, timezone: Any) -> None:
    """Raises `BadTime` naming the field that is wrong, for a zone that is none, and for a moment that never comes.

    Six fields begin with the seconds.
    """
    if not isinstance(cron, str) or len(cron.split()) not in (5, 6):
        raise BadTime("has not five fields: minute, hour, day of month, month, day of week (or six, with the seconds first)")
    where = zone(timezone)
    try:
        next(CronSim(cron, dt.datetime.fromtimestamp(0, where)))
    except CronSimError as error:
        raise BadTime(f"is no cron expression: {error}") from None
    except StopIteration:
        raise BadTime("never comes") from None


def moment(given: Any, timezone: Any) -> float:
    """An instant as ISO 8601 (in the zone, when it names none) or as seconds of the epoch."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        if not 0 <= given < LATEST:
            raise BadTime("is no moment between 1970 and the year 9999")
        return float(given)
    if isinstance(given, dt.datetime):
        found = given
    else:
        try:
            found = dt.datetime.fromisoformat(str(given))
        except ValueError:
            raise BadTime("is no moment like 2027-01-01T00:00:00Z") from None
    try:
        at = (found if found.tzinfo else found.replace(tzinfo=zone(timezone))).timestamp()
    except (OverflowError, ValueError):
        at = -1.0
    if not 0 <= at < LATEST:
        raise BadTime("is no moment between 1970 and the year 9999")
    return at


def first(when: dict[str, Any], now: float) -> float:
    """The first moment of a schedule that is made now."""
    if "at" in when:
        return float(when["at"])
    if "every" in when:
        # On a whole second, which is what beat knows.
        return float(math.ceil(now + float(when["every"]))) if float(when["every"]) >= 1 else now + float(when["every"])
    return next_cron(when, now)


def next_cron(when: dict[str, Any], after: float) -> float:
    start = dt.datetime.fromtimestamp(after, ZoneInfo(when["timezone"]))
    return float(next(CronSim(when["cron"], start)).timestamp())


def following(when: dict[str, Any], planned: float, now: float) -> float | None:
    """The first moment that is still to come; those of `every` keep their distance from the first."""
    if "at" in when:
        return None
    if "every" in when:
        step = float(when["every"])
        return planned + (int(max(0.0, now - planned) // step) + 1) * step
    return next_cron(when, max(now, planned))


def passed(when: dict[str, Any], planned: float, now: float) -> float:
    """The last moment that is not after `now`: `planned`, or a later one that passed meanwhile."""
    if "at" in when:
        return planned
    if "every" in when:
        step = float(when["every"])
        return planned + (max(0.0, now - planned) // step) * step
    # A second later, so that a moment that is just now counts.
    start = dt.datetime.fromtimestamp(int(now) + 1, ZoneInfo(when["timezone"]))
    return max(planned, float(next(CronSim(when["cron"], start, reverse=True)).timestamp()))


def between(when: dict[str, Any], start: float, end: float) -> Iterator[float]:
    """All moments from `start` (which is one) to `end`, both included."""
    at: float | None = start
    while at is not None and at <= end:
        yield at
        at = following(when, at, at)


def preview(when: dict[str, Any], after: float, count: int) -> list[float]:
    """The next so many moments."""
    found: list[float] = []
    at: float | None = first(when, after) if "at" not in when or float(when["at"]) > after else None
    while at is not None and len(found) < count:
        found.append(at)
        at = following(when, at, at)
    return found


def within(when: dict[str, Any], known: float | None, start: float, end: float, most: int) -> list[float]:
    """Moments of a range, both ends included. Those of `every` are counted from one that is known."""
    if "at" in when:
        return [float(when["at"])] if start <= float(when["at"]) <= end else []
    if "every" in when:
        step = float(when["every"])
        anchor = start if known is None else known
        at = anchor + -(-(start - anchor) // step) * step
        count = max(0, int((end - at) // step) + 1)
        return [at + n * step for n in range(min(count, most))]
    found: list[float] = []
    at = next_cron(when, start - 1)
    while at <= end and len(found) < most:
        if at >= start:
            found.append(at)
        at = next_cron(when, at)
    return found


def jittered(identity: str, planned: float, jitter_s: float) -> float:
    """A little later, always the same for the same moment."""
    if not jitter_s:
        return planned
    digest = hashlib.sha256(f"{identity}/{planned:.3f}".encode()).digest()
    later = jitter_s * int.from_bytes(digest[:4], "big") / 2**32
    return planned + (math.floor(later) if jitter_s >= 2 else later)


def iso(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
