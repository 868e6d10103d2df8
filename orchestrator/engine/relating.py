"""Other instances: events for whoever listens, and child workflows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.engine import intake, waiting
from orchestrator.engine.lifecycle import prepare_child
from orchestrator.engine.stopped import Stopped
from orchestrator.errors import MissingCode, OrchestratorError
from orchestrator.history import Fact, Failure, Kind
from orchestrator.plan.events import envelope_of
from orchestrator.plan.needs import AwaitChild, Publish, StartChild
from orchestrator.store import branches, events, instances, outbox
from orchestrator.store.connection import Connection, sized

if TYPE_CHECKING:
    from orchestrator.engine.walk import Walk


def emit(walk: Walk, need: Publish) -> None:
    held = walk.held
    try:
        envelope = envelope_of(need.compute(), held.instance_id, need.position, walk.definition, walk.now())
        sized("the event", envelope, walk.settings.payload_limit_bytes)
    except MissingCode:
        raise
    except OrchestratorError as error:
        failure = Failure(error.code, str(error), need.position, type(error).__name__)
        walk.record(Fact(need.position, Kind.STEP_FAILED, {"error": failure.to_json()}))
        return
    walk.record(Fact(need.position, Kind.EMITTED, {"event": envelope}))

    arrival = intake.emitted(walk.runtime, envelope, held.tenant)

    def tell(c: Connection) -> None:
        events.keep_all(c, [arrival])
        outbox.tell(c, "event.emitted", held.instance_id, {"event": envelope, "tenant": held.tenant})

    walk.transact(tell)
    intake.after_emit(walk.runtime, arrival)


def start_child(walk: Walk, need: StartChild) -> None:
    held = walk.held
    try:
        new, plan, address = prepare_child(walk.runtime, held, need)
    except MissingCode:
        raise
    except OrchestratorError as error:
        failure = Failure(error.code, str(error), need.position, type(error).__name__)
        walk.record(Fact(need.position, Kind.STEP_FAILED, {"error": failure.to_json()}))
        return
    walk.record(Fact(need.position, Kind.CHILD_STARTED, {"instance_id": new.id}))

    def starting(c: Connection) -> None:
        instances.create(c, new)
        if need.awaited:
            due = walk.forward.due
            branches.park(c, held.id, waiting.snapshot(walk), None if due is None else due[0])

    walk.transact(starting)
    walk.runtime.publisher.plan(plan, address)
    if need.awaited:
        raise Stopped


def await_child(walk: Walk, need: AwaitChild) -> None:
    held = walk.held
    row = walk.database.patiently(lambda c: instances.ending_of(c, need.instance_id))
    state, outcome, output, error = row or ("FAILED", "FAILED", None, {"code": "not_found", "message": "the child instance is gone"})
    if outcome is None:
        due = walk.forward.due
        walk.transact(lambda c: branches.park(c, held.id, waiting.snapshot(walk), None if due is None else due[0]))
        # Asked again after the commit, as everywhere where two may miss each other.
        again = walk.database.patiently(lambda c: instances.ending_of(c, need.instance_id))
        if again is None or again[1] is not None:
            walk.runtime.publisher.branches(walk.database.patiently(lambda c: instances.wake_branch(c, held.id)))
        raise Stopped
    if outcome == "COMPLETED":
        data: dict[str, Any] = {"output": output}
    else:
        fallback = {"code": "cancelled", "message": f"child workflow was {outcome.lower()}"}
        data = {"error": {**(error or fallback), "details": (error or {}).get("details"), "position": need.position}}
    walk.record(Fact(need.position, Kind.CHILD_ENDED, {**data, "instance_id": need.instance_id, "state": state}))
