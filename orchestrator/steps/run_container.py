"""`run: container`: through the API of Docker or Podman at CONTAINER_HOST. Off unless RUN_CONTAINERS is on.

The name follows from the step, so a second attempt finds the container of the first and goes on waiting for it
instead of starting another.
"""

from __future__ import annotations

import json
import math
import re
import struct
import time
from typing import Any

import httpx

from orchestrator.config import environment
from orchestrator.config.process import settings
from orchestrator.net import process
from orchestrator.net.problems import Problem
from orchestrator.steps.registry import StepContext, executor
from orchestrator.steps.run_script import arguments_of, stdin_of
from orchestrator.steps.run_shell import with_arguments

DEFAULT_HOST = "unix:///var/run/docker.sock"
API = "/v1.41"


@executor
class RunContainer:
    type = "run.container"

    def execute(self, context: StepContext) -> Any:
        process.allowed("RUN_CONTAINERS", "containers")
        given = context.parameters if isinstance(context.parameters, dict) else {}
        image = given.get("image")
        if not isinstance(image, str) or not image:
            raise Problem("configuration", "a container needs an `image`")
        awaited = given.get("await", True) is not False
        limit_s = min(settings().run_timeout_s, context.deadline_s or math.inf)
        with Engine() as engine:
            engine.pull(image, given.get("pullPolicy", "ifNotPresent"))
            name = _name(given.get("name"), context)
            container = engine.create(name, _configuration(image, given, context))
            cleanup = (given.get("lifetime") or {}).get("cleanup", "never")
            try:
                engine.start(container, stdin_of(given.get("stdin")))
                if not awaited:
                    return context.input
                code = engine.wait(container, limit_s)
                stdout, stderr = engine.logs(container)
                return process.outcome(process.Ended(code, stdout, stderr), given.get("return", "stdout"), f"container '{name}'")
            finally:
                if cleanup == "always" and awaited:
                    engine.remove(container)


@executor
class RemoveContainer:
    """`run.container_removal`: the end of a container whose lifetime is `eventually`."""

    type = "run.container_removal"

    def execute(self, context: StepContext) -> Any:
        process.allowed("RUN_CONTAINERS", "containers")
        with Engine() as engine:
            engine.remove(_name(context.parameter("name"), context))


def _name(given: Any, context: StepContext) -> str:
    text = str(given) if given else f"{context.workflow}-{context.instance_id}-{context.position.strip('/')}"
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", text)[:200]


def _configuration(image: str, given: dict[str, Any], context: StepContext) -> dict[str, Any]:
    ports = {f"{inner}/tcp" if "/" not in str(inner) else str(inner): outer for outer, inner in (given.get("ports") or {}).items()}
    command = given.get("command")
    arguments = arguments_of(given.get("arguments"))
    configured: dict[str, Any] = {
        "Image": image,
        "Env": [f"{key}={value}" for key, value in (given.get("environment") or {}).items()],
        "Labels": {"orchestrator.instance": context.instance_id, "orchestrator.position": context.position},
        "OpenStdin": bool(given.get("stdin")),
        "StdinOnce": bool(given.get("stdin")),
        "AttachStdin": bool(given.get("stdin")),
        "ExposedPorts": {port: {} for port in ports},
        "HostConfig": {
            "Binds": [f"{outer}:{inner}" for outer, inner in (given.get("volumes") or {}).items()],
            "PortBindings": {port: [{"HostPort": str(outer)}] for port, outer in ports.items()},
            "Memory": settings().run_memory_mb * 1024 * 1024,
            "NetworkMode": settings().container_network,
        },
    }
    if command:
        # The arguments are $1, $2 … of the command, or stand at its end, as those of a shell do.
        configured["Entrypoint"] = ["/bin/sh", "-c", with_arguments(command) if arguments else command, "sh"]
        configured["Cmd"] = arguments
    elif arguments:
        configured["Cmd"] = arguments
    return configured


class Engine:
    """The few calls of the Docker Engine API that are needed; Podman answers them, too."""

    def __init__(self) -> None:
        host = settings().container_host or environment.variable("DOCKER_HOST") or DEFAULT_HOST
        if host.startswith("unix://"):
            transport: httpx.HTTPTransport | None = httpx.HTTPTransport(uds=host.removeprefix("unix://"))
            base = "http://engine"
        else:
            transport = None
            base = re.sub(r"^tcp://", "http://", host)
        self.http = httpx.Client(transport=transport, base_url=base, timeout=60, trust_env=False)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def _call(self, method: str, path: str, *, good: tuple[int, ...] = (200, 201, 204, 304), **options: Any) -> httpx.Response:
        try:
            response = self.http.request(method, f"{API}{path}", **options)
        except httpx.TransportError as error:
            raise Problem("runtime", f"the container engine is not reached: {error}", retryable=True) from error
        if response.status_code not in good:
            try:
                said = response.json().get("message", "")
            except ValueError:
                said = response.text[:200]
            raise Problem("runtime", f"the container engine answered {response.status_code}: {said}")
        return response

    def pull(self, image: str, policy: str) -> None:
        if policy == "never":
            return
        if policy == "ifNotPresent" and self._call("GET", f"/images/{image}/json", good=(200, 404)).status_code == 200:
            return
        name, _, tag = image.rpartition(":") if ":" in image.rsplit("/", 1)[-1] else (image, "", "latest")
        answer = self._call("POST", "/images/create", params={"fromImage": name, "tag": tag}, timeout=settings().run_timeout_s)
        for line in answer.text.splitlines():
            if line.strip() and "error" in (said := json.loads(line)):
                raise Problem("runtime", f"image '{image}' could not be pulled: {said['error']}")

    def create(self, name: str, configuration: dict[str, Any]) -> str:
        response = self._call("POST", "/containers/create", good=(201, 409), params={"name": name}, json=configuration)
        if response.status_code == 409:
            return str(self._call("GET", f"/containers/{name}/json").json()["Id"])
        return str(response.json()["Id"])

    def start(self, container: str, stdin: str) -> None:
        self._call("POST", f"/containers/{container}/start")
        if stdin:
            self._call(
                "POST",
                f"/containers/{container}/attach",
                good=(101, 200),
                params={"stdin": "1", "stream": "1"},
                content=stdin.encode(),
            )

    def wait(self, container: str, limit_s: float) -> int:
        deadline = time.monotonic() + limit_s
        try:
            answer = self._call("POST", f"/containers/{container}/wait", timeout=max(1.0, deadline - time.monotonic()))
        except Problem:
            if time.monotonic() < deadline:
                raise
            self._call("POST", f"/containers/{container}/kill", good=(204, 404, 409))
            raise Problem("timeout", f"the container did not end within {limit_s:g} s; it was killed") from None
        return int(answer.json()["StatusCode"])

    def logs(self, container: str) -> tuple[str, str]:
        raw = self._call("GET", f"/containers/{container}/logs", params={"stdout": "1", "stderr": "1"}).content
        return _demultiplexed(raw)

    def remove(self, container: str) -> None:
        self._call("DELETE", f"/containers/{container}", good=(204, 404, 409), params={"force": "1", "v": "1"})


def _demultiplexed(raw: bytes) -> tuple[str, str]:
    """stdout and stderr come in one stream: frames of (kind, length, bytes)."""
    parts: dict[int, list[bytes]] = {1: [], 2: []}
    at = 0
    while at + 8 <= len(raw):
        kind, size = struct.unpack(">BxxxI", raw[at : at + 8])
        parts.setdefault(kind, []).append(raw[at + 8 : at + 8 + size])
        at += 8 + size
        if sum(map(len, parts[kind])) > process.MOST_OUTPUT:
            break
    return b"".join(parts[1]).decode(errors="replace"), b"".join(parts[2]).decode(errors="replace")
