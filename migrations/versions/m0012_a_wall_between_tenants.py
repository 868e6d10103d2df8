"""A wall between tenants in Postgres itself: who asks for one tenant asks as a role that sees that tenant's rows alone.

The engine goes on as the tables' owner, to whom none of this applies. Where this user may not create roles, somebody who may
runs `create role orchestrator_api nologin; grant orchestrator_api to <user>`, and then this user `orchestrator migrate` once more.
"""

from alembic import op

from orchestrator.store import wall

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    for statement in wall.build():
        op.execute(statement)


def downgrade() -> None:
    for statement in wall.tear_down():
        op.execute(statement)
