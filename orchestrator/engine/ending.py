"""How an instance ends: completed, failed, or by way of being undone first. What others waited for is released."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import psycopg

from orchestrator.engine import branching
from orchestrator.engine.admission import after_end
from orchestrator.engine.configuring import Configurations
from orchestrator.engine.runtime import queue_of
from orchestrator.engine.stopped import Stopped
from orchestrator.engine.undoing import not_undone
from orchestrator.errors import BrokenHistory, Fenced, WorkflowFailed, plain
from orchestrator.history import Failure, Kind
from orchestrator.ids import Position, Scope
from orchestrator.plan.catching import told
from orchestrator.plan.needs import Finished
from orchestrator.store import admission, branches, facts, history, instances, outbox, timers
from orchestrator.store.connection import Connection, dumps
from orchestrator.store.fanouts import Closing
from orchestrator.store.instances import End
from orchestrator.telemetry import metrics

if TYPE_CHECKING:
    from orchestrator.engine.walk import Walk

logger = logging.getLogger("orchestrator.walk")

# Of an error's text, in what Celery tells of a message: that goes through Redis to everybody who watches.
LONGEST_TOLD = 500
EVENT_OF = {"COMPLETED": "workflow.completed", "FAILED": "workflow.failed", "CANCELLED": "workflow.cancelled"}


def end_instance(walk: Walk, end: End, dead_letters: list[tuple[str, str, Any]] | None = None, because: Any = None) -> None:
    """The last facts, the state, the event, the slots and the parent's wake in one transaction; then what it releases.

    `because`: the error of an instance that has failed, also where it stands in its row already.
    """
    held, fresh = walk.held, walk.pending
    seq = walk.forward.seq - len(fresh)
    told = [*walk.events, (EVENT_OF[end.state], dumps(_shown(end)))]
    root_timeout = walk.definition.do.around.timeout_s is not None
    is_plain = not (held.slots or held.parent_branch or root_timeout or dead_letters or end.state != "COMPLETED")

    def finish(c: Connection) -> tuple[bool | None, list[str], list[branches.Published]]:
        if is_plain:
            return instances.finish(c, held, seq, fresh, end, told), [], []
        with c.transaction():
            depends = instances.finish(c, held, seq, fresh, end, told)
            if depends is None:
                return None, [], []
            timers.drop_of_instance(c, held.instance_id)
            for position, reason, error in dead_letters or ():
                instances.dead_letter(c, held.instance_id, position, reason, error)
            scopes = admission.give_back(c, held.instance_id) if held.slots else []
            woken = instances.wake_branch(c, held.parent_branch) if held.parent_branch else []
            return depends, scopes, woken

    try:
        depends, scopes, woken = walk.database.patiently(finish)
    except psycopg.errors.UniqueViolation:
        raise Fenced(held.position, held.generation) from None
    if depends is None:
        # Paused, cancelled or fenced: keep the facts if they are still ours to keep, and stand as the state says.
        walk.flush()
        walk.look_again()
        raise Fenced(held.position, held.generation)
    walk.stage("persistence", "%d facts committed, %d in all; the instance is %s", len(fresh), walk.forward.seq, end.state)
    if end.state == "FAILED":
        walk.failed = _as_told(walk, because or {})
    if metrics.is_enabled():
        one = walk.definition
        asked = Configurations(walk.runtime).in_force(one.namespace, one.name, one.version, held.tenant).get("monitoring") or {}
        scope = Scope(held.tenant, one.namespace, one.name)
        metrics.instance_ended(scope, end.state, walk.wall() - held.created_at, asked)
    walk.runtime.publisher.branches(woken)
    if depends or scopes:
        after_end(walk.runtime, walk.definition.name, held.instance_id, scopes)
    raise Stopped


def _as_told(walk: Walk, error: dict[str, Any]) -> WorkflowFailed:
    message, code = error.get("message") or "no error was kept", error.get("code") or "error"
    name = walk.definition.name or "a workflow that cannot be read"
    return WorkflowFailed(plain(f"{name} {walk.held.instance_id} failed ({code}): {message}", LONGEST_TOLD))


def _shown(end: End) -> dict[str, Any]:
    shown = {"error": end.error, "compensation": end.compensation}
    return {key: value for key, value in shown.items() if value is not None}


def end(walk: Walk, need: Finished) -> None:
    """Nothing remains of this branch."""
    held = walk.held
    if held.parent_id is not None:
        outcome = "ended" if need.ended else "completed"
        output = need.output if need.ended else branching.handed_over_output(walk, need.output)
        branching.close(walk, Closing(outcome, output, context=need.context if need.context != held.context else None))
    if held.position == "/undo":
        end_undone(walk)
    end_instance(walk, End("COMPLETED", need.output))


def end_failed(walk: Walk, failure: Failure) -> None:
    """A saga goes backwards first; anything else has failed."""
    held = walk.held
    if held.parent_id is not None:
        branching.close(walk, Closing("failed", error=failure.to_json()))
    error = told(failure)
    if held.position == "/undo":
        end_undone(walk, failure)
    if walk.definition.saga and held.position == "":
        _turn_round(walk, error)
        return
    letter = (failure.position, failure.code, error)
    end_instance(walk, End("FAILED", error=error), [letter], because=error)


def _turn_round(walk: Walk, error: dict[str, Any]) -> None:
    """From forward to compensating: the failure is kept, and the way back is a branch of its own."""
    held, fresh, told = walk.held, walk.pending, walk.events
    seq = walk.forward.seq - len(fresh)

    def turn(c: Connection) -> list[branches.Published] | None:
        with c.transaction():
            locked = branches.lock(c, held)
            if locked is None or locked[0] != "RUNNING":
                return None
            facts.write(c, held.id, seq, fresh)
            for type, data in told:
                outbox.put(c, type, held.instance_id, data)
            instances.close_root(c, held, "failed")
            timers.drop_all(c, held.id)
            instances.move(c, held.instance_id, "RUNNING", phase="compensating", ending="FAILED", error=dumps(error))
            outbox.tell(c, "workflow.compensating", held.instance_id, {"error": error})
            return instances.open_undo(c, held.instance_id, queue_of(held.priority))

    published = walk.database.patiently(turn)
    if published is None:
        walk.flush()
        walk.look_again()
        raise Fenced(held.position, held.generation)
    walk.runtime.publisher.branches(published, walk.definition.name)
    raise Stopped


def end_undone(walk: Walk, failure: Failure | None = None) -> None:
    """The way back is walked: what was undone, what could not be, and the state the instance was on its way to."""
    held = walk.held

    def read(c: Connection) -> tuple[str, Any, history.Told, list[tuple[Position, str]]]:
        left: list[tuple[Position, str]] = []
        # Where facts are missing nobody can tell what was done: the way back has failed for it.
        with contextlib.suppress(BrokenHistory):
            left = not_undone(c, held.instance_id, walk.definition, walk.runtime.registry)
        return (*instances.heading_for(c, held.instance_id), history.of_instance(c, held.instance_id), left)

    ending, error, told, left = walk.database.patiently(read)
    found = [row.fact for row in told.facts if row.fact.kind in (Kind.UNDONE, Kind.UNDO_FAILED)]
    found += [fact for fact in walk.pending if fact.kind in (Kind.UNDONE, Kind.UNDO_FAILED)]
    undone = [fact.data["origin"] for fact in found if fact.kind == Kind.UNDONE]
    failed = [{"position": fact.data["origin"], "error": fact.data["error"]} for fact in found if fact.kind == Kind.UNDO_FAILED]
    failed = [item for item in {item["position"]: item for item in failed}.values() if item["position"] not in undone]
    if failure is not None:
        failed.append({"position": "/undo", "error": failure.to_json()})
    result = "partially compensated" if failed else "compensated" if undone else "none"
    compensation: dict[str, Any] = {"result": result, "compensated": undone, "failed": failed}
    if left:
        compensation["without_handler"] = [position for position, _ in left]
        said = ", ".join(f"{position} ({type})" for position, type in left)
        logger.warning("steps were not compensated, no handler is registered for them: %s", said, extra=walk.labels())
    letters = [(item["position"], "compensation_failed", item["error"]) for item in failed]
    if ending == "FAILED" and error:
        letters.insert(0, (error.get("position", ""), error["code"], error))
    end_instance(walk, End(ending, compensation=compensation), letters, because=error)
