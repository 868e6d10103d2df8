"""Instances: created, begun, ended, moved. The row of an instance is written at its turns, never per step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.history import Fact
from orchestrator.ids import Scope
from orchestrator.store.branches import FREE, Held, Published
from orchestrator.store.connection import Connection, dumps
from orchestrator.store.facts import columns
from orchestrator.store.partitions import into
from orchestrator.store.sealing import readable, sealed
from orchestrator.store.timers import due_after


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    """What a start is: everything is decided before the transaction begins."""

    id: str
    definition_id: int
    workflow: str
    version: str
    namespace: str
    tenant: str
    input: str
    labels: str = "{}"
    metadata: str | None = None
    priority: int = 1
    queue: str = "normal"
    idempotency_key: str | None = None
    parent_id: str | None = None
    parent_branch: int | None = None
    forked_from: str | None = None
    trace_id: str | None = None
    source: str = "api"
    actor: str = "anonymous"
    step_events: bool = False
    timeout_s: float | None = None
    """Of the whole instance, where it is known before it begins."""
    slots: Sequence[tuple[str, int]] = field(default=())
    dependencies: Sequence[dict[str, Any]] = field(default=())

    @property
    def is_blocked(self) -> bool:
        return bool(self.slots or self.dependencies)


_CREATE = """
with created as (
    insert into instances (id, definition_id, workflow, version, namespace, tenant, state, input, labels, metadata, priority,
        idempotency_key, parent_id, parent_branch, forked_from, trace_id, source, step_events, slots, timeout_s)
    values (%(id)s, %(definition_id)s, %(workflow)s, %(version)s, %(namespace)s, %(tenant)s, 'PENDING', %(input)s::jsonb,
        %(labels)s::jsonb, %(metadata)s::jsonb, %(priority)s, %(idempotency_key)s, %(parent_id)s, %(parent_branch)s,
        %(forked_from)s, %(trace_id)s, %(source)s, %(step_events)s, %(slot_count)s, %(timeout_s)s)
    on conflict (tenant, namespace, workflow, idempotency_key) where idempotency_key is not null do nothing
    returning id
), asked as (
    insert into audit (actor, action, source, instance_id, workflow, to_state)
    select %(actor)s, 'start', %(source)s, id, %(workflow)s, 'PENDING' from created
), told as (
    insert into outbox (type, instance_id, data) select 'workflow.created', id, '{}' from created
), rooted as (
    insert into branches (instance_id, position, state, queue) select id, '', %(state)s, %(queue)s from created returning id
)
select id from rooted
"""
_CREATE_TIMED = _CREATE.replace(
    "\n)\nselect id from rooted",
    f"""
), timed as (
    insert into timers (branch_id, due_at, kind) select id, {due_after("%(timeout_s)s::float8")}, 'deadline' from rooted
)
select id from rooted""",
)


def create(c: Connection, new: New) -> int | None:
    """The instance, its root branch, its audit entry and its event at once. None: the idempotency key is taken."""
    row = c.execute(
        _CREATE if new.is_blocked or new.timeout_s is None else _CREATE_TIMED,
        {
            "id": new.id,
            "definition_id": new.definition_id,
            "workflow": new.workflow,
            "version": new.version,
            "namespace": new.namespace,
            "tenant": new.tenant,
            "input": sealed(new.input),
            "labels": new.labels,
            "metadata": new.metadata,
            "priority": new.priority,
            "idempotency_key": new.idempotency_key,
            "parent_id": new.parent_id,
            "parent_branch": new.parent_branch,
            "forked_from": new.forked_from,
            "trace_id": new.trace_id,
            "source": new.source,
            "actor": new.actor,
            "step_events": new.step_events,
            "slot_count": len(new.slots),
            "timeout_s": new.timeout_s,
            "state": "blocked" if new.is_blocked else "queued",
            "queue": new.queue,
        },
    ).fetchone()
    return row[0] if row else None


_CREATE_MANY = (
    """
with given as (
    select * from unnest(%b::text[]::uuid[], %b::bigint[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[],
            %b::int[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bool[], %b::int[], %b::float8[], %b::text[]) with ordinality
        as g (id, definition_id, workflow, version, namespace, tenant, input, labels, metadata, priority, idempotency_key, trace_id,
              source, actor, step_events, slot_count, timeout_s, queue, n)
), firsts as (
    select distinct on (id) * from given order by id, n
), created as (
    insert into instances (id, definition_id, workflow, version, namespace, tenant, state, input, labels, metadata, priority,
        idempotency_key, trace_id, source, step_events, slots, timeout_s)
    select id, definition_id, workflow, version, namespace, tenant, 'PENDING', input::jsonb, labels::jsonb, metadata::jsonb, priority,
        idempotency_key, trace_id, source, step_events, slot_count, timeout_s from firsts order by n
    on conflict do nothing
    returning id
), asked as (
    insert into audit (actor, action, source, instance_id, workflow, to_state)
    select g.actor, 'start', g.source, g.id, g.workflow, 'PENDING' from created join firsts g using (id)
), told as (
    insert into outbox (type, instance_id, data) select 'workflow.created', id, '{}' from created
), rooted as (
    insert into branches (instance_id, position, state, queue)
    select g.id, '', case when g.slot_count > 0 then 'blocked' else 'queued' end, g.queue from created join firsts g using (id) order by g.n
    returning id, instance_id, state
), timed as (
    insert into timers (branch_id, due_at, kind)
    select r.id, """
    + due_after("g.timeout_s")
    + """, 'deadline' from rooted r join firsts g on g.id = r.instance_id
    where r.state = 'queued' and g.timeout_s is not null
)
select id::text from created
"""
)


def create_many(c: Connection, news: Sequence[New]) -> set[str]:
    """Instances without dependencies, in their order; gives the ids of those that are new."""
    columns_of = zip(
        *(
            (
                new.id, new.definition_id, new.workflow, new.version, new.namespace, new.tenant, sealed(new.input), new.labels, new.metadata,
                new.priority, new.idempotency_key, new.trace_id, new.source, new.actor, new.step_events, len(new.slots), new.timeout_s,
                new.queue,
            )
            for new in news
        ),
        strict=True,
    )  # fmt: skip
    return {row[0] for row in c.execute(_CREATE_MANY, [list(column) for column in columns_of]).fetchall()}


def by_key(c: Connection, new: New) -> tuple[str, bool] | None:
    """The instance that owns an idempotency key, and whether its input is the same."""
    row = c.execute(
        "select id::text, input from instances where tenant = %s and namespace = %s and workflow = %s and idempotency_key = %s",
        (new.tenant, new.namespace, new.workflow, new.idempotency_key),
    ).fetchone()
    return None if row is None else (row[0], row[1] == json.loads(new.input))


def label(c: Connection, instance_id: str, labels: str) -> None:
    """Laid over what is there; null removes."""
    c.execute("update instances set labels = jsonb_strip_nulls(labels || %s::jsonb) where id = %s", (labels, instance_id))


# No fence beside the state: who holds a complete history may end the instance. Had another worker gone on from here,
# it would have written these numbers, and this statement would fail as a whole.
_FINISH = """
with done as (
    update instances i
    set state = %(state)s, outcome = %(state)s, output = coalesce(%(output)s::jsonb, i.output), error = coalesce(%(error)s::jsonb, i.error),
        compensation = coalesce(%(compensation)s::jsonb, i.compensation), ended_at = now(), ending = null
    from branches b
    where b.id = %(id)s and b.generation = %(generation)s and b.owner = %(owner)s and b.state || '' = 'running'
      and i.id = %(instance)s::uuid and i.state || '' = 'RUNNING'
    returning i.id, i.workflow
), closed as (
    update branches b
    set state = 'closed', outcome = %(outcome)s, owner = null, lease_until = null, doing = null, snapshot = null
    from done where b.id = %(id)s returning b.id
), written as (
    insert into checkpoints (branch_id, seq, position, kind, attempt, data)
    select closed.id, f.seq, f.position, f.kind, f.attempt, f.data::jsonb
    from closed, unnest(%(seqs)s::int[], %(positions)s::text[], %(kinds)s::text[], %(attempts)s::int[], %(datas)s::text[])
         as f (seq, position, kind, attempt, data)
), told as (
    insert into outbox (type, instance_id, data)
    select e.type, done.id, e.data::jsonb from done, unnest(%(types)s::text[], %(events)s::text[]) as e (type, data)
)
select exists (select 1 from dependencies d where not d.met and (d.on_workflow = done.workflow
    or d.on_workflow = substring(done.workflow from '[^.]*$') or d.on_instance = done.id)) from done
"""


@dataclass(frozen=True, slots=True)
class End:
    state: str
    output: Any = None
    error: Any = None
    compensation: Any = None


def finish(c: Connection, held: Held, seq: int, facts: Sequence[Fact], end: End, events: Sequence[tuple[str, str]]) -> bool | None:
    """End the instance with its last facts. True: somebody depends on it. None: fenced, paused or cancelled; nothing changed."""
    seqs, positions, kinds, attempts, datas = columns(seq, facts)
    row = c.execute(
        into(_FINISH, held.id),
        {
            "id": held.id,
            "instance": held.instance_id,
            "generation": held.generation,
            "owner": held.owner,
            "state": end.state,
            "outcome": "completed" if end.state == "COMPLETED" else "failed",
            "output": None if end.output is None else sealed(dumps(end.output)),
            "error": None if end.error is None else dumps(end.error),
            "compensation": None if end.compensation is None else dumps(end.compensation),
            "seqs": seqs,
            "positions": positions,
            "kinds": kinds,
            "attempts": attempts,
            "datas": datas,
            "types": [event[0] for event in events],
            "events": [event[1] for event in events],
        },
    ).fetchone()
    return row[0] if row else None


# ── life cycle, by hand ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Locked:
    id: str
    state: str
    phase: str
    workflow: str
    definition_id: int
    outcome: str | None
    compensation: Any
    parent_branch: int | None
    ended_for_s: float | None
    priority: int
    tenant: str


def lock(c: Connection, instance_id: str) -> Locked | None:
    row = c.execute(
        """
        select id::text, state, phase, workflow, definition_id, outcome, compensation, parent_branch,
            greatest(0, extract(epoch from now() - ended_at))::float8, priority, tenant
        from instances where id = %s for update
        """,
        (instance_id,),
    ).fetchone()
    return Locked(*row) if row else None


def move(c: Connection, instance_id: str, state: str, **columns: Any) -> None:
    """Set the state and further columns; `"now"` as a value is the database's clock."""
    names = ", ".join(f"{name} = " + ("now()" if value == "now" else "%s") for name, value in columns.items())
    values = [value for value in columns.values() if value != "now"]
    c.execute(
        f"update instances set state = %s{', ' + names if names else ''} where id = %s", (state, *values, instance_id)
    )  # names are ours


def audit(c: Connection, actor: str, action: str, source: str, instance: Locked | None, to_state: str | None, detail: Any = None) -> None:
    c.execute(
        "insert into audit (actor, action, source, instance_id, workflow, from_state, to_state, detail)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s::jsonb)",
        (
            actor,
            action,
            source,
            instance.id if instance else None,
            instance.workflow if instance else None,
            instance.state if instance else None,
            to_state,
            None if detail is None else dumps(detail),
        ),
    )


def scope_of(c: Connection, instance_id: str) -> Scope | None:
    """Which workflow an instance is of."""
    row = c.execute("select tenant, namespace, workflow from instances where id = %s", (instance_id,)).fetchone()
    return Scope(*row) if row else None


def times_audited(c: Connection, instance_id: str, action: str) -> int:
    row = c.execute("select count(*) from audit where instance_id = %s and action = %s", (instance_id, action)).fetchone()
    return int(row[0]) if row else 0


def ending_of(c: Connection, instance_id: str) -> tuple[str, str | None, Any, Any] | None:
    """State, outcome, output and error."""
    row = c.execute("select state, outcome, output, error from instances where id = %s", (instance_id,)).fetchone()
    if row is not None:
        readable(row[2])
    return row


def heading_for(c: Connection, instance_id: str) -> tuple[str, Any]:
    """The state a compensating instance is on its way to, and the error that turned it round."""
    row = c.execute("select coalesce(ending, 'FAILED'), error from instances where id = %s", (instance_id,)).fetchone()
    assert row is not None
    return row[0], row[1]


def has_begun(c: Connection, instance_id: str) -> bool:
    row = c.execute("select started_at is not null from instances where id = %s", (instance_id,)).fetchone()
    return bool(row and row[0])


def dead_letter(c: Connection, instance_id: str, position: str, reason: str, error: Any) -> None:
    c.execute(
        "insert into dead_letters (instance_id, position, reason, error) values (%s, %s, %s, %s::jsonb)",
        (instance_id, position, reason, dumps(error)),
    )


def resolve_dead_letters(c: Connection, instance_id: str) -> None:
    c.execute("update dead_letters set resolved_at = now() where instance_id = %s and resolved_at is null", (instance_id,))


def acknowledge_dead_letters(c: Connection, numbers: list[int], tenant: str | None) -> tuple[set[int], list[tuple[int, str]]]:
    """Which of them there are, and those that were open until now, each with its instance."""
    known = c.execute(
        """
        select d.id from dead_letters d join instances i on i.id = d.instance_id
        where d.id = any (%s) and (%s::text is null or i.tenant = %s) for update of d
        """,
        (numbers, tenant, tenant),
    ).fetchall()
    found = [row[0] for row in known]
    opened = c.execute(
        "update dead_letters set resolved_at = now() where id = any (%s) and resolved_at is null returning id, instance_id::text", (found,)
    ).fetchall()
    return set(found), sorted(opened)


def open_undo(c: Connection, instance_id: str, queue: str) -> list[Published]:
    """The branch that walks the way back; opened once, published again ever after."""
    return c.execute(
        """
        insert into branches (instance_id, position, state, queue) values (%s, '/undo', 'queued', %s)
        on conflict (instance_id, position) do update
            set generation = branches.generation + 1, state = 'queued', queued_at = now()
        returning instance_id::text, position, generation, queue
        """,
        (instance_id, queue),
    ).fetchall()


def close_root(c: Connection, held: Held, outcome: str) -> None:
    c.execute(f"update branches set state = 'closed', outcome = %s, {FREE}, snapshot = null where id = %s", (outcome, held.id))


def requeue_all(c: Connection, instance_id: str) -> list[Published]:
    """On resume: publish afresh what was queued, halted, or parked with nothing that would still wake it."""
    return c.execute(
        """
        update branches b set state = 'queued', generation = b.generation + 1, queued_at = now()
        where b.instance_id = %s
          and (b.state in ('queued', 'halted')
               or (b.state = 'parked' and not exists (select 1 from timers t where t.branch_id = b.id and t.kind in ('wake', 'due')))
               or (b.state = 'joining' and not exists (select 1 from branches k where k.parent_id = b.id and k.state <> 'closed'))
               or (b.state = 'blocked' and b.after is not null
                   and not exists (select 1 from branches p where p.id = any (b.after) and p.state <> 'closed')))
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (instance_id,),
    ).fetchall()


def children_of(c: Connection, instance_id: str) -> list[str]:
    """Awaited child instances that have not ended."""
    rows = c.execute(
        "select id::text from instances where parent_id = %s and parent_branch is not null and state in ('PENDING', 'RUNNING', 'PAUSED')",
        (instance_id,),
    ).fetchall()
    return [row[0] for row in rows]


def wake_branch(c: Connection, branch_id: int) -> list[Published]:
    """Publish a parked branch afresh: what it waited for has happened."""
    c.execute("delete from timers where branch_id = %s and kind in ('wake', 'due')", (branch_id,))
    return c.execute(
        """
        update branches b set state = 'queued', generation = b.generation + 1, queued_at = now()
        where b.id = %s and b.state = 'parked'
        returning b.instance_id::text, b.position, b.generation, b.queue
        """,
        (branch_id,),
    ).fetchall()
