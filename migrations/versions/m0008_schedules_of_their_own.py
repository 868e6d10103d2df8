"""Schedules with names of their own, beside those of definitions; and each of their fires, once, with what became of it."""

from alembic import op

revision = "0008"
down_revision = "0007"

UP = """
alter table schedules
    add column name text, add column tenant text not null default 'default', add column origin text not null default 'definition',
    add column enabled boolean not null default true, add column planned_at timestamptz, add column about jsonb,
    add column starts bigint not null default 0, add column skips bigint not null default 0, add column errors bigint not null default 0,
    add column mirrored_at timestamptz, add column changed_at timestamptz not null default now();
update schedules set name = namespace || '.' || workflow || ':' || kind, planned_at = next_at, starts = fires;
update schedules set spec = jsonb_build_object('every', spec -> 'seconds') where kind = 'every';
alter table schedules alter column name set not null;
alter table schedules drop constraint schedules_once;
alter table schedules add constraint schedules_once unique (tenant, name);
drop index schedules_due;
create index schedules_due on schedules (next_at) where next_at is not null and enabled;
create index schedules_unmirrored on schedules (id) where mirrored_at is distinct from next_at;

create table fires (
    schedule_id bigint not null references schedules (id) on delete cascade,
    planned_at timestamptz not null,
    at timestamptz not null default now(),
    outcome text not null,
    instance_id uuid,
    reason text,
    by text not null,
    retries smallint not null default 0,
    ends_at timestamptz,
    is_open boolean not null default false,
    primary key (schedule_id, planned_at)
);
create index fires_open on fires (schedule_id) where is_open;
create index fires_at on fires (at);
"""

DOWN = """
drop table fires;
delete from schedules where origin <> 'definition';
update schedules set spec = jsonb_build_object('seconds', spec -> 'every') where kind = 'every';
drop index schedules_unmirrored; drop index schedules_due;
alter table schedules drop constraint schedules_once;
alter table schedules drop column name, drop column tenant, drop column origin, drop column enabled, drop column planned_at,
    drop column about, drop column starts, drop column skips, drop column errors, drop column mirrored_at, drop column changed_at;
alter table schedules add constraint schedules_once unique (namespace, workflow, kind);
create index schedules_due on schedules (next_at) where next_at is not null;
"""


def upgrade() -> None:
    op.execute(UP)


def downgrade() -> None:
    op.execute(DOWN)
