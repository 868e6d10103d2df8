"""The life cycle: which states there are, and the one table of legal moves. docs/states.md is checked against it."""

from __future__ import annotations

from enum import StrEnum

from orchestrator.errors import IllegalMove


class State(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CLEANING_UP = "CLEANING_UP"


class EventState(StrEnum):
    TAKEN = "taken"
    WORKING = "working"
    HELD = "held"
    DEAD = "dead"
    DISCARDED = "discarded"


class StepState(StrEnum):
    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    COMPENSATED = "COMPENSATED"


class Phase(StrEnum):
    FORWARD = "forward"
    COMPENSATING = "compensating"


class BranchState(StrEnum):
    QUEUED = "queued"  # a message is on its way
    RUNNING = "running"  # a worker holds it under a lease
    PARKED = "parked"  # waits for a timer, an event, a child
    JOINING = "joining"  # waits for the branches it opened
    BLOCKED = "blocked"  # waits for other branches (a graph's edge), a dependency or a free slot
    HALTED = "halted"  # stopped at a step boundary by a pause
    CLOSED = "closed"


TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
LIVE = frozenset({State.PENDING, State.RUNNING, State.PAUSED})

# move → (from which states, to which)
MOVES: dict[str, tuple[frozenset[State], State]] = {
    "begin": (frozenset({State.PENDING}), State.RUNNING),
    "pause": (frozenset({State.PENDING, State.RUNNING}), State.PAUSED),
    "resume": (frozenset({State.PAUSED}), State.RUNNING),
    "complete": (frozenset({State.RUNNING}), State.COMPLETED),
    "fail": (frozenset({State.PENDING, State.RUNNING}), State.FAILED),
    "cancel": (frozenset({State.PENDING, State.RUNNING, State.PAUSED}), State.CANCELLED),
    "retry": (frozenset({State.FAILED}), State.RUNNING),
    "rollback": (frozenset({State.COMPLETED, State.FAILED, State.CANCELLED}), State.RUNNING),
    "cleanup": (frozenset({State.COMPLETED, State.FAILED, State.CANCELLED}), State.CLEANING_UP),
}


def check_move(move: str, state: str) -> State:
    """The state a move leads to; `IllegalMove` when the table has no such move from here."""
    sources, target = MOVES[move]
    if state not in sources:
        raise IllegalMove(move, state, [name for name, (from_, _) in MOVES.items() if state in from_ and name != "begin"])
    return target
