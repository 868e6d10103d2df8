"""`WorkflowEngine`: the engine as one object in one process, for programs and tests that want no services.

    with WorkflowEngine(checkpoint_store=MemoryCheckpointStore()) as engine:
        engine.register_step_executor(PinExecutor())
        execution_id = engine.start_workflow({"type": "pin_operation", "steps": [...]})
        engine.wait(execution_id)

Graph documents run as they are; several at once, each in a thread of its own, as many as `max_concurrent` allows. The
same tree, planner and steps as the durable engine; what is saved lives as long as the store it is saved in.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from orchestrator.breakers import MemoryBreakers
from orchestrator.config.settings import Settings
from orchestrator.definition.dependencies import Dependency
from orchestrator.definition.documents import definition_from
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import Definition
from orchestrator.definition.validate import check
from orchestrator.embedded import Embedded, Instance, WallClock
from orchestrator.engine.slots import Slots
from orchestrator.errors import Fault, IllegalMove, Invalid, NotFound, text_of
from orchestrator.history import Fact, Kind
from orchestrator.state import TERMINAL
from orchestrator.steps.registry import REGISTRY, CompensationHandler, Executor, Registry
from orchestrator.telemetry import events

# How long a cancel waits to be done.
CANCELLED_WITHIN_S = 5.0
ROOM_LOOK_S = 0.05

EventBus = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Execution:
    """A saved run: what a checkpoint store keeps."""

    id: str
    type: str
    status: str = "pending"
    input: Any = None
    output: Any = None
    error: str = ""
    started_at: float = 0.0
    completed_at: float | None = None
    trace_id: str = ""
    steps: dict[str, str] = field(default_factory=dict)
    compensation: dict[str, Any] | None = None
    total: int = 0

    @property
    def progress(self) -> float:
        if self.status == "completed":
            return 1.0
        done = sum(state in ("completed", "skipped") for state in self.steps.values())
        return done / self.total if self.total else 0.0

    @property
    def message(self) -> str:
        return {
            "pending": "Workflow is pending execution",
            "running": f"Executing step {min(len(self.steps) + 1, max(self.total, 1))} of {self.total}",
            "completed": "Workflow completed successfully",
            "failed": f"Workflow failed: {self.error}",
            "cancelled": "Workflow was cancelled",
        }[self.status]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFilter:
    status: str | None = None
    type: str | None = None
    started_after: float | None = None
    started_before: float | None = None
    limit: int = 100
    offset: int = 0


class CheckpointStore(Protocol):
    def save(self, execution: Execution) -> None: ...
    def load(self, execution_id: str) -> Execution: ...
    def delete(self, execution_id: str) -> None: ...
    def list(self, wanted: HistoryFilter) -> list[Execution]: ...


class MemoryCheckpointStore:
    """Keeps executions as long as it lives."""

    def __init__(self) -> None:
        self._held: dict[str, Execution] = {}
        self._lock = threading.Lock()

    def save(self, execution: Execution) -> None:
        with self._lock:
            self._held[execution.id] = execution

    def load(self, execution_id: str) -> Execution:
        with self._lock:
            if execution_id not in self._held:
                raise NotFound("execution", execution_id)
            return self._held[execution_id]

    def delete(self, execution_id: str) -> None:
        """Deleting what is gone is no error."""
        with self._lock:
            self._held.pop(execution_id, None)

    def list(self, wanted: HistoryFilter) -> list[Execution]:
        with self._lock:
            found = [e for e in self._held.values() if _fits(e, wanted)]
        return found[wanted.offset : wanted.offset + wanted.limit]

    def count(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        with self._lock:
            self._held.clear()


def _names_in(text: str) -> set[str]:
    """A workflow's name, or `namespace.name`: this engine knows no namespaces."""
    return {text, text.rpartition(".")[2]}


def _fits(execution: Execution, wanted: HistoryFilter) -> bool:
    return (
        (wanted.status is None or execution.status == wanted.status)
        and (wanted.type is None or execution.type == wanted.type)
        and (wanted.started_after is None or execution.started_at >= wanted.started_after)
        and (wanted.started_before is None or execution.started_at < wanted.started_before)
    )


class _Run:
    """One execution in its thread. `asked` is set to cancel it, `heard` when that was done, or came too late."""

    def __init__(self, embedded: Embedded, instance: Instance, execution: Execution, waits_for: Sequence[Dependency]) -> None:
        self.embedded = embedded
        self.instance = instance
        self.execution = execution
        self.waits_for = waits_for
        self.asked = threading.Event()
        self.heard = threading.Event()
        self.ended = threading.Event()


class WorkflowEngine:
    """`event_bus` is called with every event, or is None; `retry` is the default policy of steps.

    A task fails with `endless` after `decision_limit` decisions in a row, without a step, a wait or an event; 0: no limit.
    """

    def __init__(
        self,
        event_bus: EventBus | None = None,
        checkpoint_store: CheckpointStore | None = None,
        logger: logging.Logger | None = None,
        *,
        retry: RetryPolicy | None = None,
        max_concurrent: int = 100,
        decision_limit: int = 100_000,
    ) -> None:
        self.event_bus = event_bus
        self.store: CheckpointStore = checkpoint_store or MemoryCheckpointStore()
        self.logger = logger or logging.getLogger("orchestrator.local")
        self.retry = retry
        self.decision_limit = decision_limit
        REGISTRY.load()
        self.registry = Registry()
        self.registry.executors = dict(REGISTRY.executors)
        self.registry.handlers = dict(REGISTRY.handlers)
        self.registry._loaded = True
        self.breakers, self.slots = MemoryBreakers(), Slots()
        self._room = threading.BoundedSemaphore(max_concurrent)
        self._runs: dict[str, _Run] = {}
        self._numbers = itertools.count(1)
        self._accepts = True

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> WorkflowEngine:
        self._accepts = True
        return self

    def stop(self, timeout_s: float = 30.0) -> None:
        """Accept nothing more, and let what runs come to its end."""
        self._accepts = False
        for run in list(self._runs.values()):
            run.ended.wait(timeout_s)

    def __enter__(self) -> WorkflowEngine:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def register_step_executor(self, executor: Executor) -> None:
        self.registry.add(executor)

    def register_compensation_handler(self, handler: CompensationHandler) -> None:
        self.registry.add_handler(handler)

    # ── executions ──────────────────────────────────────────────────────────────────────────────────────────────────

    def start_workflow(self, workflow: dict[str, Any] | Definition, input: Any = None, *, trace_id: str = "") -> str:
        """Start, and give the execution's id. A document with faults raises them all."""
        if not self._accepts:
            raise IllegalMove("start", "stopped engine")
        definition = workflow if isinstance(workflow, Definition) else definition_from(workflow)
        check(definition, self.registry)
        waits_for = self._dependencies(definition)
        embedded = Embedded(
            clock=WallClock(), registry=self.registry, default_retry=self.retry, breakers=self.breakers, slots=self.slots,
            decision_limit=self.decision_limit,
        )  # fmt: skip
        instance = embedded.start(definition, {} if input is None else input)
        total = len(getattr(definition.do, "nodes", ())) or len(getattr(definition.do, "tasks", ())) or 1
        execution = Execution(instance.id, definition.name, input=input, started_at=instance.began, trace_id=trace_id, total=total)
        run = self._runs[instance.id] = _Run(embedded, instance, execution, waits_for)
        embedded.listener = lambda what, _, fact: self._told(run, what, fact)
        self.store.save(execution)
        threading.Thread(target=self._drive, args=(run,), name=f"execution-{instance.id[:8]}", daemon=True).start()
        return instance.id

    def get_workflow_status(self, execution_id: str) -> dict[str, Any]:
        e = self.store.load(execution_id)
        return {
            "id": e.id,
            "type": e.type,
            "status": e.status,
            "progress": e.progress,
            "message": e.message,
            "error": e.error,
            "steps": [{"id": name, "status": state} for name, state in e.steps.items()],
            "output": e.output,
            "compensation": e.compensation,
            "trace_id": e.trace_id,
        }

    def cancel_workflow(self, execution_id: str) -> None:
        """End it now: the step that it is in is interrupted, and nothing follows. A saga that says so goes back first."""
        run = self._runs.get(execution_id)
        execution = self.store.load(execution_id)
        if run is None or execution.status in ("completed", "failed", "cancelled"):
            raise IllegalMove("cancel", execution.status.upper())
        run.asked.set()
        run.embedded.poke()
        run.heard.wait(CANCELLED_WITHIN_S)

    def wait(self, execution_id: str, timeout_s: float = 60.0) -> dict[str, Any]:
        run = self._runs.get(execution_id)
        if run is not None:
            run.ended.wait(timeout_s)
        return self.get_workflow_status(execution_id)

    def list_active_workflows(self) -> list[str]:
        return [run.execution.id for run in self._runs.values() if not run.ended.is_set()]

    def get_workflow_history(self, wanted: HistoryFilter | None = None) -> list[Execution]:
        return self.store.list(wanted or HistoryFilter())

    # ── what an execution waits for before it begins ─────────────────────────────────────────────────────────────────

    def _dependencies(self, definition: Definition) -> list[Dependency]:
        """Those of a definition, which are about what this engine runs."""
        found = [
            Dependency.of(one) if isinstance(one, str | Dependency) else Dependency.model_validate(one) for one in definition.dependencies
        ]
        faults: list[Fault] = []
        for number, one in enumerate(found):
            if one.instance is not None and one.instance not in self._runs:
                faults.append(Fault(f"/dependencies/{number}/instance", f"There is no execution {one.instance}."))
            elif one.workflow is not None and definition.name in _names_in(one.workflow):
                faults.append(Fault(f"/dependencies/{number}", f"{definition.name} would wait for itself."))
        if faults:
            raise Invalid(faults, f"workflow '{definition.name}'")
        return found

    def _unmet(self, run: _Run) -> list[str]:
        return [f"{one.workflow or one.instance} to be {one.condition}" for one in run.waits_for if not self._is_met(one)]

    def _is_met(self, one: Dependency) -> bool:
        """The last one that ended decides, as in the durable engine."""
        if one.instance is not None:
            asked = [self._runs[one.instance]]
        else:
            names = _names_in(one.workflow or "")
            asked = [run for run in list(self._runs.values()) if run.execution.type in names]
        ended = [run.execution for run in asked if run.ended.is_set()]
        last = max(ended, key=lambda execution: execution.completed_at or 0.0, default=None)
        return last is not None and (one.condition == "any" or last.status == one.condition)

    def _wait_for_others(self, run: _Run, patience_s: float) -> bool:
        """Whether it may begin (or is to be cancelled); else its patience is over, and it has failed."""
        until = time.monotonic() + patience_s
        while (unmet := self._unmet(run)) and not run.asked.is_set():
            if time.monotonic() > until:
                run.execution.status = "failed"
                run.execution.error = f"dependency timeout: waited for {'; '.join(unmet)}"
                return False
            time.sleep(ROOM_LOOK_S)
        return True

    # ── the thread of one execution ─────────────────────────────────────────────────────────────────────────────────

    def _drive(self, run: _Run) -> None:
        has_room = False
        patience_s = run.instance.definition.dependency_timeout_s or Settings().dependency_timeout_s
        try:
            if not self._wait_for_others(run, patience_s):
                return
            while not (has_room := self._room.acquire(timeout=ROOM_LOOK_S)) and not run.asked.is_set():
                pass
            while run.instance.state not in TERMINAL:
                if run.asked.is_set() and not run.heard.is_set():
                    with contextlib.suppress(IllegalMove):
                        run.embedded.cancel(run.instance)
                    run.heard.set()
                else:
                    run.embedded.turn()
        except Exception as error:
            self.logger.exception("execution %s broke", run.execution.id)
            run.execution.status, run.execution.error = "failed", text_of(error)
        finally:
            if has_room:
                self._room.release()
            self._ended(run)
            run.heard.set()

    def _ended(self, run: _Run) -> None:
        execution, instance = run.execution, run.instance
        if instance.state in TERMINAL:
            execution.status = instance.state.lower()
        execution.output = instance.output
        execution.compensation = instance.compensation
        execution.completed_at = instance.ended
        if instance.error and execution.status == "failed":
            attempts = instance.error.get("attempts", 0)
            message = instance.error.get("message", "")
            execution.error = f"step failed after {attempts} attempts: {message}" if attempts else message
        self.store.save(execution)
        self._publish(run, f"workflow.{execution.status}", {"error": {"message": execution.error}} if execution.error else {})
        run.ended.set()

    def _told(self, run: _Run, what: str, fact: Fact | None) -> None:
        """Keep the record in step with every fact."""
        execution = run.execution
        if what == "workflow.started":
            execution.status = "running"
        if fact is not None:
            name = fact.position.rsplit("/", 1)[-1]
            state = {Kind.STEP_COMPLETED: "completed", Kind.STEP_FAILED: "failed", Kind.TASK_SKIPPED: "skipped"}.get(Kind(fact.kind))
            if state is not None:
                execution.steps[name] = state
                error = {"error": fact.data["error"]} if state == "failed" else {}
                self._publish(run, f"step.{state}", {"step": name, "position": fact.position, **error})
            if fact.kind == Kind.UNDO_FAILED:
                self.logger.warning("compensation of %s failed: %s", name, fact.data["error"]["message"])
        elif what == "workflow.started":
            self._publish(run, what, {})
        self.store.save(execution)

    def _publish(self, run: _Run, what: str, data: dict[str, Any]) -> None:
        """Tell the bus what the stream of the durable engine would be told, in the same form."""
        if self.event_bus is None:
            return
        execution = run.execution
        about = {"workflow": execution.type, "trace_id": execution.trace_id, "progress": execution.progress}
        at = dt.datetime.now(dt.UTC).isoformat()
        self.event_bus({**events.fields(next(self._numbers), what, execution.id, data, at, about), "event": what})
