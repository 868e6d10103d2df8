"""Secrets by name: from files of SECRETS_DIR (one each), from variables SECRET_<NAME>, or kept sealed in Postgres
(`orchestrator secrets`). JSON is read as what it says.

They are handed to expressions and calls of definitions that declare them, and to nothing else; no history, log or
message holds one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from orchestrator.config import environment
from orchestrator.config.process import settings

kept: Callable[[str], str | None] | None = None
"""Where secrets are kept that are neither files nor variables; told by whoever has the database."""

HIDDEN = "***"
_SHORTEST = 4


def resolve(names: Iterable[str]) -> dict[str, Any]:
    """The declared secrets; None for one that this process is not given."""
    return {name: _read(name) for name in names}


def _read(name: str) -> Any:
    folder = settings().secrets_dir
    text = None
    if folder and "/" not in name and not name.startswith("."):
        path = Path(folder) / name
        text = path.read_text(encoding="utf-8").rstrip("\n") if path.is_file() else None
    if text is None:
        text = environment.variable(f"SECRET_{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}")
    if text is None and kept is not None:
        text = kept(name)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict | list) else text


def values_in(secret: Any) -> list[str]:
    """The strings in secrets that are long enough to be recognised."""
    if isinstance(secret, str):
        return [secret] if len(secret) >= _SHORTEST else []
    if isinstance(secret, dict):
        return [text for item in secret.values() for text in values_in(item)]
    if isinstance(secret, list):
        return [text for item in secret for text in values_in(item)]
    return []


def masked(value: Any, hidden: list[str]) -> Any:
    """The value with every secret string replaced wherever it stands."""
    if not hidden:
        return value
    if isinstance(value, str):
        for text in hidden:
            value = value.replace(text, HIDDEN)
        return value
    if isinstance(value, dict):
        return {masked(key, hidden): masked(item, hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, hidden) for item in value]
    return value
