"""Schedules of definitions: when, or by which events, instances start by themselves."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(
        """
        create table schedules (
            id bigint generated always as identity primary key,
            namespace text not null,
            workflow text not null,
            version text not null,
            kind text not null,
            spec jsonb not null,
            next_at timestamptz,
            seen_event bigint not null default 0,
            note jsonb,
            fires bigint not null default 0,
            last_at timestamptz,
            last_instance uuid,
            created_at timestamptz not null default now(),
            constraint schedules_once unique (namespace, workflow, kind)
        )
        """
    )
    op.execute("create index schedules_due on schedules (next_at) where next_at is not null")


def downgrade() -> None:
    op.execute("drop table schedules")
