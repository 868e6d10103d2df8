"""Tasks of Celery as steps: what each way of ending means, whose app it is, and what the task sees."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, Task, _state, current_app, signals
from celery.exceptions import Ignore, Reject

from orchestrator.app import app as own
from orchestrator.errors import MissingCode, Retryable, StepTimeout, Terminal
from orchestrator.steps import apps
from orchestrator.steps.celery import CeleryTask
from orchestrator.steps.registry import StepContext


@pytest.fixture
def shop() -> Iterator[Celery]:
    made = Celery("shop", broker="memory://", set_as_current=False)
    yield made
    made.close()


def run(task: str, *args: Any, attempt: int = 1, app: str | None = None, **kwargs: Any) -> Any:
    parameters = {"task": task, "args": list(args), "kwargs": kwargs} | ({"app": app} if app else {})
    context = StepContext(
        instance_id="i", workflow="w", position="/do/0/s", name="s", type="celery", input={}, parameters=parameters, attempt=attempt
    )
    return CeleryTask().execute(context)


def test_it_sees_its_app_its_arguments_and_which_attempt_this_is(shop: Celery) -> None:
    @shop.task(name="shop.look", bind=True)
    def look(self: Task, a: int, b: int = 0) -> Any:
        assert current_app._get_current_object() is self.app is shop  # type: ignore[attr-defined]
        assert self.request.called_directly is False
        return (a, b, self.request.retries, self.request.args, self.request.id, self.request.headers["orchestrator_instance"])

    before = _state._tls.current_app
    first, second = run("shop.look", 1, b=2), run("shop.look", 1, b=2, attempt=3)
    assert first[:4] == (1, 2, 0, [1])
    assert (second[2], second[4]) == (2, first[4])
    assert first[5] == "i"
    assert _state._tls.current_app is before


def test_hooks_and_signals_are_those_of_its_own_worker(shop: Celery) -> None:
    seen: list[str] = []

    class Watched(Task):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append("call")
            return super().__call__(*args, **kwargs)

        def before_start(self, *_: Any) -> None:
            seen.append("before")

        def on_success(self, *_: Any) -> None:
            seen.append("success")

        def on_failure(self, *_: Any) -> None:
            seen.append("failure")

        def after_return(self, *_: Any) -> None:
            seen.append("after")

    def prerun(**_: Any) -> None:
        seen.append("prerun")

    @shop.task(name="shop.watched", base=Watched)
    def watched(fail: bool) -> None:
        if fail:
            raise LookupError("no such thing")

    signals.task_prerun.connect(prerun, weak=False)
    try:
        run("shop.watched", False)
        assert seen == ["prerun", "before", "call", "success", "after"]
        seen.clear()
        with pytest.raises(LookupError, match="no such thing"):
            run("shop.watched", True)
        assert seen == ["prerun", "before", "call", "failure", "after"]
    finally:
        signals.task_prerun.disconnect(prerun)


def test_a_retry_says_when_and_refuses_other_arguments(shop: Celery) -> None:
    @shop.task(name="shop.later", bind=True, default_retry_delay=7)
    def later(self: Task, how: str) -> None:
        at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=100)
        options: dict[str, dict[str, Any]] = {
            "default": {}, "countdown": {"countdown": 3}, "eta": {"eta": at}, "naive": {"eta": at.replace(tzinfo=None)},
            "others": {"args": ["x"]}, "same": {"args": ["same"], "countdown": 1},
        }  # fmt: skip
        raise self.retry(**options[how])

    for how, after in (("default", 7), ("countdown", 3), ("eta", 100), ("naive", 100), ("same", 1)):
        with pytest.raises(Retryable) as caught:
            run("shop.later", how)
        assert caught.value.after == pytest.approx(after, abs=5)
    with pytest.raises(Terminal, match="other arguments"):
        run("shop.later", "others")


def test_a_deadline_that_a_task_retries_for_is_the_steps_all_the_same(shop: Celery) -> None:
    @shop.task(name="shop.greedy", autoretry_for=(Exception,))
    def greedy() -> None:
        raise StepTimeout("the step was interrupted at its deadline")

    with pytest.raises(StepTimeout):
        run("shop.greedy")


def test_what_celery_calls_ignoring_and_rejecting(shop: Celery) -> None:
    @shop.task(name="shop.end")
    def end(how: str) -> None:
        raise {"ignore": Ignore(), "reject": Reject("no room"), "requeue": Reject("no room", requeue=True)}[how]

    assert run("shop.end", "ignore") is None
    with pytest.raises(Terminal, match="no room"):
        run("shop.end", "reject")
    with pytest.raises(Retryable, match="no room"):
        run("shop.end", "requeue")


def test_a_name_that_two_apps_know_is_refused_until_one_is_named(shop: Celery) -> None:
    bar = Celery("bar", broker="memory://", set_as_current=False)

    def both(self: Task) -> Any:
        return self.app.main

    for one in (shop, bar):
        one.task(both, name="both", bind=True, shared=False)
    try:
        with pytest.raises(Terminal, match=r"several apps \('bar', 'shop'\); name one of them"):
            run("both")
        assert run("both", app="bar") == "bar"
        with pytest.raises(Terminal, match="no Celery app 'pub' in this worker; there are 'bar', 'shop'"):
            run("both", app="pub")
        with apps.current(bar):
            assert run("both") == "bar"
    finally:
        bar.close()


def test_a_task_of_nobody_is_missing_code_which_another_worker_may_have(shop: Celery) -> None:
    with pytest.raises(MissingCode, match=r'no Celery task "shop\.gone": its module did not import here'):
        run("shop.gone")


def test_the_engines_app_is_nobodys() -> None:
    assert own not in apps.others()
    assert _state._tls.current_app is not own
    assert _state.default_app is not own
