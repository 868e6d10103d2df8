"""The examples, run as their first lines say, over a stack brought up with `orchestrator up`; and what that shows of the stack."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proofs.ups import CLI, Up, project
from tests.stack import until

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with project(tmp_path_factory.mktemp("examples"), ORCHESTRATOR_WORKFLOWS="orchestrator.workflows,shop") as made:
        yield made.start()


def run(up: Up, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=up.folder, env=up.variables, capture_output=True, text=True, timeout=60, check=False
    )


def test_every_example_is_named_and_is_run_here() -> None:
    named = set(re.findall(r"^\| `([^`]+)`", (FOLDER / "README.md").read_text(), re.MULTILINE))
    assert named == {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".yaml")} == {
        "worker_example.py", "start_and_wait.py", "order.yaml",
    }  # fmt: skip


@pytest.mark.slow
def test_the_example_of_a_worker_runs_against_redis_and_prints_that_it_completed(up: Up) -> None:
    for _ in range(2):
        done = run(up, str(FOLDER / "worker_example.py"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "asked to do scan of" in done.stdout
        assert "completed: {'accepted': True}" in done.stdout


def test_the_example_of_a_client_prints_the_result(up: Up) -> None:
    done = run(up, str(FOLDER / "start_and_wait.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Hello, Ada!" in done.stdout


def test_the_example_of_a_document_runs_without_a_stack(tmp_path: Path) -> None:
    document = shutil.copy(FOLDER / "order.yaml", tmp_path)
    done = subprocess.run(
        [*CLI, "run", str(document), "--input", '{"id": 7, "amount": 120}', "--json"],
        cwd=tmp_path, env=Up(tmp_path).variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"]["shipping"] == "insured"


def test_the_addresses_are_there_for_other_programs(up: Up) -> None:
    told = up.cli("env")
    assert told.returncode == 0
    shown = subprocess.run(
        ["/bin/sh", "-c", 'eval "$1"; echo "$DATABASE_URL $REDIS_URL $REDISCLI_AUTH $PGPORT"', "sh", told.stdout],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    environment = up.state()["environment"]
    assert shown[:2] == [environment["DATABASE_URL"], environment["REDIS_URL"]]
    assert shown[2] in shown[1]
    assert shown[3] in shown[0]


def test_strangers_on_this_machine_do_not_get_into_the_servers(up: Up) -> None:
    import psycopg
    import redis

    environment = up.state()["environment"]
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(re.sub(r":[^:@/]*@", "@", environment["DATABASE_URL"]))
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(re.sub(r"//.*@", "//", environment["REDIS_URL"])).ping()
    home = up.folder / ".orchestrator"
    assert home.stat().st_mode & 0o077 == 0
    for file in home.iterdir():
        if file.is_file() and file.name != "lock":
            assert file.stat().st_mode & 0o077 == 0, file


def test_a_second_interrupt_does_not_wait_for_running_steps(tmp_path: Path) -> None:
    with project(tmp_path) as up:
        up.start()
        id = up.cli("start", "sleeping").stdout.strip()
        until(lambda: "● nap" in up.cli("show", id).stdout, 20)
        assert up.process is not None
        up.process.send_signal(signal.SIGINT)
        until(lambda: "stopping" in up.said(), 10)
        assert up.process.poll() is None
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(20) == 0
        assert "worker" in re.findall(r"up     \| (.*) did not end in time", up.said())[0]
