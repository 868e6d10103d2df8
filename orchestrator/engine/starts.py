"""What triggers start: which want an event, what exactly they would begin, and its beginning in a transaction."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.definition.expressions import evaluate
from orchestrator.definition.tree import Definition
from orchestrator.definition.triggers import Trigger, read_triggers
from orchestrator.engine import lifecycle
from orchestrator.engine.options import options_of
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Invalid
from orchestrator.ids import key_of
from orchestrator.plan.canvas import Address
from orchestrator.plan.remaining import Sequence as Planned
from orchestrator.store import admission, events, instances, resources, triggers
from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection
from orchestrator.store.events import Arrival, Effect
from orchestrator.store.instances import New

logger = logging.getLogger("orchestrator.intake")

BOOK_FOR_S = 2.0

# ── the book of triggers ────────────────────────────────────────────────────────────────────────────────────────────


def triggers_for(runtime: Runtime, tenant: str) -> list[Trigger]:
    """Those of the tenant and those for everybody; read again every two seconds."""
    until, book = runtime.book
    if until < time.monotonic():
        book = {}
        for stored in runtime.database.patiently(triggers.all_triggers):
            if stored.enabled:
                try:
                    book.setdefault(stored.tenant, []).extend(t for t in read_triggers(stored.spec, is_kept=True) if t.enabled)
                except Invalid as error:
                    logger.error("trigger '%s' is left out: %s", stored.name, error)
        runtime.book = (time.monotonic() + BOOK_FOR_S, book)
    own = book.get(tenant, []) if tenant != "default" else []
    return [*own, *book.get("default", [])]


def forget_book(runtime: Runtime) -> None:
    """What was just changed holds at once in this process, and in others within two seconds."""
    runtime.book = (0.0, {})


# ── one start ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Start:
    """A start with everything decided; a schedule's has no trigger."""

    trigger: Trigger | None
    new: New
    plan: Planned
    address: Address
    definition: Definition
    resource: tuple[str, str] | None = None
    timeout_s: float | None = None
    """After which it is ended and its event tried again, if that waits for it."""


def start_of(
    runtime: Runtime, trigger: Trigger, envelope: dict[str, Any], tenant: str, instance_id: str | None, input: Any = None
) -> Start:
    """Raises what is wrong with it: no such workflow, an input that its schema refuses, a key that is none."""
    order = trigger.order_of(envelope)
    key = trigger.idempotency_of(envelope)
    options = options_of(
        tenant=tenant,
        source="trigger",
        actor=f"trigger:{trigger.name}",
        trace_id=_trace_id(envelope),
        priority=trigger.priority,
        labels=None if trigger.labels is None else evaluate(trigger.labels, envelope, {}),
        metadata={"event": {name: envelope.get(name) for name in ("id", "type", "source", "time") if envelope.get(name)}},
        idempotency_key=None if key is None else f"trigger:{trigger.name}:{key}",
        order=None if order is None else key_of("order", tenant, trigger.scope, order),
        instance_id=trigger.instance_of(envelope, tenant) or instance_id,
    )
    workflow = evaluate(trigger.target, envelope, {})
    if not isinstance(workflow, str) or not workflow:
        raise Invalid([], f"trigger '{trigger.name}' names no workflow for this event, and so")
    given = trigger.input_of(envelope, wrapped=runtime.settings.trigger_input == "event") if input is None else input
    new, plan, address, definition = lifecycle.prepare(runtime, workflow, trigger.version, given, options)
    timeout_s = (trigger.timeout_s or runtime.settings.event_processing_timeout_s or None) if trigger.awaited else None
    return Start(trigger, new, plan, address, definition, trigger.resource_of(envelope), timeout_s)


def _trace_id(envelope: Mapping[str, Any]) -> str:
    given = envelope.get("traceid")
    return given if isinstance(given, str) and 0 < len(given) <= 200 else uuid.uuid4().hex


def create(c: Connection, runtime: Runtime, starts: Sequence[Start]) -> tuple[set[str], list[Published]]:
    """Instances in their order, with their places in the queues of their scopes; gives the ids of those that are new."""
    plain = [start for start in starts if not start.new.dependencies]
    created = instances.create_many(c, [start.new for start in plain]) if plain else set()
    admitted: list[Published] = []
    for start in plain:
        if start.resource is not None and start.new.id in created:
            resources.queue(c, *start.resource, start.new.tenant, start.new.id)
    asked = [(start.new.id, scope, capacity) for start in plain if start.new.id in created for scope, capacity in start.new.slots]
    if asked:
        admission.ask_many(c, asked)
        admitted += admission.admit(c, [scope for _, scope, _ in asked])
    for start in starts:
        if start.new.dependencies:
            is_new, published = lifecycle.record_start(c, runtime, start.new, start.definition)
            admitted += published
            created |= {start.new.id} if is_new else set()
    return created, admitted


def publish(runtime: Runtime, begun: Iterable[Start], admitted: Iterable[Published]) -> None:
    """After the commit: what began, and what else may go on now."""
    runtime.publisher.all([(start.plan, start.address) for start in begun if not start.new.is_blocked], admitted)


def started(c: Connection, number: int, start: Start, is_new: bool, replay: int = 0) -> Effect:
    """A start whose key was used before is the instance that has the key."""
    assert start.trigger is not None
    timeout = {} if start.timeout_s is None else {"timeout_s": start.timeout_s}
    about = {"workflow": start.new.workflow, **timeout, **({} if is_new else {"already": True})}
    found = None if is_new else instances.by_key(c, start.new)
    return Effect(number, start.trigger.name, "start", found[0] if found else start.new.id, about, replay)


def retry_delay_s(runtime: Runtime, failed_attempts: int, stream: str | None) -> float | None:
    """1, 2, 4 … seconds; None: no further attempt. Streams of tenants begin with 0.2."""
    settings = runtime.settings
    if failed_attempts >= max(1, settings.event_retry_attempts):
        return None
    base = settings.event_retry_delay_ms / 1000 or (0.2 if stream and stream.startswith(f"{settings.redis_prefix}tenant:") else 1.0)
    return float(min(base * 2 ** (failed_attempts - 1), 3600.0))


def wake(runtime: Runtime, arrivals: Sequence[Arrival]) -> None:
    """Once per type, however many events of it came."""
    for type, tenant in dict.fromkeys((a.envelope["type"], a.tenant) for a in arrivals if a.envelope["type"] != events.POISON):
        woken = runtime.database.patiently(lambda c, type=type, tenant=tenant: events.wake_listeners(c, type, None, tenant))  # type: ignore[misc]
        runtime.publisher.branches(woken)
