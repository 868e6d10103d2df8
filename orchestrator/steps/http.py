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
from typing import Annotated, Any, ClassVar, Literal

import httpx
from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, field_validator

from orchestrator.definition.parsing import Many, Model, Name, SomeSeconds
from orchestrator.errors import Retryable, Terminal
from orchestrator.steps.registry import Result, StepContext, executor, given

MAX_BYTES = 1024 * 1024
TIMEOUT_S = 30.0
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@functools.cache
def _client() -> httpx.Client:
    """One per process: connections are kept."""
    return httpx.Client(follow_redirects=False, headers={"User-Agent": "celery-orchestrator"}, trust_env=False)


def _is_address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("Expected an address that begins with http:// or https://.")
    return text


Text = str | StrictBool | StrictInt | StrictFloat
Status = Annotated[int, Field(ge=100, le=599)]


class Parameters(Model):
    required: ClassVar[dict[Any, str]] = {"url": "http step needs a 'url' parameter that begins with http:// or https://"}

    url: Annotated[str, AfterValidator(_is_address)]
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET"
    headers: dict[Name, Text] = Field(default_factory=dict)
    query: dict[str, Text | list[Text] | None] | None = None
    body: Any = None
    expected_status: Status | Annotated[tuple[Status, ...], Many] | None = None
    timeout: SomeSeconds | None = None
    max_bytes: int = Field(MAX_BYTES, ge=0, le=1024 * 1024 * 1024)
    follow_redirects: bool = False

    @field_validator("method", mode="before")
    @classmethod
    def _in_capitals(cls, given: Any) -> Any:
        return given.upper() if isinstance(given, str) else given


@executor
class Http:
    type = "http"
    parameters = Parameters

    def execute(self, context: StepContext) -> Result:
        asked = given(context, Parameters)
        headers = {"Idempotency-Key": context.idempotency_key, **{name: str(value) for name, value in asked.headers.items()}}
        content: dict[str, Any] = (
            {} if asked.body is None else {"content": asked.body} if isinstance(asked.body, str) else {"json": asked.body}
        )
        timeout_s = asked.timeout or context.deadline_s or TIMEOUT_S
        url = asked.url
        try:
            with _client().stream(
                asked.method,
                url,
                headers=headers,
                params=asked.query,
                timeout=timeout_s,
                follow_redirects=asked.follow_redirects,
                **content,
            ) as response:
                return self._judge(response, _read(response, asked.max_bytes), asked.expected_status)
        except httpx.TimeoutException:
            raise Retryable(f"{url} did not answer within {timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise Retryable(f"{url}: {error}") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Terminal(f"{url}: {error}") from None
        except UnicodeError as error:
            raise Terminal(f"{url}: a header holds what is not ASCII: {error}") from None

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
