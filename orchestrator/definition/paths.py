"""The commonest expressions, `.`, `.a.b[0]`, `$item.id`: followed here, with jq's meaning, without jq.

Quicker by far, and numbers come out as they went in, however large.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from orchestrator.errors import ExpressionError

_PATH = re.compile(r"""\s*(?:\$([A-Za-z_]\w*))?((?:\.[A-Za-z_]\w*|\.?\[\s*(?:-?\d{1,9}|"[^"\\]*")\s*\])*|\.)\s*""")
_KEY = re.compile(r"""\.?\[\s*(-?\d+)\s*\]|\.?\[\s*"([^"]*)"\s*\]|\.([A-Za-z_]\w*)""")
# `$ENV` and `$__loc__` are jq's own.
_OWN = frozenset({"ENV", "__loc__", "__prog_args"})

Key = str | int


@functools.lru_cache(maxsize=8192)
def parsed(source: str) -> tuple[str | None, tuple[Key, ...]] | None:
    """The name and the keys of a plain path; None when it is more than that."""
    found = _PATH.fullmatch(source) if len(source) <= 1000 else None
    if found is None:
        return None
    name, rest = found.groups()
    if name in _OWN or (name is None and not rest) or (name is not None and rest == ".") or (name is None and rest.startswith("[")):
        return None
    keys: list[Key] = []
    for number, quoted, word in _KEY.findall("" if rest == "." else rest):
        keys.append(int(number) if number else word or quoted)
    return name, tuple(keys)


def followed(value: Any, keys: tuple[Key, ...]) -> Any:
    for key in keys:
        if value is None:
            continue
        if isinstance(key, str) and isinstance(value, dict):
            value = value.get(key)
        elif isinstance(key, int) and isinstance(value, list | tuple):
            value = value[key] if -len(value) <= key < len(value) else None
        else:
            what = f'"{key}"' if isinstance(key, str) else "number"
            raise ExpressionError(f"jq: Cannot index {_kind(value)} with {what}")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", int: "number", float: "number", list: "array", tuple: "array", dict: "object"}.get(type(value), "null")
