"""Definitions of tenants: the same name may mean another workflow for another tenant."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute("alter table definitions add column tenant text not null default 'default'")
    op.execute("alter table definitions drop constraint definitions_version")
    op.execute("alter table definitions add constraint definitions_version unique (tenant, namespace, name, version)")


def downgrade() -> None:
    op.execute("delete from definitions where tenant <> 'default'")
    op.execute("alter table definitions drop constraint definitions_version")
    op.execute("alter table definitions add constraint definitions_version unique (namespace, name, version)")
    op.execute("alter table definitions drop column tenant")
