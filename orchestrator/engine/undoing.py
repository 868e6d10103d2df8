"""What was done, read from the forward branches, and the tree that undoes it."""

from __future__ import annotations

from orchestrator.definition.tree import AnyTask, Definition
from orchestrator.engine.rebuild import forward_of
from orchestrator.history import Kind
from orchestrator.ids import Position
from orchestrator.plan.backward import Done, backward, without_handler
from orchestrator.plan.needs import Perform
from orchestrator.steps.registry import Registry
from orchestrator.store import history
from orchestrator.store.connection import Connection


def completed_steps(c: Connection, instance_id: str, definition: Definition) -> dict[Position, Done]:
    """Every completed step of the forward branches with what it was given, in the order in which they were completed;
    less what an earlier way back has undone."""
    told = history.of_instance(c, instance_id).readable()
    order = {(r.branch_id, r.seq): n for n, r in enumerate(sorted(told.facts, key=lambda r: (r.at, r.branch_id, r.seq)), 1)}
    done: dict[Position, Done] = {}
    undone = {
        row.fact.data["origin"]
        for row in told.facts
        if row.fact.kind == Kind.UNDONE and told.by_id[row.branch_id].position.startswith("/undo#")
    }
    for branch in told.branches:
        if branch.position.startswith("/undo"):
            continue
        forward = forward_of(definition, definition.do, branch, *told.flows_into(branch))
        for seq, fact in told.counted(branch.id):
            need = forward.need
            if fact.kind == Kind.TASK_SKIPPED:
                break
            if fact.kind == Kind.STEP_COMPLETED and isinstance(need, Perform) and need.position not in undone:
                data = fact.data or {}
                at = order[branch.id, seq]
                done[need.position] = Done(at, need.input, need.parameters, data.get("output"), data.get("checkpoint"))
            forward.apply(fact)
    return done


def undo_tree(c: Connection, instance_id: str, definition: Definition, registry: Registry) -> AnyTask | None:
    """Raises `MissingCode` where this process cannot say whether a step has a compensation: it does not have the step."""

    def has_handler(type: str) -> bool:
        if registry.has_handler(type):
            return True
        registry.executor(type)
        return False

    return backward(definition.do, completed_steps(c, instance_id, definition), has_handler)


def not_undone(c: Connection, instance_id: str, definition: Definition, registry: Registry) -> list[tuple[Position, str]]:
    """The completed steps that no handler undoes, with their types."""
    return without_handler(definition.do, completed_steps(c, instance_id, definition), registry.has_handler)
