"""Checkpoints in partitions by ranges of branch ids, so that old histories can be dropped whole."""

from alembic import op

revision = "0003"
down_revision = "0002"

# As in orchestrator/store/partitions.py, which attaches the ranges that come after these.
BRANCHES_EACH = 5_000_000
AHEAD = 4

COLUMNS = """
    branch_id bigint not null,
    seq integer not null,
    position text not null,
    kind text not null,
    attempt smallint not null default 0,
    data jsonb,
    at timestamptz not null default now(),
    constraint checkpoints_pkey primary key (branch_id, seq)
"""


def upgrade() -> None:
    op.execute("alter table checkpoints rename to checkpoints_whole")
    op.execute("alter table checkpoints_whole rename constraint checkpoints_pkey to checkpoints_whole_pkey")
    op.execute(f"create table checkpoints ({COLUMNS}) partition by range (branch_id)")
    newest = op.get_bind().exec_driver_sql("select coalesce(max(branch_id), 0) from checkpoints_whole").scalar_one()
    for number in range(newest // BRANCHES_EACH + AHEAD):
        low = number * BRANCHES_EACH
        op.execute(f"create table checkpoints_{number} partition of checkpoints for values from ({low}) to ({low + BRANCHES_EACH})")
    op.execute("insert into checkpoints select * from checkpoints_whole")
    op.execute("drop table checkpoints_whole")


def downgrade() -> None:
    op.execute("alter table checkpoints rename to checkpoints_parts")
    op.execute("alter table checkpoints_parts rename constraint checkpoints_pkey to checkpoints_parts_pkey")
    op.execute(f"create table checkpoints ({COLUMNS})")
    op.execute("insert into checkpoints select * from checkpoints_parts")
    op.execute("drop table checkpoints_parts")
