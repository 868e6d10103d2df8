"""Workflows whose steps misbehave: they catch what they should not, outlive their time, give what is not JSON, raise what cannot be told."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

import psycopg

from orchestrator import Limits, Result, StepContext, Workflow, step
from orchestrator.definition.tree import Around, Catch, Do, Fork, Step, Try
from orchestrator.steps.registry import After, executor
from tests.workflows.basic import charge, ledger

# What is cut short takes as much longer as the machine that cuts it is slow.
PACE = max(1.0, float(os.environ.get("TEST_PACE", "1")))


# ── steps that do not want to end ───────────────────────────────────────────────────────────────────────────────────


@step(retries=0)
def catches(context: StepContext, seconds: float = 12 * PACE) -> str:
    ledger(context, "begin")
    for _ in range(3):
        try:
            time.sleep(seconds / 3)
        except Exception:
            ledger(context, "swallowed")
    return "survived"


@step(retries=0)
def catches_all(context: StepContext, seconds: float = 12 * PACE) -> str:
    ledger(context, "begin")
    for _ in range(12):
        try:
            time.sleep(seconds / 12)
        except:  # noqa: E722
            ledger(context, "swallowed")
    return "survived"


@step(retries=0)
def cleans_up(context: StepContext, seconds: float = 12 * PACE, cleaning: float = 0.6) -> None:
    ledger(context, "begin")
    try:
        time.sleep(seconds)
    finally:
        time.sleep(cleaning)
        ledger(context, "clean")


@step(retries=0)
async def catches_in_a_loop(context: StepContext, seconds: float = 12 * PACE) -> str:
    ledger(context, "begin")
    try:
        await asyncio.sleep(seconds)
    except Exception:
        ledger(context, "swallowed")
    return "survived"


@step(retries=0)
async def blocks_a_loop(context: StepContext, seconds: float = 12 * PACE) -> str:
    ledger(context, "begin")
    try:
        time.sleep(seconds)
    except Exception:
        ledger(context, "swallowed")
    return "survived"


@step(retries=0)
def leaves(context: StepContext) -> None:
    ledger(context, "begin")
    sys.exit("no more")


STUBBORN = {
    "catches": Workflow("catches").then(catches, timeout=1),
    "catches-all": Workflow("catches-all").then(catches_all, timeout=1),
    "cleans-up": Workflow("cleans-up").then(cleans_up, timeout=1),
    "catches-in-a-loop": Workflow("catches-in-a-loop").then(catches_in_a_loop, timeout=1),
    "blocks-a-loop": Workflow("blocks-a-loop").then(blocks_a_loop, timeout=1),
}
long_catches = Workflow("long-catches").then(catches)
long_catches_all = Workflow("long-catches-all").then(catches_all)
long_in_a_loop = Workflow("long-in-a-loop").then(catches_in_a_loop)
exits = Workflow("exits").then(leaves)


# ── deadlines ───────────────────────────────────────────────────────────────────────────────────────────────────────


@step(retries=0)
def dozes(seconds: float = 8 * PACE) -> dict[str, bool]:
    """Without a database."""
    time.sleep(seconds)
    return {"slept": True}


@step(retries=0)
def blocks(context: StepContext, seconds: float = 8 * PACE) -> None:
    ledger(context, "begin")
    try:
        time.sleep(seconds)
    except BaseException:
        ledger(context, "interrupted")
        raise
    ledger(context, "end")


@step(retries=0)
def blocks_at_first(context: StepContext, seconds: float = 8 * PACE) -> None:
    """The second time it is quick, but not quicker than what was left of the first."""
    is_first = not ran_before(context)
    ledger(context, "begin")
    try:
        time.sleep(seconds if is_first else 0.7)
    except BaseException:
        ledger(context, "interrupted")
        raise
    ledger(context, "end")


def ran_before(context: StepContext) -> bool:
    with psycopg.connect(os.environ["DATABASE_URL"]) as c:
        row = c.execute(
            "select count(*) from ledger where instance = %s and position = %s", (context.instance_id, context.position)
        ).fetchone()
    return bool(row and row[0])


LATE = {
    "late-sequence": Workflow("late-sequence", timeout=1.5).then(blocks),
    "late-graph": Workflow("late-graph", timeout=1.5).graph().step("a", blocks).step("b", blocks, after="a").done(),
    "late-fork": Workflow("late-fork", timeout=1.5).parallel().do(lambda b: b.then(blocks)).do(lambda b: b.then(blocks, "other")).join(),
    "late-loop": Workflow("late-loop", timeout=1.5).set([1, 2]).foreach(".", parallel=True).do(lambda b: b.then(blocks)),
    "late-wait": Workflow("late-wait", timeout=1.5).wait(60 * PACE),
    "late-approval": Workflow("late-approval", timeout=1.5).approval("boss"),
    "late-in-a-branch": Workflow("late-in-a-branch", timeout=1.5)
    .parallel()
    .do(lambda b: b.wait(60 * PACE))
    .do(lambda b: b.wait(50 * PACE))
    .join(),
}
_inner = Fork(
    name="inner",
    branches=(Step(name="left", type="blocks"), Step(name="right", type="blocks")),
    around=Around(timeout_s=1.5),
)
caught_deadline = Workflow("caught-deadline").then(
    Try(name="outer", do=Do(inline=True, tasks=(_inner,)), catch=Catch(do=Do(tasks=(Step(name="instead", type="noop"),))))
)
late_saga = Workflow("late-saga", saga=True, timeout=1.5).then(charge, "hotel").parallel().do(lambda b: b.then(blocks)).join()
late_parent = Workflow("late-parent", timeout=1.5).run("waits-a-minute")
in_time = Workflow("in-time", timeout=1.5).then("noop")
late_after_another = Workflow("late-after-another", timeout=1.5).wait(60 * PACE)
late_alone = Workflow("late-alone", timeout=1.5, limits=Limits(workflow=1)).wait(60 * PACE)
waits_a_minute = Workflow("waits-a-minute").wait(60 * PACE)
again = {
    "again-sequence": Workflow("again-sequence", timeout=1).then("noop", "a").then(blocks_at_first, "b").then("noop", "c"),
    "again-graph": Workflow("again-graph", timeout=1)
    .graph()
    .step("a", "noop")
    .step("b", blocks_at_first, after="a")
    .step("c", "noop", after="b")
    .done(),
}
quick_enough = Workflow("quick-enough", timeout=2.5).then("noop", "a").then("noop", "b")
waits_at_the_end = Workflow("waits-at-the-end", timeout=2.5).then("noop", "a").wait(1).then("noop", "b").wait(60 * PACE, name="c")
waits_and_waits = Workflow("waits-and-waits", timeout=1).wait(60 * PACE)


# ── what is told ────────────────────────────────────────────────────────────────────────────────────────────────────


@step
def says(context: StepContext) -> None:
    logging.getLogger("a.library").warning("the step says so")


says_so = Workflow("says-so").then(says)
half_undone = (
    Workflow("half-undone", saga=True)
    .then(charge, "hotel")
    .then("http-like", "visa")
    .then(charge, "flight")
    .then("fail", "broken", retries=0)
)


@executor
class HttpLike:
    """A step type of which nobody says how it is undone."""

    type = "http-like"

    def execute(self, context: StepContext) -> Result:
        return Result({"booked": True})


# ── what steps give and raise ───────────────────────────────────────────────────────────────────────────────────────


class Thing:
    def __repr__(self) -> str:
        raise ValueError("not even this")

    __str__ = __repr__


def _recursive() -> Any:
    value: list[Any] = []
    value.append({"inside": value})
    return value


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


GIVEN: dict[str, Any] = {
    "half a character": lambda: "\ud800",
    "half a character inside": lambda: {"a": [1, {"b": "x\udfffy"}]},
    "half a character as a name": lambda: {"\ud800": 1},
    "half a character kept for undoing": lambda: Result({"ok": True}, checkpoint={"id": "\ud800"}),
    "not a number": lambda: float("nan"),
    "infinity inside": lambda: {"a": [float("inf")]},
    "a number of 400 digits": lambda: {"n": 10**400},
    "a number of 5000 digits": lambda: {"n": 10**5000},
    "an object": Thing,
    "an object inside": lambda: {"a": [Thing()]},
    "an object as a name": lambda: {Thing(): 1},
    "a function": lambda: _deep,
    "a class": lambda: Thing,
    "bytes that are no text": lambda: b"\xff\xfe",
    "itself": _recursive,
    "300 levels": lambda: _deep(300),
    "100,000 levels": lambda: _deep(100_000),
    "later, half a character": lambda: After(0.1, Result("\ud800")),
    "later, never": lambda: After(float("inf"), Result(1)),
    "later, not a number": lambda: After(float("nan"), Result(1)),
    "later, before": lambda: After(-5, Result(1)),
    "later, a word": lambda: After("soon", Result(1)),  # type: ignore[arg-type]
    "later, 10^400": lambda: After(10**400, Result(1)),
    "too much": lambda: "x" * 3_000_000,
}
# What has a form in JSON is kept in it.
KEPT: dict[str, Any] = {
    "a set": lambda: {1},
    "numbers as names": lambda: {1: 2},
    "bytes of text": lambda: b"text",
    "U+0000": lambda: "a\x00b",
}


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has no words")


class MuteForever(Exception):
    def __str__(self) -> str:
        raise MuteForever


class Odd(Exception):
    """With attributes that look like ours."""

    after = "tomorrow"
    problem = Thing()
    code = 5


def _chained() -> None:
    try:
        raise Mute
    except Mute as error:
        raise ValueError("because") from error


def _named() -> None:
    raise type("Bad\ud800Name", (Exception,), {})("so it is called")


def _raise(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


RAISED: dict[str, Any] = {
    "half a character": _raise(ValueError("\ud800 is not text")),
    "U+0000": _raise(ValueError("a\x00b")),
    "five megabytes": _raise(ValueError("z" * 5_000_000)),
    "no words": _raise(Mute()),
    "no words about having none": _raise(MuteForever()),
    "an object as its words": _raise(ValueError(Thing())),
    "a name that is no text": _named,
    "attributes of other types": _raise(Odd("odd")),
    "a cause without words": _chained,
    "the end of the process": _raise(SystemExit(3)),
    "an interrupt that nobody sent": _raise(KeyboardInterrupt("no")),
    "a cancelled task": _raise(asyncio.CancelledError()),
    "a generator's end": _raise(GeneratorExit()),
    "no exception at all": _raise(BaseException("bare")),
    "a deep recursion": lambda: _dive(),
}


def _dive() -> int:
    return _dive() + 1


@step(retries=2)
def gives(context: StepContext, kind: str) -> Any:
    ledger(context, "gives")
    return (GIVEN | KEPT)[kind]()


@step(retries=0)
def raises(context: StepContext, kind: str) -> None:
    ledger(context, "raises")
    RAISED[kind]()


@executor
class Untold:
    """Reports a failure whose reason is no text."""

    type = "untold"

    def execute(self, context: StepContext) -> Result:
        return Result(success=False, error=Thing())  # type: ignore[arg-type]


def gives_an_object(data: Any) -> Any:
    return Thing()


def gives_half_a_character(data: Any) -> Any:
    return "\ud800"


def raises_without_words(data: Any) -> Any:
    raise Mute


giving = Workflow("giving").then(gives)
raising = Workflow("raising").then(raises)
untold = Workflow("untold").then("untold", "untold", retries=0)
parent_of_giving = Workflow("parent-of-giving").run("giving")
FUNCTIONS = {
    name: Workflow(name).set(body)
    for name, body in (
        ("an-object", gives_an_object),
        ("half-a-character", gives_half_a_character),
        ("without-words", raises_without_words),
    )
}
