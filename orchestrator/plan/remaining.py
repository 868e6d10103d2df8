"""What remains, as a value a canvas can be rendered from: which queues come one after another, or what fans out.

Never more than one horizon: what comes after a wait, a decision or a join is planned when it is reached.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.definition.tree import AnyTask, Do, Emit, Set, Step
from orchestrator.plan.forward import Forward
from orchestrator.plan.needs import Mode

HORIZON = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of steps that one message walks. `queue` None: the instance's own."""

    queue: str | None
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """`width` branches to be walked by at most so many helpers, then joined."""

    width: int
    mode: Mode


Plan = Sequence | Parallel


def of_task(task: AnyTask) -> Sequence:
    """The plan of a branch that begins with this task."""
    return Sequence(_segments(list(_ahead(task))))


def of_branch(forward: Forward) -> Sequence:
    """The plan of a branch that stands somewhere inside its task."""
    steps: list[Step] = []
    for frame in reversed(forward.frames):
        if isinstance(frame.task, Step):
            steps.append(frame.task)
        elif isinstance(frame.task, Do):
            # Frames above this one are the child in progress, already counted.
            first = frame.index + 1 if frame is not forward.frames[-1] else frame.index
            ahead = frame.task.tasks[first : first + HORIZON]
            # As far as the first task that leads elsewhere, and no further than a horizon: what is behind it is planned there.
            if not all(_take(steps, child) for child in ahead) or first + HORIZON < len(frame.task.tasks):
                break
        else:
            break
    return Sequence(_segments(steps))


def _take(steps: list[Step], task: AnyTask) -> bool:
    """Add the steps this task surely leads to; False when the horizon ends inside it."""
    if isinstance(task, Step):
        steps.append(task)
        return True
    return isinstance(task, Set | Emit)


def _ahead(task: AnyTask) -> list[Step]:
    steps: list[Step] = []
    tasks = task.tasks if isinstance(task, Do) else (task,)
    for child in tasks:
        if not _take(steps, child):
            break
    return steps


def _segments(steps: list[Step]) -> tuple[Segment, ...]:
    segments: list[Segment] = []
    for step in steps:
        segment = Segment(step.queue, step.isolate)
        if step.isolate or not segments or segments[-1] != segment:
            segments.append(segment)
    return tuple(segments) or (Segment(None),)
