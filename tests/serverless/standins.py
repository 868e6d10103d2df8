"""Stand-ins for what the conformance kit and the examples call: a pet store, httpbin, authorities. On loopback, on a free port."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PETS = {
    1: {"id": 1, "name": "Milou", "status": "available", "tags": []},
    2: {"id": 2, "name": "Rantanplan", "status": "available", "tags": []},
}


class StandIn:
    """What was asked stands in `requests`; `answers` holds functions of (method, path) for more than the usual."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answers: dict[tuple[str, str], Callable[[dict[str, Any]], tuple[int, Any] | tuple[int, Any, dict[str, str]]]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer goes out whole: in two parts, the second waits for 40 ms for the client to have seen the first.
            disable_nagle_algorithm = True
            wbufsize = -1

            def handle_any(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(size)
                parts = urlsplit(self.path)
                asked = {
                    "method": self.command,
                    "path": parts.path,
                    "query": parse_qs(parts.query, keep_blank_values=True),
                    "headers": {key.lower(): value for key, value in self.headers.items()},
                    "body": body,
                }
                outer.requests.append(asked)
                status, content, headers = outer.answer(asked)
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", headers.pop("content-type", "application/json"))
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any  # noqa: N815  # http.server's names

            def log_message(self, *_: Any) -> None:
                return None

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up has read enough."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        own = self.answers.get((asked["method"], asked["path"]))
        if own is not None:
            given = own(asked)
            return given[0], given[1], dict(given[2]) if len(given) > 2 else {}
        path: str = asked["path"]
        if path == "/v2/swagger.json":
            return 200, self.swagger(), {}
        if path == "/v2/pet/findByStatus":
            wanted = asked["query"].get("status", [])
            return 200, [pet for pet in PETS.values() if pet["status"] in wanted], {}
        if path.startswith("/v2/pet/getPetByName/"):
            return 404, {"code": 404, "message": "pet not found"}, {}
        if path.startswith("/v2/pet/"):
            number = path.removeprefix("/v2/pet/")
            pet = PETS.get(int(number)) if number.isdigit() else None
            return (200, pet, {}) if pet else (404, {"code": 404, "message": "pet not found"}, {})
        if path.startswith("/basic-auth/"):
            _, _, user, password = path.split("/")
            wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
            if asked["headers"].get("authorization") == wanted:
                return 200, {"authenticated": True, "user": user}, {}
            return 401, {"authenticated": False}, {"www-authenticate": 'Basic realm="fake"'}
        if path.startswith("/status/"):
            return int(path.removeprefix("/status/")), {"status": path}, {}
        if path.startswith("/slow/"):
            time.sleep(float(path.removeprefix("/slow/")))
            return 200, {"slow": True}, {}
        if path == "/echo":
            return 200, {**{k: v for k, v in asked.items() if k != "body"}, "body": asked["body"].decode()}, {}
        return 404, {"message": f"nothing at {path}"}, {}

    def swagger(self) -> dict[str, Any]:
        host = urlsplit(self.address).netloc
        return {
            "swagger": "2.0",
            "host": host,
            "basePath": "/v2",
            "schemes": ["http"],
            "paths": {
                "/pet/findByStatus": {
                    "get": {
                        "operationId": "findPetsByStatus",
                        "parameters": [
                            {
                                "name": "status",
                                "in": "query",
                                "required": True,
                                "type": "array",
                                "items": {"type": "string"},
                                "collectionFormat": "multi",
                            }
                        ],
                    }
                },
                "/pet/{petId}": {
                    "get": {
                        "operationId": "getPetById",
                        "parameters": [{"name": "petId", "in": "path", "required": True, "type": "integer", "format": "int64"}],
                    }
                },
                "/pet": {
                    "post": {
                        "operationId": "addPet",
                        "parameters": [{"in": "body", "name": "body", "required": True, "schema": {"type": "object"}}],
                    }
                },
            },
        }

    def moved(self, text: str) -> str:
        """A document's text with the hosts that are stood in for replaced."""
        for host in ("https://petstore.swagger.io", "https://httpbin.org", "https://swapi.dev"):
            text = text.replace(host, self.address)
        return text


@contextmanager
def standing_in() -> Iterator[StandIn]:
    made = StandIn()
    try:
        yield made
    finally:
        made.stop()
