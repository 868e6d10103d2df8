"""What a branch's process uses, and when the keeper's chores were last done."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("alter table branches add column usage jsonb")
    op.execute("create table chores (name text primary key, at timestamptz not null, data jsonb)")


def downgrade() -> None:
    op.execute("drop table chores")
    op.execute("alter table branches drop column usage")
