"""Checklist 6 and 7: calls, credentials, programs; each against a stand-in that a test starts."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

from orchestrator.dev.ports import any_free
from orchestrator.dev.servers import Redis
from orchestrator.embedded import Embedded
from orchestrator.net import authentication, egress, resources
from orchestrator.net.problems import Problem
from orchestrator.testing import ManualClock
from tests.serverless.running import definition, fault, output
from tests.serverless.standins import StandIn


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    resources._kept.clear()
    authentication.TOKENS._kept.clear()
    for name in ("RUN_SCRIPTS", "RUN_SHELL", "RUN_CONTAINERS"):
        monkeypatch.setenv(name, "true")


def http(standin: StandIn, path: str, more: str = "", around: str = "") -> str:
    return f"do: [{{c: {{call: http, with: {{method: get, endpoint: {{uri: '{standin.address}{path}'}}{more}}}{around}}}}}]"


# ── http ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_uri_templates_are_filled_from_the_input_and_percent_encoded(standin: StandIn) -> None:
    found = output(http(standin, "/echo?name={name}&gone={gone}&flag={flag}"), {"name": "a b/ü&c", "flag": True})
    assert found["query"] == {"name": ["a b/ü&c"], "gone": [""], "flag": ["true"]}


def test_an_object_in_a_uri_template_is_an_expression_error(standin: StandIn) -> None:
    assert fault(http(standin, "/echo?x={x}"), {"x": {"y": 1}})["type"].endswith("/expression")


def test_what_an_expression_gives_is_no_template(standin: StandIn) -> None:
    body = f"do: [{{c: {{call: http, with: {{method: get, endpoint: '${{ \"{standin.address}/echo?x=%7Bname%7D\" }}'}}}}}}]"
    assert output(body, {"name": "no"})["query"] == {"x": ["{name}"]}


def test_query_headers_and_body(standin: StandIn) -> None:
    body = f"""
    do:
      - c:
          call: http
          with:
            method: POST
            endpoint: '{standin.address}/echo?a=1'
            query: {{b: '${{ .b }}'}}
            headers: {{X-Own: '${{ .b }}'}}
            body: {{n: '${{ .b }}'}}
    """
    found = output(body, {"b": "two"})
    assert found["query"] == {"a": ["1"], "b": ["two"]}
    assert found["headers"]["x-own"] == "two"
    assert json.loads(found["body"]) == {"n": "two"}
    assert found["headers"]["idempotency-key"].endswith(":/do/0/c")


def test_queries_and_headers_may_be_whole_expressions(standin: StandIn) -> None:
    found = output(http(standin, "/echo", ", query: '${ .q }', headers: '${ .h }'"), {"q": {"n": 7}, "h": {"X-A": "b"}})
    assert (found["query"], found["headers"]["x-a"]) == ({"n": ["7"]}, "b")


def test_content_text_bytes_nothing_raw_and_response(standin: StandIn) -> None:
    standin.answers["GET", "/text"] = lambda _: (200, b"plain words", {"content-type": "text/plain"})
    standin.answers["GET", "/bytes"] = lambda _: (200, b"\x00\xff", {"content-type": "application/octet-stream"})
    standin.answers["GET", "/none"] = lambda _: (204, b"")
    standin.answers["GET", "/problem"] = lambda _: (200, b'{"a": 1}', {"content-type": "application/problem+json; charset=utf-8"})
    assert output(http(standin, "/text")) == "plain words"
    assert output(http(standin, "/bytes")) == base64.b64encode(b"\x00\xff").decode()
    assert output(http(standin, "/none")) is None
    assert output(http(standin, "/problem")) == {"a": 1}
    assert output(http(standin, "/text", ", output: raw")) == base64.b64encode(b"plain words").decode()
    response = output(http(standin, "/text", ", output: response"))
    assert (response["statusCode"], response["content"], response["request"]["method"]) == (200, "plain words", "GET")


@pytest.mark.parametrize("status", [400, 404, 409, 429, 500, 503])
def test_a_failure_is_a_communication_error_with_the_actual_status(standin: StandIn, status: int) -> None:
    problem = fault(http(standin, f"/status/{status}"))
    assert (problem["status"], problem["type"].rsplit("/", 1)[1], problem["instance"]) == (status, "communication", "/do/0/c")
    assert problem["title"]


def test_a_refused_connection_is_a_communication_error_of_500(standin: StandIn) -> None:
    problem = fault("do: [{c: {call: http, with: {method: get, endpoint: 'http://127.0.0.1:9/x'}}}]")
    assert (problem["status"], problem["type"].rsplit("/", 1)[1]) == (500, "communication")


def test_redirects_are_errors_unless_they_are_asked_for(standin: StandIn) -> None:
    standin.answers["GET", "/moved"] = lambda _: (302, b"", {"location": "/v2/pet/1"})
    assert fault(http(standin, "/moved"))["status"] == 302
    assert output(http(standin, "/moved", ", redirect: true"))["name"] == "Milou"


def test_a_body_that_is_too_large_is_not_read(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.answers["GET", "/large"] = lambda _: (200, b"x" * 9_000_000)
    assert "more than" in fault(http(standin, "/large"))["detail"]


# ── egress ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0.0.0.0", "224.0.0.1"])  # noqa: S104
def test_metadata_and_reserved_addresses_are_never_called(host: str) -> None:
    problem = fault(f"do: [{{c: {{call: http, with: {{method: get, endpoint: 'http://{host}/latest'}}}}}}]")
    assert (problem["status"], problem["title"]) == (403, "Egress not allowed")


def test_private_networks_may_be_closed_and_hosts_opened(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EGRESS_PRIVATE", "false")
    assert fault(http(standin, "/v2/pet/1"))["status"] == 403
    monkeypatch.setenv("EGRESS_ALLOW", "127.0.0.0/8")
    assert output(http(standin, "/v2/pet/1"))["id"] == 1
    monkeypatch.setenv("EGRESS_DENY", "127.0.0.1")
    assert fault(http(standin, "/v2/pet/1"))["status"] == 403
    monkeypatch.setenv("EGRESS_DENY", "")
    monkeypatch.setenv("EGRESS_ALLOW", "*.example.org")
    assert fault(http(standin, "/v2/pet/1"))["status"] == 403


def test_a_redirect_to_a_forbidden_address_is_not_followed(standin: StandIn) -> None:
    standin.answers["GET", "/trap"] = lambda _: (302, b"", {"location": "http://169.254.169.254/latest/meta-data"})
    assert fault(http(standin, "/trap", ", redirect: true"))["status"] == 403


def test_a_name_that_answers_otherwise_the_second_time_gains_nothing(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answers(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host[0].isdigit():
            return [(2, 1, 6, "", (host, port))]
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
        return [(2, 1, 6, "", (address, port))]

    monkeypatch.setattr(egress.socket, "getaddrinfo", answers)
    port = standin.address.rsplit(":", 1)[1]
    assert output(f"do: [{{c: {{call: http, with: {{method: get, endpoint: 'http://rebinding.example:{port}/v2/pet/1'}}}}}}]")["id"] == 1
    assert asked == ["rebinding.example"]


def test_one_bad_address_among_good_ones_is_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        egress.socket, "getaddrinfo", lambda h, p, **_: [(2, 1, 6, "", ("127.0.0.1", p)), (2, 1, 6, "", ("169.254.169.254", p))]
    )
    with pytest.raises(Problem, match="not allowed"):
        egress.resolved("two.example", 80, egress.Policy())


# ── credentials ─────────────────────────────────────────────────────────────────────────────────────────────────────


def with_auth(standin: StandIn, policy: str, use: str = "", path: str = "/echo") -> str:
    return f"""
    {use}
    do: [{{c: {{call: http, with: {{method: get, endpoint: {{uri: '{standin.address}{path}', authentication: {policy}}}}}}}}}]
    """


def test_basic_bearer_and_reusable_credentials(standin: StandIn) -> None:
    found = output(with_auth(standin, "{basic: {username: u, password: '${ .p }'}}"), {"p": "p"})
    assert found["headers"]["authorization"] == "Basic " + base64.b64encode(b"u:p").decode()
    assert output(with_auth(standin, "{bearer: {token: '${ .t }'}}"), {"t": "abc"})["headers"]["authorization"] == "Bearer abc"
    use = "use: {authentications: {mine: {bearer: {token: xyz}}}}"
    assert output(with_auth(standin, "{use: mine}", use))["headers"]["authorization"] == "Bearer xyz"


def test_credentials_come_from_secrets_and_are_shown_nowhere(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_LOGIN", '{"username": "u", "password": "very-secret"}')
    monkeypatch.setenv("SECRET_KEY", "very-hidden")
    use = "use: {secrets: [login, key]}"
    standin.answers["GET", "/tells"] = lambda asked: (500, {"said": asked["headers"]["x-key"]})
    body = f"""
    {use}
    do:
      - c:
          call: http
          with:
            method: get
            endpoint: {{uri: '{standin.address}/%s', authentication: {{basic: {{use: login}}}}}}
            headers: {{X-Key: '${{ $secrets.key }}'}}
            output: response
    """
    shown = json.dumps(output(body % "echo"))
    assert standin.requests[-1]["headers"]["authorization"] == "Basic " + base64.b64encode(b"u:very-secret").decode()
    assert standin.requests[-1]["headers"]["x-key"] == "very-hidden"
    assert "very-hidden" not in shown
    assert base64.b64encode(b"u:very-secret").decode() not in json.dumps(json.loads(shown)["request"])
    assert "very-hidden" not in json.dumps(fault(body % "tells"))
    monkeypatch.delenv("SECRET_LOGIN")
    assert fault(body % "echo")["status"] == 403


def test_digest_answers_the_challenge(standin: StandIn) -> None:
    challenge = {"www-authenticate": 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'}
    standin.answers["GET", "/digest"] = lambda asked: (200, {"ok": True}) if "authorization" in asked["headers"] else (401, {}, challenge)
    assert output(with_auth(standin, "{digest: {username: u, password: p}}", path="/digest")) == {"ok": True}
    assert 'username="u"' in standin.requests[-1]["headers"]["authorization"]


def oauth(standin: StandIn, more: str = "", scheme: str = "oauth2", client: str = "{id: me, secret: shh}") -> str:
    return f"{{{scheme}: {{authority: '{standin.address}/realm', grant: client_credentials, client: {client}{more}}}}}"


def tokens(standin: StandIn, path: str = "/realm/oauth2/token", lasts: int = 3600) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def give(request: dict[str, Any]) -> tuple[int, Any]:
        asked.append(request)
        return 200, {"access_token": f"token-{len(asked)}", "expires_in": lasts}

    standin.answers["POST", path] = give
    return asked


def test_a_token_is_asked_for_once_and_kept_until_it_expires(standin: StandIn) -> None:
    asked = tokens(standin)
    body = with_auth(standin, oauth(standin, ", scopes: [a, b], audiences: [x, y]"))
    assert [output(body)["headers"]["authorization"] for _ in range(3)] == ["Bearer token-1"] * 3
    assert len(asked) == 1
    assert asked[0]["body"].decode() == ("grant_type=client_credentials&scope=a+b&audience=x&audience=y&client_id=me&client_secret=shh")


def test_ways_in_which_a_client_says_who_it_is(standin: StandIn) -> None:
    asked = tokens(standin)
    output(with_auth(standin, oauth(standin, client="{id: me, secret: shh, authentication: client_secret_basic}")))
    assert asked[-1]["headers"]["authorization"] == "Basic " + base64.b64encode(b"me:shh").decode()
    output(with_auth(standin, oauth(standin, client="{id: me, assertion: a.b.c, authentication: private_key_jwt}")))
    assert "client_assertion=a.b.c" in asked[-1]["body"].decode()
    output(with_auth(standin, oauth(standin, ", request: {encoding: application/json}")))
    assert json.loads(asked[-1]["body"])["client_id"] == "me"


def test_a_token_endpoint_may_be_named_and_oidc_discovers_it(standin: StandIn) -> None:
    named = tokens(standin, "/realm/own/token")
    output(with_auth(standin, oauth(standin, ", endpoints: {token: /own/token}")))
    assert len(named) == 1
    discovered = tokens(standin, "/found/token")
    standin.answers["GET", "/realm/.well-known/openid-configuration"] = lambda _: (
        200,
        {"token_endpoint": f"{standin.address}/found/token"},
    )
    output(with_auth(standin, oauth(standin, scheme="oidc")))
    assert len(discovered) == 1


def test_an_authority_that_refuses_is_an_authentication_error(standin: StandIn) -> None:
    standin.answers["POST", "/realm/oauth2/token"] = lambda _: (401, {"error": "invalid_client"})
    problem = fault(with_auth(standin, oauth(standin)))
    assert (problem["status"], problem["type"].rsplit("/", 1)[1]) == (401, "authentication")


# ── openapi ─────────────────────────────────────────────────────────────────────────────────────────────────────────

OPENAPI = {
    "openapi": "3.0.3",
    "servers": [{"url": "/api/{v}", "variables": {"v": {"default": "v1"}}}],
    "components": {"parameters": {"limit": {"name": "limit", "in": "query", "schema": {"type": "integer", "default": 5}}}},
    "paths": {
        "/things/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "post": {
                "operationId": "changeThing",
                "parameters": [
                    {"$ref": "#/components/parameters/limit"},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "string"}},
                    {"name": "tags", "in": "query", "explode": False, "schema": {"type": "array"}},
                ],
                "requestBody": {"required": True, "content": {"application/json": {}}},
            },
        }
    },
}


def openapi(standin: StandIn, operation: str, parameters: str) -> str:
    return f"""
    do:
      - c:
          call: openapi
          with:
            document: {{endpoint: '{standin.address}/openapi.json'}}
            operationId: {operation}
            parameters: {parameters}
    """


def test_openapi_3_puts_each_parameter_in_its_place(standin: StandIn) -> None:
    standin.answers["GET", "/openapi.json"] = lambda _: (200, OPENAPI)
    standin.answers["POST", "/api/v1/things/a%20b"] = lambda asked: (
        200,
        {"query": asked["query"], "trace": asked["headers"].get("x-trace"), "body": json.loads(asked["body"])},
    )
    found = output(openapi(standin, "changeThing", "{id: 'a b', X-Trace: t, tags: [x, y], colour: '${ .c }'}"), {"c": "red"})
    assert found == {"query": {"limit": ["5"], "tags": ["x,y"]}, "trace": "t", "body": {"colour": "red"}}


def test_a_missing_parameter_and_an_unknown_operation_are_told(standin: StandIn) -> None:
    standin.answers["GET", "/openapi.json"] = lambda _: (200, OPENAPI)
    assert "needs the parameter 'id'" in fault(openapi(standin, "changeThing", "{colour: red}"))["detail"]
    problem = fault(openapi(standin, "nothing", "{}"))
    assert "changeThing" in problem["detail"]
    assert problem["type"].endswith("/configuration")


def test_swagger_2_sends_a_body_by_its_name(standin: StandIn) -> None:
    standin.answers["POST", "/v2/pet"] = lambda asked: (200, json.loads(asked["body"]))
    body = f"""
    do:
      - c:
          call: openapi
          with:
            document: {{endpoint: '{standin.address}/v2/swagger.json'}}
            operationId: addPet
            parameters: {{body: {{name: Idefix}}}}
    """
    assert output(body) == {"name": "Idefix"}


# ── functions of catalogs, child workflows ──────────────────────────────────────────────────────────────────────────


def test_a_function_of_a_catalog_and_one_at_a_url(standin: StandIn) -> None:
    function = b"input: {schema: {document: {required: [n]}}}\nset: {twice: '${ .n * 2 }'}\noutput: {as: .twice}\n"
    standin.answers["GET", "/catalog/functions/twice/1.0.0/function.yaml"] = lambda _: (200, function, {"content-type": "text/yaml"})
    body = f"""
    use: {{catalogs: {{mine: {{endpoint: {{uri: '{standin.address}/catalog'}}}}}}}}
    do:
      - a: {{call: 'twice:1.0.0@mine', with: {{n: '${{ .n }}'}}, output: {{as: '{{n: .}}'}}}}
      - b: {{call: '{standin.address}/catalog/functions/twice/1.0.0/function.yaml', with: {{n: '${{ .n }}'}}}}
    """
    assert output(body, {"n": 3}) == 12
    assert fault(body, {})["type"].endswith("/expression")


# ── programs ────────────────────────────────────────────────────────────────────────────────────────────────────────


def shell(command: str, more: str = "", back: str = "") -> str:
    return f"do: [{{r: {{run: {{shell: {{command: {json.dumps(command)}{more}}}{back}}}}}}}]"


def test_a_command_gets_its_arguments_stdin_and_environment_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://do-not-tell")
    body = shell('cat; echo " $1-$2 $OWN [$DATABASE_URL]"', ", stdin: '${ .in }', arguments: [Foo, '${ .b }'], environment: {OWN: mine}")
    assert output(body, {"in": "given", "b": "$(rm -rf /); `x`"}) == "given Foo-$(rm -rf /); `x` mine []"


@pytest.mark.parametrize(
    ("back", "expected"),
    [
        ("", "out"),
        (", return: stdout", "out"),
        (", return: stderr", "err"),
        (", return: code", 0),
        (", return: none", None),
        (", return: all", {"code": 0, "stdout": "out", "stderr": "err"}),
    ],
)
def test_what_a_program_gives(back: str, expected: object) -> None:
    assert output(shell("echo out; echo err >&2", back=back)) == expected


def test_a_program_that_fails_fails_its_task_unless_its_code_is_wanted() -> None:
    problem = fault(shell("echo no >&2; exit 3"))
    assert (problem["type"].rsplit("/", 1)[1], problem["status"]) == ("runtime", 500)
    assert "no" in problem["detail"]
    assert output(shell("exit 3", back=", return: code")) == 3
    assert output(shell("exit 3", back=", return: all"))["code"] == 3


def test_programs_are_killed_when_they_take_too_long_say_too_much_or_want_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_TIMEOUT", "1")
    assert fault(shell("sleep 60 & sleep 60"))["type"].endswith("/timeout")
    assert "more than" in fault(shell("yes"))["detail"]
    monkeypatch.setenv("RUN_TIMEOUT", "20")
    hungry = "do: [{r: {run: {script: {language: python, code: 'x = bytearray(2000000000); print(len(x))'}}}}]"
    assert "MemoryError" in fault(hungry)["detail"]


def test_programs_are_off_unless_they_are_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUN_SHELL", "false")
    problem = fault(shell("echo"))
    assert problem["status"] == 403
    assert "RUN_SHELL" in problem["detail"]


def test_scripts_in_python_and_javascript() -> None:
    python = "do: [{r: {run: {script: {language: python, code: 'import sys, os; print(sys.stdin.read(), sys.argv[1], os.environ[\"A\"])', stdin: in, arguments: [arg], environment: {A: env}}}}}]"
    assert output(python) == "in arg env"
    module = """
    do:
      - r:
          run:
            script:
              language: js
              stdin: Hello Workflow
              environment: {foo: bar}
              arguments: [hello]
              code: |
                import { readFileSync } from 'node:fs';
                const stdin = readFileSync(process.stdin.fd, 'utf8');
                const [_, __, arg] = process.argv;
                console.log(stdin, arg, process.env.foo)
    """
    assert output(module) == "Hello Workflow hello bar"
    plain = "do: [{r: {run: {script: {language: javascript, code: 'console.log(require(\"os\").EOL.length, `${1 + 1}`)'}}}}]"
    assert output(plain) == "1 2"


def test_a_shells_own_braces_are_the_shells() -> None:
    more = ", environment: {A: a, B: b}"
    assert output(shell("${SHELL_OF:-echo} ${A}${B}", more)) == "ab"
    assert output(shell("${ .say }"), {"say": "echo said"}) == "said"
    script = "do: [{r: {run: {script: {language: js, code: '${ { console.log(`${1 + 1}`) } }'}}}}]"
    assert fault(script)["type"].endswith("/runtime")


def test_a_script_may_come_from_a_resource(standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.answers["GET", "/script.py"] = lambda _: (200, b"print(6 * 7)", {"content-type": "text/plain"})
    body = "do: [{r: {run: {script: {language: python, source: {endpoint: '%s'}}}}}]"
    assert output(body % f"{standin.address}/script.py") == "42"
    (tmp_path / "s.py").write_text("print('from a file')")
    monkeypatch.setenv("RESOURCES_DIR", str(tmp_path))
    assert output(body % "file:///s.py") == "from a file"
    assert fault(body % "file:///../../etc/passwd")["status"] in (400, 403)


# ── a2a, mcp, grpc, asyncapi, containers ────────────────────────────────────────────────────────────────────────────


def test_a2a_sends_a_message_with_what_the_protocol_needs(standin: StandIn) -> None:
    standin.answers["GET", "/card.json"] = lambda _: (200, {"name": "agent", "url": f"{standin.address}/agent"})

    def agent(asked: dict[str, Any]) -> tuple[int, Any]:
        message = json.loads(asked["body"])
        return 200, {"jsonrpc": "2.0", "id": message["id"], "result": {"method": message["method"], "params": message["params"]}}

    standin.answers["POST", "/agent"] = agent
    body = f"""
    do:
      - c:
          call: a2a
          with:
            agentCard: {{endpoint: '{standin.address}/card.json'}}
            method: message/send
            parameters: {{message: {{parts: [{{kind: text, text: '${{ .say }}'}}]}}}}
    """
    found = output(body, {"say": "hi"})
    assert found["params"]["message"]["parts"] == [{"kind": "text", "text": "hi"}]
    assert found["params"]["message"]["role"] == "user"
    assert len(found["params"]["message"]["messageId"]) == 36


def test_a2a_gives_a_stream_as_a_list_and_an_error_as_a_runtime_error(standin: StandIn) -> None:
    events = b"".join(b'data: {"jsonrpc": "2.0", "id": "x", "result": {"n": %d}}\n\n' % n for n in (1, 2))
    standin.answers["POST", "/stream"] = lambda _: (200, events, {"content-type": "text/event-stream"})
    standin.answers["POST", "/bad"] = lambda _: (200, {"jsonrpc": "2.0", "id": "x", "error": {"code": -32001, "message": "no such task"}})
    body = "do: [{c: {call: a2a, with: {server: '%s', method: %s, parameters: {id: t}}}}]"
    assert output(body % (f"{standin.address}/stream", "message/stream")) == [{"n": 1}, {"n": 2}]
    problem = fault(body % (f"{standin.address}/bad", "tasks/get"))
    assert problem["type"].endswith("/runtime")
    assert "no such task" in problem["detail"]


MCP = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    if asked["method"] == "initialize":
        result = {"protocolVersion": asked["params"]["protocolVersion"], "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
    else:
        result = {"method": asked["method"], "params": asked["params"]}
    print(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {}}), flush=True)
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


def test_mcp_over_the_pipes_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(MCP)
    body = f"""
    do:
      - c:
          call: mcp
          with:
            method: tools/call
            parameters: {{name: add, arguments: {{n: '${{ .n }}'}}}}
            timeout: PT10S
            transport: {{stdio: {{command: '{sys.executable}', arguments: ['{tmp_path}/server.py']}}}}
    """
    assert output(body, {"n": 1}) == {"method": "tools/call", "params": {"name": "add", "arguments": {"n": 1}}}


def test_mcp_over_http_with_a_session(standin: StandIn) -> None:
    seen: list[tuple[str, str | None]] = []

    def server(asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        message = json.loads(asked["body"])
        seen.append((message["method"], asked["headers"].get("mcp-session-id")))
        if "id" not in message:
            return 202, b"", {}
        result = {"protocolVersion": "2025-06-18"} if message["method"] == "initialize" else {"tools": [{"name": "add"}]}
        body = b"event: message\ndata: " + json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode() + b"\n\n"
        return 200, body, {"content-type": "text/event-stream", "mcp-session-id": "s1"}

    standin.answers["POST", "/mcp"] = server
    body = f"do: [{{c: {{call: mcp, with: {{method: tools/list, transport: {{http: {{endpoint: '{standin.address}/mcp'}}}}}}}}}}]"
    assert output(body) == {"tools": [{"name": "add"}]}
    assert seen == [("initialize", None), ("notifications/initialized", "s1"), ("tools/list", "s1")]


PROTO = """
syntax = "proto3";
package greet;
import "google/protobuf/timestamp.proto";
message Hello { string name = 1; int32 times = 2; }
message Greeting { string text = 1; google.protobuf.Timestamp at = 2; }
service Greeter {
  rpc Say (Hello) returns (Greeting);
  rpc Many (Hello) returns (stream Greeting);
  rpc Collect (stream Hello) returns (Greeting);
}
"""


@pytest.fixture
def greeter() -> Iterator[int]:
    import grpc
    from google.protobuf import message_factory

    from orchestrator.steps.call_grpc import compiled

    pool = compiled(PROTO)
    hello = message_factory.GetMessageClass(pool.FindMessageTypeByName("greet.Hello"))
    greeting = message_factory.GetMessageClass(pool.FindMessageTypeByName("greet.Greeting"))

    def say(request: Any, context: Any) -> Any:
        if not request.name:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no name")
        return greeting(text=f"Hello {request.name}")

    def many(request: Any, context: Any) -> Any:
        yield from (greeting(text=f"{request.name} {n}") for n in range(request.times))

    def collect(requests: Any, context: Any) -> Any:
        return greeting(text=" ".join(request.name for request in requests))

    kinds = {"request_deserializer": hello.FromString, "response_serializer": greeting.SerializeToString}
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say, **kinds),
        "Many": grpc.unary_stream_rpc_method_handler(many, **kinds),
        "Collect": grpc.stream_unary_rpc_method_handler(collect, **kinds),
    }
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("greet.Greeter", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


def test_grpc_calls_of_every_kind(standin: StandIn, greeter: int) -> None:
    standin.answers["GET", "/greet.proto"] = lambda _: (200, PROTO.encode(), {"content-type": "text/plain"})

    def call(method: str, arguments: str) -> str:
        return f"""
        do:
          - c:
              call: grpc
              with:
                proto: {{endpoint: '{standin.address}/greet.proto'}}
                service: {{name: greet.Greeter, host: localhost, port: {greeter}}}
                method: {method}
                arguments: {arguments}
        """

    assert output(call("Say", "{name: '${ .n }'}"), {"n": "Ada"}) == {"text": "Hello Ada"}
    assert output(call("Many", "{name: x, times: 2}")) == [{"text": "x 0"}, {"text": "x 1"}]
    assert output(call("Collect", "{requests: [{name: a}, {name: b}]}")) == {"text": "a b"}
    problem = fault(call("Say", "{}"))
    assert (problem["status"], problem["title"], problem["type"].rsplit("/", 1)[1]) == (400, "INVALID_ARGUMENT", "communication")
    assert fault(call("Nope", "{}"))["type"].endswith("/configuration")
    assert fault(call("Say", "{wrong: 1}"))["type"].endswith("/validation")


def asyncapi(host: str) -> dict[str, Any]:
    return {
        "asyncapi": "3.0.0",
        "servers": {"main": {"host": host, "protocol": "redis"}, "web": {"host": host, "protocol": "http"}},
        "channels": {"notes": {"address": "notes"}},
        "operations": {
            "sendNote": {"action": "send", "channel": {"$ref": "#/channels/notes"}},
            "onNote": {"action": "receive", "channel": {"$ref": "#/channels/notes"}},
        },
    }


@pytest.fixture
def open_redis(tmp_path: Path) -> Iterator[Redis]:
    """One of somebody else's, that asks for no password."""
    server = Redis(tmp_path / "redis", any_free(), password="")
    server.start()
    yield server
    server.stop()


def test_asyncapi_publishes_and_consumes_by_redis(standin: StandIn, open_redis: Redis) -> None:
    import redis

    standin.answers["GET", "/asyncapi.json"] = lambda _: (200, asyncapi(f"127.0.0.1:{open_redis.port}"))
    stop = threading.Event()

    def publish() -> None:
        with redis.Redis.from_url(open_redis.url) as connection:
            n = 0
            while not stop.wait(0.02):
                n += 1
                connection.publish("notes", json.dumps({"payload": {"n": n, "even": n % 2 == 0}}))

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    body = f"""
    do:
      - c:
          call: asyncapi
          with:
            document: {{endpoint: '{standin.address}/asyncapi.json'}}
            operation: onNote
            protocol: redis
            subscription:
              filter: '${{ .payload.even }}'
              consume: {{%s}}
              foreach: {{item: note, do: [{{s: {{set: {{sum: '${{ .n }}', even: '${{ $note.even }}'}}}}}}]}}
    """
    assert [round["even"] for round in output(body % "amount: 3")] == [True] * 3
    assert len(output(body % "until: '${ (. | length) == 2 }'")) == 2
    assert len(output(body % "while: '${ (. | length) < 4 }'")) == 4
    stop.set()
    thread.join()

    heard = redis.Redis.from_url(open_redis.url).pubsub(ignore_subscribe_messages=True)
    heard.subscribe("notes")
    heard.get_message(timeout=1)
    send = f"""
    do:
      - c:
          call: asyncapi
          with:
            document: {{endpoint: '{standin.address}/asyncapi.json'}}
            operation: sendNote
            server: {{name: main}}
            message: {{payload: {{id: '${{ .id }}'}}}}
    """
    assert output(send, {"id": 5}) == {"id": 5}
    message = next(m for m in iter(lambda: heard.get_message(timeout=2), None) if m)
    assert json.loads(message["data"]) == {"id": 5}
    heard.close()


def test_a_protocol_that_is_not_spoken_is_told(standin: StandIn) -> None:
    document = asyncapi("127.0.0.1:9")
    document["servers"]["main"]["protocol"] = "kafka"
    standin.answers["GET", "/asyncapi2.json"] = lambda _: (200, document)
    body = f"do: [{{c: {{call: asyncapi, with: {{document: {{endpoint: '{standin.address}/asyncapi2.json'}}, operation: sendNote, server: {{name: main}}, message: {{payload: {{a: 1}}}}}}}}}}]"
    assert "kafka" in fault(body)["detail"]


def test_a_container_is_created_started_awaited_and_removed(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_HOST", standin.address.replace("http://", "tcp://"))
    api = "/v1.41"
    created: list[dict[str, Any]] = []

    def create(asked: dict[str, Any]) -> tuple[int, Any]:
        created.append({**json.loads(asked["body"]), "name": asked["query"]["name"][0]})
        return 201, {"Id": "c1"}

    logs = b"\x01\x00\x00\x00\x00\x00\x00\x06hello\n" + b"\x02\x00\x00\x00\x00\x00\x00\x04warn"
    standin.answers["GET", f"{api}/images/alpine/json"] = lambda _: (404, {"message": "no such image"})
    standin.answers["POST", f"{api}/images/create"] = lambda _: (200, b'{"status": "Pulling"}\n')
    standin.answers["POST", f"{api}/containers/create"] = create
    standin.answers["POST", f"{api}/containers/c1/start"] = lambda _: (204, b"")
    standin.answers["POST", f"{api}/containers/c1/wait"] = lambda _: (200, {"StatusCode": 0})
    standin.answers["GET", f"{api}/containers/c1/logs"] = lambda _: (200, logs, {"content-type": "application/octet-stream"})
    standin.answers["DELETE", f"{api}/containers/c1"] = lambda _: (204, b"")
    before = len(standin.requests)
    body = """
    do:
      - c:
          run:
            container: {image: alpine, command: 'echo $1', arguments: [hello], environment: {A: b}, lifetime: {cleanup: always}}
            return: all
    """
    assert output(body) == {"code": 0, "stdout": "hello", "stderr": "warn"}
    assert created[0]["Entrypoint"] == ["/bin/sh", "-c", "echo $1", "sh"]
    assert created[0]["Cmd"] == ["hello"]
    assert created[0]["Env"] == ["A=b"]
    assert [r["method"] for r in standin.requests[before:]] == ["GET", "POST", "POST", "POST", "POST", "GET", "DELETE"]


def test_a_schema_may_stand_elsewhere_and_what_it_said_is_recorded(standin: StandIn) -> None:
    standin.answers["GET", "/schema.json"] = lambda _: (200, {"type": "object", "required": ["n"]})
    body = f"do: [{{s: {{input: {{schema: {{resource: {{endpoint: '{standin.address}/schema.json'}}}}}}, set: {{ok: true}}}}}}]"
    assert output(body, {"n": 1}) == {"ok": True}
    assert fault(body, {})["type"].endswith("/validation")


def test_a_container_may_be_removed_later_by_a_workflow_of_its_own(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_HOST", standin.address)
    api, names = "/v1.41", []

    def create(asked: dict[str, Any]) -> tuple[int, Any]:
        names.append(asked["query"]["name"][0])
        return 201, {"Id": "c2"}

    standin.answers["GET", f"{api}/images/hello/json"] = lambda _: (200, {})
    standin.answers["POST", f"{api}/containers/create"] = create
    standin.answers["POST", f"{api}/containers/c2/start"] = lambda _: (204, b"")
    standin.answers["POST", f"{api}/containers/c2/wait"] = lambda _: (200, {"StatusCode": 0})
    standin.answers["GET", f"{api}/containers/c2/logs"] = lambda _: (200, b"\x01\x00\x00\x00\x00\x00\x00\x02hi", {"content-type": "x/y"})
    made = definition("do: [{c: {run: {container: {image: hello, lifetime: {cleanup: eventually, after: {minutes: 30}}}}}}]")
    engine = Embedded(clock=ManualClock())
    instance = engine.start(made, {})
    engine.settle()
    assert instance.output == "hi"
    assert names == [f"case-{instance.id}.tests-c"]
    standin.answers["DELETE", f"{api}/containers/{names[0]}"] = lambda _: (204, b"")
    assert not [r for r in standin.requests if r["method"] == "DELETE" and names[0] in r["path"]]
    engine.settle(engine.clock.now() + 31 * 60)
    assert [r["path"] for r in standin.requests if r["method"] == "DELETE"][-1] == f"{api}/containers/{names[0]}"


def test_asyncapi_over_a_websocket(standin: StandIn) -> None:
    from websockets.sync.server import serve

    heard: list[Any] = []

    def handle(socket: Any) -> None:
        if socket.request.path == "/in":
            heard.append(json.loads(socket.recv()))
            return
        for n in range(3):
            socket.send(json.dumps({"payload": {"n": n}}))
        socket.recv(timeout=5)

    with serve(handle, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.socket.getsockname()[1]}"
        document = {
            "asyncapi": "2.6.0",
            "servers": {"s": {"url": host, "protocol": "ws"}},
            "channels": {"out": {"subscribe": {"operationId": "hear"}}, "in": {"publish": {"operationId": "say"}}},
        }
        standin.answers["GET", "/ws.json"] = lambda _: (200, document)
        body = f"do: [{{c: {{call: asyncapi, with: {{document: {{endpoint: '{standin.address}/ws.json'}}, %s}}}}}}]"
        assert output(body % "channel: /out, subscription: {consume: {amount: 2}}") == [{"n": 0}, {"n": 1}]
        assert output(body % "operation: say, message: {payload: {word: '${ .w }'}}", {"w": "hi"}) == {"w": "hi"}
        server.shutdown()
    assert heard == [{"word": "hi"}]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo", "a b c"),
        ("echo hello", "hello a b c"),
        ("printf '%s|'", "a|b c|"),
        ("true && echo last", "last a b c"),
        ("echo hello # and no more", "hello a b c"),
        ("x=1\\necho $x", "1 a b c"),
        ("awk 'BEGIN { print ARGV[2] }'", "b c"),
        ('echo \\"$2-$1\\"', "b c-a"),
        ('for each in \\"$@\\"; do printf \\"<$each>\\"; done', "<a><b c>"),
        ("shift; echo $#", "1"),
        ("if true; then echo block; fi", "block"),
        ("cat <<END\\nhere\\nEND", "here"),
        ("x=5", ""),
    ],
)
def test_arguments_stand_at_the_end_of_a_command_that_does_not_take_them_itself(command: str, said: str) -> None:
    assert output(f'do: [{{r: {{run: {{shell: {{command: "{command}", arguments: [a, b c]}}}}}}}}]') == said


def test_arguments_are_never_read_by_the_shell() -> None:
    assert output("do: [{r: {run: {shell: {command: echo, arguments: ['$(id)', '; id', '`id`', '${ .x }']}}}}]", {"x": "$HOME"}) == (
        "$(id) ; id `id` $HOME"
    )


def test_arguments_may_be_a_map_as_up_to_1_0_1() -> None:
    assert output("do: [{r: {run: {shell: {command: echo, arguments: {--name: '${ .n }', --quiet: ''}}}}}]", {"n": 5}) == "--name 5 --quiet"
    python = (
        "do: [{r: {run: {script: {language: python, code: 'print(greetings, count + 1)', arguments: {greetings: '${ .g }', count: 1}}}}}]"
    )
    assert output(python, {"g": "Hello, world!"}) == "Hello, world! 2"
    js = "do: [{r: {run: {script: {language: js, code: 'console.log(greetings)', arguments: {greetings: '${ .g }'}}}}}]"
    assert output(js, {"g": "Hello, world!"}) == "Hello, world!"
