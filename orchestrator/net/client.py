"""One HTTP client for all calls: egress policy, caps on size and time, no redirects but those that are asked for."""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from orchestrator import nesting
from orchestrator.net.egress import PinnedBackend, Policy
from orchestrator.net.problems import Problem

MAX_BYTES = 8 * 1024 * 1024
TIMEOUT_S = 30.0
MOST_REDIRECTS = 10


@functools.cache
def transport(policy: Policy) -> httpx.HTTPTransport:
    made = httpx.HTTPTransport()
    # httpx has no parameter for it: the same pool, over a backend that judges every address.
    made._pool = httpcore.ConnectionPool(
        ssl_context=httpx.create_ssl_context(),
        max_connections=100,
        max_keepalive_connections=20,
        keepalive_expiry=5.0,
        http2=False,
        network_backend=PinnedBackend(policy),
    )
    return made


def client() -> httpx.Client:
    """Cheap: connections belong to the transport, which is kept per policy."""
    return httpx.Client(
        transport=_Kept(transport(Policy.of_process())),
        follow_redirects=False,
        max_redirects=MOST_REDIRECTS,
        headers={"User-Agent": "celery-orchestrator"},
        trust_env=False,
    )


class _Kept(httpx.BaseTransport):
    """The shared transport, which does not close with each client."""

    def __init__(self, inner: httpx.HTTPTransport) -> None:
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self.inner.handle_request(request)


@dataclass(frozen=True, slots=True)
class Answer:
    method: str
    url: str
    request_headers: dict[str, str]
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        """Parsed when it is JSON, text when it is text, else base64; nothing at all is null."""
        if not self.body:
            return None
        kind = self.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "application/json" or kind.endswith("+json"):
            try:
                return nesting.parse(self.body)
            except ValueError:
                return self.body.decode(errors="replace")
        if kind.startswith(("image/", "audio/", "video/", "font/")) or kind in ("application/octet-stream", "application/pdf"):
            return base64.b64encode(self.body).decode()
        try:
            return self.body.decode()
        except UnicodeDecodeError:
            return base64.b64encode(self.body).decode()


def send(
    method: str,
    url: str,
    *,
    headers: dict[str, str] | None = None,
    query: Any = None,
    content: Any = None,
    auth: httpx.Auth | None = None,
    follow: bool = False,
    timeout_s: float = TIMEOUT_S,
    max_bytes: int = MAX_BYTES,
) -> Answer:
    """One request, its answer read whole. Raises a communication problem when there is no answer."""
    body: dict[str, Any] = {}
    if isinstance(content, str | bytes):
        body["content"] = content
    elif content is not None:
        body["json"] = content
    try:
        target = httpx.URL(url)
        if target.scheme not in ("http", "https") or not target.host:
            raise Problem("configuration", f"'{url}' is no http or https address")
        if query:
            target = target.copy_merge_params(query)
        with (
            client() as http,
            http.stream(method.upper(), target, headers=headers, auth=auth, timeout=timeout_s, follow_redirects=follow, **body) as response,
        ):
            read = _read(response, max_bytes)
            # Of the first request: what was asked for, before anything was followed.
            first = response.history[0].request if response.history else response.request
            return Answer(
                method=first.method,
                url=str(first.url),
                request_headers=dict(first.headers),
                status=response.status_code,
                headers={key.lower(): value for key, value in response.headers.items()},
                body=read,
            )
    except httpx.TimeoutException:
        raise Problem("timeout", f"{url} did not answer within {timeout_s:g} s", retryable=True) from None
    except httpx.TooManyRedirects:
        raise Problem("communication", f"{url} redirects more than {MOST_REDIRECTS} times") from None
    except httpx.TransportError as error:
        raise Problem("communication", f"{url}: {error}", title="Connection failed", retryable=True) from error
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise Problem("configuration", f"{url}: {error}") from None


def _read(response: httpx.Response, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    for chunk in response.iter_bytes():
        size += len(chunk)
        if size > limit:
            raise Problem("communication", f"{response.request.url} answered with more than {limit:,} bytes", status=500)
        chunks.append(chunk)
    return b"".join(chunks)


def judged(answer: Answer, *, redirect: bool) -> Answer:
    """The answer, when it is a good one: 2xx; with redirects allowed up to 3xx."""
    if 200 <= answer.status < (400 if redirect else 300):
        return answer
    said = answer.body[:200].decode(errors="replace").strip()
    raise Problem(
        "communication",
        f"{answer.method} {answer.url} answered {answer.status}" + (f": {said}" if said else ""),
        status=answer.status,
        title=httpx.codes.get_reason_phrase(answer.status) or f"Status {answer.status}",
        retryable=answer.status in (408, 425, 429) or answer.status >= 500,
    )
