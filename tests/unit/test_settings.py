"""Settings: their kinds, where they come from, and that each is read."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator.config import environment, process
from orchestrator.config.environment import read
from orchestrator.config.settings import SECRET, Settings, load, load_from, names, nearly, variable, without_password
from orchestrator.errors import Invalid

ROOT = Path(__file__).parents[2]
CODE = [
    path
    for top in ("api", "workflows", "orchestrator")
    for path in (ROOT / top).rglob("*.py")
    if not {"api", "workflows", "migrations"} & set(path.relative_to(ROOT / "orchestrator").parts[:1] if top == "orchestrator" else ())
]
OWN_VARIABLES = {
    "telemetry/tracing.py": "OTEL_*: OpenTelemetry's own",
    "telemetry/metrics.py": "PROMETHEUS_MULTIPROC_DIR: the Prometheus client's own",
    "telemetry/scrape.py": "PROMETHEUS_MULTIPROC_DIR",
    "app.py": "PROMETHEUS_MULTIPROC_DIR",
    "dev/supervisor.py": "what its children inherit",
}
OTHERS = {
    "DOCKER_HOST", "REDISCLI_AUTH", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "SECRET_SHOP",
    "COMMS_HUB_URL", "CMS_URL", "BACKUP_WORKER_URL", "ALERT_EMAIL", "POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE", "POSTGRES_USER", "POSTGRES_DB", "GF_SECURITY_ADMIN_PASSWORD", "GRAFANA_PASSWORD", "PROMETHEUS_MULTIPROC_DIR", "OTEL_TRACES_EXPORTER",
}  # fmt: skip
"""Variables that documents name and that are other programs', or made from a secret's name."""


def test_every_setting_is_read() -> None:
    """A setting that nothing asks for would be said and not read."""
    text = "\n".join(path.read_text() for path in CODE if not path.is_relative_to(ROOT / "orchestrator/config"))
    # By `broker`, `host_name`, `redis_url` and `database_url`.
    derived = {"broker_url", "hostname", "redis_host", "redis_port", "redis_password", "database_password"}
    inside = {"home", "secrets_dir"}  # by the running stack, and by `secrets`
    unread = {one.name for one in fields(Settings)} - derived - inside
    assert {name for name in unread if not re.search(rf"\.{name}\b", text)} == set()


def test_only_settings_read_the_environment() -> None:
    readers = {
        path.relative_to(ROOT / "orchestrator").as_posix()
        for path in CODE
        if re.search(r"\bos\.(environ|getenv)\b|from os import", path.read_text()) and path.is_relative_to(ROOT / "orchestrator")
    }
    assert {one for one in readers if not one.startswith("config/")} == set(OWN_VARIABLES)


def test_every_variable_that_a_document_names_is_a_setting() -> None:
    known = {name for one in fields(Settings) for name in names(one)} | {f"{name}_FILE" for name in SECRET} | OTHERS
    named = {}
    for page in [ROOT / "README.md", ROOT / "docker-compose.yml", *sorted((ROOT / "docs").rglob("*.md"))]:
        if page.parent.name == "decisions":
            continue
        for name in re.findall(
            r"`([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+)(?:=[^`]*)?`|^\s+([A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+): ", page.read_text(), re.MULTILINE
        ):
            named["".join(name)] = page.name
    assert len(named) > 50
    unknown = {name: page for name, page in named.items() if name not in known}
    states = {"CLEANING_UP", "HALF_OPEN", "RLIMIT_AS"}
    assert {name: page for name, page in unknown.items() if name not in states} == {}


def test_the_example_names_what_the_worker_of_the_older_system_was_set_with() -> None:
    example = (ROOT / ".env.example").read_text()
    for name in (
        "REDIS_URL", "REDIS_HOST", "REDIS_PASSWORD", "LOG_LEVEL", "METRICS_PORT", "HEALTH_PORT", "WORKER_CONCURRENCY", "WORKER_CONSUMER_GROUP",
        "WORKER_STREAM_BATCH", "WORKER_STREAM_BLOCK", "WORKER_RECLAIM_ENABLED", "EVENTSTORE_TYPE", "DB_TYPE", "TIMER_SERVICE_ENABLED",
        "TIMER_SERVICE_PRECISION", "WORKFLOW_ENGINE_TYPE", "WORKFLOW_TIMEOUT_SECONDS", "WORKFLOW_MAX_RETRIES", "EVENT_BATCH_SIZE",
        "EVENT_PROCESSING_TIMEOUT", "EVENT_RETRY_ATTEMPTS", "EVENT_RETRY_DELAY_MS", "PORT", "DATABASE_URL", "CONSUMER_NAME",
    ):  # fmt: skip
        assert re.search(rf"^#{name}=", example, re.MULTILINE), name


def test_the_example_means_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied to .env, with every line taken in, it changes nothing."""
    text = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text(re.sub(r"^#([A-Z_]+=)", r"\1", text, flags=re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    for one in fields(Settings):
        for name in names(one):
            monkeypatch.delenv(name, raising=False)
    assert load_from(read()).settings == Settings()


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({"REDIS_URL": "workflow-redis:6379"}, "redis://workflow-redis:6379"),
        ({"REDIS_URL": "redis://workflow-redis:6379"}, "redis://workflow-redis:6379"),
        ({"REDIS_URL": "redis://a:1", "REDIS_HOST": "b"}, "redis://a:1"),
        ({"REDIS_HOST": "b"}, "redis://b:6379/0"),
        ({"REDIS_HOST": "b", "REDIS_PORT": "1"}, "redis://b:1/0"),
        ({"REDIS_HOST": "b:2"}, "redis://b:2/0"),
        ({"REDIS_HOST": "::1", "REDIS_PORT": "1"}, "redis://[::1]:1/0"),
        ({"REDIS_PORT": "1"}, "redis://127.0.0.1:1/0"),
        ({"REDIS_PASSWORD": "p@ss/w"}, "redis://:p%40ss%2Fw@127.0.0.1:6379/0"),
        ({"REDIS_URL": "rediss://:own@a:1", "REDIS_PASSWORD": "other"}, "rediss://:own@a:1"),
        # Kubernetes gives this to every container where a service is called redis.
        ({"REDIS_PORT": "tcp://10.0.0.1:6379"}, "redis://127.0.0.1:6379/0"),
    ],
)
def test_one_rule_says_where_redis_is(given: dict[str, str], address: str) -> None:
    assert load(given).redis_url == address
    assert load(given).broker == address


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PAYLOAD_LIMIT_BYTES", "3MiB", 3 * 1024 * 1024),
        ("PAYLOAD_LIMIT_BYTES", "2000", 2000),
        ("WORKER_STREAM_BLOCK", "1m30s", 90.0),
        ("RUN_TIMEOUT_S", "PT15S", 15.0),
        ("LOG_LEVEL", "WARN", "warning"),
        ("TRACING", "On", True),
        ("PORT", "0", 0),
        ("EGRESS_DENY", "10.0.0.5/8, *.Example.org", ("10.0.0.0/8", "*.example.org")),
        ("TRIGGER_QUEUE", "", ""),
        ("AUTH_JWKS", "https://login.example.com/keys", "https://login.example.com/keys"),
        ("AUTH_JWKS", "keys.json", "keys.json"),
        ("CONFIG_DIR", "/etc", "/etc"),
        ("CONFIG_DIR", "/no/such/folder", "/no/such/folder"),
        ("GATEWAY_STATE", "/etc/passwd", "/etc/passwd"),
        ("METRICS_HOST", "nosuch", "nosuch"),
        ("BRIDGE_STREAMS", " a, ,b ,", ("a", "b")),
        ("PORT", " ", 5003),
    ],
)
def test_values_are_read_as_people_write_them(name: str, text: str, value: object) -> None:
    field = next(one for one in fields(Settings) if name in names(one))
    assert getattr(load({name: text}), field.name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "65536"), ("PORT", "-1"), ("PORT", "80 80"), ("HEARTBEAT", "0"), ("MAX_CPU_PERCENT", "-5"), ("MAX_MEMORY_MB", "nan"),
        ("MAX_MEMORY_MB", "inf"), ("PAYLOAD_LIMIT_BYTES", "0"), ("EGRESS_ALLOW", "10.0.0.0/99"), ("HOST", "a b"), ("DATABASE_URL", "postgresql://h:99999/d"),
        ("ENCRYPTION_KEYS", "short"), ("RATE_LIMIT", "0/minute"), ("ORCHESTRATOR_WORKFLOWS", "my-flows"), ("CRASH_LIMIT", "0"),
        ("REDIS_URL", "http://a"), ("CELERY_BROKER_URL", "redis+cluster://a"), ("EVENT_STREAM", "a b"),
        ("AUTH_JWKS", "ftp://x"), ("AUTH_JWKS", "https://"), ("AUTH_JWKS", "https:/login.example.com"), ("AUTH_JWKS", "/etc"),
        *((name, wrong) for name in ("CONFIG_DIR", "CERTIFICATES_DIR", "OUTPUT_DIR", "SECRETS_DIR", "RESOURCES_DIR")
          for wrong in ("/etc/passwd", "/etc/passwd/below")),
        ("GATEWAY_STATE", "/etc"), ("GATEWAY_STATE", "/etc/passwd/state"), ("METRICS_HOST", "256.0.0.1"), ("HOST", "127.0.1"), ("METRICS_HOST", "no such"),
        *((name, ", ,") for name in ("BRIDGE_STREAMS", "WORKER_QUEUES", "ORCHESTRATOR_WORKFLOWS", "EGRESS_ALLOW", "EGRESS_DENY", "ENCRYPTION_KEYS")),
        ("GATEWAY_ADMIN_URL", "http://:9180"), ("CADDY_ADMIN_URL", "https://me@"),
    ],
)  # fmt: skip
def test_what_a_setting_cannot_mean_is_refused(name: str, text: str) -> None:
    with pytest.raises(Invalid, match=name):
        load({name: text})


def test_passwords_are_not_shown() -> None:
    with pytest.raises(Invalid) as refused:
        load({"DATABASE_URL": "mysql://me:s3cret/@x@host/db", "GATEWAY_TOKEN": "s3cret token", "ENCRYPTION_KEYS": "s3cret"})
    assert len(refused.value.faults) == 3
    assert "s3cret" not in str(refused.value)
    assert without_password("redis://127.0.0.1:6379/0") == "redis://127.0.0.1:6379/0"


def test_names_that_are_nearly_settings_are_found_and_others_are_not() -> None:
    known = {name for one in fields(Settings) for name in names(one)}
    for wrong, meant in (
        ("REDIS_ULR", "REDIS_URL"), ("HEARTBEATS", "HEARTBEAT"), ("redis_url", "REDIS_URL"), ("LOGLEVEL", "LOG_LEVEL"), ("LEASE_SECONDS", "LEASE"),
        ("DATABASE_URI", "DATABASE_URL"), ("EXPRESION_TIMEOUT", "EXPRESSION_TIMEOUT"), ("WORKFLOW_TIMEOUT_SECOND", "WORKFLOW_TIMEOUT_SECONDS"),
    ):  # fmt: skip
        assert nearly(wrong, known) == meant
    for name in (
        "PATH",
        "HOSTS",
        "RELEASE",
        "SECRET_PORT",
        "PYTHONPATH",
        "TERM",
        "USER",
        "HISTFILE",
        "REDIS_SERVICE_HOST",
        "POSTGRES_PASSWORD",
        "LANG",
    ):
        assert nearly(name, known) is None, name


def test_a_process_reads_its_settings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    process.use(Settings(port=1234))
    assert process.settings().port == 1234
    process.forget()
    monkeypatch.setenv("PORT", "4321")
    assert process.settings() is process.settings()
    assert process.settings().port == 4321


def test_what_the_file_says_is_there_for_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("export SHOP_KEY='a b'\nPORT=1111\nthis is no assignment\n")
    monkeypatch.setenv("PORT", "2222")
    monkeypatch.delenv("SHOP_KEY", raising=False)
    found = process.loaded()
    assert environment.variable("SHOP_KEY") == "a b"
    monkeypatch.setenv("SHOP_KEY", "")  # so that it is taken away again
    assert found.settings.port == 2222
    assert found.warnings == (".env line 3 is not an assignment NAME=value; it is ignored",)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_an_env_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    monkeypatch.chdir(tmp_path)
    if content is None:
        (tmp_path / ".env").mkdir()
    else:
        (tmp_path / ".env").write_bytes(content)
    with pytest.raises(Invalid, match=r"\.env cannot be read: "):
        read()


def test_the_variable_of_a_field_is_one_name_for_each() -> None:
    every = [name for one in fields(Settings) for name in names(one)]
    assert len(every) == len(set(every))
    assert variable("expression_timeout_s") == "EXPRESSION_TIMEOUT"
