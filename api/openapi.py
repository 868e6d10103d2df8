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
from orchestrator.definition.parsing import suggestion_for
from orchestrator.errors import Fault, Invalid

blueprint = Blueprint("openapi", __name__)

# By blueprint: what its operations are about.
TAGS: dict[str, tuple[str, str]] = {
    "instances": ("Instances", "Start workflows, look at their instances, and move them through their life cycle."),
    "history": ("History", "Search what ran, and delete its records."),
    "live": ("Live", "Follow instances and events as server-sent events."),
    "definitions": ("Definitions", "Register and list workflow documents."),
    "schedules": ("Schedules", "Start workflows by cron, at intervals, or at a moment."),
    "events": ("Events", "Send events, search them, and replay or discard what failed."),
    "bus": ("Events", "Send events, search them, and replay or discard what failed."),
    "triggers": ("Triggers and webhooks", "Say what events do, and who is called with them."),
    "configs": ("Configurations", "Set what operators decide about a workflow, by environment."),
    "breakers": ("Circuit breakers", "See and reset circuit breakers."),
    "security": ("Security", "API keys, the audit, and security events."),
    "tenants": ("Tenants", "The API of the Serverless Workflow service, below a tenant."),
    "service": ("Scheduled-workflow service", "The API of the service of scheduled workflows."),
    "proxies": ("Proxies", "Configure reverse proxies."),
    "proxy_instances": ("Proxies", "Configure reverse proxies."),
    "alerts": ("Alerts", "Receive alerts from Alertmanager."),
    "health": ("Health and metrics", "Liveness, readiness, health and metrics."),
    "metrics": ("Health and metrics", "Liveness, readiness, health and metrics."),
    "openapi": ("This API", "The API's own description."),
}

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
    """Get this API as OpenAPI 3.1.

    This API, as OpenAPI 3.1.
    """
    return jsonify(spec_of(current_app._get_current_object()))  # type: ignore[attr-defined]


@blueprint.get("/")
def home() -> Response:
    """Get the addresses of this service."""
    found = {"docs": "docs", "openapi": "openapi.json", "health": "health", "status": "workflow/status", "instances": "workflow/instances"}
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        links = "".join(f"<li><a href='{where}'>{escape(name)}</a></li>" for name, where in found.items())
        body = f"<h1>celery-orchestrator {version('celery-orchestrator')}</h1><p>The API runs.</p><ul>{links}</ul>"
        return Response(_html("celery-orchestrator", body), content_type="text/html; charset=utf-8")
    return jsonify(
        {"service": "celery-orchestrator", "version": version("celery-orchestrator"), "links": {k: f"/{v}" for k, v in found.items()}}
    )


@blueprint.get("/docs")
def page() -> Response:
    """Read this API in a browser.

    This API, to be read in a browser.
    """
    return Response(_page(spec_of(current_app._get_current_object())), content_type="text/html; charset=utf-8")  # type: ignore[attr-defined]


def check(app: Flask) -> None:
    """Raises for a route that takes a body and says nothing of it."""
    without = sorted({r.endpoint for r in app.url_map.iter_rules() if set(BODIES) & (r.methods or set())} - set(DESCRIBED))
    if without:
        raise RuntimeError(f"routes that take a body and are not described: {', '.join(without)}")
    untitled = sorted(
        {r.endpoint for r in app.url_map.iter_rules() if r.endpoint != "static" and not app.view_functions[r.endpoint].__doc__}
    )
    if untitled:
        raise RuntimeError(f"routes without a title (the first line of their docstring): {', '.join(untitled)}")


def check_request() -> None:
    """What is described is asked for: a number that is none, a word of no list, a body that is another are faults of the request."""
    faults = [
        Fault(name[:80].replace("\0", "\\0"), "holds the character U+0000, which no text here may")
        for name, texts in request.args.lists()
        if any("\0" in text for text in (name, *texts))
    ]
    if faults:
        raise Invalid(faults, "request")
    described = DESCRIBED.get(request.endpoint or "")
    if described is None:
        return
    known = [name for name, _ in described.query]
    if not described.is_asked_by_others:
        faults += [Fault(f"?{name[:80]}", "is not read here", suggestion_for(name, known)) for name in request.args if name not in known]
    for name, schema in described.query:
        texts = request.args.getlist(name)
        if len(texts) > 1 and "items" not in schema:
            faults.append(Fault(name, f"is given {len(texts)} times; it takes one value"))
        faults += [Fault(name, said) for text in texts if (said := _fault_of(text, schema.get("items", schema)))]
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
        tags=[{"name": name, "description": about} for name, about in dict(TAGS.values()).items()],
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
        "summary": said.rstrip("."),
        "description": " ".join((more.strip(), "" if needed == PUBLIC else f"Needs the permission `{needed}`.")).strip(),
        "tags": [TAGS[rule.endpoint.partition(".")[0]][0]],
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


_STYLE = (
    "body{font:15px/1.5 system-ui;margin:2em auto;max-width:75em;padding:0 1em;color:#222}h2{margin-top:2em;border-bottom:1px solid #ccc}"
    "nav a{display:inline-block;margin-right:1em}details{border:1px solid #ddd;border-radius:4px;margin:.4em 0}"
    "summary{padding:.4em .6em;cursor:pointer}details>div{padding:0 1em .6em 1em}b{display:inline-block;min-width:4.5em}"
    "code{background:#f4f4f4;padding:0 .2em}table{border-collapse:collapse}td,th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top}"
)


def _html(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>{body}</html>"
    )


def _page(spec: dict[str, Any]) -> str:
    """By resource, each operation with its title; what it takes and gives unfolds."""
    about = spec["info"]
    named = {tag["name"]: tag for tag in spec["tags"]}
    groups: dict[str, list[str]] = {name: [] for name in named}
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            groups[operation["tags"][0]].append(_shown(path, method, operation))
    links = "".join(f"<a href='#{escape(name)}'>{escape(name)}</a>" for name, found in groups.items() if found)
    parts = [
        f"<h2 id='{escape(name)}'>{escape(name)}</h2><p>{escape(named[name]['description'])}</p>{''.join(found)}"
        for name, found in groups.items()
        if found
    ]
    head = f"<h1>{escape(about['title'])} {escape(about['version'])}</h1><p>{escape(about['description'])} <a href=openapi.json>openapi.json</a></p>"
    return _html(f"{about['title']}: API", f"{head}<nav>{links}</nav>{''.join(parts)}")


def _shown(path: str, method: str, operation: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    rows = [
        *((one["name"], one["in"], one["schema"].get("type", "")) for one in operation["parameters"]),
        *((name, "body", about.get("type", "")) for name, about in body.get("properties", {}).items()),
    ]
    table = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{where}</td><td>{escape(str(kind))}</td></tr>" for name, where, kind in rows
    )
    answers = ", ".join(f"{code} {escape(about['description'])}" for code, about in operation["responses"].items())
    return (
        f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation['summary'])}</summary><div>"
        f"<p>{escape(operation['description'])}</p><table>{table}</table><p>Answers: {answers}</p></div></details>"
    )
