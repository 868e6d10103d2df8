"""Proxies from event to answer, over a real data plane with real TLS: each event, state, key and failure."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest

from orchestrator.api import create_app
from orchestrator.dev.ports import any_free
from orchestrator.proxies.reconcile import reconcile
from tests.planes import Origin, https, is_open, own_ports, serial
from tests.site import GROUP, STREAM, Site
from tests.stack import until


def test_the_sample_event_of_the_document_is_served(site: Site) -> None:
    pids = [site.plane.process.pid, *(worker.pid for worker in site.stack.workers)]
    sample = {"enable_http": True, "enable_https": False, "cert_name": None}
    site.send("proxy_created", "api.example.com", sample, timestamp="2024-01-15T10:00:00Z")
    until(lambda: site.plane.get("api.example.com").status_code == 200, 20)
    site.is_("api.example.com", "ACTIVE")
    site.quiet()
    assert site.history("api.example.com") == ["PENDING", "CREATING", "ACTIVE"]
    assert site.redis.smembers("workflow:pending") == set()
    assert pids == [site.plane.process.pid, *(worker.pid for worker in site.stack.workers)]
    assert site.redis.xpending(STREAM, GROUP)["pending"] == 0
    assert "orchestrator-1" in [c["name"] for c in site.redis.xinfo_consumers(STREAM, GROUP)]
    assert site.redis.hgetall("workflow:consumer:info")["group"] == GROUP


def test_a_whole_life_over_http_https_renewal_changes_and_deletion(site: Site) -> None:
    name = "life.example.com"
    site.create(name)
    site.is_(name, "ACTIVE")
    first = site.proxies.find(name)
    assert site.plane.get(name, port=first.data["ports"]["http"]).json()["name"] == "origin"
    with pytest.raises(OSError):
        serial(site.plane.https_port, name)
    made = site.certificates.issue(name)
    site.send("certificate_ready", name, cert_name=name)
    until(lambda: site.mode(name) == "fully_running", 20)
    assert serial(site.plane.https_port, name) == made.serial
    assert https(site.plane.https_port, name)[0] == 200
    renewed = site.certificates.renew(name)
    site.send("certificate_ready", name, cert_name=name, is_renewal="true")
    until(lambda: serial(site.plane.https_port, name) == renewed.serial, 10)
    with Origin("second") as second:
        site.send("proxy_updated", name, {"changes": {"target": second.url, "headers": {"x-new": "1"}}})
        until(lambda: site.plane.get(name).json()["name"] == "second", 10)
        assert site.plane.get(name).headers["x-new"] == "1"
        site.send(
            "route_changed",
            name,
            {"route_id": "r", "action": "created", "routes": [{"id": "r", "path": "/old", "target": site.origin.url}]},
        )
        until(lambda: site.plane.get(name, "/old/x").json()["name"] == "origin", 10)
    site.quiet()
    now = site.proxies.find(name)
    assert (now.id, now.created_at) == (first.id, first.created_at)
    assert serial(site.plane.https_port, name) == renewed.serial
    site.send("proxy_deleted", name)
    site.is_(name, "DELETED")
    assert not is_open(first.data["ports"]["http"])
    assert site.plane.get(name).status_code == 404
    assert site.history(name) == ["PENDING", "CREATING", *["ACTIVE", "UPDATING"] * 4, "ACTIVE", "DELETING", "DELETED"]
    site.send("proxy_updated", name, {"enable_http": False})
    site.quiet()
    assert site.state(name) == "DELETED"
    assert "is DELETED and cannot be changed" in site.letters(name)[0]
    site.create(name)
    site.is_(name, "ACTIVE")
    assert site.proxies.find(name).id != first.id
    assert site.history(name)[-3:] == ["PENDING", "CREATING", "ACTIVE"]


def test_flags_decide_what_is_served(site: Site) -> None:
    site.create("no-http.example.com", enable_http="false")
    site.create("waits.example.com", enable_https=True)
    site.certificates.issue("ready.example.com")
    site.create("ready.example.com", enable_https=True)
    for name in ("no-http.example.com", "waits.example.com", "ready.example.com"):
        site.is_(name, "ACTIVE")
    modes = {n: site.proxies.find(f"{n}.example.com").mode for n in ("no-http", "waits", "ready")}
    assert modes == {"no-http": "stopped", "waits": "http_only", "ready": "fully_running"}
    assert site.plane.get("no-http.example.com").status_code == 404
    assert not is_open(site.proxies.find("no-http.example.com").data["ports"]["http"])
    assert https(site.plane.https_port, "ready.example.com")[0] == 200


def test_one_event_upgrades_several_hosts_and_an_early_one_is_not_lost(site: Site) -> None:
    names = ["d1.example.com", "d2.example.com"]
    for name in names:
        site.create(name)
    made = site.certificates.issue("both", names)
    site.send("certificate_ready", names[0], cert_name="both", domains=json.dumps(names))
    for name in names:
        until(lambda name=name: site.mode(name) == "fully_running", 20)  # type: ignore[misc]
        assert serial(site.plane.https_port, name) == made.serial
    early = "early.example.com"
    site.certificates.issue(early)
    site.send("certificate_ready", early, cert_name=early)
    site.create(early)
    until(lambda: site.state(early) == "ACTIVE", 20)
    assert site.proxies.find(early).mode == "fully_running"


def test_what_cannot_be_done_is_tried_thrice_told_and_can_be_replayed(site: Site) -> None:
    name = "later.example.com"
    entry = site.send("proxy_updated", "nobody.example.com", {"headers": {}})
    site.create(name)
    site.is_(name, "ACTIVE")
    begun = time.monotonic()
    site.send("certificate_ready", name, cert_name="not-there")
    until(lambda: site.letters(name), 20)
    assert time.monotonic() - begun > 2.9
    assert "not-there" in site.letters(name)[0]
    site.is_(name, "ACTIVE")
    assert site.proxies.find(name).mode == "http_only"
    assert site.plane.get(name).status_code == 200
    until(lambda: site.letters("nobody.example.com"), 10)
    failure = site.redis.hgetall(f"workflow:failures:{entry}")
    assert "instance not found" in failure["reason"]
    assert failure["attempts"] == "3"
    site.quiet()
    # The fault is removed, the event is replayed: it succeeds, and its letter is gone.
    site.certificates.issue("not-there", [name])
    [dead] = [e for e in site.stack.runner.events(_dead()) if e["key"] == f"default/{name}"]
    client = create_app(site.stack.runner).test_client()
    assert client.post(f"/workflow/events/{dead['number']}/replay").get_json() == {"replayed": [dead["number"]]}
    until(lambda: site.mode(name) == "fully_running", 10)
    assert site.letters(name) == []


def _dead() -> Any:
    from orchestrator.store.events import EventFilter

    return EventFilter(state="dead", limit=1000)


def test_events_that_say_too_little_are_put_aside_at_once_with_their_reason(site: Site) -> None:
    ids = [
        site.send("proxy_created", None, {"enable_http": True}),
        site.send("proxy_created", "not a host", {}),
        site.send("bogus", "x.example.com"),
    ]
    site.quiet(10)
    reasons = {fields["original_id"]: fields["reason"] for _, fields in site.redis.xrange(f"{STREAM}:dlq")}
    assert "hostname" in reasons[ids[0]]
    assert "not a host" in reasons[ids[1]]
    assert ids[2] not in reasons


def test_the_same_creation_twice_is_one_instance(site: Site) -> None:
    name = "twice.example.com"
    for _ in range(3):
        site.create(name)
    site.is_(name, "ACTIVE")
    site.quiet()
    assert site.history(name) == ["PENDING", "CREATING", "ACTIVE"]


def test_order_per_hostname_through_two_bridges(site: Site) -> None:
    names = [f"o{n}.example.com" for n in range(6)]
    with site.stack.bridge():
        for name in names:
            site.create(name)
        for turn in range(8):
            for name in names:
                site.send("proxy_updated", name, {"headers": {"x-turn": str(turn)}})
        for name in names[:-1]:
            site.send("proxy_deleted", name)
        for name in names[:-1]:
            site.is_(name, "DELETED", 60)
        site.quiet(60)
    for name in names[:-1]:
        assert site.history(name) == ["PENDING", "CREATING", "ACTIVE", *["UPDATING", "ACTIVE"] * 8, "DELETING", "DELETED"]
    assert site.plane.get(names[-1]).headers["x-turn"] == "7"


def test_a_request_under_way_survives_the_deletion(site: Site) -> None:
    name = "slow.example.com"
    site.create(name)
    site.is_(name, "ACTIVE")
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(site.plane.get(name, "/slow?s=2").status_code))
    slow.start()
    time.sleep(0.3)
    site.send("proxy_deleted", name)
    site.is_(name, "DELETING", 5)
    assert site.redis.sismember("workflow:pending", name)
    assert site.plane.get(name).status_code == 404
    site.is_(name, "DELETED")
    slow.join()
    assert answers == [200]
    until(lambda: not site.redis.sismember("workflow:pending", name), 5)


def test_a_port_that_is_taken_is_passed_over(site: Site) -> None:
    import socket

    used = {port for one in site.proxies.all() for port in (one.data.get("ports") or {}).values()}
    first = int(own_ports()["PROXY_HTTP_PORTS"])
    lowest = next(port for port in range(first, first + 80) if port not in used)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", lowest))
        taken.listen()
        site.create("port.example.com")
        site.is_("port.example.com", "ACTIVE")
    assert site.proxies.find("port.example.com").data["ports"]["http"] > lowest


def test_other_hosts_feel_nothing(site: Site) -> None:
    """50 requests a second through upgrades, updates, renewals and deletions of others: none fails."""
    site.create("calm.example.com")
    site.is_("calm.example.com", "ACTIVE")
    stop = threading.Event()
    failed: list[str] = []
    served = [0]

    def ask(number: int) -> None:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{site.plane.http_port}", headers={"host": "calm.example.com"}, trust_env=False
        ) as client:
            due = time.monotonic() + number * 0.004
            while not stop.is_set():
                try:
                    if (answer := client.get("/")).status_code != 200:
                        failed.append(str(answer.status_code))
                except httpx.HTTPError as error:
                    failed.append(repr(error))
                served[0] += 1
                due += 0.1
                time.sleep(max(0.0, due - time.monotonic()))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for n in range(4):
        before = served[0]
        name = f"busy{n}.example.com"
        site.create(name)
        site.certificates.issue(name)
        site.send("certificate_ready", name, cert_name=name)
        site.send("proxy_updated", name, {"headers": {"x": "1"}})
        until(lambda name=name: site.mode(name) == "fully_running", 20)  # type: ignore[misc]
        site.certificates.renew(name)
        site.send("certificate_ready", name, cert_name=name, is_renewal="true")
        site.send("proxy_deleted", name)
        site.is_(name, "DELETED")
        assert served[0] > before, "it was asked all the while"
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []


def test_the_application_stores_and_publishes_and_the_rest_follows(site: Site) -> None:
    client = create_app(site.stack.runner).test_client()
    name = "app.example.com"
    assert client.post("/api/proxies", json={"hostname": name, "target": site.origin.url}).status_code == 201
    assert json.loads(site.redis.get(f"proxy:{name}"))["target"] == site.origin.url
    site.is_(name, "ACTIVE")
    assert client.patch(f"/api/proxies/{name}", json={"headers": {"x-by": "api"}}).status_code == 200
    until(lambda: site.plane.get(name).headers.get("x-by") == "api", 10)
    route = {"id": "r1", "path": "/r", "target": site.origin.url}
    assert client.post(f"/api/proxies/{name}/routes", json=route).status_code == 201
    assert client.delete(f"/api/proxies/{name}/routes/r1").status_code == 200
    shown = client.get(f"/workflow/proxies/{name}").get_json()
    assert (shown["state"] in ("ACTIVE", "UPDATING"), shown["config"]["target"]) == (True, site.origin.url)
    assert client.delete(f"/api/proxies/{name}").status_code == 200
    site.is_(name, "DELETED")
    events = [fields["event_type"] for _, fields in site.redis.xrange(STREAM) if fields.get("hostname") == name]
    assert events == ["proxy_created", "proxy_updated", "route_changed", "route_changed", "proxy_deleted"]
    assert all(fields["timestamp"].endswith("Z") for _, fields in site.redis.xrange(STREAM) if fields.get("hostname") == name)
    bad = client.post("/api/proxies", json={"hostname": "no host", "target": 1})
    assert (bad.status_code, bad.get_json()["code"]) == (400, "invalid")
    faults = client.post(
        "/api/proxies", json={"hostname": "a.b", "target": "ftp://x", "enable_http": "yes", "headers": {"x": "a\nb"}, "typo": 1}
    )
    assert {fault["place"] for fault in faults.get_json()["faults"]} == {"target", "enable_http", "headers", "typo"}
    assert client.get("/api/proxies/nobody.example").status_code == 404


def test_nothing_is_created_but_by_events_and_reconciliation_only_publishes(site: Site) -> None:
    site.redis.set("proxy:lost.example.com", json.dumps({"target": site.origin.url, "enable_http": True}))
    site.redis.set("proxy:localhost", json.dumps({"target": site.origin.url}))
    time.sleep(1)
    assert site.state("lost.example.com") is None
    published = reconcile(site.application, site.proxies)
    assert published["lost.example.com"] == "proxy_created"
    assert "localhost" not in published
    site.is_("lost.example.com", "ACTIVE")
    # What waits for ever, and what could have HTTPS by now.
    name = "lost.example.com"
    before = len(site.history(name))
    site.stack.sql("update resources set state = 'PENDING', changed_at = now() - interval '299 seconds' where name = %s returning 1", name)
    assert name not in reconcile(site.application, site.proxies)
    site.stack.sql("update resources set state = 'PENDING', changed_at = now() - interval '301 seconds' where name = %s returning 1", name)
    assert reconcile(site.application, site.proxies)[name] == "proxy_created"
    until(lambda: site.history(name)[before:] == ["CREATING", "ACTIVE"], 20)
    site.redis.set(f"proxy:{name}", json.dumps({"target": site.origin.url, "enable_http": True, "enable_https": True}))
    assert name not in reconcile(site.application, site.proxies)
    certificate = site.certificates.issue(name)
    assert reconcile(site.application, site.proxies)[name] == "certificate_ready"
    until(lambda: site.mode(name) == "fully_running", 20)
    assert serial(site.plane.https_port, name) == certificate.serial
    # By itself, when it is asked to.
    site.redis.set("proxy:lost2.example.com", json.dumps({"target": site.origin.url, "enable_http": True}))
    with site.stack.bridge(RECONCILE_EVERY="500ms"):
        site.is_("lost2.example.com", "ACTIVE")
    site.redis.delete("proxy:lost2.example.com")
    site.redis.delete("proxy:lost.example.com", "proxy:localhost")


def test_a_port_that_another_program_took_is_changed_and_told(site: Site) -> None:
    name = "moved.example.com"
    site.create(name)
    site.is_(name, "ACTIVE")
    had = site.proxies.find(name).data["ports"]
    site.proxies.allocate_ports(name, (had["http"],))
    site.send("proxy_updated", name, {"changes": {"headers": {"x-moved": "yes"}}})

    def told() -> list[Any]:
        entries = [fields for _, fields in site.redis.xrange("events:bus") if fields["type"] == "port_changed"]
        return [json.loads(fields["data"]) for fields in entries if fields["subject"] == name]

    [said] = until(told, 20)
    ports = site.proxies.find(name).data["ports"]
    assert said == {"hostname": name, "ports": ports, "before": had}
    assert ports["http"] != had["http"]
    until(lambda: is_open(ports["http"]) and not is_open(had["http"]), 20)


def test_the_keys_are_made_again_when_redis_was_emptied(site: Site) -> None:
    site.create("kept.example.com")
    site.is_("kept.example.com", "ACTIVE")
    site.quiet()
    before = {one.name: one.state for one in site.proxies.all()}
    site.redis.flushall()
    until(lambda: {name: site.state(name) for name in before} == before, 15)
    # Of what is left when a part was lost, only what is true stays.
    site.redis.sadd("workflow:pending", "nobody.example.com")
    site.redis.delete("workflow:state")
    until(lambda: site.redis.exists("workflow:state"), 15)
    assert "nobody.example.com" not in site.redis.smembers("workflow:pending")
    site.create("after.example.com")
    site.is_("after.example.com", "ACTIVE", 20)


def test_cycles_leave_no_port_key_or_certificate(site: Site) -> None:
    name = "cycle.example.com"
    certificate = site.certificates.issue(name)
    for _ in range(10):
        site.create(name, enable_https=True)
        until(lambda: site.state(name) == "ACTIVE" and site.proxies.find(name).state == "ACTIVE", 10)
        assert serial(site.plane.https_port, name) == certificate.serial
        ports = site.proxies.find(name).data["ports"]
        site.send("proxy_deleted", name)
        site.is_(name, "DELETED")
    assert site.proxies.find(name).data == {}
    assert not any(is_open(port) for port in ports.values())
    assert name not in site.plane.driver.hostnames()
    assert any_free()
