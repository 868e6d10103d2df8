"""A pooler as PgBouncer is with `pool_mode = transaction`: all who connect share one session of the server, a transaction each."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType

_ENCRYPTION_ASKED = (80877103, 80877104)


class Pooler:
    def __init__(self, port: int, user: str, database: str) -> None:
        self._turn = threading.Lock()
        self._server = socket.create_connection(("127.0.0.1", port))
        about = f"user\0{user}\0database\0{database}\0\0".encode()
        self._server.sendall(struct.pack("!ii", len(about) + 8, 196608) + about)
        self._greeting = self._until_ready()
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
