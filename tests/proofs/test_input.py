"""What is wrong is refused where it comes in, with every fault, and is not passed over."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from orchestrator.definition.documents import definition_from
from orchestrator.engine.runner import WorkflowRunner
from tests.proofs.project import Project
from tests.proofs.system import create_app
from tests.stack import Stack, until

BIG = "1" + "0" * 400


def client(stack: Stack) -> Any:
    app = create_app(stack.runner)
    app.testing = False
    return app.test_client()


@pytest.mark.proves(23)
@pytest.mark.parametrize(
    "options",
    [
        '{"metadata": "x"}',
        '{"labels": [1]}',
        '{"labels": {"a": [1]}}',
        '{"dependencies": [5]}',
        '{"dependencies": "data-validation"}',
        '{"dependencies": [{}]}',
        '{"priority": 5}',
        '{"labels": {"a": "\\ud800"}}',
        '{"metadata": {"a": 1e999}}',
    ],
)
def test_options_of_a_start_that_are_none_are_refused(stack: Stack, options: str) -> None:
    body = '{"data": {"n": 1}, ' + options[1:]
    answer = client(stack).post("/workflow/start/numbered", data=body, content_type="application/json")
    assert answer.status_code == 400, answer.text
    assert stack.sql("select count(*) from instances")[0][0] == 0


@pytest.mark.proves(23)
@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("timeout", "Known fields"),
        ("version", "?version=1"),
        ("idempotency_key", "Idempotency-Key"),
        ("tenant", "X-Tenant"),
        ("label", 'Did you mean "labels"?'),
        ("bogus", "Known fields"),
    ],
)
def test_what_stands_beside_the_data_of_a_start_and_is_no_option_is_refused(stack: Stack, field: str, hint: str) -> None:
    """It would be lost without a word, whether it was to be an option or a part of the input."""
    answer = client(stack).post("/workflow/start/numbered", json={"data": {"n": 1}, field: "x", "also": 1})
    assert answer.status_code == 400, answer.text
    said = {one["place"]: one for one in answer.get_json()["faults"]}
    assert set(said) == {f"/{field}", "/also"}
    assert hint in str(said[f"/{field}"])
    assert stack.sql("select count(*) from instances")[0][0] == 0


@pytest.mark.proves(23)
def test_a_queue_from_which_no_worker_takes_is_told_wherever_one_looks(stack: Stack) -> None:
    steps = [{"id": "a", "type": "noop"}, {"id": "b", "type": "noop", "dependencies": ["a"], "queue": "nosuch"}]
    stack.runner.register_workflow(definition_from({"type": "elsewhere", "steps": steps}))
    stack.worker()
    until(lambda: stack.sql("select 1 from workers"))
    instance_id = stack.runner.start_workflow("elsewhere", input={})
    until(lambda: stack.sql("select 1 from branches where queue = 'nosuch' and state = 'queued'"))

    waits = stack.runner.get_workflow_status(instance_id)["waits_for"]
    assert [one["for"] for one in waits] == ["for a worker that takes from the queue nosuch"]
    assert "the queue nosuch" in stack.cli("show", instance_id).stdout
    until(lambda: stack.sql("select 1 from branches where queue = 'nosuch' and queued_at < now() - interval '5 s'"))
    assert stack.sql("select generation from branches where queue = 'nosuch'") == [(2,)], "it was handed over once"
    checks = {one["check"]: one for one in json.loads(stack.cli("doctor", "--json").stdout)}
    assert not checks["queues"]["ok"]
    assert "nosuch" in checks["queues"]["detail"]
    metrics = client(stack).get("/metrics").text
    assert 'orchestrator_unserved_branches{queue="nosuch"} 1.0' in metrics

    stack.worker("-Q", "nosuch")
    stack.ended(instance_id)
    assert "workers take from all" in stack.cli("doctor").stdout


@pytest.mark.proves(23)
@pytest.mark.parametrize("input", ['"\\ud800"', "1e999", '{"a": "\\udfff"}', BIG])
def test_an_input_that_is_no_json_is_refused(stack: Stack, input: str) -> None:
    answer = client(stack).post("/workflow/start/numbered", data=f'{{"data": {input}}}', content_type="application/json")
    assert answer.status_code == 400, answer.text


def registered(stack: Stack, document: str) -> Any:
    return client(stack).post("/workflow/definitions", data=dedent(document), content_type="application/yaml")


@pytest.mark.proves(23, 45)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{id: a, type: noop, once: 'yes'}", "true or false"),
        ("{id: a, type: noop, when: false}", "text"),
        ("{id: a, type: noop, queue: 5}", "text"),
        ("{id: a, type: noop, isolate: 1}", "true or false"),
        ("{id: a, type: approval, retries: 3}", "retries"),
        ("{id: a, type: http, parameters: {url: 'http://localhost', metod: post}}", "metod"),
        ("{id: a, type: log, parameters: {message: hello, levle: debug}}", "levle"),
    ],
)
def test_a_step_of_a_document_that_is_not_what_it_says_is_refused(stack: Stack, line: str, said: str) -> None:
    answer = registered(stack, f"type: t\nsteps:\n  - {line}\n")
    assert answer.status_code == 400, answer.text
    assert said in answer.text
    assert answer.get_json()["faults"][0].get("line") == 3, answer.text


@pytest.mark.proves(45)
def test_an_unknown_key_inside_of_a_document_is_refused_with_a_suggestion(stack: Stack) -> None:
    answer = registered(stack, "type: t\nlimits: {concurency: 5}\nsteps:\n  - {id: a, type: noop}\n")
    assert answer.status_code == 400
    assert "concurrency" in answer.get_json()["faults"][0]["suggestion"]


@pytest.mark.proves(45)
@pytest.mark.parametrize(
    "written",
    [
        "w.start_with('noop').parallel().do('noop')",
        "w.start_with('noop').graph().step('a', 'noop')",
        "w.start_with('noop').if_('.x')",
        "w.start_with('noop').foreach('.items')",
        "w.start_with('noop').then(12345)",
        "w.start_with('noop').wait('soon')",
        "w.start_with('noop').then('noop', retries='3')",
        "w.start_with('noop').then('noop', retires=3)",
    ],
)
def test_what_a_builder_is_told_and_cannot_do_is_refused_with_its_line(stack: Stack, tmp_path: Path, written: str) -> None:
    project = Project(stack, tmp_path / "project")
    file = project.write("flow.py", f"from orchestrator import Workflow\nw = Workflow('w')\n{written}\n")
    project.write("good.py", "from orchestrator import Workflow\ngood = Workflow('good').set({'a': 1})\n")
    listed = project.stack.cli("workflows")
    assert listed.returncode == 0, listed.stderr
    assert "good" in listed.stdout
    assert f"{file}:3" in listed.stderr
    assert project.stack.cli("start", "w").returncode != 0


# ── configurations ──────────────────────────────────────────────────────────────────────────────────────────────────


def configure(stack: Stack, **config: Any) -> Any:
    return client(stack).post("/workflow/configs", json=config)


@pytest.mark.proves(24)
def test_a_configuration_of_a_namespace_that_is_none_is_refused(stack: Stack) -> None:
    answer = configure(stack, id="numbered", nameSpace="defalt", enabled=False)
    assert answer.status_code == 400, answer.text
    assert "default" in str(answer.get_json()["faults"][0])


@pytest.mark.proves(24)
def test_a_configuration_of_a_version_is_for_that_version_alone(stack: Stack) -> None:
    for version in ("1", "2.0"):
        assert registered(stack, f"type: two\nversion: '{version}'\nsteps:\n  - {{id: a, type: noop}}\n").status_code == 201
    assert configure(stack, id="two", version="2.0", enabled=False).status_code == 201
    http = client(stack)
    assert http.post("/workflow/start/two?version=2.0", json={}).status_code == 409
    assert http.post("/workflow/start/two?version=1", json={}).status_code == 201


@pytest.mark.proves(24)
def test_workflows_of_one_name_in_two_namespaces_have_configurations_of_their_own(stack: Stack) -> None:
    for namespace in ("one", "two"):
        assert registered(stack, f"type: same\nnamespace: {namespace}\nsteps:\n  - {{id: a, type: noop}}\n").status_code == 201
    assert configure(stack, id="same", nameSpace="one", enabled=False).status_code == 201
    assert configure(stack, id="same", nameSpace="two", priority="high").status_code == 201
    http = client(stack)
    assert http.post("/workflow/start/one.same", json={}).status_code == 409
    assert http.post("/workflow/start/two.same", json={}).status_code == 201


@pytest.mark.proves(24)
def test_a_configuration_whose_dependency_names_nothing_is_refused(stack: Stack) -> None:
    assert configure(stack, id="numbered", dependencies=[{}]).status_code == 400
    assert client(stack).post("/workflow/start/numbered", json={"n": 1}).status_code == 201


# ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────────────

DAILY = "id: {id}\nworkflow: numbered\ncron: '0 6 * * *'\n"


@pytest.fixture
def folder(stack: Stack) -> Path:
    made = stack.folder / "config" / "schedules"
    made.mkdir(parents=True)
    return made


def names(stack: Stack) -> set[str]:
    return {row[0] for row in stack.sql("select name from schedules where origin <> 'deleted'")}


@pytest.mark.proves(25)
def test_a_schedule_goes_with_its_file(stack: Stack, folder: Path) -> None:
    file = folder / "a.yml"
    file.write_text(DAILY.format(id="a"))
    stack.worker(concurrency=1)
    until(lambda: "a" in names(stack), 20)
    file.unlink()
    until(lambda: "a" not in names(stack), 20)


@pytest.mark.proves(25)
def test_a_schedule_moves_with_its_file(stack: Stack, folder: Path) -> None:
    (folder / "a.yml").write_text(DAILY.format(id="moved"))
    stack.runner.load_schedules()
    (folder / "a.yml").rename(folder / "b.yml")
    (folder / "b.yml").write_text(DAILY.format(id="moved").replace("0 6", "0 7"))
    stack.runner.load_schedules()
    assert stack.sql("select spec ->> 'cron' from schedules where name = 'moved'")[0][0] == "0 7 * * *"
    (folder / "b.yml").unlink()
    assert client(stack).delete("/workflow/schedules/moved").status_code == 200


@pytest.mark.proves(25)
def test_a_file_of_schedules_that_is_broken_is_told_where_one_looks(stack: Stack, folder: Path) -> None:
    (folder / "broken.yml").write_text("id: x\nworkflow: numbered\ncorn: '0 6 * * *'\n")
    (folder / "good.yml").write_text(DAILY.format(id="good"))
    runner: WorkflowRunner = stack.runner
    runner.load_schedules()
    assert names(stack) == {"good"}
    shown = stack.cli("doctor")
    assert "broken.yml" in shown.stdout, shown.stdout
    asks = client(stack)
    for answer in (asks.get("/workflow/schedules"), asks.post("/workflow/schedules/reload")):
        [told] = answer.get_json()["faulty"]
        assert "broken.yml" in told["file"]
        assert "corn" in told["message"]
    listed = stack.cli("schedules")
    assert "broken.yml" in listed.stdout, listed.stdout


@pytest.mark.proves(25)
def test_a_priority_that_is_none_is_refused(stack: Stack) -> None:
    answer = client(stack).post("/workflow/schedules", json={"id": "s", "workflow": "numbered", "cron": "0 6 * * *", "priority": "huge"})
    assert answer.status_code == 400


@pytest.mark.proves(24)
def test_a_variant_of_a_version_that_is_not_there_is_told_at_the_door_and_at_the_start(stack: Stack) -> None:
    asks = client(stack)
    tree = {"type": "ab", "version": "1", "steps": [{"id": "a", "type": "noop"}]}
    stack.runner.register_workflow(definition_from(tree))
    config = {"id": "ab", "variants": [{"version": "1", "weight": 0}, {"version": "9", "weight": 100}]}
    told = [{"place": "/variants/1/version", "message": 'The workflow "ab" has no version "9".', "suggestion": "It has 1."}]

    checked = asks.post("/workflow/configs/validate", json=config).get_json()
    saved = asks.post("/workflow/configs", json=config)
    begun = asks.post("/workflow/start/ab", json={})

    assert checked["isValid"]
    assert checked["warnings"] == told
    assert (saved.status_code, saved.get_json()["warnings"]) == (201, told)
    assert begun.status_code == 404, begun.get_json()
    assert "one of the variants of the configuration of ab" in begun.text
    misnamed = asks.post("/workflow/configs", json={"id": "ac"}).get_json()["warnings"]
    assert [one["place"] for one in misnamed] == ["/id"]
