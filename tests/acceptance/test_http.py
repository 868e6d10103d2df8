"""What HTTP itself promises: pages that do not shift, changes that do not run over another's, answers made small."""

from __future__ import annotations

import gzip
import io
import threading
from typing import Any

import pytest
from flask.testing import FlaskClient

from orchestrator.api import create_app
from orchestrator.store import schedules
from tests.stack import Stack

DAILY = {"id": "tagged", "workflow": "numbered", "cron": "0 9 * * *", "properties": {"n": 1}}
EACH = {"id": "each", "source": "s", "type": "t"}
TRIGGER = {"name": "tagged", "on": "order.made", "start": "numbered"}


@pytest.fixture
def client(stack: Stack) -> FlaskClient:
    return create_app(stack.runner).test_client()


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pages_hold_each_instance_once_whatever_is_started_meanwhile(stack: Stack, client: FlaskClient) -> None:
    made = [stack.runner.start_workflow("numbered", input={"n": n}) for n in range(25)]
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = client.get("/workflow/instances", query_string={"limit": 10} | ({"cursor": cursor} if cursor else {})).get_json()
        found += [one["id"] for one in page["instances"]]
        stack.runner.start_workflow("numbered", input={"n": -1})
        if (cursor := page["next"]) is None:
            break
    assert found == made[::-1]
    for bad in ("x", "MQ==", "é"):
        refused = client.get("/workflow/instances", query_string={"cursor": bad})
        assert (refused.status_code, refused.get_json()["code"]) == (400, "invalid"), bad


def test_the_newest_page_is_read_by_the_index(stack: Stack) -> None:
    plan = stack.sql(
        "explain select id from instances where (created_at, id) < (now(), gen_random_uuid()) order by created_at desc, id desc limit 10"
    )
    assert "instances_age" in str(plan)


# ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("make", "path", "body"),
    [
        (("/workflow/schedules", DAILY), "/workflow/schedules/tagged", {**DAILY, "cron": "0 10 * * *"}),
        (("/workflow/configs", {"id": "numbered", "timeout": 5000}), "/workflow/configs/numbered", {"id": "numbered", "timeout": 6000}),
    ],
)
def test_who_changes_what_they_saw_does_not_run_over_another(client: FlaskClient, make: Any, path: str, body: dict[str, Any]) -> None:
    client.post(make[0], json=make[1])
    seen = client.get(path).headers["ETag"]
    assert client.get(path).headers["ETag"] == seen
    first = client.put(path, json=body, headers={"If-Match": seen})
    assert first.status_code == 200
    assert first.headers["ETag"] not in (None, seen)
    late = client.put(path, json=make[1], headers={"If-Match": seen})
    assert (late.status_code, late.get_json()["code"]) == (412, "changed_meanwhile")
    assert first.headers["ETag"] in late.get_json()["detail"]
    assert client.delete(path, headers={"If-Match": seen}).status_code == 412
    assert client.delete(path, headers={"If-Match": f'"x", {first.headers["ETag"]}'}).status_code == 200
    assert client.delete(path, headers={"If-Match": "*"}).status_code == 412


def test_a_trigger_is_tagged_too_and_what_has_no_tag_matches_none(stack: Stack, client: FlaskClient) -> None:
    assert client.post("/workflow/triggers", json=TRIGGER).status_code == 201
    seen = client.get("/workflow/triggers/tagged").headers["ETag"]
    assert client.post("/workflow/triggers/tagged/disable", headers={"If-Match": seen}).status_code == 200
    assert client.delete("/workflow/triggers/tagged", headers={"If-Match": seen}).status_code == 412
    assert client.post("/workflow/events", json=EACH, headers={"If-Match": '"a"'}).status_code == 412
    assert client.post("/workflow/events", json=EACH, headers={"If-Match": "*"}).status_code == 202
    assert stack.sql("select count(*) from pg_locks where locktype = 'advisory'") == [(0,)]


def test_of_many_who_change_what_all_saw_one_does(stack: Stack) -> None:
    """Also against writers that do not come through this API."""
    app = create_app(stack.runner)
    app.test_client().post("/workflow/schedules", json=DAILY)
    for turn in range(5):
        seen = app.test_client().get("/workflow/schedules/tagged").headers["ETag"]
        answers: list[int] = []
        barrier = threading.Barrier(6)

        def change(n: int, seen: str = seen, answers: list[int] = answers, barrier: threading.Barrier = barrier, turn: int = turn) -> None:
            barrier.wait()
            body = {**DAILY, "properties": {"n": 1000 + 100 * turn + n}}
            answers.append(app.test_client().put("/workflow/schedules/tagged", json=body, headers={"If-Match": seen}).status_code)
            stack.runner.database.drop()

        def by_hand(barrier: threading.Barrier = barrier, turn: int = turn) -> None:
            barrier.wait()
            stack.runner.schedules.update("tagged", {**DAILY, "properties": {"n": 1_000_000 + turn}})
            stack.runner.database.drop()

        threads = [threading.Thread(target=change, args=(n,)) for n in range(5)] + [threading.Thread(target=by_hand)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # One, or none where the hand was quicker; and what the hand wrote is the last, or had been seen by nobody who wrote after it.
        assert sorted(set(answers)) in ([200, 412], [412])
        assert answers.count(200) <= 1
        assert stack.runner.schedules.find("tagged").about["input"] == {"n": 1_000_000 + turn}
    assert schedules.revision(stack.runner.database.connection(), "default", "tagged")


# ── what is sent ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_large_answers_are_made_small_for_who_can_read_that(client: FlaskClient) -> None:
    plain = client.get("/openapi.json")
    small = client.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert (plain.headers.get("Content-Encoding"), small.headers["Content-Encoding"]) == (None, "gzip")
    assert gzip.decompress(small.data) == plain.data
    assert len(small.data) < len(plain.data) / 5
    assert "Accept-Encoding" in small.headers["Vary"]
    for given in (plain, small):
        again = client.get(
            "/openapi.json", headers={"If-None-Match": given.headers["ETag"], "Accept-Encoding": "gzip" if given is small else ""}
        )
        assert (again.status_code, again.data) == (304, b"")
    assert "Content-Encoding" not in client.get("/health/live", headers={"Accept-Encoding": "gzip"}).headers


def test_a_tag_that_was_given_with_a_small_answer_matches(client: FlaskClient) -> None:
    properties = {"text": "x" * 2000}
    client.post("/workflow/configs", json={"id": "numbered", "properties": properties})
    seen = client.get("/workflow/configs/numbered", headers={"Accept-Encoding": "gzip"})
    assert seen.headers["Content-Encoding"] == "gzip"
    changed = client.put("/workflow/configs/numbered", json={"id": "numbered", "timeout": 5000}, headers={"If-Match": seen.headers["ETag"]})
    assert changed.status_code == 200


def test_a_body_that_is_too_large_is_refused_by_its_limit_before_anything_is_done(stack: Stack, client: FlaskClient) -> None:
    fits, larger = {"n": 1, "text": "x" * 900_000}, {"n": 1, "text": "x" * 1_100_000}
    assert client.post("/workflow/start/numbered", json=fits).status_code == 201
    for path in ("/workflow/start/numbered", "/api/events", "/workflow/schedules", "/default/workflows"):
        answer = client.post(path, json=larger)
        assert answer.status_code == 413, path
        assert answer.content_type == "application/problem+json"
        assert "1048576 bytes (REQUEST_LIMIT_BYTES)" in answer.get_json()["message"]
    # Nor of one that says nothing of its length.
    answer = client.post("/workflow/start/numbered", data=io.BytesIO(b" " * 1_100_000), headers={"Transfer-Encoding": "chunked"})
    assert answer.status_code in (400, 413)
    assert stack.sql("select count(*) from instances") == [(1,)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{broken", "is no JSON: Expecting property name enclosed in double quotes: line 1 column 2"),
        ("n=1", "is no JSON: Expecting value: line 1 column 1"),
        (b"\xff\xfe\xfd", "is no JSON"),
        ("[1]", "body: must be a JSON object"),
        ('"n"', "body: must be a JSON object"),
        ('{"n": NaN}', "is no JSON: NaN is no number of JSON"),
        ('{"n": 1, "x": -Infinity}', "is no JSON: -Infinity is no number of JSON"),
        ('{"n": 1' + "0" * 5000 + "}", "is no JSON: Exceeds the limit"),
        ('{"n": ' + "[" * 300 + "]" * 300 + "}", "is nested more than 200 levels deep"),
        ('{"n": ' + "[" * 100_000 + "]" * 100_000 + "}", "is nested more than 200 levels deep"),
    ],
    ids=range(10),
)
def test_a_body_that_is_none_is_told_where_it_stops_being_one(stack: Stack, client: FlaskClient, body: str | bytes, said: str) -> None:
    for path in ("/workflow/start/numbered", "/api/workflows/numbered/trigger", "/workflow/triggers", "/api/events"):
        answer = client.post(path, data=body, content_type="application/json")
        assert (answer.status_code, answer.content_type) == (400, "application/problem+json"), path
        assert said in answer.get_json()["message"], path
    assert stack.sql("select count(*) from instances") == [(0,)]


@pytest.mark.parametrize("kind", ["application/json", "application/yaml"])
@pytest.mark.parametrize("depth", [50, 190, 300, 900, 2_000, 20_000])
def test_what_is_nested_deeply_is_taken_or_refused_and_breaks_nothing(stack: Stack, client: FlaskClient, depth: int, kind: str) -> None:
    deep = '{"n": 1, "deep": ' + "[" * depth + "]" * depth + "}"
    taken = {}
    for path, body in {
        "/workflow/start/numbered": f'{{"data": {deep}}}',
        "/api/events": f'{{"eventType": "t", "payload": {deep}}}',
        "/workflow/configs": f'{{"id": "numbered", "properties": {deep}}}',
        "/workflow/schedules": f'{{"id": "deep", "workflow": "numbered", "cron": "0 0 * * *", "properties": {deep}}}',
        "/workflow/triggers": f'{{"name": "deep", "on": "x", "start": "numbered", "input": {deep}}}',
        "/default/workflows": deep,
    }.items():
        answer = client.post(path, data=body, content_type=kind)
        assert answer.status_code < 500, (path, answer.text[:300])
        taken[path] = answer.status_code < 300
    assert taken["/workflow/start/numbered"] == taken["/workflow/schedules"] == (depth <= 190)
    for path in ("/workflow/instances", "/api/events", "/workflow/configs", "/workflow/schedules", "/workflow/triggers", "/workflow/audit"):
        assert client.get(path).status_code == 200, path


def test_every_long_list_is_read_by_cursors_to_its_end(stack: Stack, client: FlaskClient) -> None:
    for n in range(7):
        stack.runner.send_events([{"id": str(n), "source": "s", "type": "t"}])
        client.post("/workflow/start/numbered", json={"n": n})
    stack.sql(
        "insert into dead_letters (instance_id, position, reason, error)"
        " select id, '/do/0', 'x', '{}' from instances order by created_at limit 7 returning id"
    )
    stack.sql(
        "insert into security_events (type, severity, principal, tenant, address)"
        " select 'suspicious_activity', 'low', 'p' || n, 'default', '::1' from generate_series(1, 7) n returning id"
    )
    client.post("/workflow/schedules", json={"id": "s", "workflow": "numbered", "cron": "0 0 * * *", "properties": {"n": 1}})
    client.post("/workflow/schedules/s/backfill", json={"from": "2026-01-01T00:00:00Z", "to": "2026-01-07T00:00:00Z"})
    for path, name, key in (
        ("/workflow/instances", "instances", "id"),
        ("/workflow/events", "events", "number"),
        ("/workflow/dead-letters", "deadLetters", "id"),
        ("/workflow/security/events", "events", "id"),
        ("/workflow/audit", "audit", "id"),
        ("/workflow/schedules/s/history", "fires", "scheduledAt"),
    ):
        whole = [one[key] for one in client.get(path, query_string={"limit": 500}).get_json()[name]]
        assert len(whole) >= 7, path
        found: list[Any] = []
        cursor: Any = None
        while True:
            page = client.get(path, query_string={"limit": 3} | ({} if cursor is None else {"cursor": cursor})).get_json()
            found += [one[key] for one in page[name]]
            if (cursor := page["next"]) is None:
                break
        assert found == whole, path
        assert found == sorted(found, reverse=True), path
        assert client.get(path, query_string={"cursor": "é"}).status_code == 400, path
