"""A chore: something the holder of a post does for all, when it is wanted or every so often."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from orchestrator.config.settings import Settings
from orchestrator.engine.runtime import Runtime
from orchestrator.store.branches import Published
from orchestrator.store.connection import Connection
from orchestrator.store.timers import Probe
from orchestrator.telemetry import metrics

logger = logging.getLogger("orchestrator.keeper")

BATCH = 500


class RelayLike(Protocol):
    def drain(self, c: Connection) -> int: ...

    def take_up(self, c: Connection) -> int: ...


class MirrorLike(Protocol):
    is_beating: bool

    def look(self, c: Connection) -> None: ...

    def sync(self, c: Connection) -> int: ...


@dataclass(slots=True)
class Desk:
    """What chores work with."""

    runtime: Runtime
    relay: RelayLike | None = None
    mirror: MirrorLike | None = None
    known: dict[str, object] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.runtime.settings

    def publish(self, reason: str, published: list[Published]) -> None:
        if published:
            metrics.recovered(reason, len(published))
            logger.info("published %d branches again: %s", len(published), reason)
            self.runtime.publisher.branches(published)


class Every:
    """Something to be done every so often."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.next = 0.0

    def is_due(self) -> bool:
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + self.seconds
        return True


class Chore(ABC):
    """One file each in this folder. `every_s`: not more often than that, wanted or not."""

    name: ClassVar[str]
    every_s: ClassVar[float] = 0.0

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.runtime = desk.runtime
        self.settings = desk.runtime.settings
        self._next = 0.0

    def is_due(self, probe: Probe) -> bool:
        if time.monotonic() < self._next or not self.is_wanted(probe):
            return False
        self._next = time.monotonic() + self.every_s
        return True

    def is_wanted(self, probe: Probe) -> bool:
        """Whether what the probe saw is this chore's business; without more, its time alone decides."""
        return True

    def wakes_at(self) -> float | None:
        """When it wants to be looked at even if no probe comes first, on the monotonic clock."""
        return None

    @abstractmethod
    def do(self, c: Connection) -> None:
        """Once. Whatever it raises is caught by its barrier."""
