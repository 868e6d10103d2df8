"""RedBeat's entries: the mirror of the schedules in Postgres, made again when Redis lost them.

Each entry is one moment, the next one: an `rrule` of a single second. When it fires, the schedule moves on in Postgres and
the entry is written anew. So zones, changes of the clock, jitter and cron's days mean in beat what they mean here, and a
beat that was away has nothing to make up for. RedBeat knows whole seconds; what comes oftener the keeper fires.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery
from redbeat import RedBeatSchedulerEntry
from redbeat.schedulers import ensure_conf, get_redis
from redbeat.schedules import rrule

from orchestrator.ids import escaped
from orchestrator.schedule import beats
from orchestrator.store import schedules
from orchestrator.store.connection import Connection
from orchestrator.store.schedules import Schedule

logger = logging.getLogger("orchestrator.mirror")

FIRE = "orchestrator.fire"
MARK = "mirrored"
BATCH = 200
LOOK_EVERY_S = 2.0
NOTE_EVERY_S = 10.0
QUEUE = "high"


class Mirror:
    """Written by the keeper alone."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self._conf = ensure_conf(app)
        self._looked_at = 0.0
        self._noted_at = -NOTE_EVERY_S
        self._broken: set[int] = set()
        """Schedules whose rows make no entry; each is reported once."""
        self.is_beating = False
        """Whether a beat holds its lock: then it is the first to say that a time has come."""

    def look(self, c: Connection) -> None:
        """Is there a beat, and does Redis still have what was written?"""
        if time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        try:
            client = self._redis()
            self.is_beating = bool(client.exists(self._conf.lock_key))
            if self.is_beating and time.monotonic() - self._noted_at >= NOTE_EVERY_S:
                self._noted_at = time.monotonic()
                beats.note(c)
            if client.set(self._conf.key_prefix + MARK, "1", nx=True):
                schedules.unmirror_all(c)
        except redis.RedisError as error:
            self.is_beating = False
            logger.debug("no mirror: %s", error)

    def sync(self, c: Connection) -> int:
        """Write what has moved since; gives how many."""
        found = schedules.unmirrored(c, BATCH)
        if not found:
            return 0
        try:
            self._write(found)
        except redis.RedisError as error:
            logger.warning("RedBeat is not told of %d schedules, Redis is away: %s", len(found), error)
            return 0
        schedules.mirrored(c, found)
        return len(found)

    def _write(self, found: Sequence[Schedule]) -> None:
        for one in found:
            try:
                entry = self._entry(one)
            except redis.RedisError:
                raise
            except Exception as error:  # noqa: BLE001  # whatever its row holds
                # It is put aside when its time comes; beat need not know of it, and the others' entries do not wait for it.
                level = logging.DEBUG if one.id in self._broken else logging.ERROR
                logger.log(level, "schedule %s has no entry in RedBeat: %s: %s", one.name, type(error).__name__, error)
                self._broken.add(one.id)
                entry = None
            else:
                self._broken.discard(one.id)
            if entry is None:
                RedBeatSchedulerEntry(self.name_of(one), app=self.app).delete()
            else:
                entry.save()

    def _entry(self, one: Schedule) -> RedBeatSchedulerEntry | None:
        every = one.spec.get("every") if one.kind == "every" else None
        if not one.enabled or one.next is None or (every is not None and every < 1):
            return None
        # Never before its time, and RedBeat knows whole seconds.
        at = dt.datetime.fromtimestamp(math.ceil(one.next - 0.001), dt.UTC)
        entry = RedBeatSchedulerEntry(
            name=self.name_of(one), task=FIRE, args=[one.id], schedule=rrule("SECONDLY", dtstart=at, count=1), app=self.app,
            # A day late it says nothing new: the keeper was there before.
            options={"queue": QUEUE, "expires": 86400, "ignore_result": True, "shadow": f"schedule:{one.name}"},
        )  # fmt: skip
        # Else it would be due at once; the time of its last run, if Redis has one, stays.
        entry.last_run_at = dt.datetime.fromtimestamp(min(one.now, one.next) - 1, dt.UTC)
        return entry

    @staticmethod
    def name_of(one: Schedule) -> str:
        return f"{escaped(one.tenant)}/{escaped(one.name)}"

    def _redis(self) -> Any:
        return get_redis(self.app)
