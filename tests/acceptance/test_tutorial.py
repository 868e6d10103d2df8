"""The tutorial, to the letter: its commands are run as they stand, over a stack brought up with `orchestrator up`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dev.ports import any_free
from tests.stack import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial/first-workflow.md").read_text()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder as a fresh clone has it, with its environment beside it."""
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    (tmp_path / "workflows" / "trip.py").write_text(code.group(1))
    return tmp_path


def clean(project: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**kept, "PORT": str(any_free()), "FLOWER_PORT": str(any_free()), "PYTHONPATH": str(project)}


@pytest.fixture
def up(project: Path) -> Iterator[tuple[subprocess.Popen[str], Path, dict[str, str]]]:
    environment = clean(project)
    log = project / "up.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [".venv/bin/orchestrator", "up"], cwd=project, env=environment, stdout=out, stderr=out, text=True, start_new_session=True
        )
    try:
        until(lambda: "| ready" in log.read_text() or process.poll() is not None, 90)
        assert process.poll() is None, log.read_text()
        yield process, log, environment
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def test_the_tutorial_works_as_it_is_written(up: tuple[subprocess.Popen[str], Path, dict[str, str]], project: Path) -> None:
    process, log, environment = up
    commands = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line != "make up"]
    assert len(commands) >= 5
    said = {}
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=project, env=environment, capture_output=True, text=True, timeout=60, check=False)
        said[command] = done.stdout
        expected = 1 if "seats_left" in command else 0
        assert done.returncode == expected, f"{command}\n{done.stdout}{done.stderr}\n{log.read_text()[-2000:]}"
    failed = next(text for command, text in said.items() if "seats_left" in command)
    assert "no seats left" in failed
    assert "↺ book_hotel" in failed

    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert "stopped" in log.read_text()
    assert not (project / ".orchestrator" / "stack.json").exists()


def test_a_port_in_use_is_a_sentence_and_an_exit_code(project: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {**clean(project), "PORT": str(taken.getsockname()[1])}
        done = subprocess.run(
            [".venv/bin/orchestrator", "up"], cwd=project, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert "is in use by another program" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_broken_data_folder_is_a_sentence_and_an_exit_code(project: Path) -> None:
    folder = project / ".orchestrator" / "postgres"
    folder.mkdir(parents=True)
    (folder / "somebody-elses-file").write_text("x")
    done = subprocess.run(
        [".venv/bin/orchestrator", "up"], cwd=project, env=clean(project), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "holds files but no database" in done.stdout
