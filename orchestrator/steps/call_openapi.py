"""`call: openapi`: an operation of an OpenAPI 3 or Swagger 2 document, by its id. Parameters find their place by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urljoin

import httpx

from orchestrator.definition.serverless.resources import parsed
from orchestrator.net.authentication import authentication
from orchestrator.net.client import TIMEOUT_S, judged, send
from orchestrator.net.problems import Problem
from orchestrator.net.resources import fetched
from orchestrator.steps.call_http import endpoint_of, hidden, shown
from orchestrator.steps.registry import StepContext, executor

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")


@executor
class CallOpenApi:
    type = "call.openapi"

    def execute(self, context: StepContext) -> Any:
        given = context.parameters if isinstance(context.parameters, dict) else {}
        with hidden(context):
            where, policy = endpoint_of((given.get("document") or {}).get("endpoint"), context)
            document = parsed(fetched(where, authentication(policy, context.secrets)), where)
            if not isinstance(document, dict):
                raise Problem("configuration", f"{where} is no OpenAPI document")
            operation = _Operation.find(document, str(given.get("operationId")), where)
            request = operation.request(dict(given.get("parameters") or {}))
            redirect = given.get("redirect") is True
            answer = send(
                operation.method,
                request.url,
                headers={"Idempotency-Key": context.idempotency_key, **request.headers},
                query=request.query,
                content=request.content,
                auth=authentication(given.get("authentication"), context.secrets),
                follow=redirect,
                timeout_s=context.deadline_s or TIMEOUT_S,
            )
            return shown(judged(answer, redirect=redirect), given.get("output", "content"), context)


class _Request:
    def __init__(self, url: str) -> None:
        self.url = url
        self.headers: dict[str, str] = {}
        self.query: list[tuple[str, str]] = []
        self.content: Any = None


class _Operation:
    def __init__(self, document: dict[str, Any], path: str, method: str, held: dict[str, Any], shared: list[Any], where: str) -> None:
        self.document = document
        self.path = path
        self.method = method
        self.held = held
        self.where = where
        self.is_swagger = str(document.get("swagger", "")).startswith("2")
        named: dict[tuple[str, str], dict[str, Any]] = {}
        for parameter in (*shared, *(held.get("parameters") or ())):
            found = self.followed(parameter)
            named[str(found.get("in")), str(found.get("name"))] = found
        self.parameters = list(named.values())

    @staticmethod
    def find(document: dict[str, Any], operation_id: str, where: str) -> _Operation:
        known: list[str] = []
        for path, item in (document.get("paths") or {}).items():
            for method in METHODS:
                held = item.get(method) if isinstance(item, dict) else None
                if isinstance(held, dict):
                    known.append(str(held.get("operationId")))
                    if held.get("operationId") == operation_id:
                        return _Operation(document, path, method, held, item.get("parameters") or [], where)
        raise Problem("configuration", f"{where} has no operation '{operation_id}'; it has {', '.join(sorted(known)[:20])}")

    def followed(self, value: Any) -> dict[str, Any]:
        """What a `$ref` into the same document stands for."""
        for _ in range(20):
            if not isinstance(value, dict) or "$ref" not in value:
                break
            reference = str(value["$ref"])
            if not reference.startswith("#/"):
                raise Problem("configuration", f"the reference '{reference}' leads out of {self.where}")
            found: Any = self.document
            for part in reference[2:].split("/"):
                found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
            value = found
        return value if isinstance(value, dict) else {}

    def base(self) -> str:
        if self.is_swagger:
            schemes = self.document.get("schemes") or [httpx.URL(self.where).scheme]
            scheme = "https" if "https" in schemes else str(schemes[0])
            host = self.document.get("host") or httpx.URL(self.where).netloc.decode()
            return f"{scheme}://{host}{self.document.get('basePath', '')}"
        servers = self.held.get("servers") or self.document.get("servers") or [{"url": "/"}]
        url = str(servers[0].get("url", "/"))
        for name, variable in (servers[0].get("variables") or {}).items():
            url = url.replace("{" + name + "}", str(variable.get("default", "")))
        return urljoin(self.where, url)

    def request(self, given: dict[str, Any]) -> _Request:
        path, cookies, form = self.path, [], {}
        request = _Request("")
        for parameter in self.parameters:
            name, place = str(parameter.get("name")), parameter.get("in")
            if place == "body":
                # The whole body goes by the parameter's name, or is what is left.
                request.content = given.pop(name) if name in given else None
                continue
            value = given.pop(name, (parameter.get("schema") or parameter).get("default"))
            if value is None:
                if parameter.get("required") or place == "path":
                    raise Problem("validation", f"operation '{self.held.get('operationId')}' needs the parameter '{name}'")
                continue
            if place == "path":
                path = path.replace("{" + name + "}", quote(_joined(value), safe=""))
            elif place == "query":
                request.query += list(_in_query(name, value, parameter, is_swagger=self.is_swagger))
            elif place == "header":
                request.headers[name] = _joined(value)
            elif place == "cookie":
                cookies.append(f"{name}={_joined(value)}")
            elif place == "formData":
                form[name] = value
        if cookies:
            request.headers["Cookie"] = "; ".join(cookies)
        self._body(request, given, form)
        request.url = self.base().rstrip("/") + path
        return request

    def _body(self, request: _Request, left: dict[str, Any], form: dict[str, Any]) -> None:
        if form:
            request.content = urlencode(form, doseq=True)
            request.headers["Content-Type"] = "application/x-www-form-urlencoded"
            return
        if self.is_swagger:
            if request.content is None and left and any(p.get("in") == "body" for p in self.parameters):
                request.content = left
            return
        body = self.followed(self.held.get("requestBody"))
        if not body:
            if left:
                request.query += [(key, _joined(value)) for key, value in left.items()]
            return
        content = left.get("body", left) if set(left) == {"body"} else left
        if not content and body.get("required"):
            raise Problem("validation", f"operation '{self.held.get('operationId')}' needs a body")
        kinds = body.get("content") or {}
        if "application/json" not in kinds and "application/x-www-form-urlencoded" in kinds and isinstance(content, dict):
            request.content = urlencode(content, doseq=True)
            request.headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif content:
            request.content = content


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_joined(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_query(name: str, value: Any, parameter: dict[str, Any], *, is_swagger: bool) -> Iterator[tuple[str, str]]:
    if not isinstance(value, list):
        yield name, _joined(value)
        return
    separated = {"csv": ",", "ssv": " ", "tsv": "\t", "pipes": "|"}
    if is_swagger:
        form = parameter.get("collectionFormat", "csv")
        if form in separated:
            yield name, separated[form].join(_joined(item) for item in value)
            return
    elif parameter.get("explode") is False:
        delimiter = {"spaceDelimited": " ", "pipeDelimited": "|"}.get(str(parameter.get("style")), ",")
        yield name, delimiter.join(_joined(item) for item in value)
        return
    for item in value:
        yield name, _joined(item)
