"""A newcomer: a fresh clone, the stack in one terminal, and pages followed from top to bottom in another."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from orchestrator.dev.ports import any_free
from tests.docs.pages import BLOCKS, ROOT, Block
from tests.stack import until

CLONED = (
    "Makefile", "Procfile", "README.md", "api", "config", "deploy", "docs", "examples", "migrations", "orchestrator", "pyproject.toml", "workflows",
)  # fmt: skip
MISSING = ("orchestrator", "celery", "redis-cli", "valkey-cli")
"""What no newcomer has on the PATH before the environment is activated; servers' own tools not even then."""
BUILD = """
import runpy, sys
from orchestrator.definition.builder import BUILT
runpy.run_path(sys.argv[1])
for workflow in list(BUILT.values()):
    workflow.build()
"""
TARGET = "9000"
"""The port of a reader's own service in the pages."""


class Newcomer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        self.folder.mkdir()
        self._state = folder / "terminal"
        self._state.mkdir()
        self._clone()
        self._environment = self._terminal(folder / "bin")
        # A gateway takes its ports last of all: by then somebody else may have the usual ones, which were free.
        self._ports = {name: str(any_free()) for name in ("PORT", "FLOWER_PORT", "GATEWAY_HTTP_PORT", "GATEWAY_HTTPS_PORT")}
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "up.log"

    # ── the first terminal ──────────────────────────────────────────────────────────────────────────────────────────

    def up(self) -> None:
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [".venv/bin/orchestrator", "up"], cwd=self.folder, env={**self._environment, **self._ports}, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        until(lambda: "| ready" in self.said() or not self.runs(), 90, self.said)
        assert self.runs(), self.said()
        stack = self._ports | json.loads((self.folder / ".orchestrator" / "stack.json").read_text())["environment"]
        self._replaced = {
            "5003": stack["PORT"], "8080": stack["GATEWAY_HTTP_PORT"], "8443": stack["GATEWAY_HTTPS_PORT"], TARGET: str(any_free()),
        }  # fmt: skip

    def down(self) -> int:
        """Ctrl-C in the first terminal; gives the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(30)

    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    # ── the second ──────────────────────────────────────────────────────────────────────────────────────────────────

    def follow(self, page: Path) -> None:
        """Every block of a page that is run, in one terminal; `AssertionError` where one does not what the page says."""
        try:
            printed = ""
            for block in BLOCKS[page]:
                if block.not_run is not None:
                    continue
                if block.kind == "bash":
                    printed = self._bash(block)
                elif block.kind == "python":
                    printed = self._python(block)
                elif block.kind == "text output":
                    compare(block, printed)
        finally:
            shutil.rmtree(self._state)
            self._state.mkdir()
            (self.folder / ".env").unlink(missing_ok=True)

    def _bash(self, block: Block) -> str:
        """What one block leaves behind in its terminal (variables, the activated environment) the next one finds."""
        kept = self._state / "variables"
        script = f"""
            [ ! -e '{kept}' ] || source '{kept}' 2> /dev/null || true
            keep() {{ declare -p > '{kept}'; }}
            trap keep EXIT
            set -eo pipefail
        """
        begins = "echo '--- the block begins'\n" if block.setup else ""
        written = self._here(f"{script}\n{block.setup}\n{begins}{block.text}")
        printed = self._ran(["bash", "-c", written], block)
        return printed.partition("--- the block begins\n")[2] if block.setup else printed

    def _python(self, block: Block) -> str:
        if block.path is not None:
            return self._ran([".venv/bin/python", "-c", BUILD, block.path], block)
        path = self._state / "program.py"
        path.write_text(self._here(block.text))
        return self._ran([".venv/bin/python", "-c", BUILD, str(path)], block)

    def _ran(self, command: list[str], block: Block) -> str:
        process = subprocess.Popen(
            command, cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        code: int | None = None
        try:
            printed, errors = process.communicate(timeout=60)
            code = process.returncode
        except subprocess.TimeoutExpired:
            _end(process)
            printed, errors = process.communicate(timeout=60)
        finally:
            _end(process)
        ended = "did not end" if code is None else f"ended with {code}, not {block.exit_code}"
        assert code == block.exit_code, f"{block.place} {ended}:\n{block.text}\n{printed}\n{errors}\n{self.said()[-2000:]}"
        return printed

    def _here(self, text: str) -> str:
        """The stack may have other ports than the usual ones, which somebody else has."""
        for usual, ours in self._replaced.items():
            text = re.sub(rf"\b{usual}\b", ours, text)
        return text

    # ── what a newcomer has ─────────────────────────────────────────────────────────────────────────────────────────

    def _clone(self) -> None:
        for name in CLONED:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, self.folder / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / name, self.folder / name)
        (self.folder / ".venv").symlink_to(Path(sys.executable).parents[1])
        for block in (block for blocks in BLOCKS.values() for block in blocks if block.path is not None):
            path = self.folder / str(block.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)

    def _terminal(self, missing: Path) -> dict[str, str]:
        """A terminal's variables: nothing of the tests' own, and a PATH without what the pages must not take for granted."""
        missing.mkdir()
        for name in MISSING:
            (missing / name).write_text(f"#!/bin/sh\necho '{name}: command not found' >&2\nexit 127\n")
            (missing / name).chmod(0o755)
        kept = {name: text for name, text in os.environ.items() if name in ("HOME", "LANG", "TMPDIR", "PYTHONPYCACHEPREFIX")}
        return {**kept, "PATH": f"{missing}:{os.environ['PATH']}", "PYTHONPATH": str(self.folder), "PYTHONUNBUFFERED": "1"}


def _end(process: subprocess.Popen[str]) -> None:
    """The terminal is closed: what a block began in the background ends with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def compare(block: Block, printed: str) -> None:
    """Each line that the page shows was printed, in this order; `…` stands for anything, and runs of blanks for one another."""
    said = [" ".join(line.split()) for line in printed.splitlines()]
    for line in (" ".join(line.split()) for line in block.text.splitlines() if line.strip()):
        pattern = ".*".join(re.escape(part.strip()) for part in line.split("…"))
        while said and not re.search(pattern, said[0]):
            said.pop(0)
        assert said, f"{block.place}: nothing like {line!r} was printed, where it should be:\n{printed}"
        said.pop(0)
