"""A user's own project: a folder with a package of workflows, on the path of the processes of a stack."""

from __future__ import annotations

import json
import os
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.stack import Stack


class Project:
    def __init__(self, stack: Stack, folder: Path, package: str = "shop") -> None:
        self.stack = stack
        self.package = folder / package
        self.package.mkdir(parents=True)
        (self.package / "__init__.py").touch()
        stack.workflows = package
        stack.environment["PYTHONPATH"] = str(folder)
        stack.environment["PYTHONDONTWRITEBYTECODE"] = "1"

    def write(self, name: str, text: str) -> Path:
        path = self.package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.stat().st_mtime if path.exists() else 0
        path.write_text(dedent(text))
        # Python takes what was compiled of a file that is as long as before and was written within the same second.
        if path.stat().st_mtime < before + 1:
            os.utime(path, (before + 1, before + 1))
        return path

    def start(self, workflow: str, input: Any = None, *more: str) -> str:
        """By the command line; gives the instance's id."""
        given = ["--input", json.dumps({} if input is None else input)]
        done = self.stack.cli("start", workflow, *given, "--json", *more)
        assert done.returncode == 0, done.stderr + done.stdout
        return str(json.loads(done.stdout)["id"])

    def row(self, instance_id: str) -> tuple[str, Any, Any]:
        """State, output and error."""
        import psycopg

        with psycopg.connect(self.stack.database_url, autocommit=True) as c:
            c.execute("set search_path = orchestrator, public")
            row = c.execute("select state, output, error from instances where id = %s", (instance_id,)).fetchone()
        assert row is not None
        return row[0], row[1], row[2]
