"""The same life of a proxy, over the other data plane."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.planes import Origin, caddy, caddy_program, is_open, own_ports
from tests.site import Site
from tests.stack import Stack, until


def calmly(act: Callable[[], Any]) -> Any:
    """Caddy may reset a connection while it takes a change, and answers 502 with nothing for what was under way."""
    with contextlib.suppress(httpx.HTTPError, OSError, json.JSONDecodeError):
        return act()
    return None


def test_a_whole_life_over_caddy(postgres: Postgres, redis_server: Redis, tmp_path: Path) -> None:
    if caddy_program() is None:
        pytest.skip("no caddy here, and no package of it")
    name = "caddy.example.com"
    with caddy(tmp_path) as plane, Origin() as origin, Origin("second") as second:
        stack = Stack(fresh_database(postgres), redis_server, tmp_path, workflows="orchestrator.workflows")
        stack.environment.update(
            plane.environment | own_ports() | {"CERTIFICATES_DIR": str(tmp_path / "certificates"), "PROXY_DRAIN": "2s"}
        )
        try:
            stack.worker()
            with stack.bridge(WORKER_STREAM_BLOCK="200ms"):
                site = Site(stack, plane, origin, tmp_path)
                site.create(name)
                site.is_(name, "ACTIVE")
                until(lambda: calmly(lambda: plane.get(name).json()["name"]) == "origin", 10)
                made = site.certificates.issue(name)
                site.send("certificate_ready", name, cert_name=name)
                until(lambda: site.mode(name) == "fully_running", 20)
                until(lambda: calmly(lambda: plane.serial(name)) == made.serial, 10)
                renewed = site.certificates.renew(name)
                site.send("certificate_ready", name, cert_name=name, is_renewal="true")
                site.send("proxy_updated", name, {"changes": {"target": second.url}})
                until(lambda: calmly(lambda: plane.get(name).json()["name"]) == "second", 10)
                until(lambda: calmly(lambda: plane.serial(name)) == renewed.serial, 10)
                ports = site.proxies.find(name).data["ports"]
                site.send("proxy_deleted", name)
                site.is_(name, "DELETED")
                until(lambda: not any(is_open(port) for port in ports.values()), 10)
                assert plane.driver.hostnames() == []
        finally:
            stack.stop()
