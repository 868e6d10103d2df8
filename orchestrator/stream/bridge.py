"""In and out: `orchestrator bridge`; several may run.

    read a batch → envelopes → intake: events and what they start in one transaction → acknowledge

An entry is acknowledged only after its effect is committed; one whose workflow must end first stays pending until it
has. What a bridge that died left is taken over, found known, and acknowledged. `consumer.py` reads streams, `inlets.py` reads
Pub/Sub and message queues, `courier.py` delivers webhooks: each is a thread here.
"""

from __future__ import annotations

import gc
import threading
import time
from typing import Any, Protocol

from orchestrator.config.settings import Settings
from orchestrator.engine.runtime import Runtime
from orchestrator.store import findings, streams
from orchestrator.store.connection import Connection
from orchestrator.stream.consumer import FINDING, Consumer, Reads, iso
from orchestrator.stream.courier import Courier
from orchestrator.stream.inlets import also_read
from orchestrator.stream.stores import NoGroup, NoStream, open_store


def what_is_read(settings: Settings) -> list[Reads]:
    found = [Reads(settings.consumer_group, settings.streams, name=settings.consumer_name, prefix="orchestrator")]
    if settings.tenant_streams:
        found.append(Reads(settings.worker_consumer_group, pattern=settings.tenant_streams))
    return [reads for reads in found if reads.streams or reads.pattern]


class Beside(Protocol):
    """A thread that does its own part of the bridge's work."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool: ...


class Bridge:
    """All consumers of one process. `run` returns after `stop`, with what they began finished."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.settings = runtime.settings
        self.consumers = [Consumer(runtime, reads, open_store(runtime.settings)) for reads in what_is_read(runtime.settings)]
        self.beside: list[Beside] = [Courier(runtime), *also_read(runtime)]

    def stop(self) -> None:
        for consumer in self.consumers:
            consumer.stop()
        for part in self.beside:
            part.stop()

    def run(self) -> None:
        threads: list[Any] = [threading.Thread(target=consumer.run, name=consumer.reads.group, daemon=True) for consumer in self.consumers]
        threads += self.beside
        # What is loaded stays for good: looking at it again and again would cost a tenth of a flood's throughput.
        gc.collect()
        gc.freeze()
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)  # signals are handled between two of these

    def health(self) -> dict[str, Any]:
        """The fields that the documents of S0 name, and each consumer's."""
        now = time.monotonic()
        alive = all(now - c.counts.moved_at < max(5.0, 3 * self.settings.stream_block_s) for c in self.consumers)
        alone = sorted({stream for consumer in self.consumers for stream in consumer.left_alone})
        last = max((c.counts.last_at for c in self.consumers), default=0.0)
        return {
            "status": "unhealthy" if not alive else "degraded" if alone else "healthy",
            "consumer_active": alive and not alone,
            "left_alone": alone,
            "pending_events": sum(c.counts.pending for c in self.consumers),
            "waiting_events": sum(c.counts.waiting for c in self.consumers),
            "last_event_time": iso(last) if last else None,
            "error_count": sum(c.counts.errors for c in self.consumers),
            "processed_count": sum(c.counts.processed for c in self.consumers),
            "event_store": self.settings.eventstore_type,
            "consumers": {c.reads.group: {"name": c.name, "streams": len(c.streams)} for c in self.consumers},
        }


def standing(settings: Settings, c: Connection, *, patterns: bool = False) -> list[dict[str, Any]]:
    """How each group does on each stream, as anybody can see it: for health, and (with all tenants') for the doctor."""
    found: list[dict[str, Any]] = []
    alone = {one["subject"]: one["since"] for one in findings.listing(c) if one["kind"] == FINDING}
    store = open_store(settings)
    try:
        for reads in what_is_read(settings):
            living = [one["name"] for one in streams.living_names(c, f"consumer/{reads.group}/")]
            for stream in [*reads.streams, *(store.find(reads.pattern) if reads.pattern and patterns else ())]:
                if stream.endswith(":dlq"):
                    continue
                about: dict[str, Any] = {
                    "stream": stream,
                    "group": reads.group,
                    "consumers": living,
                    "active": bool(living) and stream not in alone,
                }
                if stream in alone:
                    about["left_alone_since"] = alone[stream]
                try:
                    backlog = store.backlog(stream, reads.group)
                    found.append({**about, "exists": True, "waiting": backlog.waiting, "pending": backlog.pending})
                except (NoGroup, NoStream):
                    found.append({**about, "exists": False, "waiting": 0, "pending": 0})
    finally:
        store.close()
    return found
