"""Reading an instance whole: its branches and every fact of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.history import Fact
from orchestrator.ids import Position
from orchestrator.store.connection import Connection


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


def of_instance(c: Connection, instance_id: str) -> Told:
    rows = c.execute(
        """
        select b.id, b.instance_id::text, b.parent_id, b.position, b.join_position, b.mode, b.state, b.outcome, b.generation,
            b.owner, b.doing, b.after, b.shared, b.vars, b.context, b.output, b.error, extract(epoch from b.queued_at)::float8, i.input,
            extract(epoch from i.created_at)::float8
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
