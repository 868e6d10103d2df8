"""The wall between tenants: row-level security for whoever asks in the name of one.

The engine is the tables' owner, and none of this applies to it. Which rows a role sees is said by the migration that makes a
table (`m0012` for all that were there before); a test finds a table with a column `tenant` that has no wall.
"""

from __future__ import annotations

from typing import Any

ROLE = "orchestrator_api"
TENANT = "orchestrator.tenant"

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


def stands(c: Any) -> bool:
    """Whether this user can step behind it."""
    row = c.execute(
        "select exists (select 1 from pg_roles where rolname = %s and pg_has_role(current_user, oid, 'member'))", (ROLE,)
    ).fetchone()
    return bool(row and row[0])
