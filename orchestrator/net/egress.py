"""Where calls may go. A name is resolved once, its address is judged, and that very address is connected to: a name that
answers otherwise the second time (DNS rebinding) gains nothing, and every redirect is judged anew.

    EGRESS_DENY      hosts, *.suffixes and networks that are never called; link-local and metadata addresses always are not
    EGRESS_ALLOW     when given, nothing else is called
    EGRESS_PRIVATE   whether loopback and private networks may be called (true by default)
"""

from __future__ import annotations

import fnmatch
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpcore

from orchestrator.config.process import settings
from orchestrator.net.problems import Problem

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Link-local holds the metadata services of the clouds; the others are theirs, too.
NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::254/128",
        "100.100.100.200/32",
        "0.0.0.0/8",
        "224.0.0.0/4",
        "ff00::/8",
        "240.0.0.0/4",
    )
)


@dataclass(frozen=True, slots=True)
class Policy:
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    private: bool = True

    @staticmethod
    def of_process() -> Policy:
        held = settings()
        return Policy(held.egress_allow, held.egress_deny, held.egress_private)

    def check(self, host: str, address: Address) -> None:
        """Raises a problem when this host, at this address, may not be called."""
        mapped = getattr(address, "ipv4_mapped", None)
        real: Address = mapped or address
        if any(real in network for network in NEVER if network.version == real.version):
            raise refused(host, f"{real} is a link-local, metadata or reserved address")
        if _names(self.deny, host, real):
            raise refused(host, "it is on EGRESS_DENY")
        if self.allow:
            if not _names(self.allow, host, real):
                raise refused(host, "it is not on EGRESS_ALLOW")
        elif not self.private and (real.is_private or real.is_loopback):
            raise refused(host, f"{real} is in a private network and EGRESS_PRIVATE is off")


def refused(host: str, why: str) -> Problem:
    return Problem("authorization", f"calling '{host}' is not allowed: {why}", title="Egress not allowed")


def _names(patterns: Iterable[str], host: str, address: Address) -> bool:
    host = host.lower().rstrip(".")
    for pattern in patterns:
        try:
            network = ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            if fnmatch.fnmatchcase(host, pattern):
                return True
            continue
        if network.version == address.version and address in network:
            return True
    return False


def resolved(host: str, port: int, policy: Policy) -> list[str]:
    """The addresses of a host that may be called; a problem when there is none."""
    bare = host.strip("[]")
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        raise httpcore.ConnectError(f"'{host}' has no address: {error}") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        # One bad address among good ones is a trap, not a choice.
        policy.check(bare, ipaddress.ip_address(address.split("%")[0]))
    return addresses


class PinnedBackend(httpcore.NetworkBackend):
    """Connects to the address that was judged. TLS still speaks to, and checks, the name."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options: Any = None
    ) -> httpcore.NetworkStream:
        failed: Exception | None = None
        for address in resolved(host, port, self.policy):
            try:
                return self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(f"'{host}' has no address")

    def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Any = None) -> httpcore.NetworkStream:
        raise refused(path, "a socket file is no place on the network")

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)
