"""The locks are whole, on every platform, with what extras bring; and where they were not, it would be told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.environments import LOCKS, lacking, platforms, wanted

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock != "requirements-bench"])
def test_a_lock_holds_what_is_needed_on_every_platform(lock: str) -> None:
    text = (ROOT / f"{lock}.txt").read_text()
    assert [fault for platform in platforms() for fault in lacking(text, wanted(lock), platform)] == []


@pytest.mark.parametrize("name", ["psycopg-binary", "vine", "redis"])
def test_what_an_extra_or_a_package_brings_is_missed(name: str) -> None:
    text = re.sub(rf"^{name}==", "another==", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    told = [fault for platform in platforms() for fault in lacking(text, wanted("requirements"), platform)]
    assert told
    assert all(fault.startswith(f"{name} is needed by ") for fault in told)


def test_a_marker_that_leaves_a_platform_out_is_missed() -> None:
    text = re.sub(r"^(celery==\S+)", r"\1 ; sys_platform == 'linux'", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)
    told = [fault for platform in platforms() for fault in lacking(text, wanted("requirements"), platform)]
    assert told
    assert {fault.partition(" on ")[2].split()[0] for fault in told} == {"darwin"}


def test_an_extra_of_an_extra_is_followed() -> None:
    asked = {
        "a": [Requirement("b[fast]; extra == 'x'")],
        "b": [Requirement("c; extra == 'fast'"), Requirement("d; sys_platform == 'win32'")],
    }
    [platform, *_] = platforms()
    lock = "a==1\nb==1 ; python_version < '4'\n"
    assert lacking(lock, [Requirement("a")], platform, asked.get) == []
    assert lacking(lock, [Requirement("a[x]")], platform, asked.get) == [
        "c is needed by b[fast] on linux x86_64, Python 3.11, and not pinned there"
    ]
    assert lacking(lock + "c==1", [Requirement("a[x]>=2")], platform, asked.get) == [
        "a>=2 is needed by the project on linux x86_64, Python 3.11; 1 is pinned"
    ]
