"""The parts of the embedded stack by themselves: who a process is, what a folder holds, what changed, and what is done without Linux."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.config import processes
from orchestrator.config.processes import began, is_running, members, working_in
from orchestrator.config.settings import Settings
from orchestrator.config.stack import running_stack, written_stack
from orchestrator.dev import guard, privileges, state
from orchestrator.dev.ending import SERVER, Process, end, process
from orchestrator.dev.ports import any_free, usual_or_free
from orchestrator.dev.servers import Postgres, Redis, ServerError
from orchestrator.dev.state import FolderError, Home
from orchestrator.dev.supervisor import Deaths, Supervisor, UpError, down
from orchestrator.dev.watching import Watch, needs_a_new_start, package_folder
from tests.stack import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["as Linux tells", "as ps tells"])
def told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to ask the system: /proc, and what macOS has."""
    if request.param == "as ps tells":
        monkeypatch.setattr(processes, "PROC", Path("/nonexistent/proc"))
    return str(request.param)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child, both in a group of their own."""
    made = subprocess.Popen(["/bin/sh", "-c", "sleep 600 & wait"], start_new_session=True)
    until(lambda: len(members(made.pid)) == 2, 10)
    yield made
    with contextlib.suppress(ProcessLookupError):
        os.killpg(made.pid, signal.SIGKILL)
    made.wait()


# ── who a process is ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_is_its_number_and_the_moment_it_began(told: str, sleeper: subprocess.Popen[bytes]) -> None:
    since = began(sleeper.pid)
    assert since
    assert is_running(sleeper.pid, since)
    assert not is_running(sleeper.pid, "another moment")
    assert not is_running(os.getpid(), since)
    assert len(members(sleeper.pid)) == 2
    os.killpg(sleeper.pid, signal.SIGKILL)
    # Dead, and not yet waited for: nothing that runs.
    until(lambda: began(sleeper.pid) is None, 5)
    until(lambda: members(sleeper.pid) == [], 5)
    assert began(0) is None
    assert began(-1) is None


def test_programs_are_found_by_the_folder_they_work_in(told: str, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], cwd=tmp_path) as one:
        until(lambda: working_in(tmp_path, ("sleep",)) == [one.pid], 5)
        assert working_in(tmp_path, ("postgres",)) == []
        assert working_in(tmp_path.parent, ("sleep",)) == []
        one.kill()


def test_what_was_started_is_ended_with_its_children_and_nothing_else_is(told: str, sleeper: subprocess.Popen[bytes]) -> None:
    family = members(sleeper.pid)
    stranger = Process("stale", os.getpid(), "an earlier moment", SERVER)
    assert end([process("sleeper", sleeper.pid), stranger]) == []
    sleeper.wait(5)
    until(lambda: not [pid for pid in family if began(pid)], 5)


def test_who_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "trap '' TERM; echo set; while true; do sleep 0.05; done"
    with subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE) as stubborn:
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
        assert end([process("stubborn", stubborn.pid)], hurry=lambda: True, reap=lambda: None) == ["stubborn"]
        assert stubborn.wait(5) == -signal.SIGKILL


def test_the_guard_needs_nothing_but_the_standard_library() -> None:
    script = guard.command(Path("/somewhere"))[4].replace("main()", "print(sorted(m for m in sys.modules if 'orchestrator' in m))")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(ROOT / "orchestrator")], capture_output=True, text=True, check=True
    )
    assert "orchestrator.dev.guard" in done.stdout
    assert "definition" not in done.stdout


def test_the_guard_ends_what_it_was_told_of_when_its_supervisor_dies(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    file = tmp_path / "stack.json"
    file.write_text("{}")
    with subprocess.Popen(guard.command(tmp_path), stdin=subprocess.PIPE, text=True) as watching:
        assert watching.stdin is not None
        until(lambda: _ignores(watching.pid, signal.SIGHUP), 10)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            watching.send_signal(number)  # as a terminal that is closed does to all of its processes
        watching.stdin.write(json.dumps({"processes": [], "files": []}) + "\n")
        watching.stdin.write(json.dumps({"processes": [process("sleeper", sleeper.pid).to_json()], "files": [str(file)]}) + "\n")
        watching.stdin.flush()
        assert sleeper.poll() is None
        watching.stdin.close()
        sleeper.wait(20)
        assert watching.wait(20) == 0
    assert not file.exists()


def _ignores(pid: int, number: signal.Signals) -> bool:
    mask = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn"))
    return bool(int(mask.split()[1], 16) & 1 << (number - 1))


def test_a_guard_that_is_dismissed_ends_nothing(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    told = json.dumps({"processes": [process("sleeper", sleeper.pid).to_json()], "files": []})
    subprocess.run(guard.command(tmp_path), input=f"{told}\nnull\n", text=True, check=True, timeout=20)
    assert sleeper.poll() is None


# ── the folder ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stack_whose_number_is_another_programs_now_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    home = Home(tmp_path)
    home.write_stack({"REDIS_URL": "redis://here"})
    assert running_stack() == {"REDIS_URL": "redis://here"}
    held = json.loads(home.stack_file.read_text())
    home.stack_file.write_text(json.dumps({**held, "began": "another moment"}))
    assert running_stack() == {}
    for text in ("", "[]", "{}", '{"pid": "x"}', "\x00"):
        home.stack_file.write_text(text)
        assert written_stack(home.stack_file) is None
        assert running_stack() == {}


def test_one_stack_at_a_time_and_one_that_is_being_stopped_is_waited_for(tmp_path: Path) -> None:
    first, second = Home(tmp_path), Home(tmp_path)
    said: list[str] = []
    first.take(said.append)
    first.write_stack({})
    with pytest.raises(FolderError, match=rf"already runs from .*process {os.getpid()}.*orchestrator down"):
        second.take(said.append)
    assert first.stack_file.exists()
    # Its supervisor is dead, and the guard still at work.
    held = json.loads(first.stack_file.read_text())
    first.stack_file.write_text(json.dumps({**held, "began": "another moment"}))
    timer = threading.Timer(0.3, first.release)
    timer.start()
    second.take(said.append)
    assert said == ["the stack that ran here is being stopped; waiting for it"]
    second.release()
    timer.join()


def test_a_guard_that_does_not_come_to_its_end_is_ended_by_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(state, "STOPPING_S", 0.2)
    first, second = Home(tmp_path), Home(tmp_path)
    first.take(print)
    first.write_stack({})
    held = json.loads(first.stack_file.read_text())
    first.stack_file.write_text(json.dumps({**held, "began": "another moment"}))
    with subprocess.Popen(["sleep", "600"], pass_fds=(first.lock_descriptor,), start_new_session=True) as stuck:
        first.release()  # the lock is now that process's alone
        second.write_processes([process("guard", stuck.pid)])
        second.take(print)
        assert stuck.wait(5) == -signal.SIGKILL
    second.release()


def test_a_disk_without_room_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state.shutil, "disk_usage", lambda _: type("usage", (), {"free": 10 * 1024 * 1024})())
    with pytest.raises(FolderError, match=r"Only 10 MiB are free where .* lies, and PostgreSQL needs 200"):
        Home(tmp_path).take(print)


def test_what_is_left_behind_is_ended_by_down_and_by_nobody_twice(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    home = Home(tmp_path)
    home.write_processes([process("sleeper", sleeper.pid), Process("gone", 2**22 + 1, "x"), Process("other", os.getpid(), "x")])
    said: list[str] = []
    assert down(tmp_path, said.append)
    assert said == ["ending 1 processes that an earlier run left behind: sleeper"]
    sleeper.wait(5)
    assert not down(tmp_path, said.append)
    assert not down(tmp_path / "nowhere", said.append)


# ── servers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_whose_port_is_taken_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServerError, match=r"redis does not start: .*(bind|listen).*\(see .*redis\.log\)"):
            Redis(tmp_path / "redis", taken.getsockname()[1]).start()


def test_a_password_is_made_once_and_is_for_its_owners_eyes(tmp_path: Path) -> None:
    one, two = Redis(tmp_path / "redis", any_free()), Redis(tmp_path / "redis", any_free())
    assert one.password == two.password != Redis(tmp_path / "other", any_free()).password
    assert (tmp_path / "redis.password").stat().st_mode & 0o077 == 0
    assert Redis(tmp_path / "open", any_free(), password="").url.startswith("redis://127.0.0.1:")


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a server as somebody else")


@as_root
def test_without_descriptors_a_closed_folder_is_named_with_what_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where a path cannot lead through a descriptor."""
    monkeypatch.setattr(privileges, "DESCRIPTORS", Path("/nonexistent/fd"))
    open_to_all = Path("/")
    closed = tmp_path / "closed"
    (closed / "data").mkdir(parents=True)
    for one in (tmp_path, *tmp_path.parents):
        if one.stat().st_mode & 0o001 == 0:
            open_to_all = one
    user = privileges.unprivileged()
    assert user is not None
    before = closed.stat().st_mode
    closed.chmod(0o750)
    first = open_to_all if open_to_all != Path("/") else closed
    with pytest.raises(ServerError) as refused:
        privileges.enter(closed / "data", user)
    assert "cannot pass /" in str(refused.value)
    assert f"chmod {(first.stat().st_mode & 0o777) | 0o001:o} " in str(refused.value)
    closed.chmod(before)


@as_root
def test_links_in_a_data_folder_are_not_followed_when_it_is_given_away(tmp_path: Path) -> None:
    mine, data = tmp_path / "mine", tmp_path / "data"
    mine.write_text("")
    data.mkdir()
    (data / "link").symlink_to(mine)
    user = privileges.unprivileged()
    assert user is not None
    privileges.give(data, user)
    assert data.stat().st_uid == user.uid
    assert (data / "link").lstat().st_uid == user.uid
    assert mine.stat().st_uid == 0


# ── the supervisor ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_keeps_dying_is_started_less_and_less_often_and_what_lived_long_at_once() -> None:
    deaths = Deaths()
    assert [deaths.count(0.1) for _ in range(8)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert not deaths.is_time
    assert deaths.count(31.0) == 0.0
    assert deaths.is_time


@pytest.mark.parametrize("kind", [Redis, Postgres])
def test_a_port_that_is_taken_at_the_last_moment_gives_way_to_another(tmp_path: Path, kind: type[Redis] | type[Postgres]) -> None:
    """By a server of the same kind, which answers in its place and asks for another password."""
    other = kind(tmp_path / "other/data", any_free())
    server = kind(tmp_path / "own/data", other.port)
    supervisor = Supervisor(tmp_path / "home", echo=lambda _: None)
    other.start()
    try:
        with pytest.raises(ServerError, match="does not start"):
            server.start()
        supervisor.home.take(print)
        supervisor._start_on_a_free_port(server)
        assert server.port != other.port
        assert server.is_running()
        assert other.is_running()
    finally:
        for one in (server, other):
            one.stop()
        supervisor.stop()


def test_a_default_port_that_is_taken_gives_way_and_a_chosen_one_does_not(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, echo=said.append)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        moved = supervisor._ports(Settings(port=port), set())
        assert moved["PORT"] != str(port)
        assert f"port {port} is in use by another program; PORT is {moved['PORT']} for this run" in said[0]
        with pytest.raises(UpError, match=f"Port {port} is in use by another program: stop it, or set PORT to a free port"):
            supervisor._ports(Settings(port=port), {"port"})


# ── files that change ───────────────────────────────────────────────────────────────────────────────────────────────


def test_changes_of_code_and_of_documents_in_packages_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        name: tmp_path / name
        for name in ("flows_x/__init__.py", "flows_x/a.py", "flows_x/deep/doc.yaml", "helper.py", "data.json", ".hidden/b.py", "venv/c.py")
    }
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    (tmp_path / "venv/pyvenv.cfg").write_text("")
    watch = Watch(tmp_path, ["flows_x", "not_there"])

    def change(name: str, act: object = None) -> set[str]:
        file = files[name]
        file.write_text(file.read_text() + "1") if act is None else file.unlink()
        watch._next = 0.0
        return {str(path.relative_to(tmp_path)) for path in watch.changed()}

    for name in ("flows_x/a.py", "flows_x/deep/doc.yaml", "helper.py"):
        assert change(name) == {name}
    for name in ("data.json", ".hidden/b.py", "venv/c.py"):
        assert change(name) == set()
    assert change("flows_x/a.py", "gone") == {"flows_x/a.py"}


def test_this_projects_own_code_needs_a_new_start_and_its_workflows_do_not() -> None:
    own = ROOT / "orchestrator"
    assert needs_a_new_start({own / "engine/walk.py"})
    assert not needs_a_new_start({own / "workflows/hello.py", ROOT / "shop.py"})
    assert package_folder("tests.workflows") == ROOT / "tests/workflows"
    assert package_folder("no_such_module_x") is None


@pytest.mark.skipif(sys.platform != "linux", reason="names without files are Linux'")
def test_of_two_that_start_at_the_same_time_one_has_the_usual_port() -> None:
    """Before either listens on it."""
    usual = any_free()
    program = (
        f"from orchestrator.dev.ports import usual_or_free; print(usual_or_free({usual}), usual_or_free({usual}), flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == f"{usual} {usual}\n"
        mine = usual_or_free(usual)
        assert mine != usual
        other.communicate("\n")
    assert usual_or_free(usual) == usual
