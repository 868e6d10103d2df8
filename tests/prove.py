"""`make proves N=34`: the tests of a fault's number, against the code in which it was found and against the present one.

Without a number, all of them, as a table. Each file of tests is run by a process of its own: where a fault of the old code takes the
servers of a file away, those of the others know nothing of it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as Tree  # what pytest wrote a moment ago
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.run import end_left_behind, processes

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


def run(tree: Path, files: Sequence[Path], number: int | None) -> dict[str, str]:
    """Each test, and what became of it."""
    with ThreadPoolExecutor(processes()) as pool:
        return {name: outcome for found in pool.map(lambda file: run_file(tree, file, number), files) for name, outcome in found.items()}


def run_file(tree: Path, file: Path, number: int | None) -> dict[str, str]:
    report = FOLDER / f"{tree.name}-{file.stem}.xml"
    report.unlink(missing_ok=True)
    command = [tree / ".venv/bin/python", "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", file.relative_to(ROOT)]
    selection = [] if number is None else ["--number", str(number)]
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    with tempfile.TemporaryDirectory(prefix="proofs-") as folder:
        Path(folder).chmod(0o755)
        environment = {**kept, "TMPDIR": folder, "TEST_PACE": kept.get("TEST_PACE", str(processes() / (os.cpu_count() or 1)))}
        done = subprocess.run(
            [*command, f"--junitxml={report}", *selection], cwd=tree, env=environment, capture_output=True, text=True, check=False
        )
        end_left_behind(folder)
    (FOLDER / f"{tree.name}-{file.stem}.log").write_text(done.stdout + done.stderr)
    print(f"{tree.name} {file.stem}: {(done.stdout.strip().splitlines() or ['nothing'])[-1]}", flush=True)
    if not report.exists():
        return {}
    found: dict[str, str] = {}
    for case in Tree.parse(report).iter("testcase"):  # noqa: S314
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        found[str(case.get("name"))] = min(kinds) if kinds else "passed"
    return found


def numbers() -> tuple[dict[int, list[str]], dict[int, set[Path]]]:
    """What proves which number, and where, read from the tests' text."""
    found: dict[int, list[str]] = {number: [] for number in KNOWN}
    places: dict[int, set[Path]] = {}
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
                    places.setdefault(number, set()).add(path)
                marks = []
    return found, places


def main() -> int:
    number = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] else None
    # What is begun in the background of a script ignores interrupts, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    known, places = numbers()
    if number is not None and not known.get(number):
        sys.exit(f"no test is marked with number {number}")
    files = sorted(places[number] if number is not None else set().union(*places.values()))
    old, new = run(old_tree(), files, number), run(ROOT, files, number)
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
