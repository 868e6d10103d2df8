"""Every setting: its environment variable, default, unit and meaning. Read once, all faults reported together."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import quote

from dotenv import dotenv_values, load_dotenv

from orchestrator.config.given import from_files, with_password
from orchestrator.config.stack import running_stack
from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.errors import Fault, Invalid

SCHEMA = "orchestrator"


def _setting(default: Any, help: str, parse: Callable[[str], Any] = str, *, env: str = "", secret: bool = False) -> Any:
    return field(default=default, metadata={"help": help, "parse": parse, "env": env, "secret": secret})


def _flag(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("write true or false")


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError("write a number that is not negative")
    return number


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.strip().lower() not in allowed:
            raise ValueError(f"is '{text}'; write {' or '.join(allowed)}")
        return text.strip().lower()

    return parse


def _schema(text: str) -> str:
    if not text.strip() or "\0" in text or len(text.encode()) > 63:
        raise ValueError(f"is '{text}'; write the name of a PostgreSQL schema, of 63 bytes at most")
    if text.lower() in ("public", "information_schema") or text.lower().startswith("pg_"):
        raise ValueError(f"is '{text}', which is not the engine's alone; write a name of its own, such as orchestrator")
    return text


def _rate(text: str) -> str:
    """As `limits` writes them: 10/minute, 5 per 30 second."""
    if not re.fullmatch(r"\s*\d+\s*(/|per)\s*(\d+\s*)?(second|minute|hour|day)s?\s*", text):
        raise ValueError(f"is '{text}'; write a number per time, as 10/minute")
    return text.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may set. The variable's name is the field's in capitals, unless said otherwise."""

    database_url: str = _setting("postgresql://postgres@127.0.0.1:5432/postgres", "PostgreSQL: the truth", secret=True)
    database_schema: str = _setting(
        SCHEMA, "the schema of that database in which its tables are, and nothing else; another engine in it needs another", _schema
    )
    redis_url: str = _setting("redis://127.0.0.1:6379/0", "Redis: event streams and the schedule mirror", secret=True)
    broker_url: str = _setting("", "Celery's broker; empty: REDIS_URL", env="CELERY_BROKER_URL", secret=True)
    slow_query_s: float = _setting(1.0, "statements that take so long are logged, without their values; 0: none", seconds, env="SLOW_QUERY")
    workflows: tuple[str, ...] = _setting(
        ("workflows",), "packages and modules in which workflows are found", _list, env="ORCHESTRATOR_WORKFLOWS"
    )
    lease_s: float = _setting(15.0, "how long a worker may hold a branch without a sign of life", seconds, env="LEASE")
    heartbeat_s: float = _setting(5.0, "how often leases are renewed", seconds, env="HEARTBEAT")
    queue_grace_s: float = _setting(
        10.0, "how long a published branch may stay unclaimed before its message is taken for lost", seconds, env="QUEUE_GRACE"
    )
    inline_wait_s: float = _setting(1.0, "waits up to this long are slept through; longer ones park", seconds, env="INLINE_WAIT")
    crash_limit: int = _setting(3, "a step that kills so many workers in a row fails", _count)
    missing_code_patience_s: float = _setting(
        0.0,
        "how long a branch waits for a worker that has the code of its next step; 0: for as long as it takes",
        seconds,
        env="MISSING_CODE_PATIENCE",
    )
    fanout_helpers: int = _setting(256, "messages published at most for one fan-out; else twice the processes there are", _count)
    snapshot_every: int = _setting(100, "a parking branch writes a snapshot after so many checkpoints", _count)
    payload_limit_bytes: int = _setting(2 * 1024 * 1024, "largest input, output or signal, in bytes", _count)
    max_concurrent_instances: int = _setting(0, "instances running at once in the whole engine; 0: no limit", _count)
    max_duration_s: float = _setting(
        0.0, "instances that live longer are cancelled: 'Maximum duration exceeded'; 0: no limit", seconds, env="MAX_DURATION"
    )
    workflow_timeout_s: float = _setting(
        0.0, "instances that live longer fail with `timeout`; 0: no limit", seconds, env="WORKFLOW_TIMEOUT_SECONDS"
    )
    max_memory_mb: float = _setting(
        0.0, "memory the processes of one instance may use, where its definition says nothing; 0: no limit", float
    )
    max_cpu_percent: float = _setting(0.0, "processor time they may use, in percent of one core; 0: no limit", float)
    max_disk_mb: float = _setting(0.0, "room the history of a running instance may take; 0: no limit", float)
    workflow_max_retries: int = _setting(0, "how often a failed instance may be retried by hand; 0: as often as one likes", _count)
    timer_service_enabled: bool = _setting(
        True, "whether this worker may keep timers, recovery and the outbox; some worker must", _flag, env="TIMER_SERVICE_ENABLED"
    )
    timer_precision_s: float = _setting(
        0.5,
        "how often the keeper looks for what nobody told it; timers it knows fire to the millisecond",
        seconds,
        env="TIMER_SERVICE_PRECISION",
    )
    dependency_timeout_s: float = _setting(
        300.0, "how long an instance waits for workflows it depends on", seconds, env="DEPENDENCY_TIMEOUT"
    )
    retention_s: float = _setting(30 * 86400.0, "ended instances are cleaned up after this", seconds, env="RETENTION")
    event_stream: str = _setting("orchestrator:events", "the Redis stream of life-cycle events")
    cloudevents_stream: str = _setting(
        "orchestrator:cloudevents", "the Redis stream of the Serverless Workflow specification's life-cycle events"
    )
    event_stream_length: int = _setting(100_000, "about how many events the stream keeps", _count)
    streams: tuple[str, ...] = _setting(
        ("events:workflow", "events:bus"), "the Redis streams that the bridge reads", _list, env="BRIDGE_STREAMS"
    )
    consumer_group: str = _setting("workflow-group", "the bridge's consumer group on them", env="CONSUMER_GROUP")
    consumer_name: str = _setting("", "this bridge's name in that group; empty: the first of orchestrator-1, -2 … that is free")
    tenant_streams: str = _setting(
        "tenant:*:workflow:*:events", "streams of tenants, found as they appear; empty: none", env="BRIDGE_TENANT_STREAMS"
    )
    worker_consumer_group: str = _setting("worker-service", "the consumer group on the streams of tenants")
    eventstore_type: str = _setting("redis", "where streams of events are kept: redis or postgres", _one_of("redis", "postgres"))
    bus_stream: str = _setting("events:bus", "the stream on which events of the API are published", env="BRIDGE_BUS_STREAM")
    flunq_events: bool = _setting(
        True, "whether documents and external tasks are told on `tenant:{t}:workflow:{w}:events` as `io.flunq.*`", _flag
    )
    stream_batch: int = _setting(
        10, "entries read at once; more and more, up to 50 times as many, while reads come back full", _count, env="WORKER_STREAM_BATCH"
    )
    event_batch_size: int = _setting(500, "events taken in one transaction at most", _count)
    stream_block_s: float = _setting(1.0, "how long a read waits for entries", seconds, env="WORKER_STREAM_BLOCK")
    reclaim_enabled: bool = _setting(
        True, "whether entries of consumers that fell silent are taken over", _flag, env="WORKER_RECLAIM_ENABLED"
    )
    reclaim_idle_s: float = _setting(60.0, "entries pending for longer are taken over; 0: never", seconds, env="WORKER_RECLAIM_IDLE")
    event_retry_attempts: int = _setting(3, "how often an event's effects are tried", _count)
    event_retry_delay_ms: int = _setting(
        0, "the wait before the second attempt, doubled with each; 0: 1,000, and 200 for streams of tenants", _count
    )
    event_processing_timeout_s: float = _setting(
        30.0, "when an attempt at an event takes longer, another process tries", seconds, env="EVENT_PROCESSING_TIMEOUT"
    )
    event_retention_s: float = _setting(30 * 86400.0, "events are forgotten after this", seconds, env="EVENT_RETENTION")
    source_stream_length: int = _setting(
        10_000, "about how many entries the streams keep that the orchestrator writes for others", _count, env="BRIDGE_STREAM_LENGTH"
    )
    open_entries: int = _setting(5_000, "entries whose workflows have not ended; a bridge that has so many stops reading", _count)
    shutdown_timeout_s: float = _setting(
        30.0, "how long a bridge that ends waits for what it began", seconds, env="BRIDGE_SHUTDOWN_TIMEOUT"
    )
    trigger_queue: str = _setting("workflow.trigger", "the message queue whose messages start workflows; empty: none")
    amqp_url: str = _setting("", "the broker of that queue; empty: Celery's", secret=True)
    bridge_port: int = _setting(0, "the bridge's port for /health and /metrics; 0: none", _count)
    data_plane: str = _setting("gateway", "what serves proxies: gateway or caddy", _one_of("gateway", "caddy"))
    gateway_host: str = _setting("127.0.0.1", "the address on which proxies are served")
    gateway_http_port: int = _setting(8080, "the gateway's shared port for HTTP, where Host tells hostnames apart", _count)
    gateway_https_port: int = _setting(8443, "the gateway's shared port for HTTPS, where SNI does", _count)
    gateway_admin_url: str = _setting("http://127.0.0.1:9180", "the gateway's admin API")
    gateway_token: str = _setting("", "the token of that API; needed where it is not on loopback", secret=True)
    gateway_state: str = _setting(".orchestrator/gateway.json", "the file in which the gateway keeps what it serves")
    caddy_admin_url: str = _setting("http://127.0.0.1:2019", "Caddy's admin API")
    certificates_dir: str = _setting(".orchestrator/certificates", "the folder of certificates and their keys")
    proxy_http_ports: int = _setting(10_000, "proxies get HTTP ports of their own from here on", _count)
    proxy_https_ports: int = _setting(11_000, "and HTTPS ports from here on", _count)
    proxy_drain_s: float = _setting(30.0, "how long a deleted proxy's requests may take to end", seconds, env="PROXY_DRAIN")
    reconcile_s: float = _setting(
        0.0,
        "how often events are published again for proxies that failed, got stuck or are missing; 0: never",
        seconds,
        env="RECONCILE_EVERY",
    )
    log_format: str = _setting("text", "text or json")
    log_level: str = _setting("INFO", "debug, info, warning or error")
    metrics_host: str = _setting("127.0.0.1", "where workers, bridges and beat show METRICS_PORT, HEALTH_PORT, BRIDGE_PORT and BEAT_PORT")
    metrics_port: int = _setting(9090, "the worker's Prometheus port; 0: none", _count)
    beat_port: int = _setting(0, "beat's port for /health; 0: none", _count)
    health_port: int = _setting(8082, "the worker's /health port; 0: none", _count)
    tracing: bool = _setting(False, "OpenTelemetry spans for instances and steps", _flag)
    port: int = _setting(5003, "the API's port", _count)
    request_limit_bytes: int = _setting(1024 * 1024, "the largest body of a request; what is larger is answered 413", _count)
    host: str = _setting("127.0.0.1", "where the API listens; anywhere but on loopback it needs AUTH=on")
    flower_host: str = _setting("127.0.0.1", "where Flower listens; anywhere but on loopback it needs AUTH=on")
    flower_port: int = _setting(5555, "Flower's port", _count)
    worker_concurrency: int = _setting(0, "processes of a worker; 0: one per core, at least 2", _count)
    worker_queues: tuple[str, ...] = _setting((), "queues beside the four priority classes that this worker serves", _list)
    expression_timeout_s: float = _setting(2.0, "an expression that takes longer is stopped", seconds, env="EXPRESSION_TIMEOUT_S")
    egress_allow: tuple[str, ...] = _setting((), "when given, calls go only to these hosts, *.suffixes and networks", _list)
    egress_deny: tuple[str, ...] = _setting((), "calls never go to these; link-local and metadata addresses are always refused", _list)
    egress_private: bool = _setting(True, "whether calls may go to loopback and private networks", _flag)
    resources_dir: str = _setting("", "the folder that file:// addresses of documents lead into; empty: they are refused")
    secrets_dir: str = _setting("", "a folder with one file per secret; else SECRET_<NAME> variables")
    encryption_keys: tuple[str, ...] = _setting(
        (), "keys that seal payloads in Postgres: the first seals, all open; none: payloads are in the clear", _list, secret=True
    )
    run_scripts: bool = _setting(False, "whether `run: script` (and MCP servers over stdio) are allowed", _flag)
    run_shell: bool = _setting(False, "whether `run: shell` is allowed", _flag)
    run_containers: bool = _setting(False, "whether `run: container` is allowed", _flag)
    run_timeout_s: float = _setting(300.0, "a program that runs longer is killed", seconds, env="RUN_TIMEOUT_S")
    run_memory_mb: int = _setting(512, "memory of a program", _count)
    auth: str = _setting("off", "whether the API asks who is there; off: it answers to this machine alone", _one_of("on", "off"))
    audit_retention_s: float = _setting(90 * 86400.0, "the audit is kept for so long; 0: for ever", seconds, env="AUDIT_RETENTION")
    auth_jwks: str = _setting("", "keys that sign tokens: an address, or a file; empty: API keys alone")
    auth_issuer: str = _setting("", "the issuer that tokens must name; empty: any")
    auth_audience: str = _setting("", "the audience that tokens must name; empty: none is asked for")
    auth_roles_claim: str = _setting("roles", "where in a token its roles are; dots go deeper")
    auth_tenant_claim: str = _setting("tenant", "where in a token its tenant is")
    trusted_proxies: int = _setting(0, "proxies before the API whose X-Forwarded-* headers are believed", _count)
    rate_limit: str = _setting("6000/minute", "requests of one principal, where AUTH is on; empty: no limit", _rate)
    start_limit: str = _setting("", "starts of one workflow by one principal, as 10/minute; empty: no limit", _rate)
    environment: str = _setting("development", "whose configurations hold here", _one_of("development", "staging", "production", "test"))
    config_dir: str = _setting("config", "the folder of configurations: workflows/, schedules/, environments/<environment>/workflows/")
    output_dir: str = _setting(".orchestrator/output", "the folder below which workflows of this project write files")
    hot_reload: bool = _setting(True, "whether files of configurations and schedules are read again when they change", _flag)
    breaker_threshold: int = _setting(5, "failures in a row that open a circuit breaker", _count)
    breaker_recovery_s: float = _setting(60.0, "how long an open breaker leaves its target alone", seconds, env="BREAKER_RECOVERY")
    breaker_trials: int = _setting(3, "attempts that a half-open breaker lets through at a time", _count)
    container_host: str = _setting("", "the container engine's API; empty: DOCKER_HOST, else the local socket")
    db_type: str = _setting("postgres", "where instances are kept: postgres", _one_of("postgres"))
    workflow_engine_type: str = _setting("serverless", "the engine: serverless", _one_of("serverless"))
    hostname: str = _setting("", "this machine's name in leases and logs; empty: the system's")

    @property
    def redis_prefix(self) -> str:
        """Before every key, stream, channel and queue of the engine; nothing where its schema has the usual name."""
        return _redis_prefix(self.database_schema)

    @property
    def broker(self) -> str:
        return self.broker_url or self.redis_url

    @property
    def host_name(self) -> str:
        return self.hostname or socket.gethostname()


def _redis_prefix(schema: str) -> str:
    if schema == SCHEMA:
        return ""
    # Some names stand in patterns, in which other characters mean something.
    plain = schema if re.fullmatch(r"[A-Za-z0-9_.-]+", schema) else hashlib.sha256(schema.encode()).hexdigest()[:16]
    return f"{plain}:"


# Names in Redis that stand as they are written; where they are not, another engine in the same database has others.
_NAMES = ("event_stream", "cloudevents_stream", "streams", "tenant_streams", "bus_stream", "trigger_queue")


def _apart(values: Mapping[str, Any]) -> dict[str, Any]:
    prefix = _redis_prefix(values.get("database_schema", SCHEMA))
    unsaid: dict[str, Any] = {one.name: one.default for one in fields(Settings) if one.name in _NAMES and one.name not in values}
    if not prefix:
        return {}
    return {
        name: tuple(prefix + one for one in default) if isinstance(default, tuple) else prefix + default for name, default in unsaid.items()
    }


def variable(name: str) -> str:
    setting = next(f for f in fields(Settings) if f.name == name)
    return setting.metadata["env"] or name.upper().removesuffix("_S")


SECRET = tuple(variable(setting.name) for setting in fields(Settings) if setting.metadata["secret"])


def sources(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Where each setting comes from: environment, .env, the stack that runs here, or the default."""
    given = os.environ if environ is None else environ
    written = dotenv_values(".env") if environ is None else {}
    stack = running_stack()
    found: dict[str, str] = {}
    for setting in fields(Settings):
        name = variable(setting.name)
        if given.get(f"{name}_FILE") and setting.metadata["secret"]:
            found[name] = "file"
        elif given.get(name) and given.get(name) != written.get(name):
            found[name] = "environment"
        elif written.get(name):
            found[name] = ".env"
        else:
            found[name] = "running stack" if stack.get(name) else "default"
    return found


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Environment before `.env` before the running embedded stack before defaults."""
    if environ is None:
        # Into the environment itself: calls and programs look there, too.
        load_dotenv(".env", override=False)
    stack = running_stack()
    given, faults = from_files(os.environ if environ is None else environ, SECRET)
    given |= _redis(given, stack)
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        name = variable(setting.name)
        text = given.get(name) or stack.get(name)
        if text is None or text == "":
            continue
        try:
            values[setting.name] = setting.metadata["parse"](text)
        except (ValueError, BadDuration) as error:
            faults.append(Fault(name, f"{error}"))
    if "database_url" in values:
        values["database_url"] = with_password(values["database_url"], given.get("DATABASE_PASSWORD", ""))
    faults += _faults(values)
    if faults:
        raise Invalid(faults, "configuration")
    return Settings(**values, **_apart(values))


def _redis(given: Mapping[str, str], stack: Mapping[str, str]) -> dict[str, str]:
    """REDIS_URL with or without its scheme; else REDIS_HOST, REDIS_PORT and REDIS_PASSWORD."""

    def of(name: str) -> str:
        return given.get(name) or stack.get(name) or ""

    url, host, password = of("REDIS_URL"), of("REDIS_HOST"), of("REDIS_PASSWORD")
    if not url and host:
        url = f"{host}:{of('REDIS_PORT') or 6379}/0" if ":" not in host else f"{host}/0"
    if not url:
        return {}
    if "://" not in url:
        url = f"redis://{url}"
    scheme, _, rest = url.partition("://")
    if password and "@" not in rest:
        url = f"{scheme}://:{quote(password, safe='')}@{rest}"
    return {"REDIS_URL": url}


def _faults(values: Mapping[str, Any]) -> list[Fault]:
    faults = []
    for name in ("redis_url", "broker_url"):
        url = values.get(name, "")
        if url.startswith(("redis+cluster", "rediscluster")) or "cluster=true" in url.lower():
            faults.append(
                Fault(
                    variable(name),
                    "Redis Cluster cannot carry Celery's queues (keys of one command in many slots); use Sentinel or one primary",
                )
            )
    database = values.get("database_url", "")
    if database and not database.startswith(("postgresql://", "postgres://")):
        faults.append(Fault("DATABASE_URL", "write postgresql://user@host:port/database"))
    if values.get("tracing") and importlib.util.find_spec("opentelemetry") is None:
        faults.append(Fault("TRACING", "needs the tracing extra: pip install 'celery-orchestrator[tracing]'"))
    if values.get("log_format", "text") not in ("text", "json"):
        faults.append(Fault("LOG_FORMAT", "write text or json"))
    lease, heartbeat = values.get("lease_s", 15.0), values.get("heartbeat_s", 5.0)
    if heartbeat * 2 > lease:
        faults.append(Fault("HEARTBEAT", f"{heartbeat} s is too slow for a lease of {lease} s: at most half of it"))
    return faults
