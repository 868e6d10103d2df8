"""Procfile, Dockerfile and compose file: every command and path in them exists."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import yaml

from orchestrator.config.reference import example, page

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
