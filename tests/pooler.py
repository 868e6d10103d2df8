"""A pooler as PgBouncer is with `pool_mode = transaction`: all who connect share one session of the server, a transaction each."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from types import TracebackType

import psycopg

_ENCRYPTION_ASKED = (80877103, 80877104)


class Pooler:
    def __init__(self, url: str) -> None:
        self._turn = threading.Lock()
        self._session = psycopg.connect(url)  # says who it is; then its socket is ours
        self._server = socket.socket(fileno=os.dup(self._session.fileno()))
        self._server.setblocking(True)
        self._greeting = _greeting_of(self._session.pgconn)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Pooler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for one in (self._listening, self._server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._session.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listening.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while struct.unpack("!ii", (head := _exactly(client, 8)))[1] in _ENCRYPTION_ASKED:
                client.sendall(b"N")
            _exactly(client, struct.unpack("!i", head[:4])[0] - 8)
            client.sendall(self._greeting)
            while asked := client.recv(65536):
                if asked[:1] == b"X":
                    return
                with self._turn:
                    self._server.sendall(asked)
                    answer = self._until_ready()
                    while answer[-1:] != b"I":  # a transaction keeps its turn
                        client.sendall(answer)
                        self._server.sendall(client.recv(65536))
                        answer = self._until_ready()
                client.sendall(answer)

    def _until_ready(self) -> bytes:
        found = b""
        while True:
            head = _exactly(self._server, 5)
            body = _exactly(self._server, struct.unpack("!i", head[1:])[0] - 4)
            found += head + body
            if head[:1] == b"Z":
                return found


def _exactly(from_: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = from_.recv(count - len(found))
        if not more:
            raise OSError("closed")
        found += more
    return found


def _greeting_of(session: psycopg.pq.abc.PGconn) -> bytes:
    """What a server says to who has shown a password: it is let in, how the server is set, and that it is ready."""
    found = _message(b"R", struct.pack("!i", 0))
    for name in (b"server_version", b"server_encoding", b"client_encoding", b"DateStyle", b"TimeZone", b"integer_datetimes",
                 b"standard_conforming_strings"):  # fmt: skip
        found += _message(b"S", name + b"\0" + (session.parameter_status(name) or b"") + b"\0")
    return found + _message(b"K", struct.pack("!ii", session.backend_pid, 0)) + _message(b"Z", b"I")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body
