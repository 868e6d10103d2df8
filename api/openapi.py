"""`/openapi.json`, made from the routes, their rules and what they are described to take; and `/docs`, to read it."""

from __future__ import annotations

import datetime as dt
import functools
from html import escape
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from flask import Blueprint, Flask, Response, current_app, jsonify, request
from pydantic import TypeAdapter, ValidationError
from werkzeug.routing import Rule
from werkzeug.routing.converters import AnyConverter, IntegerConverter

from orchestrator.api.described import DESCRIBED, LINKED, Described, Problem
from orchestrator.errors import Fault, Invalid

blueprint = Blueprint("openapi", __name__)

BODIES = ("POST", "PUT", "PATCH")
PUBLIC = "public"
NO_OBJECT = {"dict_type", "model_type", "model_attributes_type"}
# What any request may be answered: who is asking, how much, whether the servers are there.
_ALWAYS = {
    400: "not as it must be",
    404: "not there",
    405: "not so",
    409: "not now",
    412: "changed meanwhile",
    413: "too large",
    415: "not in this form",
    503: "a server is away",
}
_GUARDED = {401: "nobody known", 403: "not allowed", 429: "too often"}


@blueprint.get("/openapi.json")
def document() -> Response:
    """This API, as OpenAPI 3.1."""
    return jsonify(spec_of(current_app._get_current_object()))  # type: ignore[attr-defined]


@blueprint.get("/docs")
def page() -> Response:
    """This API, to be read in a browser."""
    return Response(_page(spec_of(current_app._get_current_object())), content_type="text/html; charset=utf-8")  # type: ignore[attr-defined]


def check(app: Flask) -> None:
    """Raises for a route that takes a body and says nothing of it."""
    without = sorted({r.endpoint for r in app.url_map.iter_rules() if set(BODIES) & (r.methods or set())} - set(DESCRIBED))
    if without:
        raise RuntimeError(f"routes that take a body and are not described: {', '.join(without)}")


def check_request() -> None:
    """What is described is asked for: a number that is none, a word of no list, a body that is another are faults of the request."""
    described = DESCRIBED.get(request.endpoint or "")
    if described is None:
        return
    faults: list[Fault] = []
    for name, schema in described.query:
        faults += [Fault(name, said) for text in request.args.getlist(name) if (said := _fault_of(text, schema))]
    if (
        described.body not in (None, Any)
        and not described.checks_itself
        and request.get_data(cache=True)
        and (request.is_json or not described.is_text)
    ):
        given = request.get_json(force=True)
        try:
            _adapter(request.endpoint or "").validate_python(given, strict=True)
        except ValidationError as error:
            found = error.errors()[:20]
            if not isinstance(given, dict) and {one["type"] for one in found} <= NO_OBJECT:
                faults.append(Fault("body", "must be a JSON object"))
            else:
                faults += [Fault("/".join(str(part) for part in one["loc"]) or "body", one["msg"]) for one in found]
    if faults:
        raise Invalid(faults, "request")


@functools.cache
def _adapter(endpoint: str) -> TypeAdapter[Any]:
    return TypeAdapter(DESCRIBED[endpoint].body)


def _fault_of(text: str, schema: dict[str, Any]) -> str | None:
    if "enum" in schema:
        return None if text in schema["enum"] else f"is '{text[:80]}'; one of {', '.join(schema['enum'])} is needed"
    if schema["type"] == "boolean":
        return None if text in ("true", "false") else f"is '{text[:80]}'; true or false is needed"
    if schema["type"] == "integer":
        least, most = schema["minimum"], schema.get("maximum", 2**62)
        is_one = text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most
        return None if is_one else f"is '{text[:80]}'; a number from {least} to {most:,} is needed"
    if schema.get("format") == "date-time":
        try:
            dt.datetime.fromisoformat(text)
        except ValueError:
            return f"is '{text[:80]}'; a time like 2026-01-31T12:00:00Z is needed"
    return None


@functools.lru_cache(maxsize=4)
def spec_of(app: Flask) -> dict[str, Any]:
    from orchestrator.api.gate import RULES

    spec = APISpec(
        title="celery-orchestrator", version=version("celery-orchestrator"), openapi_version="3.1.0",
        info={"description": "Durable workflows on Celery, Redis and Postgres."},
        security=[{"key": []}, {"bearer": []}],
    )  # fmt: skip
    spec.components.security_scheme("key", {"type": "apiKey", "in": "header", "name": "X-API-Key"})
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer"})
    spec.components.schema("Problem", Problem.model_json_schema())
    for rule in sorted(app.url_map.iter_rules(), key=lambda rule: rule.rule):
        if rule.endpoint == "static":
            continue
        needed = RULES[rule.endpoint]
        described = DESCRIBED.get(rule.endpoint, Described())
        operations = {
            method.lower(): _operation(app, rule, method, needed, described)
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        }
        spec.path(path=_path(rule), operations=operations)
    return spec.to_dict()


def _operation(app: Flask, rule: Rule, method: str, needed: str, described: Described) -> dict[str, Any]:
    text = (app.view_functions[rule.endpoint].__doc__ or "").strip()
    said, _, more = text.partition("\n")
    media = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses: dict[str, Any] = {str(code): {"description": why, "content": media} for code, why in _ALWAYS.items()}
    if needed != PUBLIC:
        responses |= {str(code): {"description": why, "content": media} for code, why in _GUARDED.items()}
    for code in described.gives:
        given = {described.media: {"schema": {"type": "object"} if described.media == "application/json" else {}}}
        if code >= 400:
            given |= media
        responses[str(code)] = {"description": "done" if code < 400 else "not well", "content": given}
        if code < 300 and rule.endpoint in LINKED:
            responses[str(code)]["links"] = _links(app, rule)
    made: dict[str, Any] = {
        "operationId": f"{rule.endpoint}.{method.lower()}" if len(set(rule.methods or ()) - {"HEAD", "OPTIONS"}) > 1 else rule.endpoint,
        "summary": said or rule.endpoint.rpartition(".")[2].replace("_", " "),
        "description": " ".join((more.strip(), "" if needed == PUBLIC else f"Needs the permission `{needed}`.")).strip(),
        "tags": [rule.endpoint.partition(".")[0]],
        "parameters": [*_of_path(rule), *({"name": name, "in": "query", "schema": schema} for name, schema in described.query)],
        "responses": dict(sorted(responses.items())),
    }
    if needed == PUBLIC:
        made["security"] = []
    if described.body is not None and (method in BODIES or rule.endpoint in ("instances.cancel", "history.forget_many")):
        schema = TypeAdapter(described.body).json_schema(ref_template="#/$defs/{model}")
        content = {"application/json": {"schema": _inlined(schema)}}
        if described.is_text:
            content["application/yaml"] = {"schema": {}}
        made["requestBody"] = {"content": content, "required": not described.is_optional}
    return made


def _links(app: Flask, rule: Rule) -> dict[str, Any]:
    """Where one can go from what was made; what else the way there names, one came by."""
    key, argument, targets = LINKED[rule.endpoint]
    own = set(rule.arguments)
    found = {}
    for other in app.url_map.iter_rules():
        if other.endpoint in targets:
            came_by = {name: f"$request.path.{name}" for name in other.arguments - {argument} if name in own}
            if came_by.keys() | {argument} == other.arguments:
                found[other.endpoint.replace(".", "_")] = {
                    "operationId": other.endpoint, "parameters": {argument: f"$response.body#/{key}", **came_by},
                }  # fmt: skip
    return found


def _inlined(schema: Any, definitions: dict[str, Any] | None = None) -> Any:
    """Pydantic keeps what models are made of beside them; here each stands where it is used."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    known = definitions or schema.get("$defs", {})
    if "$ref" in schema:
        return _inlined(known[schema["$ref"].rpartition("/")[2]], known)
    return {key: _inlined(value, known) for key, value in schema.items() if key != "$defs"}


def _path(rule: Rule) -> str:
    return "".join(f"{{{part}}}" if is_dynamic else part for is_dynamic, part in rule._trace if part != "|")


def _of_path(rule: Rule) -> list[dict[str, Any]]:
    found = []
    for name, converter in rule._converters.items():
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if isinstance(converter, IntegerConverter):
            schema = {"type": "integer", "minimum": 0, "maximum": 2**62}
        elif isinstance(converter, AnyConverter):
            schema = {"type": "string", "enum": sorted(converter.items)}
        found.append({"name": name, "in": "path", "required": True, "schema": schema})
    return found


def _page(spec: dict[str, Any]) -> str:
    rows = []
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            takes = ", ".join(sorted(body.get("properties", {}))) or ("JSON" if body else "")
            query = ", ".join(one["name"] for one in operation["parameters"] if one["in"] == "query")
            rows.append(
                f"<tr><td><b>{method.upper()}</b></td><td><code>{escape(path)}</code></td><td>{escape(operation['summary'])}"
                f"<br><small>{escape(operation['description'])}</small></td><td>{escape(takes)}</td><td>{escape(query)}</td>"
                f"<td>{', '.join(code for code in operation['responses'] if code < '300')}</td></tr>"
            )
    head = "<tr><th></th><th>path</th><th></th><th>body</th><th>query</th><th>gives</th></tr>"
    style = "body{font:15px system-ui;margin:2em;max-width:90em}td,th{padding:.3em .6em;text-align:left;vertical-align:top;border-bottom:1px solid #ddd}"
    title = escape(spec["info"]["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{style}small{{color:#666}}</style>"
        f"<h1>{title} {escape(spec['info']['version'])}</h1><p>{escape(spec['info']['description'])} <a href=openapi.json>openapi.json</a></p>"
        f"<table>{head}{''.join(rows)}</table></html>"
    )
