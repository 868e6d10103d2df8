"""What the locks are: whole. `python -m tests.environments` builds the environment of development anew by each of three pips.

A lock is installed with `--no-deps`, so whatever it lacks is missed only where it is imported. Two looks find it before: `pip check` in
each environment that was built, and a walk over what the packages themselves say that they need, with their extras, on every platform
that docs/how-to/install.md names. Packages that are installed elsewhere alone are not walked through: `.ci/platforms` resolves them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PIPS = ("pip==22.3", "pip==23.2.1", "pip")
LOCKS = ("requirements", "requirements-embedded", "requirements-dev", "requirements-bench")
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))
LOCKED_EXTRAS = {"requirements": {"tracing"}, "requirements-embedded": {"tracing", "embedded"}}
"""Of ours; the locks of development hold all."""


def platforms() -> Iterator[dict[str, str]]:
    for sys_platform, system, machine in MACHINES:
        for version in VERSIONS:
            yield {
                "implementation_name": "cpython", "implementation_version": f"{version}.0", "os_name": "posix",
                "platform_machine": machine, "platform_python_implementation": "CPython", "platform_release": "", "platform_system": system,
                "platform_version": "", "python_full_version": f"{version}.0", "python_version": version, "sys_platform": sys_platform,
            }  # fmt: skip


@functools.cache
def requirements(text: str) -> tuple[Requirement, ...]:
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return tuple(Requirement(re.split(r"\s--hash|\s#", line)[0]) for line in lines if line.strip() and line.lstrip()[0] not in "#-")


def wanted(name: str) -> list[Requirement]:
    """What is asked of a lock: its own list, those it builds upon, and what the project declares."""
    text = (ROOT / f"{name}.in").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = LOCKED_EXTRAS.get(name, set(project["optional-dependencies"]))
    declared = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    below = [one for lock in re.findall(r"^-r (\S+)\.txt", text, re.MULTILINE) for one in wanted(lock)]
    return [*below, *requirements(text), *map(Requirement, declared)]


@functools.cache
def needs(name: str) -> tuple[Requirement, ...] | None:
    """What a package says that it needs; None: it is not installed here."""
    try:
        return tuple(map(Requirement, importlib.metadata.requires(name) or []))
    except importlib.metadata.PackageNotFoundError:
        return None


def lacking(
    lock: str, roots: list[Requirement], platform: dict[str, str], needs: Callable[[str], Sequence[Requirement] | None] = needs
) -> list[str]:
    """What is needed on a platform and not pinned there, each with who needs it."""
    pins = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in requirements(lock)
        if pin.marker is None or pin.marker.evaluate(platform)
    }
    found: list[str] = []
    seen: set[tuple[str, str]] = set()
    left = [(one, "", "the project") for one in roots]
    while left:
        need, extra, by = left.pop()
        if need.marker is not None and not need.marker.evaluate({**platform, "extra": extra}):
            continue
        name = canonicalize_name(need.name)
        where = f"{platform['sys_platform']} {platform['platform_machine']}, Python {platform['python_version']}"
        if name not in pins:
            found.append(f"{name} is needed by {by} on {where}, and not pinned there")
            continue
        if not need.specifier.contains(pins[name], prereleases=True):
            found.append(f"{name}{need.specifier} is needed by {by} on {where}; {pins[name]} is pinned")
        for one in ("", *sorted(need.extras)):
            if (name, one) in seen:
                continue
            seen.add((name, one))
            told = f"{need.name}[{one}]" if one else need.name
            left += [(below, one, told) for below in needs(name) or ()]
    return sorted(set(found))


def built(pip: str, folder: Path) -> str:
    """Why the environment could not be built by this pip; empty: it was, and is whole."""
    venv = folder / re.sub(r"\W+", "-", pip)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("VIRTUAL_ENV", None)
    steps = (
        [getattr(sys, "_base_executable", sys.executable), "-m", "venv", str(venv)],
        [str(venv / "bin/python"), "-m", "pip", "install", "-q", *(["--upgrade"] if pip == "pip" else []), pip],
        ["make", "--no-print-directory", f"VENV={venv}", str(venv / ".dev")],
        [str(venv / "bin/python"), "-m", "pip", "check"],
        [str(venv / "bin/python"), "-c", "import orchestrator.api, orchestrator.cli, orchestrator.app"],
    )
    for step in steps:
        done = subprocess.run(step, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
        if done.returncode:
            return f"{' '.join(step)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    used = subprocess.run([venv / "bin/python", "-m", "pip", "--version"], text=True, capture_output=True, check=True).stdout.split()[1]
    print(f"built by pip {used}", flush=True)
    return ""


def main() -> int:
    faults = [
        fault for lock in LOCKS for platform in platforms() for fault in lacking((ROOT / f"{lock}.txt").read_text(), wanted(lock), platform)
    ]
    print("\n".join(sorted(set(faults))) or "the locks hold what is needed on every platform", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for pip in PIPS:
            began = time.monotonic()
            if said := built(pip, Path(folder)):
                faults.append(pip)
                print(f"FAILS with {pip} after {time.monotonic() - began:.0f} s: {said}", flush=True)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
