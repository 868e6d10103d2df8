"""The state that Redis shows, as plain keys: what resources are in, what is pending, who consumes.

    workflow:state:{hostname}     ACTIVE, UPDATING …: one string a resource
    workflow:pending              the set of those at which something works
    workflow:consumer:info        a hash about the bridge

Redis shows what Postgres knows: the keys are written together (MULTI), after the commit, and made again from Postgres
when somebody emptied Redis.
"""

from __future__ import annotations

import logging
from typing import Any

import redis

from orchestrator.config.settings import Settings
from orchestrator.store import resources
from orchestrator.store.connection import Connection, Database
from orchestrator.store.resources import Resource

logger = logging.getLogger("orchestrator.state")

INFO = "workflow:consumer:info"
PENDING = "workflow:pending"
MARK = "workflow:state"
"""Set once, so that its absence says that the keys are to be made again."""


def state_key(name: str, prefix: str = "") -> str:
    return f"{prefix}workflow:state:{name}"


class StateKeys:
    def __init__(self, settings: Settings) -> None:
        self._prefix = settings.redis_prefix
        self._redis: Any = redis.Redis.from_url(settings.redis_url, decode_responses=True, socket_timeout=5, socket_connect_timeout=2)

    def consumer_info(self, name: str, about: dict[str, str], processed: int, errors: int, *, running: bool) -> None:
        """Counts of all consumers stand beside one another; the sums are theirs."""
        try:
            pipeline = self._redis.pipeline(transaction=True)
            pipeline.hset(
                self._prefix + INFO,
                mapping={**about, f"processed:{name}": processed, f"errors:{name}": errors, f"active:{name}": str(running).lower()},
            )
            pipeline.expire(self._prefix + INFO, 86400)
            pipeline.execute()
        except redis.RedisError as error:
            logger.debug("no consumer info: %s", error)

    def info(self) -> dict[str, Any]:
        """What consumers say of themselves; the counts of all of them added up."""
        try:
            held: dict[str, str] = self._redis.hgetall(self._prefix + INFO)
        except redis.RedisError:
            return {}
        sums = {
            f"{kind}_count": sum(int(value) for key, value in held.items() if key.startswith(f"{kind}:"))
            for kind in ("processed", "errors")
        }
        return {**{key: value for key, value in held.items() if ":" not in key}, **sums}

    def rebuild_when_lost(self, database: Database) -> bool:
        """True: the keys were gone and are there again."""
        try:
            if self._redis.exists(self._prefix + MARK):
                return False
            database.patiently(self.rebuild)
        except redis.RedisError as error:
            logger.debug("no state keys: %s", error)
            return False
        return True

    def rebuild(self, c: Connection) -> None:
        # Under the lock that moves hold while they are told: a newer state cannot be overwritten by an older one.
        with c.transaction():
            resources.lock_telling(c)
            found = resources.all_resources(c)
            _show(self._redis, found, self._prefix, anew=True)
        if found:
            logger.info("%d states were written to Redis again", len(found))

    def close(self) -> None:
        self._redis.close()


def tell(client: Any, c: Connection, names: list[str], prefix: str = "") -> None:
    """Show the present states of these resources, and whether something works at them: all or nothing.

    Read under the lock of whoever tells: what is written last is what is true last.
    """
    resources.lock_telling(c)
    _show(client, resources.by_names(c, names), prefix)


def _show(client: Any, found: list[Resource], prefix: str, *, anew: bool = False) -> None:
    pipeline = client.pipeline(transaction=True)
    if anew:
        # Names that nobody knows any more would stay in it for ever.
        pipeline.delete(prefix + PENDING)
    for resource in found:
        pipeline.set(state_key(resource.name, prefix), resource.state)
        if resource.doing:
            pipeline.sadd(prefix + PENDING, resource.name)
        else:
            pipeline.srem(prefix + PENDING, resource.name)
    pipeline.set(prefix + MARK, "1")
    pipeline.execute()
