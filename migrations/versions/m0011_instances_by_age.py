"""Instances by age: the newest first, page after page, without reading them all."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("create index instances_age on instances (created_at, id)")


def downgrade() -> None:
    op.execute("drop index instances_age")
