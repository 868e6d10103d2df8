"""Events of proxies that ask for what cannot be, or come too early; and answers that come too late."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from orchestrator.proxies.plane import PlaneAway
from tests.acceptance.conftest import site  # noqa: F401  # a fixture
from tests.proofs.system import create_app
from tests.site import Site
from tests.stack import Stack, until

BAD: tuple[dict[str, Any], ...] = (
    {"enable_http": "maybe"},
    {"target": 5},
    {"routes": "x"},
    {"cert_name": {"a": 1}, "enable_https": True},
    {"target": "http://[::1"},
)


@pytest.mark.proves(9)
@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_creation_fails_with_its_reason_and_a_good_event_is_taken(site: Site, number: int) -> None:  # noqa: F811
    hostname = f"bad{number}.example.com"
    site.send("proxy_created", hostname, {"target": site.origin.url, **BAD[number]})
    until(lambda: site.state(hostname) == "FAILED", 30)
    assert next(iter(BAD[number])) in json.dumps(site.proxies.find(hostname).error)

    site.send("proxy_updated", hostname, {"target": site.origin.url, "enable_http": True, "enable_https": False, "routes": []})
    until(lambda: site.state(hostname) == "ACTIVE", 30)
    assert site.plane.get(hostname).status_code == 200


@pytest.mark.proves(9)
def test_a_bad_change_leaves_the_proxy_as_it_is_with_the_reason(site: Site) -> None:  # noqa: F811
    site.create("well.example.com")
    site.is_("well.example.com", "ACTIVE")
    site.send("proxy_updated", "well.example.com", {"enable_http": "maybe"})
    until(lambda: site.proxies.find("well.example.com").error, 30)
    assert site.state("well.example.com") == "ACTIVE"
    assert site.plane.get("well.example.com").status_code == 200
    site.send("proxy_updated", "well.example.com", {"headers": {"x-a": "1"}})
    until(lambda: not site.proxies.find("well.example.com").error, 30)


@pytest.mark.proves(11)
def test_a_certificate_before_its_proxy_is_no_dead_letter(site: Site) -> None:  # noqa: F811
    name = "first.example.com"
    site.certificates.issue(name)
    site.send("certificate_ready", name, cert_name=name)
    site.create(name)
    until(lambda: site.mode(name) == "fully_running", 30)
    site.quiet()
    assert site.letters(name) == []


@pytest.mark.proves(11)
def test_a_data_plane_that_is_away_for_seconds_fails_no_attempt(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    site.create("patient.example.com")
    site.is_("patient.example.com", "ACTIVE")
    apply, until_then, asked = site.proxies.plane.apply, time.monotonic() + 2, []

    def away(proxy: Any) -> None:
        asked.append(proxy.hostname)
        if time.monotonic() < until_then:
            raise PlaneAway("it is started again")
        apply(proxy)

    monkeypatch.setattr(site.proxies.plane, "apply", away)

    assert site.proxies.serve("patient.example.com", https=False)["mode"] == "http_only"
    assert len(asked) > 1


@pytest.mark.proves(11)
def test_a_wildcard_is_announced_to_the_proxies_it_covers(site: Site) -> None:  # noqa: F811
    site.application.create("a.wild.example.com", {"target": site.origin.url})
    site.is_("a.wild.example.com", "ACTIVE")
    folder = str(site.certificates.folder if hasattr(site.certificates, "folder") else site.stack.folder / "certificates")
    said = site.stack.cli("certificates", "issue", "*.wild.example.com", CERTIFICATES_DIR=folder)
    assert said.returncode == 0, said.stderr
    until(lambda: site.mode("a.wild.example.com") == "fully_running", 30)


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ASKS = """
document: {dsl: '1.0.3', namespace: default, name: asks, version: '1.0.0'}
do:
  - ask: {listen: {to: {one: {with: {type: answered}}}}}
"""


def answer(stack: Stack, number: int, id: str) -> None:
    stack.runner.send_event({"id": f"a{number}", "source": "executor", "type": "said", "data": {"id": id}})


@pytest.mark.proves(10)
@pytest.mark.proves(11)
def test_further_answers_are_no_failures_and_the_ids_that_tenants_see_are_known(stack: Stack) -> None:
    from orchestrator.definition.documents import read_document

    stack.runner.register_workflow(read_document(ASKS))
    stack.runner.put_trigger({"name": "answers", "on": "said", "signal": {"name": "answered", "instance": ".data.id"}})
    stack.worker()
    client: Any = create_app(stack.runner).test_client()
    shown = client.post("/default/workflows/wf_asks/execute", json={"input": {}}).get_json()
    until(lambda: stack.sql("select 1 from branches where state = 'parked'"))

    for number in range(3):
        answer(stack, number, shown["id"])
        until(lambda n=number: stack.sql("select 1 from events where event_id = %s and state in ('taken', 'dead')", f"a{n}"), 30)  # type: ignore[misc]

    assert shown["id"].startswith("ex_")
    until(lambda: stack.state(shown["id"].removeprefix("ex_")) == "COMPLETED", 30)
    assert stack.sql("select event_id, state from events where type = 'said' order by id") == [
        ("a0", "taken"),
        ("a1", "taken"),
        ("a2", "taken"),
    ]
