"""Many who look on, one thread that looks: what is new in Postgres, as server-sent events.

A stream is a watch (what is looked at) and a sink (where it goes). Where the server lends its connection, a socket is the
sink and no thread waits for it; else a queue, from which the request's own thread takes. Who does not take is dropped.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psycopg

from orchestrator.state import TERMINAL
from orchestrator.store import live
from orchestrator.store.connection import Connection, Database, spelled

logger = logging.getLogger("orchestrator.live")

TICK_S = 0.25
# Facts are looked at again for so long: one whose transaction took its time is not missed, and none is sent twice.
OVERLAP_S = 10.0
BEAT_S = 15.0
LASTS_S = 900.0
MOST = 2_000
KERNEL_BYTES = 64 * 1024
BEHIND_BYTES = 1_000_000
MOST_FACTS = 20_000
MOST_EVENTS = 500


def said(event: str, data: Any, id: str | int | None = None) -> bytes:
    line = "" if id is None else f"id: {id}\n"
    return f"{line}event: {event}\ndata: {spelled(data)}\n\n".encode()


class Sink(abc.ABC):
    """Where a stream goes."""

    def __init__(self) -> None:
        self.until = time.monotonic() + LASTS_S
        self.is_over = False

    @abc.abstractmethod
    def send(self, chunk: bytes) -> None: ...

    def end(self) -> None:
        self.is_over = True


class Queued(Sink):
    """Taken by the thread of its request."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._sent = self._taken = 0

    def send(self, chunk: bytes) -> None:
        self._sent += len(chunk)
        self._chunks.put(chunk)
        if self._sent - self._taken > BEHIND_BYTES:
            self.end()

    def end(self) -> None:
        super().end()
        self._chunks.put(None)

    def __iter__(self) -> Iterator[bytes]:
        try:
            while (chunk := self._chunks.get()) is not None:
                self._taken += len(chunk)
                yield chunk
        finally:
            self.is_over = True


class Lent(Sink):
    """A connection that the server lent: written as it takes, closed at the end."""

    def __init__(self, connection: socket.socket, head: bytes) -> None:
        super().__init__()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        self.socket = connection
        self._waiting = bytearray(head)
        self._is_last = False

    def send(self, chunk: bytes) -> None:
        self._waiting += chunk
        self.push()

    def push(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: self.socket.send(self._waiting)]
        except BlockingIOError:
            if len(self._waiting) > BEHIND_BYTES:
                self._close()
            return
        except OSError:
            self._close()
            return
        if self._is_last:
            self._close()

    def end(self) -> None:
        self._is_last = True
        self.push()

    def heard(self) -> None:
        """Nobody says anything on such a connection but that they are gone."""
        try:
            if not self.socket.recv(4096):
                self._close()
        except BlockingIOError:
            return
        except OSError:
            self._close()

    def _close(self) -> None:
        if not self.is_over:
            self.is_over = True
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)  # the hub, which listens to it, closes it


class InstanceWatch:
    """One instance: how it is, every fact of its history, and its end."""

    def __init__(self, instance_id: str, after: str | None) -> None:
        self.instance_id, self.after = instance_id, after
        self.seen: set[str] | None = None
        """The names of facts that were sent; None before anything was."""
        self.status: dict[str, Any] | None = None

    def news(self, known: list[dict[str, Any]], status: dict[str, Any] | None) -> Iterator[bytes]:
        """`known` is the whole history at first and at last, and what was added lately in between."""
        if self.seen is None:
            self.seen = self._had(known)
        for fact in known:
            if fact["name"] not in self.seen:
                self.seen.add(fact["name"])
                shown = {key: fact[key] for key in ("branch", "seq", "position", "kind", "attempt", "data", "at")}
                yield said("fact", shown, fact["name"])
        if status is not None and status != self.status:
            self.status = status
            yield said("status", status)

    def _had(self, known: list[dict[str, Any]]) -> set[str]:
        """What who comes back need not be sent. What was on its way while the last one was sent may lie before it: so far back, again."""
        last = next((fact for fact in known if fact["name"] == self.after), None)
        if last is None:
            return set()
        return {fact["name"] for fact in known if (last["moment"] - fact["moment"]).total_seconds() > OVERLAP_S} | {last["name"]}


class EventsWatch:
    """Events as they are kept, in the order of their numbers."""

    def __init__(self, tenant: str | None, matches: Callable[[dict[str, Any]], bool], after: int | None) -> None:
        self.tenant, self.matches, self.after = tenant, matches, after

    def news(self, found: list[tuple[dict[str, Any], bytes]]) -> Iterator[bytes]:
        for event, chunk in found:
            self.after = event["number"]
            # Signals are between whoever sends one and its instance.
            if event["instance_id"] is None and self.tenant in (None, event["tenant"]) and self.matches(event):
                yield chunk


Watch = InstanceWatch | EventsWatch


class Hub:
    def __init__(self, database: Database) -> None:
        self.database = database.another(patience_s=1.0)
        self.pid = os.getpid()
        self._streams: dict[Sink, Watch] = {}
        self._new: queue.SimpleQueue[tuple[Sink, Watch]] = queue.SimpleQueue()
        self._sockets = selectors.DefaultSelector()
        self._beaten = time.monotonic()
        self._tide = live.Tide()
        _allow_descriptors()
        threading.Thread(target=self._run, name="live", daemon=True).start()

    def add(self, sink: Sink, watch: Watch) -> None:
        self._new.put((sink, watch))

    def __len__(self) -> int:
        return len(self._streams) + self._new.qsize()

    # ── the one thread ──────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            self._attempt(self._turn)
            self._attempt(lambda: self._listen(max(0.01, TICK_S - (time.monotonic() - began))))  # noqa: B023  # it is called here

    def _attempt(self, act: Callable[[], None]) -> None:
        """Nothing ends this thread, which all streams have in common."""
        try:
            act()
        except psycopg.Error as error:
            self.database.drop()
            logger.warning("the database is away, who looks on waits: %s", str(error).split("\n", 1)[0])
            time.sleep(1)  # and is asked again
        except Exception:
            logger.exception("a turn failed")
            time.sleep(1)  # what fails at once fails again at once

    def _with(self, sink: Sink, act: Callable[[], None]) -> None:
        """One stream's fault is its own: it is ended, and the others go on."""
        try:
            act()
        except Exception:
            logger.exception("a stream failed, and is ended")
            with contextlib.suppress(Exception):
                sink.end()  # whoever takes from it waits no longer
            sink.is_over = True

    def _turn(self) -> None:
        self._welcome()
        if self._streams:
            c = self.database.connection()
            self._instances(c)
            self._events(c)
            self._beat()
        for sink in [sink for sink in self._streams if sink.is_over]:
            self._forget(sink)

    def _welcome(self) -> None:
        while not self._new.empty():
            sink, watch = self._new.get()
            self._streams[sink] = watch
            self._with(sink, functools.partial(self._greet, sink))

    def _greet(self, sink: Sink) -> None:
        if isinstance(sink, Lent):
            self._sockets.register(sink.socket, selectors.EVENT_READ, sink)
        sink.send(b"retry: 1000\n\n")

    def _instances(self, c: Connection) -> None:
        watched = {sink: watch for sink, watch in self._streams.items() if isinstance(watch, InstanceWatch) and not sink.is_over}
        ids = sorted({watch.instance_id for watch in watched.values()})
        if not ids:
            return
        # First how they are, then what they did: an instance that has ended does nothing afterwards.
        standing = live.standing(c, ids)
        ended = {id for id in ids if id not in standing or standing[id]["status"] in TERMINAL}
        lately: dict[str, list[dict[str, Any]]] = {}
        for fact in live.facts(c, [id for id in ids if id not in ended], OVERLAP_S, MOST_FACTS):
            lately.setdefault(fact["instance_id"], []).append(fact)
        whole: dict[str, list[dict[str, Any]]] = {}
        for sink, watch in watched.items():
            id = watch.instance_id
            if (id in ended or watch.seen is None) and id not in whole:
                whole[id] = live.facts(c, [id], None, MOST_FACTS)
            news = functools.partial(watch.news, whole.get(id) or lately.get(id, []), standing.get(id))
            self._with(sink, functools.partial(_tell, sink, news))
            if id in ended:
                self._with(sink, functools.partial(_say_end, sink, watch))

    def _events(self, c: Connection) -> None:
        watching = {sink: watch for sink, watch in self._streams.items() if isinstance(watch, EventsWatch) and not sink.is_over}
        if not watching:
            return
        complete = self._tide.rise(c)
        if complete is None:
            return
        for watch in watching.values():
            if watch.after is None:
                watch.after = complete
        # Those who look on from the same place share what is read and written; who comes back after long catches up alone.
        for after in sorted({watch.after or 0 for watch in watching.values()}):
            events = live.events(c, after, complete, MOST_EVENTS) if after < complete else []
            found = [(one, said("event", {key: one[key] for key in one if key != "instance_id"}, one["number"])) for one in events]
            for sink, watch in watching.items():
                if found and watch.after == after:
                    self._with(sink, functools.partial(_tell, sink, functools.partial(watch.news, found)))

    def _beat(self) -> None:
        """A word now and then keeps proxies from closing the line, and finds those that are gone; nobody stays for ever."""
        now = time.monotonic()
        is_time = now - self._beaten > BEAT_S
        if is_time:
            self._beaten = now
        for sink in self._streams:
            if now > sink.until:
                self._with(sink, sink.end)
            elif is_time and not sink.is_over:
                self._with(sink, functools.partial(sink.send, b": \n\n"))

    def _listen(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            if not self._sockets.get_map():
                time.sleep(left)  # until the next turn
                return
            for key, _ in self._sockets.select(left):
                self._with(key.data, key.data.heard)
                if key.data.is_over:
                    self._forget(key.data)
        for key in self._sockets.get_map().values():
            self._with(key.data, key.data.push)

    def _forget(self, sink: Sink) -> None:
        del self._streams[sink]
        if isinstance(sink, Lent):
            with contextlib.suppress(KeyError, ValueError):  # it could not be registered
                self._sockets.unregister(sink.socket)
            sink.socket.close()


def _tell(sink: Sink, news: Callable[[], Iterable[bytes]]) -> None:
    for chunk in news():
        sink.send(chunk)


def _say_end(sink: Sink, watch: InstanceWatch) -> None:
    sink.send(said("end", {"status": watch.status["status"] if watch.status else None}))
    sink.end()


def _allow_descriptors() -> None:
    """A stream is a descriptor; where more are allowed, more are asked for."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + 1024 if hard == resource.RLIM_INFINITY else min(hard, MOST + 1024)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
