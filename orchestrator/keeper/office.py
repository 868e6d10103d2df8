"""The office: a thread in every worker's parent process. It watches the worker's children, and stands for the posts.

A child of the pool that is gone held branches that nobody renews: they are freed at once. A clean exit hands the posts over at once.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.engine import clock, deaths, interrupt, missing
from orchestrator.engine.runtime import Runtime
from orchestrator.keeper.chore import Chore, Desk, Every, MirrorLike, RelayLike
from orchestrator.keeper.lane import Lane, forget_metrics
from orchestrator.store import lacking, leases, timers, workers
from orchestrator.store.connection import BROKEN, Connection
from orchestrator.store.timers import Probe

logger = logging.getLogger("orchestrator.keeper")

TICK_S = 0.25
LOOK_AGAIN_S = (0.0, 0.5, 2.0)
MOST_BETWEEN_PROBES_S = 5.0
POST_S = 6.0
BEATS_GRACE_S = 0.3
KEEPER = "keeper"

Lanes = Mapping[str, Sequence[type[Chore]]]
"""The chores of each lane."""


class Post:
    """What one worker does for all while it holds the lease: the lanes run, or they do not."""

    def __init__(self, role: str, lanes: Lanes, desk: Desk) -> None:
        self.role = role
        self._lanes = lanes
        self._desk = desk
        self.running: list[Lane] = []

    @property
    def is_held(self) -> bool:
        return bool(self.running)

    def take(self) -> None:
        if not self.running:
            logger.info("this worker holds the post %s now", self.role)
            database = self._desk.runtime.database
            self.running = [Lane(name, [chore(self._desk) for chore in chores], database) for name, chores in self._lanes.items()]
            for lane in self.running:
                lane.start()

    def leave(self) -> list[Lane]:
        """The lanes end after what they are doing; gives them."""
        ending, self.running = self.running, []
        for lane in ending:
            lane.end()
        forget_metrics(ending)
        return ending

    def hand_in(self, probe: Probe) -> None:
        for lane in self.running:
            lane.hand_in(probe)

    def about(self) -> dict[str, Any]:
        return {lane.lane: about for lane in self.running if (about := lane.about())["failing"] or "doing" in about}


class Office(threading.Thread):
    """`children` gives the pids of the pool's processes as they are now; `posts` are the lanes of each post."""

    def __init__(
        self,
        runtime: Runtime,
        posts: Mapping[str, Lanes],
        children: Callable[[], set[int]],
        *,
        relay: RelayLike | None = None,
        mirror: MirrorLike | None = None,
        concurrency: int = 0,
        queues: list[str] | None = None,
    ) -> None:
        super().__init__(name="office", daemon=True)
        self.runtime = runtime
        self.settings = runtime.settings
        self.children = children
        self.concurrency = concurrency
        self.queues = queues or []
        self.desk = Desk(runtime, relay, mirror)
        self.posts = [Post(role, lanes, self.desk) for role, lanes in posts.items()]
        self._moved_at = time.monotonic()
        self._stop_asked = threading.Event()
        self._known_children: set[int] = set()
        self._look_for: list[tuple[float, int]] = []
        self._listening: Connection | None = None
        self._code: list[str] = []
        self._clock: clock.Watch | None = None
        # Shorter than a branch's lease: a host that is lost may have held the posts, too.
        self.post_s = min(POST_S, self.settings.lease_s * 0.5)
        self._renew, self._sign = Every(self.post_s / 3), Every(self.settings.heartbeat_s)
        self._probe = Every(min(self.settings.timer_precision_s, MOST_BETWEEN_PROBES_S))

    # ── the thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        pause = 0.1
        while not self._stop_asked.is_set():
            try:
                self._cycle()
                self._moved_at = time.monotonic()
                pause = 0.1
            except BROKEN as error:
                logger.warning("PostgreSQL does not answer, retrying: %s", str(error).split("\n", 1)[0])
                self.runtime.database.drop()
                self._listening = None
                for post in self.posts:
                    post.leave()
                # Spread, so that workers do not come back in step.
                self._stop_asked.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311  # nosec B311 # a pause, no secret
                pause = min(pause * 2, 2.0)
            except Exception:
                logger.exception("maintenance iteration failed, retrying in 1 s")
                self._stop_asked.wait(1.0)
        self._leave()

    def stop(self) -> None:
        self._stop_asked.set()

    @property
    def is_keeper(self) -> bool:
        return any(post.role == KEEPER and post.is_held for post in self.posts)

    def health(self) -> dict[str, Any]:
        """Whether this thread moves, which it does only while Postgres answers; and how the chores are that are done here."""
        silent_s = time.monotonic() - self._moved_at
        chores = {lane: about for post in self.posts for lane, about in post.about().items()}
        moves = silent_s < max(5.0, 2 * self.settings.heartbeat_s)
        return {
            "status": "unhealthy" if not moves else "degraded" if chores else "healthy",
            "database": {"type": self.settings.db_type, "silent_s": round(silent_s, 1)},
            "engine": self.settings.workflow_engine_type,
            "worker": self.runtime.worker_id,
            "keeper": self.is_keeper,
            "posts": [post.role for post in self.posts if post.is_held],
            "chores": chores,
            "left_out": [one.to_json() for one in self.runtime.left_out],
        }

    def _cycle(self) -> None:
        self._watch_children()
        c = self.runtime.database.connection()
        if self._sign.is_due():
            self._give_sign(c)
        if self._renew.is_due():
            held = workers.lead(c, [post.role for post in self.posts], self.runtime.worker_id, self.post_s)
            for post in self.posts:
                self._stand(c, post, held)
        if any(post.is_held for post in self.posts):
            self._look(c)
        self._listen(TICK_S)

    def _stand(self, c: Connection, post: Post, held: Mapping[str, float]) -> None:
        if post.role not in held and deaths.depose(self.runtime, post.role):
            held = workers.lead(c, [post.role], self.runtime.worker_id, self.post_s)
        is_held, set_back_s = post.role in held, held.get(post.role, 0.0)
        if post.role == KEEPER:
            # One post alone says that the clock was set: each says so to whoever takes it first.
            self._clock = self._clock or clock.Watch(self.settings.lease_s) if is_held else None
            if self._clock is not None:
                self._clock.set_back(c, set_back_s)
        if is_held:
            post.take()
        else:
            post.leave()

    def _give_sign(self, c: Connection) -> None:
        code = missing.code_here(self.runtime.registry)
        is_new = workers.sign(c, deaths.sign_of(self.runtime, self.concurrency, self.queues, code))
        if is_new or code != self._code:
            self.desk.publish("code is here", lacking.wake(c, code))
            self._code = code

    def _look(self, c: Connection) -> None:
        """What there is to do is for the lanes to see to."""
        if not self._probe.is_due():
            return
        mirror = self.desk.mirror
        grace_s = BEATS_GRACE_S if mirror is not None and mirror.is_beating else 0.0
        asked = time.monotonic()
        probe = timers.probe(c, self.settings.queue_grace_s, grace_s)
        if self._clock is not None:
            # Before a lease is taken for one that ran out, or a schedule for one whose time has come.
            self._clock.look(c, probe.now, asked)
        for post in self.posts:
            post.hand_in(probe)

    def _listen(self, pause_s: float) -> None:
        """Sleep, unless somebody asks for a step to be interrupted."""
        c = self.runtime.database.connection()
        if self._listening is not c:
            workers.listen(c)
            self._listening = c
        for notice in c.notifies(timeout=pause_s, stop_after=1):
            self._interrupt(notice.payload)

    def _interrupt(self, payload: str) -> None:
        with contextlib.suppress(ValueError, TypeError):
            for owner in json.loads(payload):
                host, worker, pid = str(owner).rsplit("/", 2)
                if worker == self.runtime.worker_id and host == self.settings.host_name and int(pid) in self.children() | {os.getpid()}:
                    os.kill(int(pid), interrupt.CANCEL_SIGNAL)

    def _leave(self) -> None:
        lanes = [lane for post in self.posts for lane in post.leave()]
        for lane in lanes:
            lane.join(2.0)
        with contextlib.suppress(*BROKEN):
            workers.leave(self.runtime.database.connection(), self.runtime.worker_id)
        self.runtime.database.drop()

    # ── children ────────────────────────────────────────────────────────────────────────────────────────────────────

    def born(self, pid: int) -> None:
        """A pool process was started: one that dies before the next look is missed all the same."""
        self._known_children.add(pid)

    def _watch_children(self) -> None:
        """Looked at again a little later: a claim that a child sent before it died may be committed after it was missed."""
        known = frozenset(self._known_children)  # before who is alive is asked: none of these was born since
        now = time.monotonic()
        alive = self.children()
        for pid in known - alive:
            self._known_children.discard(pid)
            for later in LOOK_AGAIN_S:
                heapq.heappush(self._look_for, (now + later, pid))
        self._known_children |= alive
        while self._look_for and self._look_for[0][0] <= now:
            _, pid = heapq.heappop(self._look_for)
            owner = f"{self.settings.host_name}/{self.runtime.worker_id}/{pid}"
            self.desk.publish("child died", leases.recover_owner(self.runtime.database.connection(), owner))
