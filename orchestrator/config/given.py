"""Secrets that lie in files, and passwords beside their addresses.

<VARIABLE>_FILE      for every setting that is secret: the file's text is the value (Docker's and Kubernetes' secrets)
DATABASE_PASSWORD    put into DATABASE_URL where that has none, as REDIS_PASSWORD is put into REDIS_URL; any characters
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from orchestrator.config.environment import FILE, STACK, Environment
from orchestrator.errors import Fault


def with_files(environment: Environment, secret: Iterable[str]) -> tuple[Environment, list[Fault]]:
    """The values with those that are given as files, each before the source that names its file; and what is wrong with the files."""
    levels, faults = [], []
    for source, values in environment.levels:
        read: dict[str, str] = {}
        for name in secret:
            variable = f"{name}_FILE"
            path = values.get(variable, "").strip()
            if not path or source == STACK:
                continue
            line = environment.lines.get(variable) if source == FILE else None
            if values.get(name):
                faults.append(Fault(variable, f"{name} is given, too: give one of them.", file=source if line else "", line=line))
                continue
            try:
                # Editors and `echo` end a file with a line end, which no secret has.
                read[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                faults.append(Fault(variable, f"{path} cannot be read: {reason}.", file=source if line else "", line=line))
        levels += [(f"file named by {source}", read), (source, values)] if read else [(source, values)]
    return replace(environment, levels=tuple(levels)), faults


def with_password(url: str, password: str) -> str:
    """The password in the address of a database, unless that has one. Each character stands for itself."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if not password or not separator or ":" in user:
        return url
    return f"{scheme}://{user}:{quote(password, safe='')}@{host if at else authority}{slash}{path}"
