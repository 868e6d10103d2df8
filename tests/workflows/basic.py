"""Sequences, forks, graphs, loops and sagas whose steps leave a line in a table for every time they really ran."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psycopg

from orchestrator import Limits, Retryable, StepContext, Terminal, Workflow, step
from orchestrator.definition.expressions import Jq
from orchestrator.definition.tree import EventFilter, Listen

_connections: dict[int, psycopg.Connection[Any]] = {}


PAUSE_S = float(os.environ.get("STEP_PAUSE_S", "0"))


def ledger(context: StepContext, what: str) -> None:
    """An effect, written outside of the engine's transactions, as a payment would be."""
    # Steps that take their time are hit by more of what is thrown at them.
    time.sleep(PAUSE_S)
    for left in reversed(range(20)):
        try:
            _write(context, what)
        except psycopg.OperationalError:
            # Where the ledger's server is started again, the ledger is no reason to fail: what is tested is the engine.
            if not left:
                raise
            time.sleep(0.25)
        else:
            return


def _write(context: StepContext, what: str) -> None:
    connection = _connections.get(os.getpid())
    if connection is None or connection.closed:
        connection = _connections[os.getpid()] = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    try:
        connection.execute(
            "insert into ledger (instance, position, what, pid) values (%s, %s, %s, %s)",
            (context.instance_id, context.position, what, os.getpid()),
        )
    except psycopg.OperationalError:
        connection.close()
        raise


@step
def note(context: StepContext) -> dict[str, Any]:
    ledger(context, context.name)
    return {context.name: True}


@step
def slow(context: StepContext, seconds: float = 0.3) -> None:
    ledger(context, "begin")
    time.sleep(seconds)
    ledger(context, "end")


@step(retries=3)
def flaky(context: StepContext, failures: int = 2) -> dict[str, int]:
    ledger(context, f"attempt {context.attempt}")
    if context.attempt <= failures:
        raise Retryable("not yet", after=0.01)
    return {"attempts": context.attempt}


@step
def broken(context: StepContext, message: str = "broken for good") -> None:
    ledger(context, "broken")
    raise Terminal(message)


@step(retries=0)
def fails_when_asked(context: StepContext, fail: bool = False) -> dict[str, bool]:
    ledger(context, "asked")
    if fail:
        raise Terminal("asked to fail")
    return {"passed": True}


@step
def charge(context: StepContext) -> dict[str, str]:
    ledger(context, f"do {context.name}")
    return {f"{context.name}_receipt": context.idempotency_key}


@charge.undo
def refund(context: StepContext, output: Any) -> None:
    ledger(context, f"undo {context.name}")


@step
def charge_stubborn(context: StepContext) -> None:
    ledger(context, f"do {context.name}")


@charge_stubborn.undo(retries=1)
def refund_fails(context: StepContext) -> None:
    ledger(context, f"undo {context.name} fails")
    raise Retryable("the bank says no", after=0.01)


@step
def charge_mended(context: StepContext) -> None:
    ledger(context, f"do {context.name}")


@charge_mended.undo(retries=1)
def refund_works_later(context: StepContext) -> None:
    failed = f"undo {context.name} fails"
    tried = psycopg.connect(os.environ["DATABASE_URL"]).execute(
        "select count(*) from ledger where instance = %s and what = %s", (context.instance_id, failed)
    )
    if tried.fetchone()[0] < 2:  # type: ignore[index]
        ledger(context, failed)
        raise Retryable("the bank is closed", after=0.01)
    ledger(context, f"undo {context.name}")


@step
def segfault(context: StepContext) -> None:
    ledger(context, "about to crash")
    os.kill(os.getpid(), signal.SIGSEGV)


@step(once=True)
def only_once(context: StepContext) -> None:
    ledger(context, "once")
    if context.input.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)


@step
async def in_a_loop(name: str = "async") -> dict[str, str]:
    return {"said": f"hello from {name}"}


sequence = Workflow("sequence")
for name in "abcde":
    sequence.then(note, name)

fork = (
    Workflow("fork")
    .start_with(note, "first")
    .parallel()
    .do(lambda b: b.then(note, "left"))
    .do(lambda b: b.then(note, "right").then(note, "right2"))
    .join_with(note, "last")
)

diamond = (
    Workflow("diamond")
    .graph()
    .step("a", note)
    .step("b", note)
    .step("c", note, after=["a"])
    .step("d", note, after=["a", "b"])
    .step("e", note, after=["c", "d"])
    .done()
)

wide = Workflow("wide").foreach(".items", parallel=True, gather="input").do(lambda b: b.then(note)).then(note, "after")

naps = Workflow("naps").then(note, "before").wait("1.2s").then(note, "after")

slowly = Workflow("slowly").then(slow, "one").then(slow, "two").then(slow, "three")

shaky = Workflow("shaky").then(flaky).then(note)

saga = Workflow("saga", saga=True).then(charge, "hotel").then(charge, "flight").then(broken)

saga_fork = (
    Workflow("saga-fork", saga=True)
    .then(charge, "hotel")
    .parallel()
    .do(lambda b: b.then(charge, "car"))
    .do(lambda b: b.then(charge, "flight"))
    .join_with(broken)
)

saga_stubborn = Workflow("saga-stubborn", saga=True).then(charge, "hotel").then(charge_stubborn, "visa").then(charge, "flight").then(broken)

saga_mended = Workflow("saga-mended", saga=True).then(charge, "hotel").then(charge_mended, "visa").then(broken)

asked = Workflow("asked").then(note, "before").then(fails_when_asked).then(note, "after")

poison = Workflow("poison").then(note).then(segfault).then(note, "never")

once = Workflow("once").then(only_once).then(note, "after")

asynchronous = Workflow("asynchronous").then(in_a_loop)

waits_for_yes = Workflow("waits-for-yes").then(note, "before").approval("manager").then(note, "after")

timed = Workflow("timed", timeout=1).then(slow, parameters={"seconds": 300}).then(note)

stubborn_step = Workflow("stubborn-step").then(slow, parameters={"seconds": 300}, timeout=0.3, retries=1)

parent = Workflow("parent").then(note, "before").run("sequence").then(note, "after")


@step(retries=0)
def fails_first(context: StepContext) -> dict[str, bool]:
    """Fails for good the first time it ever runs in an instance."""
    ledger(context, "tried")
    row = (
        _connections[os.getpid()]
        .execute("select count(*) from ledger where instance = %s and what = 'tried'", (context.instance_id,))
        .fetchone()
    )
    if row and row[0] == 1:
        raise Terminal("the first time it fails")
    return {"second_time": True}


@step
def refund_dies_once(context: StepContext) -> None:
    ledger(context, f"do {context.name}")


@refund_dies_once.undo
def _dies_once(context: StepContext) -> None:
    ledger(context, f"undo {context.name}")
    row = (
        _connections[os.getpid()]
        .execute("select count(*) from ledger where instance = %s and what = %s", (context.instance_id, f"undo {context.name}"))
        .fetchone()
    )
    if row and row[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@step(queue="gpu")
def on_gpu(context: StepContext) -> None:
    ledger(context, "gpu")


@step(isolate=True)
def alone(context: StepContext) -> None:
    ledger(context, "alone")


@step
def big() -> dict[str, str]:
    return {"big": "x" * 3_000_000}


@step(retries=5)
def always_shaky(context: StepContext) -> None:
    ledger(context, f"attempt {context.attempt}")
    raise Retryable("try later", after=30)


second_time = Workflow("second-time").then(note, "before").then(fails_first).then(note, "after")
second_time_fork = (
    Workflow("second-time-fork")
    .parallel()
    .do(lambda b: b.then(note, "left").then(fails_first))
    .do(lambda b: b.then(note, "right"))
    .join_with(note, "after")
)
second_time_graph = (
    Workflow("second-time-graph")
    .graph()
    .step("a", note)
    .step("b", fails_first, after="a")
    .step("c", note, after="b")
    .step("d", note, after="a")
    .done()
)
refundable = Workflow("refundable").then(charge, "hotel").then(charge, "flight")
saga_crash = Workflow("saga-crash", saga=True).then(charge, "hotel").then(refund_dies_once, "visa").then(broken)
saga_cancel = Workflow("saga-cancel", saga=True, compensate_on_cancel=True).then(charge, "hotel").wait(60).then(note)
over_queues = Workflow("over-queues").then(note, "here").then(on_gpu).then(alone).then(note, "there")
too_big = Workflow("too-big").then(big)
waits_long = Workflow("waits-long").then(note, "before").wait(3600).then(note, "after")
retries_later = Workflow("retries-later").then(always_shaky)
limited = Workflow("limited", limits=Limits(workflow=3)).then(slow, parameters={"seconds": 0.2})
per_key = Workflow("per-key", limits=Limits(key=Jq(".customer"), per_key=1)).then(slow, parameters={"seconds": 0.05})
depends = Workflow("depends", dependencies=["sequence"], dependency_timeout=20).then(note)
depends_never = Workflow("depends-never", dependencies=["never-started"], dependency_timeout=1).then(note)
parent_of_long = Workflow("parent-of-long").run("waits-long")
parent_of_broken = Workflow("parent-of-broken").run("asked", input={"fail": True})
compete = (
    Workflow("compete")
    .parallel(compete=True)
    .do(lambda b: b.then(slow, parameters={"seconds": 300}))
    .do(lambda b: b.then(note, "quick"))
    .join()
    .then(note, "after")
)
emitter = Workflow("emitter").emit("news.published", {"headline": "${ .headline }"})
listener = (
    Workflow("listener")
    .then(note, "before")
    .then(Listen(name="news", filters=(EventFilter(attributes={"type": "news.published"}),)))
    .then(note, "after")
)


@step
def uses(context: StepContext, seconds: float = 1.0, megabytes: int = 0, spin: bool = False) -> None:
    held = bytearray(megabytes * 1024 * 1024)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not spin:
            time.sleep(0.05)
    del held


@step
def takes(context: StepContext) -> None:
    ledger(context, "takes")


@takes.undo
def gives_back(context: StepContext) -> None:
    ledger(context, "gives back")


late = Workflow("late").then(slow, parameters={"seconds": 1}, timeout=0.3, retries=0)
short_deadline = Workflow("short-deadline", timeout=0.3).then(note, "before").wait(0.9, "longer").then(note, "never")
uses_resources = Workflow("uses").then(uses)
hungry = Workflow("hungry", saga=True, limits=Limits(memory_mb=300)).then(takes).then(uses)
_story = (EventFilter(attributes={"type": "story.told"}),)
hears_twice = Workflow("hears-twice").then(Listen(name="first", filters=_story)).then(Listen(name="second", filters=_story))
collects = Workflow("collects").then(Listen(name="stories", mode="any", filters=_story, until=Jq("length == 2")))
rounds = Workflow("rounds").set({"n": 0}).while_(".n < 5").do(lambda b: b.set({"n": "${ .n + 1 }"}))


@step
def notices_interruption(context: StepContext) -> None:
    ledger(context, "begin")
    try:
        time.sleep(300)
    except BaseException:
        ledger(context, "interrupted")
        raise


stubborn_step_long = Workflow("stubborn-step-long").then(notices_interruption)


@step
def gives_deep(depth: int) -> dict[str, Any]:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return {"deep": value}


deep_result = Workflow("gives-deep").then(gives_deep)
