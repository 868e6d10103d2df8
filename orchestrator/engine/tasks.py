"""The Celery tasks: thin doors between a message and the walk. A message is a hint; the claim decides."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from celery import Celery, Task

from orchestrator.definition.parsing import parse_as
from orchestrator.engine import scheduling
from orchestrator.engine.options import StartOptions
from orchestrator.engine.runtime import Runtime
from orchestrator.engine.walk import Walk
from orchestrator.errors import WorkflowFailed
from orchestrator.plan.canvas import HELP, WALK, Address
from orchestrator.store import branches, fanouts
from orchestrator.store.branches import Held
from orchestrator.store.connection import AWAY, first_line
from orchestrator.telemetry import metrics, tracing

logger = logging.getLogger("orchestrator.tasks")

START = "orchestrator.start"
FIRE = "orchestrator.fire"


def _left_to_recovery(door: Callable[..., None]) -> Callable[..., None]:
    """A message is a hint: what cannot be done about it now, recovery has done later."""

    @functools.wraps(door)
    def whole(task: Task, instance_id: str, position: str, generation: int) -> None:
        try:
            door(task, instance_id, position, generation)
        except WorkflowFailed:
            raise
        except AWAY as error:
            about = {"instance": instance_id, "position": position}
            logger.warning("the database is away, a message is left to recovery: %s", first_line(error), extra=about)
        except Exception:
            logger.exception("internal error beside a walk; recovery goes on", extra={"instance": instance_id, "position": position})

    return whole


def register(app: Celery, runtime_of: Any) -> None:
    """Give the app its tasks; `runtime_of()` is the process's runtime, made when first needed."""

    # Declared in `throws`, the failure of a workflow is one line at info in Celery's log. The message is acknowledged like any other.
    @app.task(name=WALK, bind=True, ignore_result=True, throws=(WorkflowFailed,), acks_on_failure=True)
    @_left_to_recovery
    def walk(task: Task, instance_id: str, position: str, generation: int) -> None:
        runtime: Runtime = runtime_of()
        held = runtime.database.patiently(
            lambda c: branches.claim(c, instance_id, position, generation, runtime.owner, runtime.settings.lease_s)
        )
        metrics.claimed(void=held is None)
        if held is None:
            return
        with tracing.span("walk", task.request.headers, trace_id=held.trace_id, instance=instance_id, position=position):
            failed = work(runtime, held, queue=_queue(task), next_link=_next_link(task), tells=False)
        # A chord would not begin its body if one of its header failed.
        if failed is not None and task.request.chord is None:
            raise failed

    @app.task(name=HELP, bind=True, ignore_result=True)
    @_left_to_recovery
    def help(task: Task, instance_id: str, position: str, generation: int) -> None:
        runtime: Runtime = runtime_of()
        parent = runtime.database.patiently(lambda c: branches.id_at(c, instance_id, position))
        if parent is None:
            return
        held = _next_of(runtime, parent, _queue(task))
        metrics.claimed(void=held is None)
        in_chord = task.request.chord is not None
        if held is not None:
            with tracing.span("help", task.request.headers, trace_id=held.trace_id, instance=instance_id, position=position):
                work(runtime, held, queue=_queue(task), next_link=None, tells=in_chord)
        elif not in_chord:
            ask_for_parent(runtime, parent)

    @app.task(name=START, ignore_result=False)
    def start(workflow: str, input: Any = None, version: str | None = None, **options: Any) -> str:
        """`celery -A orchestrator.app call orchestrator.start --args '["order", {"id": 7}]'`"""
        from orchestrator.engine.runner import WorkflowRunner

        parse_as(StartOptions, options, what="start")  # a name that is not known is refused with a suggestion
        return WorkflowRunner.instance().start_workflow(workflow, version, input, **{"source": "celery", **options})

    @app.task(name=FIRE, ignore_result=True)
    def fire(schedule: int) -> None:
        """Beat says that a schedule's time has come. Whether it has, and what then, the schedule itself knows."""
        scheduling.fire_due(runtime_of(), only=schedule, by="beat")


def _queue(task: Task) -> str:
    return (task.request.delivery_info or {}).get("routing_key") or "normal"


def _next_link(task: Task) -> str | None:
    """The queue of the message that Celery sends when this one is done."""
    links = task.request.chain
    if not links:
        return None
    queue: str | None = links[-1].get("options", {}).get("queue")
    return queue


def work(runtime: Runtime, held: Held | None, *, queue: str, next_link: str | None, tells: bool) -> WorkflowFailed | None:
    """Walk a branch, and then, as long as there are any, the open branches beside it. Gives what the instance failed with, if it ended here.

    `tells`: a chord counts this message, so its body will ask for the parent; else it is asked here.
    """
    while held is not None:
        current = held
        walk = Walk(runtime, current, queue=queue, next_link=next_link)
        held = walk.run()
        next_link = None
        if current.parent_id is None:
            return walk.failed
        if current.mode == "graph":
            _release_successors(runtime, current)
        if held is None:
            held = _next_of(runtime, current.parent_id, queue)
        # A competition is over when its first branch (or its first few) are, not when the chord has counted the others.
        if held is None and (not tells or current.mode in ("compete", "some")):
            ask_for_parent(runtime, current.parent_id)
    return None


def attend(runtime: Runtime, instance_id: str, position: str, generation: int) -> None:
    """See to a branch whose deadline came, where no worker has taken it yet: others may keep them all busy."""
    held = runtime.database.patiently(
        lambda c: branches.claim(c, instance_id, position, generation, runtime.owner, runtime.settings.lease_s)
    )
    if held is None:
        return
    Walk(runtime, held, queue=held.queue, attends=True).run()
    if held.parent_id is not None:
        if held.mode == "graph":
            _release_successors(runtime, held)
        ask_for_parent(runtime, held.parent_id)


def _next_of(runtime: Runtime, parent_id: int, queue: str) -> Held | None:
    return runtime.database.patiently(lambda c: fanouts.claim_next(c, parent_id, queue, runtime.owner, runtime.settings.lease_s))


def _release_successors(runtime: Runtime, closed: Held) -> None:
    """A graph's edges: what waited for this branch last may begin. One goes on here, the others get help of their own."""
    assert closed.parent_id is not None
    parent_id = closed.parent_id
    released = runtime.database.patiently(lambda c: fanouts.release_successors(c, closed.id, parent_id))
    # What was opened again by a retry has its own queue, and a message of its own.
    runtime.publisher.branches([one for one in released if one[2] > 1])
    if len(released) > 1:
        parent = runtime.database.patiently(lambda c: branches.address_of(c, parent_id))
        if parent is not None:
            position, generation, queue = parent
            address = Address(closed.instance_id, position, generation, queue, runtime.definition(closed.definition_id).name)
            runtime.publisher.more_help(address, len(released) - 1)


def ask_for_parent(runtime: Runtime, parent_id: int) -> None:
    """Were these the last? Then the branch that opened them goes on."""
    runtime.publisher.branches(runtime.database.patiently(lambda c: fanouts.wake_parent(c, parent_id)))
