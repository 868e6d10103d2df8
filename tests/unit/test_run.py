"""The stages of `make test`: each is told, none hides another, and nothing outlives them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import run
from tests.run import Run, Stage, end_left_behind
from tests.stack import until

PASSES, FAILS = Stage("passes", (sys.executable, "-c", "")), Stage("fails", (sys.executable, "-c", "raise SystemExit(3)"))


def test_a_stage_that_fails_keeps_no_other_from_being_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Run(tmp_path, factor=2.0, gives_up_s=60)
    for stage in (PASSES, FAILS, PASSES):
        made.run(stage)
    assert [outcome for _, outcome, _ in made.told] == ["passed", "failed (3)", "passed"]
    assert not made.is_green()
    assert "── fails: failed (3)" in capsys.readouterr().out


def test_what_a_machine_cannot_do_is_told_and_is_no_failure(tmp_path: Path) -> None:
    made = Run(tmp_path, factor=1.0, gives_up_s=60)
    made.run(Stage("elsewhere", FAILS.command, lambda: "it needs a moon"))
    assert made.is_green()
    assert "not run here: it needs a moon" in made.summary(15)


def test_after_its_time_it_gives_up_and_names_what_was_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GRACE_S", 0.5)
    made = Run(tmp_path, factor=1.0, gives_up_s=0.2)
    deaf = "import signal, time\nfor one in (2, 15): signal.signal(one, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(600)"
    made.run(Stage("sleeps", (sys.executable, "-c", deaf)))
    made.run(PASSES)
    assert [outcome for _, outcome, _ in made.told] == ["given up: no time was left", "not run: no time was left"]
    assert not made.is_green()


def test_what_a_stage_leaves_behind_is_found_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GRACE_S", 0.5)
    here = subprocess.Popen(["sleep", "600"], cwd=tmp_path, start_new_session=True)
    told_of_it = subprocess.Popen(["sleep", "601"], env={"TMPDIR": str(tmp_path)}, start_new_session=True)
    other = subprocess.Popen(["sleep", "602"], start_new_session=True)
    try:
        until(lambda: psutil.Process(told_of_it.pid).name() == "sleep", 10)
        assert len(end_left_behind(str(tmp_path))) == 2
        assert not psutil.pid_exists(here.pid)
        assert not psutil.pid_exists(told_of_it.pid)
        assert other.poll() is None
        assert end_left_behind(str(tmp_path)) == []
    finally:
        for one in (here, told_of_it, other):
            one.kill()
            one.wait()


def test_times_are_told_in_minutes_of_the_machine_of_reference(tmp_path: Path) -> None:
    assert Run(tmp_path, factor=2.0, gives_up_s=60).minutes(120) == 1.0


def test_patience_grows_with_slowness_and_never_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_PROCESSES", "1")
    fast, slow = (float(Run(tmp_path, factor=factor, gives_up_s=60).environment["TEST_PACE"]) for factor in (0.5, 3.0))
    assert (fast, slow) == (1.0, 3.0)
