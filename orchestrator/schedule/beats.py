"""Whether a beat ticks: by the lock that RedBeat prolongs at every tick, and by when the keeper last saw that.

No beat is needed, the keeper fires schedules by itself. One that was there and stands still is a fault all the same: somebody relies
on it, and nothing else tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery
from redbeat.schedulers import ensure_conf, get_redis

from orchestrator.store import configs
from orchestrator.store.connection import Connection

SEEN = "beat-seen"
# Who has not been seen for a day was taken away on purpose.
MISSED_FOR_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Beat:
    """`silent_s`: since its last tick, or since it was last seen; None: there was none within a day."""

    is_beating: bool
    silent_s: float | None

    @property
    def is_missed(self) -> bool:
        return not self.is_beating and self.silent_s is not None

    def __str__(self) -> str:
        if self.is_beating:
            return f"ticked {self.silent_s or 0:.0f} s ago"
        if self.silent_s is None:
            return "none runs, and none is needed: the keeper fires schedules"
        return f"silent for {self.silent_s:.0f} s; the keeper fires schedules in its place"


def ticked_s_ago(app: Celery) -> float | None:
    """Since the last tick of the beat that holds the lock; None: nobody holds it. Raises what Redis raises."""
    conf = ensure_conf(app)
    left_ms: Any = get_redis(app).pttl(conf.lock_key)
    return None if left_ms < 0 else max(0.0, float(conf.lock_timeout) - left_ms / 1000)


def note(c: Connection) -> None:
    """A beat was seen."""
    configs.note(c, SEEN, None)


def standing(app: Celery | None, c: Connection) -> Beat:
    """`app` None: Redis is away, and is not asked."""
    try:
        ticked = None if app is None else ticked_s_ago(app)
    except redis.RedisError:
        ticked = None
    if ticked is not None:
        return Beat(is_beating=True, silent_s=ticked)
    silent = configs.noted_s_ago(c, SEEN)
    return Beat(is_beating=False, silent_s=silent if silent is not None and silent < MISSED_FOR_S else None)
