"""RedBeat's scheduler, which says how it is: `/health` on BEAT_PORT.

Of several beats one holds the lock and beats; the others stand by, and are healthy as long as somebody holds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import redis
from redbeat import RedBeatScheduler
from redbeat.schedulers import get_redis

from orchestrator.config.settings import Settings
from orchestrator.telemetry import scrape

SILENT_S = 30.0


class Scheduler(RedBeatScheduler):  # type: ignore[misc]
    settings_of: ClassVar[Callable[[], Settings]]

    def __init__(self, app: Any, *, lazy: bool = False, **more: Any) -> None:
        self.ticked_at: float | None = None
        super().__init__(app, lazy=lazy, **more)
        held = type(self).settings_of()
        if held.beat_port and not lazy:  # a lazy one is made to be shown, not to beat
            # Before the lock is waited for: who stands by can be asked, too.
            scrape.health(held.beat_port, self.health, held.metrics_host)

    def tick(self, *given: Any, **more: Any) -> float:
        wait_s = float(super().tick(*given, **more))
        self.ticked_at = time.monotonic()
        return wait_s

    def health(self) -> dict[str, Any]:
        if self.ticked_at is None:
            return {"status": "healthy" if self._is_held() else "unhealthy", "role": "standby"}
        silent_s = time.monotonic() - self.ticked_at
        is_healthy = silent_s < self.max_interval + SILENT_S
        return {"status": "healthy" if is_healthy else "unhealthy", "role": "beating", "silent_s": round(silent_s, 1)}

    def _is_held(self) -> bool:
        try:
            return bool(get_redis(self.app).exists(self.lock_key))
        except redis.RedisError:
            return False
