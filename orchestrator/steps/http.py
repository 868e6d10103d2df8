"""`http`: one request. Parameters: url, method, headers, query, body, expected_status, timeout, max_bytes, follow_redirects.

Connection failures, 408, 425, 429 and 5xx are tried again, not before Retry-After says; other unexpected answers are
final. Gives {status, headers, body}, the body parsed when it is JSON. The step's idempotency key goes along as
`Idempotency-Key`, unless a header of that name is given.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import functools
import json
from typing import Any

import httpx

from orchestrator.definition.durations import BadDuration, seconds
from orchestrator.errors import Retryable, Terminal
from orchestrator.steps.registry import Result, StepContext, executor

MAX_BYTES = 1024 * 1024
TIMEOUT_S = 30.0
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@functools.cache
def _client() -> httpx.Client:
    """One per process: connections are kept."""
    return httpx.Client(follow_redirects=False, headers={"User-Agent": "celery-orchestrator"}, trust_env=False)


@executor
class Http:
    type = "http"

    def execute(self, context: StepContext) -> Result:
        url = context.parameter("url")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise Terminal("http step needs a 'url' parameter that begins with http:// or https://")
        headers = {"Idempotency-Key": context.idempotency_key, **{str(k): str(v) for k, v in (context.parameter("headers") or {}).items()}}
        body = context.parameter("body")
        content: dict[str, Any] = {} if body is None else {"content": body} if isinstance(body, str) else {"json": body}
        limit = int(context.parameter("max_bytes", MAX_BYTES))
        try:
            timeout_s = seconds(context.parameter("timeout", context.deadline_s or TIMEOUT_S))
        except BadDuration as error:
            raise Terminal(f"http step: {error}") from None
        try:
            with _client().stream(
                str(context.parameter("method", "GET")).upper(),
                url,
                headers=headers,
                params=context.parameter("query"),
                timeout=timeout_s,
                follow_redirects=bool(context.parameter("follow_redirects", False)),
                **content,
            ) as response:
                return self._judge(response, _read(response, limit), context.parameter("expected_status"))
        except httpx.TimeoutException:
            raise Retryable(f"{url} did not answer within {timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise Retryable(f"{url}: {error}") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Terminal(f"{url}: {error}") from None

    def _judge(self, response: httpx.Response, body: bytes, expected: Any) -> Result:
        status = response.status_code
        wanted = [expected] if isinstance(expected, int) else expected
        if status in wanted if wanted else 200 <= status < 300:
            return Result({"status": status, "headers": dict(response.headers), "body": _parsed(response, body)})
        said = body[:200].decode(errors="replace").strip()
        message = f"{response.request.method} {response.request.url} answered {status}" + (f": {said}" if said else "")
        if status in AGAIN:
            raise Retryable(message, after=_retry_after(response.headers.get("Retry-After")))
        raise Terminal(message)


def _read(response: httpx.Response, limit: int) -> bytes:
    """The body, unless it is larger than allowed: then it is not read to its end."""
    chunks, size = [], 0
    for chunk in response.iter_bytes():
        size += len(chunk)
        if size > limit:
            raise Terminal(f"{response.request.url} answered with more than {limit:,} bytes; raise max_bytes, or fetch less")
        chunks.append(chunk)
    return b"".join(chunks)


def _parsed(response: httpx.Response, body: bytes) -> Any:
    kind = response.headers.get("content-type", "").split(";")[0].strip()
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return json.loads(body)
        except ValueError:
            return body.decode(errors="replace")
    return body.decode(errors="replace") or None


def _retry_after(value: str | None) -> float | None:
    """Seconds, or a date; nonsense is no demand. An hour at most."""
    if not value:
        return None
    try:
        wait = float(value)
    except ValueError:
        try:
            wait = (email.utils.parsedate_to_datetime(value) - dt.datetime.now(dt.UTC)).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(max(wait, 0.0), 3600.0)
