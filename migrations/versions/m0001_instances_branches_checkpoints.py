"""Definitions, instances, branches and their checkpoints, and what wakes, limits, tells and audits them."""

from alembic import op

revision = "0001"
down_revision = None

UP = """
create table definitions (
    id bigint generated always as identity primary key,
    namespace text not null,
    name text not null,
    version text not null,
    major integer not null,
    minor integer not null,
    patch integer not null,
    tree jsonb not null,
    digest text not null,
    source text,
    created_at timestamptz not null default now(),
    constraint definitions_version unique (namespace, name, version)
);

create table instances (
    id uuid primary key,
    definition_id bigint not null references definitions (id),
    workflow text not null,
    version text not null,
    namespace text not null default 'default',
    tenant text not null default 'default',
    state text not null,
    outcome text,
    phase text not null default 'forward',
    ending text,
    compensation jsonb,
    input jsonb,
    output jsonb,
    error jsonb,
    labels jsonb not null default '{}',
    metadata jsonb,
    priority smallint not null default 1,
    idempotency_key text,
    parent_id uuid,
    parent_branch bigint,
    forked_from uuid,
    trace_id text,
    source text not null default 'api',
    step_events boolean not null default false,
    slots smallint not null default 0,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    ended_at timestamptz
);
create unique index instances_idempotency on instances (tenant, workflow, idempotency_key) where idempotency_key is not null;
create index instances_state on instances (state, created_at);
create index instances_workflow on instances (workflow, created_at);
create index instances_parent on instances (parent_id) where parent_id is not null;
create index instances_labels on instances using gin (labels jsonb_path_ops) where labels <> '{}';

create table branches (
    id bigint generated always as identity primary key,
    instance_id uuid not null references instances (id) on delete cascade,
    parent_id bigint,
    position text not null,
    join_position text,
    mode text,
    state text not null,
    outcome text,
    generation integer not null default 1,
    claims integer not null default 0,
    owner text,
    lease_until timestamptz,
    doing text,
    stopping boolean not null default false,
    crashes smallint not null default 0,
    crash_seq integer,
    queue text not null,
    queued_at timestamptz not null default now(),
    after bigint[],
    shared jsonb,
    vars jsonb,
    context jsonb,
    output jsonb,
    error jsonb,
    snapshot jsonb,
    constraint branches_position unique (instance_id, position)
) with (fillfactor = 80);
create index branches_queued on branches (parent_id, id) where state = 'queued';
create index branches_queued_at on branches (queued_at) where state = 'queued';
create index branches_leases on branches (lease_until) where state = 'running';
create index branches_open_children on branches (parent_id) where state <> 'closed' and parent_id is not null;
create index branches_children on branches (parent_id, join_position, id) where parent_id is not null;
create index branches_waiting on branches (state, queued_at) where state in ('joining', 'blocked');

create table checkpoints (
    branch_id bigint not null,
    seq integer not null,
    position text not null,
    kind text not null,
    attempt smallint not null default 0,
    data jsonb,
    at timestamptz not null default now(),
    constraint checkpoints_pkey primary key (branch_id, seq)
);

create table timers (
    id bigint generated always as identity primary key,
    branch_id bigint not null references branches (id) on delete cascade,
    due_at timestamptz not null,
    kind text not null
);
create index timers_due on timers (due_at);
create index timers_branch on timers (branch_id);

create table events (
    id bigint generated always as identity primary key,
    source text not null,
    event_id text not null,
    type text not null,
    instance_id uuid,
    tenant text not null default 'default',
    envelope jsonb not null,
    at timestamptz not null default now(),
    constraint events_once unique (source, event_id)
);
create index events_instance on events (instance_id, id) where instance_id is not null;
create index events_type on events (type, id);

create table subscriptions (
    id bigint generated always as identity primary key,
    branch_id bigint not null references branches (id) on delete cascade,
    instance_id uuid not null,
    event_type text,
    tenant text not null default 'default'
);
create index subscriptions_branch on subscriptions (branch_id);
create index subscriptions_type on subscriptions (event_type, tenant);
create index subscriptions_instance on subscriptions (instance_id);

create table outbox (
    id bigint generated always as identity primary key,
    type text not null,
    instance_id uuid,
    data jsonb not null,
    at timestamptz not null default now()
);

create table slots (
    id bigint generated always as identity primary key,
    scope text not null,
    capacity integer not null,
    instance_id uuid not null references instances (id) on delete cascade,
    granted boolean not null default false,
    constraint slots_once unique (scope, instance_id)
);
create index slots_waiting on slots (scope, id) where not granted;
create index slots_granted on slots (scope) where granted;
create index slots_instance on slots (instance_id);

create table dependencies (
    id bigint generated always as identity primary key,
    instance_id uuid not null references instances (id) on delete cascade,
    on_workflow text,
    on_instance uuid,
    condition text not null default 'completed',
    met boolean not null default false
);
create index dependencies_instance on dependencies (instance_id);
create index dependencies_on_workflow on dependencies (on_workflow) where not met;
create index dependencies_on_instance on dependencies (on_instance) where not met;

create table dead_letters (
    id bigint generated always as identity primary key,
    instance_id uuid not null references instances (id) on delete cascade,
    position text not null,
    reason text not null,
    error jsonb,
    at timestamptz not null default now(),
    resolved_at timestamptz
);
create index dead_letters_open on dead_letters (id) where resolved_at is null;
create index dead_letters_instance on dead_letters (instance_id);

create table audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    actor text not null,
    action text not null,
    source text not null,
    instance_id uuid,
    workflow text,
    from_state text,
    to_state text,
    detail jsonb
);
create index audit_instance on audit (instance_id, id);

create table leadership (
    role text primary key,
    owner text not null,
    until timestamptz not null
);

create table workers (
    id text primary key,
    hostname text not null,
    pid integer not null,
    concurrency integer not null,
    queues text[] not null,
    started_at timestamptz not null default now(),
    seen_at timestamptz not null default now()
);
"""

TABLES = [
    "workers",
    "leadership",
    "audit",
    "dead_letters",
    "dependencies",
    "slots",
    "outbox",
    "subscriptions",
    "events",
    "timers",
    "checkpoints",
    "branches",
    "instances",
    "definitions",
]


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"drop table {table}")
