"""One attempt of one step: begin → execute → judge. No database, no Celery: the verdict is a value for the walker.

The embedded engine and the test kit run steps through the same door.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydantic

from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.definition.retry import NO_RETRY, RetryPolicy
from orchestrator.definition.tree import Step, Undo
from orchestrator.engine import interrupt
from orchestrator.errors import (
    Cancelled,
    MissingCode,
    NotJson,
    OrchestratorError,
    Retryable,
    StepError,
    StepTimeout,
    TooDeep,
    TooLarge,
    plain,
    text_of,
)
from orchestrator.history import Failure, error_names
from orchestrator.plan.needs import Perform
from orchestrator.steps import apps
from orchestrator.steps.functions import ResultError, jsonable
from orchestrator.steps.registry import After, Registry, Result, StepContext
from orchestrator.store.connection import sized
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


@dataclass(frozen=True, slots=True)
class Overdue:
    """The time of a task around the step was over first."""


Verdict = Completed | Later | Again | GaveUp | Overdue
Luck = Callable[[str, int], float]
Run = Callable[[Callable[[], Any], float | None], Any]
"""Runs a body, for so many seconds at most. Raises `StepTimeout` and `Cancelled` of its own, and no other `BaseException`."""


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


def attempt(need: Perform, context: StepContext, registry: Registry, policy: RetryPolicy, luck: Luck, run: Run = interrupt.run) -> Verdict:
    """Run the executor (or the undo handler) once, within its time, and judge what came of it."""
    began = time.perf_counter()
    timeout_s, around_s = timeout_of(need), context.deadline_s
    limits = [limit for limit in (timeout_s, around_s) if limit is not None]
    limit_s = min(limits) if limits else None

    def whole() -> Verdict:
        # What an exception says of itself is code of others, too, and runs within the step's time.
        try:
            return _judged(_execute(need, context, registry), timeout_s)
        except Exception as error:  # noqa: BLE001  # whatever a step raises becomes a value
            return _failed(error, need, policy, luck)

    verdict: Verdict
    try:
        # Outside of what may be broken into: whichever app is current for a step is so no longer after it.
        with apps.current():
            verdict = run(whole, limit_s)
    except Cancelled:
        raise
    except StepTimeout as error:
        is_overdue = around_s is not None and around_s == limit_s and time.perf_counter() - began >= around_s
        verdict = Overdue() if is_overdue else _failed(error, need, policy, luck)
    except Exception as error:  # noqa: BLE001  # it tried to end the process, or could not even be told
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
        later_s = _seconds(given.seconds)
        checked = _judged(given.result, None)
        if not isinstance(checked, Completed):
            raise ResultError("an After holds a result, not another After")
        if timeout_s is not None and later_s > timeout_s:
            return Later(timeout_s, None, None, times_out=True)
        return Later(later_s, checked.output, checked.checkpoint, times_out=False)
    if isinstance(given, Result):
        if not given.success:
            raise Retryable(given.error or "the step reported no success")
        return Completed(jsonable(given.data), jsonable(given.checkpoint))
    return Completed(jsonable(given), None)


def _seconds(given: Any) -> float:
    try:
        return seconds(given)
    except BadDuration as error:
        raise ResultError(f"the step asked for time it cannot have: {error}") from None


def unkept(need: Perform, output: Any, checkpoint: Any, limit_bytes: int) -> Failure | None:
    """Why a result cannot be kept, if so. The same step would give the same again, so it is not tried again."""
    if output is None and checkpoint is None:
        return None
    try:
        sized("a step's result", output if checkpoint is None else [output, checkpoint], limit_bytes)
    except NotJson as error:
        return Failure("runtime", str(error), need.position, "ResultError", attempts=need.attempt)
    except (TooLarge, TooDeep) as error:
        return Failure(error.code, str(error), need.position, type(error).__name__, attempts=need.attempt)
    return None


def broken(need: Perform, error: BaseException) -> Verdict:
    """The verdict on an attempt that did not even come to one."""
    return GaveUp(Failure("internal", f"{type(error).__name__}: {text_of(error)}", need.position, "Internal", attempts=need.attempt))


def refused(need: Perform, policy: RetryPolicy, luck: Luck, error: Exception) -> Verdict:
    """The verdict on an attempt that was not made: its target is left alone."""
    return _failed(error, need, policy, luck)


def timed_out(need: Perform, policy: RetryPolicy, luck: Luck) -> Verdict:
    """The verdict on an attempt whose time ran out while nothing ran."""
    return _failed(StepTimeout(f"step timeout: no result within {timeout_of(need):.3g} s"), need, policy, luck)


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
    """Whatever was raised, as a value that can be kept: exceptions are code of others, also in what they say of themselves."""
    cause = error.__cause__
    if isinstance(error, OrchestratorError):
        code, retryable = str(error.code), bool(error.retryable)
    else:
        code, retryable = "runtime", not _is_hopeless(error)
    return Failure(
        code=code,
        message=text_of(error),
        position=need.position,
        name=type(error).__name__,
        retryable=retryable,
        after_s=_asked_for(error),
        attempts=need.attempt,
        details=_details(error),
        cause=None if cause is None else {"name": plain(type(cause).__name__, 200), "message": text_of(cause)},
    )


def _asked_for(error: BaseException) -> float | None:
    """The seconds after which an error wants its step to be tried again. Nonsense is no demand."""
    after = getattr(error, "after", None)
    try:
        return None if isinstance(after, str | dict) or after is None else seconds(after)
    except BadDuration:
        return None


MOST_DETAILS = 64 * 1024


def _details(error: BaseException) -> Any:
    """The problem that an error carries, when it is JSON of a bounded size."""
    details = getattr(error, "problem", None)
    if details is None:
        return None
    try:
        sized("details", details, MOST_DETAILS)
    except (NotJson, TooLarge, TooDeep):
        return {"detail": "the error's details cannot be kept: they are not JSON, or too large"}
    return details
