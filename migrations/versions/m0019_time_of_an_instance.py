"""How long an instance may take, known from its start on: its time counts also while no process is free for it."""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.execute("alter table instances add column timeout_s double precision")


def downgrade() -> None:
    op.execute("alter table instances drop column timeout_s")
