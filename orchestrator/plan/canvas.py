"""A plan rendered as Celery signatures. Builds them and sends nothing; `engine/publish.py` is the one who sends.

    a sequence on one queue      one signature: the branch is walked in place
    a sequence over queues       a chain of them
    a fan-out                    a chord: helpers as header, the walk that joins as body

A signature holds (instance, branch position, generation) and a name for people. Never data, never nested canvases. It belongs to
the Celery app that is given, whichever app is current: in a program with an app of its own that is another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery import Celery, Signature, chain, chord, group

from orchestrator.plan.remaining import Parallel, Sequence

WALK = "orchestrator.walk"
HELP = "orchestrator.help"


@dataclass(frozen=True, slots=True)
class Address:
    """Whose plan it is, where it runs unless a step says otherwise, and what people shall read in Flower."""

    instance_id: str
    position: str
    generation: int
    queue: str
    name: str = ""

    @property
    def shadow(self) -> str:
        return f"{self.name}:{self.position or '/'}" if self.name else self.position or "/"


def walk(address: Address, queue: str | None = None, *, tells: bool = False, app: Celery | None = None) -> Signature:
    """`tells`: its result is counted by a chord."""
    return Signature(
        WALK,
        args=(address.instance_id, address.position, address.generation),
        options={"queue": queue or address.queue, "shadow": address.shadow, "ignore_result": not tells},
        immutable=True,
        app=app,
    )


def help(address: Address, *, tells: bool = True, app: Celery | None = None) -> Signature:
    """A helper for the fan-out of the branch at this address."""
    return Signature(
        HELP,
        args=(address.instance_id, address.position, address.generation),
        options={"queue": address.queue, "shadow": f"{address.shadow} (branches)", "ignore_result": not tells},
        immutable=True,
        app=app,
    )


def render(plan: Sequence | Parallel, address: Address, helpers: int = 64, app: Celery | None = None) -> Signature:
    if isinstance(plan, Sequence):
        links = [walk(address, segment.queue, app=app) for segment in plan.segments]
        return links[0] if len(links) == 1 else chain(*links, app=app)
    header = group([help(address, app=app) for _ in range(max(1, min(plan.width, helpers)))], app=app)
    return chord(header, walk(address, app=app), app=app)
