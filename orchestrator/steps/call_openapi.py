"""`call: openapi`: an operation of an OpenAPI 3 or Swagger 2 document, by its id. Parameters find their place by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urljoin

import httpx
from pydantic import Field

from orchestrator.definition.parsing import escaped
from orchestrator.definition.serverless.resources import parsed
from orchestrator.net.authentication import authentication
from orchestrator.net.client import TIMEOUT_S, judged, send
from orchestrator.net.foreign import Foreign, read
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


class Variable(Foreign):
    default: Any = ""


class Server(Foreign):
    url: str = "/"
    variables: dict[str, Variable] = {}


class Document(Foreign):
    """An OpenAPI 3 or a Swagger 2 document, as far as a call needs it."""

    swagger: Any = ""
    servers: list[Server] | None = None
    host: str | None = None
    base_path: str = Field("", alias="basePath")
    schemes: list[str] | None = None
    paths: dict[str, Any] = {}


class Operation(Foreign):
    operation_id: Any = Field(None, alias="operationId")
    parameters: list[Any] = []
    request_body: Any = Field(None, alias="requestBody")
    servers: list[Server] | None = None


class Parameter(Foreign):
    name: str
    place: str = Field(alias="in")
    is_required: bool = Field(False, alias="required")
    described: Any = Field(None, alias="schema")
    default: Any = None
    style: Any = None
    explode: bool | None = None
    collection_format: Any = Field("csv", alias="collectionFormat")

    def usual(self) -> Any:
        """What it is when nothing is given: said in its schema, or (Swagger 2) beside it."""
        return self.described.get("default") if isinstance(self.described, dict) else self.default


class Body(Foreign):
    is_required: bool = Field(False, alias="required")
    content: dict[str, Any] = {}


class _Request:
    def __init__(self, url: str) -> None:
        self.url = url
        self.headers: dict[str, str] = {}
        self.query: list[tuple[str, str]] = []
        self.content: Any = None


class _Operation:
    def __init__(
        self, raw: dict[str, Any], document: Document, path: str, method: str, operation: Operation, shared: Any, where: str
    ) -> None:
        self.raw = raw
        self.document = document
        self.path = path
        self.method = method
        self.operation = operation
        self.where = where
        self.is_swagger = str(document.swagger).startswith("2")
        named: dict[tuple[str, str], Parameter] = {}
        for parameter in (*(shared if isinstance(shared, list) else ()), *operation.parameters):
            found = read(Parameter, self.followed(parameter), where, place=f"a parameter of '{operation.operation_id}'")
            named[found.place, found.name] = found
        self.parameters = list(named.values())

    @staticmethod
    def find(raw: Any, operation_id: str, where: str) -> _Operation:
        document = read(Document, raw, where)
        known: list[str] = []
        for path, item in document.paths.items():
            for method in METHODS:
                held = item.get(method) if isinstance(item, dict) else None
                if isinstance(held, dict):
                    known.append(str(held.get("operationId")))
                    if held.get("operationId") == operation_id:
                        operation = read(Operation, held, where, place=f"/paths/{escaped(path)}/{method}")
                        return _Operation(raw, document, path, method, operation, item.get("parameters"), where)
        raise Problem("configuration", f"{where} has no operation '{operation_id}'; it has {', '.join(sorted(known)[:20])}")

    def followed(self, value: Any) -> dict[str, Any]:
        """What a `$ref` into the same document stands for."""
        for _ in range(20):
            if not isinstance(value, dict) or "$ref" not in value:
                break
            reference = str(value["$ref"])
            if not reference.startswith("#/"):
                raise Problem("configuration", f"the reference '{reference}' leads out of {self.where}")
            found: Any = self.raw
            for part in reference[2:].split("/"):
                found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
            value = found
        return value if isinstance(value, dict) else {}

    def base(self) -> str:
        if self.is_swagger:
            schemes = self.document.schemes or [httpx.URL(self.where).scheme]
            scheme = "https" if "https" in schemes else schemes[0]
            host = self.document.host or httpx.URL(self.where).netloc.decode()
            return f"{scheme}://{host}{self.document.base_path}"
        server = next(iter(self.operation.servers or self.document.servers or ()), Server())
        url = server.url
        for name, variable in server.variables.items():
            url = url.replace("{" + name + "}", str(variable.default))
        try:
            return urljoin(self.where, url)
        except ValueError as error:
            raise Problem("configuration", f"{self.where}: its server is not at an address: {error}") from None

    def request(self, given: dict[str, Any]) -> _Request:
        path, cookies, form = self.path, [], {}
        request = _Request("")
        for parameter in self.parameters:
            name, place = parameter.name, parameter.place
            if place == "body":
                # The whole body goes by the parameter's name, or is what is left.
                request.content = given.pop(name) if name in given else None
                continue
            value = given.pop(name, parameter.usual())
            if value is None:
                if parameter.is_required or place == "path":
                    raise Problem("validation", f"operation '{self.operation.operation_id}' needs the parameter '{name}'")
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
            if request.content is None and left and any(parameter.place == "body" for parameter in self.parameters):
                request.content = left
            return
        described = self.followed(self.operation.request_body)
        if not described:
            if left:
                request.query += [(key, _joined(value)) for key, value in left.items()]
            return
        body = read(Body, described, self.where, place="requestBody")
        content = left.get("body", left) if set(left) == {"body"} else left
        if not content and body.is_required:
            raise Problem("validation", f"operation '{self.operation.operation_id}' needs a body")
        kinds = body.content
        if "application/json" not in kinds and "application/x-www-form-urlencoded" in kinds and isinstance(content, dict):
            request.content = urlencode(content, doseq=True)
            request.headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif content:
            request.content = content


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_joined(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _in_query(name: str, value: Any, parameter: Parameter, *, is_swagger: bool) -> Iterator[tuple[str, str]]:
    if not isinstance(value, list):
        yield name, _joined(value)
        return
    separated = {"csv": ",", "ssv": " ", "tsv": "\t", "pipes": "|"}
    if is_swagger:
        form = str(parameter.collection_format)
        if form in separated:
            yield name, separated[form].join(_joined(item) for item in value)
            return
    elif parameter.explode is False:
        delimiter = {"spaceDelimited": " ", "pipeDelimited": "|"}.get(str(parameter.style), ",")
        yield name, delimiter.join(_joined(item) for item in value)
        return
    for item in value:
        yield name, _joined(item)
