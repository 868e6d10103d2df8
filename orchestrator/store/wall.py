"""The wall between tenants: row-level security for whoever asks in the name of one.

    mine     rows of the tenant
    shared   read: the tenant's and everybody's; written: the tenant's
    part     rows of something that is itself behind the wall

Every table with a column `tenant` stands here, or a test fails. Tables without one that belong to something, too.
"""

from __future__ import annotations

from typing import Any

ROLE = "orchestrator_api"
TENANT = "orchestrator.tenant"

_OWN = f"tenant = current_setting('{TENANT}', true)"
_SHARED = f"(tenant in (current_setting('{TENANT}', true), 'default') or left(tenant, 1) = '#')"
_INSTANCE = "exists (select 1 from instances i where i.id = {table}.instance_id)"
_BRANCH = "exists (select 1 from branches b where b.id = {table}.branch_id)"

MINE = (
    "instances", "schedules", "events", "triggers", "webhooks", "windows", "subscriptions", "api_keys", "security_events", "resources",
    "resource_moves",
)  # fmt: skip
SHARED = ("definitions", "configs")
PARTS = {
    "branches": _INSTANCE,
    "dead_letters": _INSTANCE,
    "dependencies": _INSTANCE,
    "slots": _INSTANCE,
    "checkpoints": _BRANCH,
    "timers": _BRANCH,
    "effects": "exists (select 1 from events e where e.id = effects.event_id)",
    "fires": "exists (select 1 from schedules s where s.id = fires.schedule_id)",
    "deliveries": "exists (select 1 from webhooks w where w.id = deliveries.webhook_id)",
}
# Written by whoever does something; read by the relay, and by those whose instance or tenant a line names.
_AUDIT = (
    f"case when instance_id is null then coalesce(detail ->> 'tenant', 'default') = current_setting('{TENANT}', true)"
    " else exists (select 1 from instances i where i.id = audit.instance_id) end"
)
_OUTBOX = "instance_id is null or exists (select 1 from instances i where i.id = outbox.instance_id)"
OPEN = {"audit": _AUDIT, "outbox": _OUTBOX}
TABLES = (*MINE, *SHARED, *PARTS, *OPEN)

_MAKE_ROLE = f"""
do $$ begin
    if not exists (select 1 from pg_roles where rolname = '{ROLE}') then
        begin
            create role {ROLE} nologin;
        exception when insufficient_privilege then
            raise warning 'this user may not create the role {ROLE}: tenants are kept apart by the API alone';
        when duplicate_object or unique_violation then
            null;
        end;
    end if;
end $$
"""
_GRANT = f"""
do $$ begin
    if exists (select 1 from pg_roles where rolname = '{ROLE}') then
        begin
            if not pg_has_role(current_user, '{ROLE}', 'member') then
                execute format('grant {ROLE} to %I', current_user);
            end if;
            grant usage on schema public to {ROLE};
            grant select, insert, update, delete on all tables in schema public to {ROLE};
            grant usage, select on all sequences in schema public to {ROLE};
            alter default privileges in schema public grant select, insert, update, delete on tables to {ROLE};
            alter default privileges in schema public grant usage, select on sequences to {ROLE};
            -- Nobody who asks for one tenant has any business with these.
            if to_regclass('secrets') is not null then
                revoke all on secrets from {ROLE};
            end if;
        exception when insufficient_privilege then
            raise warning 'the role {ROLE} is not this user''s to use: tenants are kept apart by the API alone';
        end;
    end if;
end $$
"""


def refresh() -> list[str]:
    """The role and what it may touch: after every migration, also where it could not be made before."""
    return [_MAKE_ROLE, _GRANT]


def build() -> list[str]:
    statements = refresh()
    for table in TABLES:
        statements.append(f"alter table {table} enable row level security")
        statements += [f"create policy {name} on {table} {rest}" for name, rest in _policies(table)]
    return statements


def tear_down() -> list[str]:
    return [
        statement
        for table in TABLES
        for statement in (
            *(f"drop policy {name} on {table}" for name, _ in _policies(table)),
            f"alter table {table} disable row level security",
        )
    ]


def stands(c: Any) -> bool:
    """Whether this user can step behind it."""
    row = c.execute(
        "select exists (select 1 from pg_roles where rolname = %s and pg_has_role(current_user, oid, 'member'))", (ROLE,)
    ).fetchone()
    return bool(row and row[0])


def _policies(table: str) -> list[tuple[str, str]]:
    if table in MINE:
        return [("mine", f"for all using ({_OWN}) with check ({_OWN})")]
    if table in SHARED:
        written = f"({_OWN} or left(tenant, 1) = '#')"
        return [
            ("seen", f"for select using ({_SHARED})"),
            ("made", f"for insert with check {written}"),
            ("changed", f"for update using ({_OWN}) with check {written}"),
            ("deleted", f"for delete using ({_OWN})"),
        ]
    if table in PARTS:
        part = PARTS[table].format(table=table)
        return [("part", f"for all using ({part}) with check ({part})")]
    return [("read", f"for select using ({OPEN[table]})"), ("written", "for insert with check (true)")]
