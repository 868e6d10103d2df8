"""Proxies while workers, bridges and the gateway are killed; and two hundred lives that leave nothing behind."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.dev.servers import Postgres, Redis
from tests import commands
from tests.chaos.crowd import LONG, QUICK, report, trouble
from tests.conftest import fresh_database
from tests.planes import Origin, gateway, is_open, own_ports, serial
from tests.site import Site
from tests.stack import Stack, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900 if LONG else 240)]


@pytest.fixture
def site(postgres: Postgres, redis_server: Redis, tmp_path: Path) -> Iterator[Site]:
    with gateway(tmp_path) as plane, Origin() as origin:
        stack = Stack(fresh_database(postgres), redis_server, tmp_path, workflows="orchestrator.workflows")
        stack.environment.update(
            plane.environment
            | own_ports()
            | QUICK
            | {
                "CERTIFICATES_DIR": str(tmp_path / "certificates"),
                "PROXY_DRAIN": "5s",
                "WORKER_STREAM_BLOCK": "200ms",
                "TRIGGER_QUEUE": "",
            }
        )
        stack.worker(concurrency=4)
        yield Site(stack, plane, origin, tmp_path)
        stack.stop()


def test_proxies_come_and_change_and_go_while_everything_is_killed(site: Site) -> None:
    hosts = [f"k{n}.example.com" for n in range(40 if LONG else 12)]
    rounds = 6 if LONG else 3
    for name in hosts:
        site.certificates.issue(name)
    log = (site.stack.folder / "bridges.log").open("ab")

    def start() -> commands.Process:
        return commands.start(["orchestrator", "bridge"], site.stack.variables(), log)

    bridges = [start(), start()]
    killed = {"children": 0, "bridges": 0}

    def kill() -> None:
        if random.random() < 0.6:
            children = site.stack.workers[0].children()
            if children:
                os.kill(random.choice(children), signal.SIGKILL)
                killed["children"] += 1
        else:
            victim = random.randrange(2)
            bridges[victim].kill()
            bridges[victim].wait()
            bridges[victim] = start()
            killed["bridges"] += 1

    begun = time.monotonic()
    try:
        with trouble(kill, (0.7, 1.5)):
            for _ in range(rounds):
                for name in hosts:
                    site.create(name)
                for name in hosts:
                    site.send("certificate_ready", name, cert_name=name)
                for turn in range(3):
                    for name in hosts:
                        site.send("proxy_updated", name, {"headers": {"x-turn": str(turn)}})
                for name in hosts:
                    site.send("proxy_deleted", name)
            for name in hosts[::2]:
                site.create(name, enable_https=True)
            until(
                lambda: all(site.state(name) == ("ACTIVE" if i % 2 == 0 else "DELETED") for i, name in enumerate(hosts)),
                600 if LONG else 150,
                str({name: site.state(name) for name in hosts}),
            )
        site.quiet(60)
    finally:
        for process in bridges:
            process.terminate()
            process.wait(40)
        log.close()
    one_life = ["PENDING", "CREATING", "ACTIVE", *["UPDATING", "ACTIVE"] * 4, "DELETING", "DELETED"]
    for i, name in enumerate(hosts):
        expected = one_life * rounds + (["PENDING", "CREATING", "ACTIVE"] if i % 2 == 0 else [])
        assert site.history(name) == expected, (name, site.history(name))
    assert sorted(site.plane.driver.hostnames()) == sorted(hosts[::2])
    for name in hosts[::2]:
        assert serial(site.plane.https_port, name) == site.certificates.get(name).serial
    assert site.redis.xlen("events:workflow:dlq") == 0
    assert site.redis.smembers("workflow:pending") == set()
    ports = [port for one in site.proxies.all() if one.state == "ACTIVE" for port in one.data["ports"].values()]
    assert len(ports) == len(set(ports))
    report("proxies while all is killed", hosts=len(hosts), lives=rounds * len(hosts), took_s=time.monotonic() - begun, **killed)


def test_lives_of_proxies_leave_nothing_behind(site: Site) -> None:
    """No port, descriptor, key or memory: in the gateway, the worker, the bridge."""
    name = "again.example.com"
    site.certificates.issue(name)

    def live(count: int) -> None:
        for _ in range(count):
            site.create(name, enable_https=True)
            site.send("proxy_updated", name, {"headers": {"x": "1"}})
            site.send("proxy_deleted", name)
            lives[0] += 1
            until(lambda: len(site.history(name)) >= 7 * min(lives[0], 28) and site.state(name) == "DELETED", 20)

    lives = [0]
    with site.stack.bridge() as process:
        live(20)
        pids = [site.plane.process.pid, process.pid, site.stack.workers[0].pid, *site.stack.workers[0].children()]
        before = {pid: _holds(pid) for pid in pids}
        live(200 if LONG else 40)
        site.quiet()
        after = {pid: _holds(pid) for pid in pids}
        assert set(site.stack.workers[0].children()) == set(pids[3:])
    # A child that had nothing to do before opens its connections once: children are seen by the one that holds most.
    children = pids[3:]
    grown = {pid: (after[pid][0] - before[pid][0], after[pid][1] - before[pid][1]) for pid in pids[:3]}
    grown[children[0]] = (
        max(after[pid][0] for pid in children) - max(before[pid][0] for pid in children),
        max(after[pid][1] for pid in children) - max(before[pid][1] for pid in children),
    )
    assert all(descriptors <= 3 for descriptors, _ in grown.values()), str(grown)
    assert all(memory < 10 for _, memory in grown.values()), str(grown)
    keys = sorted(key for key in site.redis.keys("*again.example.com*"))
    assert keys == [f"workflow:state:{name}"]
    assert site.proxies.find(name).data == {}
    assert site.plane.driver.hostnames() == []
    assert not any(is_open(int(port)) for port in own_ports().values())
    assert json.loads((site.stack.folder / "gateway.json").read_text()) == {"hosts": [], "certificates": {}}
    most: Any = max(grown.values(), key=lambda one: one[1])
    report("lives of proxies", lives=lives[0], descriptors=max(d for d, _ in grown.values()), memory_mb=most[1])


def _holds(pid: int) -> tuple[int, float]:
    process = psutil.Process(pid)
    return process.num_fds(), process.memory_info().rss / 2**20
