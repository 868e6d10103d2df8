"""What every part of the engine works with: settings, the database, the executors, the door to Celery."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.breakers import Breakers
from orchestrator.config import secrets
from orchestrator.config.settings import Settings
from orchestrator.definition import kept
from orchestrator.definition.tree import Definition
from orchestrator.definition.triggers import Trigger
from orchestrator.engine import warden
from orchestrator.engine.catalog import LeftOut
from orchestrator.engine.publish import Publisher
from orchestrator.errors import NotFound
from orchestrator.ids import Position
from orchestrator.steps.registry import REGISTRY, Registry
from orchestrator.store import definitions, sealing, workers
from orchestrator.store import secrets as kept_secrets
from orchestrator.store.connection import Database

logger = logging.getLogger("orchestrator.runtime")

PRIORITIES = ("low", "normal", "high", "critical")
CAPACITY_FOR_S = 5.0


@functools.cache
def _worker_id() -> str:
    """This process's, and its forked children's: made when it is first asked for, so that processes forked before have their own."""
    return uuid.uuid4().hex[:12]


@dataclass(slots=True)
class Holding:
    """A branch this process holds, for the heartbeat."""

    id: int
    generation: int
    doing: str
    since: float
    instance_id: str
    time_out: Callable[[], None] | None = None
    """Records that the step it is in has outlived its time, when the step itself cannot be reached."""


@dataclass(slots=True)
class Runtime:
    settings: Settings
    database: Database
    publisher: Publisher
    registry: Registry = REGISTRY
    holdings: dict[int, Holding] = field(default_factory=dict)
    worker_id: str = field(default_factory=_worker_id)
    shared: dict[tuple[int, str | None], Any] = field(default_factory=dict)
    book: tuple[float, dict[str, list[Trigger]]] = (0.0, {})
    """Triggers by tenant, and until when they hold."""
    found: dict[tuple[str, str | None, str], tuple[float, definitions.Stored]] = field(default_factory=dict)
    """Definitions that were found by name, and until when they hold."""
    configs: dict[tuple[str, str, str, str], tuple[float, dict[str, Any]]] = field(default_factory=dict)
    """Configurations by tenant, namespace, workflow and version, and until when they hold."""
    left_out: list[LeftOut] = field(default_factory=list)
    """What of the workflows' packages cannot be used here, and why."""
    variants: dict[tuple[int, str], int] = field(default_factory=dict)
    """Definitions under configurations: by the definition's id and the configuration."""
    breakers: Breakers = field(init=False)
    _capacity: tuple[int, float] = (0, 0.0)
    _definitions: OrderedDict[int, Definition] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        warden.install()
        self.breakers = Breakers(self.settings)
        sealing.use(self.settings.encryption_keys)
        secrets.kept = self._kept_secret if self.settings.encryption_keys else None

    def _kept_secret(self, name: str) -> str | None:
        return self.database.patiently(lambda c: kept_secrets.find(c, name))

    @property
    def owner(self) -> str:
        """Who holds a branch: this process (and thread) of this worker of this host. Read by whoever finds it dead."""
        return f"{self.settings.host_name}/{self.worker_id}/{os.getpid()}"

    def definition(self, definition_id: int) -> Definition:
        """Definitions never change under their id, so what was read once is kept."""
        held = self._definitions.get(definition_id)
        if held is None:
            stored = self.database.patiently(lambda c: definitions.by_id(c, definition_id))
            if stored is None:
                logger.critical("definition lookup failed: the database has none with the id %s", definition_id)
                raise NotFound("definition", definition_id)
            held = kept.definition_of(stored.tree)
            with self._lock:
                self._definitions[definition_id] = held
                while len(self._definitions) > 512:
                    self._definitions.popitem(last=False)
        return held

    def helpers(self) -> int:
        """Twice as many as there are processes to run them, so that one more worker finds work, too."""
        now = time.monotonic()
        if now > self._capacity[1]:
            processes = self.database.patiently(workers.processes)
            self._capacity = (max(4, 2 * processes), now + CAPACITY_FOR_S)
        return self._capacity[0]

    def hold(self, branch_id: int, generation: int, instance_id: str) -> Holding:
        holding = Holding(branch_id, generation, "", time.monotonic(), instance_id)
        self.holdings[branch_id] = holding
        return holding

    def let_go(self, branch_id: int) -> None:
        self.holdings.pop(branch_id, None)


def queue_of(priority: int) -> str:
    return PRIORITIES[max(0, min(priority, 3))]


def priority_number(name: str | int | None) -> int:
    """low, normal, high, critical; or 0 to 3, or 1 to 4 as words of older systems have it."""
    if name is None:
        return 1
    if isinstance(name, int) and not isinstance(name, bool) and 0 <= name <= 3:
        return name
    if isinstance(name, str) and name.lower() in PRIORITIES:
        return PRIORITIES.index(name.lower())
    raise ValueError(f"unknown priority {name!r}; write one of {', '.join(PRIORITIES)}")


def is_undo(position: str) -> bool:
    return position == "/undo" or position.startswith("/undo/")


__all__ = ["PRIORITIES", "Position", "Runtime", "is_undo", "priority_number", "queue_of"]
