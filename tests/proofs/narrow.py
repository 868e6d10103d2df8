"""Fan-outs of which only so many branches may be open at once."""

from __future__ import annotations

import os
import time

import psycopg

from orchestrator import StepContext, Workflow, step
from tests.workflows.basic import ledger


@step(retries=0)
def enter(context: StepContext, item: int) -> None:
    ledger(context, f"in {item}")


@step(retries=0)
def leave(context: StepContext, item: int) -> int:
    time.sleep(0.02)
    ledger(context, f"out {item}")
    return item * 10


@step(retries=0)
def stumbles(context: StepContext, item: int, bad: int | None = None) -> None:
    """Fails for one item, the first time that any instance comes to it."""
    if item != bad:
        return
    with psycopg.connect(os.environ["DATABASE_URL"]) as c:
        row = c.execute("select count(*) from ledger where what = %s", (f"stumbled {item}",)).fetchone()
    if row is None or not row[0]:
        ledger(context, f"stumbled {item}")
        raise ValueError(f"item {item} is bad")


@step(retries=0)
def book(item: int) -> int:
    return item


@book.undo
def cancel_booking(context: StepContext) -> None:
    ledger(context, "undoing")
    time.sleep(0.1)
    ledger(context, "undone")


@step(retries=0)
def refuse() -> None:
    raise ValueError("no")


narrow = (
    Workflow("narrow")
    .foreach(".items", parallel=True, concurrency=3, name="each")
    .do(lambda b: b.then(enter).then(stumbles).wait(0.2).then(leave, "left"))
)
one_by_one = Workflow("one-by-one").foreach(".items", parallel=True, concurrency=1, name="each").do(lambda b: b.then(enter).then(leave))
wider_than_long = Workflow("wider-than-long").foreach(".items", parallel=True, concurrency=50, name="each").do(lambda b: b.then(leave))
narrow_branches = Workflow("narrow-branches").parallel(concurrency=2)
for _number in range(6):
    narrow_branches = narrow_branches.do(
        lambda b, n=_number: b.then(enter, parameters={"item": n}).wait(0.2).then(leave, parameters={"item": n})
    )
narrow_branches = narrow_branches.join()
nested = (
    Workflow("nested-narrow")
    .foreach(".groups", each="group", parallel=True, concurrency=2, name="outer")
    .do(lambda b: b.foreach(".group", parallel=True, concurrency=2, name="inner").do(lambda i: i.then(enter).wait(0.1).then(leave)))
)
narrow_saga = Workflow("narrow-saga", saga=True).foreach(".items", parallel=True, concurrency=2).do(lambda b: b.then(book)).then(refuse)
