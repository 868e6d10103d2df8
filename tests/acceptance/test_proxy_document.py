"""The orchestrator's document, from top to bottom, as its readers would follow it: publishers, commands, consumers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import redis
import redis.asyncio

from tests.planes import serial
from tests.site import Site
from tests.stack import Stack, until


def redis_cli(stack: Stack, *arguments: str) -> str:
    """As `redis-cli` prints it into a pipe."""
    return stack.cli("redis", *arguments).stdout


def test_the_publishers_of_the_document_as_they_are_written(site: Site) -> None:
    host = "doc.example.com"

    async def publish(act: Any) -> None:
        client = redis.asyncio.Redis.from_url(site.stack.redis_url, decode_responses=True)
        await act(client)
        await client.aclose()

    async def create_proxy(redis: Any) -> None:
        config = {"enable_http": True, "enable_https": False, "cert_name": None}
        # Save proxy config
        await redis.set(f"proxy:{host}", json.dumps(config))
        # Publish event
        await redis.xadd("events:workflow", {"event_type": "proxy_created", "hostname": host, "data": json.dumps(config)})

    async def certificate_ready(redis: Any) -> None:
        await redis.xadd("events:workflow", {"event_type": "certificate_ready", "hostname": host, "cert_name": "doc-cert"})

    asyncio.run(publish(create_proxy))
    until(lambda: site.plane.get(host).status_code == 200, 20)
    site.is_(host, "ACTIVE")
    made = site.certificates.issue("doc-cert", [host])
    asyncio.run(publish(certificate_ready))
    until(lambda: site.mode(host) == "fully_running", 15)
    assert serial(site.plane.https_port, host) == made.serial
    site.quiet()

    # The debug commands.
    assert redis_cli(site.stack, "XPENDING", "events:workflow", "workflow-group").split()[0] == "0"
    assert "orchestrator-1" in redis_cli(site.stack, "XINFO", "CONSUMERS", "events:workflow", "workflow-group")
    assert host in redis_cli(site.stack, "XRANGE", "events:workflow", "-", "+")
    assert redis_cli(site.stack, "GET", f"workflow:state:{host}") == "ACTIVE\n"
    assert redis_cli(site.stack, "SMEMBERS", "workflow:pending").strip() == ""
    info = redis_cli(site.stack, "HGETALL", "workflow:consumer:info")
    assert all(word in info for word in ("group", "consumer", "last_event_id", "last_event_time"))
    assert redis_cli(site.stack, "TYPE", "events:workflow").strip() == "stream"


@pytest.mark.parametrize("way", ["nested", "flat"])
def test_flat_and_nested_events_are_the_same(site: Site, way: str) -> None:
    host = f"{way}.example.com"
    if way == "nested":
        site.send("proxy_created", host, {"enable_http": False, "enable_https": False, "cert_name": None})
    else:
        site.send("proxy_created", host, enable_http="false", enable_https="False", cert_name="null")
    site.is_(host, "ACTIVE")
    held = site.proxies.find(host)
    assert (held.mode, held.data["wish"]) == ("stopped", {"enable_http": False, "enable_https": False, "cert_name": None})
