"""The walk: a worker takes a branch and goes on with it, step after step, until it ends, waits or is taken away.

    claim → rebuild from history → need → meet it → commit → need → …

Nothing that depends on a fact happens before the fact is committed. Facts without effects (decisions) wait in
`pending` and are committed together with what comes before the next effect: one insert per step, one for its
neighbours' decisions. If the process dies anywhere here, the lease runs out and the branch is walked again from the
last committed fact.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg

from orchestrator.definition.expressions import ExpressionError
from orchestrator.definition.tree import Definition, Step, Undo, default_retry, find
from orchestrator.engine import heartbeat, perform
from orchestrator.engine.rebuild import forward_of
from orchestrator.engine.runtime import Runtime, is_undo, queue_of
from orchestrator.engine.undoing import undo_tree
from orchestrator.errors import BrokenHistory, Cancelled, Fenced, OrchestratorError
from orchestrator.history import Fact, Failure, Kind
from orchestrator.ids import Position
from orchestrator.plan import listening, remaining
from orchestrator.plan.canvas import Address
from orchestrator.plan.forward import Forward
from orchestrator.plan.events import envelope_of
from orchestrator.plan.gathering import handed_over, joined
from orchestrator.plan.needs import (
    AwaitChild,
    Deadline,
    Decide,
    Failed,
    FanOut,
    Finished,
    Join,
    Listening,
    Need,
    Perform,
    Publish,
    Sleep,
    StartChild,
)
from orchestrator.steps.registry import StepContext
from orchestrator.store import admission, branches, events, instances, timers
from orchestrator.store.branches import Closing, Held
from orchestrator.store.connection import Connection, dumps
from orchestrator.store.instances import End
from orchestrator.telemetry import metrics, tracing

logger = logging.getLogger("orchestrator.walk")


class Stopped(Exception):
    """The walk is over for this worker: parked, handed over, halted, closed or fenced. Carries what is held next."""

    def __init__(self, next_held: Held | None = None) -> None:
        self.next_held = next_held


class Walk:
    """One branch in this worker's hands. `next_link` is the queue of the message that follows this one in its chain."""

    def __init__(self, runtime: Runtime, held: Held, *, queue: str, next_link: str | None = None) -> None:
        self.runtime = runtime
        self.settings = runtime.settings
        self.database = runtime.database
        self.held = held
        self.queue = queue
        self.next_link = next_link
        self.definition: Definition = runtime.definition(held.definition_id)
        self.base = held.now - time.monotonic()
        self.pending: list[Fact] = []
        self.events: list[tuple[str, str]] = []
        self.performed = 0
        self.was_isolated = False
        self.snapshot_seq = 0
        self.log_step = logger.isEnabledFor(logging.DEBUG)
        self.holding = runtime.hold(held.id, held.generation, held.instance_id)
        heartbeat.ensure(runtime)

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> Held | None:
        """Walk until this worker is done with the branch; gives a branch of the same fan-out taken on the way."""
        try:
            if self.held.stopping:
                self._close(Closing("cancelled"))
            self._rebuild()
            self._check_dependencies()
            self._check_poison()
            while True:
                self._meet(self.forward.need)
        except Stopped as stopped:
            return stopped.next_held
        except Fenced as error:
            metrics.fenced()
            logger.warning("%s; nothing was committed here", error, extra=self._labels())
            return None
        except BrokenHistory as error:
            self.pending.clear()
            self._end_failed(Failure(error.code, str(error), self.held.position, "BrokenHistory"))
            return None
        finally:
            self.runtime.let_go(self.held.id)

    def now(self) -> float:
        """The database's clock, counted on by this machine's monotonic one: a wrong wall clock does not matter."""
        return self.base + time.monotonic()

    def _meet(self, need: Need) -> None:
        due = self.forward.due
        if due is not None and due[0] <= self.now() and not isinstance(need, Finished | Failed):
            self._time_out(due[1])
            return
        match need:
            case Perform():
                self._perform(need)
            case Decide():
                self._decide(need)
            case Finished():
                self._end(need)
            case Failed(failure):
                self._end_failed(failure)
            case Sleep():
                self._sleep(need)
            case Deadline():
                self._deadline(need)
            case FanOut():
                self._fan_out(need)
            case Join():
                self._join(need)
            case Listening():
                self._listen(need)
            case Publish():
                self._emit(need)
            case StartChild():
                self._start_child(need)
            case AwaitChild():
                self._await_child(need)

    # ── history ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _rebuild(self) -> None:
        held = self.held
        root = self.root = self._root()
        if root is None:
            self._close_or_finish_undone()
            return
        before = self.database.patiently(lambda c: branches.by_ids(c, held.after or [])) if held.after else []
        self.shared = self._shared()
        self.forward = forward_of(self.definition, root, held, self.shared, before)
        if held.snapshot and not is_undo(held.position):
            self.forward.restore(held.snapshot, root)
            self.snapshot_seq = self.forward.seq
        if held.claims > 1 or held.generation > 1:
            self.forward.apply_all(self._facts(self.forward.seq))
        skipped = any(branch.outcome != "completed" for branch in before)
        if skipped and self.forward.seq == 0:
            self._close(Closing("skipped"), [Fact(held.position, Kind.TASK_SKIPPED, {"because": "a dependency did not complete"})])

    def _check_dependencies(self) -> None:
        """Woken before its first step by the patience with what it depends on: then that is why it fails."""
        if self.held.position != "" or self.forward.seq or self.held.generation == 1:
            return
        unmet = self.database.patiently(lambda c: admission.unmet(c, self.held.instance_id))
        if unmet:
            message = f"dependency timeout: waited for {'; '.join(unmet)}"
            self._end_failed(Failure("dependency_timeout", message, self.held.position, "DependencyTimeout"))

    def _shared(self) -> Any:
        """What flows into all branches of this one's fan-out; read once per process, however many branches there are."""
        held = self.held
        if held.parent_id is None:
            return None
        key = (held.parent_id, held.join_position)
        if key not in self.runtime.shared:
            parent_id = held.parent_id
            value = self.database.patiently(lambda c: branches.shared_input(c, parent_id))
            self.runtime.shared.clear()
            self.runtime.shared[key] = value
        return self.runtime.shared[key]

    def _facts(self, after: int) -> list[Fact]:
        return self.database.patiently(lambda c: branches.facts_after(c, self.held.id, after))

    def _root(self) -> Any:
        if not is_undo(self.held.position):
            return self.definition.do
        return self.database.patiently(lambda c: undo_tree(c, self.held.instance_id, self.definition, self.runtime.registry))

    def _record(self, fact: Fact) -> None:
        self.forward.apply(fact)
        self.pending.append(fact)

    def _flush(self) -> None:
        """Commit what is pending. Afterwards this worker still holds the branch and the instance still runs."""
        if not self.pending:
            return
        facts, told = self.pending, self.events
        held = self.held
        seq = self.forward.seq - len(facts)
        standing = self.database.patiently(lambda c: branches.commit(c, held, seq, facts, told))
        if standing is None:
            self._reconcile(seq)
            return
        self.pending = []
        self.events = []
        self._stand(*standing)

    def _stand(self, state: str, stopping: bool) -> None:
        """What the instance's state means for this walk: at a step boundary a pause takes hold."""
        if state == "PAUSED":
            self.database.patiently(lambda c: branches.release(c, self.held, "halted"))
            raise Stopped
        if state != "RUNNING":
            raise Stopped
        if stopping:
            self._close(Closing("cancelled"))

    def _reconcile(self, seq: int) -> None:
        """Nothing was written: fenced, or the numbers are taken (by this very commit, when its answer was lost)."""
        self.pending = []
        self.events = []
        mine = self.database.patiently(
            lambda c: c.execute(
                "select i.state, b.stopping from branches b join instances i on i.id = b.instance_id"
                " where b.id = %s and b.generation = %s and b.owner = %s and b.state = 'running'",
                (self.held.id, self.held.generation, self.held.owner),
            ).fetchone()
        )
        if mine is None:
            raise Fenced(self.held.position, self.held.generation)
        # First write wins: what stands there is adopted, and the walk goes on from it.
        self.held.claims += 1
        self._rebuild()
        self._stand(*mine)

    def _fence(self, happened: bool) -> None:
        if not happened:
            raise Fenced(self.held.position, self.held.generation)

    def _transact(self, act: Any) -> Any:
        """Facts and more in one transaction, begun with this branch's row lock. Not repeated when the line breaks
        with the outcome unknown: then the branch is left to recovery, which reads what really happened."""
        facts, told, held = self.pending, self.events, self.held
        seq = self.forward.seq - len(facts)

        def whole(c: Connection) -> Any:
            with c.transaction():
                if not branches.lock_branch(c, held):
                    return _FENCED
                branches.write(c, held.id, seq, facts)
                for type, data in told:
                    c.execute("insert into outbox (type, instance_id, data) values (%s, %s, %s::jsonb)", (type, held.instance_id, data))
                return act(c)

        try:
            given = self.database.patiently(whole)
        except psycopg.errors.UniqueViolation:
            given = _FENCED
        if given is _FENCED:
            raise Fenced(held.position, held.generation)
        self.pending = []
        self.events = []
        return given

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _perform(self, need: Perform) -> None:
        step = need.step
        if need.pending is not None:
            self._finish_later(need)
            return
        if need.not_before is not None and need.not_before > self.now():
            self._wait_until(need.not_before)
        if isinstance(step, Step) and self._belongs_elsewhere(step):
            self._hand_over(step)
        if isinstance(step, Step) and step.once:
            if need.intended:
                unknown = "this at-most-once step began before a crash; whether it took effect is not known"
                self._record_failure(need, Failure("outcome_unknown", unknown, need.position, "OutcomeUnknown", attempts=need.attempt))
                return
            self._record(Fact(need.position, Kind.INTENDED))
        if self.held.step_events:
            self._tell("step.running", need, {"attempt": need.attempt})
        self._flush()
        self.holding.doing = need.position
        self.performed += 1
        self.was_isolated = isinstance(step, Step) and step.isolate and need.attempt == 1
        verdict = self._attempt(need)
        self.holding.doing = ""
        self._judge(need, verdict)

    def _attempt(self, need: Perform) -> perform.Verdict:
        context = self._context(need)
        policy = perform.policy_of(need, default_retry(self.definition))
        try:
            if not tracing.is_enabled():
                return perform.attempt(need, context, self.runtime.registry, policy, self.forward.luck)
            with tracing.span(f"{self.definition.name}:{need.position}", instance=self.held.instance_id, attempt=need.attempt):
                return perform.attempt(need, context, self.runtime.registry, policy, self.forward.luck)
        except Cancelled:
            # If it is not this branch that was cancelled, the step is run again: it was broken off, not done.
            self._look_again()
            return self._attempt(need)

    def _context(self, need: Perform) -> StepContext:
        step = need.step
        undo = step if isinstance(step, Undo) else None
        due = self.forward.due
        return StepContext(
            instance_id=self.held.instance_id,
            workflow=self.definition.name,
            position=need.position,
            name=step.name,
            type=undo.compensation.type if undo else step.type,  # type: ignore[union-attr]
            input=need.input,
            parameters=need.parameters,
            attempt=need.attempt,
            deadline_s=None if due is None else max(0.001, due[0] - self.now()),
            trace_id=self.held.trace_id,
            output=undo.output if undo else None,
            checkpoint=undo.checkpoint if undo else None,
            input_of_instance=self.held.instance_input,
        )

    def _judge(self, need: Perform, verdict: perform.Verdict) -> None:
        match verdict:
            case perform.Completed(output, checkpoint):
                self._record_completed(need, output, checkpoint)
            case perform.Again(failure, delay_s):
                data = {"error": failure.to_json(), "not_before": self.now() + delay_s}
                self._record(Fact(need.position, Kind.RETRIED, data, need.attempt))
                if self.held.step_events:
                    self._tell("step.retried", need, data)
            case perform.Later(seconds, output, checkpoint, times_out):
                later = {"until": self.now() + seconds, "output": output, "checkpoint": checkpoint, "times_out": times_out}
                self._record(Fact(need.position, Kind.WAITING, later))
            case perform.GaveUp(failure):
                self._record_failure(need, failure)

    def _record_completed(self, need: Perform, output: Any, checkpoint: Any) -> None:
        limit = self.settings.payload_limit_bytes
        data: dict[str, Any] | None = None
        if isinstance(need.step, Undo):
            self._record(Fact(need.position, Kind.UNDONE, {"origin": need.step.origin}, need.attempt))
        else:
            if output is not None or checkpoint is not None:
                data = {"output": output} if checkpoint is None else {"output": output, "checkpoint": checkpoint}
                try:
                    oversize = len(text := dumps(data)) > limit // 4 and len(text.encode()) > limit
                except ValueError as error:
                    self._record_failure(need, Failure("runtime", f"a step's result must be JSON: {error}", need.position, "ValueError"))
                    return
                if oversize:
                    message = (
                        f"the step's result has more than {limit:,} bytes (PAYLOAD_LIMIT_BYTES); store it elsewhere and return a reference"
                    )
                    self._record_failure(need, Failure("too_large", message, need.position, "TooLarge", attempts=need.attempt))
                    return
            self._record(Fact(need.position, Kind.STEP_COMPLETED, data, need.attempt))
        if self.held.step_events:
            self._tell("step.compensated" if isinstance(need.step, Undo) else "step.completed", need, {})

    def _record_failure(self, need: Perform, failure: Failure) -> None:
        if isinstance(need.step, Undo):
            # The others are undone all the same; what failed is recorded and told in the outcome.
            data = {"origin": need.step.origin, "error": failure.to_json()}
            self._record(Fact(need.position, Kind.UNDO_FAILED, data, need.attempt))
        else:
            self._record(Fact(need.position, Kind.STEP_FAILED, {"error": failure.to_json()}, need.attempt))
        logger.warning("step failed after %d attempts: %s", need.attempt, failure.message, extra=self._labels(need.position))
        if self.held.step_events:
            self._tell("step.failed", need, {"error": failure.to_json()})

    def _finish_later(self, need: Perform) -> None:
        """A step that was done in so many seconds: the time has come, or is still to come."""
        pending = need.pending or {}
        if pending["until"] > self.now():
            self._wait_until(pending["until"])
        if pending["times_out"]:
            policy = perform.policy_of(need, default_retry(self.definition))
            self._judge(need, perform.timed_out(need, policy, self.forward.luck))
        else:
            self._record_completed(need, pending["output"], pending["checkpoint"])

    def _check_poison(self) -> None:
        held = self.held
        need = self.forward.need
        if held.crashes >= self.settings.crash_limit and held.crash_seq == self.forward.seq and isinstance(need, Perform):
            message = f"this step was running when a worker died, {held.crashes} times in a row"
            self._record_failure(need, Failure("worker_crashed", message, need.position, "WorkerCrashed", attempts=need.attempt))

    def _belongs_elsewhere(self, step: Step) -> bool:
        home = step.queue or self.held_queue
        return home != self.queue or (step.isolate and self.performed > 0) or self.was_isolated

    @property
    def held_queue(self) -> str:
        """The instance's own queue."""
        return queue_of(self.held.priority)

    def _hand_over(self, step: Step) -> None:
        """The next step is not this worker's: give the branch to its queue. The message that follows in this chain
        takes it from there; when none does, what remains is published afresh."""
        queue = step.queue or self.held_queue
        self._flush()
        if self.next_link == queue:
            self._fence(self.database.patiently(lambda c: branches.release(c, self.held, "queued", queue)))
            raise Stopped
        held = self.held

        def move(c: Connection) -> bool:
            row = c.execute(
                "update branches set state = 'queued', generation = generation + 1, queue = %s, queued_at = now(),"
                " owner = null, lease_until = null where id = %s and generation = %s and owner = %s and state = 'running' returning 1",
                (queue, held.id, held.generation, held.owner),
            ).fetchone()
            return row is not None

        self._fence(self.database.patiently(move))
        address = Address(held.instance_id, held.position, held.generation + 1, self.held_queue, self.definition.name)
        self.runtime.publisher.plan(remaining.of_branch(self.forward), address)
        raise Stopped

    # ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, need: Decide) -> None:
        try:
            data = {"slot": need.slot, "value": need.compute()}
        except (ExpressionError, ValueError) as error:
            failure = Failure("expression", str(error), need.position, type(error).__name__)
            data = {"slot": need.slot, "error": failure.to_json()}
        except OrchestratorError as error:
            data = {"slot": need.slot, "error": Failure(error.code, str(error), need.position, type(error).__name__).to_json()}
        self._record(Fact(need.position, Kind.DECIDED, data))
        if len(self.pending) >= 500:
            self._flush()

    def _deadline(self, need: Deadline) -> None:
        due = self.now() + need.seconds
        self._record(Fact(need.position, Kind.DEADLINE, {"due": due}))
        if need.position == "":
            # The instance's own deadline holds while nothing runs, and fences who runs past it.
            self._transact(lambda c: timers.set_deadline(c, self.held.id, due))

    def _time_out(self, position: Position) -> None:
        self._record(Fact(position, Kind.TIMED_OUT))
        self._transact(lambda c: branches.stop_children(c, self.held.id, gently=False))

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _sleep(self, need: Sleep) -> None:
        until = need.until
        if until is None:
            assert need.seconds is not None
            until = self.now() + need.seconds
            self._record(Fact(need.position, Kind.WAITING, {"until": until}))
        if until > self.now():
            self._wait_until(until)
        self._record(Fact(need.position, Kind.WAITED))

    def _wait_until(self, until: float) -> None:
        """Short waits are slept through under the lease; longer ones give the worker up."""
        due = self.forward.due
        wake = until if due is None else min(until, due[0])
        length = wake - self.now()
        if length > self.settings.inline_wait_s:
            self._park_until(wake)
        self._flush()
        if length > 0:
            time.sleep(length)
        self._look_again()

    def _look_again(self) -> None:
        """After a sleep: is it still ours to go on?"""
        held = self.held
        standing = self.database.patiently(
            lambda c: c.execute(
                "select i.state, b.stopping from branches b join instances i on i.id = b.instance_id"
                " where b.id = %s and b.generation = %s and b.owner = %s and b.state = 'running'",
                (held.id, held.generation, held.owner),
            ).fetchone()
        )
        if standing is None:
            raise Fenced(held.position, held.generation)
        self._stand(*standing)

    def _snapshot(self) -> str | None:
        """Written now and then by branches that live long, so that waking costs the same however long they have lived."""
        if self.forward.seq - self.snapshot_seq < self.settings.snapshot_every or is_undo(self.held.position):
            return None
        return dumps(self.forward.snapshot())

    def _park_until(self, due: float) -> None:
        facts, held = self.pending, self.held
        if self.events:
            self._transact(lambda c: branches.park(c, held.id, self._snapshot(), due))
            raise Stopped
        seq = self.forward.seq - len(facts)
        snapshot = self._snapshot()
        try:
            parked = self.database.patiently(lambda c: branches.park_until(c, held, seq, facts, due, snapshot))
        except psycopg.errors.UniqueViolation:
            parked = False
        self._fence(parked)
        raise Stopped

    def _listen(self, need: Listening) -> None:
        held = self.held
        types = listening.types(need.task)
        wanted = None if None in types else [t for t in types if t is not None]
        after = need.after_event
        while True:
            found = self.database.patiently(lambda c: events.after(c, held.instance_id, held.tenant, wanted, after, held.created_at))
            for event_id, envelope in found:
                after = event_id
                taken = self.forward.matching(envelope)
                if taken is not None:
                    data = {"id": event_id, "event": envelope, **taken}
                    self._record(Fact(need.position, Kind.RECEIVED, data, need.received + 1))
                    return
            if not found:
                break
        due = self.forward.due

        def park(c: Connection) -> None:
            events.subscribe(c, held.id, held.instance_id, held.tenant, types)
            branches.park(c, held.id, self._snapshot(), None if due is None else due[0])

        self._transact(park)
        # Asked again after the commit: an event that came in between saw no listener.
        late = self.database.patiently(lambda c: events.after(c, held.instance_id, held.tenant, wanted, after, held.created_at, 1))
        if late:
            self.runtime.publisher.branches(self.database.patiently(lambda c: instances.wake_branch(c, held.id)), self.definition.name)
        raise Stopped

    # ── branches ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _fan_out(self, need: FanOut) -> None:
        held = self.held
        self._record(Fact(need.position, Kind.OPENED, {"count": len(need.openings)}))
        context = self.forward.context

        def opening(c: Connection) -> None:
            branches.open_children(c, held, need.position, need.mode, held.queue, need.shared, need.openings, context)

        self._transact(opening)
        ready = sum(not opening.after for opening in need.openings)
        address = Address(held.instance_id, held.position, held.generation, self.held_queue, self.definition.name)
        self.runtime.publisher.plan(remaining.Parallel(ready, need.mode), address, self.runtime.helpers())
        raise Stopped

    def _join(self, need: Join) -> None:
        held = self.held
        children = self.database.patiently(lambda c: branches.children(c, held.id, need.position))
        if any(child.state != "closed" for child in children):
            # Not yet: whoever closes the last one asks again.
            self._transact(lambda c: branches.join(c, held.id))
            raise Stopped
        self._record(Fact(need.position, Kind.JOINED, joined(need, children)))

    # ── events and children ─────────────────────────────────────────────────────────────────────────────────────────

    def _emit(self, need: Publish) -> None:
        held = self.held
        try:
            given = need.compute()
        except OrchestratorError as error:
            failure = Failure(error.code, str(error), need.position, type(error).__name__)
            self._record(Fact(need.position, Kind.STEP_FAILED, {"error": failure.to_json()}))
            return
        envelope = envelope_of(given, held.instance_id, need.position, self.definition)
        self._record(Fact(need.position, Kind.EMITTED, {"event": envelope}))

        def tell(c: Connection) -> None:
            events.keep(c, envelope, None, held.tenant)
            instances.tell(c, "event.emitted", held.instance_id, {"event": envelope})

        self._transact(tell)
        self.runtime.publisher.branches(self.database.patiently(lambda c: events.wake_listeners(c, envelope["type"], None, held.tenant)))

    def _start_child(self, need: StartChild) -> None:
        from orchestrator.engine.lifecycle import prepare_child

        held = self.held
        try:
            new, plan, address = prepare_child(self.runtime, held, need)
        except OrchestratorError as error:
            failure = Failure(error.code, str(error), need.position, type(error).__name__)
            self._record(Fact(need.position, Kind.STEP_FAILED, {"error": failure.to_json()}))
            return
        self._record(Fact(need.position, Kind.CHILD_STARTED, {"instance_id": new.id}))

        def starting(c: Connection) -> None:
            instances.create(c, new)
            if need.awaited:
                due = self.forward.due
                branches.park(c, held.id, self._snapshot(), None if due is None else due[0])

        self._transact(starting)
        self.runtime.publisher.plan(plan, address)
        if need.awaited:
            raise Stopped

    def _await_child(self, need: AwaitChild) -> None:
        held = self.held
        row = self.database.patiently(
            lambda c: c.execute("select state, outcome, output, error from instances where id = %s", (need.instance_id,)).fetchone()
        )
        state, outcome, output, error = row or ("FAILED", "FAILED", None, {"code": "not_found", "message": "the child instance is gone"})
        if outcome is None:
            due = self.forward.due
            self._transact(lambda c: branches.park(c, held.id, self._snapshot(), None if due is None else due[0]))
            # Asked again after the commit, as everywhere where two may miss each other.
            ended = self.database.patiently(
                lambda c: c.execute("select 1 from instances where id = %s and outcome is not null", (need.instance_id,)).fetchone()
            )
            if ended:
                self.runtime.publisher.branches(self.database.patiently(lambda c: instances.wake_branch(c, held.id)))
            raise Stopped
        if outcome == "COMPLETED":
            data: dict[str, Any] = {"output": output}
        else:
            fallback = {"code": "cancelled", "message": f"child workflow was {outcome.lower()}"}
            data = {"error": {**(error or fallback), "details": (error or {}).get("details"), "position": need.position}}
        self._record(Fact(need.position, Kind.CHILD_ENDED, {**data, "instance_id": need.instance_id, "state": state}))

    # ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _end(self, need: Finished) -> None:
        if self.held.parent_id is not None:
            outcome = "ended" if need.ended else "completed"
            output = need.output if need.ended else self._handed_over(need.output)
            self._close(Closing(outcome, output, context=need.context if need.context != self.held.context else None))
        if self.held.position == "/undo":
            self._end_undone()
        self._end_instance(End("COMPLETED", need.output))

    def _handed_over(self, output: Any) -> Any:
        join_position = (self.held.join_position or "").removeprefix("/undo") if is_undo(self.held.position) else self.held.join_position
        return handed_over(find(self.root, join_position or ""), output, self.shared)

    def _end_failed(self, failure: Failure) -> None:
        if self.held.parent_id is not None:
            self._close(Closing("failed", error=failure.to_json()))
        from orchestrator.engine.ending import end_failed

        end_failed(self, failure)

    def _end_undone(self) -> None:
        from orchestrator.engine.ending import end_undone

        end_undone(self)

    def _close_or_finish_undone(self) -> None:
        """Nothing is to be undone."""
        self.forward = Forward(Undo(), self.held.position)
        self._end_undone()

    def _end_instance(self, end: End) -> None:
        from orchestrator.engine.ending import end_instance

        end_instance(self, end)

    def _close(self, closing: Closing, facts: list[Fact] | None = None) -> None:
        """End a branch that others wait for. In a fork the next open branch is taken in the same statement."""
        held = self.held
        if facts is not None:
            self.pending = facts
            seq = 0
        else:
            seq = self.forward.seq - len(self.pending) if self.pending else 0
        pending, told = self.pending, self.events
        if closing.outcome == "failed" or held.mode == "compete" or closing.outcome == "ended":
            self._close_and_stop_siblings(closing, seq)
            raise Stopped
        next_of = held.parent_id if held.mode == "fork" else None
        try:
            closed, following = self.database.patiently(
                lambda c: branches.close(c, held, seq, pending, closing, told, next_of=next_of, lease_s=self.settings.lease_s)
            )
        except psycopg.errors.UniqueViolation:
            closed, following = False, None
        self._fence(closed)
        raise Stopped(following)

    def _close_and_stop_siblings(self, closing: Closing, seq: int) -> None:
        held, facts, told = self.held, self.pending, self.events
        wins = closing.outcome != "failed"
        stops = held.mode != "graph" and (held.mode != "compete" or wins)

        def whole(c: Connection) -> bool:
            with c.transaction():
                if stops:
                    branches.stop_siblings(c, held, gently=not wins)
                closed, _ = branches.close(c, held, seq, facts, closing, told, next_of=None, lease_s=self.settings.lease_s)
                if not closed:
                    raise Fenced(held.position, held.generation)
                return closed

        try:
            self.database.patiently(whole)
        except psycopg.errors.UniqueViolation:
            raise Fenced(held.position, held.generation) from None

    # ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, type: str, need: Perform, more: dict[str, Any]) -> None:
        self.events.append((type, dumps({"step": need.step.name, "position": need.position, **more})))

    def _labels(self, position: str | None = None) -> dict[str, Any]:
        return {"instance": self.held.instance_id, "position": position or self.held.position, "workflow": self.definition.name}


_FENCED = object()
