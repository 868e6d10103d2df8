"""What `make up` says to a newcomer where it cannot begin. (What the tutorial says is run by `tests/docs`.)"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.dev.ports import any_free

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder as a fresh clone has it, with its environment beside it."""
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    return tmp_path


def clean(project: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**kept, "PORT": str(any_free()), "FLOWER_PORT": str(any_free()), "PYTHONPATH": str(project)}


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
