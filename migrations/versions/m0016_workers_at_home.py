"""Workers say on which machine, and since when, their process lives: whether it does can be seen there at once."""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.execute("alter table workers add column home text not null default '', add column began double precision")


def downgrade() -> None:
    op.execute("alter table workers drop column home, drop column began")
