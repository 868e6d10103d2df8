"""What every executor and compensation must satisfy, and what `http` promises, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.errors import MissingCode, Retryable, StepError, Terminal
from orchestrator.steps.registry import REGISTRY, After, Result, StepContext

REGISTRY.load()
GOOD = {
    "log": {"message": "hello"},
    "delay": {"delay": "1s"},
    "conditional": {"condition": "always_false"},
    "noop": {},
    "python": {"function": "tests.workflows.plain:double", "kwargs": {"n": 4}},
    "celery": {"task": "celery.accumulate", "args": [1, 2]},
}


def context(type: str, parameters: object, attempt: int = 1) -> StepContext:
    return StepContext(
        instance_id="i", workflow="w", position="/do/0/s", name="s", type=type, input={}, parameters=parameters, attempt=attempt
    )


@pytest.mark.parametrize("type", ["log", "delay", "conditional", "fail", "http", "python", "celery", "noop"])
def test_an_executor_is_found_by_its_type_and_refuses_nonsense_as_a_step_error(type: str) -> None:
    executor = REGISTRY.executor(type)
    assert executor.type == type
    if type not in ("noop", "fail"):
        with pytest.raises(StepError):
            executor.execute(context(type, {"nonsense": True}))


@pytest.mark.parametrize("type", sorted(set(GOOD) - {"celery"}))
def test_an_executor_gives_json(type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "tests.workflows")
    given = REGISTRY.executor(type).execute(context(type, GOOD[type]))
    result = given.result if isinstance(given, After) else given
    json.dumps(result.data if isinstance(result, Result) else result)


@pytest.mark.parametrize("type", ["log", "noop"])
def test_a_compensation_is_found_by_its_type(type: str) -> None:
    handler = REGISTRY.handler(type)
    assert handler is not None
    assert handler.type == type
    handler.compensate(context(type, {}))


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(MissingCode, match='has no step "warp"'):
        REGISTRY.executor("warp")


def test_python_calls_only_the_projects_own_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_WORKFLOWS", "tests.workflows")
    with pytest.raises(Terminal, match="ORCHESTRATOR_WORKFLOWS"):
        REGISTRY.executor("python").execute(context("python", {"function": "os:system", "kwargs": {"command": "true"}}))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, argument = self.path.partition("?")[0].lstrip("/").partition("/")
        if path == "status":
            self._send(int(argument), {"said": argument}, {"Retry-After": "7"} if argument in ("429", "503") else {})
        elif path == "big":
            self._send(200, "x" * 100_000)
        else:
            self._send(200, {"path": self.path, "key": self.headers.get("Idempotency-Key"), "header": self.headers.get("X-One")})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(201, {"got": json.loads(body)})

    def _send(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: object) -> None:
        return None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


def request(url: str, **parameters: object) -> Result:
    return REGISTRY.executor("http").execute(context("http", {"url": url, **parameters}))  # type: ignore[no-any-return]


class TestHttp:
    def test_it_parses_json_and_hands_the_idempotency_key_on(self, server: str) -> None:
        result = request(f"{server}/a", headers={"X-One": "1"}, query={"q": "x y"})
        assert result.data["status"] == 200
        assert result.data["body"] == {"path": "/a?q=x%20y", "key": "i:/do/0/s", "header": "1"} or result.data["body"]["key"] == "i:/do/0/s"

    def test_it_sends_a_body_and_accepts_only_what_is_expected(self, server: str) -> None:
        assert request(f"{server}/p", method="post", body={"n": 1}, expected_status=201).data["body"] == {"got": {"n": 1}}
        with pytest.raises(Terminal, match="answered 201"):
            request(f"{server}/p", method="post", body={}, expected_status=[200])

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_it_comes_back_when_it_is_told_to(self, server: str, status: int) -> None:
        with pytest.raises(Retryable) as caught:
            request(f"{server}/status/{status}")
        assert caught.value.after == (None if status == 500 else 7.0)

    def test_a_refusal_is_final(self, server: str) -> None:
        with pytest.raises(Terminal, match="answered 404"):
            request(f"{server}/status/404")

    def test_nobody_there_is_worth_another_attempt(self) -> None:
        with pytest.raises(Retryable):
            request("http://127.0.0.1:1/")

    def test_an_answer_above_the_cap_is_not_read(self, server: str) -> None:
        with pytest.raises(Terminal, match="more than 1,000 bytes"):
            request(f"{server}/big", max_bytes=1000)


def test_another_distribution_brings_its_executor_and_compensation(tmp_path: Path) -> None:
    (tmp_path / "acme_steps.py").write_text(
        "class Weigh:\n"
        "    type = 'acme.weigh'\n"
        "    def execute(self, context):\n"
        "        return {'grams': 7}\n"
        "class Unweigh:\n"
        "    type = 'acme.weigh'\n"
        "    def compensate(self, context):\n"
        "        return None\n"
    )
    metadata = tmp_path / "acme_steps-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-steps\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[orchestrator.steps]\nbroken = acme_missing:Nothing\nweigh = acme_steps:Weigh\n"
        "[orchestrator.compensations]\nweigh = acme_steps:Unweigh\n"
    )
    program = (
        "from orchestrator import Workflow\n"
        "from orchestrator.testing import Lab\n"
        "from orchestrator.definition.tree import Step\n"
        "run = Lab().run(Workflow('weighs').then(Step(name='weigh', type='acme.weigh')), {})\n"
        "from orchestrator.steps.registry import REGISTRY\n"
        "print(run.state, run.output, REGISTRY.has_handler('acme.weigh'))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": f"{tmp_path}:."}, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "COMPLETED {'grams': 7} True"
    assert "entry point 'broken'" in done.stderr
