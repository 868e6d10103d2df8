"""Out: from the outbox to whoever listens. An event leaves the outbox only after Redis took it.

EVENT_STREAM                  every life-cycle event
CLOUDEVENTS_STREAM            the Serverless Workflow specification's, of documents
workflow:<type>, …:recent     Pub/Sub and the newest thousand, for those who look on
events:bus                    events that were sent to the API or emitted, for other consumers
tenant:…:events               `io.flunq.*`, for executors in other languages
workflow:state:…              the states of resources
webhooks                      as deliveries in Postgres, which the bridge's courier sends
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import redis

from orchestrator.config.settings import Settings
from orchestrator.store import outbox, webhooks
from orchestrator.store.connection import Connection, spelled
from orchestrator.store.outbox import Told
from orchestrator.stream import outlets, small, state
from orchestrator.stream.stores import EventStore, StoreAway, open_store
from orchestrator.telemetry import metrics
from orchestrator.telemetry.events import fields
from orchestrator.telemetry.lifecycle import cloud_events

logger = logging.getLogger("orchestrator.relay")


class Relay:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.prefix = settings.redis_prefix
        self.stream = settings.event_stream
        self.cloud_stream = settings.cloudevents_stream
        self.length = settings.event_stream_length
        self.limit = settings.stream_payload_limit_bytes
        self._counted: dict[int, int] = {}
        self._redis = redis.Redis.from_url(settings.redis_url, socket_timeout=5, socket_connect_timeout=2, decode_responses=True)
        self._elsewhere: EventStore | None = None if settings.eventstore_type == "redis" else open_store(settings)

    def drain(self, c: Connection, limit: int = 500) -> int:
        """Send the oldest events; gives how many. Redis away: they stay, and zero is given."""
        try:
            with c.transaction():
                taken = outbox.take(c, limit)
                if not taken:
                    return 0
                about = outbox.about(c, {event.instance_id for event in taken if event.instance_id})
                outbox.note_progress(c, taken, lambda instance_id: self._steps(c, about.get(instance_id, {}).get("definition_id")))
                pipeline = self._redis.pipeline(transaction=False)
                recent: list[str] = []
                for event in taken:
                    instance = {**about.get(event.instance_id or "", {}), "progress": event.progress}
                    self._lifecycle(pipeline, event, instance)
                    self._bus(pipeline, event, instance)
                    said = outlets.told(f"evt_{event.id}", event.type, event.data, event.at, instance, event.instance_id)
                    text = self._small(said, event)
                    recent.append(text)
                    pipeline.publish(f"{self.prefix}{outlets.CHANNEL}{said['type']}", text)
                pipeline.lpush(self.prefix + outlets.RECENT, *recent)
                pipeline.ltrim(self.prefix + outlets.RECENT, 0, outlets.RECENT_LENGTH - 1)
                self._deliveries(c, taken, about)
                # If the process dies between this and the commit, the same ids are sent again.
                pipeline.execute()
                if moved := sorted({str(event.data["name"]) for event in taken if event.type == "resource.moved"}):
                    state.tell(self._redis, c, moved, self.prefix)
        except (redis.RedisError, StoreAway) as error:
            logger.warning("events stay in the outbox, Redis is away: %s", error)
            return 0
        metrics.relayed(len(taken))
        return len(taken)

    def _lifecycle(self, pipeline: Any, event: Told, instance: dict[str, Any]) -> None:
        entry: dict[Any, Any] = fields(event.id, event.type, event.instance_id, event.data, event.at, instance)
        text = spelled(entry["data"])
        if small.is_large(text, self.limit):
            body = {key: small.event(value) if key == "event_data" else value for key, value in entry["data"].items()}
            text = spelled(small.fitted(body, self.limit, small.of_instance(event.instance_id), spelled))
        entry["data"] = text
        pipeline.xadd(self.stream, entry, maxlen=self.length, approximate=True)
        if instance.get("is_document") and event.instance_id:
            for cloud in cloud_events(entry["id"], event.type, event.data, event.at, instance, event.instance_id):
                told = spelled(cloud["data"])
                if small.is_large(told, self.limit):
                    told = spelled(small.fitted(cloud["data"], self.limit, small.of_instance(event.instance_id), spelled))
                said: dict[Any, Any] = {**cloud, "data": told}
                pipeline.xadd(self.cloud_stream, said, maxlen=self.length, approximate=True)

    def _bus(self, pipeline: Any, event: Told, instance: dict[str, Any]) -> None:
        """To the streams from which the bridge reads, too: there the events are known, by their ids."""
        if (
            event.type in ("event.received", "event.emitted")
            and self.settings.bus_stream
            and event.data.get("tenant", "default") == "default"
        ):
            envelope = event.data["event"]
            self._append(pipeline, self.settings.bus_stream, envelope, small.event)
        if event.type == "timer.scheduled":
            pipeline.zadd(self.prefix + outlets.TIMERS, {f"{event.instance_id}:{event.data['position']}": event.data["until"]})
        elif event.type == "timer.fired":
            pipeline.zrem(self.prefix + outlets.TIMERS, f"{event.instance_id}:{event.data['position']}")
        if self.settings.flunq_events:
            for stream, entry in outlets.flunq(f"evt_{event.id}", event.type, event.data, event.at, instance, event.instance_id):
                self._append(pipeline, self.prefix + stream, entry, lambda one: outlets.small_flunq(one, self.limit, spelled))

    def _small(self, said: dict[str, Any], event: Told) -> str:
        """For Pub/Sub and the newest thousand."""
        text = spelled(said)
        if not small.is_large(text, self.limit):
            return text
        if event.type in ("event.received", "event.emitted"):
            return spelled({**said, "payload": None, "dataref": small.of_event(event.data["event"])})
        return spelled({**said, "payload": small.fitted(said["payload"], self.limit, small.of_instance(event.instance_id), spelled)})

    def _append(self, pipeline: Any, stream: str, entry: dict[str, Any], smaller: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        flat = _flat(entry)
        if small.is_large(flat.get("data", ""), self.limit):
            flat = _flat(smaller(entry))
        if self._elsewhere is not None:
            self._elsewhere.publish(stream, flat, self.settings.source_stream_length)
        else:
            pipeline.xadd(stream, flat, maxlen=self.settings.source_stream_length, approximate=True)

    def _deliveries(self, c: Connection, taken: list[Told], about: dict[str, dict[str, Any]]) -> None:
        hooks = webhooks.enabled(c)
        if not hooks:
            return
        wanted: list[tuple[int, dict[str, Any]]] = []
        for event in taken:
            instance = about.get(event.instance_id or "", {})
            cloud = outlets.cloud_event(f"evt_{event.id}", event.type, event.data, event.at, instance, event.instance_id)
            tenant = instance.get("tenant") or event.data.get("tenant") or "default"
            wanted += [
                (hook.id, cloud)
                for hook in hooks
                if hook.tenant in (tenant, "default") and any(fnmatchcase(cloud["type"], pattern) for pattern in hook.types)
            ]
        webhooks.queue(c, wanted)

    def _steps(self, c: Connection, definition_id: int | None) -> int:
        """How many steps a definition has. Definitions never change."""
        if definition_id is None:
            return 0
        if definition_id not in self._counted:
            self._counted[definition_id] = outbox.count_steps(c, definition_id)
        return self._counted[definition_id]


def _flat(entry: dict[str, Any]) -> dict[Any, Any]:
    return {key: value if isinstance(value, str) and key != "data" else spelled(value) for key, value in entry.items() if value is not None}
