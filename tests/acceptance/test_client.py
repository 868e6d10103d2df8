"""The client, as somebody uses it: over a real server, with a key, through what goes wrong."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.api import create_app
from orchestrator.client import ApiError, Away, Client, Conflict, Denied, NotFound, WorkflowFailed
from orchestrator.dev.ports import any_free
from orchestrator.engine import keyring
from tests.stack import Stack, until
from tests.web import web

DOCUMENT = """
document: {dsl: '1.0.3', namespace: default, name: hello, version: '1.0.0'}
do: [{say: {set: {text: '${ "Hello " + .name }'}}}]
"""


@pytest.fixture(scope="module")
def client(running: Stack) -> Iterator[Client]:
    made = keyring.add(running.runner.runtime, "client", ["admin"])["key"]
    with web(running, AUTH="on") as (url, _), Client(url, made) as client:
        yield client


def test_a_workflow_is_registered_started_followed_and_gives_its_result(client: Client) -> None:
    assert client.register(DOCUMENT)["workflow"] == "hello"
    hello = client.start("hello", {"name": "Ada"}, labels={"who": "ada"})
    assert hello.result(30) == {"text": "Hello Ada"}
    assert hello.history()
    slow = client.start("naps")
    kinds = [event.kind for event in slow.follow()]
    assert kinds[-1] == "end"
    assert "fact" in kinds
    assert [one["workflow"] for one in itertools.islice(client.instances(), 2)] == ["naps", "hello"]
    assert "hello" in {one["name"] for one in client.workflows(search="hel")}
    assert client.health()["status"]


def test_a_start_that_is_asked_for_twice_starts_once(client: Client) -> None:
    first = client.start("numbered", {"n": 1}, idempotency_key="once")
    assert client.start("numbered", {"n": 1}, idempotency_key="once").id == first.id
    with pytest.raises(Conflict) as caught:
        client.start("numbered", {"n": 2}, idempotency_key="once")
    assert caught.value.code == "duplicate"


@pytest.mark.parametrize("option", ["key", "tenant"])
@pytest.mark.parametrize("text", ["…", "a\nb", "schlüssel"])
def test_a_key_that_was_not_filled_in_is_told_as_that(option: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"no {option} has"):
        Client(**{option: text})


def test_a_start_may_have_any_key(client: Client) -> None:
    first = client.start("numbered", {"n": 1}, idempotency_key="Bestellung Nº 7 – größer")
    assert client.start("numbered", {"n": 1}, idempotency_key="Bestellung Nº 7 – größer").id == first.id


def test_what_goes_wrong_is_said(client: Client) -> None:
    failed = client.start("asked", {"fail": True})
    with pytest.raises(WorkflowFailed, match="asked to fail") as caught:
        failed.result(30)
    assert caught.value.status == "FAILED"
    with pytest.raises(NotFound):
        client.start("nobody")
    with pytest.raises(ApiError) as refused:
        client.add_schedule({"id": "x", "workflow": "numbered", "cron": "61 * * * *"})
    assert (refused.value.status, bool(refused.value.faults)) == (400, True)
    with pytest.raises(Conflict):
        failed.pause()
    waiting = client.start("waits-long")
    with pytest.raises(TimeoutError, match="has not ended"):
        waiting.wait(0.3)
    waiting.pause()
    waiting.resume()
    waiting.cancel("enough")
    assert waiting.wait(20)["outcome"] == "CANCELLED"
    with Client(str(client._http.base_url), "no key") as stranger, pytest.raises(Denied):
        stranger.workflows()


def test_a_change_is_bound_to_what_was_seen(client: Client) -> None:
    client.add_schedule({"id": "mine", "workflow": "numbered", "cron": "0 9 * * *", "properties": {"n": 1}})
    seen = client.schedule("mine")
    client.change_schedule("mine", {"id": "mine", "workflow": "numbered", "cron": "0 10 * * *", "properties": {"n": 1}}, etag=seen["etag"])
    with pytest.raises(Conflict) as caught:
        client.delete_schedule("mine", etag=seen["etag"])
    assert caught.value.code == "changed_meanwhile"
    assert client.run_schedule("mine")["instanceId"]
    client.delete_schedule("mine", etag=client.schedule("mine")["etag"])
    assert "mine" not in {one["id"] for one in client.schedules()}
    client.configure("numbered", {"id": "numbered", "timeout": 5000})
    held = client.configuration("numbered")
    client.configure("numbered", {"id": "numbered", "timeout": 6000}, etag=held["etag"])


def test_events_are_heard_as_they_come_and_what_was_missed_afterwards(client: Client) -> None:
    heard = client.events(type="client.*")
    sent = []

    def send() -> dict[str, Any]:
        sent.append(client.send("client.test", {"n": len(sent)})["number"])
        return sent[-1]

    client.put_trigger({"name": "by-client", "on": "client.start", "start": "numbered", "input": "{n: 1}"})
    first = client.send("client.first", id="f")
    assert client.send("client.first", id="f")["status"] == "known"
    missed = client.events(type="client.*", after=str(first["number"] - 1))
    assert next(missed).data["type"] == "client.first"
    done = threading.Event()
    thread = threading.Thread(target=lambda: until(lambda: send() and done.is_set(), 40))
    thread.start()
    event = next(heard)
    done.set()
    thread.join()
    assert event.data["type"] == "client.test"


def test_what_holds_a_request_up_is_waited_out_and_what_must_not_be_sent_twice_is_not() -> None:
    calls: list[str] = []

    def serve(request: httpx.Request) -> httpx.Response:
        calls.append(f"{request.method} {request.headers.get('idempotency-key', '-')}")
        if len(calls) == 1:
            return httpx.Response(503, json={"code": "database_away", "message": "away"})
        if len(calls) == 2:
            raise httpx.ReadError("cut", request=request)
        if len(calls) == 3:
            return httpx.Response(429, json={"code": "rate_limited"}, headers={"Retry-After": "0"})
        return httpx.Response(201, json={"instanceId": "i"})

    with Client("http://x", transport=httpx.MockTransport(serve)) as client:
        assert client.start("w").id == "i"
    assert len(calls) == 4
    assert len(set(calls)) == 1, "the same key each time"
    calls.clear()
    with Client("http://x", transport=httpx.MockTransport(serve)) as client, pytest.raises(ApiError):
        client.instance("i").pause()
    assert len(calls) == 1


def test_every_path_of_the_client_is_one_of_the_api(stack: Stack) -> None:
    asked: list[tuple[str, str]] = []

    def serve(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path))
        body = {
            "instanceId": "i",
            "instances": [],
            "next": None,
            "outcome": {},
            "workflows": [],
            "schedules": [],
            "triggers": [],
            "history": [],
        }
        return httpx.Response(200, json={**body, "status": "COMPLETED", "output": 1})

    with Client("http://x", transport=httpx.MockTransport(serve)) as client:
        one = client.start("w", {})
        for act in (one.show, one.history, one.wait, one.pause, one.resume, one.retry, one.rollback, one.cancel):
            act()
        one.signal("s")
        one.rerun("step")
        list(client.instances())
        client.bulk("pause", workflow="w")
        client.register("x: 1")
        client.workflows()
        client.schedules()
        client.add_schedule({})
        client.schedule("s")
        client.change_schedule("s", {})
        client.delete_schedule("s")
        client.run_schedule("s")
        client.put_trigger({})
        client.send("t")
        client.configuration("w")
        client.configure("w", {})
        client.health()
    spec = create_app(stack.runner).test_client().get("/openapi.json").get_json()["paths"]
    known = [
        (method.upper(), re.compile("^" + re.sub(r"\{[^}]+\}", "[^/]+", path) + "$"))
        for path, methods in spec.items()
        for method in methods
    ]
    for method, path in asked:
        assert any(method == m and pattern.match(path) for m, pattern in known), f"{method} {path}"


def test_nobody_there_is_final_soon_and_an_error_of_the_client() -> None:
    began = time.monotonic()
    with Client(f"http://127.0.0.1:{any_free()}") as client:
        for ask in (lambda: client.start("order", {"id": 7}), client.health, lambda: list(client.instances())):
            with pytest.raises(Away, match=r"does not answer: .*refused") as caught:
                ask()
            assert isinstance(caught.value, ApiError)
            assert (caught.value.code, caught.value.is_sent) == ("server_away", False)
    assert time.monotonic() - began < 20
