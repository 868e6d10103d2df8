"""Time and events: sleeping, parking, deadlines, listening. Nothing waits in a worker for longer than a moment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg

from orchestrator.definition.tree import Run
from orchestrator.engine import lifecycle
from orchestrator.engine.runtime import is_undo
from orchestrator.engine.stopped import Stopped
from orchestrator.history import Fact, Kind
from orchestrator.ids import Position, unescaped
from orchestrator.plan import listening
from orchestrator.plan.needs import Deadline, Heard, Listening, Sleep
from orchestrator.store import branches, events, fanouts, instances, timers
from orchestrator.store.connection import Connection, dumps

if TYPE_CHECKING:
    from orchestrator.engine.walk import Walk

# The signal that ends waits before their time; its data names their positions.
SKIPPED = "orchestrator.wait.skipped"


def sleep(walk: Walk, need: Sleep) -> None:
    until = need.until
    if until is None:
        assert need.seconds is not None
        until = walk.now() + need.seconds
        walk.record(Fact(need.position, Kind.WAITING, {"until": until}))
        _tell(walk, "timer.scheduled", need, until)
    elif until > walk.now() and _is_skipped(walk, need.position):
        until = walk.now()
    if until <= walk.now() or wait_until(walk, until):
        walk.record(Fact(need.position, Kind.WAITED))
        _tell(walk, "timer.fired", need, until)


def _tell(walk: Walk, type: str, need: Sleep, until: float) -> None:
    """Waits of documents are told, when they are long enough to give the worker up."""
    length = need.seconds if need.seconds is not None else walk.settings.inline_wait_s + 1
    if walk.definition.document is not None and length > walk.settings.inline_wait_s:
        name = unescaped(need.position.rpartition("/")[2])
        walk.events.append((type, dumps({"step": name, "position": need.position, "until": until, "seconds": need.seconds})))


def _is_skipped(walk: Walk, position: Position) -> bool:
    """Somebody said that this wait is over: see `WorkflowRunner.skip_wait`."""
    return walk.database.patiently(lambda c: events.names_position(c, walk.held.instance_id, SKIPPED, position))


def set_deadline(walk: Walk, need: Deadline) -> None:
    due, held = walk.now() + need.seconds, walk.held
    known = walk.database.patiently(lambda c: timers.deadline_of(c, held.id)) if need.position == "" else None
    if known is not None:
        # Its time began when it was allowed to begin.
        due = min(due, known)
    walk.record(Fact(need.position, Kind.DEADLINE, {"due": due, "seconds": need.seconds}))
    if need.position == "" and known is None:
        # The instance's own deadline holds while nothing runs, and fences who runs past it.
        walk.transact(lambda c: timers.put(c, held.id, due + timers.DEADLINE_GRACE_S, "deadline"))


def time_out(walk: Walk, position: Position) -> None:
    """The task's time is over: what it opened is closed and interrupted, and what it waited for is cancelled."""
    held = walk.held
    waited_for = any(type(frame.task) is Run and frame.note.get("child") for frame in walk.forward.frames)
    walk.record(Fact(position, Kind.TIMED_OUT))

    def stop(c: Connection) -> fanouts.Cut:
        timers.drop(c, held.id, "due")
        cut = fanouts.stop_children(c, held, gently=False)
        if waited_for:
            cut.children += fanouts.awaited(c, held.instance_id, [held.id])
        return cut

    lifecycle.follow(walk.runtime, walk.transact(stop), f"the time of {position or 'its parent'} was over")


def wait_until(walk: Walk, until: float) -> bool:
    """Short waits are slept through under the lease; longer ones give the worker up. False: a deadline came first."""
    due = walk.forward.due
    wake = until if due is None else min(until, due[0])
    length = wake - walk.now()
    if length > 0:
        walk.stage("next", "a timer, in %.3f s", length)
    if length > walk.settings.inline_wait_s:
        park_until(walk, wake, "wake" if wake == until else "due")
    walk.flush()
    if length > 0:
        time.sleep(length)
    walk.look_again()
    return wake == until


def park_until(walk: Walk, due: float, kind: str) -> None:
    """`kind`: `wake` when that is what is waited for, `due` when it is the deadline of a task around it."""
    facts, held = walk.pending, walk.held
    if walk.events:

        def park(c: Connection) -> None:
            branches.park(c, held.id, snapshot(walk), None)
            timers.put(c, held.id, due, kind)

        walk.transact(park)
        raise Stopped
    seq = walk.forward.seq - len(facts)
    kept = snapshot(walk)
    try:
        parked = walk.database.patiently(lambda c: branches.park_until(c, held, seq, facts, due, kind, kept))
    except psycopg.errors.UniqueViolation:
        parked = False
    walk.fence(parked)
    walk.stage("persistence", "%d facts and the timer committed, %d in all; the branch is parked", len(facts), walk.forward.seq)
    raise Stopped


def snapshot(walk: Walk) -> str | None:
    """Written now and then by branches that live long, so that waking costs the same however long they have lived."""
    if walk.definition.secrets:
        # What flows through it may hold one; facts do not.
        return None
    if walk.forward.seq - walk.snapshot_seq < walk.settings.snapshot_every or is_undo(walk.held.position):
        return None
    return dumps(walk.forward.snapshot())


def listen(walk: Walk, need: Listening) -> None:
    held = walk.held
    types = listening.types(need.task)
    wanted = None if None in types else [t for t in types if t is not None]
    considered = list(need.heard.taken)
    after = need.heard.after
    while found := _events_after(walk, wanted, need.heard, after, considered):
        for event_id, envelope in found:
            after = max(after, event_id)
            considered.append(event_id)
            taken = walk.forward.matching(envelope)
            if taken is not None:
                data = {"id": event_id, "event": envelope, **taken}
                walk.record(Fact(need.position, Kind.RECEIVED, data, need.received + 1))
                return
    due = walk.forward.due
    walk.stage("next", "waits for %s", "any event" if types is None or None in types else ", ".join(map(str, types)))

    def park(c: Connection) -> None:
        events.subscribe(c, held.id, held.instance_id, held.tenant, types)
        branches.park(c, held.id, snapshot(walk), None if due is None else due[0])

    walk.transact(park)
    # Asked again after the commit: an event that came in between saw no listener.
    if _events_after(walk, wanted, need.heard, after, considered):
        walk.runtime.publisher.branches(walk.database.patiently(lambda c: instances.wake_branch(c, held.id)), walk.definition.name)
    raise Stopped


def _events_after(walk: Walk, types: list[str] | None, heard: Heard, after: int, considered: list[int]) -> list[tuple[int, dict[str, Any]]]:
    held = walk.held
    asked = events.Asked(held.instance_id, held.tenant, types, held.created_at, after, heard.forgotten, considered)
    return walk.database.patiently(lambda c: events.after(c, asked))
