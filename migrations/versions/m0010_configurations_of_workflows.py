"""Configurations of workflows, by environment: every version is kept, the newest holds; one without a `spec` says that there is none."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute(
        """
        create table configs (
            tenant text not null,
            environment text not null,
            workflow text not null,
            number integer not null,
            spec jsonb,
            origin text not null,
            actor text not null,
            at timestamptz not null default now(),
            primary key (tenant, environment, workflow, number)
        )
        """
    )


def downgrade() -> None:
    op.execute("drop table configs")
