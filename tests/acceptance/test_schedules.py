"""Schedules: each planned time once, whoever fires it; and what becomes of those that passed, overlap or fail."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestrator.api import create_app
from orchestrator.definition.documents import read_document
from orchestrator.engine import scheduling
from orchestrator.errors import Invalid, NotFound, Taken
from orchestrator.schedule import times
from orchestrator.schedule.spec import read_schedule, read_schedules
from orchestrator.store import connection
from tests import commands
from tests.stack import Stack, until


def daily(name: str = "daily", **more: Any) -> dict[str, Any]:
    return {"id": name, "workflow": "numbered", "cron": "0 9 * * *", "properties": {"n": 1}, **more}


def go_back(stack: Stack, name: str, **span: float) -> None:
    """As if the schedule had been made, and nothing had run, for so long. Times are on whole seconds: one more, to be past them."""
    back = dt.timedelta(**span) + dt.timedelta(seconds=1)
    stack.sql(
        "update schedules set planned_at = planned_at - %s, next_at = next_at - %s where name = %s returning 1",
        *[back] * 2,
        name,
    )
    stack.sql(
        "with s as (select id from schedules where name = %s) update fires f set planned_at = planned_at - %s from s where s.id = f.schedule_id returning 1",
        name, back,
    )  # fmt: skip
    stack.sql("update instances set idempotency_key = 'once ' || id where idempotency_key like 'schedule:%%' returning 1")


def fires(stack: Stack, name: str) -> list[str]:
    return [fire["outcome"] for fire in reversed(stack.runner.schedules.history(name))]


def at(text: str) -> float:
    return dt.datetime.fromisoformat(text).timestamp()


# ── what schedules say ──────────────────────────────────────────────────────────────────────────────────────────────

NESTED = {
    "id": "daily-reports",
    "name": "Daily Report Generation",
    "description": "Generate daily reports for all clients",
    "workflow": {"id": "generate-reports", "version": "1.0", "nameSpace": "reporting"},
    "schedule": {"cron": "0 6 * * *", "timezone": "UTC", "enabled": True},
    "properties": {"reportTypes": ["sales", "inventory", "analytics"], "outputPath": "/reports/daily"},
    "retry": {"attempts": 3, "delay": 300},
    "timeout": 1800,
    "maxConcurrent": 1,
}


def test_nested_and_flat_forms_one_or_many_a_file() -> None:
    [nested] = read_schedules({"schedules": [NESTED]})
    assert (nested.id, nested.target, nested.version, nested.when["cron"]) == (
        "daily-reports",
        "reporting.generate-reports",
        "1.0",
        "0 6 * * *",
    )
    assert (nested.retry_attempts, nested.retry_delay_s, nested.timeout_s, nested.max_concurrent, nested.overlap) == (
        3,
        300,
        1800,
        1,
        "skip",
    )
    flat = read_schedule({"id": "a", "name": "A", "workflowId": "w", "cron": "0 9 * * *", "timezone": "Europe/Berlin"})
    assert (flat.workflow, flat.when) == ("w", {"cron": "0 9 * * *", "timezone": "Europe/Berlin"})
    assert [spec.id for spec in read_schedules([daily("a"), daily("b")])] == ["a", "b"]
    assert read_schedule({"id": "x", "workflow": "w", "every": "5m"}).when == {"every": 300.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cron": "61 * * * *"}, "minute"),
        ({"cron": "* * * *"}, "five fields"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"every": "5m"}, "Only one of cron and every"),
        ({"cron": None}, "One of cron, every and at"),
        ({"bogus": 1}, "bogus"),
        ({"overlap": "maybe"}, "Expected allow, skip, queue or cancel"),
        ({"maxConcurrent": 0}, "maxConcurrent"),
        ({"jitter": "soon"}, "jitter"),
        ({"id": "a b"}, "id"),
        ({"workflow": None}, "workflow"),
        ({"schedule": {"enabled": "yes"}}, "true or false"),
    ],
)
def test_faults_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_schedule(daily() | change)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("when", "after", "expected"),
    [
        ({"cron": "0 9 * * *", "timezone": "Europe/Berlin"}, "2026-03-28T12:00:00+00:00", "2026-03-29T07:00:00+00:00"),
        ({"cron": "30 2 * * *", "timezone": "Europe/Berlin"}, "2026-10-24T12:00:00+00:00", "2026-10-25T00:30:00+00:00"),
        ({"cron": "30 2 * * *", "timezone": "Europe/Berlin"}, "2026-10-25T00:30:00+00:00", "2026-10-26T01:30:00+00:00"),
        ({"cron": "0 8 * * 1-5", "timezone": "UTC"}, "2026-11-20T09:00:00+00:00", "2026-11-23T08:00:00+00:00"),
        ({"cron": "0 0 1 * 0", "timezone": "UTC"}, "2026-11-20T00:00:00+00:00", "2026-11-22T00:00:00+00:00"),
        ({"cron": "0 6 * * *", "timezone": "Asia/Tokyo"}, "2026-11-20T00:00:00+00:00", "2026-11-20T21:00:00+00:00"),
    ],
)
def test_cron_in_its_zone_through_both_changes_of_the_clock(when: dict[str, Any], after: str, expected: str) -> None:
    assert times.first(when, at(after)) == at(expected)


# ── firing, without a worker ────────────────────────────────────────────────────────────────────────────────────────


def test_two_who_fire_at_once_start_one_instance_for_each_time(stack: Stack) -> None:
    names = [f"s{n}" for n in range(40)]
    for name in names:
        stack.runner.schedules.add(daily(name, cron=None, every="1d"))
        go_back(stack, name, days=1)
    barrier = threading.Barrier(4)

    def fire() -> None:
        barrier.wait()
        scheduling.fire_due(stack.runner.runtime)
        stack.runner.database.drop()

    threads = [threading.Thread(target=fire) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stack.sql("select count(*), count(distinct idempotency_key) from instances") == [(40, 40)]
    assert {tuple(fires(stack, name)) for name in names} == {("started",)}
    assert all(one["runCount"] == 1 and one["nextRun"] > times.iso(time.time()) for one in stack.runner.schedules.all())


@pytest.mark.parametrize(
    ("catchup", "outcomes", "instances"),
    [("last", ["missed", "started"], 1), ("none", ["missed"], 0), ("all", ["started"] * 5, 5)],
)
def test_five_days_of_downtime(stack: Stack, catchup: str, outcomes: list[str], instances: int) -> None:
    stack.runner.schedules.add(daily(catchup=catchup, catchupWindow="30d", cron=None, at=None, every="1d"))
    # The last of the five was half an hour ago.
    go_back(stack, "daily", days=5, minutes=30)
    scheduling.fire_due(stack.runner.runtime)
    scheduling.fire_due(stack.runner.runtime)
    assert fires(stack, "daily") == outcomes
    assert stack.sql("select count(*) from instances") == [(instances,)]


def test_catching_up_goes_back_no_further_than_its_window(stack: Stack) -> None:
    stack.runner.schedules.add(daily(catchup="all", catchupWindow="2.5h", cron=None, every="1h"))
    go_back(stack, "daily", days=3, minutes=10)
    scheduling.fire_due(stack.runner.runtime)
    assert fires(stack, "daily") == ["missed", "started", "started", "started"]


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel", "allow"])
def test_what_becomes_of_a_time_at_which_the_last_run_is_not_over(stack: Stack, overlap: str) -> None:
    stack.runner.schedules.add(daily(workflow="waits-long", cron=None, every="1h", overlap=overlap))
    for _ in range(3):
        go_back(stack, "daily", hours=1)
        scheduling.fire_due(stack.runner.runtime)
    branches = [
        row[0] for row in stack.sql("select b.state from branches b join instances i on i.id = b.instance_id order by i.created_at, b.id")
    ]
    states = [row[0] for row in stack.sql("select state from instances order by created_at, id")]
    expected: dict[str, Any] = {
        "skip": (["started", "skipped", "skipped"], ["PENDING"]),
        "queue": (["started"] * 3, ["PENDING"] * 3),
        "cancel": (["started"] * 3, ["CANCELLED", "CANCELLED", "PENDING"]),
        "allow": (["started"] * 3, ["PENDING"] * 3),
    }
    assert (fires(stack, "daily"), states) == expected[overlap]
    if overlap == "queue":
        assert branches == ["queued", "blocked", "blocked"]
    assert stack.runner.schedules.status("daily")["skipCount"] == fires(stack, "daily").count("skipped")


def test_a_pause_holds_through_files_and_restarts_and_ends_without_a_burst(stack: Stack) -> None:
    timetable = stack.runner.schedules
    timetable.put_file("x.yaml", [daily(cron=None, every="1h")])
    timetable.enable("daily", False)
    stack.runner.initialize()
    timetable.put_file("x.yaml", [daily(cron=None, every="1h")])
    go_back(stack, "daily", hours=30)
    assert scheduling.fire_due(stack.runner.runtime) == 0
    timetable.enable("daily", True)
    assert scheduling.fire_due(stack.runner.runtime) == 0
    assert timetable.status("daily")["nextRun"] is not None
    # A file that names it no more takes it away.
    timetable.put_file("x.yaml", [daily("other")])
    with pytest.raises(NotFound):
        timetable.status("daily")


def test_run_now_and_backfill_leave_the_plan_as_it_is(stack: Stack) -> None:
    timetable = stack.runner.schedules
    timetable.add(daily())
    planned = timetable.status("daily")["nextRun"]
    made = timetable.run_now("daily", actor="ann")
    end = times.iso(time.time() - 60)
    start = times.iso(time.time() - 60 - 5 * 86400)
    assert len(timetable.backfill("daily", start, end)) == 5
    assert timetable.backfill("daily", start, end) == []
    status = timetable.status("daily")
    assert (status["nextRun"], status["runCount"]) == (planned, 6)
    assert stack.runner.get_workflow_status(made["instanceId"])["metadata"]["schedule"]["scheduleId"] == "daily"
    timetable.add(daily("often", cron="* * * * *"))
    with pytest.raises(Invalid, match="1,000"):
        timetable.backfill("often", times.iso(time.time() - 86400), end)


def test_what_cannot_be_started_is_refused_and_the_schedule_goes_on(stack: Stack) -> None:
    stack.runner.schedules.add(daily(workflow="nowhere", cron=None, every="1h"))
    go_back(stack, "daily", hours=1)
    scheduling.fire_due(stack.runner.runtime)
    [fire] = stack.runner.schedules.history("daily")
    assert fire["outcome"] == "refused"
    assert "nowhere" in fire["reason"]
    assert stack.runner.schedules.status("daily")["errorCount"] == 1
    assert stack.runner.schedules.stats() == {"total": 1, "active": 1, "running": 0, "runs": 0, "skipped": 0, "errors": 1}


def test_once_at_a_moment_and_a_little_later_by_jitter(stack: Stack) -> None:
    stack.runner.schedules.add(daily(cron=None, at=times.iso(time.time() - 5)))
    scheduling.fire_due(stack.runner.runtime)
    scheduling.fire_due(stack.runner.runtime)
    assert fires(stack, "daily") == ["started"]
    assert stack.runner.schedules.status("daily")["nextRun"] is None
    for number in range(20):
        stack.runner.schedules.add(daily(f"j{number}", jitter="10m"))
    late = [row[0] for row in stack.sql("select extract(epoch from next_at - planned_at)::float8 from schedules where name like 'j%%'")]
    assert all(0 <= one < 600 for one in late)
    assert max(late) - min(late) > 60


# ── the API ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_schedules_over_http(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    url = "/workflow/schedules"
    assert client.post(url, json=daily()).status_code == 201
    assert client.post(url, json=daily()).status_code == 409
    bad = client.post(url, json=daily("b", cron="99 * * * *"))
    assert (bad.status_code, bad.get_json()["faults"][0]["place"]) == (400, "/cron")
    assert client.post(url, json={"id": "x"}).status_code == 400
    listed = client.get(url).get_json()
    assert ([one["id"] for one in listed["schedules"]], listed["stats"]["total"]) == (["daily"], 1)
    assert client.get(f"{url}?workflow=other").get_json()["schedules"] == []
    assert client.get(f"{url}/nobody").status_code == 404
    before = client.get(f"{url}/daily").get_json()
    assert (before["schedule"]["cron"], len(before["upcoming"])) == ("0 9 * * *", 5)
    moved = client.put(f"{url}/daily", json={**daily(), "timezone": "Asia/Tokyo"}).get_json()
    assert (at(before["nextRun"]) - at(moved["nextRun"])) % 86400 == 9 * 3600
    assert client.post(f"{url}/daily/stop").get_json()["nextRun"] is None
    assert client.post(f"{url}/daily/start").get_json()["nextRun"] is not None
    assert client.post(f"{url}/daily/run").status_code == 202
    assert [fire["outcome"] for fire in client.get(f"{url}/daily/history").get_json()["fires"]] == ["started"]
    assert client.post(f"{url}/daily/backfill", json={"from": "x"}).status_code == 400
    assert client.post(f"{url}/validate", json=daily("v")).get_json()["isValid"] is True
    assert client.delete(f"{url}/daily").status_code == 200
    assert client.delete(f"{url}/daily").status_code == 404
    assert client.post(url, json=daily()).status_code == 201
    actions = [row[0] for row in stack.sql("select action from audit where detail ? 'schedule' order by id")]
    assert actions == [f"{verb}-schedule" for verb in ("put", "put", "pause", "resume", "run", "delete", "put")]
    with pytest.raises(Taken):
        stack.runner.schedules.add(daily())


# ── with workers and beat ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def beating(stack: Stack) -> Iterator[tuple[Stack, list[commands.Process]]]:
    """A worker and two beats."""
    beats: list[commands.Process] = []
    stack.worker()
    try:
        beats += [beat(stack, number) for number in range(2)]
        until(lambda: stack.redis.exists("orchestrator:beat::lock"), 30)
        yield stack, beats
    finally:
        for one in beats:
            one.kill()
            one.wait()


def beat(stack: Stack, number: int) -> commands.Process:
    with (stack.folder / f"beat-{number}.log").open("ab") as log:
        return commands.start(["celery", "-A", "orchestrator.app", "beat", "--loglevel", "INFO", "--pidfile="], stack.variables(), log)


def test_beat_fires_what_it_mirrors_and_the_keeper_what_beat_missed(beating: tuple[Stack, list[commands.Process]]) -> None:
    stack, beats = beating
    stack.runner.schedules.add(daily("each", cron=None, every="2s"))
    by = lambda: [fire["by"] for fire in stack.runner.schedules.history("each")]  # noqa: E731
    until(lambda: by().count("beat") >= 2, 30, str(by()))
    assert any(key.endswith("default/each") for key in stack.redis.zrange("orchestrator:beat::schedule", 0, -1))
    # Redis is emptied: the mirror is made again.
    stack.redis.flushall()
    until(lambda: any(key.endswith("default/each") for key in stack.redis.zrange("orchestrator:beat::schedule", 0, -1)), 20)
    for one in beats:
        one.kill()
    fired = len(by())
    until(lambda: by()[: len(by()) - fired].count("keeper") >= 2, 20, str(by()))
    rows = stack.sql("select count(*), count(distinct planned_at) from fires")
    assert rows[0][0] == rows[0][1]
    spans = [
        row[0] for row in stack.sql("select extract(epoch from planned_at - lag(planned_at) over (order by planned_at))::float8 from fires")
    ][1:]
    assert all(abs(span - 2) < 0.01 for span in spans), spans
    stack.runner.schedules.delete("each")
    until(lambda: not stack.redis.zrange("orchestrator:beat::schedule", 0, -1), 20)
    assert stack.sql("select count(*) from schedules where name = 'each'") == [(0,)]


def test_a_failing_run_is_tried_again_and_a_long_one_is_stopped(stack: Stack) -> None:
    stack.worker()
    timetable = stack.runner.schedules
    timetable.add(
        daily("fails", workflow="asked", cron=None, at=times.iso(time.time()), properties={"fail": True}, retry={"attempts": 2, "delay": 1})
    )
    timetable.add(daily("long", workflow="waits-long", cron=None, at=times.iso(time.time()), timeout=1))
    until(lambda: timetable.status("fails")["errorCount"] == 1, 30)
    [fire] = timetable.history("fails")
    assert (fire["retries"], fire["state"]) == (2, "FAILED")
    retried = [row[0] for row in stack.sql("select extract(epoch from at)::float8 from audit where action = 'retry' order by id")]
    assert len(retried) == 2
    assert retried[1] - retried[0] >= 1
    until(lambda: timetable.status("long")["errorCount"] == 1, 30)
    ended = stack.runner.get_workflow_status(timetable.history("long")[0]["instanceId"])
    assert (ended["status"], ended["error"]["code"]) == ("FAILED", "timeout")


def test_files_in_schedules_folders_are_read(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "timed_package"
    (package / "schedules").mkdir(parents=True)
    (package / "__init__.py").touch()
    file = package / "schedules" / "reports.yml"
    file.write_text("id: from-file\nname: F\nworkflow: {id: numbered}\nschedule: {cron: '0 6 * * *'}\nproperties: {n: 5}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    stack.workflows = "tests.workflows,timed_package"
    stack.runner.initialize()
    client = create_app(stack.runner).test_client()
    shown = client.get("/workflow/schedules/from-file").get_json()
    assert (shown["name"], shown["source"], shown["properties"]) == ("F", "file:timed_package/schedules/reports.yml", {"n": 5})
    assert "Delete it there" in client.delete("/workflow/schedules/from-file").get_json()["message"]
    file.write_text("id: [broken")
    assert client.post("/workflow/schedules/reload").status_code == 200
    assert client.get("/workflow/schedules/from-file").status_code == 200
    file.write_text("id: renamed\nworkflow: numbered\nevery: 5m\n")
    assert client.post("/workflow/schedules/reload").get_json() == {"reloaded": ["renamed", "from-file"], "faulty": []}
    assert client.get("/workflow/schedules/from-file").status_code == 404


def test_a_tenants_definition_touches_nobody_elses_schedule(stack: Stack) -> None:
    document = "document: {{dsl: '1.0.3', namespace: tests, name: shared, version: '1.0.{0}'}}\nschedule: {{every: {{hours: {1}}}}}\ndo: [{{s: {{set: {{of: '{2}'}}}}}}]"
    stack.runner.register_workflow(read_document(document.format(0, 2, "all")))
    stack.runner.register_workflow(read_document(document.format(1, 3, "acme")), tenant="acme")
    [common] = stack.runner.schedules.all("default")
    [own] = stack.runner.schedules.all("acme")
    assert (common["schedule"]["every"], own["schedule"]["every"]) == (7200.0, 10800.0)
    go_back(stack, own["id"], hours=3)
    assert scheduling.fire_due(stack.runner.runtime) == 2
    assert stack.sql("select tenant, version from instances order by tenant") == [("acme", "1.0.1"), ("default", "1.0.0")]


def set_clock(stack: Stack, hours: float) -> None:
    """The database's clock, by so many hours wrong from here on, for every session: time is asked for by name."""
    stack.sql("update skew set by = make_interval(hours => 0) + %s * interval '1 hour' returning 1", hours)


def test_a_clock_that_is_set_back_doubles_nothing_and_one_that_runs_ahead_loses_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.workflows = "tests.skewed,tests.workflows"
    monkeypatch.setattr(connection, "SEARCH_PATH", connection.SEARCH_PATH)
    with psycopg.connect(stack.database_url, autocommit=True) as c:
        c.execute("create table skew (by interval not null)")
        c.execute("insert into skew values ('0')")
        for name in ("now", "clock_timestamp"):
            c.execute(
                f"create function {name}() returns timestamptz language sql stable as 'select pg_catalog.{name}() + (select by from skew)'"
            )

    def fired() -> int:
        return int(stack.sql("select count(*) from fires f join schedules s on s.id = f.schedule_id where s.name = 'all'")[0][0])

    stack.worker()
    second = {"workflow": "numbered", "every": "1s", "properties": {"n": 1}}
    stack.runner.schedules.add({"id": "all", "catchup": "all", "catchupWindow": "1d", "overlap": "allow", **second})
    until(lambda: fired() >= 3, 20)

    def goes_on(more: int) -> float:
        """It fires so often more; gives how much more often it fired than there were seconds, with a few to notice what was set."""
        before, began = fired(), time.monotonic()
        until(lambda: fired() >= before + more, 30)
        return fired() - before - (time.monotonic() - began)

    # An hour back, and forth again: a second of the hour has its fire once, and the seconds that follow have theirs.
    set_clock(stack, -1)
    assert goes_on(3) < 8
    set_clock(stack, 0)
    assert goes_on(3) < 8
    # A minute ahead: its fires came when it seemed to be over. And right again: it goes on.
    set_clock(stack, 1 / 60)
    assert goes_on(55) > 5
    set_clock(stack, 0)
    assert goes_on(3) < 8
    planned = stack.sql("select f.planned_at from fires f join schedules s on s.id = f.schedule_id where s.name = 'all' order by 1")
    moments = [row[0].timestamp() for row in planned]
    assert len(set(moments)) == len(moments)
    started = stack.sql("select count(*) filter (where outcome = 'started'), count(distinct instance_id) from fires")
    assert started[0][0] == started[0][1] == stack.sql("select count(*) from instances where workflow = 'numbered'")[0][0]


def test_a_schedule_of_nothing_is_kept_with_a_warning(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    kept = client.post("/workflow/schedules", json={"id": "early", "workflow": "not-there-yet", "cron": "0 6 * * *"})
    assert (kept.status_code, kept.get_json()["warnings"][0]["place"]) == (201, "workflow")
    assert "no workflow 'default.not-there-yet'" in kept.get_json()["warnings"][0]["message"]
    changed = client.put("/workflow/schedules/early", json={"workflow": "numbered", "cron": "0 6 * * *"})
    assert (changed.status_code, "warnings" in changed.get_json()) == (200, False)
    both = client.post("/workflow/schedules", json={"id": "bad", "workflow": "numbered", "cron": "0 25 * * *", "timezone": "Mars/X"})
    assert [fault["place"] for fault in both.get_json()["faults"]] == ["/timezone", "/cron"]
