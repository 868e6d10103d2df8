"""Running a server without the rights of root: PostgreSQL refuses to run as root, so it runs as `nobody` then.

Nothing changes its owner or mode for that but the server's own data folder. Folders above that are closed to others (a project in
/root, say) are passed by a descriptor of the data folder, opened before the rights are dropped; programs below a closed folder are
copied to where others may read. Where neither can be had, a sentence says which folder is in the way, and what can be done.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import WorldError

DESCRIPTORS = Path("/proc/self/fd")
CACHES = (Path("/var/cache"), Path("/Library/Caches"))


class ServerError(WorldError):
    """A server does not start; the message says why."""

    code = "server"


@dataclass(frozen=True, slots=True)
class User:
    """Who a server runs as."""

    name: str
    uid: int
    gid: int

    @property
    def options(self) -> dict[str, Any]:
        # Without a group of its own it would still be in root's groups, for which a folder may be open.
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def unprivileged() -> User | None:
    """Who servers run as when this is root's process; None: they run as whoever this is."""
    if os.geteuid() != 0:
        return None
    held = pwd.getpwnam("nobody")
    return User("nobody", held.pw_uid, held.pw_gid)


def can(user: User, act: str, path: str | Path, *, pass_fds: tuple[int, ...] = ()) -> bool:
    """Ask the system itself, as that user: `x` whether a file can be run, `d` whether a folder can be entered."""
    script = 'test -x "$1" && test -r "$1"' if act == "x" else 'cd "$1"'
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", check=False, pass_fds=pass_fds, **user.options,
    ).returncode == 0  # fmt: skip


def closed_folder(path: Path, user: User) -> Path | None:
    """The first folder on the way that this user may not pass."""
    return next((one for one in reversed([path, *path.parents]) if one.is_dir() and not can(user, "d", one)), None)


def give(folder: Path, user: User) -> None:
    """The folder and what is in it, to that user. Links are not followed: what they lead to is somebody else's."""
    for path in (folder, *folder.rglob("*")):
        if path.lstat().st_uid != user.uid:
            os.chown(path, user.uid, user.gid, follow_symlinks=False)


@dataclass(slots=True)
class Entry:
    """A folder as a server is told of it: by its path, or by a descriptor that is passed on."""

    path: str
    descriptor: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"pass_fds": (self.descriptor,)} if self.descriptor is not None else {}

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def enter(folder: Path, user: User | None) -> Entry:
    """How this user gets into a folder of its own."""
    if user is None or can(user, "d", folder):
        return Entry(str(folder))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    inside = str(DESCRIPTORS / str(descriptor))
    if can(user, "d", inside, pass_fds=(descriptor,)):
        return Entry(inside, descriptor)
    os.close(descriptor)
    raise ServerError(_in_the_way(folder, user))


def _in_the_way(folder: Path, user: User) -> str:
    closed = closed_folder(folder, user) or folder
    mode = stat.S_IMODE(closed.stat().st_mode)
    return (
        f"PostgreSQL does not run as root, and as {user.name} it cannot pass {closed} (mode {mode:04o}). Run this as an ordinary user, set "
        f"ORCHESTRATOR_HOME to a folder that others may pass, set DATABASE_URL to a server of your own, or open it yourself: "
        f"chmod {mode | stat.S_IXOTH:o} {closed}"
    )


def programs_for(root: Path, parts: tuple[str, ...], program: str, user: User | None) -> Path:
    """A folder of programs that this user may run: the one given, or a copy of these parts of it."""
    if user is None or can(user, "x", root / program):
        return root
    found = root / program
    mark = found.stat()
    name = f"{root.parent.name}-{root.name}-{mark.st_size:x}-{mark.st_mtime_ns:x}"
    tried: list[str] = []
    for cache in (*(one for one in CACHES if one.is_dir()), Path(tempfile.gettempdir())):
        copy = cache / "celery-orchestrator" / name
        try:
            _copied(root, parts, copy)
        except OSError as error:
            tried.append(f"{copy}: {error.strerror or error}")
            continue
        inside = copy / root.parent.name / root.name
        if can(user, "x", inside / program):
            return inside
        tried.append(f"{copy}: {user.name} may not run programs there")
    closed = closed_folder(found.parent, user) or found.parent
    raise ServerError(
        f"PostgreSQL does not run as root, and {user.name} may not run its programs in {closed}; a copy could not be made ({'; '.join(tried)})."
        " Run this as an ordinary user, or set DATABASE_URL to a server of your own"
    )


def _copied(root: Path, parts: tuple[str, ...], copy: Path) -> None:
    """These parts of the programs and the libraries beside their package, once, in a folder that only root can change."""
    top = copy.parent
    top.mkdir(mode=0o755, exist_ok=True)
    held = top.lstat()
    if not stat.S_ISDIR(held.st_mode) or held.st_uid != os.geteuid() or held.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(None, "it is not a folder of root's alone")
    top.chmod(0o755)  # whatever umask there is
    if copy.exists():
        return
    made = Path(tempfile.mkdtemp(prefix=f"{copy.name}.", dir=top))
    try:
        package = made / root.parent.name
        for part in parts:
            source, target = root / part, package / root.name / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs"))
            else:
                shutil.copy2(source, target)
        # Where the tools that make wheels for Linux and macOS put libraries: beside the package, and in it.
        beside, within = root.parents[1] / f"{root.parent.name}.libs", root.parent / ".dylibs"
        for libraries, target in ((beside, made / beside.name), (within, package / within.name)):
            if libraries.is_dir():
                shutil.copytree(libraries, target)
        _open_to_all(made)
        made.rename(copy)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        if not copy.exists():  # somebody else was quicker
            raise


def _open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
