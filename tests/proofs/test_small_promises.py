"""Small things that were said and not so."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from orchestrator.definition.tree import Definition, Do, Set
from orchestrator.engine import lifecycle
from tests.stack import Stack
from tests.web import web

DOCUMENT = {"type": "greeting", "steps": [{"id": "hello", "type": "log", "parameters": {"message": "hello"}}]}


@pytest.mark.proves(26)
@pytest.mark.parametrize(
    ("registered", "asked", "found"),
    [
        (("1.0.0", "1.2.0"), "1.0", "1.0.0"),
        (("1.0.0", "1.2.0"), "1.0.0", "1.0.0"),
        (("1.0.0", "1.2.0"), "1", "1.2.0"),
        (("1.0.0", "1.0.5", "1.2.0"), "1.0", "1.0.5"),
        (("1.0.5", "1.2.0", "2.0.0"), "1.0", "1.0.5"),
        (("1.2.0", "2.0.0"), "1.0", "1.2.0"),
        (("1.2.0", "1.2.7", "1.3.0"), "1.2", "1.2.7"),
        (("2.0.0", "2.1.0"), "2.0", "2.0.0"),
        (("1", "2"), None, "2"),
    ],
)
def test_a_version_that_is_named_is_run_where_it_is_there(stack: Stack, registered: tuple[str, ...], asked: str | None, found: str) -> None:
    for version in registered:
        stack.runner.register_workflow(Definition(name="versioned", version=version, do=Do(tasks=(Set(name="s"),))))

    assert lifecycle.find_definition(stack.runner.runtime, "versioned", asked).version == found


@pytest.mark.proves(26)
def test_registering_the_same_document_again_says_that_nothing_changed(stack: Stack) -> None:
    path = stack.folder / "greeting.json"
    path.write_text(json.dumps(DOCUMENT))
    first, again = stack.cli("register", str(path)), stack.cli("register", str(path))

    assert first.stdout == "registered greeting@1\n", first.stdout + first.stderr
    assert again.returncode == 0
    assert "unchanged" in again.stdout
    with web(stack) as (url, _):
        answers = [httpx.post(f"{url}/workflow/definitions", json={**DOCUMENT, "type": "other"}, trust_env=False) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 200]

        assert_refused_bodies_are_told(url)


def assert_refused_bodies_are_told(url: str) -> None:
    """A body that is too large is refused as such, and where it is not read to its end the answer says that the connection ends."""
    large = b'{"data": "' + b"x" * 2_000_000 + b'"}'
    for body in (_with_length(large), _chunked(large)):
        said = _answer(url, body)
        assert said["status"] == "413", said
        assert said["connection"] == "close", said


def _with_length(body: bytes) -> bytes:
    return f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def _chunked(body: bytes) -> bytes:
    return b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


def _answer(url: str, body: bytes) -> dict[str, Any]:
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=10) as connection:
        head = f"POST /workflow/start/x HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
        with contextlib.suppress(OSError):  # it is answered before all was sent
            connection.sendall(head.encode() + body)
        text, deadline = b"", time.monotonic() + 10
        while b"\r\n\r\n" not in text and time.monotonic() < deadline:
            part = connection.recv(65536)
            if not part:
                break
            text += part
    lines = text.split(b"\r\n\r\n")[0].decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return {"status": lines[0].split(" ")[1] if lines[0] else "", "connection": headers.get("connection")}
