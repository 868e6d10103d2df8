"""The API as the Procfile serves it, for a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx

from orchestrator.dev.ports import any_free
from tests import commands
from tests.stack import Stack, until


@contextlib.contextmanager
def web(stack: Stack, *, threads: int = 4, **variables: str) -> Iterator[tuple[str, int]]:
    """Its address, and the process."""
    port = any_free()
    path = stack.folder / "web.log"
    with path.open("wb") as log:
        process = commands.start(
            ["gunicorn", "-c", "python:orchestrator.api.serving", "orchestrator.api:create_app()", "--bind", f"127.0.0.1:{port}", "--workers", "1", "--threads", str(threads),
             "--limit-request-line", "0"],  # what is longer gunicorn answers itself
            stack.variables(**variables), log,
        )  # fmt: skip
    try:
        until(lambda: _answers(f"http://127.0.0.1:{port}/health/live"), 30, path.read_text())
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(20)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
