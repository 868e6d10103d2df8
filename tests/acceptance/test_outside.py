"""What goes out and what comes back by other ways: executors in other languages, Pub/Sub, webhooks, message queues."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis as redis_client
from kombu import Connection as Broker

from orchestrator.api import create_app
from orchestrator.definition.documents import read_document
from orchestrator.dev.ports import any_free
from orchestrator.store import webhooks
from orchestrator.store.events import EventFilter
from orchestrator.stream import courier
from orchestrator.stream.stores.postgres import PostgresStore
from tests.stack import Stack, until


@pytest.fixture
def site(stack: Stack) -> Iterator[Stack]:
    """A worker and a bridge."""
    stack.environment.update({"WORKER_STREAM_BLOCK": "100ms", "SECRET_HOOK": "s3cret", "QUEUE_GRACE": "3"})
    stack.worker()
    with stack.bridge():
        yield stack


def requests(stack: Stack, workflow: str, tenant: str = "default") -> list[dict[str, Any]]:
    entries = stack.redis.xrange(f"tenant:{tenant}:workflow:{workflow}:events")
    return [fields for _, fields in entries if fields["type"] == "io.flunq.task.requested"]


def complete(stack: Stack, request: dict[str, Any], *, source: str = "executor-service", **data: Any) -> None:
    entry: dict[Any, Any] = {
        "id": f"done-{request['id']}-{source}",
        "source": source,
        "specversion": "1.0",
        "type": "io.flunq.task.completed",
        "workflowid": request["workflowid"],
        "executionid": request["executionid"],
        "taskid": request["taskid"],
        "tenantid": request["tenantid"],
        "data": json.dumps({"task_id": request["taskid"], **data}),
    }
    for _ in range(2):  # once more, as at-least-once executors do
        stack.redis.xadd(f"tenant:{request['tenantid']}:workflow:{request['workflowid']}:events", entry)


def test_an_executor_outside_is_asked_and_answers(site: Stack) -> None:
    ids = [site.runner.start_workflow("asks-outside", input={"n": n}) for n in range(3)]
    until(lambda: len(requests(site, "asks-outside")) == 3, 20)
    told = requests(site, "asks-outside")
    body = json.loads(told[0]["data"])
    assert (body["task_name"], body["task_type"], body["config"]["timeout"]) == ("scan", "image-scan", 20)
    assert {"task_id", "input", "context", "config"} <= set(body)
    assert len({fields["taskid"] for fields in told}) == 3
    by_id = {fields["executionid"]: fields for fields in told}
    complete(site, by_id[ids[0]], source="somebody-else", success=True, output={"clean": False})
    for number, instance_id in enumerate(ids[:2]):
        complete(site, by_id[instance_id], success=True, output={"clean": True, "of": number})
    complete(site, by_id[ids[2]], success=False, error="no such image")
    ended = [site.ended(instance_id, 20) for instance_id in ids]
    assert [one["status"] for one in ended] == ["COMPLETED", "COMPLETED", "FAILED"]
    assert [one["output"]["of"] for one in ended[:2]] == [0, 1]
    assert "no such image" in ended[2]["error"]["message"]
    assert sorted(row[0] for row in site.sql("select what from ledger")) == ["0", "1"]


def test_an_execution_is_started_from_outside_once_by_its_id_in_its_tenants_stream(site: Stack) -> None:
    site.runner.register_workflow(
        read_document(
            "document: {dsl: '1.0.3', namespace: default, name: doc, version: '1.0.0'}\n"
            "do: [{ask: {call: 'step:external', with: {type: t, input: {x: '${ .x }'}}}}, {s: {set: {got: '${ . }'}}}]"
        ),
        tenant="acme",
    )
    stream = "tenant:acme:workflow:doc:events"
    entry: dict[Any, Any] = {
        "source": "api-service",
        "type": "io.flunq.execution.started",
        "workflowid": "doc",
        "executionid": "ex_1",
        "tenantid": "acme",
        "data": json.dumps({"input": {"x": 5}}),
    }
    for _ in range(3):
        site.redis.xadd(stream, entry)
    until(
        lambda: requests(site, "doc", "acme"),
        8,
        str((site.sql("select state, error, type, envelope from events"), site.sql("select id, state, error from instances"))),
    )
    [request] = requests(site, "doc", "acme")
    assert json.loads(request["data"])["input"] == {"x": 5}
    # The executor answers with the id that the API service gave.
    complete(site, {**request, "executionid": "ex_1"}, success=True, output=7)
    [(instance_id,)] = site.sql("select id::text from instances where workflow = 'doc'")
    assert site.ended(instance_id)["output"] == {"got": 7}
    assert site.sql("select tenant, labels from instances where workflow = 'doc'") == [("acme", {"execution": "ex_1"})]
    until(lambda: "io.flunq.workflow.completed" in [fields["type"] for _, fields in site.redis.xrange(stream)], 10)
    assert not site.redis.keys("tenant:default:workflow:doc:*")
    until(lambda: site.redis.xpending(stream, "worker-service")["pending"] == 0, 10)
    assert site.redis.xinfo_consumers(stream, "worker-service")[0]["name"].startswith("worker-")


def test_the_bus_tells_and_hears(site: Stack) -> None:
    site.runner.put_trigger({"name": "b", "on": "cms.content.updated", "start": "numbered"})
    listener: Any = redis_client.Redis.from_url(site.redis_url, decode_responses=True)
    heard = listener.pubsub(ignore_subscribe_messages=True)
    heard.psubscribe("workflow:*")
    client = create_app(site.runner).test_client()
    answer = client.post("/api/events", json={"eventType": "cms.content.updated", "payload": {"n": 1}})
    assert answer.status_code == 200
    assert len(answer.get_json()["started"]) == 1
    assert client.post("/api/events", json={"payload": {}}).status_code == 400
    until(lambda: site.sql("select what from ledger") == [("1",)], 10)
    channels: list[str] = []

    def told() -> bool:
        while (message := heard.get_message(timeout=0.05)) is not None:
            channels.append(message["channel"])
            assert set(json.loads(message["data"])) == {"id", "type", "payload", "timestamp", "source"}
        return {"workflow:cms.content.updated", "workflow:workflow.started", "workflow:workflow.completed"} <= set(channels)

    until(told, 10)
    # From outside, by every way: to the channel with an id, twice; without one, twice in a moment; by XADD; on the bus.
    said = json.dumps({"id": "x1", "payload": {"n": 2}, "source": "shop"})
    for _ in range(2):
        listener.publish("workflow:cms.content.updated", said)
        listener.publish("workflow:cms.content.updated", json.dumps({"payload": {"n": 3}}))
    listener.publish("workflow:cms.content.updated", "no json")
    listener.publish("workflow:cms.content.updated", '{"payload": ' + "[" * 100_000 + "]" * 100_000 + "}")
    listener.xadd("events:bus", {"eventType": "cms.content.updated", "payload": json.dumps({"n": 4})})
    until(lambda: sorted(row[0] for row in site.sql("select what from ledger")) == ["1", "2", "3", "4"], 10)
    time.sleep(0.5)
    assert site.sql("select count(*) from instances where workflow = 'numbered'") == [(4,)]
    events = client.get("/api/events").get_json()["events"]
    kinds = [one["type"] for one in events]
    assert {"cms.content.updated", "workflow.started", "workflow.completed"} <= set(kinds)
    completed = next(one for one in events if one["type"] == "workflow.completed")
    assert completed["payload"]["duration"] > 0
    assert [one["timestamp"] for one in events] == sorted((one["timestamp"] for one in events), reverse=True)
    assert site.redis.llen("workflow:events:recent") <= 1000
    heard.close()
    listener.close()


class Hook(BaseHTTPRequestHandler):
    """Refuses the first two, as somebody who is just being started."""

    got: list[tuple[dict[str, str], bytes]] = []
    refusals = 2

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if Hook.refusals:
            Hook.refusals -= 1
            self.send_response(503)
        else:
            Hook.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
            self.send_response(204)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return None


class Taker(Hook):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.send_header("content-length", "0")
        self.end_headers()


def test_webhooks_are_signed_and_sent_until_they_are_taken(site: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_HOOK", "s3cret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    client = create_app(site.runner).test_client()
    hook = {
        "name": "h",
        "url": f"http://127.0.0.1:{server.server_port}/in",
        "types": ["orchestrator.workflow.*", "shop.*"],
        "secret": "hook",
    }
    assert client.post("/workflow/webhooks", json=hook).status_code == 201
    assert client.post("/workflow/webhooks", json={"name": "x", "url": "ftp://x", "types": "y"}).status_code == 400
    instance_id = site.runner.start_workflow("numbered", input={"n": 1})
    site.runner.send_event({"id": "e1", "source": "/shop", "type": "shop.sold", "data": {"n": 1}})
    site.runner.send_event({"id": "e2", "source": "/shop", "type": "other", "data": {}})
    site.ended(instance_id)
    until(lambda: len(Hook.got) >= 4, 25, str(site.sql("select * from deliveries")))
    types = sorted(json.loads(body)["type"] for _, body in Hook.got)
    assert types == ["orchestrator.workflow.completed", "orchestrator.workflow.created", "orchestrator.workflow.started", "shop.sold"]
    for headers, body in Hook.got:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(b"s3cret", signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert json.loads(body)["specversion"] == "1.0"
    assert site.sql("select count(*) from deliveries") == [(0,)]
    assert "s3cret" not in json.dumps(client.get("/workflow/webhooks").get_json())
    assert client.delete("/workflow/webhooks/h").status_code == 200
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_webhook_that_is_given_up_stays_until_it_is_sent_again(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_HOOK", "s3cret")
    monkeypatch.setattr(courier, "ATTEMPTS", 3)
    monkeypatch.setattr(courier, "FIRST_PAUSE_S", 0.0)
    client = create_app(stack.runner).test_client()
    port = any_free()
    hook = {"name": "h", "url": f"http://127.0.0.1:{port}/in", "types": ["*"], "secret": "hook"}
    assert client.post("/workflow/webhooks", json=hook).status_code == 201
    number = stack.sql("select id from webhooks")[0][0]
    stack.runner.database.patiently(lambda c: webhooks.queue(c, [(number, {"specversion": "1.0", "id": "e", "source": "s", "type": "t"})]))
    made = courier.Courier(stack.runner.runtime)
    assert [made.turn() for _ in range(4)] == [1, 1, 1, 0]
    [shown] = client.get("/workflow/webhooks").get_json()["webhooks"]
    assert (shown["given_up"], shown["waiting"]) == (1, 0)
    assert shown["last_error"]
    server = ThreadingHTTPServer(("127.0.0.1", port), Taker)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    assert client.post("/workflow/webhooks/h/send-again").get_json() == {"deliveries": 1}
    assert made.turn() == 1
    assert stack.sql("select count(*) from deliveries") == [(0,)]
    server.shutdown()
    server.server_close()
    thread.join()
    assert [row[0] for row in stack.sql("select action from audit where detail ? 'webhook' order by id")] == [
        "put-webhook",
        "send-webhook-again",
    ]


def test_what_is_no_message_on_the_trigger_queue_is_put_aside(site: Stack) -> None:
    garbage = ["x", '{"body":5}', '{"version":1,"workflow":"numbered"}', "[" * 300, "null", "5", '"text"', "[]"]
    for text in garbage:
        site.redis.lpush("workflow.trigger", text)
    with Broker(site.redis_url) as broker:
        broker.Producer().publish({"workflowId": "numbered", "data": {"n": 2}}, routing_key="workflow.trigger", serializer="json")
    until(lambda: site.sql("select what from ledger") == [("2",)], 30)
    assert site.redis.llen("unreadable:") == len(garbage)


def test_a_message_on_the_trigger_queue_starts_a_workflow_and_its_sender_is_told(site: Stack) -> None:
    with Broker(site.redis_url) as broker:
        answers = broker.SimpleQueue("answers-for-shop", no_ack=True, queue_opts={"durable": False})
        producer = broker.Producer()
        message = {"workflowId": "numbered", "version": "1", "data": {"n": 1}, "src": "shop"}
        producer.publish(message, routing_key="workflow.trigger", serializer="json", reply_to="answers-for-shop", correlation_id="c1")
        producer.publish(message, routing_key="workflow.trigger", serializer="json", correlation_id="c1")  # delivered again
        for bad in (
            {"data": {}},
            {"workflowId": "nobody"},
            {"workflowId": "numbered", "data": {"n": "x"}},
            {"workflowId": "numbered", "version": 3},
        ):
            producer.publish(bad, routing_key="workflow.trigger", serializer="json")
        producer.publish("garbage", routing_key="workflow.trigger", content_type="application/json", content_encoding="utf-8")
        for depth in (300, 100_000):
            deep = '{"workflowId": "numbered", "data": {"n": 3, "x": ' + "[" * depth + "]" * depth + "}}"
            producer.publish(deep, routing_key="workflow.trigger", content_type="application/json", content_encoding="utf-8")
        producer.publish({"workflowId": "numbered", "data": {"n": 2}}, routing_key="workflow.trigger", serializer="json")
        until(lambda: sorted(row[0] for row in site.sql("select what from ledger")) == ["1", "2"], 20)
        answer = answers.get(timeout=10).payload
        assert (answer["event"], answer["status"]) == ("reactory.workflow.started:shop", "started")
        assert site.state(answer["instanceId"]) == "COMPLETED"
        dead = broker.SimpleQueue("workflow.trigger.dlq", no_ack=True)
        reasons = [dead.get(timeout=5).payload["reason"] for _ in range(7)]
        assert sum("nested more than 200 levels deep" in reason or "recursion" in reason for reason in reasons) == 2
        assert sum("names no workflow" in reason for reason in reasons) == 1
        assert any("nobody" in reason for reason in reasons)
        answers.close()
        dead.close()
        producer.release()
    assert site.sql("select count(*) from instances") == [(2,)]
    assert site.sql(
        "select distinct i.source, a.actor from instances i join audit a on a.instance_id = i.id where a.action = 'start' order by 2"
    ) == [
        ("amqp", "amqp:shop"),
        ("amqp", "amqp:unknown"),
    ]


def test_streams_of_events_may_be_kept_in_postgres(stack: Stack) -> None:
    stack.environment.update({"EVENTSTORE_TYPE": "postgres", "WORKER_STREAM_BLOCK": "100ms"})
    stack.worker()
    stack.runner.put_trigger({"name": "n", "on": "t", "start": "numbered"})
    store = PostgresStore(stack.database_url)
    with stack.bridge(), stack.bridge():
        for n in range(40):
            store.publish("events:workflow", {"type": "t", "data": json.dumps({"n": n})})
        store.publish("events:workflow", {"data": "{}"})
        until(lambda: stack.sql("select count(*) from ledger") == [(40,)], 30)
        until(lambda: store.backlog("events:workflow", "workflow-group").pending == 0, 10)
        assert [fields["reason"][:13] for _, fields in store.entries("events:workflow:dlq")] == ["names no type"]
        instance_id = stack.runner.start_workflow("asks-outside", input={"n": 99})
        stream = "tenant:default:workflow:asks-outside:events"
        until(lambda: store.entries(stream), 10)
        [(_, request)] = store.entries(stream)
        answer = {
            "source": "executor-service",
            "type": "io.flunq.task.completed",
            "executionid": instance_id,
            "data": json.dumps({"task_id": request["taskid"], "success": True, "output": {"ok": 1}}),
        }
        store.publish(stream, answer)
        assert stack.ended(instance_id)["status"] == "COMPLETED"
    store.close()
    assert not stack.redis.exists("events:workflow")
    assert len(stack.runner.events(EventFilter(state="taken", limit=100))) >= 41


def test_health_metrics_and_the_doctor_see_a_missing_consumer_and_its_lag(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    with stack.bridge() as process:
        stack.redis.xadd("events:workflow", {"type": "t", "data": "1"})
        stack.redis.xadd("events:workflow", {"data": "no type"})
        until(lambda: client.get("/health").get_json()["error_count"] == 1, 15)
        said = client.get("/health").get_json()
        assert (said["consumer_active"], said["pending_events"], said["processed_count"]) == (True, 0, 2)
        assert said["last_event_time"].endswith("Z")
        process.terminate()
        assert process.wait(20) == 0
    for n in range(5):
        stack.redis.xadd("events:workflow", {"type": "t", "data": str(n)})
    until(lambda: client.get("/health").get_json()["consumer_active"] is False, 15)
    text = client.get("/metrics").get_data(as_text=True)
    assert 'orchestrator_stream_lag{group="workflow-group",stream="events:workflow",what="waiting"} 5.0' in text
    assert "orchestrator_stream_errors_total 1.0" in text
    assert 'orchestrator_events{state="dead"} 1.0' in text
    checks = {one["check"]: one for one in json.loads(stack.cli("doctor", "--json").stdout)}
    assert "nobody reads as workflow-group" in checks["consumers"]["detail"]
    assert (checks["idempotency"]["ok"], checks["dead events"]["ok"], checks["lag"]["ok"]) == (True, False, True)
    stack.redis.xgroup_destroy("events:workflow", "workflow-group")
    checks = {one["check"]: one for one in json.loads(stack.cli("doctor", "--json").stdout)}
    assert "no group workflow-group on events:workflow" in checks["consumers"]["detail"]


def test_waits_are_told_and_end_early_when_a_timer_service_says_so(site: Stack) -> None:
    site.runner.register_workflow(
        read_document(
            "document: {dsl: '1.0.3', namespace: default, name: naps, version: '1.0.0'}\n"
            "do: [{first: {wait: PT1H}}, {second: {wait: PT2H}}, {s: {set: {woke: true}}}]"
        )
    )
    instance_id = site.runner.start_workflow("naps", input={})
    stream = "tenant:default:workflow:naps:events"

    def told(kind: str) -> list[Any]:
        return [json.loads(fields["data"]) for _, fields in site.redis.xrange(stream) if fields["type"] == kind]

    until(lambda: told("io.flunq.timer.scheduled"), 15)
    [scheduled] = told("io.flunq.timer.scheduled")
    assert (scheduled["task_name"], scheduled["duration_ms"]) == ("first", 3_600_000)
    assert site.redis.zscore("flunq:timers:all", f"{instance_id}:{scheduled['task_id']}") > time.time() + 3000
    entry: dict[Any, Any] = {"source": "timer-service", "type": "io.flunq.timer.fired", "executionid": instance_id}
    # Of another task: nothing is waited for there, and it is put aside in the end.
    site.redis.xadd(stream, {**entry, "data": json.dumps({"task_id": "second"})})
    site.redis.xadd(stream, {**entry, "data": json.dumps({"task_id": "first"})})
    until(lambda: len(told("io.flunq.timer.scheduled")) == 2, 20)
    assert [one["task_name"] for one in told("io.flunq.timer.fired") if "scheduled_for" in one] == ["first"]
    client = create_app(site.runner).test_client()
    until(lambda: client.post(f"/workflow/instance/{instance_id}/skip-wait", json={"step": "second"}).status_code == 200, 10)
    assert site.ended(instance_id, 15)["output"] == {"woke": True}
    until(lambda: site.redis.zcard("flunq:timers:all") == 0, 10)
    assert client.post(f"/workflow/instance/{instance_id}/skip-wait", json={}).status_code == 404


def test_a_failed_instance_is_retried_as_often_as_is_allowed(stack: Stack) -> None:
    from dataclasses import replace

    from orchestrator.errors import Refused

    stack.worker()
    stack.runner.runtime.settings = replace(stack.runner.runtime.settings, workflow_max_retries=2)
    instance_id = stack.runner.start_workflow("failing", input={})
    for _ in range(2):
        stack.ended(instance_id)
        stack.runner.retry_workflow(instance_id)
    stack.ended(instance_id)
    with pytest.raises(Refused, match="WORKFLOW_MAX_RETRIES"):
        stack.runner.retry_workflow(instance_id)


def test_every_call_of_a_document_may_be_asked_of_executors(site: Stack) -> None:
    text = (
        "document: {dsl: '1.0.3', namespace: default, name: asks-all, version: '1.0.0', metadata: {executor: external}}\n"
        "do: [{fetch: {call: http, with: {method: get, endpoint: 'http://x', query: {n: '${ .n }'}}}}, {s: {set: {got: '${ . }'}}}]"
    )
    site.runner.register_workflow(read_document(text), text)
    instance_id = site.runner.start_workflow("asks-all", input={"n": 5})
    [request] = until(lambda: requests(site, "asks-all"), 20)
    body = json.loads(request["data"])
    assert (body["task_name"], body["task_type"], body["input"], body["config"]["parameters"]["query"]) == (
        "fetch",
        "http",
        {"n": 5},
        {"n": 5},
    )
    assert "context" in body
    complete(site, request, success=True, output={"ok": True})
    assert site.ended(instance_id, 20)["output"] == {"got": {"ok": True}}
