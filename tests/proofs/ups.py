"""`orchestrator up` in a folder of a test's own, as somebody runs it in a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from orchestrator.dev.ports import any_free
from tests.stack import until

CLI = [sys.executable, "-m", "orchestrator.cli"]
SHOP = Path(__file__).parent / "shop"


class Up:
    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "shop").exists():
            shutil.copytree(SHOP, folder / "shop", ignore=shutil.ignore_patterns("__pycache__"))
        self.url = f"http://127.0.0.1:{(port := any_free())}"
        kept = {name: text for name, text in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
        self.variables = {
            **kept, "PORT": str(port), "FLOWER_PORT": str(any_free()), "ORCHESTRATOR_WORKFLOWS": "shop", "PYTHONUNBUFFERED": "1", **variables,
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self._runs = 0

    @property
    def log(self) -> Path:
        return self.folder / f"up-{self._runs}.log"

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def begin(self, *options: str) -> subprocess.Popen[bytes]:
        self._runs += 1
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*CLI, "up", *options], cwd=self.folder, env=self.variables, stdout=out, stderr=out, start_new_session=True
            )
        return self.process

    def start(self, *options: str) -> Up:
        process = self.begin(*options)
        until(lambda: "| ready" in self.said() or process.poll() is not None, 90, lambda: self.said()[-3000:])
        assert process.poll() is None, self.said()[-3000:]
        return self

    def cli(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLI, *arguments], cwd=self.folder, env={**self.variables, **variables},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def family(self) -> list[psutil.Process]:
        """The supervisor's children and theirs."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def servers(self, *programs: str) -> list[psutil.Process]:
        """Those of these names: of several, Postgres' own children come and go, the one that all stem from stays."""
        found: dict[str, psutil.Process] = {}
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if (name := one.name()) in programs and "postgres:" not in " ".join(one.cmdline()):
                    found.setdefault(name, one)
        return list(found.values())

    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / ".orchestrator/stack.json").read_text()))

    def end(self) -> None:
        """Whatever became of it: nothing of it stays."""
        if self.process is None:
            return
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGINT)
                self.process.wait(60)
        finally:
            for one in psutil.process_iter(["cmdline"]):
                with contextlib.suppress(psutil.Error):
                    folder = str(self.folder)
                    if one.cwd().startswith(folder) or any(folder in part for part in one.info["cmdline"] or ()):
                        one.kill()


@contextlib.contextmanager
def project(folder: Path, **variables: str) -> Iterator[Up]:
    made = Up(folder, **variables)
    try:
        yield made
    finally:
        made.end()


def alive(processes: list[psutil.Process]) -> list[str]:
    found = []
    for one in processes:
        with contextlib.suppress(psutil.Error):
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{one.pid} {' '.join(one.cmdline())[:80]}")
    return found
