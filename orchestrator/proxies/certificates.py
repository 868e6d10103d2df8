"""Certificates and their keys, in a folder: issued here (self-signed) or imported as PEM, renewed before they end.

    CERTIFICATES_DIR/<name>/fullchain.pem, privkey.pem (0600), about.json

A certificate is *active* when its time has come and is not over and its key fits; *pending* or *expired* else. Nothing
here touches a proxy: a certificate that is ready is announced by an event.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.errors import Fault, Invalid, NotFound

NAME = re.compile(r"[A-Za-z0-9*_-][A-Za-z0-9.*_-]{0,199}")
LASTS_DAYS = 90
RENEW_BEFORE_DAYS = 30


@dataclass(frozen=True, slots=True)
class Certificate:
    name: str
    chain: str
    key: str
    domains: tuple[str, ...]
    serial: str
    begins: dt.datetime
    ends: dt.datetime
    self_signed: bool

    @property
    def status(self) -> str:
        now = dt.datetime.now(dt.UTC)
        return "pending" if now < self.begins else "expired" if now > self.ends else "active"

    def covers(self, hostname: str) -> bool:
        parent = hostname.partition(".")[2]
        return any(domain in (hostname, f"*.{parent}") for domain in self.domains)

    def about(self) -> dict[str, Any]:
        """All but the key."""
        return {
            "name": self.name,
            "status": self.status,
            "domains": list(self.domains),
            "serial": self.serial,
            "not_before": self.begins.isoformat(),
            "not_after": self.ends.isoformat(),
            "self_signed": self.self_signed,
        }


class CertificateStore:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def issue(self, name: str, domains: Sequence[str] = (), *, days: int = LASTS_DAYS) -> Certificate:
        """A self-signed one, for where nobody else vouches: with a fresh key each time."""
        names = list(dict.fromkeys(domains or [name]))
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([_san(one) for one in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(key, hashes.SHA256())
        )
        chain = made.public_bytes(serialization.Encoding.PEM).decode()
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
        return self._put(name, chain, private, self_signed=True)

    def put(self, name: str, chain_pem: str, key_pem: str) -> Certificate:
        """One that somebody else issued. A key that does not fit, or what is no PEM, is refused."""
        return self._put(name, chain_pem, key_pem, self_signed=False)

    def get(self, name: str) -> Certificate:
        folder = self._of(name)
        try:
            chain, key = (folder / "fullchain.pem").read_text(), (folder / "privkey.pem").read_text()
            about = json.loads((folder / "about.json").read_text())
        except FileNotFoundError:
            raise NotFound("certificate", name, "`orchestrator certificates` lists them") from None
        return _read(name, chain, key, self_signed=bool(about.get("self_signed")))

    def find(self, hostname: str) -> Certificate | None:
        """An active one for a hostname; of several the one that lasts longest."""
        found = [one for one in self.all() if one.status == "active" and one.covers(hostname)]
        return max(found, key=lambda one: one.ends, default=None)

    def all(self) -> list[Certificate]:
        if not self.folder.is_dir():
            return []
        return [self.get(path.name) for path in sorted(self.folder.iterdir()) if (path / "about.json").exists()]

    def due(self, before_days: float = RENEW_BEFORE_DAYS) -> list[Certificate]:
        """Those that end soon and that can be renewed here."""
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(days=before_days)
        return [one for one in self.all() if one.self_signed and one.ends < soon]

    def renew(self, name: str) -> Certificate:
        held = self.get(name)
        if not held.self_signed:
            raise Invalid([Fault(name, "was issued elsewhere: import its successor under the same name")], "renewal")
        return self.issue(name, held.domains)

    def delete(self, name: str) -> None:
        folder = self._of(name)
        for file in ("about.json", "privkey.pem", "fullchain.pem"):
            (folder / file).unlink(missing_ok=True)
        if folder.is_dir():
            folder.rmdir()

    def _of(self, name: str) -> Path:
        if not NAME.fullmatch(name) or ".." in name:
            raise Invalid([Fault("cert_name", f"'{name[:60]}' is no name of a certificate")], "certificate")
        return self.folder / name

    def _put(self, name: str, chain: str, key: str, *, self_signed: bool) -> Certificate:
        made = _read(name, chain, key, self_signed=self_signed)
        folder = self._of(name)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The key first and `about` last: a reader that finds `about` finds the rest.
        for file, text in (("privkey.pem", key), ("fullchain.pem", chain), ("about.json", json.dumps({"self_signed": self_signed}))):
            _replace(folder / file, text)
        return made


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    with os.fdopen(handle, "w") as out:
        out.write(text)
    Path(name).replace(path)


def _read(name: str, chain: str, key: str, *, self_signed: bool) -> Certificate:
    try:
        first = x509.load_pem_x509_certificates(chain.encode())[0]
        private: Any = serialization.load_pem_private_key(key.encode(), None)
    except (ValueError, TypeError, IndexError) as error:
        raise Invalid([Fault(name, f"is no PEM certificate with an unencrypted key: {error}")], "certificate") from None
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if first.public_key().public_bytes(*form) != private.public_key().public_bytes(*form):
        raise Invalid([Fault(name, "the key is not the certificate's")], "certificate")
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        domains = [str(one) for one in names.get_values_for_type(x509.DNSName)]
        domains += [str(one) for one in names.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        domains = [str(one.value) for one in first.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return Certificate(
        name,
        chain,
        key,
        tuple(domain.lower() for domain in domains),
        f"{first.serial_number:X}",
        first.not_valid_before_utc,
        first.not_valid_after_utc,
        self_signed,
    )


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
