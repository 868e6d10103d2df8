"""Does what we stand on answer? Asked shortly: who asks waits for it."""

from __future__ import annotations

import psycopg
import redis

from orchestrator.engine.runner import WorkflowRunner


def database_answers(current: WorkflowRunner) -> bool:
    try:
        current.database.connection().execute("select 1")
    except psycopg.Error:
        current.database.drop()
        return False
    return True


def redis_answers(current: WorkflowRunner) -> bool:
    with redis.Redis.from_url(current.runtime.settings.redis_url, socket_timeout=1, socket_connect_timeout=1) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
