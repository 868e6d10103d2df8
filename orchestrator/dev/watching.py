"""Which files of a project changed: its Python code, and the documents in its workflow packages.

Looked at a few times a second instead of being told by the system: that works on every platform, over network folders and in
containers, and costs a project of 1,000 files a few milliseconds a look.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CODE, DOCUMENTS = (".py",), (".py", ".yaml", ".yml", ".json")
SKIPPED = {"node_modules", "__pycache__", "build", "dist", "site-packages"}
PAUSE_S = 0.2
OWN = Path(__file__).parents[1]

Seen = dict[Path, tuple[int, int]]


class Watch:
    """Where a project's files are, and how they were when they were looked at last."""

    def __init__(self, project: Path, packages: Sequence[str]) -> None:
        self.project = project.absolute()
        self.packages = [folder for name in packages if (folder := package_folder(name)) is not None]
        self._seen = self._look()
        self._next = time.monotonic()

    def changed(self) -> set[Path]:
        """Since the last look; empty between looks. Files that are being written are waited for."""
        if time.monotonic() < self._next:
            return set()
        began = time.monotonic()
        now = self._look()
        # A project so large that a look takes long is looked at less often.
        self._next = time.monotonic() + max(PAUSE_S, 10 * (time.monotonic() - began))
        if now == self._seen:
            return set()
        before, self._seen = self._seen, self._settled(now)
        return {path for path in before.keys() | self._seen.keys() if before.get(path) != self._seen.get(path)}

    def _settled(self, seen: Seen) -> Seen:
        """Once two looks in a row see the same: editors write a file in several steps."""
        for _ in range(20):
            time.sleep(0.05)
            if (now := self._look()) == seen:
                break
            seen = now
        return seen

    def _look(self) -> Seen:
        found: Seen = {}
        for folder, suffixes in ((self.project, CODE), *((package, DOCUMENTS) for package in self.packages)):
            found.update(_files(folder, suffixes))
        return found


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[Path, tuple[int, int]]]:
    todo = [str(folder)]
    while todo:
        try:
            entries = list(os.scandir(todo.pop()))
        except OSError:
            continue
        if any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SKIPPED:
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif entry.name.endswith(suffixes) and entry.is_file():
                    held = entry.stat()
                    yield Path(entry.path), (held.st_mtime_ns, held.st_size)
            except OSError:
                continue


def package_folder(name: str) -> Path | None:
    """Where a package of workflows lies, without importing any code of its own."""
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(next(iter(spec.submodule_search_locations)), *inner)
    return place if place.is_dir() else None


def needs_a_new_start(changed: set[Path]) -> bool:
    """Is it this project's own code that changed, which processes keep when they load workflows again?"""
    return any(path.is_relative_to(OWN) and not path.is_relative_to(OWN / "workflows") for path in changed)
