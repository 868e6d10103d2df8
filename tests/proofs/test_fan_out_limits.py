"""`concurrency` of a fan-out: never more at once, always as many as there may be, whatever happens meanwhile."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from orchestrator import Workflow, step
from orchestrator.definition.documents import definition_from
from orchestrator.definition.tree import For, Fork
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.errors import Invalid
from orchestrator.testing import Lab
from tests.conftest import fresh_database
from tests.stack import Stack, until

pytestmark = pytest.mark.proves(53)
ITEMS = list(range(14))


@pytest.fixture(scope="module")
def stack(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("narrow"), workflows="tests.proofs.narrow")
    made.environment.update({"QUEUE_GRACE": "3", "LEASE": "4", "HEARTBEAT": "1.5"})
    made.worker(concurrency=6)
    yield made
    made.stop()


def told(stack: Stack, instance_id: str) -> list[str]:
    return [row[0] for row in stack.sql("select what from ledger where instance = %s order by id", instance_id)]


def at_once(rows: list[str]) -> int:
    """The most items that had come in and had not gone out."""
    inside: set[str] = set()
    most = 0
    for row in rows:
        what, _, item = row.partition(" ")
        if what == "in":
            inside.add(item)
        elif what == "out":
            inside.discard(item)
        most = max(most, len(inside))
    return most


def watched(stack: Stack, instance_id: str) -> list[tuple[int, int]]:
    """Until it ends, again and again: how many branches have a place, as the database has them, and how many wait for one."""
    counts = "count(*) filter (where state not in ('blocked', 'closed')), count(*) filter (where state = 'blocked')"
    seen: list[tuple[int, int]] = []
    while True:
        seen += stack.sql(f"select {counts} from branches where instance_id = %s and mode = 'limited'", instance_id)
        if stack.state(instance_id) in ("COMPLETED", "FAILED"):
            return seen
        time.sleep(0.02)  # between two looks


def test_no_more_are_in_work_than_there_may_be_and_never_fewer_while_others_wait(stack: Stack) -> None:
    instance_id = stack.runner.start_workflow("narrow", input={"items": ITEMS})
    seen = watched(stack, instance_id)

    ended = stack.ended(instance_id)
    assert [one["left"] for one in ended["output"]["each"]] == [item * 10 for item in ITEMS], "in the order of the items"
    assert at_once(told(stack, instance_id)) == 3
    assert max(count for count, _ in seen) == 3, "one that waits takes a place, too"
    assert {count for count, waiting in seen if waiting} == {3}, "every place is somebody's while others wait for one"


def test_one_at_a_time_is_in_order(stack: Stack) -> None:
    instance_id = stack.runner.start_workflow("one-by-one", input={"items": ITEMS[:6]})
    assert stack.ended(instance_id)["status"] == "COMPLETED"
    assert told(stack, instance_id) == [f"{what} {item}" for item in range(6) for what in ("in", "out")]


@pytest.mark.parametrize("items", [[], [7], list(range(50))])
def test_a_limit_that_nothing_reaches_changes_nothing(stack: Stack, items: list[int]) -> None:
    instance_id = stack.runner.start_workflow("wider-than-long", input={"items": items})
    assert [one["leave"] for one in stack.ended(instance_id)["output"]["each"]] == [item * 10 for item in items]


def test_branches_and_loops_within_loops_are_limited(stack: Stack) -> None:
    branches = stack.runner.start_workflow("narrow-branches", input={})
    nested = stack.runner.start_workflow("nested-narrow", input={"groups": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]})

    assert stack.ended(branches)["status"] == "COMPLETED"
    assert at_once(told(stack, branches)) == 2
    assert stack.ended(nested)["status"] == "COMPLETED"
    assert at_once(told(stack, nested)) <= 4
    assert len({row for row in told(stack, nested) if row.startswith("out")}) == 9


def test_whoever_dies_takes_no_place_with_it(stack: Stack) -> None:
    instance_id = stack.runner.start_workflow("narrow", input={"items": list(range(30))})
    seed = random.randrange(10**6)
    luck = random.Random(seed)
    while stack.state(instance_id) not in ("COMPLETED", "FAILED"):
        children = stack.workers[0].children()
        if children:
            with suppress(ProcessLookupError):
                os.kill(luck.choice(children), signal.SIGKILL)
        time.sleep(luck.uniform(0.1, 0.5))

    ended = stack.ended(instance_id)
    assert ended["status"] == "COMPLETED", (seed, ended["error"])
    assert [one["left"] for one in ended["output"]["each"]] == [item * 10 for item in range(30)]
    assert at_once(told(stack, instance_id)) <= 3, seed
    twice = stack.sql(
        "select c.position, count(*) from branches b join checkpoints c on c.branch_id = b.id where instance_id = %s and kind = 'step.completed'"
        " group by 1 having count(*) > 1",
        instance_id,
    )
    assert twice == []


def test_a_pause_loses_no_place(stack: Stack) -> None:
    instance_id = stack.runner.start_workflow("narrow", input={"items": ITEMS})
    for count in (2, 6, 9):
        until(lambda n=count: sum(row.startswith("out") for row in told(stack, instance_id)) >= n)  # type: ignore[misc]
        stack.runner.pause_workflow(instance_id)
        time.sleep(0.8)  # what is under way ends while it is paused
        stack.runner.resume_workflow(instance_id)

    assert len(stack.ended(instance_id)["output"]["each"]) == len(ITEMS)
    assert at_once(told(stack, instance_id)) == 3


def test_a_retry_opens_no_more_than_there_may_be(stack: Stack) -> None:
    instance_id = stack.runner.start_workflow("narrow", input={"items": ITEMS, "bad": 5})
    assert stack.ended(instance_id)["status"] == "FAILED"

    before = len(told(stack, instance_id))
    stack.runner.retry_workflow(instance_id)
    seen = watched(stack, instance_id)

    assert [one["left"] for one in stack.ended(instance_id)["output"]["each"]] == [item * 10 for item in ITEMS]
    assert max(count for count, _ in seen) == 3
    assert at_once(told(stack, instance_id)[before:]) <= 3
    entered = [row for row in told(stack, instance_id) if row.startswith("in")]
    assert len(entered) == len(set(entered)), "what was done before the failure is not done again"


def test_a_rerun_from_within_opens_no_more_than_there_may_be(stack: Stack) -> None:
    instance_id = stack.runner.start_workflow("narrow", input={"items": ITEMS, "bad": 6})
    assert stack.ended(instance_id)["status"] == "FAILED"
    at = next(
        row[0] for row in stack.sql(
            "select c.position from branches b join checkpoints c on c.branch_id = b.id where instance_id = %s and kind = 'step.failed'",
            instance_id,
        )
    )  # fmt: skip

    again = stack.runner.rerun_workflow(instance_id, at)
    seen = watched(stack, again)

    assert [one["left"] for one in stack.ended(again)["output"]["each"]] == [item * 10 for item in ITEMS]
    assert max(count for count, _ in seen) == 3


def test_the_way_back_is_as_narrow(stack: Stack) -> None:
    instance_id = stack.runner.start_workflow("narrow-saga", input={"items": list(range(6))})
    ended = stack.ended(instance_id)
    assert ended["status"] == "FAILED"

    inside = most = 0
    for row in told(stack, instance_id):
        inside += {"undoing": 1, "undone": -1}[row]
        most = max(most, inside)
    assert (len(told(stack, instance_id)), most) == (12, 2)


def test_in_process_it_is_the_same() -> None:
    @step
    def leaves(item: int) -> int:
        return item * 10

    flow = (
        Workflow("narrow-lab")
        .foreach(".items", parallel=True, concurrency=3, name="each")
        .do(lambda b: b.then("enter").wait(10).then(leaves, "left"))
    )
    entered: list[Any] = []
    lab = Lab(stubs={"enter": lambda context: entered.append(context.input["item"])})
    run = lab.start(flow, {"items": ITEMS})
    for round in range(5):
        assert entered == ITEMS[: 3 * (round + 1)]
        run.advance(10)

    run.assert_completed()
    assert [one["left"] for one in run.output["each"]] == [item * 10 for item in ITEMS]


@pytest.mark.parametrize("given", [0, -1, 1.5, "3", True, [2]])
def test_a_limit_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(Invalid, match="whole number of at least 1"):
        Workflow("w").foreach(".x", parallel=True, concurrency=given).do("noop").build()
    with pytest.raises(Invalid, match="whole number of at least 1"):
        Workflow("w").parallel(concurrency=given).do("noop").join().build()
    document = {"id": "w", "version": "1", "steps": [_for_each(concurrency=given, parallel=True)]}
    if given != "3":
        with pytest.raises(Invalid, match="concurrency"):
            definition_from(document)


def test_a_limit_where_nothing_is_side_by_side_is_refused() -> None:
    with pytest.raises(Invalid, match="limits one that is parallel"):
        Workflow("w").foreach(".x", concurrency=2).do("noop").build()
    with pytest.raises(Invalid, match="has no meaning"):
        Workflow("w").parallel(compete=True, concurrency=2).do("noop").join().build()
    with pytest.raises(Invalid, match="parallel: true"):
        definition_from({"id": "w", "version": "1", "steps": [_for_each(concurrency=2)]})


def test_documents_can_say_it() -> None:
    looped = definition_from({"id": "w", "version": "1", "steps": [_for_each(concurrency=2, parallel=True)]})
    assert _limits(looped.do) == [2]
    branched = {"id": "b", "type": "parallel", "parameters": {"concurrency": 2, "steps": [{"id": "s", "type": "noop"}]}}
    assert _limits(definition_from({"id": "w", "version": "1", "steps": [branched]}).do) == [2]


@pytest.mark.parametrize(("given", "limit"), [(4, 4), ("4", 4), (0, None), (None, None)])
def test_the_batch_size_of_a_foreach_state_holds(given: Any, limit: int | None) -> None:
    definition = definition_from(_v08(given))
    assert _limits(definition.do) == [limit]


@pytest.mark.parametrize("given", [1.5, "many", "${ .n }"])
def test_a_batch_size_that_is_none_is_refused(given: Any) -> None:
    with pytest.raises(Invalid, match="whole number of iterations"):
        definition_from(_v08(given))


def _for_each(**parameters: Any) -> dict[str, Any]:
    return {"id": "each", "type": "forEach", "parameters": {"items": ".items", "steps": [{"id": "s", "type": "noop"}], **parameters}}


def _v08(size: Any) -> dict[str, Any]:
    state = {"name": "s", "type": "foreach", "inputCollection": "${ .x }", "actions": [{"functionRef": "f"}], "end": True}
    functions = [{"name": "f", "type": "expression", "operation": "."}]
    return {
        "id": "w", "version": "1", "specVersion": "0.8", "start": "s", "functions": functions,
        "states": [state if size is None else {**state, "batchSize": size}],
    }  # fmt: skip


def _limits(task: Any) -> list[int | None]:
    own = [task.concurrency] if isinstance(task, Fork) or (isinstance(task, For) and task.parallel) else []
    inner = [*getattr(task, "tasks", ()), *([task.do] if isinstance(task, For) else []), *(n.task for n in getattr(task, "nodes", ()))]
    return own + [limit for one in inner for limit in _limits(one)]
