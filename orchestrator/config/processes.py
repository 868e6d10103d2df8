"""Which process a number means: ids are used again, so a process is its id together with the moment it began.

What Linux does not tell in /proc, `ps` and psutil do. `dev/guard.py` runs this without the package and without its dependencies.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

PROC = Path("/proc")


def began(pid: int) -> str | None:
    """When this process began, as the system counts; None when there is none, or only its remains."""
    if pid <= 0:
        return None
    if (PROC / "self" / "stat").exists():
        return _of_linux(pid)
    return _of_ps(pid)


def is_running(pid: int, since: str) -> bool:
    """Is the process with this id still the one that began then?"""
    return bool(since) and began(pid) == since


def _of_linux(pid: int) -> str | None:
    """In ticks since the machine was started: changes of the clock do not move it."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is a name in brackets, and may itself hold blanks and brackets.
    state, *fields = text.rpartition(")")[2].split()
    return None if state in ("Z", "X") else f"{_boot()}/{fields[18]}"


def _boot() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _of_ps(pid: int) -> str | None:
    """Elsewhere (macOS, BSD) `ps` knows it, to the second."""
    found = subprocess.run(
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True, text=True, check=False, env={"LC_ALL": "C", "TZ": "UTC"},
    )  # fmt: skip
    state, _, moment = found.stdout.strip().partition(" ")
    return None if not moment or state.startswith("Z") else moment.strip()


def members(group: int) -> list[int]:
    """The processes of a group."""
    if (PROC / "self" / "stat").exists():
        return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit() and _group_of(entry) == group]
    listed = subprocess.run(["/bin/ps", "-axo", "pid=,pgid=,stat="], capture_output=True, text=True, check=False).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(row[0]) for row in rows if len(row) == 3 and row[1] == str(group) and not row[2].startswith("Z")]


def _group_of(entry: Path) -> int | None:
    try:
        state, *fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else int(fields[1])


def working_in(folder: Path, names: tuple[str, ...]) -> list[int]:
    """The processes of programs with these names whose working folder it is, as far as this user may see."""
    wanted = folder.resolve()
    if (PROC / "self" / "stat").exists():
        return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit() and _works_in(entry, wanted, names)]
    import psutil

    return [one.pid for one in psutil.process_iter(["name", "cwd"]) if one.info["name"] in names and one.info["cwd"] == str(wanted)]


def _works_in(entry: Path, folder: Path, names: tuple[str, ...]) -> bool:
    try:
        # The system cuts names after 15 letters.
        return (entry / "comm").read_text().strip() in [name[:15] for name in names] and (entry / "cwd").readlink() == folder
    except OSError:
        return False
