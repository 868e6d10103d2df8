"""Which error is which status: the only place where HTTP statuses of errors are known. RFC 9457 problems."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import redis
from flask import Flask, Response, current_app, has_request_context, jsonify, request
from werkzeug.exceptions import HTTPException

from orchestrator import errors
from orchestrator.security.gate import Forbidden, TooMany, Unauthenticated

logger = logging.getLogger("orchestrator.api")

STATUS: dict[type[BaseException], int] = {
    errors.Invalid: 400,
    errors.NotFound: 404,
    errors.IllegalMove: 409,
    errors.VersionClash: 409,
    errors.Duplicate: 409,
    errors.Taken: 409,
    errors.InUse: 409,
    errors.ChangedMeanwhile: 412,
    errors.Disabled: 409,
    errors.BrokenHistory: 409,
    errors.TooLarge: 413,
    errors.TooDeep: 400,
    errors.NotJson: 400,
    errors.Refused: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    TooMany: 429,
    # What this process lacks another may have, or this one when it is given it.
    errors.MissingCode: 503,
    errors.OrchestratorError: 500,
    psycopg.OperationalError: 503,
}


def register(app: Flask) -> None:
    app.register_error_handler(errors.OrchestratorError, _ours)
    app.register_error_handler(psycopg.OperationalError, _away)
    # A standby, or an administrator's setting: nothing can be written for now.
    app.register_error_handler(psycopg.errors.ReadOnlySqlTransaction, _away)
    # Text that no text column holds, a moment that no calendar has: what was sent is at fault.
    app.register_error_handler(psycopg.DataError, _unfit)
    app.register_error_handler(redis.RedisError, lambda error: problem(503, "redis_away", "Redis does not answer; nothing was changed"))
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _unexpected)


def problem(status: int, code: str, message: str, **more: Any) -> Response:
    body = {
        "type": f"about:blank#{code}",
        "title": code,
        "status": status,
        "code": code,
        "error": code,
        "message": message,
        "detail": message,
        # The scheduled-workflow service's clients look at this alone.
        **({"success": False} if has_request_context() and request.path.startswith("/api/") else {}),
        **more,
    }
    response = jsonify(body)
    response.status_code = status
    response.content_type = "application/problem+json"
    return response


def _ours(error: errors.OrchestratorError) -> Response:
    status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
    more: dict[str, Any] = {}
    if isinstance(error, errors.Invalid):
        more["faults"] = [fault.to_json() for fault in error.faults]
    if isinstance(error, errors.IllegalMove):
        more |= {"state": error.state, "allowed": list(error.allowed)}
    response = problem(status, error.code, str(error), **more)
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooMany):
        response.headers.update({**error.allowance.headers(), "Retry-After": str(error.allowance.resets_in_s)})
    return response


def _unfit(error: psycopg.DataError) -> Response:
    said = str(error).split("\n", 1)[0]
    return problem(400, "invalid", "a text holds the character U+0000, which cannot be kept" if "NUL" in said else said)


def _away(error: psycopg.Error) -> Response:
    is_read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
    said = "the database takes no writes for now" if is_read_only else "the database does not answer"
    response = problem(503, "database_away", f"{said}; nothing is known to have changed")
    response.headers["Retry-After"] = "1"
    return response


def _http(error: HTTPException) -> Response:
    message = error.description or ""
    if error.code == 413:
        message = f"the body is larger than {current_app.config['MAX_CONTENT_LENGTH']} bytes (REQUEST_LIMIT_BYTES)"
    response = problem(error.code or 500, (error.name or "error").lower().replace(" ", "_"), message)
    for name, value in error.get_headers():
        if name.lower() in ("allow", "retry-after", "www-authenticate"):
            response.headers[name] = value
    return response


def _unexpected(error: Exception) -> Response:
    if isinstance(error, RecursionError):
        return problem(400, errors.TooDeep.code, "the request is nested too deeply")
    logger.exception("request failed", exc_info=error)
    return problem(500, "internal", "something went wrong here; the log has it")
