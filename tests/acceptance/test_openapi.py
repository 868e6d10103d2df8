"""`/openapi.json` is true: schemathesis sends what it allows and what it does not, as an admin, as a viewer, as nobody.

Nothing is answered with 500, nothing with a status or a body that is not declared, and what is declared to be refused is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from orchestrator.api import create_app, described, gate, openapi
from tests.guarded import key
from tests.stack import Stack
from tests.web import web

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,"
    "negative_data_rejection,missing_required_header,unsupported_method,use_after_free,ensure_resource_availability"
)


@pytest.fixture
def served(stack: Stack) -> Iterator[str]:
    with web(stack, AUTH="on", RATE_LIMIT="") as (url, _):
        yield url


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("role", "examples"), [("admin", 8), ("viewer", 2), (None, 1)])
def test_what_is_declared_is_what_is_answered(stack: Stack, served: str, role: str | None, examples: int) -> None:
    headers = ["-H", f"Authorization: {key(stack, role)['Authorization']}"] if role else []
    done = subprocess.run(
        [
            str(SCHEMATHESIS), "run", f"{served}/openapi.json", *headers, "-n", str(examples),
            # The export of what the others wrote grows with them.
            "--exclude-path", "/workflow/audit/export", "--exclude-path-regex", "/stream$", "--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure",
            "--max-failures", "30", "--no-color", "--checks", CHECKS, "--request-timeout", "20", "--seed", os.environ.get("SEED", "20261120"),
        ],
        capture_output=True, text=True, timeout=280, check=False, cwd=stack.folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Tested" in done.stdout


def test_every_route_is_there_with_who_may_and_what_it_takes(stack: Stack) -> None:
    app = create_app(stack.runner)
    client = app.test_client()
    spec = client.get("/openapi.json").get_json()
    assert spec["openapi"].startswith("3.1")
    ids = {(operation["operationId"], method) for path in spec["paths"].values() for method, operation in path.items()}
    told = {id for id, _ in ids} | {id.removesuffix(f".{method}") for id, method in ids}
    assert told >= {rule.endpoint for rule in app.url_map.iter_rules()} - {"static"}
    assert all(
        "security" not in operation for path in spec["paths"].values() for operation in path.values() if "Needs" in operation["description"]
    )
    page = client.get("/docs").text
    assert all(path in page for path in ("/workflow/start/{workflow}", "/api/workflows/{workflow}/trigger"))
    assert set(described.DESCRIBED) <= set(gate.RULES)


def test_every_operation_has_a_title_of_its_own_and_a_group(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    spec = client.get("/openapi.json").get_json()
    operations = [operation for path in spec["paths"].values() for operation in path.values()]
    titles: dict[tuple[str, str], set[str]] = {}
    for operation in operations:
        assert len(operation["summary"].split()) >= 2, operation["operationId"]
        titles.setdefault((operation["tags"][0], operation["summary"]), set()).add(operation["operationId"].split(".")[1].split("_v1")[0])
    # Two addresses of one operation share its title; two operations do not.
    assert {title: names for title, names in titles.items() if len(names) > 1 and not _aliases(names)} == {}
    page = client.get("/docs").text
    assert all(f"id='{tag['name']}'" in page for tag in spec["tags"])


def _aliases(names: set[str]) -> bool:
    return len({name.removesuffix("_alias").removesuffix("_as") for name in names}) == 1


def test_the_root_says_where_things_are(stack: Stack) -> None:
    client = create_app(stack.runner).test_client()
    told = client.get("/", headers={"Accept": "application/json"}).get_json()
    assert all(client.get(path).status_code in (200, 503) for path in told["links"].values())
    assert "docs" in client.get("/", headers={"Accept": "text/html"}).text


def test_a_route_that_takes_a_body_and_does_not_say_which_does_not_start() -> None:
    app = Flask("x")
    app.add_url_rule("/new", "new", lambda: "", methods=["POST"])
    with pytest.raises(RuntimeError, match="new"):
        openapi.check(app)
