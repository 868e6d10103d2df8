"""Histories by the million: `checkpoints` is partitioned by ranges of branch ids, in which time flows.

New ranges are attached long before they are needed. One that is full, and of whose branches none is left, is dropped
whole: the end of retention costs the same for one history as for millions.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from psycopg import sql

from orchestrator.store.connection import Connection

BRANCHES_EACH = 5_000_000
AHEAD = 4


def into(statement: str, branch_id: int) -> str:
    """The statement, writing straight into the range its branch belongs to: routing costs an insert a tenth of its time."""
    return _into(statement, branch_id // BRANCHES_EACH)


@functools.lru_cache(maxsize=256)
def _into(statement: str, number: int) -> str:
    return statement.replace("insert into checkpoints (", f"insert into checkpoints_{number} (")


@dataclass(frozen=True, slots=True)
class Partition:
    """The facts of the branches from `low` up to, and without, `high`."""

    number: int
    size: int
    is_leaving: bool = False

    @property
    def name(self) -> str:
        return f"checkpoints_{self.number}"

    @property
    def low(self) -> int:
        return self.number * self.size

    @property
    def high(self) -> int:
        return self.low + self.size


def newest_branch(c: Connection) -> int:
    row = c.execute(
        "select coalesce(last_value, 1) from pg_sequences where schemaname = current_schema() and sequencename = 'branches_id_seq'"
    ).fetchone()
    return int(row[0]) if row else 1


def attached(c: Connection, size: int = BRANCHES_EACH) -> list[Partition]:
    rows = c.execute(
        "select substring(r.relname from '[0-9]+$')::int, i.inhdetachpending from pg_inherits i"
        " join pg_class r on r.oid = i.inhrelid where i.inhparent = 'checkpoints'::regclass order by 1"
    ).fetchall()
    return [Partition(number, size, leaving) for number, leaving in rows]


def open_from(c: Connection, size: int = BRANCHES_EACH) -> int:
    """The first branch id of the range that is being written."""
    return newest_branch(c) // size * size


def make_ahead(c: Connection, size: int = BRANCHES_EACH) -> list[str]:
    """Attach the range that is being written and those that come next. Attaching blocks nobody who writes."""
    here = newest_branch(c) // size
    known = {partition.number for partition in attached(c, size)}
    made = []
    for number in range(here, here + AHEAD):
        if number not in known:
            partition = Partition(number, size)
            name = sql.Identifier(partition.name)
            c.execute(sql.SQL("create table if not exists {} (like checkpoints including defaults including constraints)").format(name))
            c.execute(
                sql.SQL("alter table checkpoints attach partition {} for values from ({}) to ({})").format(
                    name, sql.Literal(partition.low), sql.Literal(partition.high)
                )
            )
            made.append(partition.name)
    return made


def drop_spent(c: Connection, size: int = BRANCHES_EACH) -> list[str]:
    """Drop the full ranges that no branch is left of. Needs a connection outside of any transaction."""
    dropped = []
    newest = newest_branch(c)
    for partition in attached(c, size):
        name = sql.Identifier(partition.name)
        if partition.is_leaving:  # somebody was interrupted here
            c.execute(sql.SQL("alter table checkpoints detach partition {} finalize").format(name))
        elif _is_spent(c, partition, newest):
            c.execute(sql.SQL("alter table checkpoints detach partition {} concurrently").format(name))
        else:
            continue
        c.execute(sql.SQL("drop table {}").format(name))
        dropped.append(partition.name)
    return dropped


def _is_spent(c: Connection, partition: Partition, newest: int) -> bool:
    """A tenth of a range is waited for, so that no start that took its number long ago is still to commit."""
    if partition.high + partition.size // 10 > newest:
        return False
    row = c.execute("select exists (select 1 from branches where id >= %s and id < %s)", (partition.low, partition.high)).fetchone()
    return row is not None and not row[0]
