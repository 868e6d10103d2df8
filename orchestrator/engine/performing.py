"""Steps: one attempt at a time, judged and recorded; and whose queue they belong to."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.breakers import CircuitOpen, Outcome, name_for
from orchestrator.definition.retry import RetryPolicy
from orchestrator.definition.tree import Step, Undo, default_retry
from orchestrator.engine import ending, interrupt, perform, waiting
from orchestrator.engine.stopped import Stopped
from orchestrator.errors import Cancelled
from orchestrator.history import Fact, Failure, Kind
from orchestrator.plan import remaining
from orchestrator.plan.canvas import Address
from orchestrator.plan.needs import Failed, Finished, Perform
from orchestrator.steps.registry import StepContext
from orchestrator.store import branches
from orchestrator.telemetry import logs, tracing

if TYPE_CHECKING:
    from orchestrator.engine.walk import Walk

logger = logging.getLogger("orchestrator.walk")


def perform_step(walk: Walk, need: Perform) -> None:
    step = need.step
    if need.pending is not None:
        finish_later(walk, need)
        return
    if need.not_before is not None and need.not_before > walk.now() and not waiting.wait_until(walk, need.not_before):
        return
    if isinstance(step, Step) and belongs_elsewhere(walk, step):
        hand_over(walk, step)
    perform.require_code(need, lambda: context_of(walk, need), walk.runtime.registry)
    if isinstance(step, Step) and step.once:
        if need.intended:
            record_failure(walk, need, unknown(need, "this at-most-once step began before a crash; whether it took effect is not known"))
            return
        walk.record(Fact(need.position, Kind.INTENDED))
    if walk.held.step_events:
        walk.tell("step.running", need, {"attempt": need.attempt})
    walk.flush()
    walk.holding.doing = need.position
    walk.holding.time_out = functools.partial(record_timeout, walk, need)
    walk.performed += 1
    walk.was_isolated = isinstance(step, Step) and step.isolate and need.attempt == 1
    with logs.about({**walk.labels(need.position), "attempt": need.attempt}):
        verdict = attempt(walk, need)
    walk.holding.doing, walk.holding.time_out = "", None
    judge(walk, need, verdict)


def record_timeout(walk: Walk, need: Perform) -> None:
    """For the step that no interruption reaches, from another thread, before the process ends: the walk commits nothing any more."""
    due = walk.forward.due
    if due is not None and due[0] <= walk.now():
        return  # of a task around it: whoever takes the branch next sees that
    judge(walk, need, perform.timed_out(need, perform.policy_of(need, default_retry(walk.definition)), walk.forward.luck))
    walk.flush()


def attempt(walk: Walk, need: Perform) -> perform.Verdict:
    policy = perform.policy_of(need, default_retry(walk.definition))
    named = need.step.breaker if isinstance(need.step, Step) else None
    if named is None:
        return attempt_now(walk, need, policy)
    breaker = name_for(walk.held.tenant, named)
    try:
        walk.runtime.breakers.ask(breaker)
    except CircuitOpen as error:
        return perform.refused(need, policy, walk.forward.luck, error)
    verdict = attempt_now(walk, need, policy)
    failure = verdict.failure if isinstance(verdict, perform.Again | perform.GaveUp) else None
    # What the same call would do again is the caller's fault, and says nothing of the target.
    outcome: Outcome = "good" if failure is None else "bad" if failure.retryable else "neither"
    walk.runtime.breakers.tell(breaker, outcome, failure.message if failure else "")
    return verdict


def attempt_now(walk: Walk, need: Perform, policy: RetryPolicy) -> perform.Verdict:
    context = context_of(walk, need)
    run = functools.partial(interrupt.run, key=walk.held.id, grace_s=walk.settings.interrupt_grace_s)
    try:
        if not tracing.is_enabled():
            return perform.attempt(need, context, walk.runtime.registry, policy, walk.forward.luck, run)
        with tracing.span(f"{walk.definition.name}:{need.position}", instance=walk.held.instance_id, attempt=need.attempt):
            return perform.attempt(need, context, walk.runtime.registry, policy, walk.forward.luck, run)
    except Cancelled:
        walk.look_again()
        # Held here all the same: the step was broken off, not done.
        if isinstance(need.step, Step) and need.step.once:
            return perform.GaveUp(unknown(need, "this at-most-once step was broken off; whether it took effect is not known"))
        return attempt_now(walk, need, policy)


def unknown(need: Perform, message: str) -> Failure:
    return Failure("outcome_unknown", message, need.position, "OutcomeUnknown", attempts=need.attempt)


def context_of(walk: Walk, need: Perform) -> StepContext:
    step = need.step
    undo = step if isinstance(step, Undo) else None
    due = walk.forward.due
    return StepContext(
        instance_id=walk.held.instance_id,
        workflow=walk.definition.name,
        position=need.position,
        name=step.name,
        type=undo.compensation.type if undo else step.type,  # type: ignore[union-attr]
        input=need.input,
        parameters=need.parameters,
        attempt=need.attempt,
        deadline_s=None if due is None else max(0.001, due[0] - walk.now()),
        trace_id=walk.held.trace_id,
        output=undo.output if undo else None,
        checkpoint=undo.checkpoint if undo else None,
        input_of_instance=walk.held.instance_input,
        literal=None if undo else step.literal,  # type: ignore[union-attr]
        scope=walk.forward.scope(walk.forward.frames[-1]) if isinstance(step, Step) and step.literal is not None else {},
        secrets=walk.forward.instance.get("secrets") or {},
    )


def judge(walk: Walk, need: Perform, verdict: perform.Verdict) -> None:
    if isinstance(verdict, perform.Again | perform.GaveUp):
        logger.debug("handleError: %s, %s", verdict.failure.message, type(verdict).__name__, extra=walk.labels(need.position))
    match verdict:
        case perform.Completed(output, checkpoint):
            record_completed(walk, need, output, checkpoint)
        case perform.Again(failure, delay_s):
            data = {"error": failure.to_json(), "not_before": walk.now() + delay_s}
            walk.record(Fact(need.position, Kind.RETRIED, data, need.attempt))
            if walk.held.step_events:
                walk.tell("step.retried", need, data)
        case perform.Later(seconds, output, checkpoint, times_out):
            if refusal := perform.unkept(need, output, checkpoint, walk.settings.payload_limit_bytes):
                record_failure(walk, need, refusal)
                return
            later = {"until": walk.now() + seconds, "output": output, "checkpoint": checkpoint, "times_out": times_out}
            walk.record(Fact(need.position, Kind.WAITING, later))
        case perform.GaveUp(failure):
            record_failure(walk, need, failure)
        case perform.Overdue():
            due = walk.forward.due
            assert due is not None
            waiting.time_out(walk, due[1])


def record_completed(walk: Walk, need: Perform, output: Any, checkpoint: Any) -> None:
    data: dict[str, Any] | None = None
    if isinstance(need.step, Undo):
        walk.record(Fact(need.position, Kind.UNDONE, {"origin": need.step.origin}, need.attempt))
    else:
        if refusal := perform.unkept(need, output, checkpoint, walk.settings.payload_limit_bytes):
            record_failure(walk, need, refusal)
            return
        if output is not None or checkpoint is not None:
            data = {"output": output} if checkpoint is None else {"output": output, "checkpoint": checkpoint}
        walk.record(Fact(need.position, Kind.STEP_COMPLETED, data, need.attempt))
    if walk.held.step_events:
        walk.tell("step.compensated" if isinstance(need.step, Undo) else "step.completed", need, {})


def record_failure(walk: Walk, need: Perform, failure: Failure) -> None:
    if isinstance(need.step, Undo):
        # The others are undone all the same; what failed is recorded and told in the outcome.
        data = {"origin": need.step.origin, "error": failure.to_json()}
        walk.record(Fact(need.position, Kind.UNDO_FAILED, data, need.attempt))
    else:
        walk.record(Fact(need.position, Kind.STEP_FAILED, {"error": failure.to_json()}, need.attempt))
    logger.warning("step failed after %d attempts: %s", need.attempt, failure.message, extra=walk.labels(need.position))
    if walk.held.step_events:
        walk.tell("step.failed", need, {"error": failure.to_json()})


def finish_later(walk: Walk, need: Perform) -> None:
    """A step that was done in so many seconds: the time has come, or is still to come."""
    pending = need.pending or {}
    if pending["until"] > walk.now() and not waiting.wait_until(walk, pending["until"]):
        return
    if pending["times_out"]:
        policy = perform.policy_of(need, default_retry(walk.definition))
        judge(walk, need, perform.timed_out(need, policy, walk.forward.luck))
    else:
        record_completed(walk, need, pending["output"], pending["checkpoint"])


def check_poison(walk: Walk) -> None:
    """A branch at whose present place workers died again and again fails there, whatever it needs there."""
    held = walk.held
    if held.crashes >= walk.settings.crash_limit and held.crash_seq == walk.forward.seq:
        message = f"this step was running when a worker died, {held.crashes} times in a row"
        fail_here(walk, Failure("worker_crashed", message, held.position, "WorkerCrashed"))


def fail_here(walk: Walk, failure: Failure) -> None:
    """What the branch needs now has failed: caught where something catches it; where nothing remains, the branch has failed."""
    need = walk.forward.need
    if isinstance(need, Finished | Failed):
        ending.end_failed(walk, failure)
        return
    at = replace(failure, position=need.position)
    if isinstance(need, Perform):
        record_failure(walk, need, replace(at, attempts=need.attempt))
        return
    walk.record(Fact(need.position, Kind.STEP_FAILED, {"error": at.to_json()}))
    logger.warning("task failed: %s", at.message, extra=walk.labels(need.position))


def belongs_elsewhere(walk: Walk, step: Step) -> bool:
    home = step.queue or walk.held_queue
    return home != walk.queue or (step.isolate and walk.performed > 0) or walk.was_isolated


def hand_over(walk: Walk, step: Step) -> None:
    """The next step is not this worker's: give the branch to its queue. The message that follows in this chain
    takes it from there; when none does, what remains is published afresh."""
    queue = step.queue or walk.held_queue
    walk.flush()
    if walk.next_link == queue:
        walk.fence(walk.database.patiently(lambda c: branches.release(c, walk.held, "queued", queue)))
        raise Stopped
    held = walk.held
    walk.fence(walk.database.patiently(lambda c: branches.hand_over(c, held, queue)))
    address = Address(held.instance_id, held.position, held.generation + 1, walk.held_queue, walk.definition.name)
    walk.runtime.publisher.plan(remaining.of_branch(walk.forward), address)
    raise Stopped
