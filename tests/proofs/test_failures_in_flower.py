"""Flower, looked at by somebody who wants to know whether anything failed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.test_flower import flower
from tests.proofs.project import Project
from tests.stack import Stack, until

WORKFLOWS = """
from orchestrator import Terminal, Workflow, step

@step(retries=0)
def refuse():
    raise Terminal("no seats left" + "!" * 5000)

@step
def pass_on():
    return {}

@step
def book():
    return {}

@book.undo
def give_back(output):
    return None

@step(queue="gpu")
def far_away():
    return {}

plain = Workflow("plain").then(pass_on).then(refuse)
saga = Workflow("saga", saga=True).then(book).then(refuse)
forked = Workflow("forked").parallel().do(lambda b: b.then(refuse)).do(lambda b: b.then(pass_on)).join_with(pass_on, "after")
chained = Workflow("chained").then(refuse).then(far_away).then(pass_on, "after")
late = Workflow("late", timeout=1).wait(60)
parent = Workflow("parent").run("plain")
good = Workflow("good").then(pass_on).then(pass_on, "again")
good_fork = Workflow("good-fork").parallel().do(lambda b: b.then(book)).do(lambda b: b.then(pass_on)).join_with(pass_on, "after")
"""
FAILING = ("plain", "saga", "forked", "chained", "late", "parent")


@pytest.fixture
def board(stack: Stack, tmp_path: Path) -> Iterator[tuple[Project, str]]:
    shop = Project(stack, tmp_path / "project")
    shop.write("flows.py", WORKFLOWS)
    stack.environment |= {"FLOWER_UNAUTHENTICATED_API": "true", "WORKER_QUEUES": "gpu"}
    with flower(stack) as url:
        stack.worker("-E")
        until(lambda: shop.start("good") and asked(url, "tasks"), 30)  # it hears the worker
        yield shop, url


def asked(url: str, what: str, **query: Any) -> Any:
    return httpx.get(f"{url}/api/{what}", params=query, trust_env=False, timeout=30).json()


@pytest.mark.proves(50)
@pytest.mark.slow
def test_a_workflow_that_failed_is_a_failed_task_and_none_that_completed_is(board: tuple[Project, str]) -> None:
    shop, url = board
    ids = {name: shop.start(name) for name in (*FAILING, "good", "good-fork")}
    for name, instance_id in ids.items():
        until(lambda one=instance_id: shop.row(one)[0] in ("COMPLETED", "FAILED"), 60)  # type: ignore[misc]
        assert shop.row(instance_id)[0] == ("FAILED" if name in FAILING else "COMPLETED"), name

    # The child of `parent` is an instance of its own.
    failed = until(lambda: len(found := asked(url, "tasks", state="FAILURE")) >= len(FAILING) + 1 and found, 20)
    until(lambda: not asked(url, "tasks", state="STARTED"), 20)
    failed = asked(url, "tasks", state="FAILURE")
    assert len(failed) == len(FAILING) + 1, failed
    told = [task["exception"] for task in failed.values()]
    for name in FAILING:
        [text] = [text for text in told if ids[name] in text]
        assert re.search(rf"WorkflowFailed\(.{name} {ids[name]} failed \(\w+\): ", text), text
        assert ("no seats left" in text) == (name != "late"), text
        assert len(text) < 700
    assert not [text for text in told if ids["good"] in text or ids["good-fork"] in text]

    # No traceback in the log; every message is acknowledged, and none was tried again.
    assert "Traceback" not in shop.stack.workers[0].log.read_text()
    assert not asked(url, "tasks", state="RETRY")
    until(lambda: not shop.stack.redis.hlen("unacked"), 20)
    assert not [name for name in ("normal", "gpu") if shop.stack.redis.llen(name)]
