"""Secrets, sealed with keys that are not in this database."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute(
        """
        create table secrets (
            name text primary key,
            value text not null,
            changed_at timestamptz not null default now(),
            changed_by text not null
        )
        """
    )


def downgrade() -> None:
    op.execute("drop table secrets")
