"""Who may: API keys by their hashes. What went wrong at the gate: security events. And the audit, with where each act came
from, sealed by a chain of hashes."""

from alembic import op

revision = "0009"
down_revision = "0008"

UP = """
create table api_keys (
    id text primary key,
    name text not null,
    tenant text not null,
    digest text not null,
    roles text[] not null,
    scopes text[] not null default '{}',
    workflows text[] not null default '{}',
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    used_at timestamptz
);
create table security_events (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    type text not null,
    severity text not null,
    principal text not null,
    tenant text not null,
    address text not null,
    detail jsonb,
    resolved_at timestamptz,
    resolved_by text,
    resolution text
);
create index security_events_open on security_events (id) where resolved_at is null;
create table audit_seals (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    first_id bigint not null,
    last_id bigint not null,
    rows integer not null,
    hash text not null
);
alter table audit
    add column address text default nullif(current_setting('orchestrator.address', true), ''),
    add column agent text default nullif(current_setting('orchestrator.agent', true), '');
create index audit_at on audit using brin (at);
"""

DOWN = """
drop index audit_at;
alter table audit drop column address, drop column agent;
drop table audit_seals; drop table security_events; drop table api_keys;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
