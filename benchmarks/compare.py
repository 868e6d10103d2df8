"""`python -m benchmarks compare --base <commit> [--pairs 9] measure …`: this code and an older one, in turn, on this machine.

Old and new run one after the other, again and again, so that both meet the same moods of the machine. Said is the median of the
ratios new : old, with the interval in which it lies with 95 % (by the order of the pairs, without any assumption about how they
are spread; nine pairs are the fewest that allow it to leave two out at each end).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".proofs"


def tree_of(commit: str) -> Path:
    """A work tree of a commit with an environment from its own lock."""
    found = subprocess.run(["git", "rev-parse", "--short", commit], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    tree = FOLDER / found
    if not (tree / ".git").exists():
        subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)
        subprocess.run(["git", "worktree", "add", "--detach", "--force", str(tree), commit], cwd=ROOT, check=True)
    if not (tree / ".venv/.bench").exists():
        if not (tree / ".venv/bin/python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(tree / ".venv")], check=True)
        pip = [str(tree / ".venv/bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        for lock in sorted(path.name for path in tree.glob("requirements*.txt")):
            subprocess.run([*pip, "--require-hashes", "--only-binary", ":all:", "-r", lock], cwd=tree, check=True)
        subprocess.run([*pip, "--no-build-isolation", "-e", "."], cwd=tree, check=True)
        (tree / ".venv/.bench").touch()
    return tree


def run(tree: Path, measure: str) -> float:
    latest = tree / "benchmarks/latest.json"
    kept = latest.read_text()
    try:
        _ran(tree, "benchmarks", measure, must=False)
        names = {m["measure"]: float(m["ours"]) for m in json.loads(latest.read_text())}
    finally:
        latest.write_text(kept)
    return names[measure]


def count(old: Path) -> None:
    """What is counted does not depend on the machine: once each is enough. The older tree counts with the code of this one."""
    (old / "benchmarks/counts.py").write_text((ROOT / "benchmarks/counts.py").read_text())
    found = {tree: json.loads(_ran(tree, "benchmarks.counts")) for tree in (old, ROOT)}
    for workload, values in found[ROOT].items():
        for name, new in values.items():
            before = found[old][workload][name]
            print(f"{workload}: {name}: old {before:,.3f}, new {new:,.3f}, ratio {new / before:.3f}", flush=True)


def _ran(tree: Path, *module: str, must: bool = True) -> str:
    """What a module prints, run by the tree's own environment. A measure whose goal is not met ends with 1, and has its figures."""
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    command = [tree / ".venv/bin/python", "-m", *module]
    return subprocess.run(command, cwd=tree, env=kept | {"BENCH_ROUNDS": "1"}, capture_output=True, text=True, check=must).stdout


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the narrowest pair of order statistics that holds it with 95 %."""
    ordered, count = sorted(ratios), len(ratios)
    out = 0
    while sum(math.comb(count, k) for k in range(out + 1)) / 2**count <= 0.025:
        out += 1
    return ordered[max(out - 1, 0)], statistics.median(ordered), ordered[min(count - out, count - 1)]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.add_argument("--base", required=True, help="the older commit")
    parser.add_argument("--pairs", type=int, default=9, help="how often each runs (default: 9)")
    parser.add_argument("measures", nargs="+")
    asked = parser.parse_args(arguments)
    old = tree_of(asked.base)
    for measure in asked.measures:
        if measure == "counts":
            count(old)
            continue
        ratios = []
        for pair in range(asked.pairs):
            order = (old, ROOT) if pair % 2 == 0 else (ROOT, old)
            found = {tree: run(tree, measure) for tree in order}
            ratios.append(found[ROOT] / found[old])
            print(f"{measure} {pair + 1}/{asked.pairs}: old {found[old]:,.2f}, new {found[ROOT]:,.2f}, ratio {ratios[-1]:.3f}", flush=True)
        low, middle, high = interval(ratios)
        print(f"{measure}: new : old = {middle:.3f}, 95 % from {low:.3f} to {high:.3f}, {asked.pairs} pairs", flush=True)
    return 0
