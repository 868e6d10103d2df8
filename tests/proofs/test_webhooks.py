"""Webhooks: what can never be delivered is refused where it comes in, and what cannot be delivered now is said once."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.dev.ports import any_free
from tests.proofs.system import create_app
from tests.stack import Stack, until

HOOK = {"name": "h", "url": "http://127.0.0.1:9/in", "types": ["*"], "secret": "hook"}


def client_of(stack: Stack) -> Any:
    return create_app(stack.runner).test_client()


@pytest.mark.proves(12)
def test_a_webhook_whose_secret_is_nowhere_is_refused(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = client_of(stack).post("/workflow/webhooks", json=HOOK)
    assert answer.status_code == 400
    assert "SECRET_" in answer.text
    monkeypatch.setenv("SECRET_HOOK", "whsec_no base64")
    assert client_of(stack).post("/workflow/webhooks", json=HOOK).status_code == 400
    monkeypatch.setenv("SECRET_HOOK", "s3cret")
    assert client_of(stack).post("/workflow/webhooks", json=HOOK).status_code == 201


@pytest.mark.proves(52)
@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "notaurl"}, {"url": "http://"}, {"url": "http:// x"}, {"url": "http://u:p@x/"}, {"url": "http://x:99999/"}, {"url": "ftp://x"},
        {"types": []}, {"types": "x"}, {"types": [""]}, {"types": [1]}, {"name": ""}, {"name": 5}, {"secret": None}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_webhook_is_refused(stack: Stack, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]) -> None:
    monkeypatch.setenv("SECRET_HOOK", "s3cret")
    assert client_of(stack).post("/workflow/webhooks", json={**HOOK, **wrong}).status_code == 400


@pytest.mark.proves(12)
def test_a_webhook_that_fails_is_a_finding_and_said_once(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_HOOK", "s3cret")
    stack.runner.put_webhook("h", f"http://127.0.0.1:{any_free()}/in", ["t"], secret="hook")
    stack.worker()
    with stack.bridge():
        for n in range(60):
            stack.runner.send_event({"id": str(n), "source": "s", "type": "t", "data": {}})
        until(lambda: stack.sql("select count(*) from deliveries where attempts > 0") == [(60,)], 30)
        until(lambda: stack.sql("select subject from findings where kind = 'webhook'") == [("h",)], 20)
    [log] = stack.folder.glob("bridge-*.log")
    assert log.read_text().count("webhook h") == 1
