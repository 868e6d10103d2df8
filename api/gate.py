"""Every request passes here: who asks, whether they may, how often; and what is refused is audited.

`RULES` says for each route what it takes. A route without a rule does not start: `create_app` fails.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import psycopg
from flask import Flask, Response, current_app, g, request

from orchestrator.api.runner import runner
from orchestrator.engine import lifecycle
from orchestrator.errors import NotFound, OrchestratorError
from orchestrator.ids import WORKFLOW
from orchestrator.security.gate import Forbidden, Gate, TooMany, Unauthenticated
from orchestrator.security.principals import EVERY_TENANT, ROLES, Principal, nobody_in_particular
from orchestrator.store import events, instances, security

logger = logging.getLogger("orchestrator.api")

PUBLIC = "public"
# By endpoint: what is needed. `own` is acting on instances; on those of others, `operate`.
RULES: dict[str, str] = {
    "health.health": PUBLIC,
    "health.live": PUBLIC,
    "health.ready": PUBLIC,
    "openapi.home": PUBLIC,
    "openapi.document": PUBLIC,
    "openapi.page": PUBLIC,
    "metrics.metrics": "everything",
    "instances.start": "start",
    "instances.listing": "read",
    "instances.show": "read",
    "instances.history": "read",
    "instances.pause": "own",
    "instances.resume": "own",
    "instances.retry": "own",
    "instances.signal": "own",
    "instances.approve": "own",
    "instances.skip_wait": "own",
    "instances.cancel": "own",
    "instances.rollback": "own",
    "instances.rerun": "own",
    "instances.resources": "read",
    "instances.add_dependency": "own",
    "instances.bulk": "operate",
    "instances.cleanup": "admin",
    "instances.enforce": "admin",
    "instances.dead_letters": "read",
    "instances.acknowledge": "operate",
    "instances.workflows": "read",
    "instances.workflow": "read",
    "instances.status": "everything",
    "instances.metrics": "everything",
    "instances.stats": "everything",
    "alerts.receive": "start",
    "alerts.receive_as": "start",
    "service.workflows": "read",
    "service.trigger": "start",
    "service.trigger_alias": "start",
    "service.status": "read",
    "service.history": "read",
    "service.stats": "everything",
    "service.service_metrics": "everything",
    "history.listing": "read",
    "history.days": "read",
    "history.one": "read",
    "history.forget": "admin",
    "history.forget_many": "admin",
    "live.instance": "read",
    "live.events": "read",
    "definitions.register": "define",
    "definitions.listing": "read",
    "events.send": "start",
    "events.listing": "read",
    "events.one": "read",
    "events.replay_one": "operate",
    "events.replay": "operate",
    "events.discard": "operate",
    "events.discard_one": "operate",
    "bus.publish": "start",
    "bus.recent": "read",
    "triggers.put": "define",
    "triggers.listing": "read",
    "triggers.one": "read",
    "triggers.enable": "define",
    "triggers.delete": "define",
    "triggers.put_webhook": "define",
    "triggers.webhooks": "read",
    "triggers.send_again": "operate",
    "triggers.delete_webhook": "define",
    "schedules.listing": "read",
    "schedules.create": "define",
    "schedules.validate": "read",
    "schedules.reload": "admin",
    "schedules.one": "read",
    "schedules.update": "define",
    "schedules.delete": "define",
    "schedules.switch": "operate",
    "schedules.run": "operate",
    "schedules.backfill": "operate",
    "schedules.history": "read",
    "configs.listing": "read",
    "configs.save": "define",
    "configs.validate": "read",
    "configs.reload": "admin",
    "configs.watch": "admin",
    "configs.migrate": "define",
    "configs.one": "read",
    "configs.update": "define",
    "configs.delete": "define",
    "configs.versions": "read",
    "configs.diff": "read",
    "configs.rollback": "define",
    "breakers.listing": "everything",
    "breakers.one": "everything",
    "breakers.reset": "operate",
    "proxies.create": "define",
    "proxies.listing": "everything",
    "proxies.one": "everything",
    "proxies.change": "define",
    "proxies.delete": "define",
    "proxies.put_route": "define",
    "proxies.delete_route": "define",
    "proxy_instances.all_instances": "everything",
    "proxy_instances.instance": "everything",
    "security.whoami": "read",
    "security.audit": "audit",
    "security.export": "audit",
    "security.verify": "audit",
    "security.security_events": "security",
    "security.resolve": "security",
    "security.keys": "admin",
    "security.add_key": "admin",
    "security.rotate_key": "admin",
    "security.revoke_key": "admin",
}
for _version in ("", "_v1"):
    RULES |= {
        f"tenants.workflows{_version}": "read",
        f"tenants.create{_version}": "define",
        f"tenants.one{_version}": "read",
        f"tenants.change{_version}": "define",
        f"tenants.delete{_version}": "define",
        f"tenants.execute{_version}": "start",
        f"tenants.workflow_events{_version}": "read",
        f"tenants.executions{_version}": "read",
        f"tenants.execution{_version}": "read",
        f"tenants.act{_version}": "own",
        f"tenants.execution_events{_version}": "read",
    }
STARTS = ("instances.start", "service.trigger", "service.trigger_alias", "tenants.execute", "tenants.execute_v1")
# What is of no tenant, or reaches into all of them: for the tenant `default` alone.
WITHOUT_TENANT = (
    "proxies.", "proxy_instances.", "breakers.", "instances.cleanup", "instances.enforce", "configs.reload", "configs.watch",
    "schedules.reload",
)  # fmt: skip


# What looks at a tenant's things and puts them, without moving an instance: the database itself lets nothing else be seen.
# An instance that is moved has been asked for by its owner, and may free what others wait for.
BEHIND_THE_WALL = ("read", "define", "audit", "security", "admin")
OVER_THE_WALL = ("security.verify", "instances.cleanup", "instances.enforce", "configs.reload", "configs.watch", "schedules.reload")


LOOKED_AT = 64 * 1024
ATTEMPTS = {
    "a script in a page": re.compile(rb"<\s*script\b|javascript\s*:|\bon(?:error|load)\s*=", re.I),
    "SQL": re.compile(rb"\bunion\s+(?:all\s+)?select\b|;\s*drop\s+table\b|'\s*or\s+'?\d+'?\s*=\s*'?\d|\bpg_sleep\s*\(", re.I),
}


def register(app: Flask) -> None:
    """Raises for a route without a rule, and for a host that strangers reach without authentication."""
    without = sorted({rule.endpoint for rule in app.url_map.iter_rules()} - {*RULES, "static"})
    if without:
        raise RuntimeError(f"routes without a rule of who may: {', '.join(without)}")
    app.before_request(_enter)
    app.after_request(_leave)
    app.teardown_request(_come_back)


def check_host(host: str, *, is_on: bool) -> None:
    """A port that strangers reach is not opened without asking who they are."""
    if not is_on and not _is_local(host):
        raise OrchestratorError(f"HOST is {host}, which others can reach: set AUTH=on, or listen on 127.0.0.1")


def gate() -> Gate:
    held: Gate | None = current_app.extensions.get("gate")
    if held is None:
        runtime = runner().runtime
        held = current_app.extensions["gate"] = Gate(runtime.settings, runtime.database)
    return held


def who() -> Principal:
    found: Principal = g.principal
    return found


def tenant() -> str:
    """Whose things are meant: one's own tenant's; who is of every tenant says which."""
    mine = who().tenant
    return named_tenant() or "default" if mine == EVERY_TENANT else mine


def named_tenant() -> str | None:
    """The tenant that the request names, in its path or beside it."""
    named = (request.view_args or {}).get("tenant") or request.headers.get("X-Tenant")
    return None if named is None else str(named)


# ── coming in ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _enter() -> None:
    needed = RULES.get(request.endpoint or "", PUBLIC)
    address = request.remote_addr or ""
    g.said_from = False
    current = gate()
    if needed == PUBLIC or request.endpoint is None:
        g.principal = Principal("anonymous")
        return
    if not current.is_on:
        if not _is_local(address):
            raise Forbidden("authentication is off (AUTH), and so this API answers to this machine alone")
        g.principal = nobody_in_particular(request.headers.get("X-Actor", "anonymous"))
    else:
        g.principal = _identified(current, address)
    if request.method not in ("GET", "HEAD", "OPTIONS"):
        g.said_from = True
        runner().database.patiently(lambda c: security.says_from(c, address, request.headers.get("User-Agent", "")))
    if current.is_on:
        _count(current, address)
        _check(needed, address)
        _look_for_attempts(address)
    if request.endpoint in STARTS:
        may_start(_started(), request.args.get("version"))
    if needed in BEHIND_THE_WALL and request.endpoint not in OVER_THE_WALL and not who().sees_all_tenants:
        runner().database.act_for(who().tenant)


def _identified(current: Gate, address: str) -> Principal:
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    credential = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("X-API-Key", "").strip()
    try:
        return current.authenticate(credential, address)
    except Unauthenticated as error:
        g.principal = Principal("anonymous")
        if credential:
            _report("authentication_failure", "medium", address, {"reason": str(error)})
        raise
    except TooMany:
        g.principal = Principal("anonymous")
        _report("suspicious_activity", "high", address, {"reason": "too many failed attempts"})
        raise


def _count(current: Gate, address: str) -> None:
    try:
        g.allowance = current.count_request(who())
        if request.endpoint in STARTS:
            current.count_start(who(), _started())
    except TooMany:
        _report("rate_limit_exceeded", "low", address, {})
        raise


def _check(needed: str, address: str) -> None:
    """Everything that needs no look into the request's body."""
    principal = who()
    try:
        wanted = named_tenant()
        if wanted and principal.tenant not in (EVERY_TENANT, wanted):
            raise Forbidden(f"'{principal.name}' is of tenant '{principal.tenant}', not of '{wanted}'")
        if not principal.may(needed):
            raise Forbidden(f"'{principal.name}' may not: {needed} is needed, which {_who_may(needed)} have")
        if principal.workflows and needed in ("operate", "define", "admin"):
            raise Forbidden(f"'{principal.name}' is for {', '.join(principal.workflows)} alone, and this is of more")
        if (request.endpoint or "").startswith(WITHOUT_TENANT) and not principal.may("everything"):
            raise Forbidden("this is of no tenant, or of all of them: the tenant 'default' alone may")
        given = request.view_args or {}
        if "instance_id" in given:
            _check_instance(principal, str(given["instance_id"]), needed)
        if (request.endpoint or "").startswith("events.") and "number" in given:
            tenant = runner().database.patiently(lambda c: events.tenant_of(c, int(given["number"])))
            if tenant is None or principal.tenant not in (EVERY_TENANT, tenant):
                raise NotFound("event", given["number"])
        if request.endpoint in STARTS and not principal.may_touch(_started().partition("@")[0]):
            raise Forbidden(f"'{principal.name}' may start {', '.join(principal.workflows)} alone")
    except Forbidden as error:
        _report("permission_denied", "medium", address, {"needed": needed, "endpoint": request.endpoint, "reason": str(error)})
        raise


def _started() -> str:
    """The workflow that a start names."""
    return str((request.view_args or {}).get("workflow")).removeprefix(WORKFLOW)


def _look_for_attempts(address: str) -> None:
    """What looks like an attempt at a page or a database is told, and goes its way: it is data here, and harms nothing."""
    body = request.get_data(cache=True)[:LOOKED_AT] if request.method != "GET" else b""
    sent = unquote_to_bytes(request.query_string[:LOOKED_AT] + b"\n" + body)
    for name, pattern in ATTEMPTS.items():
        if pattern.search(sent):
            _report("suspicious_activity", "medium", address, {"reason": f"the request holds what looks like {name}"})
            return


def may_start(workflow: str | None, version: str | None = None) -> None:
    """What the configuration of a workflow asks of whoever starts it, or makes what starts it later; also where nobody else is
    asked. None: which one it is shows only then, and so whatever any of them asks."""
    if workflow is None:
        for config in runner().configs.all(tenant()):
            _ask(config.spec or {}, config.workflow)
        return
    try:
        stored = lifecycle.find_definition(runner().runtime, workflow, version, tenant())
    except OrchestratorError:
        # It may come later; now there is nothing to be started, which whoever starts it will say. What is before a dot may be
        # a namespace, or a part of the name.
        name = workflow.partition("@")[0]
        for one in dict.fromkeys((name, name.rpartition(".")[2])):
            for spec in runner().configs.named(one, tenant()):
                _ask(spec, workflow)
    else:
        _ask(lifecycle.configuration_of(runner().runtime, stored, tenant()), workflow)


def _ask(config: Mapping[str, Any], workflow: str) -> None:
    logger.debug("%s: validatePermissions of %s", workflow, who().name)
    wanted, current, address = config.get("security") or {}, gate(), request.remote_addr or ""
    if not current.is_on and (wanted.get("requireAuth") or wanted.get("allowedRoles") or wanted.get("permissions")):
        g.principal = _identified(current, address)
    principal = who()
    missing = [one for one in wanted.get("permissions") or () if one not in principal.scopes]
    allowed = wanted.get("allowedRoles") or ()
    if missing or (allowed and not set(allowed) & {*principal.groups, *principal.scopes}):
        said = f"the permission {missing[0]}" if missing else f"one of the roles {', '.join(allowed)}"
        _report("authorization_failure", "medium", address, {"workflow": workflow, "needed": said})
        raise Forbidden(f"'{principal.name}' may not start '{workflow}': {said} is needed")


def _check_instance(principal: Principal, instance_id: str, needed: str) -> None:
    """Another tenant's is not there; another's needs `operate`."""
    whole = runner().resolve_id(instance_id)
    found = runner().database.patiently(lambda c: security.owner_of(c, whole))
    if found is None or principal.tenant not in (EVERY_TENANT, found[0]):
        raise NotFound("instance", instance_id)
    if needed == "own":
        if not principal.may("operate") and found[2] != principal.name:
            raise Forbidden(f"'{principal.name}' may act on instances it started; this one is another's")
        if not principal.may_touch(found[1]):
            raise Forbidden(f"'{principal.name}' may act on {', '.join(principal.workflows)} alone")


def _who_may(permission: str) -> str:
    if permission == "everything":
        return "roles of the tenant 'default'"
    return " and ".join(role for role, granted in ROLES.items() if permission in granted)


def _report(type: str, severity: str, address: str, detail: dict[str, Any]) -> None:
    """A security event, and a line of the audit: attempts count, too."""
    principal = who()
    about = {**detail, "method": request.method, "path": request.path[:500]}

    def act(c: Any) -> None:
        with c.transaction():
            security.says_from(c, address, request.headers.get("User-Agent", ""))
            security.report(c, type, severity, principal.name, principal.tenant, address, about)
            instances.audit(c, principal.name, "denied", "api", None, None, {"type": type, "tenant": _tenant_of(principal), **about})

    g.said_from = True
    try:
        runner().database.patiently(act)
    except Exception:
        logger.exception("a security event could not be kept")


def _tenant_of(principal: Principal) -> str:
    return "default" if principal.tenant == EVERY_TENANT else principal.tenant


# ── going out ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _leave(response: Response) -> Response:
    allowance = g.get("allowance")
    if allowance is not None:
        response.headers.update(allowance.headers())
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Cache-Control", "no-store")
    if g.get("said_from"):
        try:
            security.says_from(runner().database.connection(), "", "")
        except psycopg.Error:
            runner().database.drop()
    return response


def _come_back(_: BaseException | None) -> None:
    held = current_app.extensions["runner"]
    if held is not None:
        held.database.act_for(None)


def _is_local(address: str) -> bool:
    if address in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
