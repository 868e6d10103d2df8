"""Who may begin: slots of limited scopes, in order of asking, and workflows that wait for other workflows.

A slot belongs to an instance, not to a process: it survives every crash and goes back when the instance ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.ids import Scope, parts_of
from orchestrator.store import locks
from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection
from orchestrator.store.timers import due_after


def ask(c: Connection, instance_id: str, slots: Sequence[tuple[str, int]], dependencies: Sequence[dict[str, Any]]) -> None:
    if slots:
        c.execute(
            "insert into slots (scope, capacity, instance_id)"
            " select s.scope, s.capacity, %s from unnest(%s::text[], %s::int[]) as s (scope, capacity)"
            " on conflict (scope, instance_id) do nothing",
            (instance_id, [scope for scope, _ in slots], [capacity for _, capacity in slots]),
        )
    for dependency in dependencies:
        c.execute(
            "insert into dependencies (instance_id, on_workflow, on_namespace, on_instance, condition) values (%s, %s, %s, %s, %s)",
            (
                instance_id,
                dependency.get("workflow"),
                dependency.get("namespace"),
                dependency.get("instance"),
                dependency.get("condition", "completed"),
            ),
        )


def ask_many(c: Connection, asked: Sequence[tuple[str, str, int]]) -> None:
    """Places in the queues of scopes, in this order: (instance, scope, capacity)."""
    c.execute(
        "insert into slots (scope, capacity, instance_id)"
        " select scope, capacity, instance_id from unnest(%s::uuid[], %s::text[], %s::int[]) with ordinality"
        " as g (instance_id, scope, capacity, n) order by n on conflict (scope, instance_id) do nothing",
        ([one[0] for one in asked], [one[1] for one in asked], [one[2] for one in asked]),
    )


def _last(column: str, where: str, order: str) -> str:
    """The last instance of the workflow that the dependency `d` is about. A name with a dot, asked for before there was such a workflow,
    was taken for `namespace.name`: that is looked for where there is none of the other."""
    of = f"select l.{column} from instances l where l.tenant = own.tenant and {where} and %s order by l.{order} desc limit 1"
    exact = of % "l.workflow = d.on_workflow and (d.on_namespace is null or l.namespace = d.on_namespace)"
    dotted = of % "l.workflow = d.on_namespace || '.' || d.on_workflow"
    return f"coalesce(({exact}), ({dotted}))"


# What meets a dependency is of the same tenant, whoever asks.
_MET = f"""
update dependencies d set met = true
from instances own
where own.id = d.instance_id and not d.met
  and (%(workflow)s::text is null or d.on_workflow = any (%(named)s) or d.on_instance = %(instance)s::uuid)
  and exists (
    select 1 from instances i
    where i.tenant = own.tenant
      and (i.id = d.on_instance or (d.on_instance is null and i.id = {_last("id", "l.ended_at is not null", "ended_at")}))
      and i.outcome is not null
      and (d.condition = 'any' or (d.condition = 'completed' and i.outcome = 'COMPLETED')
           or (d.condition = 'failed' and i.outcome = 'FAILED')))
returning d.instance_id::text
"""


def meet(c: Connection, workflow: str | None = None, instance_id: str | None = None) -> list[str]:
    """Mark dependencies that are met by now; gives the instances they belong to."""
    named = None if workflow is None else [workflow, workflow.rpartition(".")[2]]
    rows = c.execute(_MET, {"workflow": workflow, "named": named, "instance": instance_id}).fetchall()
    return sorted({row[0] for row in rows})


def waiting_scopes(c: Connection, instance_id: str) -> list[tuple[str, int]]:
    return c.execute("select scope, capacity from slots where instance_id = %s and not granted order by scope", (instance_id,)).fetchall()


def give_back(c: Connection, instance_id: str) -> list[str]:
    """An ended instance's slots; gives the scopes in which there is room now."""
    rows = c.execute("delete from slots where instance_id = %s returning scope", (instance_id,)).fetchall()
    return sorted(row[0] for row in rows)


def admit(c: Connection, scopes: Sequence[str]) -> list[Published]:
    """Grant free slots of scopes in order of asking, and queue the instances that now have all they need.

    One at a time per scope (the locks end with the transaction, and are taken in one order): two admissions cannot both
    see the last free slot. An instance whose dependencies are not met yet takes no slot and stands in nobody's way;
    in a scope that keeps an order it does, and so does one that is paused, and priorities do not count.
    """
    wanted = sorted(set(scopes))
    if not wanted:
        return []
    locks.hold_all(c, "slots", wanted)
    granted = c.execute(
        """
        update slots set granted = true where id in (
            select g.id from unnest(%s::text[]) w (scope) cross join lateral (
                select s.id from slots s join instances i on i.id = s.instance_id
                where s.scope = w.scope and not s.granted
                  and (w.scope like 'order/%%'
                       or (i.state = 'PENDING'
                           and not exists (select 1 from dependencies d where d.instance_id = s.instance_id and not d.met)))
                order by case when w.scope like 'order/%%' then 0 else i.priority end desc, s.id
                limit greatest(0, (select min(capacity) from slots m where m.scope = w.scope)
                                  - (select count(*) from slots h where h.scope = w.scope and h.granted))) g)
        returning instance_id
        """,
        (wanted,),
    ).fetchall()
    return release_ready(c, [row[0] for row in granted]) if granted else []


def release_ready(c: Connection, instance_ids: Sequence[Any]) -> list[Published]:
    """Queue the root branches of those instances for which nothing is missing any more. Their time begins."""
    return c.execute(
        f"""
        with released as (
        update branches b set state = 'queued', queued_at = now()
        from instances i
        where b.instance_id = any (%s::uuid[]) and b.position = '' and b.state = 'blocked' and b.after is null
          and i.id = b.instance_id and i.state = 'PENDING'
          and not exists (select 1 from slots s where s.instance_id = b.instance_id and not s.granted)
          and not exists (select 1 from dependencies d where d.instance_id = b.instance_id and not d.met)
        returning b.id, b.instance_id, b.position, b.generation, b.queue, i.timeout_s
        ), timed as (
            insert into timers (branch_id, due_at, kind)
            select id, {due_after("timeout_s")}, 'deadline' from released where timeout_s is not null
        )
        select instance_id::text, position, generation, queue from released
        """,
        ([str(instance_id) for instance_id in instance_ids],),
    ).fetchall()


def stuck_scopes(c: Connection) -> list[str]:
    """Scopes with somebody waiting although there is room: who should have admitted them died."""
    rows = c.execute(
        """
        select w.scope from (select distinct scope from slots where not granted) w
        where (select count(*) from slots g where g.scope = w.scope and g.granted)
            < (select min(capacity) from slots m where m.scope = w.scope)
        """
    ).fetchall()
    return [row[0] for row in rows]


def orphaned_slots(c: Connection) -> list[str]:
    rows = c.execute(
        "delete from slots s using instances i where i.id = s.instance_id and i.state in ('COMPLETED', 'FAILED', 'CANCELLED', 'CLEANING_UP')"
        " returning s.scope"
    ).fetchall()
    return sorted({row[0] for row in rows})


def ready_instances(c: Connection) -> list[Published]:
    rows = c.execute(
        "select b.instance_id from branches b join instances i on i.id = b.instance_id"
        " where b.state = 'blocked' and b.position = '' and i.state = 'PENDING'"
        " and not exists (select 1 from slots s where s.instance_id = i.id and not s.granted)"
        " and not exists (select 1 from dependencies d where d.instance_id = i.id and not d.met)"
    ).fetchall()
    return release_ready(c, [row[0] for row in rows]) if rows else []


def unmet(c: Connection, instance_id: str) -> list[str]:
    """What an instance still waits for other workflows to do, for people."""
    rows = c.execute(
        f"""
        select case when d.on_instance is not null then 'instance ' || d.on_instance
                when coalesce(d.on_namespace, 'default') = 'default' then d.on_workflow
                else d.on_namespace || '.' || d.on_workflow end,
            d.condition,
            case when d.on_instance is not null then (select i.state from instances i where i.tenant = own.tenant and i.id = d.on_instance)
                else {_last("state", "true", "created_at")} end
        from dependencies d join instances own on own.id = d.instance_id where d.instance_id = %s and not d.met order by d.id
        """,
        (instance_id,),
    ).fetchall()
    return [f"{name} to be {condition} (last seen: {seen or 'never started'})" for name, condition, seen in rows]


def slots_wanted(c: Connection, instance_id: str) -> list[str]:
    """The slots that an instance waits for, for people."""
    rows = c.execute(
        """
        select w.scope, (select min(m.capacity) from slots m where m.scope = w.scope),
            (select count(*) from slots h where h.scope = w.scope and h.granted),
            (select count(*) from slots b where b.scope = w.scope and b.id < w.id)
        from slots w where w.instance_id = %s and not w.granted order by w.id
        """,
        (instance_id,),
    ).fetchall()
    return [_slot(*row) for row in rows]


def _slot(scope: str, capacity: int, used: int, before: int) -> str:
    kind, *parts = parts_of(scope)
    counted = f"{used} of {capacity} used"
    match kind, parts:
        case "engine", []:
            return f"a slot of the engine (all {capacity} are used; MAX_CONCURRENT_INSTANCES)"
        case "workflow", [tenant, namespace, name]:
            return f"a slot of workflow {Scope(tenant, namespace, name)} ({counted})"
        case "key", [tenant, namespace, name, key]:
            return f"a slot of workflow {Scope(tenant, namespace, name)} for the key '{key}' ({counted})"
        case "order", [*_, key]:
            return f"its turn in the order of the key '{key}' ({before} before it)"
        case "schedule", [*_]:
            return f"a slot of its schedule ({counted})"
    return f"a slot of {scope} ({counted})"


def known_instances(c: Connection, tenant: str, ids: Sequence[str]) -> set[str]:
    """Those of a tenant that exist."""
    rows = c.execute("select id::text from instances where tenant = %s and id = any (%s::uuid[])", (tenant, list(ids))).fetchall()
    return {row[0] for row in rows}


def dependency_edges(c: Connection, instance_id: str) -> list[str]:
    """Instances this one waits for, directly or not: to refuse a cycle."""
    rows = c.execute(
        """
        with recursive reach as (
            select on_instance from dependencies where instance_id = %s and on_instance is not null
            union select d.on_instance from dependencies d join reach r on d.instance_id = r.on_instance where d.on_instance is not null
        ) select on_instance::text from reach
        """,
        (instance_id,),
    ).fetchall()
    return [row[0] for row in rows]
