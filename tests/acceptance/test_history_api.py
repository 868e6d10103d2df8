"""What has ended: found by page and day, explained, deleted."""

from __future__ import annotations

import datetime as dt

from orchestrator.api import create_app
from tests.guarded import guarded, key
from tests.stack import Stack


def test_history_is_read_by_page_and_day_and_says_what_failed(stack: Stack) -> None:
    stack.worker()
    client = create_app(stack.runner).test_client()
    done = [stack.run("numbered", {"n": n})["id"] for n in range(3)]
    failed = stack.run("late", {})["id"]
    stack.runner.start_workflow("waits-long", input={})
    page = client.get("/workflow/history?limit=2&page=2").get_json()
    assert page["pagination"] == {"page": 2, "limit": 2, "total": 4, "pages": 2}
    assert [one["id"] for one in page["history"]] == done[1::-1]
    assert [one["id"] for one in client.get("/workflow/history?status=failed").get_json()["history"]] == [failed]
    assert client.get("/workflow/history?since=2099-01-01T00:00:00Z").get_json()["history"] == []
    [day] = client.get("/workflow/history/days").get_json()["days"]
    assert (day["day"], day["total"], day["completed"], day["failed"]) == (dt.datetime.now(dt.UTC).date().isoformat(), 4, 3, 1)
    assert day["average_s"] >= 0
    [step] = client.get(f"/workflow/history/{failed}").get_json()["failedSteps"]
    assert step["error"]["code"] == "timeout"
    assert client.get("/workflow/history?status=nonsense").status_code == 400


def test_what_has_ended_is_deleted_one_by_one_and_by_filter_and_nothing_else(stack: Stack) -> None:
    stack.worker()
    client = create_app(stack.runner).test_client()
    done = [stack.run("numbered", {"n": n})["id"] for n in range(4)]
    running = stack.runner.start_workflow("waits-long", input={})
    assert client.delete(f"/workflow/history/{running}").status_code == 400
    assert client.delete(f"/workflow/history/{'0' * 8}-0000-7000-8000-{'0' * 12}").status_code == 404
    assert client.delete("/workflow/history", json={}).status_code == 400
    assert client.delete(f"/workflow/history/{done[0]}").get_json() == {"deleted": [done[0]]}
    assert client.get(f"/workflow/instance/{done[0]}").status_code == 404
    assert client.delete("/workflow/history", json={"ids": [done[1], running]}).get_json() == {"deleted": [done[1]]}
    gone = client.delete("/workflow/history", json={"workflow": "numbered"}).get_json()["deleted"]
    assert sorted(gone) == sorted(done[2:])
    assert stack.sql("select count(*) from branches where instance_id <> %s", running) == [(0,)]
    assert stack.sql("select count(*) from audit where action = 'delete-history'") == [(3,)]


def test_an_admin_deletes_their_own_tenants_history_alone(stack: Stack) -> None:
    stack.worker()
    app = guarded(stack)
    client = app.test_client()
    ours = stack.runner.start_workflow("numbered", input={"n": 1}, tenant="a")
    stack.ended(ours)
    other = key(stack, "admin", tenant="b")
    assert client.delete("/workflow/history", json={"ids": [ours]}, headers=other).get_json() == {"deleted": []}
    assert client.delete(f"/workflow/history/{ours}", headers=other).status_code == 404
    assert client.delete("/workflow/history", json={"ids": [ours]}, headers=key(stack, "operator", tenant="a")).status_code == 403
    assert client.delete("/workflow/history", json={"ids": [ours]}, headers=key(stack, "admin", tenant="a")).get_json() == {
        "deleted": [ours]
    }
