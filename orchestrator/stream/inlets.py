"""Other ways in than streams: Pub/Sub `workflow:*` and the message queue `workflow.trigger`. Threads of the bridge.

Pub/Sub tells every bridge, and none when none is there: an event counts once by its id, and one without an id once
within two seconds. Messages are acknowledged after their start is committed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import uuid
from typing import Any

import redis
from kombu import Consumer, Exchange, Queue
from kombu.exceptions import OperationalError

from orchestrator import nesting
from orchestrator.engine import intake
from orchestrator.engine.messages import SoundConnection
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import OrchestratorError
from orchestrator.store.connection import BROKEN
from orchestrator.store.events import Arrival
from orchestrator.stream.envelopes import source_of
from orchestrator.stream.outlets import CHANNEL, OWN_SOURCES

logger = logging.getLogger("orchestrator.inlets")

ALIKE_FOR_S = 2
ANSWER = "reactory.workflow.started"
LARGEST_BYTES = 2 * 1024 * 1024


class Inlet(threading.Thread):
    """A thread that reads until it is stopped, and waits while what it needs is away."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.runtime = runtime
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        pause = 0.2
        while not self._stopping.is_set():
            try:
                self.read()
                pause = 0.2
            except (redis.RedisError, OperationalError, OSError, *BROKEN) as error:
                logger.warning("%s waits: %s", self.name, str(error).split("\n", 1)[0])
                self._stopping.wait(pause)
                pause = min(pause * 2, 5.0)
            except Exception:
                logger.exception("%s goes on", self.name)
                self._stopping.wait(1.0)
        self.runtime.database.drop()

    def read(self) -> None:
        raise NotImplementedError


class Subscription(Inlet):
    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime, "pub/sub")
        self.prefix = runtime.settings.redis_prefix

    def read(self) -> None:
        client: Any = redis.Redis.from_url(
            self.runtime.settings.redis_url, decode_responses=True, encoding_errors="replace", socket_timeout=10
        )
        with contextlib.closing(client), contextlib.closing(client.pubsub(ignore_subscribe_messages=True)) as told:
            told.psubscribe(f"{self.prefix}{CHANNEL}*")
            while not self._stopping.is_set():
                message = told.get_message(timeout=1.0)
                if message is not None:
                    self._hear(client, str(message["channel"]), str(message["data"]))

    def _hear(self, client: Any, channel: str, text: str) -> None:
        try:
            said = nesting.parse(text) if len(text) <= LARGEST_BYTES else None
        except ValueError:
            said = None
        if not isinstance(said, dict):
            logger.warning("what was published on %s is no event: it must be a JSON object", channel)
            return
        if said.get("source") in OWN_SOURCES:
            return
        digest = hashlib.sha256(f"{channel} {text}".encode()).hexdigest()
        if not said.get("id") and not client.set(f"{self.prefix}workflow:heard:{digest}", "1", nx=True, ex=ALIKE_FOR_S):
            return
        type = str(said.get("type") or said.get("eventType") or channel.removeprefix(self.prefix + CHANNEL))
        envelope = {
            "specversion": "1.0",
            "id": str(said.get("id") or uuid.uuid4().hex),
            "source": str(said.get("source") or source_of(f"redis:{channel}", type, said.get("id"))),
            "type": type,
            **({"time": said["timestamp"]} if isinstance(said.get("timestamp"), str) else {}),
            "data": said.get("payload", said.get("data")),
        }
        intake.take(self.runtime, [Arrival(envelope)])


class TriggerQueue(Inlet):
    """`{workflowId, version, data}` on the queue `workflow.trigger` starts a workflow, whichever broker carries it.

    A message that can never start anything is rejected to the dead-letter queue with its reason, and the sender gets the
    answer event `reactory.workflow.started:<src>`.
    """

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime, "trigger queue")
        self.url = runtime.settings.amqp_url or runtime.settings.broker
        name = runtime.settings.trigger_queue
        self.dead = Queue(f"{name}.dlq", Exchange(f"{name}.dlq", type="direct"), routing_key=f"{name}.dlq")
        self.queue = Queue(name, Exchange(name, type="topic"), routing_key=name)
        self.answers = Exchange("reactory.workflow", type="topic")

    def read(self) -> None:
        with SoundConnection(self.url, connect_timeout=5, transport_options={"visibility_timeout": 3600}) as broker:
            channel = broker.channel()
            self.dead(channel).declare()
            with Consumer(channel, [self.queue], callbacks=[self._take], accept=["json"], prefetch_count=50, on_decode_error=self._garbled):
                while not self._stopping.is_set():
                    with contextlib.suppress(TimeoutError):
                        broker.drain_events(timeout=1.0)

    def _garbled(self, message: Any, error: Exception) -> None:
        self._reject(message, str(message.body)[:4096], f"is no JSON: {error}")

    def _take(self, body: Any, message: Any) -> None:
        if isinstance(body, str):
            with contextlib.suppress(ValueError):
                body = nesting.parse(body)
        if not isinstance(body, dict) or not isinstance(body.get("workflowId"), str) or not body["workflowId"]:
            self._reject(message, body, "names no workflow: `workflowId` is needed")
            return
        version = body.get("version")
        if isinstance(version, int | float) and not isinstance(version, bool):
            version = str(version)  # `version: 1`, as JSON writes it
        if version is not None and not isinstance(version, str):
            self._reject(message, body, f"`version` is {version!r}; a text is needed")
            return
        try:
            instance_id = self._start(body, version, message)
        except OrchestratorError as error:
            self._reject(message, body, str(error))
            return
        message.ack()
        self._answer(message, body, instance_id)

    def _start(self, body: dict[str, Any], version: str | None, message: Any) -> str:
        """A message that is delivered again starts nothing again: it is known by its id. (Redis gives each one; with
        RabbitMQ the sender does, as `message_id` or `correlation_id`: its delivery tags mean nothing beyond a channel.)"""
        known = body.get("id") or message.properties.get("message_id") or message.properties.get("correlation_id")
        if known is None and isinstance(message.delivery_tag, str):
            known = message.delivery_tag
        return WorkflowRunner(self.runtime).start_workflow(
            body["workflowId"],
            version,
            body.get("data"),
            idempotency_key=None if known is None else f"amqp:{known}",
            source="amqp",
            actor=f"amqp:{str(body.get('src') or 'unknown')[:100]}",
        )

    def _answer(self, message: Any, body: dict[str, Any], instance_id: str) -> None:
        about = {"workflowId": body["workflowId"], "instanceId": instance_id, "status": "started"}
        name = f"{ANSWER}:{body['src']}" if body.get("src") else ANSWER
        with contextlib.suppress(OperationalError, OSError):
            producer = message.channel.connection.client.Producer(message.channel)
            producer.publish({"event": name, **about}, exchange=self.answers, routing_key=name, declare=[self.answers], serializer="json")
            if message.properties.get("reply_to"):
                producer.publish(
                    {"event": name, **about},
                    exchange="",
                    routing_key=message.properties["reply_to"],
                    correlation_id=message.properties.get("correlation_id"),
                    serializer="json",
                )

    def _reject(self, message: Any, body: Any, why: str) -> None:
        logger.warning("a message on %s is put aside: it %s", self.queue.name, why)
        producer = message.channel.connection.client.Producer(message.channel)
        producer.publish({"reason": why, "body": body}, exchange=self.dead.exchange, routing_key=self.dead.routing_key, declare=[self.dead])
        message.ack()


def also_read(runtime: Runtime) -> list[Inlet]:
    found: list[Inlet] = [Subscription(runtime)]
    if runtime.settings.trigger_queue:
        found.append(TriggerQueue(runtime))
    return found
