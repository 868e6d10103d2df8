"""What the command line is told, and what it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, Field

from orchestrator import Workflow, step
from orchestrator.dev.servers import Postgres, Redis
from orchestrator.dev.supervisor import first_command
from orchestrator.store.events import EventFilter
from orchestrator.testing import Lab
from tests.conftest import fresh_database
from tests.proofs.project import Project
from tests.proofs.screens import Screen, screen
from tests.proofs.system import SHIPPED
from tests.stack import Stack, until
from tests.web import web


@pytest.fixture(scope="module")
def shop(postgres: Postgres, redis_server: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(fresh_database(postgres), redis_server, tmp_path_factory.mktemp("words"), workflows=f"tests.workflows.basic,{SHIPPED}")
    made.worker()
    yield made
    made.stop()


def labelled(stack: Stack, number: int, **labels: str) -> list[str]:
    return [str(stack.runner.start_workflow("waits-long", input={}, labels=labels)) for _ in range(number)]


def states(stack: Stack, ids: list[str]) -> set[str]:
    return {stack.state(instance_id) for instance_id in ids}


# ── labels, filters, many at once ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.proves(36)
def test_what_a_request_asks_beside_the_point_is_refused(shop: Stack) -> None:
    """A filter that is not read is a filter that finds everything."""
    ids = labelled(shop, 2, shop="south")
    with web(shop) as (url, _):
        for path, said in [
            ("/workflow/instances?stat=RUNNING", 'Did you mean "state"'),
            ("/workflow/instances?state=NOPE", "COMPLETED"),
            ("/workflow/events?state=NOPE", "discarded"),
            ("/workflow/history?workflw=x", 'Did you mean "workflow"'),
        ]:
            answer = httpx.get(url + path, trust_env=False)
            assert answer.status_code == 400, (path, answer.text)
            assert said.replace('"', '\\"') in answer.text, answer.text
        for path, body in [
            ("?label=shop=north", {"workflow": "waits-long"}),
            ("", {"state": "NOPE"}),
            ("", {"state": ["RUNNING", "NOPE"]}),
        ]:
            answer = httpx.post(f"{url}/workflow/instances/pause{path}", json=body, trust_env=False)
            assert answer.status_code == 400, (path, body, answer.text)
        assert httpx.get(f"{url}/health?verbose", trust_env=False).status_code in (200, 503)
    assert states(shop, ids) == {"RUNNING"}


@pytest.mark.proves(36)
def test_a_question_is_asked_once_and_in_letters(shop: Stack) -> None:
    labelled(shop, 1, shop="once")
    with web(shop) as (url, _):
        for path, said in [
            ("/workflow/instances?workflow=waits-long&workflow=order", "workflow: is given 2 times; it takes one value"),
            ("/workflow/instances?limit=1&limit=2", "limit: is given 2 times"),
            ("/workflow/events?type=a&type=b", "type: is given 2 times"),
            ("/workflow/instances?search=%00", "search: holds the character U+0000"),
            ("/workflow/history?workflow=a%00b", "workflow: holds the character U+0000"),
            ("/workflow/audit?actor=%00", "actor: holds the character U+0000"),
            ("/workflow/schedules/%00", "a text holds the character U+0000"),
        ]:
            answer = httpx.get(url + path, trust_env=False)
            assert answer.status_code == 400, (path, answer.text)
            assert said in answer.json()["message"], (path, answer.text)
        several = "/workflow/instances?state=RUNNING&state=PENDING&state=CANCELLED&label=shop=once&label=shop=once"
        assert len(httpx.get(url + several, trust_env=False).json()["instances"]) == 1


@pytest.mark.proves(36)
def test_an_empty_filter_is_not_all_there_are(shop: Stack) -> None:
    ids = labelled(shop, 2, shop="empty")
    shop.runner.send_events([{"id": "empty", "source": "/empty", "type": "empty"}])

    for arguments in (
        ["ls", "--workflow", ""],
        ["ls", "--search", ""],
        ["cancel", "--state", "RUNNING", "--workflow", "", "--yes"],
        ["cancel", "--label", "shop=empty", "--search", "", "--yes"],
        ["events", "ls", "--type", ""],
        ["events", "replay", "--source", "/empty", "--key", ""],
        ["audit", "--actor", ""],
        ["schedules", "ls", "--workflow", ""],
        ["proxies", "ls", "--state", ""],
    ):
        told = shop.cli(*arguments)
        assert (told.returncode, told.stdout) == (2, ""), arguments
        assert "narrow nothing" in told.stderr
    with web(shop) as (url, _):
        for method, path, body in (
            ("POST", "/workflow/instances/cancel", {"state": "RUNNING", "labels": None}),
            ("POST", "/workflow/instances/cancel", {"state": "RUNNING", "labels": {}}),
            ("POST", "/workflow/instances/cancel", {"labels": {"shop": "empty"}, "state": []}),
            ("POST", "/workflow/instances/cancel", {"labels": {"shop": "empty"}, "state": None}),
            ("POST", "/workflow/instances/cancel", {"labels": {"shop": "empty"}, "workflow": None}),
            ("POST", "/workflow/instances/cancel", {"labels": {"shop": "empty"}, "search": None}),
            ("POST", "/workflow/instances/cancel", {"labels": {"shop": "empty"}, "limit": None}),
            ("DELETE", "/workflow/history", {"search": "no such", "workflow": None}),
            ("POST", "/workflow/events/replay", {"source": "/empty", "type": ""}),
            ("POST", "/workflow/events/replay", {"source": "/empty", "type": None}),
            ("POST", "/workflow/events/discard", {"tenant": "another"}),
        ):
            answer = httpx.request(method, url + path, json=body, trust_env=False)
            assert answer.status_code == 400, (path, body, answer.text)
    assert states(shop, ids) == {"RUNNING"}


@pytest.mark.proves(36)
@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--search"], ["ls", "--workflow"], ["ls", "--state"], ["ls", "--label"], ["cancel", "--yes", "--workflow"], ["cancel"], ["show"],
        ["start"], ["start", "hello", "--input"], ["events", "ls", "--type"], ["audit", "--actor"], ["configs", "show"], ["schedules", "show"],
        ["keys", "add"], ["redis", "GET"], ["proxies", "show"], ["secrets", "put"], ["events", "show"], [],
    ],
)  # fmt: skip
def test_an_argument_that_is_no_text_is_refused_in_a_sentence(shop: Stack, arguments: list[str]) -> None:
    told = shop.cli(*arguments, os.fsdecode(b"\xff\xfe"))

    assert (told.returncode, told.stdout) == (2, ""), told.stderr
    assert "Traceback" not in told.stderr
    assert "Error: " in told.stderr


@pytest.mark.proves(36)
def test_a_file_may_be_called_anything(shop: Stack, tmp_path: Path) -> None:
    data, trigger = (tmp_path / os.fsdecode(name) for name in (b"\xff.json", b"\xfe.yaml"))
    data.write_text('{"name": "of a file"}')
    trigger.write_text("{name: odd-file, on: odd, start: hello}")

    started = shop.cli("start", "hello", "--input", f"@{data}")
    put = shop.cli("triggers", "put", str(trigger))

    assert (started.returncode, put.returncode) == (0, 0), started.stderr + put.stderr


@pytest.mark.proves(36)
def test_a_label_without_a_value_is_refused_wherever_it_stands(shop: Stack) -> None:
    ids = labelled(shop, 2, shop="north")

    for arguments in (["cancel"], ["pause"], ["ls"], ["cancel", "--state", "RUNNING"]):
        told = shop.cli(*arguments, "--label", "shop")
        assert told.returncode == 2, told.stdout
        assert "KEY=VALUE" in told.stderr
    assert "CANCELLED" not in states(shop, ids)
    with web(shop) as (url, _):
        listed = httpx.get(f"{url}/workflow/instances", params={"label": "shop"}, trust_env=False)
        assert listed.status_code == 400, listed.text
        for body in ({"labels": "shop"}, {"labels": ["shop"]}, {"label": {"shop": "north"}, "workflow": "waits-long"}):
            refused = httpx.post(f"{url}/workflow/instances/cancel", json=body, trust_env=False)
            assert refused.status_code == 400, (body, refused.text)
        assert "CANCELLED" not in states(shop, ids)
        found = httpx.get(f"{url}/workflow/instances", params={"label": "shop=north"}, trust_env=False).json()["instances"]
        assert {one["id"] for one in found} == set(ids)

        told_http = httpx.post(f"{url}/workflow/instances/cancel", json={"labels": {"shop": "north"}}, trust_env=False).json()

    assert (sum(told_http["matched"].values()), told_http["changed"], told_http["left"]) == (2, 2, 0)
    assert states(shop, ids) == {"CANCELLED"}


@pytest.mark.proves(36)
def test_many_at_once_are_counted_asked_about_and_none_is_forgotten(shop: Stack) -> None:
    ids = labelled(shop, 60, run="long")

    asked = shop.cli("cancel", "--label", "run=long")
    assert asked.returncode == 2
    assert "60 match" in asked.stderr
    assert "--yes" in asked.stderr
    assert "CANCELLED" not in states(shop, ids)
    few = shop.cli("cancel", "--label", "run=long", "--limit", "3")
    assert "3 cancelled" in few.stderr
    done = shop.cli("cancel", "--label", "run=long", "--yes")

    assert states(shop, ids) == {"CANCELLED"}
    assert "57 cancelled, 3 refused" in done.stderr, done.stderr


@pytest.mark.proves(36)
def test_a_list_has_as_many_as_it_was_asked_for(shop: Stack) -> None:
    labelled(shop, 3, row="yes")

    assert len(json.loads(shop.cli("ls", "--limit", "2", "--json").stdout)) == 2
    assert len(json.loads(shop.cli("ls", "--label", "row=yes", "--limit", "1", "--json").stdout)) == 1


@pytest.mark.proves(36)
def test_a_search_means_its_text_and_no_pattern(shop: Stack) -> None:
    ids = [str(shop.runner.start_workflow("waits-long", input={"off": off})) for off in ("50%", "50 and more", "a_b", "acb", "a\\b")]

    def found(text: str) -> set[int]:
        rows = json.loads(shop.cli("ls", "--search", text, "--limit", "1000", "--json").stdout)
        return {ids.index(one["id"]) for one in rows if one["id"] in ids}

    assert [found(text) for text in ("50%", "a_b", "waits_long", "WAITS-LONG")] == [{0}, {2}, set(), {0, 1, 2, 3, 4}]
    shop.cli("cancel", "--search", "50%")
    assert [shop.state(one) for one in ids[:2]] == ["CANCELLED", "RUNNING"]


@pytest.mark.proves(36)
def test_a_text_in_events_means_itself(shop: Stack) -> None:
    for number, (kind, text) in enumerate([("a.b_c", "50%"), ("a.bxc", "500"), ("a%c", "\\")]):
        shop.runner.send_events([{"id": f"plain-{number}", "source": "/plain", "type": kind, "data": text}])

    def found(**wanted: str) -> set[str]:
        return {one["id"] for one in shop.runner.events(EventFilter(source="/plain", **wanted))}

    assert found(text="50%") == found(type="a.b_c") == {"plain-0"}
    assert found(type="a%c") == found(text="\\\\") == {"plain-2"}
    assert found(type="a.*") == {"plain-0", "plain-1"}


# ── inputs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.proves(42)
def test_the_first_command_that_is_suggested_works(shop: Stack) -> None:
    told = shop.cli("start", "hello", "--wait", "--json")

    assert told.returncode == 0, told.stdout + told.stderr
    assert json.loads(told.stdout)["output"] == {"greeting": "Hello, world!"}


@pytest.mark.proves(42)
def test_a_folder_of_ones_own_is_suggested_what_is_there(shop: Stack, postgres: Postgres, redis_server: Redis, tmp_path: Path) -> None:
    shop.runner.initialize()
    assert first_command(shop.settings) == "start hello --wait"
    own = Stack(fresh_database(postgres), redis_server, tmp_path, workflows="tests.proofs.shop")
    try:
        assert first_command(own.settings) == "workflows"
        own.runner.initialize()
        assert first_command(own.settings) == "workflows", "no worker has its code"
        own.worker(concurrency=1)
        assert first_command(own.settings) == "start hi --wait"
        told = own.cli(*first_command(own.settings).split())
        assert told.returncode == 0, told.stderr
    finally:
        own.stop()


@pytest.mark.proves(42)
def test_an_input_gets_the_defaults_of_its_model(shop: Stack) -> None:
    assert shop.run("order", {"id": 7})["status"] == "COMPLETED"


class Address(BaseModel):
    street: str
    country: str = "CH"


class Delivery(BaseModel):
    id: int = 1
    to: Address | None = None
    stops: list[Address] = Field(default_factory=list)
    express: bool = False


@step(type="proofs.unpack", retries=0)
def unpack(id: int, express: bool, data: dict[str, Any]) -> dict[str, Any]:
    return {"id": id, "express": express, "to": data.get("to"), "stops": data.get("stops")}


@step(type="proofs.adds", retries=0)
def adds(number: int = 2) -> int:
    return number + 1


@step(type="proofs.takes", retries=0)
def takes(delivery: Delivery) -> int:
    return delivery.id


@pytest.mark.proves(42)
def test_absent_data_is_what_its_defaults_say() -> None:
    flow = Workflow("unpacks", input=Delivery).then(unpack)
    run = Lab().run(flow, {"to": {"street": "a"}, "stops": [{"street": "b"}]})
    run.assert_completed()
    assert run.output["id"] == 1
    assert (run.output["to"], run.output["stops"]) == ({"street": "a", "country": "CH"}, [{"street": "b", "country": "CH"}])
    Lab().run(flow).assert_completed()
    assert Lab().run(Workflow("adds").then(adds)).assert_completed().output == {"adds": 3}
    assert Lab().run(Workflow("takes").then(takes)).assert_completed().output == {"takes": 1}


@pytest.mark.proves(53)
def test_an_input_may_be_a_file_and_a_wait_may_end(shop: Stack, tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"name": "Ada"}')

    told = shop.cli("start", "hello", "--input", f"@{file}", "--wait", "--json")
    assert json.loads(told.stdout)["output"]["greeting"] == "Hello, Ada!", told.stderr
    missing = shop.cli("start", "hello", "--input", f"@{tmp_path}/none.json")
    assert missing.returncode == 2
    assert "cannot be read" in missing.stderr
    late = shop.cli("start", "waits-long", "--wait", "--wait-timeout", "300ms")
    assert late.returncode == 5
    assert "orchestrator watch" in late.stderr
    assert shop.cli("start", "hello", "--wait-timeout", "1s").returncode == 2
    assert shop.cli("start", "hello", "--wait", "--wait-timeout", "soon").returncode == 2


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.proves(49)
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_terminal_of_any_width_shows_errors_and_labels(shop: Stack, columns: int) -> None:
    failed = shop.run("order", {"id": 1, "fail": "ship"}, labels={"shop": "north-by-north-west"})

    shown = screen(shop, columns, "ls", "--label", "shop=north-by-north-west", "--limit", "1")

    words = " ".join(shown.split())
    for word in ("ID", "LABELS", "ERROR", failed["id"], "shop=north-by-north-west", "order", "FAILED"):
        assert word in words, shown
    assert "".join(failed["error"]["message"].split())[:60] in "".join(shown.split()), shown
    assert max(len(line) for line in shown.splitlines()) <= columns


@pytest.mark.proves(49)
def test_workflows_are_listed_with_their_namespaces(shop: Stack) -> None:
    shop.runner.register_workflow(Workflow("spaced", namespace="elsewhere").set({}).build())

    listed = shop.cli("workflows").stdout

    assert any("elsewhere" in line and "spaced" in line for line in listed.splitlines()), listed


@pytest.mark.proves(49)
def test_names_and_ids_are_completed(shop: Stack) -> None:
    [instance_id] = labelled(shop, 1, completed="yes")

    program = "orchestrator"
    assert "plain,hello" in _completed(shop, f"{program} start hel", 2)
    assert instance_id in _completed(shop, f"{program} show {instance_id[:6]}", 2)
    assert instance_id in _completed(shop, f"{program} cancel ", 2)


def _completed(stack: Stack, words: str, position: int) -> str:
    program = "from orchestrator.cli import cli; cli(prog_name='orchestrator')"
    variables = stack.variables(_ORCHESTRATOR_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(position))
    return subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.mark.proves(49)
def test_an_id_may_be_its_end_and_the_help_says_so(shop: Stack) -> None:
    one, other = labelled(shop, 2, near="yes")

    assert json.loads(shop.cli("show", one[-8:], "--json").stdout)["id"] == one
    ambiguous = shop.cli("show", other[:6])
    assert ambiguous.returncode == 3
    assert "the end" in ambiguous.stderr
    assert "shortened to its end" in " ".join(shop.cli("--help").stdout.split())
    assert shop.cli("show", "____").returncode == 3


@pytest.mark.proves(49)
@pytest.mark.parametrize("how", ["--wait", "--watch"])
def test_who_stops_waiting_is_told_what_goes_on(shop: Stack, how: str) -> None:
    before = {one["id"] for one in json.loads(shop.cli("ls", "--workflow", "waits-long", "--limit", "1000", "--json").stdout)}
    running = Screen(shop, 100, "start", "waits-long", how)
    [made] = until(lambda: {str(row[0]) for row in shop.sql("select id from instances where workflow = 'waits-long'")} - before)
    until(lambda: shop.runner.get_workflow_status(made)["status"] == "RUNNING")
    running.until(lambda text: how == "--wait" or made in text)
    running.interrupt()

    shown = running.ended()

    assert f"{made} goes on" in shown
    assert f"orchestrator watch {made}" in " ".join(shown.split())
    assert running.process.returncode == 130


@pytest.mark.proves(49)
def test_watching_ends_with_a_line(shop: Stack) -> None:
    done = shop.run("sequence", {})["id"]

    assert screen(shop, 100, "watch", done).endswith("\n")
    assert shop.cli("watch", done).stdout.endswith("\n")


@pytest.mark.proves(49)
def test_what_is_validated_is_named_with_file_and_line(shop: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    texts = {
        "good.yaml": "type: good\nsteps:\n- {id: a, type: log, parameters: {message: hello}}\n",
        "keys.yaml": "type: keys\nsteps:\n- id: a\n  type: log\n  retires: 3\n  parameters: {message: x}\n",
        "types.yaml": "type: types\nsteps:\n- id: a\n  type: log\n  parameters: {message: x}\n- id: b\n  type: warp\n",
        "syntax.yaml": "type: [\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)

    told = shop.cli("validate", *(str(folder / name) for name in texts))

    assert told.returncode == 2
    assert f"{folder}/good.yaml: good@1 is valid" in told.stdout
    assert f"{folder}/keys.yaml:5" in told.stderr
    assert f"{folder}/types.yaml:6" in told.stderr or f"{folder}/types.yaml:7" in told.stderr, told.stderr
    assert f"{folder}/syntax.yaml:" in told.stderr


@pytest.mark.proves(49)
def test_a_workflow_that_is_invalid_is_told_as_that(stack: Stack, tmp_path: Path) -> None:
    project = Project(stack, tmp_path / "project")
    project.write("flows.py", 'from orchestrator import Workflow\n\norder = Workflow("order").then("warp")\n')

    told = stack.cli("start", "order")

    assert told.returncode == 2, told.stderr
    assert "no executor found for step type: warp" in told.stderr
    assert "flows.py" in told.stderr
    assert "no workflow 'order'" not in told.stderr


@pytest.mark.proves(49)
def test_what_is_at_fault_in_python_is_told_with_its_place_in_one_line_each(stack: Stack, tmp_path: Path) -> None:
    project = Project(stack, tmp_path / "project")
    step = "from orchestrator import Workflow, step\n\n\n@step\ndef ship() -> None: ...\n\n\n"
    first = project.write("first.py", step + "open = Workflow('open').then(ship)\nopen.parallel().do('noop')\nopen.if_('.x')\n")
    second = project.write("second.py", step)

    told = stack.cli("start", "open")
    assert told.returncode == 2, told.stderr
    said = told.stderr.splitlines()
    refused = said[said.index("workflow 'open' is not registered: it has 2 faults:") + 1 :]
    assert [line.partition(": ")[0] for line in refused] == [f"  - {first}:9", f"  - {first}:10"]
    assert f"({second}:4)" in told.stderr, "where the module asked for what is refused"
    stack.worker(concurrency=1)
    until(lambda: "first.py:9" in stack.cli("doctor").stdout, 20)
    doctor = stack.cli("doctor").stdout
    assert "?" not in next(line for line in doctor.splitlines() if "first.py:9" in line)

    python = stack.cli("validate", str(first))
    assert python.returncode == 2
    assert "This is Python" in python.stderr


@pytest.mark.proves(49)
def test_dead_letters_can_be_acknowledged(shop: Stack) -> None:
    one, other = (shop.run("order", {"id": number, "fail": "ship"})["id"] for number in (1, 2))
    letters = {row["instance_id"]: row["id"] for row in json.loads(shop.cli("dead-letters", "--json").stdout)}

    told = shop.cli("dead-letters", "ack", str(letters[one]), "--reason", "paid back by hand")
    assert told.returncode == 0, told.stderr
    with web(shop) as (url, _):
        done = httpx.post(f"{url}/workflow/dead-letters/acknowledge", json={"numbers": [letters[other]]}, trust_env=False)
        assert done.json() == {"acknowledged": [letters[other]]}
        none = httpx.post(f"{url}/workflow/dead-letters/acknowledge", json={"numbers": [2**40]}, trust_env=False)
        assert none.status_code == 404

    left = {row["instance_id"] for row in json.loads(shop.cli("dead-letters", "--json").stdout)}
    assert not left & {one, other}
    audit = json.loads(shop.cli("audit", "--instance", one, "--json").stdout)
    assert audit[0]["action"] == "acknowledge"
    assert audit[0]["detail"] == {"dead_letter": letters[one], "reason": "paid back by hand"}
    assert shop.cli("dead-letters", "ack", "--all").returncode == 0
    checks = {check["check"]: check["ok"] for check in json.loads(shop.cli("doctor", "--json").stdout)}
    assert checks["dead letters"]


@pytest.mark.proves(52)
def test_a_look_back_at_an_ended_saga_shows_it_on_its_way(shop: Stack) -> None:
    ended = shop.run("order", {"id": 3, "fail": "ship"})
    assert ended["phase"] == "compensating"

    early = shop.runner.show(ended["id"], 1).status()

    assert (early["status"], early["phase"]) == ("RUNNING", "forward")
    assert "ompensating" not in screen(shop, 100, "replay", ended["id"], "--at", "1")
    facts = len(shop.runner.history(ended["id"]))
    assert shop.runner.show(ended["id"], facts - 1).status()["phase"] == "compensating"
