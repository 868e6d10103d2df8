"""The engine in one process, without Postgres, Redis or Celery: the same tree, planner, steps and history, in memory.

For tests of workflows (`orchestrator.testing`), for `orchestrator run FILE`, and for programs that need no durability.
Waits go by the clock it is given. By the wall's clock steps run in threads, side by side, and end at their timeout, at their task's or
when their instance is cancelled; by one that a test holds in its hand they run one after another, in the caller's thread.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import itertools
import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol

from orchestrator.breakers import CircuitOpen, MemoryBreakers, Outcome
from orchestrator.config.secrets import resolve
from orchestrator.definition.approval import answer_type, approvals_in, name_of, refuse_signal
from orchestrator.definition.documents import inline
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.schemas import with_own_defaults
from orchestrator.definition.tree import AnyTask, Definition, Fork, Step, Undo, find
from orchestrator.engine import perform, warden
from orchestrator.engine.jobs import JOBS, Job
from orchestrator.engine.slots import Slots, scopes_of
from orchestrator.errors import Fault, IllegalMove, Invalid, NotFound, OrchestratorError
from orchestrator.history import Fact, Failure, Kind, effective
from orchestrator.ids import Position, new_instance_id
from orchestrator.plan.about import facts_of
from orchestrator.plan.backward import Done, backward, without_handler
from orchestrator.plan.catching import told
from orchestrator.plan.deciding import decided, endless
from orchestrator.plan.events import envelope_of
from orchestrator.plan.forward import Forward
from orchestrator.plan.gathering import handed_over, joined, laid_over
from orchestrator.plan.needs import (
    AwaitChild,
    Deadline,
    Decide,
    Failed,
    FanOut,
    Finished,
    Join,
    Listening,
    Perform,
    Publish,
    Sleep,
    StartChild,
)
from orchestrator.state import TERMINAL, State, check_move
from orchestrator.steps.registry import REGISTRY, Registry, StepContext
from orchestrator.telemetry import logs

logger = logging.getLogger("orchestrator.embedded")

# How long a step may take to come out of its interruption.
LEFT_AFTER_S = 0.2
LARGEST_BYTES = 2 * 1024 * 1024


class Clock(Protocol):
    def now(self) -> float: ...
    def wait_until(self, instant: float) -> None: ...


class WallClock:
    def now(self) -> float:
        return time.time()

    def wait_until(self, instant: float) -> None:
        time.sleep(max(0.0, instant - time.time()))


@dataclass(slots=True)
class Branch:
    """A line of control with its own history."""

    position: Position
    parent: Branch | None = None
    join_position: str = ""
    mode: str = ""
    shared: Any = None
    variables: dict[str, Any] | None = None
    context: Any = None
    after: list[Branch] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    followers: list[Branch] = field(default_factory=list)
    opened: list[Branch] = field(default_factory=list)
    joins: dict[str, list[Branch]] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)
    """Of each join, its branches, and how many of them are not closed."""
    held_back: deque[Branch] = field(default_factory=deque)
    """Of a limited fan-out, those that begin when others are closed."""
    state: str = "ready"
    outcome: str | None = None
    output: Any = None
    error: Any = None
    listens: bool = False
    forward: Forward | None = None
    """Its fold, kept while it waits: what was recorded in it is applied to it at once."""
    stopping: bool = False
    """It is not wanted any more, and ends with the step that it is in."""
    job: Running | None = None
    """The attempt that a thread makes for it."""

    @property
    def is_closed(self) -> bool:
        return self.state == "closed"

    def close(self, outcome: str) -> None:
        if self.parent is not None and not self.is_closed:
            self.parent.open[self.join_position] -= 1
        self.state, self.outcome = "closed", outcome


@dataclass(slots=True)
class Running:
    """An attempt in a thread: whose it is, and how long it may take."""

    job: Job
    instance: Instance
    branch: Branch
    forward: Forward
    need: Perform
    policy: RetryPolicy
    due: float | None
    is_overdue_around: bool
    """Whether that is when the time of a task around it is over, and not its own."""


@dataclass(slots=True)
class Instance:
    """One run: its state, and the branches that hold its history."""

    id: str
    definition: Definition
    input: Any
    root: Branch
    began: float
    state: State = State.PENDING
    phase: str = "forward"
    output: Any = None
    error: dict[str, Any] | None = None
    compensation: dict[str, Any] | None = None
    parent: tuple[Instance, Branch] | None = None
    ending: State = State.FAILED
    undo: Branch | None = None
    ended: float | None = None
    events: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    performed: list[str] = field(default_factory=list)

    def branches(self) -> Iterable[Branch]:
        todo = [self.root, *([self.undo] if self.undo else [])]
        while todo:
            branch = todo.pop(0)
            yield branch
            todo += branch.opened

    @property
    def history(self) -> list[Fact]:
        """Every fact of every branch, in the order in which they were recorded."""
        found = [(at, n, fact) for branch in self.branches() for n, (at, fact) in enumerate(zip(branch.times, branch.facts, strict=True))]
        return [fact for _, _, fact in sorted(found, key=lambda item: item[0])]


Listener = Callable[[str, Instance, Fact | None], None]


class Embedded:
    """Runs instances to where they wait. `listener` hears of every fact and every change of state."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        registry: Registry = REGISTRY,
        definitions: Mapping[str, Definition] | None = None,
        listener: Listener | None = None,
        default_retry: RetryPolicy | None = None,
        breakers: MemoryBreakers | None = None,
        slots: Slots | None = None,
        decision_limit: int = 100_000,
    ) -> None:
        warden.install()
        self.decision_limit = decision_limit
        self.clock = clock or WallClock()
        self.jobs = JOBS if isinstance(self.clock, WallClock) else None
        self.breakers = breakers or MemoryBreakers()
        self.slots = slots or Slots()
        self.registry = registry
        self.definitions: dict[str, Definition] = dict(definitions or {})
        self.listener = listener
        self.default_retry = default_retry
        self.instances: dict[str, Instance] = {}
        self._ready: list[tuple[Instance, Branch]] = []
        self._timers: list[tuple[float, int, Instance, Branch]] = []
        self._count = itertools.count()
        self._tick = itertools.count(1)
        self._at_work = 0
        self._done: queue.SimpleQueue[tuple[Running, Any] | Instance | None] = queue.SimpleQueue()

    # ── verbs ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def register(self, definition: Definition) -> None:
        self.definitions[definition.name] = self.definitions[f"{definition.namespace}.{definition.name}"] = definition

    def start(self, workflow: Definition | str, input: Any = None, *, id: str | None = None) -> Instance:
        definition = self._definition(workflow)
        input = with_own_defaults(definition, input)
        instance = Instance(id or new_instance_id(), definition, input, Branch(Position("")), self.clock.now())
        self.instances[instance.id] = instance
        scopes = scopes_of(definition, instance.input)
        self._tell("workflow.created", instance)
        if scopes:
            instance.root.state = "blocked"
            self.slots.ask(instance.id, scopes, lambda: self._done.put(instance))
            self._take_all()
        else:
            self._queue(instance, instance.root)
        return instance

    def _definition(self, workflow: Definition | str) -> Definition:
        if isinstance(workflow, Definition):
            return workflow
        name = workflow.partition("@")[0]
        if name not in self.definitions:
            raise NotFound("workflow", workflow)
        return self.definitions[name]

    def settle(self, until: float | None = None) -> None:
        """Run until nothing can go on without time or an event; with `until`, let time pass up to that instant."""
        while True:
            self._walk_ready()
            if self._at_work:
                # Time passes while they work, for all of them.
                self._await(self._timers[0][0] if self._timers else None)
            elif not self._timers or until is None or self._timers[0][0] > until:
                return
            else:
                self.clock.wait_until(self._timers[0][0])
                self._fire()

    def turn(self) -> None:
        """Go on with what can go on; where nothing can, wait until something happens: a step ends, a time comes, `poke`."""
        if self._ready:
            self._walk_ready()
        else:
            self._await(self._timers[0][0] if self._timers else None)

    def poke(self) -> None:
        """End the wait of a `turn`. From any thread."""
        self._done.put(None)

    def _walk_ready(self) -> None:
        self._take_all()
        while self._ready:
            instance, branch = self._ready.pop(0)
            self._walk(instance, branch)
            self._take_all()

    def _take_all(self) -> None:
        while not self._done.empty():
            self._take(self._done.get())

    def _await(self, until: float | None) -> None:
        """Until a step in a thread has ended, or an instant has come."""
        try:
            self._take(self._done.get(timeout=None if until is None else max(0.0, until - self.clock.now())))
        except queue.Empty:
            self._fire()

    def _fire(self) -> None:
        """What is due now."""
        while self._timers and self._timers[0][0] <= self.clock.now():
            _, _, instance, branch = heapq.heappop(self._timers)
            if branch.state == "performing":
                self._overrun(branch)
            elif branch.state in ("parked", "joining") and instance.state == State.RUNNING:
                self._queue(instance, branch)

    def finish(self, instance: Instance, limit_s: float = 10 * 365 * 86400.0) -> Instance:
        """Run until the instance has ended, or waits for an event that nobody sends."""
        horizon = self.clock.now() + limit_s
        self.settle()
        while instance.state not in TERMINAL and self._timers and self._timers[0][0] <= horizon:
            self.settle(self._timers[0][0])
        return instance

    def idle_s(self) -> float | None:
        """How long nothing can happen by itself; None: until somebody does something."""
        return max(0.0, self._timers[0][0] - self.clock.now()) if self._timers else None

    def signal(self, instance: Instance, name: str, data: Any = None) -> None:
        if instance.state in TERMINAL:
            raise IllegalMove("signal", instance.state)
        refuse_signal(instance.definition.do, instance.id, name)
        self._deliver(instance, name, data)

    def approve(self, instance: Instance, name: str, *, approved: bool, by: str) -> None:
        """Answer an approval that waits."""
        if type(approved) is not bool:
            raise Invalid([Fault("approved", "Expected true or false.")], "approval")
        waiting = self.approvals(instance)
        if name not in waiting:
            raise NotFound("approval that waits", name, f"what waits: {', '.join(sorted(waiting)) or 'none'}")
        self._deliver(instance, answer_type(name), {"approved": approved, "by": by})

    def approvals(self, instance: Instance) -> set[str]:
        """Those that an answer is waited for."""
        forwards = (branch.forward for branch in instance.branches() if branch.listens and branch.forward is not None)
        needs = (forward.need for forward in forwards)
        return {name for need in needs if isinstance(need, Listening) for name in approvals_in(need.task)}

    def _deliver(self, instance: Instance, type: str, data: Any) -> None:
        number = next(self._count)
        instance.events.append((number + 1, {"specversion": "1.0", "id": f"sig-{number}", "source": "signal", "type": type, "data": data}))
        self._wake_listeners(instance)

    def send(self, envelope: dict[str, Any]) -> None:
        """An event for whoever listens."""
        if name_of(envelope.get("type")) is not None:
            return
        number = next(self._count) + 1
        for instance in self.instances.values():
            if instance.state not in TERMINAL:
                instance.events.append((number, envelope))
                self._wake_listeners(instance)

    def pause(self, instance: Instance) -> None:
        instance.state = check_move("pause", instance.state)
        self._tell("workflow.paused", instance)

    def resume(self, instance: Instance) -> None:
        instance.state = check_move("resume", instance.state)
        self._tell("workflow.resumed", instance)
        for branch in instance.branches():
            if branch.state in ("ready", "halted", "parked"):
                self._queue(instance, branch)

    def cancel(self, instance: Instance, reason: str = "Workflow was cancelled") -> None:
        target = check_move("cancel", instance.state)
        for branch in instance.branches():
            self._stop(branch)
        instance.error = {"code": "cancelled", "message": reason}
        if instance.definition.saga and instance.definition.compensate_on_cancel:
            self._turn_round(instance, State.CANCELLED)
            return
        self._end(instance, target)

    # ── the walk, as engine/walk.py has it ──────────────────────────────────────────────────────────────────────────

    def forward_of(self, instance: Instance, branch: Branch) -> Forward | None:
        """The fold of a branch, from its facts alone. None: there is nothing to undo."""
        root = self._root(instance, branch)
        if root is None:
            return None
        relative = branch.position.removeprefix("/undo") if self._is_undo(branch) else branch.position
        given = instance.input if branch.position == "" else branch.shared
        outputs = [before.output for before in branch.after]
        forward = Forward(
            find(root, relative),
            branch.position,
            laid_over(given, outputs) if outputs else given,
            variables=branch.variables or {},
            context=branch.context,
            facts_of_instance=facts_of(
                instance.definition, instance.id, instance.input, instance.began, resolve(instance.definition.secrets)
            ),
            seed=instance.id,
        )
        return forward.apply_all(branch.facts)

    def _is_undo(self, branch: Branch) -> bool:
        return branch.position == "/undo" or branch.position.startswith("/undo/")

    def _root(self, instance: Instance, branch: Branch) -> AnyTask | None:
        if not self._is_undo(branch):
            return instance.definition.do
        return backward(instance.definition.do, self.completed_steps(instance), self.registry.has_handler)

    def completed_steps(self, instance: Instance) -> dict[Position, Done]:
        order = {id(fact): n for n, fact in enumerate(instance.history, 1)}
        done: dict[Position, Done] = {}
        for branch in instance.branches():
            if self._is_undo(branch):
                continue
            facts, recorded, branch.facts = branch.facts, branch.facts, []
            forward = self.forward_of(instance, branch)
            branch.facts = recorded
            assert forward is not None
            for fact in effective(facts):
                need = forward.need
                if fact.kind == Kind.TASK_SKIPPED:
                    break
                if fact.kind == Kind.STEP_COMPLETED and isinstance(need, Perform):
                    data = fact.data or {}
                    done[need.position] = Done(order[id(fact)], need.input, need.parameters, data.get("output"), data.get("checkpoint"))
                forward.apply(fact)
        return done

    def _walk(self, instance: Instance, branch: Branch) -> None:
        if branch.is_closed or instance.state in (*TERMINAL, State.PAUSED):
            return
        if branch.stopping:
            self._close(instance, branch, "cancelled")
            return
        if instance.state == State.PENDING:
            instance.state = check_move("begin", instance.state)
            self._tell("workflow.started", instance)
        if branch.after and any(before.outcome != "completed" for before in branch.after):
            skipped = Fact(branch.position, Kind.TASK_SKIPPED, {"because": "a dependency did not complete"})
            self._record(instance, branch, None, skipped, lambda: self._close(instance, branch, "skipped"))
            return
        forward = branch.forward = branch.forward or self.forward_of(instance, branch)
        if forward is None:
            self._end_undone(instance)
            return
        while self._meet(instance, branch, forward):
            if instance.state == State.PAUSED:
                branch.state = "halted"
                return
            if branch.is_closed or instance.state in TERMINAL:
                return

    def _record(
        self, instance: Instance, branch: Branch, forward: Forward | None, fact: Fact, also: Callable[[], None] | None = None
    ) -> bool:
        """A fact, and what must be true together with it."""
        if forward is not None:
            forward.apply(fact)
        branch.facts.append(fact)
        branch.times.append(next(self._tick))
        if also is not None:
            also()
        self._tell("fact", instance, fact)
        return True

    def _meet(self, instance: Instance, branch: Branch, forward: Forward) -> bool:
        """Meet one need; False when the branch waits or is over."""
        need = forward.need
        now = self.clock.now()
        due = forward.due
        if due is not None and due[0] <= now and not isinstance(need, Finished | Failed):
            for child in branch.opened:
                self._cut(child)
            self._stop_awaited(branch)
            return self._record(instance, branch, forward, Fact(due[1], Kind.TIMED_OUT))

        def record(kind: Kind, data: Any = None, also: Callable[[], None] | None = None) -> bool:
            return self._record(instance, branch, forward, Fact(need.position, kind, data), also)  # type: ignore[union-attr]

        match need:
            case Perform():
                return self._perform(instance, branch, forward, need)
            case Decide() if 0 < self.decision_limit <= forward.decisions:
                return record(Kind.STEP_FAILED, {"error": endless(need, forward.decisions).to_json()})
            case Decide():
                return record(Kind.DECIDED, decided(need, self.clock.now))
            case Deadline(seconds=seconds):
                return record(Kind.DEADLINE, {"due": now + seconds})
            case Sleep(seconds=seconds, until=until):
                if until is None:
                    until = now + (seconds or 0.0)
                    record(Kind.WAITING, {"until": until})
                return record(Kind.WAITED) if until <= now else self._park(instance, branch, forward, until)
            case FanOut():
                return not record(Kind.OPENED, {"count": len(need.openings)}, lambda: self._open(instance, branch, forward, need))
            case Join():
                children = branch.joins.get(need.position, [])
                if branch.open.get(need.position):
                    branch.state = "joining"
                    return self._park(instance, branch, forward, None, "joining")
                return record(Kind.JOINED, joined(need, children))
            case Listening():
                return self._listen(instance, branch, forward, need)
            case Publish():
                try:
                    envelope = envelope_of(need.compute(), instance.id, need.position, instance.definition, self.clock.now())
                except OrchestratorError as error:
                    failure = Failure(error.code, str(error), need.position, type(error).__name__)
                    return record(Kind.STEP_FAILED, {"error": failure.to_json()})
                return record(Kind.EMITTED, {"event": envelope}, lambda: self.send(envelope))
            case StartChild():
                return self._start_child(instance, branch, forward, need)
            case AwaitChild():
                return self._await_child(instance, branch, forward, need)
            case Finished():
                self._finished(instance, branch, need)
            case Failed(failure):
                self._failed(instance, branch, failure)
        return False

    def _perform(self, instance: Instance, branch: Branch, forward: Forward, need: Perform) -> bool:
        now = self.clock.now()
        policy = perform.policy_of(need, instance.definition.retry or self.default_retry or RetryPolicy())
        if need.not_before is not None and need.not_before > now and need.pending is None:
            return self._park(instance, branch, forward, need.not_before)
        if need.pending is not None:
            if need.pending["until"] > now:
                return self._park(instance, branch, forward, need.pending["until"])
            verdict = (
                perform.timed_out(need, policy, forward.luck)
                if need.pending["times_out"]
                else perform.Completed(need.pending["output"], need.pending["checkpoint"])
            )
            return self._judge(instance, branch, forward, need, verdict)
        if isinstance(need.step, Step) and need.step.once:
            if need.intended:
                unknown = Failure("outcome_unknown", "this at-most-once step began before a crash", need.position, "OutcomeUnknown")
                return self._record(instance, branch, forward, Fact(need.position, Kind.STEP_FAILED, {"error": unknown.to_json()}))
            self._record(instance, branch, forward, Fact(need.position, Kind.INTENDED))
        undo = need.step if isinstance(need.step, Undo) else None
        instance.performed.append(need.position)
        context = StepContext(
            instance_id=instance.id,
            workflow=instance.definition.name,
            position=need.position,
            name=need.step.name,
            type=undo.compensation.type if undo else need.step.type,  # type: ignore[union-attr]
            input=need.input,
            parameters=need.parameters,
            attempt=need.attempt,
            deadline_s=None if forward.due is None else max(0.001, forward.due[0] - now),
            output=undo.output if undo else None,
            checkpoint=undo.checkpoint if undo else None,
            input_of_instance=instance.input,
            literal=None if undo else need.step.literal,  # type: ignore[union-attr]
            scope=forward.scope(forward.frames[-1]),
            secrets=forward.instance["secrets"],
        )
        if isinstance(need.step, Step) and need.step.breaker is not None:
            try:
                self.breakers.ask(need.step.breaker, now)
            except CircuitOpen as error:
                return self._judge(instance, branch, forward, need, perform.refused(need, policy, forward.luck, error))
        if self.jobs is not None:
            return self._begin(instance, branch, forward, need, policy, context)
        with logs.about({"instance": instance.id, "position": need.position, "workflow": instance.definition.name}):
            verdict = perform.attempt(need, context, self.registry, policy, forward.luck)
        self._tell_breaker(need, verdict)
        if branch.is_closed:
            return False
        return self._judge(instance, branch, forward, need, verdict)

    # ── steps in threads ────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(
        self, instance: Instance, branch: Branch, forward: Forward, need: Perform, policy: RetryPolicy, context: StepContext
    ) -> bool:
        assert self.jobs is not None
        labels = {"instance": instance.id, "position": need.position, "workflow": instance.definition.name, "attempt": need.attempt}

        def body(run: perform.Run) -> perform.Verdict:
            with logs.about(labels):
                return perform.attempt(need, context, self.registry, policy, forward.luck, run)

        def done(given: Any) -> None:
            self._done.put((running, given))

        limits = [limit for limit in (perform.timeout_of(need), context.deadline_s) if limit is not None]
        due = self.clock.now() + min(limits) if limits else None
        job = Job(body, done)
        running = Running(job, instance, branch, forward, need, policy, due, bool(limits) and min(limits) == context.deadline_s)
        branch.state, branch.job = "performing", running
        self._at_work += 1
        if due is not None:
            heapq.heappush(self._timers, (due, next(self._count), instance, branch))
        self.jobs.start(job)
        return False

    def _take(self, ended: tuple[Running, Any] | Instance | None) -> None:
        """What an attempt came to, or that an instance may begin."""
        if isinstance(ended, Instance):
            if ended.root.state == "blocked":
                self._queue(ended, ended.root)
            return
        if ended is None or ended[0].branch.job is not ended[0]:
            return  # a poke; or nobody waits for it any more
        running, given = ended
        self._at_work -= 1
        running.branch.job = None
        if isinstance(given, BaseException):
            given = perform.broken(running.need, given)
        self._tell_breaker(running.need, given)
        if self._judge(running.instance, running.branch, running.forward, running.need, given):
            self._queue(running.instance, running.branch)

    def _overrun(self, branch: Branch) -> None:
        """The time of its attempt is over. What can be interrupted says so itself, a moment later; the rest is left to itself."""
        running = branch.job
        if running is None or running.due is None or running.due > self.clock.now():
            return
        if not running.job.guard.why:
            running.job.interrupt("timeout")
            running.due = self.clock.now() + LEFT_AFTER_S
            heapq.heappush(self._timers, (running.due, next(self._count), running.instance, branch))
            return
        self._leave(branch)
        verdict = perform.Overdue() if running.is_overdue_around else perform.timed_out(running.need, running.policy, running.forward.luck)
        self._tell_breaker(running.need, verdict)
        if self._judge(running.instance, branch, running.forward, running.need, verdict):
            self._queue(running.instance, branch)

    def _leave(self, branch: Branch) -> None:
        running, branch.job = branch.job, None
        if running is not None and self.jobs is not None:
            self._at_work -= 1
            running.job.interrupt("cancelled")
            self.jobs.leave(running.job)

    def _tell_breaker(self, need: Perform, verdict: perform.Verdict) -> None:
        if isinstance(need.step, Step) and need.step.breaker is not None:
            failure = verdict.failure if isinstance(verdict, perform.Again | perform.GaveUp) else None
            outcome: Outcome = "good" if failure is None else "bad" if failure.retryable else "neither"
            self.breakers.tell(need.step.breaker, self.clock.now(), outcome, failure.message if failure else "")

    def _judge(self, instance: Instance, branch: Branch, forward: Forward, need: Perform, verdict: perform.Verdict) -> bool:
        def record(kind: Kind, data: Any) -> bool:
            return self._record(instance, branch, forward, Fact(need.position, kind, data, need.attempt))

        undo = need.step if isinstance(need.step, Undo) else None
        is_kept = isinstance(verdict, perform.Completed | perform.Later) and undo is None
        if is_kept and (refusal := perform.unkept(need, verdict.output, verdict.checkpoint, LARGEST_BYTES)):  # type: ignore[union-attr]
            verdict = perform.GaveUp(refusal)
        match verdict:
            case perform.Completed(output, checkpoint):
                if undo:
                    return record(Kind.UNDONE, {"origin": undo.origin})
                return record(Kind.STEP_COMPLETED, {"output": output, "checkpoint": checkpoint})
            case perform.Later(seconds, output, checkpoint, times_out):
                until = self.clock.now() + seconds
                return record(Kind.WAITING, {"until": until, "output": output, "checkpoint": checkpoint, "times_out": times_out})
            case perform.Again(failure, delay_s):
                return record(Kind.RETRIED, {"error": failure.to_json(), "not_before": self.clock.now() + delay_s})
            case perform.GaveUp(failure):
                if undo:
                    return record(Kind.UNDO_FAILED, {"origin": undo.origin, "error": failure.to_json()})
                return record(Kind.STEP_FAILED, {"error": failure.to_json()})
            case perform.Overdue():
                due = forward.due
                assert due is not None
                return self._record(instance, branch, forward, Fact(due[1], Kind.TIMED_OUT))

    def _park(self, instance: Instance, branch: Branch, forward: Forward, until: float | None, state: str = "parked") -> bool:
        branch.state = state
        wakes = [instant for instant in (until, forward.due[0] if forward.due else None) if instant is not None]
        if wakes:
            heapq.heappush(self._timers, (min(wakes), next(self._count), instance, branch))
        return False

    def _queue(self, instance: Instance, branch: Branch) -> None:
        branch.state = "ready"
        branch.listens = False
        self._ready.append((instance, branch))

    # ── branches ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self, instance: Instance, branch: Branch, forward: Forward, need: FanOut) -> None:
        fresh = [Branch(o.position, branch, need.position, need.mode, need.shared, o.vars, forward.context) for o in need.openings]
        for child, opening in zip(fresh, need.openings, strict=True):
            child.after = [fresh[k] for k in opening.after]
            for before in child.after:
                before.followers.append(child)
        branch.opened += fresh
        branch.joins[need.position], branch.open[need.position] = fresh, len(fresh)
        self._park(instance, branch, forward, None, "joining")
        branch.held_back.clear()
        for number, child in enumerate(fresh):
            if need.is_ready(number):
                self._queue(instance, child)
                continue
            child.state = "blocked"
            if need.mode == "limited":
                branch.held_back.append(child)

    def _close(self, instance: Instance, branch: Branch, outcome: str, output: Any = None, error: Any = None, context: Any = None) -> None:
        parent = branch.parent
        assert parent is not None
        branch.close(outcome)
        branch.output, branch.error, branch.context = output, error, context
        siblings = parent.joins[branch.join_position]
        if outcome == "ended" or (outcome == "completed" and self._decides(instance, branch, siblings)):
            for sibling in siblings:
                self._cut(sibling)
        elif outcome == "failed" and branch.mode in ("fork", "limited", "some"):
            for sibling in siblings:
                self._cut_gently(sibling)
        for follower in branch.followers:
            if follower.state == "blocked" and all(before.is_closed for before in follower.after):
                self._queue(instance, follower)
        while branch.mode == "limited" and parent.held_back:
            following = parent.held_back.popleft()
            if following.state == "blocked":
                self._queue(instance, following)
                break
        if not parent.open[branch.join_position]:
            self._queue(instance, parent)

    def _decides(self, instance: Instance, branch: Branch, siblings: list[Branch]) -> bool:
        """Whether the others are not wanted any more, now that this one completed."""
        if branch.mode == "some":
            fork = find(self._root(instance, branch) or instance.definition.do, branch.join_position.removeprefix("/undo"))
            assert isinstance(fork, Fork)
            return sum(sibling.outcome == "completed" for sibling in siblings) >= (fork.at_least or 0)
        return branch.mode == "compete"

    def _stop(self, branch: Branch) -> None:
        """Close it, with the step that it is in and the instance that it waits for."""
        if branch.is_closed:
            return
        self._leave(branch)
        branch.close("cancelled")
        self._stop_awaited(branch)

    def _stop_awaited(self, branch: Branch) -> None:
        for instance in list(self.instances.values()):
            if instance.parent is not None and instance.parent[1] is branch and instance.state not in TERMINAL:
                with contextlib.suppress(IllegalMove):
                    self.cancel(instance, "what waited for it was stopped")

    def _cut_gently(self, branch: Branch) -> None:
        """One that is in a step may end that step: what it did is recorded, and may be undone."""
        if branch.state in ("performing", "joining"):
            branch.stopping = True
            for child in branch.opened:
                self._cut_gently(child)
            if branch.state == "performing" or not all(child.is_closed for child in branch.opened):
                return
        self._stop(branch)

    def _cut(self, branch: Branch) -> None:
        self._stop(branch)
        for child in branch.opened:
            self._cut(child)

    # ── events and children ─────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self, instance: Instance, branch: Branch, forward: Forward, need: Listening) -> bool:
        for number, envelope in instance.events[bisect.bisect_right(instance.events, need.heard.after, key=itemgetter(0)) :]:
            if not need.heard.is_new(number):
                continue
            taken = forward.matching(envelope)
            if taken is not None:
                data = {"id": number, "event": envelope, **taken}
                return self._record(instance, branch, forward, Fact(need.position, Kind.RECEIVED, data, need.received + 1))
        self._park(instance, branch, forward, None)
        branch.listens = True
        return False

    def _wake_listeners(self, instance: Instance) -> None:
        for branch in instance.branches():
            if branch.listens and branch.state == "parked" and instance.state == State.RUNNING:
                self._queue(instance, branch)

    def _start_child(self, instance: Instance, branch: Branch, forward: Forward, need: StartChild) -> bool:
        try:
            given = need.compute()
            child = self.start(need.workflow if need.document is None else inline(need.document()), given)
        except OrchestratorError as error:
            failure = Failure(error.code, str(error), need.position, type(error).__name__)
            return self._record(instance, branch, forward, Fact(need.position, Kind.STEP_FAILED, {"error": failure.to_json()}))
        if need.awaited:
            child.parent = (instance, branch)
        return self._record(instance, branch, forward, Fact(need.position, Kind.CHILD_STARTED, {"instance_id": child.id}))

    def _await_child(self, instance: Instance, branch: Branch, forward: Forward, need: AwaitChild) -> bool:
        child = self.instances[need.instance_id]
        if child.state not in TERMINAL:
            return self._park(instance, branch, forward, None)
        data: dict[str, Any] = {"output": child.output} if child.state == State.COMPLETED else {"error": child.error}
        return self._record(instance, branch, forward, Fact(need.position, Kind.CHILD_ENDED, {**data, "instance_id": child.id}))

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finished(self, instance: Instance, branch: Branch, need: Finished) -> None:
        if branch.parent is not None:
            root = self._root(instance, branch)
            assert root is not None
            relative = branch.join_position.removeprefix("/undo") if self._is_undo(branch) else branch.join_position
            output = need.output if need.ended else handed_over(find(root, relative), need.output, branch.shared)
            context = need.context if need.context != branch.context else None
            self._close(instance, branch, "ended" if need.ended else "completed", output, context=context)
        elif branch.position == "/undo":
            self._end_undone(instance)
        else:
            branch.state, branch.outcome = "closed", "completed"
            instance.output = need.output
            self._end(instance, State.COMPLETED)

    def _failed(self, instance: Instance, branch: Branch, failure: Failure) -> None:
        if branch.parent is not None:
            self._close(instance, branch, "failed", error=failure.to_json())
            return
        branch.state, branch.outcome = "closed", "failed"
        if branch.position == "/undo":
            self._end_undone(instance)
            return
        instance.error = told(failure)
        if instance.definition.saga:
            self._turn_round(instance, State.FAILED)
        else:
            self._end(instance, State.FAILED)

    def _turn_round(self, instance: Instance, ending: State) -> None:
        instance.phase, instance.ending = "compensating", ending
        instance.state = State.RUNNING
        self._tell("workflow.compensating", instance)
        instance.undo = Branch(Position("/undo"))
        self._queue(instance, instance.undo)

    def _end_undone(self, instance: Instance) -> None:
        facts = instance.history
        undone = [fact.data["origin"] for fact in facts if fact.kind == Kind.UNDONE]
        failed = [{"position": fact.data["origin"], "error": fact.data["error"]} for fact in facts if fact.kind == Kind.UNDO_FAILED]
        result = "partially compensated" if failed else "compensated" if undone else "none"
        instance.compensation = {"result": result, "compensated": undone, "failed": failed}
        left = without_handler(instance.definition.do, self.completed_steps(instance), self.registry.has_handler)
        if left:
            instance.compensation["without_handler"] = [position for position, _ in left]
            said = ", ".join(f"{position} ({type})" for position, type in left)
            logger.warning("steps were not compensated, no handler is registered for them: %s", said, extra={"instance": instance.id})
        if instance.undo:
            instance.undo.state = "closed"
        self._end(instance, instance.ending)

    def _end(self, instance: Instance, state: State) -> None:
        instance.state = state
        instance.ended = self.clock.now()
        self.slots.give_back(instance.id)
        self._tell(f"workflow.{state.lower()}", instance)
        if instance.parent is not None:
            parent, branch = instance.parent
            if branch.state == "parked":
                self._queue(parent, branch)

    def _tell(self, what: str, instance: Instance, fact: Fact | None = None) -> None:
        if self.listener is not None:
            self.listener(what, instance, fact)
