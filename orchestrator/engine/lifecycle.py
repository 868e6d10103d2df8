"""The life cycle's moves, each one transaction: lock the instance, check the move, change, audit, tell; then publish."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Sequence
from typing import Any

from orchestrator.definition import configured, kept
from orchestrator.definition.documents import inline
from orchestrator.definition.parsing import json_faults, scalar_fault, shown
from orchestrator.definition.schemas import violations, with_own_defaults
from orchestrator.definition.tree import Definition
from orchestrator.definition.versions import is_version
from orchestrator.engine import admission as admissions
from orchestrator.engine import dependencies, reopening
from orchestrator.engine.configuring import Configurations
from orchestrator.engine.forking import fork_history
from orchestrator.engine.options import Starting, options_of
from orchestrator.engine.runtime import Runtime, priority_number, queue_of
from orchestrator.engine.slots import scopes_of
from orchestrator.engine.undoing import undo_tree
from orchestrator.errors import Disabled, Fault, IllegalMove, Invalid, MissingCode, NotFound, Refused
from orchestrator.ids import WORKFLOW, InstanceId, Scope, is_instance_id, new_instance_id
from orchestrator.plan import remaining
from orchestrator.plan.canvas import Address
from orchestrator.plan.needs import StartChild
from orchestrator.plan.remaining import Sequence as Planned
from orchestrator.state import State, check_move
from orchestrator.store import (
    admission,
    branches,
    definitions,
    fanouts,
    instances,
    outbox,
    retention,
    security,
    timers,
    workers,
)
from orchestrator.store.branches import Held, Published
from orchestrator.store.connection import Connection, dumps, sized
from orchestrator.store.instances import Locked, New

logger = logging.getLogger("orchestrator.start")

# Definitions found by name stay found for a moment: a burst of starts asks once.
_FOUND_FOR_S = 1.0


def find_definition(runtime: Runtime, workflow: str, version: str | None, tenant: str = "default") -> definitions.Stored:
    """By name, by `namespace.name`, by `name@version`; registered in the database or found in code."""
    if not isinstance(workflow, str) or scalar_fault(workflow):
        raise Invalid([Fault("workflow", f"Expected the name of a workflow, got {shown(workflow)}.")], "start")
    name, _, suffix = workflow.partition("@")
    version = version or suffix or None
    if version is not None and version != "latest" and not (isinstance(version, str) and is_version(version)):
        raise Invalid([Fault("version", f"Invalid version {shown(version)}: expected 1, 1.2 or 1.2.3.")], "start")
    key = (name, version, tenant)
    held = runtime.found.get(key)
    if held is not None and held[0] > time.monotonic():
        return held[1]
    stored = runtime.database.patiently(lambda c: definitions.find(c, name, version, tenant=tenant))
    if stored is None and "." in name:
        namespace, _, bare = name.rpartition(".")
        stored = runtime.database.patiently(lambda c: definitions.find(c, bare, version, namespace, tenant))
    if stored is None and name.startswith(WORKFLOW):
        return find_definition(runtime, workflow.removeprefix(WORKFLOW), version, tenant)
    if stored is None:
        raise NotFound(
            "workflow", workflow if version is None else f"{name}@{version}", "`orchestrator workflows` lists what is registered"
        )
    runtime.found[key] = (time.monotonic() + _FOUND_FOR_S, stored)
    return stored


def forget_found(runtime: Runtime) -> None:
    runtime.found.clear()


def definition_of(runtime: Runtime, stored: definitions.Stored) -> Definition:
    """The tree, parsed once per id."""
    held = runtime._definitions.get(stored.id)  # the runtime's own cache, filled from what was just read
    if held is None:
        held = kept.definition_of(stored.tree)
        runtime._definitions[stored.id] = held
    return held


def configuration_of(runtime: Runtime, stored: definitions.Stored, tenant: str) -> dict[str, Any]:
    """What operators set of this workflow; nothing, mostly."""
    return Configurations(runtime).in_force(stored.namespace, stored.name, stored.version, tenant)


def under(runtime: Runtime, stored: definitions.Stored, config: dict[str, Any]) -> tuple[Definition, int]:
    """A definition under a configuration, and the id under which instances keep it."""
    definition = definition_of(runtime, stored)
    changed = configured.applied(definition, config)
    if changed == definition:
        return definition, stored.id
    key = (stored.id, dumps({name: value for name, value in config.items() if name != "properties"}))
    held = runtime.variants.get(key)
    if held is None:
        held = runtime.variants[key] = runtime.database.patiently(lambda c: definitions.variant(c, changed))
    return changed, held


def _drawn(runtime: Runtime, workflow: str, version: str, tenant: str) -> definitions.Stored:
    try:
        return find_definition(runtime, workflow, version, tenant)
    except NotFound as error:
        hint = f"it is one of the variants of the configuration of {workflow}; change these, or register it"
        raise NotFound(error.what, error.name, hint) from None


def prepare(
    runtime: Runtime, workflow: str, version: str | None, input: Any, options: Starting
) -> tuple[New, Planned, Address, Definition]:
    """Everything a start needs, decided before its transaction."""
    tenant = options.tenant
    stored = find_definition(runtime, workflow, version, tenant)
    instance_id = InstanceId(options.instance_id) if options.instance_id else new_instance_id()
    definition, definition_id = definition_of(runtime, stored), stored.id
    logger.debug("%s: getConfiguration", workflow)
    config = configuration_of(runtime, stored, tenant)
    if config:
        if config.get("enabled") is False:
            raise Disabled(stored.name)
        if version is None and "@" not in workflow:
            luck = int(hashlib.sha256((options.idempotency_key or instance_id).encode()).hexdigest()[:8], 16) / 2**32
            if (drawn := configured.chosen(config, luck)) is not None:
                stored = _drawn(runtime, workflow, drawn, tenant)
                config = configuration_of(runtime, stored, tenant)
                if config.get("enabled") is False:
                    raise Disabled(f"{stored.name}@{stored.version}")
        definition, definition_id = under(runtime, stored, config)
        input = configured.with_properties(config, input)
    if faults := list(json_faults(input)):
        raise Invalid(faults, "input")
    schema = definition.do.around.input_schema
    input = with_own_defaults(definition, input)
    if schema is not None and (wrong := violations(schema, input)):
        raise Invalid([Fault("input", text) for text in wrong], "input")
    metadata = {**(definition.metadata or {}), **(options.metadata or {})}
    priority = priority_number(definition.priority) if options.priority is None else options.priority
    labels = {**metadata.get("labels", {}), **(options.labels or {})}
    limit = runtime.settings.payload_limit_bytes
    scope = Scope(tenant, definition.namespace, definition.name)
    new = New(
        id=instance_id,
        definition_id=definition_id,
        workflow=definition.name,
        version=definition.version,
        namespace=definition.namespace,
        tenant=tenant,
        input=sized("input", input, limit),
        labels=sized("labels", labels, 65536) if labels else "{}",
        metadata=sized("metadata", metadata, limit) if metadata else None,
        priority=priority,
        queue=queue_of(priority),
        idempotency_key=options.idempotency_key,
        parent_id=options.parent_id,
        parent_branch=options.parent_branch,
        forked_from=options.forked_from,
        trace_id=options.trace_id,
        source=options.source,
        actor=options.actor,
        step_events=definition.step_events,
        timeout_s=_time_of(definition),
        slots=[*([(options.order, 1)] if options.order else []), *options.slots, *_slots(runtime, scope, definition, input)],
        dependencies=dependencies.resolved(runtime, scope, [*definition.dependencies, *options.dependencies]),
    )
    address = Address(new.id, "", 1, new.queue, definition.name)
    return new, remaining.of_task(definition.do), address, definition


def _time_of(definition: Definition) -> float | None:
    """How long the instance may take; None where it tells only when it begins, from its input."""
    around = definition.do.around
    return float(around.timeout_s) if isinstance(around.timeout_s, int | float) and around.condition is None else None


def _slots(runtime: Runtime, scope: Scope, definition: Definition, input: Any) -> list[tuple[str, int]]:
    """The limited scopes an instance must get into, from the widest to the narrowest."""
    most = runtime.settings.max_concurrent_instances
    return [*([("engine", most)] if most else []), *scopes_of(definition, input, scope.tenant)]


def prepare_child(runtime: Runtime, held: Held, need: StartChild) -> tuple[New, Planned, Address]:
    options = options_of(
        parent_id=held.instance_id,
        parent_branch=held.id if need.awaited else None,
        priority=held.priority,
        tenant=held.tenant,
        trace_id=held.trace_id,
        source="workflow",
        actor=f"instance:{held.instance_id}",
    )
    workflow, version = need.workflow, need.version
    if need.document is not None:
        definition = inline(need.document())
        runtime.database.patiently(lambda c: definitions.register(c, definition))
        workflow, version = f"{definition.namespace}.{definition.name}", definition.version
    new, plan, address, _ = prepare(runtime, workflow, version, need.compute(), options)
    return new, plan, address


def record_start(c: Connection, runtime: Runtime, new: New, definition: Definition) -> tuple[bool, list[Published]]:
    """Create the instance. Gives whether it is new, and what else is to be published when it had to ask for admission."""
    logger.debug("%s: createInstance %s", new.workflow, new.id)
    if not new.is_blocked:
        return instances.create(c, new) is not None, []
    with c.transaction():
        branch = instances.create(c, new)
        if branch is None:
            return False, []
        admission.ask(c, new.id, new.slots, new.dependencies)
        if new.dependencies:
            patience = definition.dependency_timeout_s or runtime.settings.dependency_timeout_s
            timers.set_patience(c, branch, patience)
            admission.meet(c)
    return True, admissions.settle(c, [new.id], [])


# ── moves ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def locked(c: Connection, instance_id: str) -> Locked:
    found = instances.lock(c, instance_id) if is_instance_id(instance_id) else None
    if found is None:
        raise NotFound("instance", instance_id)
    return found


def pause(runtime: Runtime, instance_id: str, actor: str, source: str) -> None:
    def act(c: Connection) -> None:
        with c.transaction():
            instance = locked(c, instance_id)
            to = check_move("pause", instance.state)
            instances.move(c, instance_id, to)
            instances.audit(c, actor, "pause", source, instance, to)
            outbox.tell(c, "workflow.paused", instance_id, {})

    runtime.database.patiently(act)


def resume(runtime: Runtime, instance_id: str, actor: str, source: str) -> None:
    def act(c: Connection) -> tuple[list[Published], bool]:
        with c.transaction():
            instance = locked(c, instance_id)
            to = check_move("resume", instance.state)
            # One that was paused before it began is still to be begun, with whatever it waits for.
            has_begun = instances.has_begun(c, instance_id)
            instances.move(c, instance_id, to if has_begun else "PENDING")
            instances.audit(c, actor, "resume", source, instance, to if has_begun else "PENDING")
            outbox.tell(c, "workflow.resumed", instance_id, {})
            timers.go_on(c, instance_id)
            return instances.requeue_all(c, instance_id), has_begun

    published, has_begun = runtime.database.patiently(act)
    if not has_begun:
        # What it waited for may have come during the pause, when it was in nobody's way.
        published += runtime.database.patiently(lambda c: admissions.settle(c, [instance_id], []))
    runtime.publisher.branches(published)


def cancel(runtime: Runtime, instance_id: str, actor: str, source: str, reason: str | None, compensate: bool | None) -> None:
    """Close everything at a person's wish."""
    error = {"code": "cancelled", "message": reason or "Workflow was cancelled"}
    stop(runtime, instance_id, State.CANCELLED, error, actor=actor, source=source, compensate=compensate)


def stop(
    runtime: Runtime,
    instance_id: str,
    ending: State,
    error: dict[str, Any],
    *,
    actor: str,
    source: str,
    compensate: bool | None = None,
) -> None:
    """End an instance from outside, CANCELLED or FAILED, wherever it is; a saga may go back first. Steps at work are interrupted,
    and children follow."""
    verb, event = ("cancel", "workflow.cancelled") if ending == State.CANCELLED else ("fail", "workflow.failed")

    def act(c: Connection) -> tuple[fanouts.Cut, list[Published], Locked]:
        with c.transaction():
            instance = locked(c, instance_id)
            to = check_move(verb, instance.state)
            if instance.phase == "compensating":
                # Half undone would be worse than undone or done; it ends by itself.
                raise IllegalMove(verb, "compensating", ["pause", "wait for its end"])
            definition = runtime.definition(instance.definition_id)
            by_default = definition.compensate_on_cancel if ending == State.CANCELLED else True
            goes_back = by_default if compensate is None else compensate
            cut = fanouts.stop_instance(c, instance_id, gently=False)
            timers.drop_of_instance(c, instance_id)
            instances.audit(c, actor, verb, source, instance, to, {"reason": error["message"]})
            published: list[Published] = []
            kept = sized("reason", error, 65536)
            if goes_back and instance.state != "PENDING" and definition.saga:
                instances.move(c, instance_id, "RUNNING", phase="compensating", ending=ending, error=kept)
                outbox.tell(c, "workflow.compensating", instance_id, {"error": error})
                published = instances.open_undo(c, instance_id, queue_of(instance.priority))
            else:
                instances.move(c, instance_id, to, outcome=to, ended_at="now", error=kept)
                outbox.tell(c, event, instance_id, {"error": error, "reason": error["message"]})
                published += _release(c, instance)
                if ending == State.FAILED:
                    instances.dead_letter(c, instance_id, "", error["code"], error)
            cut.children = instances.children_of(c, instance_id)
            return cut, published, instance

    cut, published, instance = runtime.database.patiently(act)
    runtime.publisher.branches(published)
    follow(runtime, cut, f"parent {instance_id} was cancelled", actor=actor, source=source, compensate=compensate)
    admissions.after_end(runtime, instance.workflow, instance_id, _scopes_of(runtime, instance_id))


def follow(
    runtime: Runtime, cut: fanouts.Cut, reason: str, *, actor: str = "engine", source: str = "engine", compensate: bool | None = None
) -> None:
    """After the commit of a stop: interrupt the steps that are at work on what was closed, and cancel what was awaited."""
    if cut.owners:
        runtime.database.patiently(lambda c: workers.ask_to_interrupt(c, cut.owners))
    for child in cut.children:
        # Each in its own transaction: two instances' rows are never locked together.
        with contextlib.suppress(IllegalMove, NotFound):
            cancel(runtime, child, actor, source, reason, compensate)


def _release(c: Connection, instance: Locked) -> list[Published]:
    """The parent that waits for it goes on."""
    return instances.wake_branch(c, instance.parent_branch) if instance.parent_branch else []


def _scopes_of(runtime: Runtime, instance_id: str) -> list[str]:
    return runtime.database.patiently(lambda c: admission.give_back(c, instance_id))


def retry(runtime: Runtime, instance_id: str, actor: str, source: str) -> None:
    """Go on at the failed step: what failed is taken back by a fact, and the branches it closed are opened again."""

    def act(c: Connection) -> list[Published]:
        with c.transaction():
            instance = locked(c, instance_id)
            to = check_move("retry", instance.state)
            if instance.phase == "compensating" and (instance.compensation or {}).get("result") != "none":
                raise IllegalMove("retry", "FAILED (and compensated)", ["rerun from a step", "start a new instance"])
            most = runtime.settings.workflow_max_retries
            if most and instances.times_audited(c, instance_id, "retry") >= most:
                raise Refused(f"the instance was retried {most} times, and WORKFLOW_MAX_RETRIES allows no more; rerun it from a step")
            shift = instance.ended_for_s or 0.0
            security.keep_moves(c, [instance_id], "fail")
            branches.drop_undo(c, instance_id)
            published = reopening.reopen(c, instance_id, shift)
            # One that ended before it began is still to be begun.
            to = to if instances.has_begun(c, instance_id) else State.PENDING
            instances.move(c, instance_id, to, phase="forward", ending=None, outcome=None, error=None, ended_at=None, compensation=None)
            instances.resolve_dead_letters(c, instance_id)
            instances.audit(c, actor, "retry", source, instance, to)
            outbox.tell(c, "workflow.retried", instance_id, {})
            return published

    runtime.publisher.branches(runtime.database.patiently(act))


def rollback(runtime: Runtime, instance_id: str, actor: str, source: str) -> None:
    """Compensate an ended instance by hand, saga or not."""

    def act(c: Connection) -> list[Published]:
        with c.transaction():
            instance = locked(c, instance_id)
            to = check_move("rollback", instance.state)
            if (instance.compensation or {}).get("result") == "compensated":
                raise IllegalMove("roll back", f"{instance.state} (and compensated)")
            # What an earlier way back could not undo is tried again; what it did undo is not.
            branches.shelve_undo(c, instance_id)
            definition = runtime.definition(instance.definition_id)
            if not _has_way_back(c, runtime, instance_id, definition):
                nothing = Fault(instance_id, "no completed step has a compensation: there is nothing to roll back")
                raise Invalid([nothing], "roll back")
            ending = "FAILED" if instance.state == "FAILED" else "CANCELLED"
            security.keep_moves(c, [instance_id], "complete", "fail", "cancel")
            instances.move(c, instance_id, to, phase="compensating", ending=ending, outcome=None, ended_at=None)
            instances.audit(c, actor, "rollback", source, instance, to)
            outbox.tell(c, "workflow.compensating", instance_id, {"by": actor})
            return instances.open_undo(c, instance_id, queue_of(instance.priority))

    runtime.publisher.branches(runtime.database.patiently(act))


def _has_way_back(c: Connection, runtime: Runtime, instance_id: str, definition: Definition) -> bool:
    try:
        return undo_tree(c, instance_id, definition, runtime.registry) is not None
    except MissingCode:
        return True  # a worker that has the steps will see


def rerun(runtime: Runtime, instance_id: str, position: str, actor: str, source: str, input: Any = None) -> str:
    """A new instance with the history up to a step, and on from there."""
    new_id = new_instance_id()

    def act(c: Connection) -> tuple[str, list[Published]]:
        with c.transaction():
            instance = locked(c, instance_id)
            published = fork_history(c, runtime, instance, new_id, position, actor, source, input)
            instances.audit(c, actor, "rerun", source, instance, instance.state, {"from": position, "as": new_id})
            return new_id, published

    _, published = runtime.database.patiently(act)
    runtime.publisher.branches(published)
    return new_id


def cleanup(c: Connection, older_than_s: float, limit: int, *, archive: bool, only: Sequence[str] | None = None) -> list[str]:
    """Ended instances past their retention: shown as CLEANING_UP, stripped, then kept as a record or deleted."""
    ids = retention.claim_old(c, older_than_s, limit, only)
    if ids:
        retention.strip(c, ids)
        retention.archive(c, ids) if archive else retention.delete(c, ids)
        for instance_id in ids:
            outbox.tell(c, "workflow.cleaned_up", instance_id, {})
    retention.note_cleanup(c, len(ids))
    return ids
