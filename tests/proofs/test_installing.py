"""Installing on a machine that has nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import psycopg
import pytest

from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from tests.stack import until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.mark.proves(1)
def test_a_locked_set_installs_without_looking_for_anything_else() -> None:
    """pip 23.2 asks for `coverage[toml]` beside the lock when a newer coverage is out; nobody is asked with --no-deps."""
    recipe = subprocess.run(["make", "-n", "-B", ".venv/.dev"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in recipe.splitlines() if "--require-hashes" in line]
    assert installs
    assert [line for line in installs if "--no-deps" not in line] == []


@pytest.mark.proves(1, 39)
def test_what_is_installed_is_whole(tmp_path: Path) -> None:
    """Every distribution that ours needs is named by ours: nothing works only because something else brings it."""
    needed = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert needed.returncode == 0, needed.stdout
    declared = (ROOT / "pyproject.toml").read_text()
    named = {
        line.split("==")[0].split("[")[0].strip().lower()
        for line in (ROOT / "requirements.in").read_text().splitlines()
        if line and line[0] != "#"
    }
    builds = {"setuptools"}
    assert {name for name in named - builds if not re.search(rf'"{re.escape(name)}[\[>="]', declared, re.IGNORECASE)} == set()


def built(folder: Path) -> Path:
    """The wheel that is built from the source distribution of a clean copy."""
    for name in ("orchestrator", "api", "workflows", "migrations"):
        shutil.copytree(ROOT / name, folder / "copy" / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy")
    packed = "import setuptools.build_meta as build; build.build_sdist('../packed')"
    subprocess.run([sys.executable, "-c", packed], cwd=folder / "copy", check=True, timeout=120, capture_output=True)
    [source] = (folder / "packed").iterdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "-w", folder / "dist", source],
        check=True, timeout=120,
    )  # fmt: skip
    [found] = (folder / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"))


@pytest.mark.proves(39)
def test_the_wheel_installs_one_package_and_no_other_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"orchestrator", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    held = {name for name in names if not name.endswith(".py")}
    for needed in (
        "orchestrator/py.typed", "orchestrator/builtin/triggers/flunq.yaml", "orchestrator/migrations/script.py.mako",
        "orchestrator/workflows/triggers/proxies.yaml", "orchestrator/definition/serverless/schemas/workflow-1.0.yaml",
        "orchestrator/definition/serverless/schemas/v08/workflow.json",
    ):  # fmt: skip
        assert needed in held


THEIRS = {
    "api/__init__.py": "raise AssertionError('this is somebody else\\'s api')\n",
    "migrations/__init__.py": "raise AssertionError('these are somebody else\\'s migrations')\n",
    "tests/__init__.py": "",
    "workflows/__init__.py": "",
    "workflows/theirs.py": "from orchestrator import Workflow, step\n\n@step\ndef greet(name: str = 'you') -> dict:\n    return {'greeting': f'Hello, {name}!'}\n\nhello = Workflow('theirs').then(greet)\n",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.proves(39)
def test_installed_alone_it_runs_beside_a_program_of_somebody_elses(
    wheel: Path, postgres: Postgres, redis_server: Redis, tmp_path: Path
) -> None:
    """The lock and the wheel, in an environment that has nothing else; in a folder with an `api` and `workflows` of its own."""
    venv, folder = tmp_path / "venv", tmp_path / "program"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    from_here = [sys.executable, "-m", "pip", "--python", venv / "bin/python", "--disable-pip-version-check"]
    pip = [*from_here, "install", "-q", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", ROOT / "requirements.txt"], check=True, timeout=240)
    subprocess.run([*pip, wheel], check=True, timeout=60)
    checked = subprocess.run([*from_here, "check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    for name, text in THEIRS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    port = any_free()
    with psycopg.connect(postgres.url, autocommit=True) as c:
        c.execute(f"create database {folder.parent.name}")
    url = f"{postgres.url.rsplit('/', 1)[0]}/{folder.parent.name}"
    environment = {
        "PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "DATABASE_URL": url, "REDIS_URL": redis_server.url, "METRICS_PORT": "0",
        "HEALTH_PORT": "0",
    }  # fmt: skip

    def orchestrator(*arguments: str) -> str:
        done = subprocess.run(
            [venv / "bin/orchestrator", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Usage:" in orchestrator("--help")
    everything = "import importlib, pkgutil, orchestrator\nfor one in pkgutil.walk_packages(orchestrator.__path__, 'orchestrator.'):\n    if not one.name.endswith('.__main__') and '.migrations.env' not in one.name:\n        importlib.import_module(one.name)\n"  # fmt: skip
    done = subprocess.run([venv / "bin/python", "-c", everything], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    orchestrator("migrate")
    programs = {
        "worker": ["celery", "-A", "orchestrator.app", "worker", "-c", "2", "--loglevel", "INFO"],
        "web": ["gunicorn", "-c", "python:orchestrator.api.serving", "orchestrator.api:create_app()", "--bind", f"127.0.0.1:{port}"],
    }
    running = []
    try:
        for name, (program, *arguments) in programs.items():
            log = (tmp_path / f"{name}.log").open("wb")
            running.append(subprocess.Popen([venv / "bin" / program, *arguments], cwd=folder, env=environment, stdout=log, stderr=log))
            log.close()

        def health() -> int:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    return int(answer.status)
            except OSError:
                return 0

        until(lambda: health() == 200, 60, lambda: (tmp_path / "web.log").read_text())
        assert "Hello, Ada!" in orchestrator("start", "theirs", "--input", '{"name": "Ada"}', "--wait", "--json")
        # What is shipped as an example is nobody's until its name is given.
        listed = {one["workflow"] for one in json.loads(orchestrator("workflows", "--json"))}
        assert listed == {"theirs"}
        environment["ORCHESTRATOR_WORKFLOWS"] = "workflows,orchestrator.workflows"
        assert {"theirs", "hello", "order"} <= {one["workflow"] for one in json.loads(orchestrator("workflows", "--json"))}
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)
