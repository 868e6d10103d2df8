"""One suite for every data plane: what answers, changes while it answers, and is gone when it is taken away."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest

from orchestrator.dev.ports import any_free
from orchestrator.proxies.certificates import CertificateStore
from orchestrator.proxies.plane import PortTaken, Proxy, RefusedByPlane, Route
from tests.planes import PASSES_S, Origin, Plane, caddy, caddy_program, caddy_version, gateway, is_open, serial
from tests.stack import until


@pytest.fixture(scope="module", params=["gateway", "caddy"])
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    if request.param == "caddy" and caddy_program() is None:
        pytest.skip("no caddy here, and no package of it")
    folder = tmp_path_factory.mktemp(request.param)
    with gateway(folder) if request.param == "gateway" else caddy(folder) as made:
        yield made


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> CertificateStore:
    return CertificateStore(tmp_path / "certificates")


def test_a_hostname_answers_by_host_and_at_its_own_port_and_no_other_does(plane: Plane, origin: Origin) -> None:
    own = any_free()
    plane.driver.apply(Proxy(hostname="a.example", target=origin.url, http_port=own))
    plane.driver.apply(Proxy(hostname="a.example", target=origin.url, http_port=own))
    answer = plane.get("a.example", "/x%2Fy?q=1&r=%20")
    assert (answer.status_code, answer.json()["path"]) == (200, "/x%2Fy?q=1&r=%20")
    headers = answer.json()["headers"]
    assert (headers["host"], headers["x-forwarded-proto"]) == ("a.example", "http")
    assert plane.get("whatever", port=own).json()["name"] == "origin"
    assert plane.get("b.example").text != answer.text
    assert "name" not in plane.get("b.example").text
    with plane.connection("A.Example:80") as client:
        assert client.post("/", content=b"x" * 3_000_000).json()["bytes"] == 3_000_000
    shown = plane.driver.show("a.example")
    assert shown is not None
    assert shown.target == origin.url
    plane.driver.remove("a.example", 5)
    plane.driver.remove("a.example", 5)
    assert plane.driver.show("a.example") is None
    until(lambda: not is_open(own), 10)


def test_without_a_target_it_says_that_it_is_served(plane: Plane) -> None:
    plane.driver.apply(Proxy(hostname="bare.example", headers={"x-one": "1"}))
    answer = plane.get("bare.example")
    assert (answer.status_code, answer.json()["hostname"], answer.headers["x-one"]) == (200, "bare.example", "1")
    plane.driver.remove("bare.example", 0)


def test_routes_lead_elsewhere_and_changes_are_seen_at_once(plane: Plane, origin: Origin) -> None:
    with Origin("other") as other:
        plane.driver.apply(Proxy(hostname="r.example", target=origin.url, routes=(Route("/api", other.url), Route("/api/v2", origin.url))))
        assert [plane.get("r.example", path).json()["name"] for path in ("/", "/api", "/api/x", "/apix", "/api/v2/y", "/api/v2x")] == [
            "origin", "other", "other", "origin", "origin", "other",
        ]  # fmt: skip
        plane.driver.apply(Proxy(hostname="r.example", target=other.url))
        until(lambda: plane.get("r.example", "/api/v2/y").json()["name"] == "other", _at_once(plane))
    assert plane.get("r.example").status_code == 502
    plane.driver.remove("r.example", 0)


def test_tls_is_told_apart_by_name_swapped_live_and_refused_without_a_certificate(
    plane: Plane, origin: Origin, store: CertificateStore
) -> None:
    own = any_free()
    with pytest.raises(RefusedByPlane, match="no certificate"):
        plane.driver.apply(Proxy(hostname="t.example", target=origin.url, https=True, certificate="nobody"))
    first, second = store.issue("t.example"), store.issue("u.example")
    for one in (first, second):
        plane.driver.put_certificate(one.name, one.chain, one.key)
    plane.driver.apply(Proxy(hostname="t.example", target=origin.url, https=True, certificate="t.example", https_port=own))
    plane.driver.apply(Proxy(hostname="u.example", target=origin.url, http=False, https=True, certificate="u.example"))
    assert plane.serial("t.example") == first.serial
    assert plane.serial("u.example") == second.serial
    assert plane.serial(None, port=own) == first.serial
    status, said = plane.https("t.example", "/p")
    assert (status, said["headers"]["x-forwarded-proto"]) == (200, "https")
    assert "name" not in plane.get("u.example").text
    third = store.issue("t.example")
    plane.driver.put_certificate(third.name, third.chain, third.key)
    until(lambda: plane.serial("t.example") == third.serial, 5)
    until(lambda: plane.serial(None, port=own) == third.serial, 5)
    assert plane.serial("u.example") == second.serial
    plane.driver.remove("t.example", 0)
    plane.driver.remove("u.example", 0)
    plane.driver.drop_certificate("t.example")
    with pytest.raises(ssl.SSLError):
        serial(plane.https_port, "t.example")


def test_answers_pass_unchanged_whatever_they_are(plane: Plane, origin: Origin) -> None:
    plane.driver.apply(Proxy(hostname="w.example", target=origin.url))
    with plane.connection("w.example") as client:
        assert client.head("/x").status_code == 200
        assert client.get("/status/204").status_code == 204
        assert client.get("/status/304").status_code == 304
        moved = client.get("/status/302")
        assert (moved.status_code, moved.headers["location"]) == (302, "/elsewhere")
        several = client.get("/cookies")
        assert [value for key, value in several.headers.multi_items() if key == "set-cookie"] == ["a=1", "b=2"]
        zipped = client.get("/zipped", headers={"accept-encoding": "gzip"})
        assert (zipped.headers["content-encoding"], zipped.text) == ("gzip", "x" * 10_000)
        chunked = client.post("/", content=(b"y" * 1000 for _ in range(50)))
        assert chunked.json()["bytes"] == 50_000
        assert (
            client.get("/", headers={"connection": "x-secret", "x-secret": "1", "x-forwarded-for": "6.6.6.6"})
            .json()["headers"]
            .get("x-secret")
            is None
        )
        assert client.delete("/thing").json()["method"] == "DELETE"
        assert client.get("/status/500").status_code == 500
        with pytest.raises(httpx.HTTPError):
            client.get("/cut")
    plane.driver.remove("w.example", 0)


def test_streams_pass_as_they_come_and_websockets_both_ways(plane: Plane, origin: Origin) -> None:
    plane.driver.apply(Proxy(hostname="s.example", target=origin.url))
    arrived: list[float] = []
    with plane.connection("s.example") as client, client.stream("GET", "/drip") as answer:
        arrived += [time.monotonic() for _ in answer.iter_lines()]
    assert len(arrived) == 5
    assert arrived[-1] - arrived[0] > 0.4

    async def talk() -> list[str]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{plane.http_port}/socket", headers={"host": "s.example"}, protocols=("chat",)) as ws,
        ):
            assert ws.protocol == "chat"
            said = []
            for word in ("one", "two"):
                await ws.send_str(word)
                said.append(await ws.receive_str())
            return said

    assert plane.calmly(lambda: asyncio.run(talk())) == ["origin: one", "origin: two"]
    plane.driver.remove("s.example", 0)


def test_what_is_under_way_ends_when_a_hostname_goes(plane: Plane, origin: Origin) -> None:
    if plane.kind == "caddy" and caddy_version().startswith("2.6"):
        pytest.skip("Caddy 2.6 cuts requests to targets that are under way at every change of its configuration")
    own = any_free()
    plane.driver.apply(Proxy(hostname="d.example", target=origin.url, http_port=own))
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(plane.get("d.example", "/slow?s=1.5", port=own).status_code))
    slow.start()
    time.sleep(0.4)
    plane.driver.remove("d.example", 10)
    assert "name" not in plane.get("d.example").text
    slow.join()
    assert answers == [200]
    until(lambda: not is_open(own), 10)


def test_a_port_that_another_program_has_is_told_and_nothing_is_changed(plane: Plane, origin: Origin) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            plane.driver.apply(Proxy(hostname="p.example", target=origin.url, http_port=port))
        assert caught.value.port == port
    assert plane.driver.show("p.example") is None
    assert "p.example" not in plane.driver.hostnames()


def test_others_are_not_disturbed_by_changes(plane: Plane, origin: Origin, store: CertificateStore) -> None:
    """While hostnames come, get certificates, and go."""
    if plane.kind == "caddy" and caddy_version().startswith("2.6"):
        pytest.skip("Caddy 2.6 hands its listeners over at every change, and resets connections that are just being accepted")
    plane.driver.apply(Proxy(hostname="steady.example", target=origin.url))
    stop = threading.Event()
    failed: list[str] = []
    served = [0]

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = plane.get("steady.example")
                if answer.status_code != 200:
                    failed.append(str(answer.status_code))
            except httpx.HTTPError as error:
                failed.append(repr(error))
            served[0] += 1
            time.sleep(0.02)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(30):
        name = f"n{n}.example"
        plane.driver.apply(Proxy(hostname=name, target=origin.url, http_port=any_free()))
        made = store.issue(name)
        plane.driver.put_certificate(made.name, made.chain, made.key)
        plane.driver.apply(Proxy(hostname=name, target=origin.url, https=True, certificate=name))
        plane.driver.remove(name, 0)
        plane.driver.drop_certificate(name)
    stop.set()
    for thread in threads:
        thread.join()
    assert served[0] > 5
    assert failed == []
    plane.driver.remove("steady.example", 0)


def _at_once(plane: Plane) -> float:
    """Caddy's servers of before may answer once more."""
    return 0 if plane.kind == "gateway" else PASSES_S


# ── the gateway alone ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_gateway_serves_again_what_it_served_before(origin: Origin, store: CertificateStore, tmp_path: Path) -> None:
    made = store.issue("k.example")
    with gateway(tmp_path) as first:
        first.driver.put_certificate(made.name, made.chain, made.key)
        first.driver.apply(Proxy(hostname="k.example", target=origin.url, https=True, certificate="k.example"))
        first.process.terminate()
        assert first.process.wait(15) == 0
    with gateway(tmp_path) as second:
        assert second.driver.hostnames() == ["k.example"]
        assert serial(second.https_port, "k.example") == made.serial
    assert (tmp_path / "gateway.json").stat().st_mode & 0o077 == 0


def test_a_port_that_somebody_took_meanwhile_is_one_hosts_trouble(origin: Origin, tmp_path: Path) -> None:
    own, other = any_free(), any_free()
    with gateway(tmp_path) as first:
        first.driver.apply(Proxy(hostname="robbed.example", target=origin.url, http_port=own))
        first.driver.apply(Proxy(hostname="fine.example", target=origin.url, http_port=other))
        first.process.terminate()
        first.process.wait(15)
    with socket.create_server(("127.0.0.1", own)), gateway(tmp_path) as second:
        assert second.get("robbed.example").status_code == 200
        assert second.get("fine.example", port=other).status_code == 200
        with pytest.raises(PortTaken):
            second.driver.apply(Proxy(hostname="robbed.example", target=origin.url, http_port=own))
        # Nothing of a change that failed is left: not of a host that is there, not of a new one.
        with pytest.raises(PortTaken):
            second.driver.apply(Proxy(hostname="new.example", target=origin.url, http_port=own))
        assert sorted(second.driver.hostnames()) == ["fine.example", "robbed.example"]
        assert second.get("robbed.example").status_code == 200


def test_the_gateways_admin_api_lets_no_stranger_in(plane: Plane) -> None:
    if plane.kind != "gateway":
        pytest.skip("Caddy's is its own")
    url = plane.environment["GATEWAY_ADMIN_URL"]
    good = {"authorization": "Bearer t0ken"}
    assert httpx.get(f"{url}/hosts", trust_env=False).status_code == 401
    assert httpx.get(f"{url}/hosts", headers={**good, "origin": "http://evil"}, trust_env=False).status_code == 403
    for name, body in {
        "a b": {},
        "x.example": {"target": "file:///etc/passwd"},
        "y.example": {"routes": [1]},
        "z.example": [],
    }.items():
        assert httpx.put(f"{url}/hosts/{name}", json=body, headers=good, trust_env=False).status_code == 400
    assert httpx.put(f"{url}/certificates/x", json={"chain": "no", "key": "no"}, headers=good, trust_env=False).status_code == 400
    plane.driver.apply(Proxy(hostname="m.example", target="http://169.254.169.254"))
    assert plane.get("m.example").status_code == 502
    plane.driver.remove("m.example", 0)


@pytest.mark.slow
def test_two_hundred_hostnames_come_and_go_and_leave_nothing(plane: Plane, origin: Origin, store: CertificateStore) -> None:
    if plane.kind != "gateway":
        pytest.skip("Caddy's memory is its own")
    url, good = plane.environment["GATEWAY_ADMIN_URL"], {"authorization": "Bearer t0ken"}
    made = store.issue("cycle.example")

    def cycle(count: int) -> None:
        for _ in range(count):
            port, tls = any_free(), any_free()
            plane.driver.put_certificate("cycle.example", made.chain, made.key)
            plane.driver.apply(
                Proxy(hostname="cycle.example", target=origin.url, https=True, certificate="cycle.example", http_port=port, https_port=tls)
            )
            assert plane.get("cycle.example", port=port).status_code == 200
            assert serial(tls, "cycle.example") == made.serial
            plane.driver.remove("cycle.example", 5)
            plane.driver.drop_certificate("cycle.example")
            assert not is_open(port)
            assert not is_open(tls)

    cycle(20)
    before = httpx.get(f"{url}/health", headers=good, trust_env=False).json()
    cycle(200)
    until(lambda: httpx.get(f"{url}/health", headers=good, trust_env=False).json()["descriptors"] <= before["descriptors"] + 3, 10)
    after = httpx.get(f"{url}/health", headers=good, trust_env=False).json()
    assert after["hosts"] == before["hosts"]
    assert after["certificates"] == before["certificates"]
    assert after["memory_mb"] < before["memory_mb"] + 15
