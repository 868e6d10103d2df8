"""`call: a2a`: a method of an agent, by the Agent2Agent protocol's JSON-RPC binding. Streams come as a list, in order."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import urljoin

import httpx

from orchestrator.net.authentication import authentication
from orchestrator.net.client import TIMEOUT_S, judged, send
from orchestrator.net.problems import Problem
from orchestrator.net.rpc import messages, result
from orchestrator.steps.call_http import endpoint_of, hidden
from orchestrator.steps.registry import StepContext, executor

STREAMING = ("message/stream", "tasks/resubscribe")
NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


@executor
class CallA2A:
    type = "call.a2a"

    def execute(self, context: StepContext) -> Any:
        given = context.parameters if isinstance(context.parameters, dict) else {}
        method = str(given.get("method"))
        with hidden(context):
            address, auth = self._server(given, context)
            body = {
                "jsonrpc": "2.0",
                "id": context.idempotency_key,
                "method": method,
                "params": _parameters(method, given.get("parameters"), context),
            }
            answer = send(
                "POST",
                address,
                headers={"Accept": "application/json, text/event-stream", "Idempotency-Key": context.idempotency_key},
                content=body,
                auth=auth,
                timeout_s=context.deadline_s or TIMEOUT_S,
            )
            try:
                judged(answer, redirect=False)
            except Problem as problem:
                raise Problem("runtime", str(problem), retryable=problem.retryable) from None
            found = [result(message, method) for message in messages(answer)]
            if method in STREAMING:
                return found
            if not found:
                raise Problem("runtime", f"{method}: {address} answered with nothing")
            return found[0]

    def _server(self, given: dict[str, Any], context: StepContext) -> tuple[str, httpx.Auth | None]:
        card = given.get("agentCard")
        if card:
            where, policy = endpoint_of(card.get("endpoint"), context)
            auth = authentication(policy, context.secrets)
            answer = judged(send("GET", where, auth=auth, follow=True), redirect=False)
            described = answer.content
            url = described.get("url") if isinstance(described, dict) else None
            if not isinstance(url, str):
                raise Problem("runtime", f"the agent card at {where} names no url")
            return urljoin(where, url), auth
        address, policy = endpoint_of(given.get("server"), context)
        return address, authentication(policy, context.secrets)


def _parameters(method: str, given: Any, context: StepContext) -> Any:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Problem("configuration", "a2a parameters must be an object")
    if method in ("message/send", "message/stream") and isinstance(given.get("message"), dict):
        # The same for every attempt, so that the agent can tell a repetition.
        message = {"messageId": str(uuid.uuid5(NAMESPACE, context.idempotency_key)), "role": "user", **given["message"]}
        return {**given, "message": message}
    return given
