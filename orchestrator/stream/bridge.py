"""In: from Redis streams to whoever listens. `orchestrator bridge`; several may run.

    XREADGROUP → envelopes → one Postgres transaction keeps the batch's events, once each → XACK → wake the listeners

An entry is acknowledged only after its event is kept. A bridge that dies in between leaves it pending; another reclaims
it, finds the event known, and acknowledges it. What cannot be understood goes to `<stream>:dlq` with its reason.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from typing import Any

import psycopg
import redis

from orchestrator.config.settings import Settings
from orchestrator.engine.runtime import Runtime
from orchestrator.store import events
from orchestrator.store.connection import Connection
from orchestrator.stream.envelopes import Poison, envelope_of, tenant_of
from orchestrator.telemetry import metrics

logger = logging.getLogger("orchestrator.bridge")
SCAN_EVERY_S = 5.0
RECLAIM_EVERY_S = 10.0
OWN_SOURCES = frozenset({"orchestrator"})

Entry = tuple[str, dict[str, str]]


class Bridge:
    """One consumer. `run` returns after `stop`, with what it began finished."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.settings: Settings = runtime.settings
        self.group = self.settings.consumer_group
        self.name = self.settings.consumer_name or f"worker-{uuid.uuid4().hex[:8]}"
        self.redis: Any = redis.Redis.from_url(
            self.settings.redis_url,
            decode_responses=True,
            encoding_errors="replace",
            socket_connect_timeout=2,
            socket_timeout=self.settings.stream_block_s + 10,
        )
        self.streams: list[str] = []
        self._stopping = threading.Event()
        self._scanned = self._reclaimed = -1e9

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        logger.info("bridge %s reads %s and %s", self.name, ", ".join(self.settings.streams), self.settings.tenant_streams or "no others")
        pause = 0.1
        while not self._stopping.is_set():
            try:
                self.turn()
                pause = 0.1
            except redis.ResponseError as error:
                # The group, or the stream with it, is gone: somebody emptied Redis.
                logger.warning("the consumer groups are made again: %s", error)
                self.streams, self._scanned = [], -1e9
                self._stopping.wait(0.05)
            except (redis.RedisError, psycopg.Error) as error:
                logger.warning("waiting for %s: %s", type(error).__name__, str(error).split("\n", 1)[0])
                self._stopping.wait(pause)
                pause = min(pause * 2, 5.0)
        self.redis.close()
        logger.info("bridge %s has finished what it began", self.name)

    def turn(self) -> int:
        """Look for new streams and orphaned entries now and then; read and handle one batch."""
        now = time.monotonic()
        if now - self._scanned > SCAN_EVERY_S:
            self._scanned = now
            self._find_streams()
        handled = 0
        if self.settings.reclaim_idle_s and now - self._reclaimed > min(RECLAIM_EVERY_S, self.settings.reclaim_idle_s):
            self._reclaimed = now
            handled += sum(self._reclaim(stream) for stream in self.streams)
        wanted = dict.fromkeys(self.streams, ">")
        found = self.redis.xreadgroup(
            self.group, self.name, wanted, count=self.settings.stream_batch, block=int(self.settings.stream_block_s * 1000)
        )
        for stream, entries in found or []:
            handled += self.handle(stream, entries)
        return handled

    def _find_streams(self) -> None:
        found = list(self.settings.streams)
        if self.settings.tenant_streams:
            found += sorted(str(key) for key in self.redis.scan_iter(self.settings.tenant_streams, count=500, _type="stream"))
        for stream in found:
            if stream in self.streams:
                continue
            try:
                self.redis.xgroup_create(stream, self.group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise
            self.streams.append(stream)

    def _reclaim(self, stream: str) -> int:
        """Entries whose consumer is gone, or hangs."""
        idle_ms = int(self.settings.reclaim_idle_s * 1000)
        answer = self.redis.xautoclaim(stream, self.group, self.name, idle_ms, count=100)
        entries = [entry for entry in answer[1] if entry[1] is not None]
        if entries:
            logger.info("took over %d entries of %s", len(entries), stream)
        return self.handle(stream, entries)

    def handle(self, stream: str, entries: list[Entry]) -> int:
        """Keep, acknowledge, wake: in that order."""
        if not entries:
            return 0
        good: list[dict[str, Any]] = []
        bad: list[tuple[Entry, str]] = []
        for entry in entries:
            try:
                envelope = envelope_of(stream, *entry)
            except Poison as reason:
                bad.append((entry, str(reason)))
                continue
            if envelope["source"] not in OWN_SOURCES:
                good.append(envelope)
        tenant = tenant_of(stream)

        def keep(c: Connection) -> list[str]:
            with c.transaction():
                return [envelope["type"] for envelope in good if events.keep(c, envelope, None, tenant) is not None]

        fresh = self.runtime.database.patiently(keep)
        pipeline = self.redis.pipeline(transaction=True)
        for (entry_id, fields), why in bad:
            logger.warning("entry %s of %s is put aside: it %s", entry_id, stream, why)
            kept: dict[Any, Any] = {"original_id": entry_id, "reason": why, "type": "io.flunq.event.dlq", **_shortened(fields)}
            pipeline.xadd(f"{stream}:dlq", kept, maxlen=10_000, approximate=True)
        pipeline.xack(stream, self.group, *[entry_id for entry_id, _ in entries])
        pipeline.execute()
        metrics.bridged(len(fresh), len(entries) - len(fresh) - len(bad), len(bad))
        for kind in dict.fromkeys(fresh):
            woken = self.runtime.database.patiently(lambda c, kind=kind: events.wake_listeners(c, kind, None, tenant))  # type: ignore[misc]
            self.runtime.publisher.branches(woken)
        return len(entries)


def _shortened(fields: dict[str, str]) -> dict[str, str]:
    return {f"field.{key[:200]}": value if len(value) <= 4096 else value[:4096] + "…" for key, value in list(fields.items())[:50]}
