"""The API in a process of its own, as gunicorn serves it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from orchestrator.dev.ports import any_free
from tests.stack import Stack, until

PROGRAMS = Path(sys.executable).parent


@contextlib.contextmanager
def served(stack: Stack) -> Iterator[httpx.Client]:
    module = "orchestrator.api" if Path("orchestrator/starting.py").exists() else "api"
    port = any_free()
    with (stack.folder / "web.log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAMS / "gunicorn", f"{module}:create_app()", "--bind", f"127.0.0.1:{port}", "--workers", "1", "--threads", "4"],
            stdout=log, stderr=log, env=stack.variables(),
        )  # fmt: skip
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        until(lambda: answers(client), 30)
        yield client
    process.terminate()
    process.wait(20)


def answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/workflow/instances").status_code == 200
    return False
