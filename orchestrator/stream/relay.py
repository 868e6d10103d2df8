"""Out: from the outbox to the Redis stream. An event leaves the outbox only after Redis took it."""

from __future__ import annotations

import logging
from typing import Any

import redis

from orchestrator.config.settings import Settings
from orchestrator.store import outbox
from orchestrator.store.connection import Connection, dumps
from orchestrator.telemetry import metrics
from orchestrator.telemetry.events import fields
from orchestrator.telemetry.lifecycle import cloud_events

logger = logging.getLogger("orchestrator.relay")


class Relay:
    def __init__(self, settings: Settings) -> None:
        self.stream = settings.event_stream
        self.cloud_stream = settings.cloudevents_stream
        self.length = settings.event_stream_length
        self._counted: dict[int, int] = {}
        self._redis = redis.Redis.from_url(settings.redis_url, socket_timeout=5, socket_connect_timeout=2, decode_responses=True)

    def drain(self, c: Connection, limit: int = 500) -> int:
        """Send the oldest events; gives how many. Redis away: they stay, and zero is given."""
        try:
            with c.transaction():
                told = outbox.take(c, limit)
                if not told:
                    return 0
                about = outbox.about(c, {event.instance_id for event in told if event.instance_id})
                outbox.note_progress(c, told, lambda instance_id: self._steps(c, about.get(instance_id, {}).get("definition_id")))
                pipeline = self._redis.pipeline(transaction=False)
                for event in told:
                    instance = {**about.get(event.instance_id or "", {}), "progress": event.progress}
                    entry: dict[Any, Any] = fields(event.id, event.type, event.instance_id, event.data, event.at, instance)
                    entry["data"] = dumps(entry["data"])
                    pipeline.xadd(self.stream, entry, maxlen=self.length, approximate=True)
                    if instance.get("is_document") and event.instance_id:
                        for cloud in cloud_events(entry["id"], event.type, event.data, event.at, instance, event.instance_id):
                            said: dict[Any, Any] = {**cloud, "data": dumps(cloud["data"])}
                            pipeline.xadd(self.cloud_stream, said, maxlen=self.length, approximate=True)
                # If the process dies between this and the commit, the same ids are sent again.
                pipeline.execute()
        except redis.RedisError as error:
            logger.warning("events stay in the outbox, Redis is away: %s", error)
            return 0
        metrics.relayed(len(told))
        return len(told)

    def _steps(self, c: Connection, definition_id: int | None) -> int:
        """How many steps a definition has. Definitions never change."""
        if definition_id is None:
            return 0
        if definition_id not in self._counted:
            self._counted[definition_id] = outbox.count_steps(c, definition_id)
        return self._counted[definition_id]
