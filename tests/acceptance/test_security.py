"""Who may do what: every route, every role, every tenant; keys, tokens, limits; and an audit that shows when it was changed."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from flask import Flask
from flask.testing import FlaskClient

from orchestrator.api import create_app, gate
from orchestrator.engine.runner import WorkflowRunner
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import OrchestratorError
from orchestrator.security.principals import ROLES
from orchestrator.store import security
from tests.guarded import guarded, key
from tests.stack import Stack

OTHER = {"REMOTE_ADDR": "203.0.113.9"}


@pytest.fixture
def client(stack: Stack) -> FlaskClient:
    return guarded(stack).test_client()


# ── every route, every role, every tenant ───────────────────────────────────────────────────────────────────────────

VALUES = {
    "breaker": "b",
    "config": "numbered",
    "namespace": "default",
    "workflow": "numbered",
    "name": "x",
    "number": 1,
    "schedule": "x",
    "hostname": "x.example.com",
    "route_id": "r",
    "key_id": "k",
    "verb": "pause",
    "severity": "critical",
    "tenant": "default",
}


def routes(app: Flask) -> list[tuple[str, str, str, str]]:
    """Endpoint, method, path with an instance's place left open, and the rule."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.endpoint == "static":
            continue
        values: dict[str, Any] = {name: "{instance}" if name == "instance_id" else VALUES[name] for name in rule.arguments}
        if rule.endpoint == "triggers.enable":
            values["verb"] = "enable"
        _, path = rule.build(values) or ("", "")
        path = path.replace("%7B", "{").replace("%7D", "}")
        found += [
            (rule.endpoint, method, path, gate.RULES[rule.endpoint]) for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        ]
    return found


def test_a_route_without_a_rule_does_not_start(stack: Stack) -> None:
    app = Flask("x")
    app.add_url_rule("/new", "new", lambda: "")
    with pytest.raises(RuntimeError, match="new"):
        gate.register(app)
    assert {endpoint for endpoint, *_ in routes(create_app(stack.runner))} == set(gate.RULES)


def test_every_role_at_every_route(stack: Stack) -> None:
    """401 for nobody, 403 for who may not, and neither for who may. Generated from the routes."""
    app = guarded(stack, rate_limit="")
    client = app.test_client()
    mine = {role: key(stack, role) for role in ROLES}
    theirs = {role: key(stack, role, tenant="acme", name=f"acme-{role}") for role in ROLES}
    seen = 0
    for endpoint, method, path, needed in routes(app):
        if endpoint == "security.revoke_key":
            continue  # would end what is asked with
        instance = stack.runner.start_workflow("numbered", input={"n": 1}, actor="somebody")
        url = path.replace("{instance}", instance)
        assert_is = f"{method} {url} ({endpoint}, {needed})"
        nobody = client.open(url, method=method, json={})
        if needed == gate.PUBLIC:
            assert nobody.status_code in (200, 503), assert_is
            continue
        assert nobody.status_code == 401, assert_is
        for tenant, held in (("default", mine), ("acme", theirs)):
            for role, headers in held.items():
                may = needed in ROLES[role] or (needed == "everything" and tenant == "default" and "read" in ROLES[role])
                if needed == "own" and "operate" not in ROLES[role]:
                    may = False  # it is another's
                status = client.open(url, method=method, json={}, headers=headers).status_code
                seen += 1
                if tenant == "acme" and endpoint.startswith("tenants."):
                    assert status == 403, f"{assert_is}: {role} of {tenant} got {status}"
                elif tenant == "acme" and "{instance}" in path and needed in ROLES[role]:
                    assert status == 404, f"{assert_is}: {role} of {tenant} got {status}"
                elif tenant == "acme" and endpoint.startswith(gate.WITHOUT_TENANT):
                    assert status == 403, f"{assert_is}: {role} of {tenant} got {status}"
                elif may:
                    assert status not in (401, 403, 500), f"{assert_is}: {role} of {tenant} got {status}"
                else:
                    assert status == 403, f"{assert_is}: {role} of {tenant} got {status}"
    assert seen > 500
    assert stack.sql("select count(*) from instances where state = 'CANCELLED' and workflow = 'numbered'")[0][0] >= 1


def test_tenants_do_not_see_one_another(stack: Stack, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = key(stack, "developer", tenant="a", name="ann"), key(stack, "developer", tenant="b", name="bob")
    started = client.post("/workflow/start/numbered", json={"n": 1}, headers=a).get_json()["instanceId"]
    number = client.post("/workflow/events", json={"id": "e", "source": "/a", "type": "t", "data": 1}, headers=a).get_json()["number"]
    client.post("/workflow/schedules", json={"id": "s", "workflow": "numbered", "cron": "0 0 * * *"}, headers=a)
    client.post("/workflow/triggers", json={"name": "tr", "on": "x", "start": "numbered"}, headers=a)
    monkeypatch.setenv("SECRET_S", "secret")
    client.post("/workflow/webhooks", json={"name": "w", "url": "http://x", "secret": "s"}, headers=a)
    for headers, there in ((a, 200), (b, 404)):
        assert client.get(f"/workflow/instance/{started}", headers=headers).status_code == there
        assert client.get(f"/workflow/instance/{started[-10:]}", headers=headers).status_code == there
        assert client.get(f"/workflow/events/{number}", headers=headers).status_code == there
        assert client.get("/workflow/schedules/s", headers=headers).status_code == there
        assert client.get("/workflow/triggers/tr", headers=headers).status_code == there
        counts = [
            len(client.get("/workflow/instances", headers=headers).get_json()["instances"]),
            len(client.get("/workflow/events", headers=headers).get_json()["events"]),
            len(client.get("/api/events", headers=headers).get_json()["events"]),
            len(client.get("/workflow/schedules", headers=headers).get_json()["schedules"]),
            len(client.get("/workflow/webhooks", headers=headers).get_json()["webhooks"]),
        ]
        assert all(counts) if there == 200 else not any(counts), counts
    assert client.get("/workflow/instances", headers={**b, "X-Tenant": "a"}).status_code == 403
    assert client.post("/workflow/events/replay", json={"type": "*"}, headers=key(stack, "operator", tenant="b")).get_json() == {
        "replayed": []
    }
    boss = key(stack, "admin")
    assert len(client.get("/workflow/instances", headers=boss).get_json()["instances"]) == 1
    assert client.get("/workflow/instances", headers={**boss, "X-Tenant": "b"}).get_json()["instances"] == []


def test_users_act_on_what_they_started_and_keys_on_their_workflows(stack: Stack, client: FlaskClient) -> None:
    ann, bob = key(stack, "user", name="ann"), key(stack, "user", name="bob")
    started = client.post("/workflow/start/waits-long", json={}, headers=ann).get_json()["instanceId"]
    assert client.delete(f"/workflow/instance/{started}", headers=bob).status_code == 403
    assert client.delete(f"/workflow/instance/{started}", json={"reason": "mine"}, headers=ann).status_code == 200
    narrow = key(stack, "operator", name="narrow", workflows=["wait*"])
    assert client.post("/workflow/start/waits-long", json={}, headers=narrow).status_code == 201
    assert client.post("/workflow/start/numbered", json={"n": 1}, headers=narrow).status_code == 403
    other = stack.runner.start_workflow("numbered", input={"n": 1})
    assert client.post(f"/workflow/instance/{other}/pause", headers=narrow).status_code == 403
    assert client.post("/workflow/instances/cancel", json={"workflow": "numbered"}, headers=narrow).status_code == 403
    rows = stack.sql("select actor, action, detail ->> 'reason', address from audit where action in ('cancel', 'denied') order by id")
    assert [(row[0], row[1]) for row in rows] == [("bob", "denied"), ("ann", "cancel"), *[("narrow", "denied")] * 3]
    assert {row[3] for row in rows} == {"127.0.0.1"}


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_end_rotate_and_are_revoked_and_are_nowhere_in_the_clear(
    stack: Stack, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.security.gate.KEYS_FOR_S", 0.0)
    boss = key(stack, "admin")
    made = client.post("/workflow/keys", json={"name": "ci", "roles": ["operator"], "lasts": "90d"}, headers=boss).get_json()
    mine = {"X-API-Key": made["key"]}
    assert client.get("/workflow/whoami", headers=mine).get_json()["name"] == "ci"
    assert client.post("/workflow/keys", json={"name": "x", "roles": ["king"]}, headers=boss).status_code == 400
    after = client.post(f"/workflow/keys/{made['id']}/rotate", json={"overlap": "1h"}, headers=boss).get_json()
    assert client.get("/workflow/whoami", headers=mine).status_code == 200
    assert client.get("/workflow/whoami", headers={"X-API-Key": after["key"]}).get_json()["roles"] == ["operator"]
    stack.sql("update api_keys set expires_at = now() - interval '1 s' where id = %s returning 1", made["id"])
    assert client.get("/workflow/whoami", headers=mine).status_code == 401
    assert client.delete(f"/workflow/keys/{after['id']}", headers=boss).status_code == 200
    assert client.get("/workflow/whoami", headers={"X-API-Key": after["key"]}).status_code == 401
    listed = client.get("/workflow/keys", headers=boss).get_json()["keys"]
    assert next(one for one in listed if one["id"] == after["id"])["revoked_at"]
    secret = made["key"][-20:]
    assert secret not in json.dumps(listed)
    for table in ("api_keys", "audit", "security_events", "outbox"):
        assert secret not in str(stack.sql(f"select t::text from {table} t"))


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A key pair, and the address at which its public half is published."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key())) | {"kid": "k1", "use": "sig", "alg": "RS256"}

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"keys": [public]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public]}))
    yield private, f"http://127.0.0.1:{server.server_port}/jwks"
    server.shutdown()
    server.server_close()
    thread.join()


def token(private: Any, algorithm: str = "RS256", kid: str = "k1", **claims: Any) -> dict[str, str]:
    said = {"sub": "ann", "aud": "orchestrator", "iss": "https://id", "exp": dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5), **claims}
    text = jwt.encode({k: v for k, v in said.items() if v is not None}, private, algorithm, headers={"kid": kid})
    return {"Authorization": f"Bearer {text}"}


@pytest.mark.parametrize("where", ["address", "file"])
def test_tokens_of_a_provider_are_taken_and_forged_ones_are_not(
    stack: Stack, provider: tuple[Any, str], tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.security.gate.GUESSES", "1000/minute")
    private, address = provider
    jwks = address if where == "address" else str(tmp_path / "jwks.json")
    app = guarded(stack, auth_jwks=jwks, auth_issuer="https://id", auth_audience="orchestrator", auth_roles_claim="realm_access.roles")
    client = app.test_client()
    good = token(private, realm_access={"roles": ["operator", "unheard-of"]}, tenant="acme", scope="data:read data:write")
    said = client.get("/workflow/whoami", headers=good).get_json()
    assert (said["name"], said["tenant"], said["roles"], said["scopes"]) == ("ann", "acme", ["operator"], ["data:read", "data:write"])
    assert client.get("/workflow/whoami", headers=token(private)).status_code == 403  # known, and may nothing
    past = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    elsewhere = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forged = [
        token(private, exp=past),
        token(private, exp=None),
        token(private, aud="other"),
        token(private, iss="https://evil"),
        token(private, sub=None),
        token(elsewhere),
        token(private, kid="k2"),
        token(ec.generate_private_key(ec.SECP256R1()), "ES256"),
        token("k" * 40, "HS256"),
        {"Authorization": "Bearer " + jwt.encode({"sub": "ann"}, None, "none")},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": f"Basic {good['Authorization'][7:]}"},
    ]
    for number, headers in enumerate(forged):
        answer = client.get("/workflow/whoami", headers=headers)
        assert (answer.status_code, answer.headers.get("WWW-Authenticate")) == (401, "Bearer"), number


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_guesses_is_locked_out_and_others_are_not(stack: Stack, client: FlaskClient) -> None:
    good = key(stack, "viewer")
    wrong = {"X-API-Key": f"ok_{'0' * 12}_{'x' * 43}"}
    statuses = [client.get("/workflow/whoami", headers=wrong, environ_overrides=OTHER).status_code for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    blocked = client.get("/workflow/whoami", headers=good, environ_overrides=OTHER)
    assert blocked.status_code == 429
    assert int(blocked.headers["Retry-After"]) > 0
    assert client.get("/workflow/whoami", headers=good).status_code == 200
    boss = key(stack, "admin")
    found = client.get("/workflow/security/events", headers=boss).get_json()["events"]
    assert {one["type"] for one in found} == {"authentication_failure", "suspicious_activity"}
    number = found[0]["id"]
    assert client.post(f"/workflow/security/events/{number}/resolve", json={"resolution": "a test"}, headers=boss).status_code == 200
    assert client.post(f"/workflow/security/events/{number}/resolve", json={}, headers=boss).status_code == 404
    left = client.get("/workflow/security/events?resolved=false", headers=boss).get_json()["events"]
    assert len(left) == len(found) - 1
    assert 'orchestrator_security_events{resolved="false",type="authentication_failure"} 10.0' in client.get("/metrics", headers=boss).text


def test_limits_per_principal_and_per_workflow_also_while_redis_is_away(stack: Stack) -> None:
    client = guarded(stack, rate_limit="20/minute", start_limit="2/minute").test_client()
    ann, bob = key(stack, "user", name="ann"), key(stack, "user", name="bob")
    starts = [client.post("/workflow/start/numbered", json={"n": 1}, headers=ann) for _ in range(3)]
    assert [one.status_code for one in starts] == [201, 201, 429]
    assert client.post("/workflow/start/naps", json={}, headers=ann).status_code == 201
    first = client.get("/workflow/instances", headers=bob)
    assert (first.headers["RateLimit-Limit"], first.headers["RateLimit-Remaining"]) == ("20", "19")
    assert [client.get("/workflow/instances", headers=bob).status_code for _ in range(20)] == [200] * 19 + [429]
    assert client.get("/workflow/instances", headers=ann).status_code == 200
    assert stack.sql("select count(*) from instances")[0][0] == 3
    away = guarded(stack, rate_limit="3/minute", redis_url="redis://127.0.0.1:1/0").test_client()
    assert [away.get("/workflow/whoami", headers=bob).status_code for _ in range(5)] == [200, 200, 200, 429, 429]


# ── without authentication ──────────────────────────────────────────────────────────────────────────────────────────


def test_without_authentication_only_this_machine_is_answered(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    assert client.get("/workflow/instances").status_code == 200
    assert client.get("/workflow/instances", environ_overrides=OTHER).status_code == 403
    assert client.get("/health", environ_overrides=OTHER).status_code in (200, 503)
    held = stack.runner.runtime
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):  # noqa: S104 - refused, that is the point
        settings = dataclasses.replace(held.settings, host=host)
        with pytest.raises(OrchestratorError, match="AUTH=on"):
            create_app(WorkflowRunner(Runtime(settings, held.database, held.publisher)))
        create_app(WorkflowRunner(Runtime(dataclasses.replace(settings, auth="on"), held.database, held.publisher)))


# ── the audit ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_audit_says_who_from_where_and_shows_when_it_was_changed(stack: Stack, client: FlaskClient) -> None:
    ann, boss, auditor = key(stack, "user", name="ann"), key(stack, "admin"), key(stack, "auditor")
    for n in range(5):
        client.post("/workflow/start/numbered", json={"n": n}, headers={**ann, "User-Agent": "curl/8"}, environ_overrides=OTHER)
    found = client.get("/workflow/audit?user=ann&action=start&limit=2&page=2", headers=auditor).get_json()
    assert found["pagination"] == {"page": 2, "limit": 2, "total": 5, "pages": 3}
    assert {(row["address"], row["agent"], row["source"]) for row in found["audit"]} == {("203.0.113.9", "curl/8", "api")}
    assert client.get("/workflow/audit?since=2999-01-01T00:00:00Z", headers=auditor).get_json()["pagination"]["total"] == 0
    assert client.get("/workflow/audit?since=yesterday", headers=auditor).status_code == 400
    exported = [json.loads(line) for line in client.get("/workflow/audit/export?actor=ann", headers=auditor).text.splitlines()]
    assert [row["actor"] for row in exported] == ["ann"] * 5

    database = stack.runner.database
    assert database.patiently(lambda c: security.seal(c, 0.0, 4)) == 4
    while database.patiently(lambda c: security.seal(c, 0.0, 4)):
        pass
    assert client.get("/workflow/audit/verify", headers=boss).get_json()["isIntact"] is True
    for tampering, mended in (
        ("update audit set actor = 'eve' where id = 2 returning 1", "update audit set actor = 'ann' where id = 2 returning 1"),
        ("update audit set detail = '{\"x\": 1}' where id = 6 returning 1", None),
        ("delete from audit where id = 3 returning 1", None),
        ("delete from audit_seals where id = 1 returning 1", None),
    ):
        before = stack.sql("select actor from audit where id = 2")
        stack.sql(tampering)
        _, _, faults = database.patiently(security.verify)
        assert faults, tampering
        if mended:
            stack.sql(mended.replace("'ann'", f"'{before[0][0]}'"))
            assert database.patiently(security.verify)[2] == []


def test_an_audit_that_is_old_goes_and_what_is_left_can_still_be_verified(stack: Stack) -> None:
    database = stack.runner.database
    for n in range(20):
        stack.runner.start_workflow("numbered", input={"n": n}, actor="ann")
    while database.patiently(lambda c: security.seal(c, 0.0, 4)):
        pass
    before = stack.sql("select count(*) from audit")[0][0]
    assert database.patiently(lambda c: security.let_go(c, 3600.0)) == 0
    stack.sql(
        "update audit_seals set at = now() - interval '100 days' where id in (select id from audit_seals order by id limit 2) returning 1"
    )
    assert database.patiently(lambda c: security.let_go(c, 90 * 86400.0)) == 8
    assert stack.sql("select count(*) from audit")[0][0] == before - 8 + 1
    assert stack.sql("select detail ->> 'rows' from audit where action = 'let-audit-go'") == [("8",)]
    assert database.patiently(security.verify)[2] == []
    # More that goes without being told is found as before.
    stack.sql("delete from audit_seals where id = (select min(id) from audit_seals) returning 1")
    assert database.patiently(security.verify)[2] != []


@pytest.mark.parametrize("sent", ["<script>alert(1)</script>", "x' OR '1'='1", "1; DROP TABLE instances", "%3Cscript%3E"])
def test_what_looks_like_an_attempt_is_told_and_is_only_data(stack: Stack, client: FlaskClient, sent: str) -> None:
    ann, boss = key(stack, "user", name="ann"), key(stack, "admin")
    started = client.post("/workflow/start/waits-long", json={"text": sent}, headers=ann, environ_overrides=OTHER)
    assert started.status_code == 201
    assert client.get(f"/workflow/instance/{started.get_json()['instanceId']}", headers=ann).get_json()["input"] == {"text": sent}
    [event] = client.get("/workflow/security/events?type=suspicious_activity", headers=boss).get_json()["events"]
    assert (event["principal"], event["address"], "looks like" in event["detail"]["reason"]) == ("ann", "203.0.113.9", True)
    client.post("/workflow/start/waits-long", json={"text": "scripture, unions and selections"}, headers=ann)
    assert len(client.get("/workflow/security/events?type=suspicious_activity", headers=boss).get_json()["events"]) == 1


def test_behind_a_proxy_that_is_trusted_the_address_is_the_clients(stack: Stack) -> None:
    forwarded = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Prefix": "/orchestrator", "X-Forwarded-Host": "api.example.com"}
    ann = key(stack, "user", name="ann")
    for proxies, address in ((1, "198.51.100.7"), (0, "127.0.0.1")):
        client = guarded(stack, trusted_proxies=proxies).test_client()
        started = client.post("/workflow/start/numbered", json={"n": 1}, headers={**ann, **forwarded}).get_json()["instanceId"]
        assert stack.sql("select address from audit where instance_id = %s and action = 'start'", started) == [(address,)]
        assert client.get("/api/workflows", headers={**ann, **forwarded}).status_code == 200
    # Without authentication it is refused, though the proxy is on this machine.
    held = stack.runner.runtime
    runtime = Runtime(dataclasses.replace(held.settings, trusted_proxies=1), held.database, held.publisher)
    assert create_app(WorkflowRunner(runtime)).test_client().get("/workflow/instances", headers=forwarded).status_code == 403
