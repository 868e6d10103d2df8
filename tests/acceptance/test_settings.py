"""All settings, all kinds of processes: each reads every setting, and what one cannot mean ends it with the variable's name and value."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.environment import read
from orchestrator.config.settings import Settings, load, load_from, names, shown, variable, without_password
from orchestrator.dev.ports import any_free
from orchestrator.errors import Invalid
from tests.stack import until

CLI = [sys.executable, "-m", "orchestrator.cli"]
CELERY = [sys.executable, "-m", "celery", "-A", "orchestrator.app"]
PROCESSES = {
    "worker": [*CELERY, "worker"],
    "beat": [*CELERY, "beat", "--pidfile="],
    "bridge": [*CLI, "bridge"],
    "gateway": [*CLI, "gateway"],
    "flower": [*CLI, "flower"],
    "web": [*CLI, "web"],
}
ENDING = {**PROCESSES, "a command": [*CLI, "ls"], "up": [*CLI, "up"], "celery call": [*CELERY, "call", "orchestrator.start"]}
NONSENSE = ("\n", "-1", "nonsense?!", "1e999", "{", "9" * 30, " ")
ONE_VALUE = {"db_type", "workflow_engine_type"}
"""Settings that have one value today: nothing else can be asked for."""


def other(setting: Any) -> str:
    """A value that is not the default, as somebody would write it."""
    for example in setting.metadata["kind"].examples:
        if setting.metadata["kind"].parse(example) != setting.default:
            return str(example)
    pytest.fail(f"{setting.name} has no example but its default")


def nonsense(setting: Any) -> str:
    """Something that this setting cannot mean."""
    for text in NONSENSE:
        if text.strip():
            with contextlib.suppress(Invalid):
                load({variable(setting.name): text})
                continue
            return text
    # Any printable text is right for it: a control character is not.
    with pytest.raises(Invalid):
        load({variable(setting.name): "a\x07b"})
    return "a\x07b"


def others() -> dict[str, str]:
    """Every setting with another value; HEARTBEAT and LEASE fit together, and what is said is logged (as JSON, which is the other format)."""
    found = {variable(setting.name): other(setting) for setting in fields(Settings) if setting.name not in ONE_VALUE}
    del found["REDIS_HOST"], found["REDIS_PORT"], found["REDIS_PASSWORD"]  # REDIS_URL goes before them
    ports = {variable(one.name): str(any_free()) for one in fields(Settings) if one.name.endswith("port") and one.name != "redis_port"}
    return {
        **found,
        **ports,
        "HEARTBEAT": "3s",
        "LOG_LEVEL": "debug",
        "STARTUP_TIMEOUT": "100ms",
        "GATEWAY_ADMIN_URL": f"http://127.0.0.1:{any_free()}",
        "HOST": "127.0.0.2",
        "AUTH": "on",
    }


def environment(**variables: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR", "ORCHESTRATOR_HOME")}
    return {**kept, "PYTHONUNBUFFERED": "1", **variables}


@contextlib.contextmanager
def running(name: str, folder: Path, variables: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            PROCESSES[name], cwd=folder, env=environment(**variables), stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process, log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_reads_every_setting(name: str, tmp_path: Path) -> None:
    """Each is set to another value, and stands in the log of the process that has it."""
    given = others()
    with running(name, tmp_path, given) as (process, log):
        last = f"{name} has {[variable(one.name) for one in fields(Settings) if one.name not in ONE_VALUE][-1]}="
        until(lambda: last in log.read_text() or process.poll() is not None, 60, log.read_text)
    lines = [json.loads(line)["message"] for line in log.read_text().splitlines() if line.startswith("{")]
    told = dict(line.removeprefix(f"{name} has ").split("=", 1) for line in lines if line.startswith(f"{name} has "))
    assert told.keys() == given.keys()
    wanted = load(given)
    for setting in fields(Settings):
        if (key := variable(setting.name)) in given:
            value = getattr(wanted, setting.name)
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            if setting.metadata["secret"]:
                text = without_password(text) if setting.name.endswith("_url") else "***"
            assert told[key] == f"{text} from environment"


def test_the_command_shows_every_setting_as_it_is_in_force(tmp_path: Path) -> None:
    given = others()
    done = subprocess.run(
        [*CLI, "config", "--json"], cwd=tmp_path, env=environment(**given), capture_output=True, text=True, timeout=60, check=True
    )
    rows = {row["variable"]: row for row in json.loads(done.stdout)}
    assert rows.keys() == {variable(setting.name) for setting in fields(Settings)}
    for name, text, source in shown(load_from(read(given))):
        assert (rows[name]["value"], rows[name]["source"]) == (text, source)
    hidden = {variable(one.name) for one in fields(Settings) if one.metadata["secret"] and not one.name.endswith("_url")}
    assert {rows[name]["value"] for name in hidden if name in given} == {"***"}


@pytest.mark.parametrize("name", ENDING)
def test_nonsense_ends_every_process_with_the_name_and_value_of_each(name: str, tmp_path: Path) -> None:
    given = {variable(setting.name): nonsense(setting) for setting in fields(Settings) if setting.name != "home"}
    del given["REDIS_HOST"], given["REDIS_PORT"], given["REDIS_PASSWORD"]
    done = subprocess.run(ENDING[name], cwd=tmp_path, env=environment(**given), capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said[-3000:]
    assert "Traceback" not in said
    for setting in fields(Settings):
        key = variable(setting.name)
        if key in given:
            [line] = [line for line in said.splitlines() if line.strip().removeprefix("up     | ").startswith(f"- {key}: ")]
            shown_value = "".join(letter if letter.isprintable() else "?" for letter in given[key].strip())
            is_hidden = setting.metadata["secret"] and not setting.name.endswith("_url")
            assert ("not shown" if is_hidden else f'got "{shown_value}"') in line


@pytest.mark.parametrize("setting", [one for one in fields(Settings) if one.name not in ONE_VALUE], ids=lambda setting: setting.name)
def test_a_setting_comes_from_the_environment_before_the_file_before_the_default(
    setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for one in fields(Settings):
        for name in names(one):
            monkeypatch.delenv(name, raising=False)
    text = other(setting)
    wanted = setting.metadata["kind"].parse(text)
    if setting.name in ("heartbeat_s", "lease_s"):
        monkeypatch.setenv("LEASE" if setting.name == "heartbeat_s" else "HEARTBEAT", "1h" if setting.name == "heartbeat_s" else "1s")
    for key in names(setting):
        (tmp_path / ".env").write_text(f'# a comment\n{key}="{text}"\n')
        found = load_from(read())
        assert getattr(found.settings, setting.name) == wanted
        assert found.sources[setting.name] == ".env"
    (tmp_path / ".env").write_text(f"# a comment\n{key}=a\x07b\n")
    broken = read()
    with pytest.raises(Invalid) as refused:
        load_from(broken)
    assert (refused.value.faults[0].place, refused.value.faults[0].file, refused.value.faults[0].line) == (key, ".env", 2)
    monkeypatch.setenv(key, text)
    found = load_from(read())
    assert getattr(found.settings, setting.name) == wanted
    assert found.sources[setting.name] == "environment"


def test_the_env_file_reaches_what_runs_in_a_process(tmp_path: Path) -> None:
    """Programs, secrets and expressions of a document that is run by itself."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/token").write_text("s3cr3t")
    (tmp_path / ".env").write_text("RUN_SHELL=yes\nSECRETS_DIR=secrets\n")
    document = tmp_path / "doc.yaml"
    document.write_text(
        "document: {dsl: '1.0.3', namespace: t, name: n, version: '1.0.0'}\nuse: {secrets: [token]}\n"
        "do: [{a: {run: {shell: {command: 'echo hi'}}}}, {b: {set: {length: '${ $secrets.token | length }'}}}]\n"
    )
    done = subprocess.run(
        [*CLI, "run", str(document), "--json"], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"length": 6' in done.stdout
