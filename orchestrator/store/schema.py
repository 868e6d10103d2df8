"""The tables as SQLAlchemy knows them, for queries with changing filters. The protocol's statements are written out.

`migrations/` makes the tables; a test holds that both say the same.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Identity,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = MetaData()


def _id() -> Column[int]:
    return Column("id", BigInteger, Identity(always=True), primary_key=True)


def _at(name: str, *, nullable: bool = True) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


definitions = Table(
    "definitions",
    metadata,
    _id(),
    Column("tenant", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("major", Integer, nullable=False),
    Column("minor", Integer, nullable=False),
    Column("patch", Integer, nullable=False),
    Column("tree", JSONB, nullable=False),
    Column("digest", Text, nullable=False),
    Column("source", Text),
    _at("created_at", nullable=False),
)

instances = Table(
    "instances",
    metadata,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("definition_id", BigInteger, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("outcome", Text),
    Column("phase", Text, nullable=False),
    Column("ending", Text),
    Column("compensation", JSONB),
    Column("input", JSONB),
    Column("output", JSONB),
    Column("error", JSONB),
    Column("labels", JSONB, nullable=False),
    Column("metadata", JSONB),
    Column("priority", SmallInteger, nullable=False),
    Column("idempotency_key", Text),
    Column("parent_id", UUID(as_uuid=False)),
    Column("parent_branch", BigInteger),
    Column("forked_from", UUID(as_uuid=False)),
    Column("trace_id", Text),
    Column("source", Text, nullable=False),
    Column("step_events", Boolean, nullable=False),
    Column("slots", SmallInteger, nullable=False),
    Column("timeout_s", Double),
    _at("created_at", nullable=False),
    _at("started_at"),
    _at("ended_at"),
)

branches = Table(
    "branches",
    metadata,
    _id(),
    Column("instance_id", UUID(as_uuid=False), nullable=False),
    Column("parent_id", BigInteger),
    Column("position", Text, nullable=False),
    Column("join_position", Text),
    Column("mode", Text),
    Column("state", Text, nullable=False),
    Column("outcome", Text),
    Column("generation", Integer, nullable=False),
    Column("claims", Integer, nullable=False),
    Column("owner", Text),
    _at("lease_until"),
    Column("doing", Text),
    Column("stopping", Boolean, nullable=False),
    Column("crashes", SmallInteger, nullable=False),
    Column("crash_seq", Integer),
    Column("queue", Text, nullable=False),
    _at("queued_at", nullable=False),
    Column("after", ARRAY(BigInteger)),
    Column("shared", JSONB),
    Column("vars", JSONB),
    Column("context", JSONB),
    Column("output", JSONB),
    Column("error", JSONB),
    Column("snapshot", JSONB),
    Column("usage", JSONB),
    Column("lacks", Text),
    _at("lacking_since"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("branch_id", BigInteger, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("position", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    Column("data", JSONB),
    _at("at", nullable=False),
)

timers = Table(
    "timers",
    metadata,
    _id(),
    Column("branch_id", BigInteger, nullable=False),
    _at("due_at", nullable=False),
    Column("kind", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    _id(),
    Column("source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("instance_id", UUID(as_uuid=False)),
    Column("tenant", Text, nullable=False),
    Column("envelope", JSONB, nullable=False),
    _at("at", nullable=False),
    Column("stream", Text),
    Column("entry", Text),
    Column("order_key", Text),
    Column("state", Text, nullable=False),
    Column("attempts", SmallInteger, nullable=False),
    Column("replays", SmallInteger, nullable=False),
    Column("error", JSONB),
    _at("try_at"),
)

triggers = Table(
    "triggers",
    metadata,
    _id(),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    Column("origin", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    _at("changed_at", nullable=False),
)

effects = Table(
    "effects",
    metadata,
    Column("event_id", BigInteger, primary_key=True),
    Column("trigger", Text, primary_key=True),
    Column("replay", SmallInteger, primary_key=True),
    Column("action", Text, nullable=False),
    Column("instance_id", UUID(as_uuid=False)),
    Column("detail", JSONB),
    _at("at", nullable=False),
)

windows = Table(
    "windows",
    metadata,
    _id(),
    Column("tenant", Text, nullable=False),
    Column("trigger", Text, nullable=False),
    Column("key", Text, nullable=False),
    _at("due_at", nullable=False),
    Column("events", ARRAY(BigInteger), nullable=False),
    Column("count", Integer, nullable=False),
)

webhooks = Table(
    "webhooks",
    metadata,
    _id(),
    Column("tenant", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("types", ARRAY(Text), nullable=False),
    Column("secret", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    _at("changed_at", nullable=False),
)

deliveries = Table(
    "deliveries",
    metadata,
    _id(),
    Column("webhook_id", BigInteger, nullable=False),
    Column("event", JSONB, nullable=False),
    Column("attempts", SmallInteger, nullable=False),
    _at("try_at", nullable=False),
    Column("error", Text),
)

resources = Table(
    "resources",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("id", UUID(as_uuid=False), nullable=False),
    Column("state", Text, nullable=False),
    Column("mode", Text),
    Column("doing", Text),
    Column("data", JSONB, nullable=False),
    Column("error", JSONB),
    _at("created_at", nullable=False),
    _at("changed_at", nullable=False),
)

resource_moves = Table(
    "resource_moves",
    metadata,
    _id(),
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("resource_id", UUID(as_uuid=False), nullable=False),
    Column("from_state", Text),
    Column("to_state", Text, nullable=False),
    Column("by_instance", UUID(as_uuid=False)),
    Column("by_step", Text),
    Column("detail", JSONB),
    _at("at", nullable=False),
)

stream_entries = Table(
    "stream_entries",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("fields", JSONB, nullable=False),
    _at("at", nullable=False),
)

stream_groups = Table(
    "stream_groups",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("last_id", BigInteger, nullable=False),
)

stream_pending = Table(
    "stream_pending",
    metadata,
    Column("stream", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("id", BigInteger, primary_key=True),
    Column("consumer", Text, nullable=False),
    _at("delivered_at", nullable=False),
    Column("deliveries", Integer, nullable=False),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    _id(),
    Column("branch_id", BigInteger, nullable=False),
    Column("instance_id", UUID(as_uuid=False), nullable=False),
    Column("event_type", Text),
    Column("tenant", Text, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    _id(),
    Column("type", Text, nullable=False),
    Column("instance_id", UUID(as_uuid=False)),
    Column("data", JSONB, nullable=False),
    _at("at", nullable=False),
    Column("put_aside", Text),
)

slots = Table(
    "slots",
    metadata,
    _id(),
    Column("scope", Text, nullable=False),
    Column("capacity", Integer, nullable=False),
    Column("instance_id", UUID(as_uuid=False), nullable=False),
    Column("granted", Boolean, nullable=False),
)

dependencies = Table(
    "dependencies",
    metadata,
    _id(),
    Column("instance_id", UUID(as_uuid=False), nullable=False),
    Column("on_workflow", Text),
    Column("on_namespace", Text),
    Column("on_instance", UUID(as_uuid=False)),
    Column("condition", Text, nullable=False),
    Column("met", Boolean, nullable=False),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    _id(),
    Column("instance_id", UUID(as_uuid=False), nullable=False),
    Column("position", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("error", JSONB),
    _at("at", nullable=False),
    _at("resolved_at"),
)

audit = Table(
    "audit",
    metadata,
    _id(),
    _at("at", nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("instance_id", UUID(as_uuid=False)),
    Column("workflow", Text),
    Column("from_state", Text),
    Column("to_state", Text),
    Column("detail", JSONB),
    Column("address", Text),
    Column("agent", Text),
)

audit_seals = Table(
    "audit_seals",
    metadata,
    _id(),
    _at("at", nullable=False),
    Column("first_id", BigInteger, nullable=False),
    Column("last_id", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("hash", Text, nullable=False),
)

configs = Table(
    "configs",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("environment", Text, primary_key=True),
    Column("workflow", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("spec", JSONB),
    Column("origin", Text, nullable=False),
    Column("actor", Text, nullable=False),
    _at("at", nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("roles", ARRAY(Text), nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("workflows", ARRAY(Text), nullable=False),
    _at("created_at", nullable=False),
    _at("expires_at"),
    _at("revoked_at"),
    _at("used_at"),
)

security_events = Table(
    "security_events",
    metadata,
    _id(),
    _at("at", nullable=False),
    Column("type", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("detail", JSONB),
    _at("resolved_at"),
    Column("resolved_by", Text),
    Column("resolution", Text),
)

schedules = Table(
    "schedules",
    metadata,
    _id(),
    Column("namespace", Text, nullable=False),
    Column("workflow", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    _at("next_at"),
    Column("seen_event", BigInteger, nullable=False),
    Column("note", JSONB),
    Column("fires", BigInteger, nullable=False),
    _at("last_at"),
    Column("last_instance", UUID(as_uuid=False)),
    _at("created_at", nullable=False),
    Column("name", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    _at("planned_at"),
    Column("about", JSONB),
    Column("starts", BigInteger, nullable=False),
    Column("skips", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    _at("mirrored_at"),
    _at("changed_at", nullable=False),
    Column("failures", Integer, nullable=False),
    _at("retry_at"),
)

findings = Table(
    "findings",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("tenant", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("message", Text, nullable=False),
    Column("detail", JSONB),
    Column("times", BigInteger, nullable=False),
    _at("since", nullable=False),
    _at("seen_at", nullable=False),
    _at("told_at"),
)

fires = Table(
    "fires",
    metadata,
    Column("schedule_id", BigInteger, primary_key=True),
    Column("planned_at", DateTime(timezone=True), primary_key=True),
    _at("at", nullable=False),
    Column("outcome", Text, nullable=False),
    Column("instance_id", UUID(as_uuid=False)),
    Column("reason", Text),
    Column("by", Text, nullable=False),
    Column("retries", SmallInteger, nullable=False),
    _at("ends_at"),
    Column("is_open", Boolean, nullable=False),
)

chores = Table(
    "chores",
    metadata,
    Column("name", Text, primary_key=True),
    _at("at", nullable=False),
    Column("data", JSONB),
)

leadership = Table(
    "leadership",
    metadata,
    Column("role", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    _at("until", nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("queues", ARRAY(Text), nullable=False),
    _at("started_at", nullable=False),
    _at("seen_at", nullable=False),
    Column("left_out", JSONB),
    Column("code", ARRAY(Text)),
    Column("home", Text, nullable=False),
    Column("began", Double),
)
