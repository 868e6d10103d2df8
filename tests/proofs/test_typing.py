"""What a type checker says of workflows as authors write them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
WORKFLOW = """\
from orchestrator import Workflow, step
from orchestrator.testing import Lab


@step(retries=2)
def charge(id: int) -> dict[str, int]:
    return {"id": id}


flow = Workflow("checked").then(charge, retries=3).parallel().do(charge).do(lambda branch: branch.then(charge)).join_with(charge)
flow = flow.if_(".id > 1").do(charge).foreach(".stops").do(charge).graph().step("a", charge, timeout="5s").done()
Lab().run(flow, {"id": 7}).assert_completed()
flow.then(charge, retires=3)  # wrong
flow.then(12345)  # wrong
flow.then(charge, retries="3")  # wrong
flow.parallel().do(charge).join_with(charge, quue="q")  # wrong
flow.graph().step("a", charge, timout="5s")  # wrong
"""


def complaints(path: Path) -> set[int]:
    """The lines that mypy refuses in a file."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(path.parent / "cache"), path.name],
        cwd=path.parent, env={"MYPYPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, timeout=160, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {int(line) for line in re.findall(rf"^{path.name}:(\d+): error", done.stdout, re.MULTILINE)}


@pytest.mark.slow
@pytest.mark.proves(45)
def test_mypy_takes_what_is_right_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "checked.py"
    path.write_text(WORKFLOW)

    assert complaints(path) == {number for number, line in enumerate(WORKFLOW.splitlines(), 1) if line.endswith("# wrong")}


@pytest.mark.slow
@pytest.mark.proves(45)
def test_mypy_takes_the_test_that_the_page_about_tests_shows(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "test-a-workflow.md").read_text()
    [shown] = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    path = tmp_path / "shown.py"
    path.write_text(shown)

    assert complaints(path) == set()
