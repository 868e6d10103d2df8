"""A branch's fold from what the store holds: the same for walking on, undoing, looking and travelling in time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from orchestrator.config.secrets import resolve
from orchestrator.definition.tree import AnyTask, Definition, find
from orchestrator.engine.runtime import is_undo
from orchestrator.ids import Position
from orchestrator.plan.about import facts_of
from orchestrator.plan.forward import Forward
from orchestrator.plan.gathering import laid_over


class BranchLike(Protocol):
    @property
    def instance_id(self) -> str: ...
    @property
    def position(self) -> Position: ...
    @property
    def vars(self) -> Any: ...
    @property
    def context(self) -> Any: ...
    @property
    def instance_input(self) -> Any: ...
    @property
    def created_at(self) -> float: ...


class ClosedLike(Protocol):
    @property
    def output(self) -> Any: ...


def forward_of(
    definition: Definition, root: AnyTask, branch: BranchLike, shared: Any = None, before: Sequence[ClosedLike] | Iterable[ClosedLike] = ()
) -> Forward:
    """The fold of a branch at its beginning. `shared` flows into all branches of its fan-out, `before` are the graph
    branches whose outputs flow into this one."""
    undoing = is_undo(branch.position)
    relative = branch.position.removeprefix("/undo") if undoing else branch.position
    given = branch.instance_input if branch.position == "" else shared
    outputs = [closed.output for closed in before]
    return Forward(
        find(root, relative),
        branch.position,
        laid_over(given, outputs) if outputs else given,
        variables=branch.vars or {},
        context=branch.context,
        facts_of_instance=facts_of(
            definition,
            branch.instance_id,
            branch.instance_input,
            branch.created_at,
            resolve(definition.secrets) if definition.secrets else {},
        ),
        seed=branch.instance_id,
    )
