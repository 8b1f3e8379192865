"""Orderly ends run what was left to do, once, in each kind of process; sightings are shared; the rest of the door."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dibs.runtime import Runtime
from dibs.runtime.sightings import REMEMBERED_MAX, Sightings
from dibs.runtime.system import SystemRuntime, system

SCRIPT = """
import multiprocessing, os, signal, sys, threading, time
from dibs.runtime.system import system

def note(text):
    with open({log!r}, "a") as file:
        file.write(text + "\\n")

def work():
    system().at_exit(lambda: note("worker left"))

def hang(ready):
    work()
    system().keeps(1, True)
    ready.set()
    time.sleep(20)

if __name__ == "__main__":
    {body}
"""


def run(tmp_path: Path, body: str) -> tuple[int, list[str]]:
    """Exit status of a program, and what it and its workers noted."""
    log = tmp_path / "log"
    log.touch()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(log=str(log), body=body.replace("\n", "\n    ")))
    environment = {**os.environ, "DIBS_RUNTIME_DIR": str(tmp_path / "runtime")}
    ran = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.returncode, log.read_text().splitlines()


def test_the_end_of_the_interpreter_calls_back_newest_first(tmp_path: Path) -> None:
    status, log = run(tmp_path, 'system().at_exit(lambda: note("one"))\nsystem().at_exit(lambda: note("two"))')
    assert (status, log) == (0, ["two", "one"])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_end_of_a_worker_calls_back_in_the_worker_only(tmp_path: Path, method: str) -> None:
    body = f"""system().at_exit(lambda: note("parent left"))
worker = multiprocessing.get_context({method!r}).Process(target=work)
worker.start()
worker.join()
note("joined")"""
    assert run(tmp_path, body) == (0, ["worker left", "joined", "parent left"])


def test_the_end_of_a_plain_fork_calls_back_in_the_child_only(tmp_path: Path) -> None:
    body = """system().at_exit(lambda: note("parent left"))
if os.fork() == 0:
    work()
    sys.exit(0)
os.wait()
note("joined")"""
    assert run(tmp_path, body) == (0, ["worker left", "joined", "parent left"])


def test_sigterm_calls_back_while_something_is_held_and_still_kills(tmp_path: Path) -> None:
    body = """system().at_exit(lambda: note("left"))
system().keeps(1, True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
note("not killed")"""
    assert run(tmp_path, body) == (-signal.SIGTERM, ["left"])


def test_sigterm_is_not_caught_while_nothing_is_held(tmp_path: Path) -> None:
    # A caught signal waits for the main thread: an idle worker of a pool would never hear `terminate`.
    body = """system().at_exit(lambda: note("left"))
system().keeps(1, True)
note("caught" if callable(signal.getsignal(signal.SIGTERM)) else "default")
system().keeps(1, False)
note("default" if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else "caught")
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)"""
    assert run(tmp_path, body) == (-signal.SIGTERM, ["caught", "default"])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_terminating_a_worker_calls_back_in_it(tmp_path: Path, method: str) -> None:
    body = f"""system().at_exit(lambda: note("parent left"))
context = multiprocessing.get_context({method!r})
ready = context.Event()
worker = context.Process(target=hang, args=(ready,))
worker.start()
ready.wait()
worker.terminate()
worker.join()
note(f"status {{worker.exitcode}}")"""
    assert run(tmp_path, body) == (0, ["worker left", "status -15", "parent left"])


def test_sigterm_waits_for_a_hanging_callback_only_so_long(tmp_path: Path) -> None:
    body = """from dibs.runtime import leaving
leaving.SIGTERM_LIMIT_S = 0.1
system().at_exit(lambda: time.sleep(20))
system().keeps(1, True)
os.kill(os.getpid(), signal.SIGTERM)
note("not killed")"""
    started = time.monotonic()
    assert run(tmp_path, body) == (-signal.SIGTERM, [])
    assert time.monotonic() - started < 15


def test_a_handler_of_the_applications_own_is_left_alone(tmp_path: Path) -> None:
    body = """signal.signal(signal.SIGTERM, lambda *_: note("own handler"))
system().at_exit(lambda: note("left"))
os.kill(os.getpid(), signal.SIGTERM)"""
    assert run(tmp_path, body) == (0, ["own handler", "left"])


def test_a_callback_that_fails_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    body = """import logging
logging.disable()
system().at_exit(lambda: note("left"))
system().at_exit(lambda: 1 / 0)"""
    assert run(tmp_path, body) == (0, ["left"])


def test_after_a_fork_callbacks_run_in_the_child_and_methods_are_held_weakly(runtime: SystemRuntime) -> None:
    class Owner:
        calls = 0

        def forked(self) -> None:
            Owner.calls += 1

    kept, dropped = Owner(), Owner()
    runtime.after_fork(kept.forked)
    runtime.after_fork(dropped.forked)
    del dropped
    child = os.fork()
    if child == 0:
        os._exit(Owner.calls)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert Owner.calls == 0


# --- sightings ---


def test_the_first_sighting_is_shared_by_processes(tmp_path: Path) -> None:
    mine = SystemRuntime(runtime_dir=str(tmp_path / "runtime"))
    child = os.fork()
    if child == 0:
        SystemRuntime(runtime_dir=str(tmp_path / "runtime")).first_seen("store", "keys/a", "v 1")
        os._exit(0)
    os.waitpid(child, 0)
    between = time.monotonic()
    assert mine.first_seen("store", "keys/a", "v 1") < between
    assert mine.first_seen("store", "keys/a", "v 2") >= between, "another version"
    assert mine.first_seen("store", "keys/b", "v 1") >= between, "another record"
    assert mine.first_seen("other/store", "keys/a", "v 1") >= between, "another store"
    other_boot = SystemRuntime(boot="other", runtime_dir=str(tmp_path / "runtime"))
    assert other_boot.first_seen("store", "keys/b", "v 1") >= between, "another boot"


def test_a_sighting_is_remembered_and_starts_anew_when_the_version_changes(tmp_path: Path) -> None:
    sightings = Sightings(str(tmp_path), "boot")
    assert sightings.first_seen("s", "n", "1", 10.0, "a") == 10.0
    assert sightings.first_seen("s", "n", "1", 20.0, "b") == 10.0
    assert Sightings(str(tmp_path), "boot").first_seen("s", "n", "1", 30.0, "c") == 10.0
    assert sightings.first_seen("s", "n", "2", 40.0, "d") == 40.0
    assert Sightings(str(tmp_path), "boot").first_seen("s", "n", "2", 39.0, "e") == 39.0, "not from the future"


@pytest.mark.parametrize("text", ["", "1", "1 x boot", "1 nan boot", "1 -5 boot", "\0" * 100, "1 5 other", "1  boot"])
def test_a_broken_sighting_is_ignored(tmp_path: Path, text: str) -> None:
    Sightings(str(tmp_path), "boot").first_seen("s", "n", "1", 5.0, "a")
    [file] = (tmp_path / "s").iterdir()
    file.write_text(text)
    assert Sightings(str(tmp_path), "boot").first_seen("s", "n", "1", 10.0, "b") == 10.0


def test_sightings_work_without_a_directory_and_within_bounds() -> None:
    sightings = Sightings(None, "boot")
    for number in range(REMEMBERED_MAX + 10):
        sightings.first_seen("s", str(number), "1", float(number), "a")
    assert sightings.first_seen("s", "9", "1", 1e6, "a") == 1e6, "the oldest were forgotten"
    assert sightings.first_seen("s", "100", "1", 1e6, "a") == 100.0
    assert len(sightings._seen) <= REMEMBERED_MAX
    gone = Sightings("/proc/nowhere", "boot")
    assert gone.first_seen("s", "n", "1", 1.0, "a") == 1.0


# --- the rest of the door ---


def test_the_runtime_directory_is_private(tmp_path: Path) -> None:
    SystemRuntime(runtime_dir=str(tmp_path / "runtime"))
    assert stat.S_IMODE(os.stat(tmp_path / "runtime").st_mode) == 0o700


@pytest.mark.parametrize("kind", ["writable by the group", "writable by all", "a link", "a file"])
def test_a_runtime_directory_that_others_may_write_is_not_used(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "runtime"
    match kind:
        case "a link":
            (tmp_path / "elsewhere").mkdir()
            path.symlink_to("elsewhere")
        case "a file":
            path.touch()
        case _:
            path.mkdir()
            path.chmod(0o770 if "group" in kind else 0o707)
    runtime = SystemRuntime(runtime_dir=str(path))
    assert runtime.holder(None).beacon == ""
    assert runtime.first_seen("s", "n", "1") <= time.monotonic()
    assert len(caplog.records) == 1
    assert "DIBS_RUNTIME_DIR" in caplog.text


def test_the_environment_names_the_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("DIBS_RUNTIME_DIR", raising=False)
    assert SystemRuntime().holder(None).beacon.startswith(f"{tmp_path}/dibs/beacons/")
    monkeypatch.setenv("DIBS_RUNTIME_DIR", str(tmp_path / "chosen"))
    assert SystemRuntime().holder(None).beacon.startswith(f"{tmp_path}/chosen/beacons/")


def test_system_is_a_runtime() -> None:
    runtime: Runtime = system()
    assert system() is runtime
    monotonic, boot, wall = runtime.elapsed_marks()
    assert monotonic <= runtime.monotonic()
    assert boot >= monotonic - 1
    assert abs(wall - time.time()) < 60
    assert len({runtime.token() for _ in range(1000)}) == 1000
    assert len(runtime.token()) == 16
    assert all(0 <= runtime.jitter() < 1 for _ in range(100))
    done = runtime.event()
    runtime.start(done.set, "test")
    assert done.wait(10)
