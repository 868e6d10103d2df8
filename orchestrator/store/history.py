"""Reading an instance whole: its branches and every fact of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import BrokenHistory
from orchestrator.history import Fact, Kind, that_count
from orchestrator.ids import Position
from orchestrator.store import sealing
from orchestrator.store.connection import Connection
from orchestrator.store.sealing import Unopened


@dataclass(frozen=True, slots=True)
class BranchRow:
    id: int
    instance_id: str
    parent_id: int | None
    position: Position
    join_position: str | None
    mode: str | None
    state: str
    outcome: str | None
    generation: int
    owner: str | None
    doing: str | None
    after: list[int] | None
    shared: Any
    vars: Any
    context: Any
    output: Any
    error: Any
    queued_at: float
    instance_input: Any
    created_at: float
    queue: str = ""


@dataclass(frozen=True, slots=True)
class FactRow:
    branch_id: int
    seq: int
    fact: Fact
    at: float


@dataclass(slots=True)
class Told:
    """All that was recorded of one instance."""

    branches: list[BranchRow]
    facts: list[FactRow]
    by_id: dict[int, BranchRow] = field(default_factory=dict)
    _by_branch: dict[int, list[FactRow]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_id = {branch.id: branch for branch in self.branches}
        for row in self.facts:
            self._by_branch.setdefault(row.branch_id, []).append(row)

    def flows_into(self, branch: BranchRow) -> tuple[Any, list[BranchRow]]:
        """What a branch began with: what its fan-out shares, and the branches it waited for."""
        parent = self.by_id.get(branch.parent_id or 0)
        return (parent.shared if parent else None), [self.by_id[id] for id in branch.after or []]

    def of_branch(self, branch_id: int) -> list[FactRow]:
        return self._by_branch.get(branch_id, [])

    def counted(self, branch_id: int) -> list[tuple[int, Fact]]:
        """A branch's facts that count, with their numbers."""
        return that_count((row.seq, row.fact) for row in self.of_branch(branch_id))

    def beyond_limits(self, open: Iterable[BranchRow]) -> set[int]:
        """Of branches that are to be open again, those that the limit of their fan-out holds back. What had begun comes first."""
        beside: dict[tuple[int, str], list[BranchRow]] = defaultdict(list)
        for row in open:
            if row.mode == "limited" and row.parent_id is not None:
                beside[row.parent_id, row.join_position or ""].append(row)
        back: set[int] = set()
        for (parent_id, place), rows in beside.items():
            opened = [row.fact for row in self.of_branch(parent_id) if row.fact.kind == Kind.OPENED and row.fact.position == place]
            rows.sort(key=lambda row: (not self.of_branch(row.id), row.id))
            back |= {row.id for row in rows[opened[-1].data["concurrency"] :]}
        return back

    def missing(self, branch_id: int) -> list[int]:
        """The numbers below a branch's last one that no fact has: somebody deleted them."""
        return gaps([row.seq for row in self.of_branch(branch_id)])

    def hole(self, branch_id: int) -> int | None:
        """The number of a branch's first fact that is missing or cannot be read: where the branch stands follows from it, too."""
        unread = [row.seq for row in self.of_branch(branch_id) if isinstance(row.fact.data, Unopened)]
        return min([*self.missing(branch_id), *unread], default=None)

    def whole(self) -> Told:
        """The same; raises `BrokenHistory` where facts are missing, and what follows from them cannot be told."""
        for branch in self.branches:
            require_whole(branch.position, [row.seq for row in self.of_branch(branch.id)])
        return self

    def readable(self) -> Told:
        """The same, whole; raises `SealedAway` where a fact, or what a branch was given, is sealed with a key that is not here."""
        sealing.readable(*(row.fact.data for row in self.facts))
        for branch in self.branches:
            sealing.readable(branch.shared, branch.vars, branch.context, branch.instance_input, branch.output)
        return self.whole()


def gaps(numbers: Sequence[int], after: int = 0) -> list[int]:
    """Which numbers between `after` and the last are not there."""
    if not numbers or numbers[-1] - after == len(numbers):
        return []
    return sorted(set(range(after + 1, numbers[-1])) - set(numbers))


def require_whole(position: Position, numbers: Sequence[int], after: int = 0) -> None:
    if lacking := gaps(numbers, after):
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise BrokenHistory(f"fact {lacking[0]} of the branch at '{position or '/'}' is missing{more}: somebody deleted it")


def of_instance(c: Connection, instance_id: str) -> Told:
    rows = c.execute(
        """
        select b.id, b.instance_id::text, b.parent_id, b.position, b.join_position, b.mode, b.state, b.outcome, b.generation,
            b.owner, b.doing, b.after, b.shared, b.vars, b.context, b.output, b.error, extract(epoch from b.queued_at)::float8, i.input,
            extract(epoch from i.created_at)::float8, b.queue
        from branches b join instances i on i.id = b.instance_id where b.instance_id = %s order by b.id
        """,
        (instance_id,),
    ).fetchall()
    facts = c.execute(
        """
        select c.branch_id, c.seq, c.position, c.kind, c.data, c.attempt, extract(epoch from c.at)::float8
        from branches b join checkpoints c on c.branch_id = b.id where b.instance_id = %s order by c.at, c.branch_id, c.seq
        """,
        (instance_id,),
    ).fetchall()
    # Within a branch the number decides, whatever the clock says.
    ordered = sorted(facts, key=lambda row: (row[0], row[1]))
    return Told(
        [BranchRow(*row) for row in rows],
        [FactRow(row[0], row[1], Fact(row[2], row[3], row[4], row[5]), row[6]) for row in ordered],
    )


def times_received(c: Connection, instance_id: str, position: str) -> int:
    """How often a listener has taken an event."""
    row = c.execute(
        """
        select count(*) from checkpoints k join branches b on b.id = k.branch_id
        where b.instance_id = %s and k.position = %s and k.kind = 'event.received'
        """,
        (instance_id, position),
    ).fetchone()
    return int(row[0]) if row else 0
