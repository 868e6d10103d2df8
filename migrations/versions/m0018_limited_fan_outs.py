"""The next branch that a limit holds back is found without reading those that are done."""

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.execute("create index branches_held_back on branches (parent_id, id) where mode = 'limited' and (state || '') = 'blocked'")


def downgrade() -> None:
    op.execute("drop index branches_held_back")
