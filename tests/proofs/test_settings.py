"""Settings that are said and were not read, or not by everybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.dev.ports import any_free
from tests.proofs.system import SERVING
from tests.proofs.ups import CLI, Up
from tests.stack import Stack, until

PROCESSES = {
    "worker": [sys.executable, "-m", "celery", "-A", "orchestrator.app", "worker"],
    "beat": [sys.executable, "-m", "celery", "-A", "orchestrator.app", "beat", "--pidfile="],
    "call": [sys.executable, "-m", "celery", "-A", "orchestrator.app", "call", "orchestrator.start"],
    "bridge": [*CLI, "bridge"],
    "gateway": [*CLI, "gateway"],
    "flower": [*CLI, "flower"],
    "command": [*CLI, "ls"],
    "up": [*CLI, "up"],
    "web": [
        sys.executable, "-m", "gunicorn", "-c", f"python:{SERVING}.serving", f"{SERVING}:create_app()", "--bind", f"127.0.0.1:{any_free()}",
    ],
}  # fmt: skip


def ran(folder: Path, command: list[str], timeout_s: float = 30, **variables: str) -> subprocess.CompletedProcess[str]:
    held = Up(folder).variables
    try:
        return subprocess.run(
            command, cwd=folder, env={**held, **variables}, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as late:
        said = [part.decode() if isinstance(part, bytes) else part or "" for part in (late.stdout, late.stderr)]
        pytest.fail(f"it runs on: {''.join(said)[-1000:]}")


@pytest.mark.proves(4, 5)
@pytest.mark.parametrize("name", PROCESSES)
def test_what_a_setting_cannot_mean_ends_every_process_with_a_sentence(tmp_path: Path, name: str) -> None:
    """Name and value, no traceback, and all of them at once."""
    wrong = {"LOG_LEVEL": "bogus", "PORT": "99999", "HEARTBEAT": "often", "EXPRESSION_TIMEOUT": "-2s", "RUN_SHELL": "maybe"}
    done = ran(tmp_path, PROCESSES[name], **wrong)
    said = done.stdout + done.stderr
    assert done.returncode == 2
    assert "Traceback" not in said, said[-2000:]
    for variable, value in wrong.items():
        assert [line for line in said.splitlines() if variable in line and f'"{value}"' in line], said


@pytest.mark.proves(4)
def test_a_duration_is_read_as_it_is_documented(tmp_path: Path) -> None:
    done = ran(tmp_path, [*CLI, "config", "--json"], EXPRESSION_TIMEOUT_S="2500ms", RUN_TIMEOUT_S="1m")
    assert done.returncode == 0, done.stderr
    assert '"2.5"' in done.stdout
    assert '"60.0"' in done.stdout


@pytest.mark.proves(4)
def test_a_name_that_is_nearly_a_setting_is_told(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("REDIS_ULR=redis://elsewhere\nWORKFLOW_TIMEOUT_SECONDS=60\nHEALTHPORT=1\n")
    done = ran(tmp_path, [*CLI, "config"], HEARTBEATS="3")
    said = " ".join((done.stdout + done.stderr).split())
    for wrong, meant in (("REDIS_ULR", "REDIS_URL"), ("HEARTBEATS", "HEARTBEAT"), ("HEALTHPORT", "HEALTH_PORT")):
        assert f"{wrong} (" in said
        assert f"Did you mean {meant}?" in said
    assert "WORKFLOW_TIMEOUT_SECONDS (" not in said


@pytest.mark.proves(4)
def test_an_empty_value_turns_off_what_it_is_documented_to_turn_off(tmp_path: Path) -> None:
    done = ran(tmp_path, [*CLI, "config", "--json"], TRIGGER_QUEUE="", RATE_LIMIT="", BRIDGE_TENANT_STREAMS="", PORT="")
    for line in ("workflow.trigger", "6000/minute", "tenant:*"):
        assert line not in done.stdout
    assert '"5003"' in done.stdout


@pytest.mark.proves(14)
def test_a_worker_that_may_not_keep_time_keeps_everything_else(stack: Stack) -> None:
    """TIMER_SERVICE_ENABLED=false: no timers, no schedules; the outbox and recovery all the same."""
    stack.worker(concurrency=1, TIMER_SERVICE_ENABLED="false")
    instance = stack.runner.start_workflow("sequence", input={})
    stack.ended(instance)
    until(lambda: stack.sql("select count(*) from outbox")[0][0] == 0, 20, "the outbox is relayed")
    assert [row[0] for row in stack.sql("select role from leadership where until > now()")] == ["keeper"]
