"""Triggers as people handle them: made, changed, switched off, deleted; and events that are replayed or discarded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.definition.triggers import entries_of, read_triggers
from orchestrator.engine import effects, lifecycle, starts
from orchestrator.engine.hooks import FAILING_WEBHOOK, read_webhook
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Invalid, NotFound
from orchestrator.store import events, findings, instances, triggers, webhooks
from orchestrator.store.connection import Connection

# What takes letters out of dead-letter streams; the bridge's side of it, given by the composition.
withdraw: list[Callable[[Runtime, str, str], None]] = []


def put_file(runtime: Runtime, file: str, entries: list[dict[str, Any]]) -> None:
    """The triggers of a file are these and no others; one that somebody changed by hand stays as it is."""

    def act(c: Connection) -> None:
        with c.transaction():
            for entry in entries:
                triggers.put(c, "default", str(entry["name"]), entry, f"file:{file}")
            triggers.forget_files(c, f"file:{file}", [str(entry["name"]) for entry in entries])

    runtime.database.patiently(act)
    starts.forget_book(runtime)


def put(runtime: Runtime, spec: Any, tenant: str, actor: str, source: str) -> list[str]:
    read_triggers(spec)
    entries = entries_of(spec)

    def act(c: Connection) -> None:
        with c.transaction():
            for entry in entries:
                if triggers.put(c, tenant, str(entry["name"]), entry, source):
                    instances.audit(
                        c, actor, "put-trigger", source, None, None, {"trigger": entry["name"], "tenant": tenant, "spec": entry}
                    )

    runtime.database.patiently(act)
    starts.forget_book(runtime)
    return [str(entry["name"]) for entry in entries]


def warnings(runtime: Runtime, spec: Any, tenant: str) -> list[dict[str, str]]:
    """What is allowed, and probably not meant: a workflow that is not there may come later."""
    found = []
    for trigger in read_triggers(spec):
        if trigger.action == "start" and (target := trigger.literal_target) is not None:
            try:
                lifecycle.find_definition(runtime, target, trigger.version, tenant)
            except (NotFound, Invalid) as error:
                found.append({"place": f"{trigger.name}/start", "message": f"each event will fail: {error}"})
    return found


def listing(runtime: Runtime, tenant: str | None) -> list[dict[str, Any]]:
    def ask(c: Connection) -> list[dict[str, Any]]:
        counts = triggers.effects_per_trigger(c)
        return [
            {
                "name": one.name,
                "tenant": one.tenant,
                "enabled": one.enabled,
                "origin": one.origin,
                "changed_at": one.changed_at,
                "effects": counts.get((one.tenant, one.name), 0) + counts.get((one.tenant, f"{one.name}/window"), 0),
                "spec": one.spec,
            }
            for one in triggers.all_triggers(c, tenant)
        ]

    return runtime.database.patiently(ask)


def enable(runtime: Runtime, name: str, enabled: bool, tenant: str, actor: str, source: str) -> None:
    def act(c: Connection) -> None:
        with c.transaction():
            if not triggers.enable(c, tenant, name, enabled):
                raise NotFound("trigger", name, "`orchestrator triggers` lists them")
            instances.audit(
                c, actor, "enable-trigger" if enabled else "disable-trigger", source, None, None, {"trigger": name, "tenant": tenant}
            )

    runtime.database.patiently(act)
    starts.forget_book(runtime)


def delete(runtime: Runtime, name: str, tenant: str, actor: str, source: str) -> None:
    def act(c: Connection) -> None:
        with c.transaction():
            if not triggers.delete(c, tenant, name):
                raise NotFound("trigger", name, "`orchestrator triggers` lists them")
            instances.audit(c, actor, "delete-trigger", source, None, None, {"trigger": name, "tenant": tenant})

    runtime.database.patiently(act)
    starts.forget_book(runtime)


def put_webhook(runtime: Runtime, name: str, url: str, types: Sequence[str], secret: str, tenant: str, actor: str, source: str) -> None:
    hook = read_webhook({"name": name, "url": url, "types": list(types) if isinstance(types, tuple) else types, "secret": secret})

    def act(c: Connection) -> None:
        with c.transaction():
            webhooks.put(c, tenant, hook.name, hook.url, hook.types, hook.secret)
            findings.clear(c, FAILING_WEBHOOK, hook.name, tenant=tenant)
            about = {"webhook": hook.name, "url": hook.url, "types": hook.types, "tenant": tenant}
            instances.audit(c, actor, "put-webhook", source, None, None, about)

    runtime.database.patiently(act)


def send_webhook_again(runtime: Runtime, name: str, tenant: str, actor: str, source: str) -> int:
    def act(c: Connection) -> int:
        with c.transaction():
            instances.audit(c, actor, "send-webhook-again", source, None, None, {"webhook": name, "tenant": tenant})
            return webhooks.send_again(c, tenant, name)

    return runtime.database.patiently(act)


def delete_webhook(runtime: Runtime, name: str, tenant: str, actor: str, source: str) -> None:
    def act(c: Connection) -> None:
        with c.transaction():
            if not webhooks.delete(c, tenant, name):
                raise NotFound("webhook", name, "`orchestrator webhooks` lists them")
            findings.clear(c, FAILING_WEBHOOK, name, tenant=tenant)
            instances.audit(c, actor, "delete-webhook", source, None, None, {"webhook": name, "tenant": tenant})

    runtime.database.patiently(act)


def again(runtime: Runtime, wanted: events.EventFilter, verb: str, actor: str, source: str) -> list[int]:
    """Replay or discard what a filter finds; gives the events' numbers."""
    change = events.replay if verb == "replay" else events.discard

    def act(c: Connection) -> list[tuple[int, str | None, str, str | None]]:
        with c.transaction():
            changed = change(c, wanted)
            if changed:
                instances.audit(c, actor, f"{verb}-events", source, None, None, {"events": [one[0] for one in changed]})
            return changed

    changed = runtime.database.patiently(act)
    for _, stream, event_id, before in changed:
        if stream is not None and (verb == "discard" or before == "dead"):
            for take_out in withdraw:
                with contextlib.suppress(Exception):
                    take_out(runtime, stream, event_id)
    if verb == "replay":
        effects.work_off(runtime, [one[0] for one in changed])
    return [one[0] for one in changed]
