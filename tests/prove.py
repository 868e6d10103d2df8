"""`make proves N=34`: the tests of a fault's number, against the code in which it was found and against the present one.

Without a number, all of them, as a table.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as Tree  # what pytest wrote a moment ago
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = "4596b44"
FOLDER = ROOT / ".proofs"
KNOWN = range(1, 67)


def old_tree() -> Path:
    """A work tree of the old commit with an environment of its own, and the present proofs in it."""
    tree = FOLDER / BASE
    if not (tree / ".git").exists():
        subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)
        subprocess.run(["git", "worktree", "add", "--detach", "--force", str(tree), BASE], cwd=ROOT, check=True)
    if not (tree / ".venv/.dev").exists():
        pip = [str(tree / ".venv/bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([sys.executable, "-m", "venv", str(tree / ".venv")], check=True)
        for lock in ("requirements.txt", "requirements-dev.txt"):
            subprocess.run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", lock], cwd=tree, check=True)
        subprocess.run([*pip, "--no-build-isolation", "-e", "."], cwd=tree, check=True)
        (tree / ".venv/.dev").touch()
    shutil.rmtree(tree / "tests/proofs", ignore_errors=True)
    shutil.copytree(ROOT / "tests/proofs", tree / "tests/proofs", ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def run(tree: Path, number: int | None) -> dict[str, str]:
    """Each test, and what became of it."""
    report = FOLDER / f"{tree.name}.xml"
    report.unlink(missing_ok=True)
    python = tree / ".venv/bin/python"
    selection = [] if number is None else ["--number", str(number)]
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "tests/proofs", f"--junitxml={report}", *selection],
        cwd=tree, env=environment, check=False,
    )  # fmt: skip
    if not report.exists():
        sys.exit(f"pytest gave no report in {tree}")
    found: dict[str, str] = {}
    for case in Tree.parse(report).iter("testcase"):  # noqa: S314
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        found[str(case.get("name"))] = min(kinds) if kinds else "passed"
    return found


def numbers() -> dict[int, list[str]]:
    """What proves which number, read from the tests' text."""
    found: dict[int, list[str]] = {number: [] for number in KNOWN}
    for path in sorted((ROOT / "tests/proofs").rglob("test_*.py")):
        marks: list[int] = []
        whole = [
            int(n) for text in re.findall(r"^pytestmark = .*?proves\(([\d, ]+)\)", path.read_text(), re.MULTILINE) for n in text.split(",")
        ]
        for line in path.read_text().splitlines():
            if mark := re.match(r"@pytest\.mark\.proves\(([\d, ]+)\)", line):
                marks += [int(n) for n in mark.group(1).split(",")]
            elif test := re.match(r"(?:async )?def (test_\w+)", line):
                for number in [*marks, *whole]:
                    found.setdefault(number, []).append(test.group(1))
                marks = []
    return found


def main() -> int:
    number = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else None
    known = numbers()
    if number is not None and not known.get(number):
        sys.exit(f"no test is marked with number {number}")
    old, new = run(old_tree(), number), run(ROOT, number)
    print(f"\n{'number':<8}{'then (' + BASE + ')':<30}now")
    for one in [number] if number is not None else sorted(known):
        names = tuple(known[one])
        print(f"{one:<8}{_told(old, names):<30}{_told(new, names)}")
    return int(any(outcome in ("failure", "error") for outcome in new.values()))


def _told(outcomes: dict[str, str], names: tuple[str, ...]) -> str:
    counts = Counter(outcome for name, outcome in outcomes.items() if name.partition("[")[0] in names)
    words = {"failure": "failed", "error": "failed at its set-up"}
    return ", ".join(f"{count} {words.get(outcome, outcome)}" for outcome, count in sorted(counts.items())) or "no test"


if __name__ == "__main__":
    sys.exit(main())
