"""One reader of one consumer group: from entries to what events do, acknowledged when it is done.

*Order per key, without locks*: a group hands its entries to several consumers, so an earlier entry of a key may still be
with another. Before a consumer takes its own entries, it looks what others hold before them, and takes those of the
same keys along, first, in the same transaction. The inbox lets each have its effect once, whoever came first; and whoever
inserts what another is inserting waits for that other's commit.

*One stream is no other's affair*: what is no stream, or cannot be handled, is left alone for a while that doubles, as a finding; the
others are read.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil

from orchestrator.engine import effects, intake
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import text_of
from orchestrator.store import events, findings, streams
from orchestrator.store.connection import BROKEN
from orchestrator.store.events import POISON, Arrival
from orchestrator.stream import small
from orchestrator.stream.envelopes import Poison, envelope_of, tenant_of
from orchestrator.stream.outlets import OWN_SOURCES
from orchestrator.stream.state import StateKeys
from orchestrator.stream.stores import Entry, EventStore, Lost, NoGroup, NoStream, StoreAway, order
from orchestrator.telemetry import metrics

logger = logging.getLogger("orchestrator.bridge")

T = TypeVar("T")

SCAN_EVERY_S = 5.0
TIDY_EVERY_S = 2.0
RECLAIM_EVERY_S = 30.0
INFO_EVERY_S = 1.0
NAME_FOR_S = 10.0
LOOK_AT_OPEN_S = 0.1
LOOK_FOR_LOST_S = 0.25
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
FINDING = "stream"
MOST_AT_ONCE = 50
REMEMBERED = 50_000
HEAVIEST_BYTES = 8 * 1024 * 1024
# Ids of entries are milliseconds in Redis, and small numbers elsewhere.
FIRST_MOMENT = 1_000_000_000.0


@dataclass(slots=True)
class Counts:
    """What one consumer has done, for health and metrics."""

    processed: int = 0
    errors: int = 0
    last_id: str = ""
    last_at: float = 0.0
    pending: int = 0
    waiting: int = 0
    moved_at: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Trouble:
    """A stream that is left alone."""

    failures: int = 0
    again_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Reads:
    """Which streams, as which group; names of tenants' streams are patterns."""

    group: str
    streams: tuple[str, ...] = ()
    pattern: str = ""
    name: str = ""
    """The consumer's name when it is given, else the first of `<prefix>-1`, `-2` … that nobody has."""
    prefix: str = "worker"


class Consumer:
    """One reader of one group. Everything it knows can be lost: the store and Postgres know it, too."""

    def __init__(self, runtime: Runtime, reads: Reads, store: EventStore) -> None:
        self.runtime = runtime
        self.settings = runtime.settings
        self.reads = reads
        self.group = reads.group
        self.name = reads.name
        self.store = store
        self.state = StateKeys(runtime.settings) if reads.streams else None
        self.streams: list[str] = []
        self.counts = Counts()
        self.open: dict[tuple[str, str], int] = {}
        """Entries whose event is held or at work, with the event's number."""
        self._token = f"{self.settings.host_name}/{os.getpid()}/{uuid.uuid4().hex}"
        self._is_sure = False
        """Whether everything this consumer read has been handled: after a turn that broke off it is not."""
        self._keys: OrderedDict[tuple[str, str], str | None] = OrderedDict()
        self._size = self.settings.stream_batch
        self._stopping = threading.Event()
        self._due: dict[str, float] = {}
        self._troubles: dict[str, Trouble] = {}
        self._lost: dict[str, Lost] = {}

    def stop(self) -> None:
        self._stopping.set()

    # ── the loop ────────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        said = ", ".join(self.reads.streams) or self.reads.pattern
        logger.info("bridge reads %s as %s, from %s", said, self.group, self.settings.eventstore_type)
        pause = 0.1
        while not self._stopping.is_set():
            try:
                self.turn()
                pause = 0.1
            except NoGroup as error:
                # The group, or the stream with it, is gone: somebody emptied the store.
                logger.warning("the consumer groups are made again: %s", error)
                self._find_again()
                self._stopping.wait(0.05)
            except NoStream:
                # One of several that are read at once: joined one by one, it is found out.
                self._find_again()
            except (StoreAway, *BROKEN) as error:
                logger.warning("waiting: %s", str(error).split("\n", 1)[0])
                metrics.bridge_waits()
                self._doubt()
                self.runtime.database.drop()
                self._stopping.wait(pause)
                pause = min(pause * 2, 2.0)
            except Exception:
                logger.exception("a turn of the bridge failed; it goes on")
                self._doubt()
                self._stopping.wait(1.0)
        self._finish()

    def _find_again(self) -> None:
        self.streams = []
        self._due.clear()

    def _doubt(self) -> None:
        """A turn broke off: what it read, and what it took along, may or may not have had its effect."""
        self._is_sure = False
        self._keys.clear()

    def _finish(self) -> None:
        """What was begun is brought to its end, as long as patience lasts; what is left another takes over."""
        deadline = time.monotonic() + self.settings.shutdown_timeout_s
        try:
            while self.open and time.monotonic() < deadline:
                self._look_at_open()
                time.sleep(LOOK_AT_OPEN_S)  # between two looks
            if not self.open and not self.reads.name and self.reads.prefix == "worker":
                for stream in self.streams:
                    self.store.dismiss(stream, self.group, self.name)
            # What is left over is taken over as soon as the name is seen to be nobody's.
            role, has_more = self._role(self.name), bool(self.open)
            self.runtime.database.patiently(
                lambda c: streams.lease_name(c, role, self._token, 0.0) if has_more else streams.forget_name(c, role, self._token)
            )
            self._write_info()
        except (StoreAway, NoGroup, *BROKEN) as error:
            logger.warning("ended without a last word: %s", str(error).split("\n", 1)[0])
        self.store.close()
        self.runtime.database.drop()
        left = f"; {len(self.open)} entries are left to others" if self.open else ""
        logger.info("bridge %s has finished what it began%s", self.name, left)

    def turn(self) -> None:
        """What is to be done now and then; then one read, and what it gave."""
        if self._is_due("name", NAME_FOR_S / 3):
            self._have_name()
        if self._is_due("scan", SCAN_EVERY_S):
            self._find_streams()
        if self._is_due("tidy", TIDY_EVERY_S):
            self._take_over()
        if self.settings.reclaim_enabled and self.settings.reclaim_idle_s:
            every = min(RECLAIM_EVERY_S, max(0.2, self.settings.reclaim_idle_s / 2))
            if self._is_due("reclaim", every):
                self._reclaim()
            if self.open and self._is_due("alive", max(0.2, self.settings.reclaim_idle_s / 3)):
                self._keep_alive()
        self.counts.moved_at = time.monotonic()
        if self.streams and not self._is_sure:
            self._handle_own()
        if self._is_due("lost", LOOK_FOR_LOST_S):
            self._look_for_lost()
        if self._may_read():
            found = self.store.read(self.group, self.name, self.streams, self._size, self._block_s()) if self.streams else []
            most = max((len(entries) for _, entries in found), default=0)
            # More at once while reads come back full, fewer again when they do not.
            if most >= self._size:
                self._size = min(self._size * 2, self.settings.stream_batch * MOST_AT_ONCE, max(self.settings.event_batch_size, 1))
            elif most:
                self._size = max(self.settings.stream_batch, self._size // 2)
            weights = [self._each(stream, functools.partial(self.handle, stream, entries)) for stream, entries in found]
            if sum(weight or 0 for weight in weights) > HEAVIEST_BYTES:
                # Memory is bounded by what entries weigh, not by their number.
                self._size = max(1, self._size // 4)
            if not self.streams:
                self._stopping.wait(min(0.2, self.settings.stream_block_s))
        else:
            self._stopping.wait(LOOK_AT_OPEN_S)
        self.counts.moved_at = time.monotonic()
        if self.open and self._is_due("open", LOOK_AT_OPEN_S * (1 + len(self.open) // 200)):
            self._look_at_open()
        if self._is_due("info", INFO_EVERY_S):
            self._write_info()

    def _is_due(self, what: str, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + every_s
        return True

    def _may_read(self) -> bool:
        return len(self.open) < self.settings.open_entries

    def _block_s(self) -> float:
        return min(self.settings.stream_block_s, LOOK_AT_OPEN_S) if self.open else self.settings.stream_block_s

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _role(self, name: str) -> str:
        return f"consumer/{self.group}/{name}"

    def _have_name(self) -> None:
        """A name is leased: others know by that who is gone."""

        def lease(name: str) -> bool:
            role = self._role(name)
            had = self.runtime.database.patiently(lambda c: streams.owner_of(c, role))
            if had is not None and had != self._token and _is_dead(had, self.settings.host_name):
                self.runtime.database.patiently(lambda c: streams.forget_name(c, role, had))
            return self.runtime.database.patiently(lambda c: streams.lease_name(c, role, self._token, NAME_FOR_S))

        if self.name and lease(self.name):
            return
        if self.reads.name:
            # Two of one name could not tell their entries apart, and order would be lost.
            self._due["name"] = 0.0
            raise StoreAway(f"another bridge is named {self.name}; CONSUMER_NAME must differ")
        if self.reads.prefix == "worker":
            self.name = f"worker-{uuid.uuid4().hex[:8]}"
            lease(self.name)
        else:
            self.name = next(name for name in (f"{self.reads.prefix}-{n}" for n in range(1, 10_000)) if lease(name))
        self.open.clear()
        self._is_sure = False
        logger.info("bridge is %s in %s", self.name, self.group)

    def _find_streams(self) -> None:
        if not self.name:
            return
        found = [*self.reads.streams, *(self.store.find(self.reads.pattern) if self.reads.pattern else ())]
        for stream in found:
            trouble = self._troubles.get(stream)
            if stream in self.streams or stream.endswith(":dlq") or (trouble is not None and trouble.again_at > time.monotonic()):
                continue
            self._each(stream, functools.partial(self._join, stream))

    def _join(self, stream: str) -> None:
        if self.store.join(stream, self.group) and (lost := self.store.lost(stream, self.group)) is not None:
            self._lost[stream] = lost  # before there was a group
        self.streams.append(stream)
        # A consumer of this name may have read from it before it was started again.
        self._is_sure = False

    def _each(self, stream: str, act: Callable[[], T]) -> T | None:
        """What is at fault with one stream keeps from no other; None then."""
        try:
            return act()
        except (StoreAway, NoGroup, *BROKEN):
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the others are read
            self._leave_alone(stream, error)
            return None

    @property
    def left_alone(self) -> list[str]:
        return list(self._troubles)

    def _leave_alone(self, stream: str, error: Exception) -> None:
        """For a while, in which what was read of it stays pending."""
        trouble = self._troubles.setdefault(stream, Trouble())
        pause_s = min(FIRST_PAUSE_S * 2**trouble.failures, LONGEST_PAUSE_S)
        trouble.failures += 1
        trouble.again_at = time.monotonic() + pause_s
        self._due["scan"] = min(self._due.get("scan", 0.0), trouble.again_at)
        if stream in self.streams:
            self.streams.remove(stream)
        self._doubt()
        self._count_error()
        metrics.bridge_failing(stream, failing=True)
        said = f"{type(error).__name__}: {text_of(error)[:500]}"
        trace = None if trouble.failures > 1 or isinstance(error, NoStream) else error
        if pause_s < LONGEST_PAUSE_S or trouble.failures % 20 == 0:
            logger.error("stream %s is left alone for %g s, the others are read: %s", stream, pause_s, said, exc_info=trace)
        self.runtime.database.patiently(lambda c: findings.note(c, FINDING, stream, said))

    def _is_well(self, stream: str) -> None:
        if self._troubles.pop(stream, None) is not None:
            logger.info("stream %s is read again", stream)
            metrics.bridge_failing(stream, failing=False)
            self.runtime.database.patiently(lambda c: findings.clear(c, FINDING, stream))

    def _look_for_lost(self) -> None:
        """What somebody else removed before it was read is nobody's any more: that is said, counted, and kept as an event put aside."""
        for stream in list(self.streams):
            lost = self._each(stream, functools.partial(self.store.lost, stream, self.group))
            before = self._lost.get(stream)
            if lost is None or lost == before:
                continue
            number = lost.number - (before.number if before is not None and before.after == lost.after else 0)
            self._lost[stream] = lost
            message = f"{number} entries were removed from {stream} before {self.group} had read them"
            logger.error(message)
            metrics.bridge_lost(stream, number)
            self._count_error()
            envelope = {
                "specversion": "1.0", "id": f"lost-{lost.newest}", "source": f"redis:{stream}", "type": POISON,
                "data": {"lost": number, "until": lost.newest},
            }  # fmt: skip
            tenant = tenant_of(stream.removeprefix(self.settings.redis_prefix))
            intake.take(
                self.runtime, [Arrival(envelope, tenant, None, stream, lost.newest, "dead", 1, {"code": "trimmed", "message": message})]
            )

    def _handle_own(self) -> None:
        """What was read and not handled comes before anything new: else a later event could overtake it."""
        self._is_sure = True
        for stream in list(self.streams):
            self._each(stream, functools.partial(self._handle_own_of, stream))

    def _handle_own_of(self, stream: str) -> None:
        last = "0"
        while found := self.store.own(stream, self.group, self.name, 500, last):
            last = found[-1][0]
            self.handle(stream, [entry for entry in found if (stream, entry[0]) not in self.open])
        self._is_well(stream)

    def _drain(self, stream: str, more: Callable[[], list[Entry]]) -> None:
        seen: set[str] = set()
        while fresh := [entry for entry in more() if entry[0] not in seen]:
            seen |= {entry_id for entry_id, _ in fresh}
            self.handle(stream, fresh)

    # ── what others left ────────────────────────────────────────────────────────────────────────────────────────────

    def _take_over(self) -> None:
        """Consumers whose names nobody holds any more are gone: what they read is taken over at once."""
        prefix = self._role("")
        for role in self.runtime.database.patiently(lambda c: streams.gone_names(c, prefix)):
            gone = role.removeprefix(prefix)
            for stream in self.streams:
                self._drain(stream, lambda s=stream, g=gone: self.store.take_over(s, self.group, self.name, g, 500))  # type: ignore[misc]
                self.store.dismiss(stream, self.group, gone)
            self.runtime.database.patiently(lambda c, role=role: streams.forget_name(c, role))  # type: ignore[misc]
            logger.info("took over what %s had read", gone)

    def _reclaim(self) -> None:
        """What is pending for too long, with whomever."""
        for stream in self.streams:
            entries, gone = self.store.reclaim(stream, self.group, self.name, self.settings.reclaim_idle_s, 100)
            if gone:
                logger.error("%d entries of %s were removed before anybody was done with them: %s", len(gone), stream, gone[:5])
                metrics.bridge_lost(stream, len(gone))
                self.counts.errors += len(gone)
            if entries:
                logger.info("took over %d entries of %s", len(entries), stream)
                self.handle(stream, entries)

    def _keep_alive(self) -> None:
        for stream in {stream for stream, _ in self.open}:
            self.store.keep_alive(stream, self.group, self.name, [entry_id for s, entry_id in self.open if s == stream])

    # ── a batch ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def handle(self, stream: str, entries: Sequence[Entry]) -> int:
        """Take a batch in, in its order; acknowledge what is done with. Gives how many characters it weighed."""
        part: list[Entry] = []
        weight = total = 0
        for entry in entries:
            size = _weight(entry)
            if part and (len(part) >= max(1, self.settings.event_batch_size) or weight + size > HEAVIEST_BYTES):
                self._handle(stream, part)
                part, weight = [], 0
            part.append(entry)
            weight, total = weight + size, total + size
        if part:
            self._handle(stream, part)
        return total

    def _handle(self, stream: str, entries: Sequence[Entry]) -> None:
        began = time.perf_counter()
        own, skipped = self._arrivals(stream, entries)
        helped = self._help(stream, own, entries[-1][0])
        if own:
            together = sorted([*helped, *own], key=lambda arrival: order(str(arrival.entry)))
            intake.take(self.runtime, together)
        done = [*skipped, *(str(a.entry) for a in own if a.state in ("taken", "discarded"))]
        self.store.ack(stream, self.group, done)
        for arrival in own:
            if arrival.state == "dead":
                self._put_aside(stream, str(arrival.entry), arrival.envelope, arrival.attempts, arrival.error)
            elif arrival.state in ("held", "working"):
                self.open[stream, str(arrival.entry)] = arrival.number
                if arrival.error:
                    self._count_error()
        fresh = sum(arrival.is_new for arrival in own)
        self._count(entries, time.perf_counter() - began, fresh, len(own) - fresh, sum(a.state == "dead" for a in own))

    def _arrivals(self, stream: str, entries: Sequence[Entry]) -> tuple[list[Arrival], list[str]]:
        tenant = tenant_of(stream.removeprefix(self.settings.redis_prefix))
        own: list[Arrival] = []
        skipped: list[str] = []
        for entry_id, fields in entries:
            try:
                envelope = envelope_of(stream, entry_id, fields)
            except Poison as reason:
                logger.warning("entry %s of %s is put aside: it %s", entry_id, stream, reason)
                own.append(_poisoned(stream, entry_id, fields, tenant, str(reason)))
                continue
            if envelope["source"] in OWN_SOURCES or self._is_forgotten(entry_id):
                skipped.append(entry_id)
            else:
                own.append(Arrival(envelope, tenant, intake.order_key(envelope, tenant), stream, entry_id))
        return own, skipped

    def _is_forgotten(self, entry_id: str) -> bool:
        """Older than events are kept: whether it had its effect, nobody knows any more. A group that is made again begins
        at the beginning of its stream, and what is known there has no effect twice; this would."""
        written = order(entry_id)[0] / 1000
        return FIRST_MOMENT < written < time.time() - self.settings.event_retention_s

    def _help(self, stream: str, own: Sequence[Arrival], last: str) -> list[Arrival]:
        """Entries before ours, of the same keys, that others hold."""
        keys = {arrival.key for arrival in own if arrival.key is not None}
        if not keys:
            return []
        mine = {arrival.entry for arrival in own}
        ids = [i for i in self.store.held_by_others(stream, self.group, self.name, last) if i not in mine]
        unknown = [i for i in ids if (stream, i) not in self._keys]
        tenant = tenant_of(stream.removeprefix(self.settings.redis_prefix))
        found: list[Arrival] = []
        for start in range(0, len(unknown), 500):
            for entry_id, fields in self.store.fetch(stream, unknown[start : start + 500]):
                try:
                    envelope = envelope_of(stream, entry_id, fields)
                except Poison:
                    self._remember(stream, entry_id, None)
                    continue
                key = intake.order_key(envelope, tenant)
                if key in keys and envelope["source"] not in OWN_SOURCES:
                    found.append(Arrival(envelope, tenant, key, stream, entry_id))
                    key = None  # it will be in the inbox, and need not be looked at again
                self._remember(stream, entry_id, key)
        again = [i for i in ids if self._keys.get((stream, i)) in keys]
        for entry_id, fields in self.store.fetch(stream, again) if again else ():
            envelope = envelope_of(stream, entry_id, fields)
            found.append(Arrival(envelope, tenant, intake.order_key(envelope, tenant), stream, entry_id))
            self._remember(stream, entry_id, None)
        return found

    def _remember(self, stream: str, entry_id: str, key: str | None) -> None:
        self._keys[stream, entry_id] = key
        while len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)

    # ── entries that are not done with ──────────────────────────────────────────────────────────────────────────────

    def _look_at_open(self) -> None:
        numbers = list(dict.fromkeys(self.open.values()))
        effects.settle(self.runtime, numbers)
        effects.work_off(self.runtime, numbers)
        states = self.runtime.database.patiently(lambda c: events.states(c, numbers))
        done: dict[str, list[str]] = {}
        for (stream, entry_id), number in list(self.open.items()):
            state, attempts, error = states.get(number, ("taken", 0, None))
            if state in ("held", "working"):
                continue
            del self.open[stream, entry_id]
            if state == "dead":
                found = self.store.fetch(stream, [entry_id])
                envelope = envelope_of(stream, *found[0]) if found else {"id": entry_id, "type": "trimmed", "data": None}
                self._put_aside(stream, entry_id, envelope, attempts, error)
            else:
                done.setdefault(stream, []).append(entry_id)
        for stream, ids in done.items():
            self.store.ack(stream, self.group, ids)

    def _put_aside(self, stream: str, entry_id: str, envelope: dict[str, Any], attempts: int, error: Any) -> None:
        letter = letter_of(stream, entry_id, envelope, attempts, error)
        if self.store.put_aside(stream, self.group, entry_id, letter, str(envelope["id"])):
            self._count_error()
            metrics.bridge_put_aside()
            logger.warning("entry %s of %s is put aside after %s attempts: %s", entry_id, stream, attempts, letter["reason"])

    # ── counting ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _count(self, entries: Sequence[Entry], took_s: float, fresh: int, known: int, dead: int) -> None:
        self.counts.processed += len(entries)
        self.counts.last_id, self.counts.last_at = entries[-1][0], time.time()
        metrics.bridged(self.group, fresh, known, dead, took_s, len(entries))

    def _count_error(self) -> None:
        self.counts.errors += 1
        metrics.bridge_error(self.group)

    def _write_info(self) -> None:
        waiting = pending = 0
        for stream in list(self.streams):
            backlog = self._each(stream, functools.partial(self.store.backlog, stream, self.group))
            if backlog is None:
                continue
            waiting, pending = waiting + backlog.waiting, pending + backlog.pending
        self.counts.waiting, self.counts.pending = waiting, pending
        metrics.bridge_lag(self.group, waiting, pending, len(self.open))
        if self.state is not None:
            about = {
                "group": self.group,
                "streams": ",".join(self.streams),
                "consumer": self.name,
                "pid": str(os.getpid()),
                "last_event_id": self.counts.last_id,
                "last_event_time": iso(self.counts.last_at) if self.counts.last_at else "",
                "seen_at": iso(time.time()),
                "memory_mb": f"{psutil.Process().memory_info().rss / 2**20:.0f}",
                "descriptors": str(psutil.Process().num_fds()),
            }
            self.state.consumer_info(self.name, about, self.counts.processed, self.counts.errors, running=not self._stopping.is_set())
            self.state.rebuild_when_lost(self.runtime.database)


def _weight(entry: Entry) -> int:
    return sum(len(key) + len(value) for key, value in entry[1].items())


def _is_dead(owner: str, host: str) -> bool:
    """Whether the owner of a name was a process of this host that is no more. One with this process's own number was
    another before it, as in a container that was started again."""
    where, _, rest = owner.partition("/")
    pid = rest.partition("/")[0]
    return where == host and pid.isdigit() and (int(pid) == os.getpid() or not psutil.pid_exists(int(pid)))


def letter_of(stream: str, entry_id: str, envelope: dict[str, Any], attempts: int, error: Any) -> dict[str, str]:
    """What stands in the dead-letter stream, and under `workflow:failures:{id}`."""
    detail = error if isinstance(error, dict) else {}
    return {
        "type": "io.flunq.event.dlq",
        "original_id": entry_id,
        "stream": stream,
        "event_id": str(envelope["id"]),
        "event_type": str(envelope["type"]),
        "hostname": str((envelope.get("data") or {}).get("hostname", "")) if isinstance(envelope.get("data"), dict) else "",
        "reason": small.cut(str(detail.get("message") or detail.get("title") or "failed")),
        "error": json.dumps(small.brief(detail), ensure_ascii=False),
        "attempts": str(attempts),
        "event": json.dumps(envelope, ensure_ascii=False)[:65536],
        "time": iso(time.time()),
    }


def _poisoned(stream: str, entry_id: str, fields: dict[str, str], tenant: str, why: str) -> Arrival:
    cut = {key[:200]: value if len(value) <= 4096 else value[:4096] + "…" for key, value in list(fields.items())[:50]}
    envelope = {"specversion": "1.0", "id": entry_id, "source": f"redis:{stream}", "type": POISON, "data": cut}
    return Arrival(envelope, tenant, None, stream, entry_id, "dead", 1, {"code": "poison", "message": why})


def iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"
