"""JSON-RPC 2.0 over HTTP, answered whole or as a stream of server-sent events: what A2A and MCP both speak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator import nesting
from orchestrator.definition.parsing import shown
from orchestrator.net.client import Answer
from orchestrator.net.problems import Problem


def messages(answer: Answer) -> Iterator[dict[str, Any]]:
    """The messages of an answer, in order."""
    kind = answer.headers.get("content-type", "").split(";")[0].strip().lower()
    text = answer.body.decode(errors="replace")
    if kind == "text/event-stream":
        for event in text.replace("\r\n", "\n").split("\n\n"):
            data = "\n".join(line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:"))
            if data:
                yield _mapping(_message(data, answer), answer)
    elif text.strip():
        found = _message(text, answer)
        for one in found if isinstance(found, list) else [found]:
            yield _mapping(one, answer)


def _mapping(message: Any, answer: Answer) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Problem("runtime", f"{answer.url} answered with {shown(message)}, which is no JSON-RPC message")
    return message


def _message(text: str, answer: Answer) -> Any:
    try:
        return nesting.parse(text)
    except ValueError:
        raise Problem("runtime", f"{answer.url} answered with something that is no JSON-RPC") from None


def result(message: dict[str, Any], what: str) -> Any:
    """The result, or the error as a problem."""
    if "error" in message:
        error = message["error"] if isinstance(message["error"], dict) else {"message": shown(message["error"])}
        raise Problem("runtime", f"{what}: {error.get('message', 'failed')} (code {error.get('code')})", title="Remote error")
    return message.get("result")
