"""Looking on: what happens is sent as it happens, once, in order, to those who may see it; and nobody pays for those who look."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from orchestrator.api import create_app, hub
from orchestrator.client import events_in
from tests.guarded import guarded, key
from tests.stack import Stack, until
from tests.web import web

Said = tuple[str, str | None, Any]


def said(lines: Iterator[str]) -> Iterator[Said]:
    """What, id, data."""
    return ((event.kind, event.id, event.data) for event in events_in(lines))


def follow(url: str, path: str, into: list[Said], **headers: str) -> threading.Thread:
    def read() -> None:
        with httpx.stream("GET", url + path, headers=headers, timeout=30, trust_env=False) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for one in said(answer.iter_lines()):
                into.append(one)  # noqa: PERF402  # as they come

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_an_instance_is_seen_from_its_first_step_to_its_end(running: Stack) -> None:
    """One thread of the server, three who look on, and it answers others meanwhile."""
    with web(running, threads=1) as (url, _):
        instance_id = running.runner.start_workflow("naps", input={})
        seen: list[list[Said]] = [[], [], []]
        threads = [follow(url, f"/workflow/instance/{instance_id}/stream", one) for one in seen]
        until(lambda: all(seen), 10)
        assert httpx.get(f"{url}/workflow/instances", trust_env=False, timeout=5).status_code == 200
        running.ended(instance_id)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        history = running.runner.history(instance_id)
        for one in seen:
            facts = [data for kind, _, data in one if kind == "fact"]
            assert sorted((fact["branch"], fact["seq"], fact["kind"]) for fact in facts) == sorted(
                (fact["branch"], fact["seq"], fact["kind"]) for fact in history
            )
            states = [data["status"] for kind, _, data in one if kind == "status"]
            assert states[-1] == "COMPLETED"
            assert one[-1] == ("end", None, {"status": "COMPLETED"})
        # Who comes back says what they had; what lies long before that is not sent again.
        again: list[Said] = []
        last = [id for kind, id, _ in seen[0] if kind == "fact"][-1]
        running.sql("update checkpoints set at = at - interval '1 minute' where branch_id || '-' || seq <> %s returning 1", last)
        follow(url, f"/workflow/instance/{instance_id}/stream", again, **{"Last-Event-ID": str(last)}).join(10)
        assert [kind for kind, _, _ in again] == ["status", "end"]


def test_without_gunicorn_the_requests_own_thread_sends(running: Stack) -> None:
    client = create_app(running.runner).test_client()
    instance_id = running.runner.start_workflow("sequence", input={})
    text = client.get(f"/workflow/instance/{instance_id}/stream").get_data(as_text=True)
    kinds = [kind for kind, _, _ in said(iter(text.split("\n")))]
    assert kinds[-1] == "end"
    assert "fact" in kinds
    assert client.head(f"/workflow/instance/{instance_id}/stream").status_code == 200
    assert client.get(f"/workflow/instance/{'0' * 8}-0000-7000-8000-{'0' * 12}/stream").status_code == 404
    assert client.get("/workflow/events/stream", headers={"Last-Event-ID": "x"}).status_code == 400


def test_every_event_comes_once_and_in_order_whoever_commits_last(running: Stack) -> None:
    """Writers whose transactions overlap: the number that is taken first is not the one that is seen first."""
    with web(running) as (url, _):
        seen: list[Said] = []
        some: list[Said] = []
        follow(url, "/workflow/events/stream", seen)
        follow(url, "/workflow/events/stream?type=odd.*", some)
        first = {"id": "first", "source": "live", "type": "odd.first"}
        until(lambda: httpx.post(f"{url}/workflow/events", json={**first, "id": str(time.time())}, trust_env=False) and seen and some, 15)

        def write(writer: int) -> None:
            with psycopg.connect(running.database_url) as c:
                for n in range(30):
                    for part in range(2):
                        kind = "odd.one" if n % 2 else "even.one"
                        c.execute(
                            "insert into events (tenant, source, event_id, type, envelope) values ('default', 'live', %s, %s, '{}')",
                            (f"{writer}-{n}-{part}", kind),
                        )
                        time.sleep(random.random() * 0.02)
                    c.commit()

        writers = [threading.Thread(target=write, args=(n,)) for n in range(5)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        until(lambda: len([one for one in seen if "-" in one[2]["id"]]) == 300, 15, "all 300")
        time.sleep(0.6)  # and nothing comes twice later, either
        numbers = [data["number"] for _, _, data in seen]
        assert numbers == sorted(set(numbers))
        assert len([one for one in seen if "-" in one[2]["id"]]) == 300
        assert [data["number"] for _, _, data in some] == [data["number"] for _, _, data in seen if data["type"].startswith("odd.")]
        # Who comes back gets what they missed, exactly.
        again: list[Said] = []
        follow(url, "/workflow/events/stream", again, **{"Last-Event-ID": str(numbers[100])})
        until(lambda: len(again) == len(numbers) - 101, 15)
        assert [data["number"] for _, _, data in again] == numbers[101:]


def test_who_goes_leaves_nothing_and_who_does_not_read_is_dropped(running: Stack) -> None:
    # One thread, whose connections to Postgres and Redis are opened before anything is counted.
    with web(running, threads=1) as (url, arbiter):
        # What serves is the child of gunicorn's arbiter.
        [child] = psutil.Process(arbiter).children()
        host, port = url.removeprefix("http://").split(":")
        warm = {"id": str(time.time()), "source": "live", "type": "warm"}
        until(lambda: httpx.post(f"{url}/workflow/events", json=warm, trust_env=False).status_code < 300, 10)
        before = child.num_fds()
        request = f"GET /workflow/events/stream HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(socket.socket()) for _ in range(60)]
            for one in connections:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.connect((host, int(port)))
                one.sendall(request)
            until(lambda: child.num_fds() >= before + 60, 20)
            for one in connections[1:]:
                one.close()
            until(lambda: child.num_fds() <= before + 6, 20)
            # The one that is left takes nothing: the rest of the world goes on, and at a megabyte it is dropped.
            data = "x" * 60_000
            for n in range(120):
                envelope = {"id": f"big {n}", "source": "live", "type": "big", "data": data}
                assert httpx.post(f"{url}/workflow/events", json=envelope, trust_env=False).status_code == 202
            until(lambda: child.num_fds() <= before + 5, 30)


def test_streams_show_what_their_reader_may_see(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LASTS_S", 5.0)
    app = guarded(stack)
    mine, other = key(stack, "viewer", tenant="mine"), key(stack, "viewer", tenant="other")
    instance_id = stack.runner.start_workflow("numbered", input={"n": 1}, tenant="mine")
    assert app.test_client().get(f"/workflow/instance/{instance_id}/stream", headers=other).status_code == 404
    assert app.test_client().get("/workflow/events/stream").status_code == 401
    texts: dict[str, str] = {}

    def look(name: str, headers: dict[str, str]) -> None:
        texts[name] = app.test_client().get("/workflow/events/stream", headers=headers).get_data(as_text=True)

    threads = [threading.Thread(target=look, args=pair) for pair in (("mine", mine), ("other", other))]
    for thread in threads:
        thread.start()
    for n in range(12):
        time.sleep(0.3)
        stack.runner.send_events([{"id": f"{n}", "source": "s", "type": "t", "data": {"secret": n}}], tenant="mine")
    for thread in threads:
        thread.join(20)
    assert '"secret":' in texts["mine"]
    assert "secret" not in texts["other"]


class Broken(hub.Lent):
    """A stream that fails where nobody foresaw it."""

    def __init__(self, connection: socket.socket, verb: str) -> None:
        self.verb = verb
        super().__init__(connection, b"")

    def heard(self) -> None:
        self._fail("heard")
        super().heard()

    def push(self) -> None:
        self._fail("push")
        super().push()

    def send(self, chunk: bytes) -> None:
        self._fail("send")
        super().send(chunk)

    def _fail(self, verb: str) -> None:
        if verb == self.verb:
            raise RuntimeError(f"{verb} failed")


@pytest.mark.parametrize("verb", ["heard", "push", "send"])
def test_a_stream_that_fails_is_ended_and_holds_up_no_other(running: Stack, verb: str) -> None:
    made = hub.Hub(running.runner.database)
    theirs, ours = socket.socketpair()
    broken = Broken(ours, verb)
    well = hub.Queued()
    instance_id = running.run("sequence", {})["id"]
    made.add(broken, hub.InstanceWatch(running.runner.start_workflow("waits-long", input={}), None))
    theirs.send(b"x")
    made.add(well, hub.InstanceWatch(instance_id, None))
    until(lambda: len(made) == 0, 10, "both have ended")
    assert [part.split(b"\n")[0] for part in well][-1] == b"event: end"
    theirs.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        while theirs.recv(4096):
            pass

    again = hub.Queued()
    made.add(again, hub.InstanceWatch(instance_id, None))
    until(lambda: again.is_over, 10, "the hub goes on")
    theirs.close()
