"""The shape of the code: which way imports point, who may send, who may speak SQL; and that the docs say what is so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.state import MOVES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "orchestrator"

# What each part may import of the others. Core ← means ← store ← steps ← engine ← edges.
CORE = {"errors", "ids", "nesting", "definition", "history", "state", "plan"}
MEANS = CORE | {"config", "telemetry"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "ids": set(),
    "nesting": set(),
    "definition": {"errors", "ids", "nesting", "definition"},
    "history": {"ids", "errors"},
    "state": {"errors"},
    "plan": CORE,
    "config": {"config", "errors", "definition"},
    "telemetry": {"telemetry", "errors", "history", "ids"},
    "store": MEANS | {"store", "migrations"},
    "migrations": {"store", "migrations"},
    "net": MEANS | {"net"},
    "steps": MEANS | {"steps", "net"},
    "compensations": MEANS | {"steps"},
    "breakers": MEANS,
    "trimming": set(),
    "security": MEANS | {"store", "security"},
    "schedule": MEANS | {"schedule", "store"},
    "engine": MEANS | {"store", "steps", "engine", "net", "schedule", "security", "breakers"},
    "keeper": MEANS | {"store", "engine", "keeper"},
    "embedded": MEANS | {"steps", "engine", "breakers"},
    "testing": MEANS | {"steps", "embedded"},
    "stream": MEANS | {"store", "engine", "stream", "net", "breakers", "trimming"},
    "proxies": MEANS | {"store", "proxies", "trimming"},
    "gateway": MEANS | {"net", "proxies", "gateway"},
    "reach": MEANS | {"store"},
    "starting": MEANS | {"reach"},
    "dev": MEANS | {"store", "dev", "reach"},
}
PURE = ("definition", "plan", "history.py", "state.py")
IMPURE = {"time", "datetime", "random", "os", "socket", "psycopg", "redis", "sqlalchemy", "subprocess", "requests", "httpx", "threading"}


def files(part: str = "") -> list[Path]:
    base = PACKAGE / part
    return [base] if base.suffix else sorted(base.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("part", sorted(ARROWS))
def test_imports_point_one_way(part: str) -> None:
    for path in files(part if (PACKAGE / part).is_dir() else f"{part}.py"):
        parts = {name.split(".")[1] for name in imports(path) if name.startswith("orchestrator.") and name.count(".")}
        wrong = {name for name in parts if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()} - ARROWS[part]
        if path == PACKAGE / "engine/runner.py":
            wrong -= {"app"}  # the process's own runner is made from the composition, when first asked for
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("part", PURE)
def test_the_core_performs_no_io_and_reads_no_clock(part: str) -> None:
    for path in files(part):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & IMPURE, f"{path.relative_to(ROOT)} imports {sorted(tops & IMPURE)}"


def test_only_publish_sends_a_canvas() -> None:
    senders = [p.relative_to(PACKAGE).as_posix() for p in files() if re.search(r"\.(apply_async|delay|send_task)\(", p.read_text())]
    assert senders == ["engine/publish.py"]


def test_only_the_store_speaks_sql() -> None:
    verbs = re.compile(r"\.execute\(\s*[fr]?[\"']|[\"']{1,3}\s*(select|insert into|update|delete from) ", re.IGNORECASE)
    speakers = [
        p.relative_to(PACKAGE).as_posix()
        for p in files()
        if verbs.search(p.read_text()) and not p.relative_to(PACKAGE).as_posix().startswith(("store/", "dev/"))
    ]
    assert speakers == []


def test_there_is_one_door_to_postgres_and_what_it_shares_bears_the_schemas_name() -> None:
    """Connections see the engine's schema alone. Advisory locks and channels are the whole database's."""
    for pattern, places in (
        (r"psycopg\.connect\(|Connection\.connect\(|create_engine\(", {"store/connection.py", "dev/servers.py", "migrations/env.py"}),
        (r"(?<!class )\bDatabase\(", {"store/connection.py", "stream/stores/postgres.py"}),
        (r"pg_(try_)?advisory", {"store/locks.py", "store/migrate.py"}),
        (r"pg_notify|\"listen |'listen ", {"store/notices.py"}),
    ):
        found = {
            path.relative_to(PACKAGE).as_posix() for path in (p for p in PACKAGE.rglob("*.py")) if re.search(pattern, path.read_text())
        }
        found |= {f"{top}/{path.relative_to(ROOT / top).as_posix()}" for top in ("api", "migrations", "workflows") for path in (ROOT / top).rglob("*.py") if re.search(pattern, path.read_text())}  # fmt: skip
        assert found == places, pattern


def test_steps_see_neither_the_store_nor_the_engine() -> None:
    for path in [*files("steps"), *files("compensations")]:
        assert not {n for n in imports(path) if n.startswith(("orchestrator.store", "orchestrator.engine"))}, path


def test_the_application_of_proxies_knows_nothing_of_instances() -> None:
    known = {name for name in imports(PACKAGE / "proxies/application.py") if name.startswith("orchestrator.")}
    assert {name for name in known if name.count(".") > 1 and name.split(".")[1] == "proxies"} <= {
        "orchestrator.proxies.addresses",
        "orchestrator.proxies.addresses.is_target",
    }
    assert {name.split(".")[1] for name in known} == {"errors", "trimming", "proxies"}
    for path in files("proxies"):
        if path.name not in ("application.py", "reconcile.py"):
            assert "orchestrator.proxies.application" not in imports(path), path


def test_a_module_has_one_name() -> None:
    """`api`, `workflows` and `migrations` stand beside `orchestrator` in the repository and inside of it everywhere else."""
    for path in [
        path for top in ("api", "benchmarks", "migrations", "orchestrator", "tests", "workflows") for path in (ROOT / top).rglob("*.py")
    ]:
        assert not {name.split(".")[0] for name in imports(path)} & {"api", "workflows", "migrations"}, path
    script = "import sys; from orchestrator.engine.catalog import discover; assert discover(['workflows']); import orchestrator.api; print(sorted({'api', 'workflows', 'migrations'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_module_says_what_it_owns() -> None:
    for path in [*files(), *sorted((ROOT / "api").rglob("*.py")), *sorted((ROOT / "workflows").rglob("*.py"))]:
        text = path.read_text().strip()
        assert not text or ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} has no docstring"


def test_the_diagram_of_states_is_the_table_of_moves() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+): (\w+)$", (ROOT / "docs/states.md").read_text(), re.MULTILINE))
    assert drawn == {(source, target, move) for move, (sources, target) in MOVES.items() for source in sources}


def test_every_guarantee_names_a_test_that_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/guarantees.md").read_text()))
    defined = {m for path in (ROOT / "tests").rglob("test_*.py") for m in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    assert named
    assert named <= defined, named - defined


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} → {target}"


def test_no_registry_address_is_locked() -> None:
    for path in ROOT.glob("requirements*.txt"):
        assert not re.search(r"https?://", path.read_text()), path
