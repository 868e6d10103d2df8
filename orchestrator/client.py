"""A client of the HTTP API.

    from orchestrator.client import Client

    with Client("http://127.0.0.1:5003", key="…") as workflows:
        order = workflows.start("order", {"id": 7})
        print(order.result(timeout_s=60))

Requests that a broken line, a server that restarts or a limit holds up are sent again. A start carries an idempotency key
of its own, so that sending it again starts nothing twice.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "CLEANING_UP")
AGAIN = (429, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
NOBODY_S = 2.0


class ApiError(Exception):
    """What the API answered instead: `status`, a stable `code`, a message, and for what was not as it must be the `faults`."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code") or status)
        self.faults: list[dict[str, str]] = list(problem.get("faults") or ())
        self.problem = dict(problem)
        super().__init__(str(problem.get("message") or f"the API answered {status}"))


class NotFound(ApiError):
    """It is not there, or not yours to see."""


class Conflict(ApiError):
    """Not in this state, or not any more what it was (409, 412)."""


class Denied(ApiError):
    """Nobody known, or somebody who may not (401, 403)."""


class Away(ApiError):
    """Nobody answers there, or no longer; whether what was sent was done is not known where `is_sent`."""

    def __init__(self, url: str, error: httpx.TransportError) -> None:
        self.is_sent = not isinstance(error, httpx.ConnectError)
        said = f"{url} does not answer: {str(error) or type(error).__name__}"
        super().__init__(0, {"code": "server_away", "message": said})


class WorkflowFailed(Exception):
    """The instance ended, and not well: `status` and `error` say how."""

    def __init__(self, shown: Mapping[str, Any]) -> None:
        self.status, self.error = shown["outcome"] or shown["status"], shown["error"] or {}
        super().__init__(f"{shown['workflow']} {shown['id']} ended {self.status}: {self.error.get('message', 'no error was kept')}")


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event: `status`, `fact`, `end` of an instance; `event` of the event stream."""

    kind: str
    data: Any
    id: str | None


_SENT_AS_IT_IS = "".join(map(chr, range(33, 127)))


def _sendable(what: str, text: str) -> str:
    """A header's text. A key that was not filled in (`…`) is told as that."""
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"`{what}` holds a character that no {what} has: is it the one that was given to you?")
    return text


class Client:
    """`key` is an API key or a token; `tenant` is whose things are meant, for keys that are of every tenant."""

    def __init__(
        self, url: str = "http://127.0.0.1:5003", key: str | None = None, *, tenant: str | None = None, timeout_s: float = 30.0,
        patience_s: float = 30.0, transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        headers = {"Accept-Encoding": "gzip"}
        if key:
            headers["Authorization"] = f"Bearer {_sendable('key', key)}"
        if tenant:
            headers["X-Tenant"] = _sendable("tenant", tenant)
        self._http = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s, transport=transport)
        self.patience_s = patience_s
        self._has_answered = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # ── instances ───────────────────────────────────────────────────────────────────────────────────────────────────

    def start(
        self, workflow: str, data: Any = None, *, version: str | None = None, priority: str | None = None,
        labels: Mapping[str, str] | None = None, metadata: Mapping[str, Any] | None = None, dependencies: list[Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Instance:  # fmt: skip
        """Start an instance. With an `idempotency_key` of your own, the same one for the same request, however often you ask."""
        body = {"data": data, "priority": priority, "labels": labels, "metadata": metadata, "dependencies": dependencies}
        answer = self.request(
            "POST", f"/workflow/start/{_part(workflow)}", query={"version": version},
            body={name: value for name, value in body.items() if value is not None or name == "data"},
            headers={"Idempotency-Key": quote(idempotency_key, safe=_SENT_AS_IT_IS) if idempotency_key else uuid.uuid4().hex}, again=True,
        )  # fmt: skip
        return Instance(self, answer["instanceId"])

    def instance(self, id: str) -> Instance:
        return Instance(self, id)

    def instances(
        self, *, state: str | None = None, workflow: str | None = None, labels: Mapping[str, str] | None = None,
        search: str | None = None, page: int = 100,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """The newest first, page after page, as far as you take them."""
        cursor: str | None = None
        pairs = [f"{key}={value}" for key, value in (labels or {}).items()] or None
        while True:
            query = {"state": state, "workflow": workflow, "search": search, "label": pairs, "limit": page, "cursor": cursor}
            answer = self.request("GET", "/workflow/instances", query=query)
            yield from answer["instances"]
            cursor = answer["next"]
            if cursor is None:
                return

    def bulk(self, verb: str, **wanted: Any) -> dict[str, str]:
        """pause, resume, cancel, retry or rollback of all that `state`, `workflow`, `labels` or `search` find; what came of each."""
        return dict(self.request("POST", f"/workflow/instances/{_part(verb)}", body=wanted)["outcome"])

    # ── definitions, schedules, triggers, events, configurations ────────────────────────────────────────────────────

    def register(self, document: str | Mapping[str, Any]) -> dict[str, Any]:
        """A workflow document, as YAML or as a mapping."""
        return self._put("POST", "/workflow/definitions", document)

    def workflows(self, *, namespace: str | None = None, search: str | None = None) -> list[dict[str, Any]]:
        return list(self.request("GET", "/workflow/workflows", query={"nameSpace": namespace, "search": search})["workflows"])

    def schedules(self, workflow: str | None = None) -> list[dict[str, Any]]:
        return list(self.request("GET", "/workflow/schedules", query={"workflow": workflow})["schedules"])

    def add_schedule(self, schedule: str | Mapping[str, Any]) -> dict[str, Any]:
        return self._put("POST", "/workflow/schedules", schedule)

    def schedule(self, id: str) -> dict[str, Any]:
        """With its `etag`, by which a change can be bound to what was seen."""
        return self._tagged(f"/workflow/schedules/{_part(id)}")

    def change_schedule(self, id: str, schedule: str | Mapping[str, Any], *, etag: str | None = None) -> dict[str, Any]:
        return self._put("PUT", f"/workflow/schedules/{_part(id)}", schedule, etag)

    def delete_schedule(self, id: str, *, etag: str | None = None) -> None:
        self.request("DELETE", f"/workflow/schedules/{_part(id)}", headers=_match(etag))

    def run_schedule(self, id: str) -> dict[str, Any]:
        return dict(self.request("POST", f"/workflow/schedules/{_part(id)}/run"))

    def put_trigger(self, trigger: str | Mapping[str, Any]) -> list[str]:
        return list(self._put("POST", "/workflow/triggers", trigger)["triggers"])

    def send(
        self, type: str, data: Any = None, *, source: str = "python-client", id: str | None = None, **attributes: Any
    ) -> dict[str, Any]:
        """An event. With the same `source` and `id` it counts once, however often it is sent."""
        event = {"specversion": "1.0", "id": id or uuid.uuid4().hex, "source": source, "type": type, "data": data, **attributes}
        return dict(self.request("POST", "/workflow/events", body=event, again=True))

    def events(
        self, *, type: str | None = None, source: str | None = None, key: str | None = None, after: str | None = None
    ) -> Iterator[Event]:
        """Events as they come, for as long as you listen; with `after`, the `id` of the last one you had, what you missed."""
        return self._stream("/workflow/events/stream", {"type": type, "source": source, "key": key}, after, may_repeat=False)

    def configuration(self, workflow: str, *, environment: str | None = None) -> dict[str, Any]:
        """With its `etag`."""
        return self._tagged(f"/workflow/configs/{_part(workflow)}", {"environment": environment})

    def configure(
        self, workflow: str, configuration: Mapping[str, Any], *, environment: str | None = None, etag: str | None = None
    ) -> dict[str, Any]:
        path = f"/workflow/configs/{_part(workflow)}"
        return dict(self.request("PUT", path, query={"environment": environment}, body=dict(configuration), headers=_match(etag)))

    def health(self) -> dict[str, Any]:
        """Also where something is not well: look at `status` and `components`."""
        try:
            return dict(self._http.get("/health").json())
        except httpx.TransportError as error:
            raise self._away(error) from error

    # ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def request(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None, headers: Mapping[str, str] | None = None,
        again: bool | None = None,
    ) -> Any:  # fmt: skip
        """Any request of the API (`/docs`). `again`: whether it may be sent twice; what only reads, may."""
        return self._send(method, path, query, body, headers, again).json()

    def _send(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, headers: Mapping[str, str] | None, again: bool | None
    ) -> httpx.Response:
        may_repeat = method in ("GET", "HEAD") if again is None else again
        began = time.monotonic()
        deadline = began + self.patience_s
        pause = FIRST_PAUSE_S
        given: dict[str, Any] = {} if body is None else {"content": body} if isinstance(body, str) else {"json": body}
        if isinstance(body, str):
            headers = {"Content-Type": "application/yaml", **(headers or {})}
        while True:
            try:
                answer = self._http.request(method, path, params=_given(query), headers=headers, **given)
            except httpx.ConnectError as error:
                # Nothing was sent: anything may be sent again. Where nobody has ever answered, no restart is waited for.
                if time.monotonic() > (deadline if self._has_answered else min(deadline, began + NOBODY_S)):
                    raise self._away(error) from error
            except httpx.TransportError as error:
                if not may_repeat or time.monotonic() > deadline:
                    raise self._away(error) from error
            else:
                self._has_answered = True
                if answer.is_success:
                    return answer
                # A limit is told before anything is done.
                waits = answer.status_code in AGAIN and (may_repeat or answer.status_code == 429)
                if not waits or time.monotonic() > deadline:
                    raise _error(answer)
                pause = max(pause, _seconds(answer.headers.get("Retry-After")))
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())) * random.uniform(0.8, 1.2))  # noqa: S311  # nosec B311 # a pause
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _away(self, error: httpx.TransportError) -> Away:
        return Away(str(self._http.base_url).rstrip("/"), error)

    def _put(self, method: str, path: str, document: str | Mapping[str, Any], etag: str | None = None) -> dict[str, Any]:
        body = document if isinstance(document, str) else dict(document)
        return dict(self.request(method, path, body=body, headers=_match(etag)))

    def _tagged(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = self._send("GET", path, query, None, None, None)
        return {**answer.json(), "etag": answer.headers.get("etag")}

    def _stream(self, path: str, query: Mapping[str, Any] | None, after: str | None, *, may_repeat: bool) -> Iterator[Event]:
        """Comes back by itself where it left off; what was had is not given again, where the server may send it again."""
        seen: set[str] = set()
        deadline = time.monotonic() + self.patience_s
        while True:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
            try:
                with self._http.stream("GET", path, params=_given(query), headers=headers, timeout=httpx.Timeout(30, read=60)) as answer:
                    if not answer.is_success and (answer.status_code not in AGAIN or time.monotonic() > deadline):
                        answer.read()
                        raise _error(answer)
                    for event in events_in(answer.iter_lines()) if answer.is_success else ():
                        deadline = time.monotonic() + self.patience_s
                        if event.id is not None and event.id in seen:
                            continue
                        if event.id is not None:
                            after = event.id
                            if may_repeat:
                                seen.add(event.id)
                        yield event
                        if event.kind == "end":
                            return
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise self._away(error) from error
            time.sleep(FIRST_PAUSE_S)  # a server that lets everybody go at once is not asked by all at once


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance, wherever it runs."""

    client: Client
    id: str

    def show(self) -> dict[str, Any]:
        """State, progress, steps, what it waits for."""
        return dict(self.client.request("GET", self._path()))

    def history(self) -> list[dict[str, Any]]:
        return list(self.client.request("GET", self._path("/history"))["history"])

    def wait(self, timeout_s: float = 300.0) -> dict[str, Any]:
        """Until it has ended, however it did; gives it as it then stands. `TimeoutError` when that takes longer."""
        deadline = time.monotonic() + timeout_s
        pause = 0.02
        while True:
            shown = self.show()
            if shown["status"] in ENDED:
                return shown
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.id} has not ended within {timeout_s:g} s: {shown['message']}")
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))  # between two looks
            pause = min(pause * 1.5, 1.0)

    def result(self, timeout_s: float = 300.0) -> Any:
        """Its output, when it has completed; `WorkflowFailed` when it ended otherwise."""
        shown = self.wait(timeout_s)
        if (shown["outcome"] or shown["status"]) != "COMPLETED":
            raise WorkflowFailed(shown)
        return shown["output"]

    def follow(self) -> Iterator[Event]:
        """What happens, as it happens, to the end."""
        return self.client._stream(self._path("/stream"), None, None, may_repeat=True)

    def pause(self) -> None:
        self._act("pause")

    def resume(self) -> None:
        self._act("resume")

    def retry(self) -> None:
        """From the step that failed."""
        self._act("retry")

    def rollback(self) -> None:
        self._act("rollback")

    def cancel(self, reason: str | None = None, *, compensate: bool | None = None) -> None:
        body = {"reason": reason, "compensate": compensate}
        self.client.request("DELETE", self._path(), body={name: value for name, value in body.items() if value is not None} or None)

    def signal(self, name: str, data: Any = None, *, id: str | None = None) -> None:
        """With an `id`, once, however often it is sent."""
        self.client.request("POST", self._path(f"/signal/{_part(name)}"), body={"data": data, "id": id or uuid.uuid4().hex}, again=True)

    def approve(self, step: str | None = None, *, approved: bool = True, data: Any = None) -> str:
        """Answer an approval that waits, without a step the only one; gives its name. `approved=False` says no."""
        body = {"step": step, "approved": approved, "data": data}
        return str(self.client.request("POST", self._path("/approve"), body=body)["approval"])

    def rerun(self, step: str, input: Any = None) -> Instance:
        """A new instance that goes on from a step, with what was done before it."""
        made = self.client.request("POST", self._path("/rerun"), body={"step": step, "input": input})
        return Instance(self.client, made["instanceId"])

    def _act(self, verb: str) -> None:
        self.client.request("POST", self._path(f"/{verb}"))

    def _path(self, more: str = "") -> str:
        return f"/workflow/instance/{_part(self.id)}{more}"


def _part(text: str) -> str:
    return quote(text, safe="@")


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _match(etag: str | None) -> dict[str, str] | None:
    return {"If-Match": etag} if etag else None


def _seconds(text: str | None) -> float:
    return min(float(text), LONGEST_PAUSE_S) if text and text.isdigit() else 0.0


def _error(answer: httpx.Response) -> ApiError:
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    kinds: dict[int, type[ApiError]] = {401: Denied, 403: Denied, 404: NotFound, 409: Conflict, 412: Conflict}
    return kinds.get(answer.status_code, ApiError)(answer.status_code, problem if isinstance(problem, dict) else {})


def events_in(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events, as a browser reads them."""
    kind, id, data = "message", None, ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "id":
            id = value
        elif name == "data":
            data += value
        elif not line and data:
            yield Event(kind, json.loads(data), id)
            kind, id, data = "message", None, ""
