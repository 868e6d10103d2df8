"""Installing on a machine that has nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.proves(1)
def test_a_locked_set_installs_without_looking_for_anything_else() -> None:
    """pip 23.2 asks for `coverage[toml]` beside the lock when a newer coverage is out; nobody is asked with --no-deps."""
    recipe = subprocess.run(["make", "-n", "-B", ".venv/.dev"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in recipe.splitlines() if "--require-hashes" in line]
    assert installs
    assert [line for line in installs if "--no-deps" not in line] == []


@pytest.mark.proves(1, 39)
def test_what_is_installed_is_whole(tmp_path: Path) -> None:
    """Every distribution that ours needs is named by ours: nothing works only because something else brings it."""
    needed = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert needed.returncode == 0, needed.stdout
    declared = (ROOT / "pyproject.toml").read_text()
    named = {
        line.split("==")[0].split("[")[0].strip().lower()
        for line in (ROOT / "requirements.in").read_text().splitlines()
        if line and line[0] != "#"
    }
    builds = {"setuptools"}
    assert {name for name in named - builds if not re.search(rf'"{re.escape(name)}[\[>="]', declared, re.IGNORECASE)} == set()
