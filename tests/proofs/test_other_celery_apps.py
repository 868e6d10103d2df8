"""A program that has a Celery app of its own beside the engine's."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.stack import Stack, until

SHOP = """
import asyncio, os
from celery import Celery, Task, shared_task

class Counting(Task):
    ends = []
    def on_success(self, retval, task_id, args, kwargs):
        self.ends.append(task_id)

app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_BROKER"], task_cls=Counting)
app.conf.update(task_default_queue="shop-tasks", task_serializer="json", shop_currency="CHF")

@app.task(name="shop.price", bind=True)
def price(self, amount, currency=None):
    return {"price": f"{amount} {currency or self.app.conf.shop_currency}", "of": self.app.main, "id": self.request.id,
            "retries": self.request.retries}

@app.task(name="shop.fetch")
async def fetch(what):
    await asyncio.sleep(0.01)
    return {"fetched": what}

@app.task(name="shop.patient", bind=True, max_retries=5, default_retry_delay=0)
def patient(self, until):
    if self.request.retries < until:
        raise self.retry(countdown=0)
    return {"retries": self.request.retries, "id": self.request.id}

@app.task(name="shop.stubborn", bind=True, max_retries=1, default_retry_delay=0)
def stubborn(self):
    raise self.retry(exc=ValueError("the till is stuck"), countdown=0)

@app.task(name="shop.careful", autoretry_for=(OSError,), retry_kwargs={"max_retries": 6, "countdown": 0})
def careful(place):
    with open(place, "a") as file:
        file.write("tried\\n")
    if len(open(place).readlines()) < 5:
        raise OSError("not yet")
    return {"careful": True}

@app.task(name="shop.careful_and_async", autoretry_for=(OSError,), retry_kwargs={"max_retries": 6, "countdown": 0})
async def careful_and_async(place):
    await asyncio.sleep(0)
    return careful.run(place)

@shared_task(name="shop.mail")
def mail(to):
    from celery import current_app
    return {"mailed": to, "by": current_app.main}
"""

FLOWS = """
import threading
from orchestrator import Workflow, step
from shop import careful, careful_and_async, fetch, mail, patient, price, stubborn

@step
def sends():
    mail.delay("from-a-step")
    price.delay(1)
    thread = threading.Thread(target=mail.delay, args=("from-a-thread",))
    thread.start()
    thread.join()

prices = Workflow("prices").then(price, parameters={"amount": "${ .amount }"})
prices_by_name = Workflow("prices-by-name").then("celery", "price", parameters={"task": "shop.price", "args": ["${ .amount }", "EUR"]})
fetches = Workflow("fetches").then(fetch, parameters={"what": "this"})
patience = Workflow("patience").then(patient, parameters={"until": 4})
stuck = Workflow("stuck").then(stubborn, retries=0)
cares = Workflow("cares").then(careful, parameters={"place": "${ .place }"}, retries=0)
cares_async = Workflow("cares-async").then(careful_and_async, parameters={"place": "${ .place }"}, retries=0)
mails = Workflow("mails").then(mail, parameters={"to": "me"})
sending = Workflow("sending").then(sends)
"""

pytestmark = pytest.mark.proves(38)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("program")
    (made / "shop.py").write_text(textwrap.dedent(SHOP))
    (made / "shop_flows.py").write_text(textwrap.dedent(FLOWS))
    return made


@pytest.fixture(scope="module")
def program(postgres: Postgres, redis_server: Redis, folder: Path) -> Iterator[Stack]:
    """A worker of the engine that finds workflows of a program which has a Celery app of its own."""
    made = Stack(fresh_database(postgres), redis_server, folder, workflows="shop_flows")
    made.environment.update({"SHOP_BROKER": f"{redis_server.url[:-1]}5", "PYTHONPATH": str(folder)})
    made.worker()
    # The definitions as another process of the program registers them.
    script = "from orchestrator.engine.runner import WorkflowRunner; WorkflowRunner.instance()"
    subprocess.run([sys.executable, "-c", script], env=made.variables(), cwd=folder, check=True, timeout=60)
    yield made
    made.stop()


@pytest.fixture
def broker(program: Stack) -> Iterator[Any]:
    client = redis.Redis.from_url(program.environment["SHOP_BROKER"], decode_responses=True)
    client.flushdb()
    yield client
    client.close()


def sent(client: Any, queue: str = "shop-tasks") -> list[tuple[str, Any]]:
    """The messages of a queue, the oldest first: the task and its first argument."""
    messages = [json.loads(text) for text in reversed(client.lrange(queue, 0, -1))]
    return [(message["headers"]["task"], json.loads(base64.b64decode(message["body"]))[0][0]) for message in messages]


def test_a_program_goes_on_sending_to_its_own_broker(program: Stack, broker: Any, folder: Path) -> None:
    """After the first `WorkflowRunner.instance()`, too, in whichever thread."""
    script = """
        import threading
        import shop
        shop.app.set_default()
        from orchestrator.engine.runner import WorkflowRunner
        runner = WorkflowRunner.instance()
        shop.mail.delay("main")
        thread = threading.Thread(target=shop.mail.delay, args=("thread",))
        thread.start()
        thread.join()
        print(runner.start_workflow("prices", input={"amount": 7}))
        shop.mail.delay("after")
        from celery import current_app
        assert current_app.main == "shop", current_app.main
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=program.variables(), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sent(broker) == [("shop.mail", "main"), ("shop.mail", "thread"), ("shop.mail", "after")]
    assert program.ended(done.stdout.strip())["status"] == "COMPLETED"


def outcome(program: Stack, workflow: str, input: Any = None) -> dict[str, Any]:
    found = program.run(workflow, input if input is not None else {})
    assert found["status"] == "COMPLETED", found["error"]
    return dict(found["output"])


def test_tasks_of_another_app_are_steps(program: Stack) -> None:
    found = outcome(program, "prices", {"amount": 7})
    assert (found["price"], found["of"], found["retries"]) == ("7 CHF", "shop", 0)
    assert found["id"]
    assert outcome(program, "prices-by-name", {"amount": 7})["price"] == "7 EUR"
    assert outcome(program, "fetches")["fetched"] == "this"


def test_a_shared_task_runs_with_its_programs_app(program: Stack) -> None:
    assert outcome(program, "mails") == {"mailed": "me", "by": "shop"}


def test_a_task_that_asks_to_be_retried_is_and_counts_by_itself(program: Stack, tmp_path: Path) -> None:
    """More often than the step's own three attempts; no oftener than the task allows."""
    assert outcome(program, "patience")["retries"] == 4
    assert outcome(program, "cares", {"place": str(tmp_path / "place")})["careful"] is True
    assert outcome(program, "cares-async", {"place": str(tmp_path / "other")})["careful"] is True
    failed = program.run("stuck", {})
    assert failed["status"] == "FAILED"
    assert "the till is stuck" in str(failed["error"])
    assert failed["error"]["attempts"] == 2


def test_what_a_step_sends_goes_to_its_programs_broker(program: Stack, broker: Any) -> None:
    found = program.run("sending", {})
    assert found["status"] == "COMPLETED", found["error"]
    assert sent(broker) == [("shop.mail", "from-a-step"), ("shop.price", 1), ("shop.mail", "from-a-thread")]


def test_the_worker_of_another_app_is_left_as_it_is(program: Stack, folder: Path, tmp_path: Path) -> None:
    """It imports the engine, whose own workers log as they do, load workflows and serve their metrics."""
    (folder / "shop_with_engine.py").write_text(
        "from shop import app\nfrom orchestrator.engine.runner import WorkflowRunner\nimport orchestrator.app\n"
    )
    log = tmp_path / "shop.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop_with_engine:app", "worker", "-c", "1", "-Q", "nothing", "--loglevel", "INFO",
             "-n", f"shop-{os.getpid()}@%h", "--without-gossip", "--without-mingle", "--without-heartbeat"],
            stdout=out, stderr=out, cwd=folder, env=program.variables(ORCHESTRATOR_WORKFLOWS="shop_nothing"), start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: " ready." in log.read_text() or process.poll() is not None, 60, str(log))
        assert "INFO/MainProcess" in log.read_text(), log.read_text()  # as Celery writes it
        assert "shop_nothing" not in log.read_text()
    finally:
        process.terminate()
        process.wait(30)
