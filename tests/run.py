"""`make test`: lint, types, then every storey of tests, quickest first. The first that fails ends it."""

from __future__ import annotations

import subprocess
import sys
import time

STAGES = (
    ("format", ["ruff", "format", "--check", "."]),
    ("lint", ["ruff", "check", "."]),
    ("types", ["mypy"]),
    ("security", ["bandit", "-q", "-c", "pyproject.toml", "-r", "api", "workflows", "migrations", "orchestrator"]),
    ("tests", ["pytest", "-q", "tests"]),
)


def main() -> int:
    began = time.monotonic()
    for name, command in STAGES:
        print(f"── {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        if code:
            print(f"── {name} failed after {time.monotonic() - began:.0f} s", flush=True)
            return code
    print(f"── all green after {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
