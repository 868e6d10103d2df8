"""External resources: over HTTP like any call, or from files of RESOURCES_DIR. Kept for a while per process."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from orchestrator.config.process import settings
from orchestrator.net.client import judged, send
from orchestrator.net.problems import Problem

KEPT_S = 300.0
_kept: dict[str, tuple[float, str]] = {}
_lock = threading.Lock()


def fetched(address: str, auth: httpx.Auth | None = None) -> str:
    """The resource's text. What needs credentials is not kept."""
    scheme = urlsplit(address).scheme
    if scheme == "file":
        return _file(address)
    if scheme not in ("http", "https"):
        raise Problem("configuration", f"'{address}' is no resource: write http, https or file")
    now = time.monotonic()
    with _lock:
        held = _kept.get(address)
    if auth is None and held is not None and held[0] > now:
        return held[1]
    text = judged(send("GET", address, auth=auth, follow=True), redirect=False).body.decode(errors="replace")
    if auth is None:
        with _lock:
            _kept[address] = (now + KEPT_S, text)
            while len(_kept) > 200:
                _kept.pop(next(iter(_kept)))
    return text


def _file(address: str) -> str:
    """`file://` leads into RESOURCES_DIR and nowhere else."""
    folder = settings().resources_dir
    if not folder:
        raise Problem("configuration", f"'{address}': files are read only when RESOURCES_DIR is set")
    parts = urlsplit(address)
    base = Path(folder).resolve()
    path = (base / unquote(f"{parts.netloc}{parts.path}").lstrip("/")).resolve()
    if not path.is_relative_to(base):
        raise Problem("authorization", f"'{address}' leads out of RESOURCES_DIR")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Problem("configuration", f"'{address}': {error.strerror}") from None
