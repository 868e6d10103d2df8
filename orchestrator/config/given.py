"""What the environment gives, before it is read as settings: values that lie in files, and passwords beside their URLs.

<VARIABLE>_FILE      for every setting that is secret, and the two passwords: the file's text is the value (Docker's and Kubernetes' secrets)
DATABASE_PASSWORD    put into DATABASE_URL where that has none, as REDIS_PASSWORD is put into REDIS_URL; any characters
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from orchestrator.errors import Fault

PASSWORDS = ("DATABASE_PASSWORD", "REDIS_PASSWORD")


def from_files(given: Mapping[str, str], secret: Iterable[str]) -> tuple[dict[str, str], list[Fault]]:
    """The variables with those that are given as files, and what is wrong with the files."""
    found, faults = dict(given), []
    for name in (*secret, *PASSWORDS):
        path = given.get(f"{name}_FILE")
        if not path:
            continue
        if given.get(name):
            faults.append(Fault(f"{name}_FILE", f"{name} is given, too; give one of them"))
            continue
        try:
            # Editors and `echo` end a file with a line end, which no secret has.
            found[name] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            faults.append(Fault(f"{name}_FILE", f"{path} cannot be read: {reason}"))
    return found, faults


def with_password(url: str, password: str) -> str:
    """The password in the URL of a database, unless that has one. Each character stands for itself."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if not password or not separator or ":" in user:
        return url
    return f"{scheme}://{user}:{quote(password, safe='')}@{host if at else authority}{slash}{path}"
