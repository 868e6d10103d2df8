"""Out: from the outbox to whoever listens. An event leaves the outbox only after Redis took it. One that cannot be told, be it of a
type that this code does not know, or for a key of Redis that is no stream, is put aside there and tried again every minute.

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
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import redis

from orchestrator import trimming
from orchestrator.config.settings import Settings
from orchestrator.definition.parsing import printable
from orchestrator.errors import text_of
from orchestrator.store import findings, outbox, webhooks
from orchestrator.store.connection import Connection, spelled
from orchestrator.store.outbox import Told
from orchestrator.store.webhooks import Webhook
from orchestrator.stream import outlets, small, state
from orchestrator.stream.stores import EventStore, StoreAway, open_store
from orchestrator.telemetry import metrics
from orchestrator.telemetry.events import fields
from orchestrator.telemetry.lifecycle import cloud_events

logger = logging.getLogger("orchestrator.relay")

FINDING = "outbox"


class Untellable(Exception):
    def __init__(self, events: list[tuple[Told, str]]) -> None:
        super().__init__(f"{len(events)} events cannot be told")
        self.events = events


def refusals(pipeline: Any) -> dict[int, str]:
    """Send what is in the pipeline; the numbers of the commands whose key is of another type, with what was said. All else is raised."""
    keys = [arguments[1] if len(arguments) > 1 else "" for arguments, _ in pipeline.command_stack]
    wrong: dict[int, str] = {}
    for at, answer in enumerate(pipeline.execute(raise_on_error=False)):
        if isinstance(answer, redis.ResponseError) and str(answer).startswith("WRONGTYPE"):
            wrong[at] = f"the key {keys[at]} of Redis is of another type; rename or delete it"
        elif isinstance(answer, Exception):
            raise answer
    return wrong


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
        self._put_aside: set[int] = set()
        self._appended: Counter[str] = Counter()
        """Entries of streams from which others read, which are trimmed when they were read."""
        self._elsewhere: EventStore | None = None if settings.eventstore_type == "redis" else open_store(settings)

    def drain(self, c: Connection, limit: int = 500) -> int:
        """Send the oldest events; gives how many. Redis away: they stay, and zero is given."""
        while True:
            try:
                return self._send(c, limit)
            except Untellable as error:
                with c.transaction():
                    outbox.put_aside(c, {event.id: reason for event, reason in error.events})
                    self._note(c, error.events)

    def take_up(self, c: Connection) -> int:
        """What was put aside is tried again; gives how many."""
        with c.transaction():
            findings.clear_others(c, FINDING, [])
            return outbox.take_up(c)

    def _note(self, c: Connection, refused: Sequence[tuple[Told, str]]) -> None:
        for event, reason in refused:
            say = logger.debug if event.id in self._put_aside else logger.error
            say("event %d (%s) of the outbox cannot be told, and is put aside: %s", event.id, printable(event.type), reason)
            self._put_aside.add(event.id)
        metrics.untold(len(refused))
        for type, (count, reason) in outbox.aside(c).items():
            findings.note(c, FINDING, type, f"{count} events of this type cannot be told: {reason}")

    def _send(self, c: Connection, limit: int) -> int:
        try:
            with c.transaction():
                taken = outbox.take(c, limit)
                if not taken:
                    return 0
                about = outbox.about(c, {event.instance_id for event in taken if event.instance_id})
                outbox.note_progress(c, taken, lambda instance_id: self._steps(c, about.get(instance_id, {}).get("definition_id")))
                hooks = webhooks.enabled(c)
                pipeline = self._redis.pipeline(transaction=False)
                recent: list[str] = []
                moved: set[str] = set()
                deliveries: list[tuple[int, dict[str, Any]]] = []
                untellable: list[tuple[Told, str]] = []
                self._appended.clear()
                spans: list[tuple[Told, int, int]] = []
                for event in taken:
                    instance = {**about.get(event.instance_id or "", {}), "progress": event.progress}
                    began = len(pipeline)
                    try:
                        recent.append(self._tell(pipeline, event, instance))
                        deliveries += self._deliveries(hooks, event, instance)
                        if event.type == "resource.moved":
                            moved.add(str(event.data["name"]))
                    except (redis.RedisError, StoreAway):
                        raise
                    except Exception as error:  # noqa: BLE001  # whatever the row holds
                        untellable.append((event, f"{type(error).__name__}: {text_of(error)[:500]}"))
                    spans.append((event, began, len(pipeline)))
                if untellable:
                    raise Untellable(untellable)
                pipeline.lpush(self.prefix + outlets.RECENT, *recent)
                pipeline.ltrim(self.prefix + outlets.RECENT, 0, outlets.RECENT_LENGTH - 1)
                webhooks.queue(c, deliveries)
                # If the process dies between this and the commit, the same ids are sent again.
                if wrong := refusals(pipeline):
                    refused = [
                        (event, next(wrong[at] for at in wrong if began <= at < ended))
                        for event, began, ended in spans
                        if any(began <= at < ended for at in wrong)
                    ]
                    outbox.put_back(c, refused)
                    self._note(c, refused)
                for stream, number in self._appended.items():
                    trimming.appended(self._redis, stream, self.settings.source_stream_length, number)
                if moved:
                    state.tell(self._redis, c, sorted(moved), self.prefix)
        except (redis.RedisError, StoreAway) as error:
            logger.warning("events stay in the outbox, Redis is away: %s", error)
            return 0
        metrics.relayed(len(taken))
        return len(taken)

    def _tell(self, pipeline: Any, event: Told, instance: dict[str, Any]) -> str:
        """Gives what subscribers are told."""
        self._lifecycle(pipeline, event, instance)
        self._bus(pipeline, event, instance)
        said = outlets.told(f"evt_{event.id}", event.type, event.data, event.at, instance, event.instance_id)
        text = self._small(said, event)
        pipeline.publish(f"{self.prefix}{outlets.CHANNEL}{said['type']}", text)
        return text

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
            pipeline.xadd(stream, flat)
            self._appended[stream] += 1

    @staticmethod
    def _deliveries(hooks: Sequence[Webhook], event: Told, instance: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
        if not hooks:
            return []
        cloud = outlets.cloud_event(f"evt_{event.id}", event.type, event.data, event.at, instance, event.instance_id)
        tenant = instance.get("tenant") or event.data.get("tenant") or "default"
        return [
            (hook.id, cloud)
            for hook in hooks
            if hook.tenant in (tenant, "default") and any(fnmatchcase(cloud["type"], pattern) for pattern in hook.types)
        ]

    def _steps(self, c: Connection, definition_id: int | None) -> int:
        """How many steps a definition has. Definitions never change."""
        if definition_id is None:
            return 0
        if definition_id not in self._counted:
            self._counted[definition_id] = outbox.count_steps(c, definition_id)
        return self._counted[definition_id]


def _flat(entry: dict[str, Any]) -> dict[Any, Any]:
    return {key: value if isinstance(value, str) and key != "data" else spelled(value) for key, value in entry.items() if value is not None}
