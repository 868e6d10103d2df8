"""`WorkflowRunner`: the one service over all verbs. API, CLI, bridge, schedules and `celery call` go through it.

Every verb says who asks (`actor`) and through what (`source`); both end up in the audit.
"""

from __future__ import annotations

import functools
import logging
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from orchestrator.definition.approval import name_of, refuse_signal
from orchestrator.definition.tree import Definition
from orchestrator.engine import admission as admissions
from orchestrator.engine import approving, dependencies, intake, lifecycle, limits, redefining, scheduling, triggering, view
from orchestrator.engine.catalog import Catalog, Discovered, LeftOut, discover, discover_schedules, discover_triggers, folders_of, tell
from orchestrator.engine.configuring import Configurations, fingerprint
from orchestrator.engine.options import options_of
from orchestrator.engine.runtime import Runtime
from orchestrator.engine.timetable import Timetable
from orchestrator.engine.waiting import SKIPPED
from orchestrator.errors import Duplicate, Fault, IllegalMove, Invalid, NotFound, OrchestratorError
from orchestrator.ids import EXECUTION, RUN, Scope, is_instance_id
from orchestrator.state import TERMINAL, State, check_move
from orchestrator.store import (
    admission,
    branches,
    definitions,
    events,
    instances,
    queries,
    retention,
    schedules,
    timers,
    usage,
    webhooks,
)
from orchestrator.store.connection import Connection, sized
from orchestrator.store.events import Arrival, EventFilter
from orchestrator.store.queries import Filter
from orchestrator.telemetry import tracing

SIGNAL_SOURCE = "signal"
BUILTIN = "orchestrator.builtin"
BULK_PAGE = 500


logger = logging.getLogger("orchestrator.runner")


class WorkflowRunner:
    """All verbs over one runtime. `instance()` is the process's own; tests may make their own."""

    _own: WorkflowRunner | None = None
    _lock = threading.Lock()

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.database = runtime.database
        self._initialized = False

    @classmethod
    def instance(cls) -> WorkflowRunner:
        with cls._lock:
            if cls._own is None:
                from orchestrator.app import runtime

                cls._own = cls(runtime())
                cls._own.initialize()
            return cls._own

    def initialize(self) -> None:
        """Discover the workflows and register those the database does not know. A second call does nothing.

        What cannot be used is left out and told, with its place and the reason; everything else is there all the same.
        """
        if self._initialized:
            return
        self._initialized = True
        catalog = discover(self.runtime.settings.workflows)
        declared = redefining.versions_of(found.definition for found in catalog.workflows)
        for found in catalog.workflows:
            self._register_found(catalog, found, declared[found.definition.namespace, found.definition.name])
        self._read_triggers(catalog)
        self.configs.load_files(forget=False)
        self.load_schedules()
        self.runtime.left_out[:] = catalog.left_out
        tell(catalog.left_out)

    def _register_found(self, catalog: Catalog, found: Discovered, declared: Collection[str]) -> None:
        definition = found.definition
        try:
            self.register_workflow(definition, found.source, declared=declared)
        except OrchestratorError as error:
            catalog.leave_out(LeftOut("workflow", definition.ref, str(error), found.file, workflow=definition.name))

    def _read_triggers(self, catalog: Catalog) -> None:
        files = discover_triggers((BUILTIN, *self.runtime.settings.workflows))
        for file, reason in files.faulty.items():
            catalog.leave_out(LeftOut("triggers", file, reason, file))
        for file, entries in files.read.items():
            try:
                triggering.put_file(self.runtime, file, entries)
            except OrchestratorError as error:
                catalog.leave_out(LeftOut("triggers", file, str(error), file))

    @property
    def left_out(self) -> list[LeftOut]:
        """What of the workflows' packages cannot be used in this process, and why."""
        return self.runtime.left_out

    # ── definitions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def register_workflow(
        self, definition: Definition, source: str | None = None, *, tenant: str = "default", declared: Collection[str] | None = None
    ) -> int:
        """Make a definition startable, without a restart of anything: for everybody, or for one tenant.

        Faults and version clashes are raised; with DEV_MODE, what changed is registered under the next version instead.
        """
        return self.put_workflow(definition, source, tenant=tenant, declared=declared)[0]

    def put_workflow(
        self, definition: Definition, source: str | None = None, *, tenant: str = "default", declared: Collection[str] | None = None
    ) -> tuple[int, bool]:
        """The same; gives whether something changed, too. It does not when the definition is registered already as it is."""
        if self.runtime.settings.dev_mode:
            return redefining.register_newest(self.database, lambda one: self._register(one, source, tenant), definition, tenant, declared)
        return self._register(definition, source, tenant)

    def _register(self, definition: Definition, source: str | None, tenant: str) -> tuple[int, bool]:
        scheduling.check(definition)

        def keep(c: Connection) -> tuple[int, bool]:
            scope = Scope(tenant, definition.namespace, definition.name)
            dependencies.check_cycles(c, scope, definition.dependencies, self.runtime.settings.environment)
            stored_id, changed = definitions.register(c, definition, source, tenant)
            if changed:
                scheduling.put(c, definition, queries.now(c), tenant)
            return stored_id, changed

        found = self.database.patiently(keep)
        lifecycle.forget_found(self.runtime)
        return found

    def withdraw_workflow(
        self, name: str, namespace: str = "default", *, tenant: str = "default", actor: str = "anonymous", source: str = "api"
    ) -> list[str]:
        """All versions of a document are startable no more, its schedules end; gives the versions.

        Refused while instances of it run. Histories of those that ended stay readable.
        """

        def act(c: Connection) -> list[str]:
            with c.transaction():
                gone = definitions.withdraw(c, tenant, namespace, name)
                if gone:
                    schedules.replace(c, tenant, namespace, name, "", {})
                    instances.audit(
                        c, actor, "withdraw-workflow", source, None, None, {"workflow": name, "nameSpace": namespace, "tenant": tenant}
                    )
                return gone

        gone = self.database.patiently(act)
        if not gone:
            raise NotFound("workflow", f"{namespace}.{name}", "`orchestrator workflows` lists what is registered")
        lifecycle.forget_found(self.runtime)
        return gone

    def workflows(self) -> list[definitions.Stored]:
        return self.database.patiently(definitions.all_definitions)

    # ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def schedules(self) -> Timetable:
        return Timetable(self.runtime)

    def load_schedules(self, *, forget: bool = False) -> list[str]:
        """Read the files in `schedules/` folders; gives the ids of what they hold, and of what they hold no more.

        `forget`: whether what stood in files that are gone is taken back, which is for whoever watches the folders to say.
        """
        settings = self.runtime.settings
        files = discover_schedules(settings.workflows, Path(settings.config_dir) / "schedules")
        return self.schedules.put_files(files.read, files.faulty, forget=forget)

    def reset_breaker(self, name: str, *, actor: str = "anonymous", source: str = "api") -> None:
        """Close a circuit breaker by hand."""
        self.runtime.breakers.reset(name)
        self.database.patiently(lambda c: instances.audit(c, actor, "reset-breaker", source, None, None, {"breaker": name}))

    @property
    def configs(self) -> Configurations:
        return Configurations(self.runtime)

    def look_at_files(self, seen: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        """Read configurations and schedules when their files are not as they were seen last; at the first look, too. What changes while
        files are not watched is read when they are."""
        settings = self.runtime.settings
        now = fingerprint(Path(settings.config_dir), *folders_of(settings.workflows, "schedules"))
        if now != seen:
            if not self.configs.is_watching:
                return seen
            told = self.configs.load_files()
            logger.info("files were read: configurations %s, schedules %s", told, self.load_schedules(forget=True))
        return now

    # ── starting ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start_workflow(
        self,
        workflow: str,
        version: str | None = None,
        input: Any = None,
        *,
        priority: str | int | None = None,
        labels: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tenant: str | None = None,
        idempotency_key: str | None = None,
        dependencies: Sequence[Any] | None = None,
        trace_id: str | None = None,
        actor: str | None = None,
        source: str | None = None,
    ) -> str:
        """Start an instance and give its id; with an `idempotency_key`, the same id for the same request.

        The instance is in Postgres when this returns, whether or not the broker could be reached. Raises `Invalid` with everything
        that is wrong with the options.
        """
        options = options_of(
            priority=priority, labels=labels, metadata=metadata, tenant=tenant, idempotency_key=idempotency_key, dependencies=dependencies,
            trace_id=trace_id or tracing.current_trace_id() or uuid.uuid4().hex, actor=actor, source=source,
        )  # fmt: skip
        try:
            new, plan, address, definition = lifecycle.prepare(self.runtime, workflow, version, input, options)
        except NotFound as error:
            self._explain(error, workflow)
            raise
        # The id is chosen here, so a repeated attempt after a broken line finds its own row instead of making another.
        try:
            created, published = self.database.patiently(lambda c: lifecycle.record_start(c, self.runtime, new, definition))
        except psycopg.errors.UniqueViolation:
            return new.id
        if not created:
            return self._already_started(new)
        if new.is_blocked:
            self.runtime.publisher.branches(published, definition.name)
        else:
            self.runtime.publisher.plan(plan, address)
        return new.id

    def _explain(self, error: NotFound, workflow: str) -> None:
        """Raises `Invalid` where the workflow is there, and cannot be used: that is what is to be mended."""
        name = workflow.partition("@")[0]
        faulty = [one for one in self.left_out if one.workflow and name in (one.workflow, f"default.{one.workflow}")]
        if error.what == "workflow" and faulty:
            faults = [
                fault if fault.file else replace(fault, file=one.file.partition(":")[0])
                for one in faulty
                for fault in one.faults or (Fault("", one.reason, line=one.line),)
            ]
            raise Invalid(faults, f"workflow '{workflow}' is not registered: it")

    def _already_started(self, new: instances.New) -> str:
        held = self.database.patiently(lambda c: instances.by_key(c, new))
        if held is None:
            raise NotFound("instance with idempotency key", new.idempotency_key)
        instance_id, is_same = held
        if not is_same:
            raise Duplicate(new.idempotency_key or "", instance_id)
        return instance_id

    # ── life cycle ──────────────────────────────────────────────────────────────────────────────────────────────────

    def pause_workflow(self, instance_id: str, *, actor: str = "anonymous", source: str = "api") -> None:
        lifecycle.pause(self.runtime, instance_id, actor, source)

    def resume_workflow(self, instance_id: str, *, actor: str = "anonymous", source: str = "api") -> None:
        lifecycle.resume(self.runtime, instance_id, actor, source)

    def cancel_workflow(
        self,
        instance_id: str,
        *,
        reason: str | None = None,
        compensate: bool | None = None,
        actor: str = "anonymous",
        source: str = "api",
    ) -> None:
        lifecycle.cancel(self.runtime, instance_id, actor, source, reason, compensate)

    def retry_workflow(self, instance_id: str, *, actor: str = "anonymous", source: str = "api") -> None:
        lifecycle.retry(self.runtime, instance_id, actor, source)

    def rollback_workflow(self, instance_id: str, *, actor: str = "anonymous", source: str = "api") -> None:
        lifecycle.rollback(self.runtime, instance_id, actor, source)

    def rerun_workflow(self, instance_id: str, step: str, *, input: Any = None, actor: str = "anonymous", source: str = "api") -> str:
        """Fork a new instance that has the history up to a step (its position or name) and goes on from there."""
        return lifecycle.rerun(self.runtime, instance_id, self._position(instance_id, step), actor, source, input)

    def _position(self, instance_id: str, step: str) -> str:
        if step.startswith("/"):
            return step
        seen = self.show(instance_id)
        matches = [node.position for node in seen.steps() if node.name == step]
        if not matches:
            raise NotFound("step", step, f"steps of this instance: {', '.join(sorted({node.name for node in seen.steps()}))}")
        return matches[0]

    def update_instance_status(self, instance_id: str, status: str, *, actor: str = "anonymous", source: str = "api") -> None:
        """Move an instance to a state by the verb that leads there; a move that the table lacks is refused."""
        now = self.show(instance_id).instance["state"]
        wanted = status.upper()
        verbs: dict[tuple[str, str], Callable[..., Any]] = {
            ("PENDING", "PAUSED"): self.pause_workflow,
            ("RUNNING", "PAUSED"): self.pause_workflow,
            ("PAUSED", "RUNNING"): self.resume_workflow,
            ("FAILED", "RUNNING"): self.retry_workflow,
        }
        act = self.cancel_workflow if wanted == State.CANCELLED else verbs.get((now, wanted))
        if wanted == State.CLEANING_UP:
            check_move("cleanup", now)
            self.cleanup(0.0, only=[instance_id])
        elif act is None:
            raise IllegalMove(f"move to {wanted} a", now)
        else:
            act(instance_id, actor=actor, source=source)

    def check_resource_usage(self, instance_id: str) -> dict[str, Any]:
        """Memory and processor of the processes at work for it, as last measured, and the bytes its history takes."""
        instance_id = self.resolve_id(instance_id)
        found = self.database.patiently(lambda c: usage.of_instance(c, instance_id))
        return found or {"memory_mb": 0.0, "cpu_percent": 0.0, "disk_bytes": 0, "processes": 0}

    def enforce_resource_limits(self) -> dict[str, str]:
        """Stop what is above its limits now, as the keeper does every few seconds; gives why, by instance."""
        return limits.enforce(self.runtime)

    VERBS = ("pause", "resume", "cancel", "retry", "rollback")

    def bulk(
        self, verb: str, wanted: Filter, *, most: int | None = None, actor: str = "anonymous", source: str = "api", **options: Any
    ) -> dict[str, str]:
        """One verb on all instances a filter finds, or on the newest `most`; gives what came of each ("ok" or why not)."""
        if verb not in self.VERBS:
            raise Invalid([Fault("verb", f"is {verb!r}; write one of {', '.join(self.VERBS)}")], "bulk operation")
        act: Callable[..., Any] = getattr(self, f"{verb}_workflow")
        outcome: dict[str, str] = {}
        for instance_id in self._found(wanted, most):
            try:
                act(instance_id, actor=actor, source=source, **options)
                outcome[instance_id] = "ok"
            except OrchestratorError as error:
                outcome[instance_id] = str(error)
        return outcome

    def _found(self, wanted: Filter, most: int | None) -> Iterator[str]:
        """Page after page, each after the last of the one before: what is started meanwhile is not among them."""
        from orchestrator.store import lists

        left = most
        while left is None or left > 0:
            page = replace(wanted, limit=BULK_PAGE if left is None else min(left, BULK_PAGE), offset=0)
            found = self.database.patiently(functools.partial(lists.page, wanted=page))
            yield from (instance_id for _, instance_id in found)
            if len(found) < page.limit:
                return
            wanted = replace(wanted, after=found[-1])
            left = None if left is None else left - len(found)

    def count_by_state(self, wanted: Filter) -> dict[str, int]:
        """How many instances a filter finds, whatever its limit."""
        from orchestrator.store import lists

        return self.database.patiently(lambda c: lists.count_by_state(c, wanted))

    # ── signals ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def signal_workflow(
        self, instance_id: str, name: str, data: Any = None, *, id: str | None = None, actor: str = "anonymous", source: str = "api"
    ) -> None:
        """Deliver a signal. It is kept until a listener takes it, also when none listens yet; the same `id` counts once."""
        sized("signal", data, self.runtime.settings.payload_limit_bytes)
        envelope = {
            "specversion": "1.0",
            "id": id or uuid.uuid4().hex,
            "source": f"{SIGNAL_SOURCE}/{instance_id}",
            "type": name,
            "data": data,
        }

        def keep(c: Connection) -> str:
            with c.transaction():
                instance = lifecycle.locked(c, instance_id)
                if instance.state in TERMINAL:
                    raise IllegalMove("signal", instance.state)
                refuse_signal(self.runtime.definition(instance.definition_id).do, instance_id, name)
                events.keep(c, envelope, instance_id, instance.tenant)
                instances.audit(c, actor, "signal", source, instance, instance.state, {"name": name})
                return instance.tenant

        tenant = self.database.patiently(keep)
        self.runtime.publisher.branches(self.database.patiently(lambda c: events.wake_listeners(c, name, instance_id, tenant)))

    def skip_wait(
        self, instance_id: str, step: str | None = None, *, id: str | None = None, actor: str = "anonymous", source: str = "api"
    ) -> list[str]:
        """End waits before their time: that of a step (its name or position), or all; gives their positions."""
        if id is not None and self.database.patiently(lambda c: events.is_signalled(c, instance_id, id)):
            return []
        waiting = [
            node.position
            for node in self.show(instance_id).waiting()
            if node.kind == "wait" and step in (None, node.name, node.position, f"{instance_id}:{node.position}")
        ]
        if not waiting:
            raise NotFound("wait", step or instance_id, "`orchestrator show ID` says what the instance waits for")
        self.signal_workflow(instance_id, SKIPPED, {"positions": waiting}, id=id, actor=actor, source=source)
        self.runtime.publisher.branches(self.database.patiently(lambda c: timers.end_waits(c, instance_id)))
        return waiting

    def approve(
        self,
        instance_id: str,
        step: str | None = None,
        *,
        approved: bool = True,
        data: Any = None,
        actor: str = "anonymous",
        source: str = "api",
    ) -> str:
        """Answer an approval that waits; without a step, the only one. Gives its name."""
        return approving.answer(self.runtime, self.show(instance_id), step, approved, data, actor, source)

    # ── events and triggers ─────────────────────────────────────────────────────────────────────────────────────────

    def send_event(self, envelope: dict[str, Any], *, tenant: str = "default") -> bool:
        """An event for whoever listens and for triggers. False: this (source, id) was here before."""
        return self.send_events([envelope], tenant=tenant)[0].is_new

    def send_events(self, envelopes: Sequence[dict[str, Any]], *, tenant: str = "default") -> list[Arrival]:
        """Several at once, in their order; gives each with its number and what became of it."""
        faults = [
            Fault(f"{number}/{name}" if len(envelopes) > 1 else name, "is required")
            for number, envelope in enumerate(envelopes)
            for name in ("id", "source", "type")
            if not isinstance(envelope.get(name), str) or not envelope[name]
        ]
        faults += [
            Fault(name, "is longer than 1,024 characters, or holds what is no text")
            for envelope in envelopes
            for name in ("id", "source", "type")
            if isinstance(envelope.get(name), str) and not _is_name(envelope[name])
        ]
        faults += [
            Fault("type", "answers an approval, which no event does: `orchestrator approve ID NAME`")
            for envelope in envelopes
            if name_of(envelope.get("type")) is not None
        ]
        if faults:
            raise Invalid(faults, "event")
        for envelope in envelopes:
            sized("event", envelope, self.runtime.settings.payload_limit_bytes)
        arrivals = [Arrival({"specversion": "1.0", **envelope}, tenant, tells=True) for envelope in envelopes]
        intake.take(self.runtime, arrivals)
        return arrivals

    def events(self, wanted: EventFilter) -> list[dict[str, Any]]:
        """Newest first."""
        return self.database.patiently(lambda c: events.search(c, wanted))

    def event(self, number: int) -> dict[str, Any]:
        """One event with its effects."""
        found = self.events(EventFilter(numbers=(number,), limit=1))
        if not found:
            raise NotFound("event", number, "`orchestrator events` lists them")
        return {**found[0], "effects": self.database.patiently(lambda c: events.effects_of(c, number))}

    def replay_events(self, wanted: EventFilter, *, actor: str = "anonymous", source: str = "api") -> list[int]:
        """Let events have their effects once more, as triggers are now; those that were put aside leave the dead-letter stream."""
        return triggering.again(self.runtime, wanted, "replay", actor, source)

    def discard_events(self, wanted: EventFilter, *, actor: str = "anonymous", source: str = "api") -> list[int]:
        """Events that were put aside and that nobody wants any more."""
        return triggering.again(self.runtime, wanted, "discard", actor, source)

    def put_trigger(self, spec: Any, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> list[str]:
        """Make or change triggers, at once and for all processes within seconds; gives their names. All faults are raised."""
        return triggering.put(self.runtime, spec, tenant, actor, source)

    def trigger_warnings(self, spec: Any, *, tenant: str = "default") -> list[dict[str, str]]:
        """What of them starts nothing as things are now."""
        return triggering.warnings(self.runtime, spec, tenant)

    def triggers(self, tenant: str | None = None) -> list[dict[str, Any]]:
        return triggering.listing(self.runtime, tenant)

    def enable_trigger(self, name: str, enabled: bool, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> None:
        triggering.enable(self.runtime, name, enabled, tenant, actor, source)

    def delete_trigger(self, name: str, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> None:
        triggering.delete(self.runtime, name, tenant, actor, source)

    def put_webhook(
        self,
        name: str,
        url: str,
        types: Sequence[str],
        secret: str,
        *,
        tenant: str = "default",
        actor: str = "anonymous",
        source: str = "api",
    ) -> None:
        """Tell an address of events whose types match, signed with a secret of this name."""
        triggering.put_webhook(self.runtime, name, url, types, secret, tenant, actor, source)

    def webhooks(self, tenant: str | None = None) -> list[dict[str, Any]]:
        return [w for w in self.database.patiently(webhooks.listing) if tenant is None or w["tenant"] == tenant]

    def send_webhook_again(self, name: str, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> int:
        """Deliveries that were given up; gives how many."""
        return triggering.send_webhook_again(self.runtime, name, tenant, actor, source)

    def delete_webhook(self, name: str, *, tenant: str = "default", actor: str = "anonymous", source: str = "api") -> None:
        triggering.delete_webhook(self.runtime, name, tenant, actor, source)

    # ── labels and dependencies ─────────────────────────────────────────────────────────────────────────────────────

    def label_workflow(self, instance_id: str, labels: dict[str, Any], *, actor: str = "anonymous", source: str = "api") -> None:
        """Add or change labels; a null value removes one."""
        text = sized("labels", labels, 65536)

        def act(c: Connection) -> None:
            with c.transaction():
                instance = lifecycle.locked(c, instance_id)
                instances.label(c, instance_id, text)
                instances.audit(c, actor, "label", source, instance, instance.state, labels)

        self.database.patiently(act)

    def add_dependency(self, instance_id: str, dependency: dict[str, Any], *, actor: str = "anonymous", source: str = "api") -> None:
        """Make an instance that has not begun wait for another workflow or instance. A cycle is refused."""
        scope = self.database.patiently(lambda c: instances.scope_of(c, instance_id)) if is_instance_id(instance_id) else None
        if scope is None:
            raise NotFound("instance", instance_id)
        [entry] = dependencies.resolved(self.runtime, scope, [dependency])

        def act(c: Connection) -> None:
            with c.transaction():
                instance = lifecycle.locked(c, instance_id)
                if instance.state != "PENDING":
                    raise IllegalMove("add a dependency to", instance.state)
                on = entry["instance"]
                if on == instance_id or (on and instance_id in admission.dependency_edges(c, on)):
                    raise Invalid([Fault("dependency", f"makes a cycle: {instance_id} → {on} → {instance_id}")], "dependency")
                admission.ask(c, instance_id, (), [entry])
                branches.block_root(c, instance_id)
                instances.audit(c, actor, "depend", source, instance, instance.state, entry)

        self.database.patiently(act)
        released = self.database.patiently(lambda c: admissions.settle(c, admission.meet(c), []))
        self.runtime.publisher.branches(released)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def show(self, instance_id: str, at: int | None = None) -> view.Seen:
        """The instance as a tree with what became of each task; `at` shows it after so many facts."""
        instance_id = self.resolve_id(instance_id)
        return self.database.patiently(lambda c: view.see(c, self.runtime, instance_id, at))

    def resolve_id(self, text: str) -> str:
        """An id, or the beginning or end of one, when only one instance has it."""
        text = text.removeprefix(RUN).removeprefix(EXECUTION)
        if is_instance_id(text):
            return text
        found = self.database.patiently(lambda c: queries.matching_ids(c, text))
        if len(found) == 1:
            return found[0]
        several = "several ids begin or end so; give more of the end: ids of instances that start together begin alike"
        raise NotFound("instance", text, several if found else "`orchestrator ls` lists them")

    def get_workflow_status(self, instance_id: str, *, whole: bool = False) -> dict[str, Any]:
        """State, progress, message and what it waits for, as plain data. `whole`: large inputs and outputs of tasks, too."""
        return self.show(instance_id).status(whole=whole)

    def get_workflow_stats(self) -> dict[str, Any]:
        return self.database.patiently(queries.stats)

    def instances(self, wanted: Filter) -> list[dict[str, Any]]:
        from orchestrator.store import lists

        return self.database.patiently(lambda c: lists.instances(c, wanted))

    def history(self, instance_id: str) -> list[dict[str, Any]]:
        instance_id = self.resolve_id(instance_id)
        return self.database.patiently(lambda c: queries.history(c, instance_id))

    def audit(self, instance_id: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        return self.database.patiently(lambda c: queries.audit(c, instance_id, limit))

    def dead_letters(self, *, tenant: str | None = None, before: int | None = None, limit: int = 100) -> list[dict[str, Any]]:
        return self.database.patiently(lambda c: queries.dead_letters(c, tenant, before, limit))

    def acknowledge_dead_letters(
        self, numbers: Sequence[int], *, tenant: str | None = None, reason: str | None = None, actor: str = "anonymous", source: str = "api"
    ) -> list[int]:
        """Somebody has looked, and nothing more is to be done; gives which were open. Raises `NotFound` for numbers that are none."""

        def act(c: Connection) -> list[int]:
            with c.transaction():
                known, opened = instances.acknowledge_dead_letters(c, list(numbers), tenant)
                if unknown := [number for number in numbers if number not in known]:
                    raise NotFound("dead letter", ", ".join(map(str, unknown)), "`orchestrator dead-letters` lists them")
                for number, instance_id in opened:
                    instance = instances.lock(c, instance_id)
                    detail = {"dead_letter": number, **({"reason": reason} if reason else {})}
                    instances.audit(c, actor, "acknowledge", source, instance, instance.state if instance else None, detail)
                return [number for number, _ in opened]

        return self.database.patiently(act)

    def timers(self, limit: int = 100) -> list[dict[str, Any]]:
        return self.database.patiently(lambda c: queries.timers(c, limit))

    def forget_instances(
        self, ids: Sequence[str], *, tenant: str | None = None, actor: str = "anonymous", source: str = "api"
    ) -> list[str]:
        """Delete the records of instances that have ended, with all that belongs to them; gives which. The audit keeps that they were."""

        def act(c: Connection) -> list[str]:
            with c.transaction():
                gone = retention.claim_ended(c, ids, tenant)
                retention.strip(c, gone)
                retention.delete(c, gone)
                if gone:
                    instances.audit(c, actor, "delete-history", source, None, None, {"instances": gone, "tenant": tenant})
                return gone

        return self.database.patiently(act)

    def instances_exist(self, ids: Sequence[str]) -> bool:
        return bool(self.database.patiently(lambda c: queries.existing(c, ids)))

    def cleanup(
        self, older_than_s: float | None = None, *, archive: bool = True, limit: int = 1000, only: Sequence[str] | None = None
    ) -> list[str]:
        """End the retention of instances that ended long ago: their history goes, their record stays (or goes, too)."""
        age = self.runtime.settings.retention_s if older_than_s is None else older_than_s

        def act(c: Connection) -> list[str]:
            with c.transaction():
                return lifecycle.cleanup(c, age, limit, archive=archive, only=only)

        return self.database.patiently(act)


def _is_name(text: str) -> bool:
    return len(text) <= 1024 and "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
