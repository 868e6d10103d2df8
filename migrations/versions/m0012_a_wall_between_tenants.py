"""A wall between tenants in Postgres itself: who asks for one tenant asks as a role that sees that tenant's rows alone.

    mine     rows of the tenant
    shared   read: the tenant's and everybody's; written: the tenant's
    part     rows of something that is itself behind the wall

The role, and what it may touch at all, is seen to after every migration (`orchestrator/store/wall.py`). Where this user may not
create roles, somebody who may runs `create role orchestrator_api nologin; grant orchestrator_api to <user>`, and then this user
`orchestrator migrate` once more.
"""

from alembic import op

revision = "0012"
down_revision = "0011"

_OWN = "tenant = current_setting('orchestrator.tenant', true)"
_SHARED = "(tenant in (current_setting('orchestrator.tenant', true), 'default') or left(tenant, 1) = '#')"
_INSTANCE = "exists (select 1 from instances i where i.id = {table}.instance_id)"
_BRANCH = "exists (select 1 from branches b where b.id = {table}.branch_id)"

MINE = (
    "instances", "schedules", "events", "triggers", "webhooks", "windows", "subscriptions", "api_keys", "security_events", "resources",
    "resource_moves",
)  # fmt: skip
SHARED = ("definitions", "configs")
PARTS = {
    "branches": _INSTANCE,
    "dead_letters": _INSTANCE,
    "dependencies": _INSTANCE,
    "slots": _INSTANCE,
    "checkpoints": _BRANCH,
    "timers": _BRANCH,
    "effects": "exists (select 1 from events e where e.id = effects.event_id)",
    "fires": "exists (select 1 from schedules s where s.id = fires.schedule_id)",
    "deliveries": "exists (select 1 from webhooks w where w.id = deliveries.webhook_id)",
}
# Written by whoever does something; read by those whose instance or tenant a line names.
_AUDIT = (
    "case when instance_id is null then coalesce(detail ->> 'tenant', 'default') = current_setting('orchestrator.tenant', true)"
    " else exists (select 1 from instances i where i.id = audit.instance_id) end"
)
_OUTBOX = "instance_id is null or exists (select 1 from instances i where i.id = outbox.instance_id)"
OPEN = {"audit": _AUDIT, "outbox": _OUTBOX}
TABLES = (*MINE, *SHARED, *PARTS, *OPEN)


def upgrade() -> None:
    for table in TABLES:
        op.execute(f"alter table {table} enable row level security")
        for name, rest in _policies(table):
            op.execute(f"create policy {name} on {table} {rest}")


def downgrade() -> None:
    for table in TABLES:
        for name, _ in _policies(table):
            op.execute(f"drop policy {name} on {table}")
        op.execute(f"alter table {table} disable row level security")


def _policies(table: str) -> list[tuple[str, str]]:
    if table in MINE:
        return [("mine", f"for all using ({_OWN}) with check ({_OWN})")]
    if table in SHARED:
        written = f"({_OWN} or left(tenant, 1) = '#')"
        return [
            ("seen", f"for select using ({_SHARED})"),
            ("made", f"for insert with check {written}"),
            ("changed", f"for update using ({_OWN}) with check {written}"),
            ("deleted", f"for delete using ({_OWN})"),
        ]
    if table in PARTS:
        part = PARTS[table].format(table=table)
        return [("part", f"for all using ({part}) with check ({part})")]
    return [("read", f"for select using ({OPEN[table]})"), ("written", "for insert with check (true)")]
