"""Flower asks who is there, as the API does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from orchestrator import dashboard
from orchestrator.config.settings import Settings
from orchestrator.dev.ports import any_free
from orchestrator.engine import keyring
from orchestrator.errors import OrchestratorError
from tests.stack import Stack, until


@contextlib.contextmanager
def flower(stack: Stack, **variables: str) -> Iterator[str]:
    port = any_free()
    with (stack.folder / "flower.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "flower", "--logging=warning"],
            stdout=log, stderr=log, env=stack.variables(FLOWER_PORT=str(port), PYTHONWARNINGS="ignore", **variables),
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(url), 30, (stack.folder / "flower.log").read_text())
        yield url
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/healthcheck", trust_env=False).status_code < 500
    return False


def test_flower_is_seen_with_a_key_of_the_api_and_by_who_may_operate(stack: Stack) -> None:
    boss = keyring.add(stack.runner.runtime, "boss", ["admin"])
    viewer = keyring.add(stack.runner.runtime, "viewer", ["viewer"])["key"]
    stranger = keyring.add(stack.runner.runtime, "stranger", ["admin"], tenant="acme")["key"]
    with flower(stack, AUTH="on") as url:

        def status(path: str, password: str | None) -> int:
            return httpx.get(url + path, auth=None if password is None else ("x", password), trust_env=False).status_code

        for path in ("/workers", "/tasks", "/api/workers"):
            assert status(path, None) == 401, path
            assert status(path, "wrong") == 401, path
            assert status(path, viewer) == 403, path
            assert status(path, stranger) == 403, path
            assert status(path, boss["key"]) == 200, path
        bearer = {"Authorization": f"Bearer {boss['key']}"}
        assert httpx.get(f"{url}/api/workers", headers=bearer, trust_env=False).status_code == 200
        keyring.revoke(stack.runner.runtime, boss["id"])
        until(lambda: status("/workers", boss["key"]) == 401, 10)
        log = (stack.folder / "flower.log").read_text()
        assert boss["key"] not in log
        assert viewer not in log


def test_without_authentication_it_is_there_for_this_machine_alone(stack: Stack) -> None:
    with flower(stack) as url:
        assert httpx.get(f"{url}/workers", trust_env=False).status_code == 200
    with pytest.raises(OrchestratorError, match="FLOWER_HOST"):
        dashboard.arguments(Settings(flower_host="0.0.0.0"))  # noqa: S104
    assert os.environ.get("FLOWER_BASIC_AUTH") is None
