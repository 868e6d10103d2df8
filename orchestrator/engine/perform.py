"""One attempt of one step: begin → execute → judge. No store, no Celery: the verdict is a value for the walker.

The embedded engine and the test kit run steps through the same door.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydantic

from orchestrator.definition.retry import NO_RETRY, RetryPolicy
from orchestrator.definition.tree import Step, Undo
from orchestrator.engine import interrupt
from orchestrator.errors import Cancelled, MissingCode, OrchestratorError, Retryable, StepError, StepTimeout
from orchestrator.history import Failure, error_names
from orchestrator.plan.needs import Perform
from orchestrator.steps import apps
from orchestrator.steps.functions import jsonable
from orchestrator.steps.registry import After, Registry, Result, StepContext
from orchestrator.telemetry import metrics


@dataclass(frozen=True, slots=True)
class Completed:
    output: Any
    checkpoint: Any


@dataclass(frozen=True, slots=True)
class Later:
    """Done, or out of time, only in so many seconds."""

    seconds: float
    output: Any
    checkpoint: Any
    times_out: bool


@dataclass(frozen=True, slots=True)
class Again:
    failure: Failure
    delay_s: float


@dataclass(frozen=True, slots=True)
class GaveUp:
    failure: Failure


Verdict = Completed | Later | Again | GaveUp
Luck = Callable[[str, int], float]


def policy_of(need: Perform, default: RetryPolicy) -> RetryPolicy:
    if isinstance(need.step, Undo):
        return need.step.compensation.retry or default
    if _is_once(need):
        # At most once means once: a retry would be a second time.
        return NO_RETRY
    return need.step.retry or default


def _is_once(need: Perform) -> bool:
    return not isinstance(need.step, Undo) and need.step.once


def timeout_of(need: Perform) -> float | None:
    step = need.step
    return step.compensation.timeout_s if isinstance(step, Undo) else step.timeout_s


def attempt(need: Perform, context: StepContext, registry: Registry, policy: RetryPolicy, luck: Luck) -> Verdict:
    """Run the executor (or the undo handler) once, within its time, and judge what came of it."""
    began = time.perf_counter()
    timeout_s = timeout_of(need)
    limit_s = context.deadline_s if timeout_s is None else timeout_s if context.deadline_s is None else min(timeout_s, context.deadline_s)
    try:
        # Outside of what may be broken into: whichever app is current for a step is so no longer after it.
        with apps.current(), interrupt.armed(limit_s):
            given = _execute(need, context, registry)
        took_s = time.perf_counter() - began
        if limit_s is not None and took_s > limit_s:
            raise StepTimeout(f"the step took {took_s:.1f} s, its timeout is {limit_s:g} s; its late result is discarded")
        verdict = _judged(given, timeout_s)
    except Cancelled:
        raise
    except StepTimeout as error:
        said = str(error) if "late" in str(error) else f"step timeout: no result within {limit_s:g} s"
        verdict = _failed(StepTimeout(said), need, policy, luck)
    except Exception as error:  # noqa: BLE001  # whatever a step raises becomes a value
        verdict = _failed(error, need, policy, luck)
    metrics.step_ended(need.step, verdict, time.perf_counter() - began)
    return verdict


def _execute(need: Perform, context: StepContext, registry: Registry) -> Any:
    step = need.step
    if isinstance(step, Step):
        return registry.executor(step.type).execute(context)
    handler = registry.handler(step.compensation.type)
    if handler is None:
        raise MissingCode("compensation", step.compensation.type)
    return handler.compensate(context)


def require_code(need: Perform, context: Callable[[], StepContext], registry: Registry) -> None:
    """Raises `MissingCode` before anything of an attempt is recorded. What is wrong otherwise the attempt itself will say."""
    step = need.step
    if isinstance(step, Step):
        lacks = getattr(registry.executor(step.type), "lacks", None)
        with contextlib.suppress(StepError):
            if lacks is not None and (error := lacks(context())) is not None:
                raise error
    elif registry.handler(step.compensation.type) is None:
        raise MissingCode("compensation", step.compensation.type)


def _judged(given: Any, timeout_s: float | None) -> Verdict:
    if given is None:
        return Completed(None, None)
    if isinstance(given, After):
        checked = _judged(given.result, None)
        assert isinstance(checked, Completed)
        if timeout_s is not None and given.seconds > timeout_s:
            return Later(timeout_s, None, None, times_out=True)
        return Later(given.seconds, checked.output, checked.checkpoint, times_out=False)
    if isinstance(given, Result):
        if not given.success:
            raise Retryable(given.error or "the step reported no success")
        return Completed(jsonable(given.data), jsonable(given.checkpoint))
    return Completed(jsonable(given), None)


def refused(need: Perform, policy: RetryPolicy, luck: Luck, error: Exception) -> Verdict:
    """The verdict on an attempt that was not made: its target is left alone."""
    return _failed(error, need, policy, luck)


def timed_out(need: Perform, policy: RetryPolicy, luck: Luck) -> Verdict:
    """The verdict on an attempt whose time ran out while nothing ran."""
    return _failed(StepTimeout(f"step timeout: no result within {timeout_of(need):g} s"), need, policy, luck)


def _failed(error: Exception, need: Perform, policy: RetryPolicy, luck: Luck) -> Verdict:
    failure = failure_of(error, need)
    again = policy.allows(failure.code, error_names(error), retryable=failure.retryable) and need.attempt < policy.max_attempts
    if again or (getattr(error, "counts_itself", False) and not _is_once(need)):
        delay = policy.delay_s(need.attempt, luck(need.position, need.attempt))
        return Again(failure, delay if failure.after_s is None else max(failure.after_s, 0.0))
    return GaveUp(failure)


# Faults of a program or its input: the same call would fail the same way.
_HOPELESS = (TypeError, AttributeError, NameError, ImportError, NotImplementedError, pydantic.ValidationError)


def _is_hopeless(error: BaseException) -> bool:
    return isinstance(error, _HOPELESS) or type(error).__name__ == "ValidationError"


def failure_of(error: BaseException, need: Perform) -> Failure:
    cause = error.__cause__
    if isinstance(error, OrchestratorError):
        code, retryable = error.code, error.retryable
    else:
        code, retryable = "runtime", not _is_hopeless(error)
    return Failure(
        code=code,
        message=str(error) or type(error).__name__,
        position=need.position,
        name=type(error).__name__,
        retryable=retryable,
        after_s=getattr(error, "after", None),
        attempts=need.attempt,
        details=getattr(error, "problem", None),
        cause=None if cause is None else {"name": type(cause).__name__, "message": str(cause)},
    )
