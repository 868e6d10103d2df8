"""Copying an instance's record, branches and facts into another one's."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.store.connection import Connection, dumps
from orchestrator.store.instances import Locked
from orchestrator.store.sealing import sealed


def copy_instance(c: Connection, instance: Locked, new_id: str, actor: str, source: str, input: str | None) -> None:
    """A running instance of the same definition; another input, when one is given."""
    c.execute(
        """
        insert into instances (id, definition_id, workflow, version, namespace, tenant, state, input, labels, metadata, priority,
            forked_from, trace_id, source, step_events, timeout_s, started_at)
        select %s, definition_id, workflow, version, namespace, tenant, 'RUNNING', coalesce(%s::jsonb, input), labels, metadata, priority,
            id, trace_id, %s, step_events, timeout_s, now()
        from instances where id = %s
        """,
        (new_id, None if input is None else sealed(input), source, instance.id),
    )
    c.execute(
        "insert into audit (actor, action, source, instance_id, workflow, to_state, detail)"
        " values (%s, 'start', %s, %s, %s, 'RUNNING', %s::jsonb)",
        (actor, source, new_id, instance.workflow, dumps({"forked_from": instance.id})),
    )


def copy_branch(
    c: Connection, branch_id: int, new_id: str, parent_id: int | None, state: str, after: Sequence[int]
) -> tuple[int, str, str, int, str]:
    """Gives the new branch's id and what a message about it says."""
    row = c.execute(
        """
        insert into branches (instance_id, parent_id, join_position, mode, position, state, outcome, queue, after, shared, vars, context,
            output, error, claims)
        select %(new)s, %(parent)s, join_position, mode, position, %(state)s, case when %(state)s = 'closed' then outcome end, queue,
            %(after)s, shared, vars, context, case when %(state)s = 'closed' then output end,
            case when %(state)s = 'closed' then error end, 1
        from branches where id = %(old)s
        returning id, instance_id::text, position, generation, queue
        """,
        {"new": new_id, "parent": parent_id, "state": state, "after": list(after) or None, "old": branch_id},
    ).fetchone()
    assert row is not None
    return (row[0], row[1], row[2], row[3], row[4])


def copy_facts(c: Connection, branch_id: int, new_branch_id: int, limit: int | None) -> None:
    """The facts up to a number, or all."""
    c.execute(
        "insert into checkpoints (branch_id, seq, position, kind, attempt, data, at)"
        " select %s, seq, position, kind, attempt, data, at from checkpoints where branch_id = %s and (%s::int is null or seq <= %s)",
        (new_branch_id, branch_id, limit, limit),
    )
