"""Events that have effects: triggers, what they did, windows over events; resources with a life cycle of their own;
and streams of events where no Redis is wanted for them.

`state` of an event: *taken* (its effects are committed), *working* (an instance that must end first is at work),
*held* (an effect failed and is tried again, or an earlier event of its key is), *dead* (put aside with its error).
"""

from alembic import op

revision = "0007"
down_revision = "0006"

UP = """
alter table events
    add column stream text, add column entry text, add column order_key text, add column state text not null default 'taken',
    add column attempts smallint not null default 0, add column replays smallint not null default 0, add column error jsonb,
    add column try_at timestamptz;
alter table events drop constraint events_once;
alter table events add constraint events_once unique (tenant, source, event_id);
create index events_held on events (order_key, id) where state = 'held';
create index events_of_key on events (order_key, id) where order_key is not null;
create index events_due on events (try_at) where state = 'held';
create index events_working on events (id) where state = 'working';
create index events_dead on events (id) where state = 'dead';
create index events_at on events (at);

create table triggers (
    id bigint generated always as identity primary key,
    tenant text not null default 'default',
    name text not null,
    spec jsonb not null,
    origin text not null,
    enabled boolean not null default true,
    changed_at timestamptz not null default now(),
    unique (tenant, name)
);

create table effects (
    event_id bigint not null references events (id) on delete cascade,
    trigger text not null,
    replay smallint not null default 0,
    action text not null,
    instance_id uuid,
    detail jsonb,
    at timestamptz not null default now(),
    primary key (event_id, trigger, replay)
);
create index effects_instance on effects (instance_id) where instance_id is not null;

create table windows (
    id bigint generated always as identity primary key,
    tenant text not null,
    trigger text not null,
    key text not null,
    due_at timestamptz not null,
    events bigint[] not null default '{}',
    count integer not null default 0,
    unique (tenant, trigger, key)
);
create index windows_due on windows (due_at);

create table webhooks (
    id bigint generated always as identity primary key,
    tenant text not null default 'default',
    name text not null,
    url text not null,
    types text[] not null,
    secret text not null,
    enabled boolean not null default true,
    changed_at timestamptz not null default now(),
    unique (tenant, name)
);

create table deliveries (
    id bigint generated always as identity primary key,
    webhook_id bigint not null references webhooks (id) on delete cascade,
    event jsonb not null,
    attempts smallint not null default 0,
    try_at timestamptz not null default now(),
    error text
);
create index deliveries_due on deliveries (try_at);

create table resources (
    kind text not null,
    name text not null,
    tenant text not null default 'default',
    id uuid not null,
    state text not null,
    mode text,
    doing text,
    data jsonb not null default '{}',
    error jsonb,
    created_at timestamptz not null default now(),
    changed_at timestamptz not null default now(),
    primary key (tenant, kind, name)
);

create table resource_moves (
    id bigint generated always as identity primary key,
    tenant text not null,
    kind text not null,
    name text not null,
    resource_id uuid not null,
    from_state text,
    to_state text not null,
    by_instance uuid,
    by_step text,
    detail jsonb,
    at timestamptz not null default now()
);
create table stream_entries (
    stream text not null,
    id bigint generated always as identity,
    fields jsonb not null,
    at timestamptz not null default now(),
    primary key (stream, id)
);

create table stream_groups (
    stream text not null,
    name text not null,
    last_id bigint not null default 0,
    primary key (stream, name)
);

create table stream_pending (
    stream text not null,
    name text not null,
    id bigint not null,
    consumer text not null,
    delivered_at timestamptz not null default now(),
    deliveries integer not null default 1,
    primary key (stream, name, id)
);

create index resource_moves_at on resource_moves (at);
create index resource_moves_of on resource_moves (tenant, kind, name, id);
create unique index resource_moves_once on resource_moves (by_instance, by_step) where by_instance is not null;
"""

DOWN = """
drop table stream_pending; drop table stream_groups; drop table stream_entries; drop table resource_moves; drop table resources; drop table deliveries; drop table webhooks;
drop table windows; drop table effects; drop table triggers;
drop index events_held; drop index events_of_key; drop index events_due; drop index events_working; drop index events_dead; drop index events_at;
alter table events drop constraint events_once;
alter table events add constraint events_once unique (source, event_id);
alter table events drop column stream, drop column entry, drop column order_key, drop column state, drop column attempts,
    drop column replays, drop column error, drop column try_at;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
