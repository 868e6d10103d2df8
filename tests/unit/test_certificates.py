"""Certificates: what is issued and imported, what is refused, and what is due."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from orchestrator.errors import Invalid, NotFound
from orchestrator.proxies.certificates import CertificateStore


@pytest.fixture
def store(tmp_path: Path) -> CertificateStore:
    return CertificateStore(tmp_path / "certificates")


def test_a_certificate_is_issued_found_and_renewed_with_another_key(store: CertificateStore) -> None:
    made = store.issue("api.example.com", ["api.example.com", "*.example.org", "127.0.0.1"])
    assert made.status == "active"
    assert store.get("api.example.com") == made
    assert [store.find(name) is not None for name in ("api.example.com", "x.example.org", "example.org", "a.b.example.org", "127.0.0.1")] == [
        True, True, False, False, True,
    ]  # fmt: skip
    renewed = store.renew("api.example.com")
    assert renewed.serial != made.serial
    assert renewed.key != made.key
    assert renewed.domains == made.domains
    folder = store.folder / "api.example.com"
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])
    assert "PRIVATE" not in str(made.about())


def test_a_foreign_certificate_is_imported_and_not_renewed_here(store: CertificateStore, tmp_path: Path) -> None:
    other = CertificateStore(tmp_path / "elsewhere").issue("shop.example.com")
    made = store.put("shop", other.chain, other.key)
    assert (made.serial, made.self_signed, made.domains) == (other.serial, False, ("shop.example.com",))
    with pytest.raises(Invalid, match="issued elsewhere"):
        store.renew("shop")
    assert store.due(1000) == []
    third = CertificateStore(tmp_path / "third").issue("shop.example.com")
    with pytest.raises(Invalid, match="key is not"):
        store.put("shop", other.chain, third.key)
    with pytest.raises(Invalid, match="no PEM"):
        store.put("shop", "nonsense", other.key)
    assert store.get("shop").serial == other.serial


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", ".hidden", "x" * 300, "a\x00b"])
def test_names_lead_nowhere_else(store: CertificateStore, name: str) -> None:
    with pytest.raises((Invalid, NotFound)):
        store.get(name)
    with pytest.raises(Invalid):
        store.issue(name, ["a.example.com"])


def test_what_ends_soon_is_due_and_what_has_ended_is_not_used(store: CertificateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.issue("soon.example.com", days=10)
    store.issue("late.example.com", days=80)
    assert [one.name for one in store.due()] == ["soon.example.com"]

    real = dt.datetime

    class Later(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return real.now(tz) + dt.timedelta(days=20)

    monkeypatch.setattr("orchestrator.proxies.certificates.dt.datetime", Later)
    assert store.get("soon.example.com").status == "expired"
    assert store.find("soon.example.com") is None
    store.delete("soon.example.com")
    with pytest.raises(NotFound):
        store.get("soon.example.com")
