"""Every setting: its environment variable, default, unit and meaning. Read once, all faults reported together.

A value that its kind (`kinds.py`) cannot mean ends the process before it does anything, with the variable's name and the value.
A variable that is nearly the name of a setting is told, with a suggestion: it has no effect.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import quote

from orchestrator.config import environment as environments
from orchestrator.config import kinds
from orchestrator.config.environment import DEFAULT, FILE, Environment, Given
from orchestrator.config.given import with_files, with_password
from orchestrator.config.kinds import Kind
from orchestrator.errors import Fault, Invalid

SCHEMA = "orchestrator"

REDIS = kinds.url(
    "an address such as redis://127.0.0.1:6379/0 or 127.0.0.1:6379", "redis", "rediss", examples=("redis://127.0.0.1:6390/1",)
)
BROKER = kinds.url("an address such as amqp://user@host or redis://host:6379/0", examples=("amqp://guest@127.0.0.1//",), needs_host=False)
HTTP = kinds.url("an address such as http://127.0.0.1:9180", "http", "https", examples=("http://127.0.0.1:9181",))


def _setting(
    default: Any, help: str, kind: Kind, *, env: str = "", also: Sequence[str] = (), secret: bool = False, blank: bool = False
) -> Any:
    """`also`: other names it is read from. `blank`: an empty value means something; elsewhere it counts as none."""
    return field(default=default, metadata={"help": help, "kind": kind, "env": env, "also": tuple(also), "secret": secret, "blank": blank})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may set. The variable's name is the field's in capitals, unless said otherwise."""

    home: str = _setting(
        ".orchestrator", "the folder of the embedded stack: its data, logs and passwords", kinds.path("a folder"), env="ORCHESTRATOR_HOME"
    )
    database_url: str = _setting(
        "postgresql://postgres@127.0.0.1:5432/postgres",
        "PostgreSQL: the truth",
        kinds.url(
            "an address such as postgresql://user@host:5432/database",
            "postgresql",
            "postgres",
            examples=("postgresql://u@127.0.0.1:5439/d",),
            needs_host=False,
        ),
        secret=True,
    )
    database_password: str = _setting("", "its password, where the address has none; any characters", kinds.text(), secret=True)
    database_schema: str = _setting(
        SCHEMA, "the schema of that database in which its tables are, and nothing else; another engine in it needs another", kinds.schema()
    )
    redis_url: str = _setting(
        "redis://127.0.0.1:6379/0", "Redis: event streams and the schedule mirror; with or without redis://", REDIS, secret=True
    )
    redis_host: str = _setting("", "the host of Redis, where REDIS_URL is not given", kinds.host(with_port=True))
    redis_port: int = _setting(6379, "its port, where REDIS_URL is not given", kinds.port())
    redis_password: str = _setting("", "its password, where the address has none", kinds.text(), secret=True)
    broker_url: str = _setting("", "Celery's broker; empty: REDIS_URL", BROKER, env="CELERY_BROKER_URL", secret=True)
    startup_timeout_s: float = _setting(
        30.0,
        "how long a process that starts waits for PostgreSQL and Redis before it gives up with exit code 4",
        kinds.duration(),
        env="STARTUP_TIMEOUT",
    )
    slow_query_s: float = _setting(
        1.0, "statements that take so long are logged, without their values; 0: none", kinds.duration(), env="SLOW_QUERY"
    )
    workflows: tuple[str, ...] = _setting(
        ("workflows",), "packages and modules in which workflows are found", kinds.modules(), env="ORCHESTRATOR_WORKFLOWS"
    )
    dev_mode: bool = _setting(
        False, "for development: a changed workflow whose version was used is registered under the next patch version", kinds.flag()
    )
    lease_s: float = _setting(
        15.0, "how long a worker may hold a branch without a sign of life", kinds.duration(above_zero=True), env="LEASE"
    )
    heartbeat_s: float = _setting(5.0, "how often leases are renewed", kinds.duration(above_zero=True), env="HEARTBEAT")
    queue_grace_s: float = _setting(
        10.0, "how long a published branch may stay unclaimed before its message is taken for lost", kinds.duration(), env="QUEUE_GRACE"
    )
    inline_wait_s: float = _setting(1.0, "waits up to this long are slept through; longer ones park", kinds.duration(), env="INLINE_WAIT")
    interrupt_grace_s: float = _setting(
        5.0,
        "how long a step that was interrupted may clean up; then it is interrupted again, and its process ends after twice as long",
        kinds.duration(),
        env="INTERRUPT_GRACE",
    )
    crash_limit: int = _setting(3, "a step that kills so many workers in a row fails", kinds.whole(1))
    missing_code_patience_s: float = _setting(
        0.0,
        "how long a branch waits for a worker that has the code of its next step; 0: for as long as it takes",
        kinds.duration(),
        env="MISSING_CODE_PATIENCE",
    )
    fanout_helpers: int = _setting(256, "messages published at most for one fan-out; else twice the processes there are", kinds.whole(1))
    snapshot_every: int = _setting(100, "a parking branch writes a snapshot after so many checkpoints", kinds.whole(1))
    decision_limit: int = _setting(
        100_000,
        "a task fails with `endless` after so many decisions of its branch in a row, without a step, a wait or an event; 0: no limit",
        kinds.whole(),
    )
    payload_limit_bytes: int = _setting(2 * 1024 * 1024, "largest input, output or signal", kinds.size())
    max_concurrent_instances: int = _setting(0, "instances running at once in the whole engine; 0: no limit", kinds.whole())
    max_duration_s: float = _setting(
        0.0, "instances that live longer are cancelled: 'Maximum duration exceeded'; 0: no limit", kinds.duration(), env="MAX_DURATION"
    )
    workflow_timeout_s: float = _setting(
        0.0, "instances that live longer fail with `timeout`; 0: no limit", kinds.duration(), env="WORKFLOW_TIMEOUT_SECONDS"
    )
    max_memory_mb: float = _setting(
        0.0, "memory the processes of one instance may use, where its definition says nothing; 0: no limit", kinds.number()
    )
    max_cpu_percent: float = _setting(0.0, "processor time they may use, in percent of one core; 0: no limit", kinds.number(0, 1_000_000))
    max_disk_mb: float = _setting(0.0, "room the history of a running instance may take; 0: no limit", kinds.number())
    workflow_max_retries: int = _setting(0, "how often a failed instance may be retried by hand; 0: as often as one likes", kinds.whole())
    timer_service_enabled: bool = _setting(
        True, "whether this worker may keep timers and schedules; some worker must", kinds.flag(), env="TIMER_SERVICE_ENABLED"
    )
    timer_precision_s: float = _setting(
        0.5,
        "how often the keeper looks for what nobody told it; timers it knows fire to the millisecond",
        kinds.duration(above_zero=True),
        env="TIMER_SERVICE_PRECISION",
    )
    dependency_timeout_s: float = _setting(
        300.0, "how long an instance waits for workflows it depends on", kinds.duration(), env="DEPENDENCY_TIMEOUT"
    )
    retention_s: float = _setting(30 * 86400.0, "ended instances are cleaned up after this", kinds.duration(), env="RETENTION")
    event_stream: str = _setting("orchestrator:events", "the Redis stream of life-cycle events", kinds.name("the name of a stream"))
    cloudevents_stream: str = _setting(
        "orchestrator:cloudevents",
        "the Redis stream of the Serverless Workflow specification's life-cycle events",
        kinds.name("the name of a stream"),
    )
    event_stream_length: int = _setting(100_000, "about how many events the stream keeps", kinds.whole(1))
    stream_payload_limit_bytes: int = _setting(
        64 * 1024,
        "larger payloads stay in PostgreSQL: entries of streams and Pub/Sub messages refer to them",
        kinds.size(1024),
        env="STREAM_PAYLOAD_LIMIT",
    )
    streams: tuple[str, ...] = _setting(
        ("events:workflow", "events:bus"),
        "the Redis streams that the bridge reads",
        kinds.listed(kinds.name("a stream"), "names of streams without blanks"),
        env="BRIDGE_STREAMS",
    )
    consumer_group: str = _setting(
        "workflow-group", "the bridge's consumer group on them", kinds.name("the name of a group"), env="CONSUMER_GROUP"
    )
    consumer_name: str = _setting(
        "", "this bridge's name in that group; empty: the first of orchestrator-1, -2 … that is free", kinds.name("the name of a consumer")
    )
    tenant_streams: str = _setting(
        "tenant:*:workflow:*:events",
        "streams of tenants, found as they appear; empty: none",
        kinds.name("a pattern of stream names"),
        env="BRIDGE_TENANT_STREAMS",
        blank=True,
    )
    worker_consumer_group: str = _setting(
        "worker-service", "the consumer group on the streams of tenants", kinds.name("the name of a group")
    )
    eventstore_type: str = _setting("redis", "where streams of events are kept", kinds.one_of("redis", "postgres"))
    bus_stream: str = _setting(
        "events:bus", "the stream on which events of the API are published", kinds.name("the name of a stream"), env="BRIDGE_BUS_STREAM"
    )
    flunq_events: bool = _setting(
        True, "whether documents and external tasks are told on `tenant:{t}:workflow:{w}:events` as `io.flunq.*`", kinds.flag()
    )
    stream_batch: int = _setting(
        10,
        "entries read at once; more and more, up to 50 times as many, while reads come back full",
        kinds.whole(1),
        env="WORKER_STREAM_BATCH",
    )
    event_batch_size: int = _setting(500, "events taken in one transaction at most", kinds.whole(1))
    stream_block_s: float = _setting(1.0, "how long a read waits for entries", kinds.duration(above_zero=True), env="WORKER_STREAM_BLOCK")
    reclaim_enabled: bool = _setting(
        True, "whether entries of consumers that fell silent are taken over", kinds.flag(), env="WORKER_RECLAIM_ENABLED"
    )
    reclaim_idle_s: float = _setting(
        60.0, "entries pending for longer are taken over; 0: never", kinds.duration(), env="WORKER_RECLAIM_IDLE"
    )
    event_retry_attempts: int = _setting(3, "how often an event's effects are tried", kinds.whole(1))
    event_retry_delay_ms: int = _setting(
        0, "the wait before the second attempt, doubled with each; 0: 1,000, and 200 for streams of tenants", kinds.whole()
    )
    event_processing_timeout_s: float = _setting(
        0.0,
        "an event whose effects take longer is tried again, and a workflow that `acknowledge: ended` waits for is ended first;"
        " 0: effects 30 s, and workflows as long as they take",
        kinds.duration(),
        env="EVENT_PROCESSING_TIMEOUT",
    )
    trigger_input: str = _setting(
        "data",
        "what a trigger or schedule that says no input gives its workflow: data (the event's data; an empty object), or event"
        " ({triggerEvent: the event}; {triggeredBy: scheduler})",
        kinds.one_of("data", "event"),
    )
    event_retention_s: float = _setting(30 * 86400.0, "events are forgotten after this", kinds.duration(), env="EVENT_RETENTION")
    source_stream_length: int = _setting(
        10_000,
        "about how many entries the streams keep that the orchestrator writes for others",
        kinds.whole(1),
        env="BRIDGE_STREAM_LENGTH",
    )
    open_entries: int = _setting(5_000, "entries whose workflows have not ended; a bridge that has so many stops reading", kinds.whole(1))
    shutdown_timeout_s: float = _setting(
        30.0, "how long a bridge that ends waits for what it began", kinds.duration(), env="BRIDGE_SHUTDOWN_TIMEOUT"
    )
    trigger_queue: str = _setting(
        "workflow.trigger", "the message queue whose messages start workflows; empty: none", kinds.name("the name of a queue"), blank=True
    )
    amqp_url: str = _setting("", "the broker of that queue; empty: Celery's", BROKER, secret=True)
    bridge_port: int = _setting(0, "the bridge's port for /health and /metrics; 0: none", kinds.port())
    data_plane: str = _setting("gateway", "what serves proxies", kinds.one_of("gateway", "caddy"))
    gateway_host: str = _setting("127.0.0.1", "the address on which proxies are served", kinds.host())
    gateway_http_port: int = _setting(8080, "the gateway's shared port for HTTP, where Host tells hostnames apart", kinds.port())
    gateway_https_port: int = _setting(8443, "the gateway's shared port for HTTPS, where SNI does", kinds.port())
    gateway_admin_url: str = _setting("http://127.0.0.1:9180", "the gateway's admin API", HTTP)
    gateway_token: str = _setting("", "the token of that API; needed where it is not on loopback", kinds.name("a token"), secret=True)
    gateway_state: str = _setting(
        ".orchestrator/gateway.json", "the file in which the gateway keeps what it serves; empty: none", kinds.file(), blank=True
    )
    caddy_admin_url: str = _setting("http://127.0.0.1:2019", "Caddy's admin API", HTTP)
    certificates_dir: str = _setting(".orchestrator/certificates", "the folder of certificates and their keys", kinds.folder())
    proxy_http_ports: int = _setting(10_000, "proxies get HTTP ports of their own from here on", kinds.port())
    proxy_https_ports: int = _setting(11_000, "and HTTPS ports from here on", kinds.port())
    proxy_drain_s: float = _setting(30.0, "how long a deleted proxy's requests may take to end", kinds.duration(), env="PROXY_DRAIN")
    reconcile_s: float = _setting(
        300.0,
        "how often events are published again for proxies that failed, got stuck or are missing; 0: never",
        kinds.duration(),
        env="RECONCILE_EVERY",
    )
    log_format: str = _setting("text", "for people, or one JSON object a line", kinds.one_of("text", "json"))
    log_level: str = _setting(
        "info",
        "what is logged by every process; warn is another word for warning",
        kinds.one_of("debug", "info", "warning", "error", "critical", also={"warn": "warning", "fatal": "critical"}),
    )
    metrics_host: str = _setting(
        "127.0.0.1", "where workers, bridges and beat show METRICS_PORT, HEALTH_PORT, BRIDGE_PORT and BEAT_PORT", kinds.host()
    )
    metrics_port: int = _setting(9090, "the worker's Prometheus port; 0: none", kinds.port())
    beat_port: int = _setting(0, "beat's port for /health; 0: none", kinds.port())
    health_port: int = _setting(8082, "the worker's /health port; 0: none", kinds.port())
    tracing: bool = _setting(False, "OpenTelemetry spans for instances and steps", kinds.flag())
    port: int = _setting(5003, "the API's port", kinds.port())
    request_limit_bytes: int = _setting(1024 * 1024, "the largest body of a request; what is larger is answered 413", kinds.size())
    host: str = _setting("127.0.0.1", "where the API listens; anywhere but on loopback it needs AUTH=on", kinds.host())
    flower_host: str = _setting("127.0.0.1", "where Flower listens; anywhere but on loopback it needs AUTH=on", kinds.host())
    flower_port: int = _setting(5555, "Flower's port", kinds.port())
    web_workers: int = _setting(2, "processes that serve the API", kinds.whole(1, 1_000))
    web_threads: int = _setting(8, "requests that each of them serves at once", kinds.whole(1, 10_000))
    worker_concurrency: int = _setting(0, "processes of a worker; 0: one per core, at least 2", kinds.whole(0, 10_000))
    worker_queues: tuple[str, ...] = _setting(
        (),
        "queues beside the four priority classes that this worker serves",
        kinds.listed(kinds.name("a queue"), "names of queues without blanks"),
    )
    expression_timeout_s: float = _setting(
        2.0,
        "an expression that takes longer is stopped",
        kinds.duration(above_zero=True),
        env="EXPRESSION_TIMEOUT",
        also=("EXPRESSION_TIMEOUT_S",),
    )
    egress_allow: tuple[str, ...] = _setting((), "when given, calls go only to these hosts, *.suffixes and networks", kinds.places())
    egress_deny: tuple[str, ...] = _setting(
        (), "calls never go to these; link-local and metadata addresses are always refused", kinds.places()
    )
    egress_private: bool = _setting(True, "whether calls may go to loopback and private networks", kinds.flag())
    resources_dir: str = _setting("", "the folder that file:// addresses of documents lead into; empty: they are refused", kinds.folder())
    secrets_dir: str = _setting("", "a folder with one file per secret; else SECRET_<NAME> variables", kinds.folder())
    encryption_keys: tuple[str, ...] = _setting(
        (), "keys that seal payloads in Postgres: the first seals, all open; none: payloads are in the clear", kinds.keys(), secret=True
    )
    run_scripts: bool = _setting(False, "whether `run: script` (and MCP servers over stdio) are allowed", kinds.flag())
    run_shell: bool = _setting(False, "whether `run: shell` is allowed", kinds.flag())
    run_containers: bool = _setting(False, "whether `run: container` is allowed", kinds.flag())
    run_timeout_s: float = _setting(
        300.0, "a program that runs longer is killed", kinds.duration(above_zero=True), env="RUN_TIMEOUT", also=("RUN_TIMEOUT_S",)
    )
    run_memory_mb: int = _setting(512, "memory of a program", kinds.whole(1, 10_000_000))
    auth: str = _setting(
        "off",
        "whether the API asks who is there; off: it answers to this machine alone",
        kinds.one_of("on", "off", also={"true": "on", "false": "off"}),
    )
    audit_retention_s: float = _setting(90 * 86400.0, "the audit is kept for so long; 0: for ever", kinds.duration(), env="AUDIT_RETENTION")
    auth_jwks: str = _setting("", "keys that sign tokens: an address, or a file; empty: API keys alone", kinds.address_or_file())
    auth_issuer: str = _setting("", "the issuer that tokens must name; empty: any", kinds.name("an issuer"))
    auth_audience: str = _setting("", "the audience that tokens must name; empty: none is asked for", kinds.name("an audience"))
    auth_roles_claim: str = _setting("roles", "where in a token its roles are; dots go deeper", kinds.name("a claim"))
    auth_tenant_claim: str = _setting("tenant", "where in a token its tenant is", kinds.name("a claim"))
    trusted_proxies: int = _setting(0, "proxies before the API whose X-Forwarded-* headers are believed", kinds.whole(0, 100))
    rate_limit: str = _setting("6000/minute", "requests of one principal, where AUTH is on; empty: no limit", kinds.rate(), blank=True)
    start_limit: str = _setting("", "starts of one workflow by one principal, as 10/minute; empty: no limit", kinds.rate())
    environment: str = _setting(
        "development", "whose configurations hold here", kinds.one_of("development", "staging", "production", "test")
    )
    config_dir: str = _setting(
        "config",
        "the folder of configurations: workflows/, schedules/, environments/<environment>/workflows/",
        kinds.folder(),
    )
    output_dir: str = _setting(".orchestrator/output", "the folder below which workflows of this project write files", kinds.folder())
    hot_reload: bool = _setting(True, "whether files of configurations and schedules are read again when they change", kinds.flag())
    breaker_threshold: int = _setting(5, "failures in a row that open a circuit breaker", kinds.whole(1))
    breaker_recovery_s: float = _setting(60.0, "how long an open breaker leaves its target alone", kinds.duration(), env="BREAKER_RECOVERY")
    breaker_trials: int = _setting(3, "attempts that a half-open breaker lets through at a time", kinds.whole(1))
    container_host: str = _setting(
        "",
        "the container engine's API; empty: DOCKER_HOST, else the local socket",
        kinds.url(
            "an address such as unix:///var/run/docker.sock or tcp://host:2375",
            "unix",
            "tcp",
            "http",
            "https",
            examples=("unix:///run/podman.sock",),
        ),
    )
    container_network: str = _setting("bridge", "the network that containers of `run: container` join", kinds.name("a network"))
    db_type: str = _setting("postgres", "where instances are kept", kinds.one_of("postgres", also={"postgresql": "postgres"}))
    workflow_engine_type: str = _setting("serverless", "the engine", kinds.one_of("serverless"))
    hostname: str = _setting("", "this machine's name in leases and logs; empty: the system's", kinds.name("a name"))

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


def names(setting: Any) -> tuple[str, ...]:
    """The variables that a field is read from, its own first."""
    return (variable(setting.name), *setting.metadata["also"])


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, where each comes from, and what is to be told to whoever starts the process."""

    settings: Settings
    sources: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def shown(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Each setting as it may be shown: its variable, its value, where that comes from."""
    rows = []
    for setting in fields(Settings):
        value = getattr(loaded.settings, setting.name)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        if setting.metadata["secret"] and value not in ("", (), setting.default):
            text = without_password(text) if setting.name.endswith("_url") else "***"
        rows.append((variable(setting.name), text, loaded.sources.get(setting.name, DEFAULT)))
    return rows


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Environment before `.env` before the running embedded stack before defaults."""
    return load_from(environments.read(environ)).settings


def load_from(environment: Environment) -> Loaded:
    """The settings that these values mean. Raises `Invalid` with every fault, each with its variable and value."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    environment, faults = with_files(environment, SECRET)
    for setting in fields(Settings):
        given = _redis(environment) if setting.name == "redis_url" else environment.find(names(setting), blank=setting.metadata["blank"])
        if given is None or _is_cluster_link(setting.name, given):
            continue
        kind: Kind = setting.metadata["kind"]
        written = given.text.strip()
        try:
            if _is_cluster(setting.name, written):
                raise ValueError
            values[setting.name] = kind.parse(written) if written or not setting.metadata["blank"] else ""
            sources[setting.name] = given.source
        except ValueError:
            why = CLUSTER if _is_cluster(setting.name, written) else f"Expected {kind.expected}"
            faults.append(_fault(given, why, setting))
    if "database_url" in values:
        values["database_url"] = with_password(values["database_url"], values.get("database_password", ""))
    faults += _together(values, environment)
    if faults:
        raise Invalid(faults, "configuration")
    return Loaded(Settings(**values, **_apart(values)), sources, tuple(_warnings(environment)))


def _fault(given: Given, expected: str, setting: Any) -> Fault:
    text = given.written or given.text
    said = f'got "{_printable(text)}"'
    if setting.metadata["secret"]:
        is_address = setting.name.endswith("_url")
        said = f'got "{_printable(without_password(text))}"' if is_address else "the value is secret and not shown"
    where = "" if given.source == FILE else f" ({given.source})"
    return Fault(given.name, f"{expected}, {said}{where}.", file=FILE if given.source == FILE else "", line=given.line)


def without_password(address: str) -> str:
    """An address as it may be shown."""
    return re.sub(r":(?!//).*@", ":***@", address)


def _printable(text: str) -> str:
    held = "".join(letter if letter.isprintable() else "?" for letter in text.strip())
    return held if len(held) <= 80 else f"{held[:79]}…"


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _redis(environment: Environment) -> Given | None:
    """One rule: the highest source that names Redis decides; there REDIS_URL goes before REDIS_HOST and REDIS_PORT.

    REDIS_PASSWORD, from wherever it is highest, is given to an address that has none.
    """
    given = next((found for source, _ in environment.levels if (found := _redis_of(source, environment)) is not None), None)
    password = environment.find(("REDIS_PASSWORD",))
    if given is None:
        if password is None:
            return None
        given = Given("REDIS_URL", Settings().redis_url, password.source)
    written = given.text.strip()
    text = written if "://" in written else f"redis://{written}"
    scheme, _, rest = text.partition("://")
    if password is not None and "@" not in rest:
        text = f"{scheme}://:{quote(password.text.strip(), safe='')}@{rest}"
    return Given(given.name, text, given.source, given.line, given.written or written)


def _redis_of(source: str, environment: Environment) -> Given | None:
    only = Environment(tuple(level for level in environment.levels if level[0] == source), environment.lines)
    if url := only.find(("REDIS_URL",)):
        return url
    host, port = only.find(("REDIS_HOST",)), only.find(("REDIS_PORT",))
    if port is not None and _is_cluster_link("redis_port", port):
        port = None
    if host is None and port is None:
        return None
    name = host.text.strip() if host else "127.0.0.1"
    if host is not None and re.fullmatch(r"[^:]+:\d+", name):
        return Given("REDIS_HOST", f"{name}/0", source, host.line, name)
    name = f"[{name}]" if ":" in name and not name.startswith("[") else name
    found = host or port
    assert found is not None
    return Given(found.name, f"redis://{name}:{port.text.strip() if port else 6379}/0", source, found.line, found.text)


def _is_cluster_link(field_name: str, given: Given) -> bool:
    """Kubernetes gives every container `REDIS_PORT=tcp://10.0.0.1:6379` where a service is called redis: that is no setting."""
    return field_name == "redis_port" and given.text.startswith("tcp://")


# ── what concerns several ───────────────────────────────────────────────────────────────────────────────────────────


CLUSTER = "Redis Cluster cannot carry Celery's queues (keys of one command in many slots): expected Sentinel or one primary"


def _is_cluster(field_name: str, address: str) -> bool:
    lowered = address.lower()
    return field_name in ("redis_url", "broker_url") and (
        lowered.startswith(("redis+cluster", "rediscluster")) or "cluster=true" in lowered
    )


def _together(values: Mapping[str, Any], environment: Environment) -> list[Fault]:
    """What fits by itself and not with another."""
    faults = []
    lease, heartbeat = values.get("lease_s", Settings().lease_s), values.get("heartbeat_s", Settings().heartbeat_s)
    if heartbeat * 2 > lease:
        slow = f"A heartbeat of {heartbeat:g} s is too slow for a lease of {lease:g} s: expected at most half of it"
        faults.append(_fault_at("heartbeat_s" if "heartbeat_s" in values else "lease_s", slow, environment))
    if values.get("tracing") and importlib.util.find_spec("opentelemetry") is None:
        faults.append(_fault_at("tracing", "It needs the tracing extra (pip install 'celery-orchestrator[tracing]')", environment))
    return faults


def _fault_at(name: str, expected: str, environment: Environment) -> Fault:
    setting = next(one for one in fields(Settings) if one.name == name)
    given = environment.find(names(setting))
    assert given is not None
    return _fault(given, expected, setting)


def _warnings(environment: Environment) -> list[str]:
    known = {name for setting in fields(Settings) for name in names(setting)} | {f"{name}_FILE" for name in SECRET}
    told = [f"{FILE} line {line} is not an assignment NAME=value; it is ignored" for line in environment.unreadable]
    nearby = [(given, nearly(given.name, known)) for given in environment.names() if given.name not in known]
    told += [f"{given.name} ({given.where}) is not a setting and has no effect. Did you mean {meant}?" for given, meant in nearby if meant]
    return told


def nearly(name: str, known: set[str]) -> str | None:
    """The setting that somebody who wrote this name must have meant, if it is plain."""
    if name.startswith("SECRET_"):
        return None
    if name.upper() in known:
        return name.upper()
    for ending in ("_SECONDS", "_SECS", "_SEC", "_S", "_MS", "_BYTES", "S"):
        if name.endswith(ending) and len(stem := name.removesuffix(ending)) > 4 and stem in known:
            return stem
    for one in sorted(known):
        if min(len(one), len(name)) > 4 and _distance(name, one) <= (2 if len(one) >= 14 else 1):
            return one
    return None


def _distance(a: str, b: str) -> int:
    """How many letters were left out, put in, mistaken or swapped with their neighbour; 3 stands for more."""
    if abs(len(a) - len(b)) > 2:
        return 3
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        latest = [i]
        for j, right in enumerate(b, 1):
            cost = min(row[j] + 1, latest[j - 1] + 1, row[j - 1] + (left != right))
            if before and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, before[j - 2] + 1)
            latest.append(cost)
        before, row = row, latest
    return min(row[-1], 3)
