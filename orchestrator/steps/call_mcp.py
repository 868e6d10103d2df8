"""`call: mcp`: a method of a Model Context Protocol server, over streamable HTTP or over the pipes of a process.

A session is begun, asked once and ended: nothing is kept between steps. A server that is a process is run only where
RUN_SCRIPTS allows programs.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from typing import Any

from orchestrator import nesting
from orchestrator.definition.durations import seconds
from orchestrator.net import process
from orchestrator.net.authentication import authentication
from orchestrator.net.client import TIMEOUT_S, judged, send
from orchestrator.net.problems import Problem
from orchestrator.net.rpc import messages, result
from orchestrator.steps.call_http import endpoint_of, hidden
from orchestrator.steps.registry import StepContext, executor

PROTOCOL = "2025-06-18"


@executor
class CallMcp:
    type = "call.mcp"

    def execute(self, context: StepContext) -> Any:
        given = context.parameters if isinstance(context.parameters, dict) else {}
        transport = given.get("transport") or {}
        timeout_s = min(seconds(given["timeout"]) if "timeout" in given else TIMEOUT_S, context.deadline_s or 3600.0)
        asked = str(given.get("method"))
        parameters = given.get("parameters") or {}
        greeting = {
            "protocolVersion": str(given.get("protocolVersion", PROTOCOL)),
            "capabilities": {},
            "clientInfo": given.get("client") or {"name": "celery-orchestrator", "version": "0.1.0"},
        }
        with hidden(context):
            session = (
                _Pipes(transport["stdio"], timeout_s) if "stdio" in transport else _Http(transport.get("http") or {}, context, timeout_s)
            )
            with session:
                session.ask("initialize", greeting)
                session.tell("notifications/initialized")
                return session.ask(asked, parameters)


class _Http:
    def __init__(self, given: dict[str, Any], context: StepContext, timeout_s: float) -> None:
        self.address, policy = endpoint_of(given.get("endpoint"), context)
        self.auth = authentication(policy, context.secrets)
        self.headers = {"Accept": "application/json, text/event-stream", **{k: str(v) for k, v in (given.get("headers") or {}).items()}}
        self.deadline = time.monotonic() + timeout_s
        self.number = 0

    def __enter__(self) -> _Http:
        return self

    def __exit__(self, *_: object) -> None:
        if "Mcp-Session-Id" in self.headers:
            try:
                send("DELETE", self.address, headers=self.headers, auth=self.auth, timeout_s=2)
            except Problem:
                return

    def _send(self, body: dict[str, Any]) -> Any:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Problem("timeout", f"{self.address} did not answer in time", retryable=True)
        answer = send("POST", self.address, headers=self.headers, content=body, auth=self.auth, timeout_s=left)
        try:
            judged(answer, redirect=False)
        except Problem as problem:
            raise Problem("runtime", str(problem), retryable=problem.retryable) from None
        if "mcp-session-id" in answer.headers:
            self.headers["Mcp-Session-Id"] = answer.headers["mcp-session-id"]
        return answer

    def ask(self, method: str, parameters: Any) -> Any:
        self.number += 1
        answer = self._send({"jsonrpc": "2.0", "id": self.number, "method": method, "params": parameters})
        for message in messages(answer):
            if message.get("id") == self.number:
                found = result(message, method)
                if method == "initialize" and isinstance(found, dict):
                    self.headers["MCP-Protocol-Version"] = str(found.get("protocolVersion", PROTOCOL))
                return found
        raise Problem("runtime", f"{method}: {self.address} gave no answer")

    def tell(self, method: str) -> None:
        self._send({"jsonrpc": "2.0", "method": method})


class _Pipes:
    def __init__(self, given: dict[str, Any], timeout_s: float) -> None:
        process.allowed("RUN_SCRIPTS", "programs (MCP servers over stdio)")
        self.deadline = time.monotonic() + timeout_s
        self.number = 0
        self.rest = b""
        self.folder = tempfile.TemporaryDirectory(prefix="orchestrator-mcp-")
        environment = {str(key): str(value) for key, value in (given.get("environment") or {}).items()}
        try:
            self.process = subprocess.Popen(
                [process.program(str(given.get("command"))), *(str(argument) for argument in given.get("arguments") or ())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self.folder.name,
                env={"PATH": process.SEARCH, "HOME": self.folder.name, **environment},
                start_new_session=True,
            )
        except (OSError, Problem) as error:
            self.folder.cleanup()
            raise Problem("runtime", f"the MCP server could not be started: {error}") from None

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        process._kill(self.process)
        self.folder.cleanup()

    def _write(self, body: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(body).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Problem("runtime", "the MCP server ended before it answered") from None

    def ask(self, method: str, parameters: Any) -> Any:
        self.number += 1
        self._write({"jsonrpc": "2.0", "id": self.number, "method": method, "params": parameters})
        while True:
            message = self._read(method)
            if message.get("id") == self.number and "method" not in message:
                return result(message, method)

    def tell(self, method: str) -> None:
        self._write({"jsonrpc": "2.0", "method": method})

    def _read(self, method: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self.rest:
            left = self.deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, left))
            if not ready:
                raise Problem("timeout", f"{method}: the MCP server did not answer in time", retryable=True)
            part = os.read(self.process.stdout.fileno(), 65536)
            if not part:
                raise Problem("runtime", f"{method}: the MCP server ended before it answered")
            self.rest += part
            if len(self.rest) > process.MOST_OUTPUT:
                raise Problem("runtime", f"{method}: the MCP server said more than {process.MOST_OUTPUT:,} bytes")
        line, self.rest = self.rest.split(b"\n", 1)
        try:
            found = nesting.parse(line)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}
