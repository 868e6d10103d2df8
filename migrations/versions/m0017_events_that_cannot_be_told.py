"""Events that cannot be told wait beside those that can."""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.execute("alter table outbox add column put_aside text")


def downgrade() -> None:
    op.execute("alter table outbox drop column put_aside")
