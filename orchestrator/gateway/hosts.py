"""What the gateway serves, in memory and in a file: hostnames with their requests under way, and certificates."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.proxies.plane import Proxy, Route


@dataclass(slots=True)
class Host:
    """A hostname and who is being served."""

    proxy: Proxy
    under_way: int = 0
    draining: bool = False
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    sockets: set[Any] = field(default_factory=set)

    def target_of(self, path: str) -> str | None:
        """Where requests for a path go."""
        best: Route | None = None
        for route in self.proxy.routes:
            prefix = route.path.rstrip("/") or "/"
            inside = path == prefix or path.startswith(prefix if prefix == "/" else f"{prefix}/")
            if inside and (best is None or len(prefix) > len(best.path.rstrip("/"))):
                best = route
        return best.target if best else self.proxy.target

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        self.under_way += 1
        self.quiet.clear()
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way:
                self.quiet.set()


class BadCertificate(ValueError):
    """What OpenSSL says of a chain and its key."""


def context_of(chain_pem: str, key_pem: str) -> ssl.SSLContext:
    """A server's TLS context. OpenSSL reads only files: they are there for a moment, for nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        path.touch(mode=0o600)
        path.write_text(f"{key_pem.strip()}\n{chain_pem.strip()}\n")
        try:
            context.load_cert_chain(path)
        except (ssl.SSLError, ValueError) as error:
            raise BadCertificate(f"the certificate and its key are not usable: {error}") from None
    return context


@dataclass(slots=True)
class Certificate:
    chain: str
    key: str
    context: ssl.SSLContext


class Hosts:
    """All that is served. Changed by the admin API alone, each change written before it is answered."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.by_name: dict[str, Host] = {}
        self.certificates: dict[str, Certificate] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        kept = json.loads(path.read_text())
        for name, pair in kept["certificates"].items():
            self.certificates[name] = Certificate(pair["chain"], pair["key"], context_of(pair["chain"], pair["key"]))
        for data in kept["hosts"]:
            proxy = Proxy.from_json(data)
            self.by_name[proxy.hostname] = Host(proxy)

    def write(self) -> None:
        """All or nothing: a new file takes the old one's place."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {
            "hosts": [host.proxy.to_json() for host in self.by_name.values() if not host.draining],
            "certificates": {name: {"chain": held.chain, "key": held.key} for name, held in self.certificates.items()},
        }
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".gateway-")
        try:
            with os.fdopen(handle, "w") as out:
                json.dump(kept, out)
                out.flush()
                os.fsync(out.fileno())
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def of(self, name: str | None) -> Host | None:
        """By the name a client says, with or without a port, in whatever case."""
        bare = (name or "").strip().lower()
        if bare.startswith("["):
            bare = bare.partition("]")[0] + "]"
        elif bare.count(":") == 1:
            bare = bare.partition(":")[0]
        return self.by_name.get(bare.rstrip("."))

    def context_for(self, hostname: str | None) -> ssl.SSLContext | None:
        host = self.of(hostname)
        if host is None or host.draining or not host.proxy.https:
            return None
        held = self.certificates.get(host.proxy.certificate or "")
        return held.context if held else None
