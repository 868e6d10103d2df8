"""A plan rendered as Celery signatures. Builds them and sends nothing; `engine/publish.py` is the one who sends.

    a sequence on one queue      one signature: the branch is walked in place
    a sequence over queues       a chain of them
    a fan-out                    a chord: helpers as header, the walk that joins as body

A signature holds (instance, branch position, generation) and a name for people. Never data, never nested canvases.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery import Signature, chain, chord, group

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


def walk(address: Address, queue: str | None = None, *, tells: bool = False) -> Signature:
    """`tells`: its result is counted by a chord."""
    return Signature(
        WALK,
        args=(address.instance_id, address.position, address.generation),
        options={"queue": queue or address.queue, "shadow": address.shadow, "ignore_result": not tells},
        immutable=True,
    )


def help(address: Address, *, tells: bool = True) -> Signature:
    """A helper for the fan-out of the branch at this address."""
    return Signature(
        HELP,
        args=(address.instance_id, address.position, address.generation),
        options={"queue": address.queue, "shadow": f"{address.shadow} (branches)", "ignore_result": not tells},
        immutable=True,
    )


def render(plan: Sequence | Parallel, address: Address, helpers: int = 64) -> Signature:
    if isinstance(plan, Sequence):
        links = [walk(address, segment.queue) for segment in plan.segments]
        return links[0] if len(links) == 1 else chain(*links)
    header = group([help(address) for _ in range(max(1, min(plan.width, helpers)))])
    return chord(header, walk(address))
