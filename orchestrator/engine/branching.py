"""Branches: opened in bulk, walked by helpers, closed one by one, joined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from orchestrator.definition.tree import Fork, find
from orchestrator.engine import lifecycle
from orchestrator.engine.runtime import is_undo
from orchestrator.engine.stopped import Stopped
from orchestrator.errors import Fenced
from orchestrator.history import Fact, Kind
from orchestrator.plan import remaining
from orchestrator.plan.canvas import Address
from orchestrator.plan.gathering import handed_over, joined
from orchestrator.plan.needs import FanOut, Join
from orchestrator.store import branches, fanouts, timers
from orchestrator.store.branches import Held, Published
from orchestrator.store.connection import Connection
from orchestrator.store.fanouts import Closing

if TYPE_CHECKING:
    from orchestrator.engine.walk import Walk


def fan_out(walk: Walk, need: FanOut) -> None:
    held = walk.held
    limit = {} if need.concurrency is None else {"concurrency": need.concurrency}
    walk.record(Fact(need.position, Kind.OPENED, {"count": len(need.openings), **limit}))
    context = walk.forward.context

    def opening(c: Connection) -> None:
        fanouts.open_children(c, held, need, held.queue, context)
        _watch_due(walk, c)

    walk.transact(opening)
    address = Address(held.instance_id, held.position, held.generation, walk.held_queue, walk.definition.name)
    walk.runtime.publisher.plan(remaining.Parallel(need.width, need.mode), address, walk.runtime.helpers())
    raise Stopped


def join(walk: Walk, need: Join) -> None:
    held = walk.held
    children = walk.database.patiently(lambda c: fanouts.children(c, held.id, need.position))
    if any(child.state != "closed" for child in children):
        # Not yet: whoever closes the last one asks again.
        def wait(c: Connection) -> None:
            branches.join(c, held.id)
            _watch_due(walk, c)

        walk.transact(wait)
        raise Stopped
    walk.record(Fact(need.position, Kind.JOINED, joined(need, children)))
    if _inner_due(walk) is not None:
        walk.transact(lambda c: timers.drop(c, held.id, "due"))


def _inner_due(walk: Walk) -> float | None:
    """The nearest deadline of the tasks around a fan-out; the instance's own has a timer that is always there."""
    due = walk.forward.due
    return None if due is None or due[1] == "" else due[0]


def _watch_due(walk: Walk, c: Connection) -> None:
    """While its branches are walked, nobody holds the branch that opened them."""
    due = _inner_due(walk)
    if due is not None:
        timers.put(c, walk.held.id, due, "due")


def close(walk: Walk, closing: Closing, facts: list[Fact] | None = None) -> None:
    """End a branch that others wait for. In a fork the next open branch is taken in the same statement; of a limited one, the next
    that was held back."""
    held = walk.held
    if facts is not None:
        walk.pending = facts
        seq = 0
    else:
        seq = walk.forward.seq - len(walk.pending) if walk.pending else 0
    pending, told = walk.pending, walk.events
    if closing.outcome == "failed" or held.mode in ("compete", "some") or closing.outcome == "ended":
        close_and_stop_siblings(walk, closing, seq)
        raise Stopped
    next_of = held.parent_id if held.mode in ("fork", "limited") and not walk.attends else None

    def end(c: Connection) -> tuple[bool, Held | None, list[Published]]:
        def close() -> tuple[bool, Held | None]:
            return fanouts.close(c, held, seq, pending, closing, told, next_of=next_of, queue=walk.queue, lease_s=walk.settings.lease_s)

        if held.mode != "limited":
            return *close(), []
        # Its place is another's at once, whether or not this process may go on with that: a place that nobody has is lost for good.
        with c.transaction():
            closed, following = close()
            return closed, following, fanouts.release_next(c, held) if closed and following is None else []

    try:
        closed, following, released = walk.database.patiently(end)
    except psycopg.errors.UniqueViolation:
        closed, following, released = False, None, []
    walk.fence(closed)
    walk.runtime.publisher.branches(released)
    walk.stage("persistence", "%d facts committed; the branch is %s", len(pending), closing.outcome)
    raise Stopped(following)


def close_and_stop_siblings(walk: Walk, closing: Closing, seq: int) -> None:
    held, facts, told = walk.held, walk.pending, walk.events
    wins = closing.outcome != "failed"
    stops = held.mode != "graph" and (held.mode != "compete" or wins)
    least = _least(walk) if held.mode == "some" and closing.outcome == "completed" else 0

    def whole(c: Connection) -> fanouts.Cut:
        with c.transaction():
            decides = stops and (not least or fanouts.is_among_the_first(c, held, least))
            cut = fanouts.stop_siblings(c, held, gently=not wins) if decides else fanouts.Cut()
            closed, _ = fanouts.close(c, held, seq, facts, closing, told, next_of=None, queue=walk.queue, lease_s=walk.settings.lease_s)
            if not closed:
                raise Fenced(held.position, held.generation)
            return cut

    try:
        cut = walk.database.patiently(whole)
    except psycopg.errors.UniqueViolation:
        raise Fenced(held.position, held.generation) from None
    walk.stage("persistence", "%d facts committed; the branch is %s", len(facts), closing.outcome)
    lifecycle.follow(walk.runtime, cut, f"a branch beside the one that awaited it {'won' if wins else 'failed'}")


def _least(walk: Walk) -> int:
    """How many branches beside this one must be done."""
    assert walk.root is not None
    fork = find(walk.root, (walk.held.join_position or "").removeprefix("/undo"))
    return fork.at_least or 0 if isinstance(fork, Fork) else 0


def handed_over_output(walk: Walk, output: Any) -> Any:
    """What the branch's join will see of it."""
    assert walk.root is not None
    join_position = walk.held.join_position or ""
    fan_out = find(walk.root, join_position.removeprefix("/undo") if is_undo(walk.held.position) else join_position)
    return handed_over(fan_out, output, walk.shared)
