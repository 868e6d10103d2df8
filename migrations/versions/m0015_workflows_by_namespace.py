"""A workflow is meant by tenant, namespace and name, wherever one is waited for, limited, or started under a key."""

from alembic import op

revision = "0015"
down_revision = "0014"

_ESCAPED = "replace(replace(replace({}, '~', '~0'), '/', '~1'), '#', '~2')"
_WHOSE = " || '/' || ".join(_ESCAPED.format(f"i.{column}") for column in ("tenant", "namespace", "workflow"))


def upgrade() -> None:
    # Empty: of whatever namespace, as those that wait now were told.
    op.execute("alter table dependencies add column on_namespace text")
    op.execute("drop index instances_idempotency")
    op.execute(
        "create unique index instances_idempotency on instances (tenant, namespace, workflow, idempotency_key)"
        " where idempotency_key is not null"
    )
    op.execute(
        f"update slots s set scope = 'workflow/' || {_WHOSE} from instances i"
        " where i.id = s.instance_id and s.scope = 'workflow/' || i.workflow"
    )
    op.execute(
        f"update slots s set scope = 'key/' || {_WHOSE} || '/' || {_ESCAPED.format('substr(s.scope, length(i.workflow) + 6)')}"
        " from instances i where i.id = s.instance_id and left(s.scope, length(i.workflow) + 5) = 'key/' || i.workflow || '/'"
    )


def downgrade() -> None:
    op.execute("drop index instances_idempotency")
    op.execute(
        "create unique index instances_idempotency on instances (tenant, workflow, idempotency_key) where idempotency_key is not null"
    )
    op.execute("alter table dependencies drop column on_namespace")
