"""Files that workflows leave, below OUTPUT_DIR and nowhere else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from orchestrator import Terminal
from orchestrator.starting import settings


def below(path: str | None = None) -> Path:
    """A place below OUTPUT_DIR, whatever dots and links are in the path; without a path, OUTPUT_DIR itself."""
    base = Path(settings().output_dir).resolve()
    if path is None:
        return base
    wanted = (base / path.lstrip("/")).resolve()
    if not wanted.is_relative_to(base) or wanted == base:
        raise Terminal(f"'{path}' leads out of OUTPUT_DIR")
    return wanted


def write(path: str, text: str) -> str:
    """Whole or not at all, however often it is tried. Gives where it lies."""
    wanted = below(path)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=wanted.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        Path(name).replace(wanted)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return str(wanted)
