"""`make test`, `make test-long`, and both one after another for `.ci/run`: stages, each with what it took.

First the machine is measured (`benchmarks/calibrate.py`): times are told in calibrated minutes, too, and tests are as patient as the
machine is slow. A stage that fails does not keep others from being run. What this machine cannot do (another Debian needs root and a
mirror) is told with its reason. After GIVES_UP_S the stage under way is ended, and what was not run is named: that is a failure.

Everything a stage starts keeps its files in one folder, by which whatever it leaves behind is found, told and ended.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
GIVES_UP_S = 75 * 60.0
GRACE_S = 10.0
MOST_PATIENT = 6.0
MOST_RESTARTS = 1
HANGS_S = 900
"""Longer than any test may take where the machine is slow: what is left then holds the interpreter itself."""
GOALS_MIN = {"short": 15, "long": 45, "all": 45}
"""Calibrated minutes. Told, and nothing hangs on it: a machine that others use, too, is no fault."""


def anywhere() -> str:
    """Why this machine cannot run a stage: nothing."""
    return ""


def another_debian() -> str:
    if os.geteuid() != 0:
        return "it makes a system to change into, which only root may"
    if not shutil.which("debootstrap") and not shutil.which("apt-get"):
        return "there is no debootstrap here, and no apt-get to install it"
    if not _does("unshare", "--mount", "--pid", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/mnt"):
        return "this machine gives no namespaces of mounts and processes"
    mirror = subprocess.run([ROOT / ".ci/debian-mirror"], capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    if not mirror:
        return "no mirror of Debian is known here: DEBIAN_MIRROR names one"
    try:
        urllib.request.urlopen(f"{mirror}/dists/trixie/Release", timeout=20).close()  # noqa: S310  # the mirror is whoever runs this's
    except OSError as error:
        return f"the mirror of Debian does not answer: {error}"
    return ""


def layered_debian() -> str:
    if reason := another_debian():
        return reason
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # where the system is kept
        for name in ("lower", "upper", "work", "whole"):
            (Path(folder) / name).mkdir()
        layers = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
        if not _does("unshare", "--mount", "--net", "mount", "-t", "overlay", "overlay", "-o", layers, f"{folder}/whole"):
            return "this machine lays no file systems over one another"
    return ""


def _does(*command: str) -> bool:
    try:
        return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@dataclass(frozen=True)
class Stage:
    name: str
    command: tuple[str, ...]
    cannot: Callable[[], str] = anywhere


def python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *arguments)


def pytest(wanted: str) -> tuple[str, ...]:
    """A test that holds the interpreter itself is ended from outside of it, and named; another process takes the rest."""
    return python(
        "pytest", "-q", "-n", str(processes()), "--dist", "loadgroup", f"--max-worker-restart={MOST_RESTARTS}", f"--randomly-seed={seed()}",
        "-o", f"faulthandler_timeout={HANGS_S}", "-o", "faulthandler_exit_on_timeout=true", "--durations=20", "--durations-min=3", "-m", wanted, "tests",
    )  # fmt: skip


def processes() -> int:
    """Tests mostly wait for processes of their own: two for each processor."""
    return int(os.environ.get("TEST_PROCESSES") or min(8, 2 * (os.cpu_count() or 1)))


def seed() -> int:
    return int(os.environ.setdefault("TEST_SEED", str(random.randrange(2**31))))


def short() -> list[Stage]:
    return [
        Stage("format", python("ruff", "format", "--check", ".")),
        Stage("lint", python("ruff", "check", ".")),
        Stage("types", python("mypy")),
        Stage("security", python("bandit", "-q", "-c", "pyproject.toml", "-r", "api", "workflows", "migrations", "orchestrator")),
        Stage("tests", pytest("not slow and not chaos")),
    ]


def long() -> list[Stage]:
    return [
        Stage("environments", python("tests.environments")),
        Stage("platforms", (".ci/platforms",)),
        Stage("slow tests and chaos", pytest("slow or chaos")),
        Stage("a newcomer's minutes", (".ci/smoke",)),
        Stage("Debian 13", (".ci/debian13",), another_debian),
        Stage("containers", (sys.executable, ".ci/containers"), layered_debian),
    ]


STAGES: dict[str, Callable[[], list[Stage]]] = {"short": short, "long": long, "all": lambda: [*short(), *long()]}


# ── one run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Run:
    def __init__(self, folder: Path, factor: float, gives_up_s: float) -> None:
        self.folder, self.factor = folder, factor
        self.ends_at = time.monotonic() + gives_up_s
        self.told: list[tuple[str, str, float]] = []
        self.environment = {
            **os.environ,
            "TMPDIR": str(folder),
            # Each process of the tests has its share of the processors.
            "TEST_PACE": f"{min(MOST_PATIENT, max(1.0, factor) * max(1.0, processes() / (os.cpu_count() or 1))):.2f}",
            "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        }
        # Hundreds of processes import the same modules: they are compiled once.
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def minutes(self, seconds: float) -> float:
        return seconds / 60 / self.factor

    def run(self, stage: Stage) -> None:
        began = time.monotonic()
        if began > self.ends_at:
            self._tell(stage.name, "not run: no time was left", 0)
        elif reason := stage.cannot():
            self._tell(stage.name, f"not run here: {reason}", 0)
        else:
            print(f"── {stage.name}", flush=True)
            outcome = self._outcome(stage)
            for left in end_left_behind(str(self.folder)):
                print(f"   left behind, and ended: {left}", flush=True)
            self._tell(stage.name, outcome, time.monotonic() - began)

    def _outcome(self, stage: Stage) -> str:
        # A session of its own: nothing of it outlives its end, and a signal to this process is passed on by this process alone.
        process = subprocess.Popen(stage.command, cwd=ROOT, env=self.environment, start_new_session=True)
        try:
            code = process.wait(max(0.0, self.ends_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            end_group(process)
            return "given up: no time was left"
        except BaseException:
            end_group(process)
            raise
        return "passed" if code == 0 else f"failed ({code})"

    def _tell(self, name: str, outcome: str, seconds: float) -> None:
        self.told.append((name, outcome, seconds))
        print(f"── {name}: {outcome}, {seconds:.0f} s, {self.minutes(seconds):.1f} calibrated minutes", flush=True)

    def is_green(self) -> bool:
        return all(outcome == "passed" or outcome.startswith("not run here") for _, outcome, _ in self.told)

    def summary(self, goal_min: float) -> str:
        lines = [f"   {name:<24}{seconds:>6.0f} s{self.minutes(seconds):>7.1f} min  {outcome}" for name, outcome, seconds in self.told]
        whole = sum(seconds for *_, seconds in self.told)
        lines.append(
            f"   {'together':<24}{whole:>6.0f} s{self.minutes(whole):>7.1f} min  (calibrated; wanted: {goal_min:.0f};"
            f" this machine's factor: {self.factor:.2f}; seed: {seed()})"
        )
        return "\n".join(lines)


def end_group(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
            return


def end_left_behind(folder: str) -> list[str]:
    """Processes that were told of the folder, or work in it: those that end by themselves in a moment are not told."""
    psutil.wait_procs(of(folder), timeout=GRACE_S)
    found = of(folder)
    told = []
    for one in found:
        with contextlib.suppress(psutil.Error):
            told.append(f"{one.pid} {' '.join(one.cmdline())[:120]}")
            one.kill()
    psutil.wait_procs(found, timeout=GRACE_S)
    return told


def of(folder: str) -> list[psutil.Process]:
    own = {os.getpid(), *(one.pid for one in psutil.Process().parents())}
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.pid in own or one.status() == psutil.STATUS_ZOMBIE:
                continue
            if any(folder in text for text in (one.environ().get("TMPDIR", ""), one.cwd(), *one.cmdline())):
                found.append(one)
    return found


def calibrated() -> float:
    """How much slower than the machine of reference this one is."""
    try:
        told = subprocess.run(python("benchmarks", "calibrate"), cwd=ROOT, capture_output=True, text=True, check=True, timeout=180).stdout
        print(told, end="", flush=True)
        return float(re.findall(r"^factor ([\d.]+)", told, re.MULTILINE)[0])
    except (subprocess.SubprocessError, IndexError) as error:
        from benchmarks import calibrate

        print(f"only Python was measured: {error}", flush=True)
        return min(calibrate.python() for _ in range(3)) / calibrate.REFERENCE_S["python"]


def main(arguments: Sequence[str]) -> int:
    what = arguments[0] if arguments else "short"
    if what not in STAGES:
        print(f"no such run: {what}; there are {', '.join(STAGES)}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # What is begun in the background of a script ignores interrupts, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    factor = calibrated()
    folder = Path(tempfile.mkdtemp(prefix="tests-"))
    folder.chmod(0o755)
    try:
        run = Run(folder, factor, GIVES_UP_S - (time.monotonic() - began))
        for stage in STAGES[what]():
            run.run(stage)
    finally:
        end_left_behind(str(folder))
        shutil.rmtree(folder, ignore_errors=True)
    print(f"── {'all green' if run.is_green() else 'not green'}\n{run.summary(GOALS_MIN[what])}", flush=True)
    return 0 if run.is_green() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
