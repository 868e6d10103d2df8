"""What is shipped beside the engine works as it stands: configurations, schedules, and the workflows they name."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api import create_app
from tests.guarded import guarded, key
from tests.stack import Stack, until

ROOT = Path(__file__).parents[2]
RECORDS = [{"id": n, "Name ": f" n{n} ", "none": None} for n in range(2500)]


@pytest.fixture
def shipped(stack: Stack) -> Stack:
    stack.workflows = "orchestrator.workflows"
    stack.environment["CONFIG_DIR"] = str(ROOT / "config")
    stack.worker()
    return stack


def test_the_configuration_holds(shipped: Stack) -> None:
    client = guarded(shipped).test_client()
    engineer = key(shipped, "operator", name="ann", scopes=["data-engineer", "data:read", "data:write"])
    reader = key(shipped, "operator", name="bob", scopes=["data:read"])
    until(lambda: client.get("/workflow/configs?nameSpace=etl", headers=engineer).get_json()["configs"], 20)
    [held] = client.get("/workflow/configs?nameSpace=etl", headers=engineer).get_json()["configs"]
    assert (held["id"], held["name"]) == ("data-processing", "Data Processing Pipeline")
    start = {"data": {"records": RECORDS}}
    assert client.post("/workflow/start/data-processing", json=start, headers=reader).status_code == 403
    started = client.post("/workflow/start/data-processing", json=start, headers=engineer)
    assert started.status_code == 201, started.text
    instance_id = started.get_json()["instanceId"]
    # A validation comes first, and one that fails is none.
    failed = shipped.ended(shipped.runner.start_workflow("data-validation", input={"records": [1, {"id": 2}, {"id": 2}, {}]}))
    assert failed["error"]["message"].startswith("3 of 4 records are faulty: record 0 is no object; record 2 repeats the id 2;")
    assert shipped.state(instance_id) == "PENDING"
    shipped.ended(shipped.runner.start_workflow("data-validation", input={"records": RECORDS}))
    done = shipped.ended(instance_id)
    assert (done["status"], done["output"]["records"], done["output"]["batches"]) == ("COMPLETED", 2500, 3)
    lines = Path(done["output"]["path"]).read_text().splitlines()
    assert [json.loads(line) for line in (lines[0], lines[7], lines[-1])] == [{"id": n, "name": f"n{n}"} for n in (0, 7, 2499)]


def test_an_input_goes_before_the_properties(shipped: Stack) -> None:
    records = [{"id": 1, "tags": ["a"]}, {"id": 2, "name": "x,y"}]
    shipped.ended(shipped.runner.start_workflow("data-validation", input={"records": records}))
    given = {"records": records, "batchSize": 1, "outputFormat": "csv"}
    done = shipped.ended(shipped.runner.start_workflow("data-processing", input=given))
    assert done["output"]["batches"] == 2
    rows = list(csv.DictReader(io.StringIO(Path(done["output"]["path"]).read_text())))
    assert rows == [{"id": "1", "name": "", "tags": '["a"]'}, {"id": "2", "name": "x,y", "tags": ""}]


def test_the_schedules_are_read_as_they_are_and_do_what_they_say(shipped: Stack) -> None:
    client = create_app(shipped.runner).test_client()
    found = {one["id"]: one for one in client.get("/workflow/schedules").get_json()["schedules"]}
    assert {name: dt.datetime.fromisoformat(found[name]["nextRun"]).strftime("%H:%M") for name in ("daily-reports", "daily-report")} == {
        "daily-reports": "06:00",
        "daily-report": "09:00",
    }
    assert found["daily-reports"]["description"] == "Generate daily reports for all clients"
    yesterday = (dt.datetime.now(dt.UTC) - dt.timedelta(days=1)).date().isoformat()
    for number, type in enumerate(("sales.lead.created", "sales.lead.created", "sales.won", "salesman.hired", "inventory.low")):
        shipped.runner.send_events([{"id": str(number), "source": "s", "type": type}])
    shipped.sql("update events set at = at - interval '1 day' returning id")
    run = client.post("/workflow/schedules/daily-reports/run", json={}).get_json()
    done = shipped.ended(run["instanceId"])
    assert done["status"] == "COMPLETED", done
    folder = shipped.folder / "output/reports/daily"
    told = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert set(told) == {f"{name}-{yesterday}.json" for name in ("sales", "inventory", "analytics")}
    assert told[f"sales-{yesterday}.json"]["events"] == {"sales.lead.created": 2, "sales.won": 1}
    assert told[f"analytics-{yesterday}.json"]["total"] == 0
    # The other one: what workflows did.
    today = dt.datetime.now(dt.UTC).date().isoformat()
    done = shipped.ended(shipped.runner.start_workflow("generate-report", input={"day": today}))
    report = json.loads(Path(done["output"]["path"]).read_text())
    assert (report["report"], report["workflows"]["generate-reports"]) == ("daily", {"COMPLETED": 1})


@pytest.mark.parametrize("path", ["../up", "/a/../../up", "."])
def test_a_report_stays_in_its_folder(shipped: Stack, path: str) -> None:
    done = shipped.ended(shipped.runner.start_workflow("generate-report", input={"outputPath": path, "reportType": "x"}))
    where = {str(found.relative_to(shipped.folder)) for found in shipped.folder.rglob("x-*.json")}
    assert all(name.startswith("output/") for name in where)
    assert (done["status"] == "FAILED") == (not where)


def test_every_common_use_has_a_schedule_that_can_be_switched_on(shipped: Stack) -> None:
    client = create_app(shipped.runner).test_client()
    found = {one["id"]: one for one in client.get("/workflow/schedules").get_json()["schedules"]}
    assert {name: found[name]["enabled"] for name in found} == {
        "daily-reports": True,
        "daily-report": True,
        "nightly-batch": False,
        "weekly-check-up": False,
        "data-sync": False,
        "cleanup": False,
    }
    assert client.post("/workflow/schedules/data-sync/resume", json={}).get_json()["enabled"] is True

    def run(name: str) -> dict[str, Any]:
        told = client.post(f"/workflow/schedules/{name}/run", json={}).get_json()
        done = shipped.ended(told["instanceId"])
        assert done["status"] == "COMPLETED", done
        output: dict[str, Any] = done["output"]
        return output

    def copied(told: dict[str, Any]) -> tuple[Any, ...]:
        return told["copied"], told["removed"], told["same"]

    folder = shipped.folder / "output"
    for name, text in {"a": '{"id": 1, "Name ": " x "}\n\n{"id": 2}\n', "b": '{"id": 1}\nnot json\n', "c": '{"id": NaN}\n'}.items():
        (folder / "inbox").mkdir(parents=True, exist_ok=True)
        (folder / f"inbox/{name}.jsonl").write_text(text)
    told = run("nightly-batch")
    assert [(one["file"], one.get("records"), one.get("refused")) for one in told["process"]] == [
        ("inbox/a.jsonl", 2, None),
        ("inbox/b.jsonl", None, "line 2 is no JSON object"),
        ("inbox/c.jsonl", None, "line 1 is no JSON object"),
    ], told
    assert (folder / "processed/a.jsonl").read_text() == '{"id": 1, "name": "x"}\n{"id": 2}\n'
    assert sorted(str(path.relative_to(folder / "inbox")) for path in (folder / "inbox").rglob("*.jsonl")) == [
        "done/a.jsonl",
        "refused/b.jsonl",
        "refused/c.jsonl",
    ]

    (folder / "mirror").mkdir()
    (folder / "mirror/old.txt").write_text("")
    assert copied(run("data-sync")) == (["a.jsonl"], ["old.txt"], 0)
    assert copied(run("data-sync")) == ([], [], 1)

    report = json.loads(Path(run("weekly-check-up")["path"]).read_text())
    assert report["instances"]["COMPLETED"] >= 3
    assert report["databaseBytes"] > 0
    assert report["outputBytes"] > 0

    os.utime(folder / "processed/a.jsonl", (0, 0))
    assert run("cleanup")["removed"] == ["processed/a.jsonl"]
    assert not (folder / "processed/a.jsonl").exists()
    assert (folder / "mirror/a.jsonl").exists()


def test_upkeep_stays_where_it_may_be(shipped: Stack) -> None:
    refused = [
        ("mirror-folder", {"source": "processed", "target": "processed/in"}, "lie within each other"),
        ("mirror-folder", {"source": "../..", "target": "mirror"}, "leads out of OUTPUT_DIR"),
        ("mirror-folder", {"source": "nowhere", "target": "mirror"}, "there is no folder 'nowhere'"),
        ("remove-old-files", {"folders": ["/"]}, "leads out of OUTPUT_DIR"),
    ]
    started = [(shipped.runner.start_workflow(workflow, input=given), why) for workflow, given, why in refused]
    for instance_id, why in started:
        failed = shipped.ended(instance_id)
        assert failed["status"] == "FAILED"
        assert why in failed["error"]["message"]
