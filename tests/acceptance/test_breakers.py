"""Circuit breakers: every move, shared by processes, and what holds while Redis is away."""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from orchestrator.api import create_app
from orchestrator.breakers import Breaker, Breakers, CircuitOpen, Rules
from orchestrator.definition.documents import read_document
from tests.stack import Stack, until

RULES = Rules(threshold=3, recovery_s=10.0, trials=2)


# ── every move ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_opens_at_the_threshold_of_failures_in_a_row() -> None:
    held = Breaker("b")
    for outcome in ("bad", "bad", "good", "bad", "bad", "neither"):
        held = held.heard(0.0, RULES, outcome)
        assert held.state == "CLOSED"
    held = held.heard(1.0, RULES, "bad", "no answer")
    assert (held.state, held.opened, held.error) == ("OPEN", 1, "no answer")


def test_open_it_refuses_until_the_recovery_time_and_then_lets_some_through() -> None:
    held = Breaker("b", "OPEN", 3, since=100.0)
    held, wait = held.asked(104.0, RULES)
    assert (wait, held.state, held.refused) == (6.0, "OPEN", 1)
    waits = []
    for _ in range(3):
        held, wait = held.asked(110.0, RULES)
        waits.append(wait)
    assert held.state == "HALF_OPEN"
    assert waits[:2] == [None, None]
    assert waits[2] is not None
    assert held.heard(111.0, RULES, "good") == dataclasses.replace(held, state="CLOSED", failures=0, trials=0, since=111.0)
    assert held.heard(111.0, RULES, "bad").state == "OPEN"
    # One that failed for its own sake makes room for another.
    assert held.heard(111.0, RULES, "neither").asked(111.0, RULES)[1] is None
    # Those who were let through died.
    assert held.asked(121.0, RULES)[1] is None


def test_an_answer_to_a_call_from_before_changes_nothing_of_an_open_one() -> None:
    held = Breaker("b", "OPEN", 3, since=100.0)
    assert held.heard(101.0, RULES, "good") == held
    assert held.heard(101.0, RULES, "bad") == held


# ── shared ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fail(url: str, times: int) -> None:
    from orchestrator.config.settings import Settings

    breakers = Breakers(Settings(redis_url=url, breaker_threshold=10_000))
    for _ in range(times):
        breakers.tell("counted", "bad")


def test_no_failure_is_lost_between_processes(stack: Stack) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_fail, args=(stack.redis_url, 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert Breakers(stack.settings).find("counted")["failures"] == 200


def test_while_redis_is_away_each_process_counts_for_itself(stack: Stack) -> None:
    settings = dataclasses.replace(stack.settings, redis_url="redis://127.0.0.1:1/0", breaker_threshold=2, breaker_recovery_s=0.3)
    breakers = Breakers(settings)
    for _ in range(2):
        breakers.ask("b")
        breakers.tell("b", "bad", "x")
    with pytest.raises(CircuitOpen):
        breakers.ask("b")
    time.sleep(0.35)  # the recovery time
    breakers.ask("b")
    breakers.tell("b", "good")
    breakers.ask("b")


# ── with steps ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Target(BaseHTTPRequestHandler):
    hits = 0
    is_well = False

    def do_GET(self) -> None:
        Target.hits += 1
        self.send_response(200 if Target.is_well else 503)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def target() -> Iterator[str]:
    Target.hits, Target.is_well = 0, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Target)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_target_that_fails_is_left_alone_by_all_workers_and_tried_again(stack: Stack, target: str) -> None:
    stack.environment.update({"BREAKER_THRESHOLD": "4", "BREAKER_RECOVERY": "3s", "BREAKER_TRIALS": "1"})
    for _ in range(2):
        stack.worker()
    document = (
        "{id: calls, version: '1', steps: [{id: call, type: http, breaker: shop, retry: {max_attempts: 20, initial_delay: 0.1, factor: 1},"
        f" parameters: {{url: '{target}'}}}}]}}"
    )
    stack.runner.register_workflow(read_document(document))
    client = create_app(stack.runner).test_client()
    ids = [stack.runner.start_workflow("calls", input={}) for _ in range(8)]
    until(lambda: client.get("/workflow/breakers/shop").get_json().get("state") == "OPEN", 20)
    # Attempts that were under way may still arrive; then there is silence.
    time.sleep(0.5)
    hits = Target.hits
    assert hits <= 4 + 8
    time.sleep(1.0)
    assert Target.hits == hits
    assert 'orchestrator_breaker_state{breaker="shop"} 2.0' in client.get("/metrics").text
    assert [one["name"] for one in client.get("/workflow/status").get_json()["breakers"]] == ["shop"]
    # Half-open and still ill: one more call at a time, and open again.
    until(lambda: client.get("/workflow/breakers/shop").get_json()["opened"] >= 2, 20)
    assert Target.hits <= hits + 3
    Target.is_well = True
    for instance_id in ids:
        assert stack.ended(instance_id, 60)["status"] == "COMPLETED"
    shown = client.get("/workflow/breakers/shop").get_json()
    assert (shown["state"], shown["failures"]) == ("CLOSED", 0)
    assert Target.hits < hits + 40
    codes = stack.sql("select distinct data -> 'error' ->> 'code' from checkpoints where kind = 'step.retried'")
    assert ("circuit_open",) in codes


def test_it_is_closed_by_hand(stack: Stack) -> None:
    breakers = stack.runner.runtime.breakers
    for _ in range(5):
        breakers.tell("b", "bad", "x")
    client = create_app(stack.runner).test_client()
    assert [one["state"] for one in client.get("/workflow/breakers").get_json()["breakers"]] == ["OPEN"]
    assert client.post("/workflow/breakers/b/reset").get_json()["state"] == "CLOSED"
    assert client.post("/workflow/breakers/unknown/reset").status_code == 404
    assert stack.sql("select action, detail from audit") == [("reset-breaker", {"breaker": "b"})]
