"""Real workers, real messages: the smallest proof that everything is put together."""

from __future__ import annotations

from tests.stack import Stack


def test_a_sequence_runs_to_its_end_and_keeps_its_history(stack: Stack) -> None:
    stack.worker()

    status = stack.run("sequence", {"n": 1})

    assert status["status"] == "COMPLETED"
    assert status["output"] == {"n": 1, "a": True, "b": True, "c": True, "d": True, "e": True}
    assert [fact["position"] for fact in stack.runner.history(status["id"])] == [f"/do/{i}/{name}" for i, name in enumerate("abcde")]


def test_a_fork_joins_after_both_branches(stack: Stack) -> None:
    stack.worker()

    status = stack.run("fork", {})

    assert status["output"] == {"first": True, "left": True, "right": True, "right2": True, "last": True}
    assert stack.sql("select what from ledger order by id")[-1] == ("last",)


def test_a_graph_releases_each_step_when_its_own_dependencies_are_done(stack: Stack) -> None:
    stack.worker()

    status = stack.run("diamond", {})

    order = [row[0] for row in stack.sql("select what from ledger order by id")]
    assert sorted(order) == ["a", "b", "c", "d", "e"]
    assert order.index("a") < order.index("c") < order.index("e")
    assert order.index("b") < order.index("d") < order.index("e")
    assert status["output"] == dict.fromkeys("abcde", True)


def test_a_wide_fan_out_runs_every_branch_once(stack: Stack) -> None:
    stack.worker(concurrency=4)

    status = stack.run("wide", {"items": list(range(300))}, 60)

    assert status["status"] == "COMPLETED"
    assert stack.sql("select count(*), count(distinct position) from ledger") == [(301, 301)]


def test_a_saga_undoes_what_was_done_in_reverse(stack: Stack) -> None:
    stack.worker()

    status = stack.run("saga", {})

    assert status["status"] == "FAILED"
    assert status["compensation"]["result"] == "compensated"
    assert [row[0] for row in stack.sql("select what from ledger order by id")] == [
        "do hotel", "do flight", "broken", "undo flight", "undo hotel",
    ]  # fmt: skip


def test_a_wait_holds_no_worker_and_ends_on_time(stack: Stack) -> None:
    stack.worker()

    status = stack.run("naps", {})

    assert status["status"] == "COMPLETED"
    assert 1.2 <= stack.sql("select extract(epoch from max(at) - min(at))::float8 from ledger")[0][0] < 2.0


def test_a_child_workflow_wakes_its_parent(stack: Stack) -> None:
    stack.worker()

    status = stack.run("parent", {})

    assert status["status"] == "COMPLETED"
    assert [row[0] for row in stack.sql("select what from ledger order by id")] == ["before", "a", "b", "c", "d", "e", "after"]
