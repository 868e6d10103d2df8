"""`celery`: a Celery task that exists already, run in this worker. Parameters: task (its name), args, kwargs, app (its app's name).

The task may belong to any Celery app of this process: the program's own, or the engine's. It runs here and now as its own worker
would run it, inside the step: with its app as the current one, its base class, its hooks and signals, and a request that tells its
`id` (the same for every attempt) and `retries`. What it gives is the step's result, checkpointed; what it raises is judged by the
step's policy. When the task itself asks for a retry (`self.retry()`, `autoretry_for`), the attempt is made again after the time it
asked for, without holding a worker, for as long as the task's own `max_retries` allow.

Of what Celery's worker does beside, nothing happens: no result goes to the app's result backend, `link` and rate limits do not
apply, and time limits are those of the step.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import inspect
import socket
import uuid
from typing import Any, ClassVar

from celery import Task
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.time import maybe_make_aware

from orchestrator.definition.parsing import Model, Name
from orchestrator.errors import Cancelled, MissingCode, Retryable, StepTimeout, Terminal
from orchestrator.steps import apps, loops
from orchestrator.steps.registry import StepContext, executor, given

KIND = "Celery task"


class TaskRetry(Retryable):
    """The task asked to be run again. How often it does so is its own affair, not that of the step's policy."""

    counts_itself = True


class Parameters(Model):
    required: ClassVar[dict[Any, str]] = {"task": "celery step: 'task' must be the name of a Celery task, such as 'shop.tasks.charge'"}

    task: Name
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    app: Name | None = None


@executor
class CeleryTask:
    type = "celery"
    parameters = Parameters

    def lacks(self, context: StepContext) -> MissingCode | None:
        """A task that this process does not have is waited for, as a step is."""
        asked = given(context, Parameters)
        return MissingCode(KIND, asked.task) if apps.owner(asked.task, asked.app) is None else None

    def execute(self, context: StepContext) -> Any:
        asked = given(context, Parameters)
        app = apps.owner(asked.task, asked.app)
        if app is None:
            raise MissingCode(KIND, asked.task)
        with apps.current(app):
            return _run(app.tasks[asked.task], asked.args or [], asked.kwargs or {}, context)


def known() -> list[str]:
    """The tasks that this process has."""
    return sorted({name for app in apps.others() for name in app.tasks if not name.startswith("celery.")})


def _run(task: Task, args: list[Any], kwargs: dict[str, Any], context: StepContext) -> Any:
    _make_synchronous(task)
    own_id = str(uuid.uuid5(uuid.NAMESPACE_OID, context.idempotency_key))
    tracer = build_tracer(task.name, task, eager=True, propagate=False, app=task.app)
    traced = tracer(own_id, args, kwargs, _request(task, own_id, context))
    if traced.info is None:
        return loops.run(traced.retval) if inspect.iscoroutine(traced.retval) else traced.retval
    error = traced.info.retval
    if isinstance(error, Retry):
        raise _again(task, error, args, kwargs) from error.exc
    if isinstance(error, Ignore):
        return None
    if isinstance(error, Reject):
        said = f"Celery task '{task.name}' rejected its message: {error.reason}"
        raise Retryable(said) if error.requeue else Terminal(said)
    raise error


def _request(task: Task, own_id: str, context: StepContext) -> dict[str, Any]:
    """As the task sees it. `is_eager` keeps Celery from sending its own message for a retry."""
    return {
        "id": own_id,
        "task": task.name,
        "root_id": own_id,
        "parent_id": None,
        "correlation_id": own_id,
        "retries": context.attempt - 1,
        "is_eager": True,
        "hostname": socket.gethostname(),
        "ignore_result": True,
        "callbacks": None,
        "errbacks": None,
        "delivery_info": {"is_eager": True, "exchange": None, "routing_key": None, "priority": None},
        "headers": {"orchestrator_instance": context.instance_id, "orchestrator_position": context.position},
    }


def _again(task: Task, retry: Retry, args: list[Any], kwargs: dict[str, Any]) -> Exception:
    if isinstance(retry.exc, Cancelled | StepTimeout):
        return retry.exc  # `autoretry_for = (Exception,)` caught what was meant for the step
    if retry.sig is not None and (list(retry.sig.args or ()) != args or dict(retry.sig.kwargs or {}) != kwargs):
        return Terminal(
            f"Celery task '{task.name}' asked for a retry with other arguments; a step's arguments are the same for each attempt:"
            " return what the next one needs, and make it a step of its own"
        )
    after = retry.when
    if isinstance(after, dt.datetime):
        after = (maybe_make_aware(after, task.app.timezone) - dt.datetime.now(dt.UTC)).total_seconds()
    return TaskRetry(retry.excs or str(retry), after=max(0.0, float(after or 0)))


def _make_synchronous(task: Task) -> None:
    """Celery calls and does not await: an `async def` is run to its end in this process's event loop.

    Once for each task, beneath what `autoretry_for` wraps around it. Another coroutine that calls it gets one, as before; a class
    with a `__call__` of its own does all this by itself.
    """
    place = "_orig_run" if hasattr(task, "_orig_run") else "run"
    body = getattr(task, place)
    if not inspect.iscoroutinefunction(body) or type(task).__call__ is not Task.__call__:
        return

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        given = body(*args, **kwargs)
        return given if asyncio._get_running_loop() is not None else loops.run(given)

    setattr(task, place, run)
