"""`dibs lock NAME -- CMD…`, with real processes: one at a time, signals, lost locks, exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dibs.cli import main

PATIENCE_S = 30.0


def wait_until(happened: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < give_up_at, "it didn't happen"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


class Locked:
    """`dibs lock` in a process of its own."""

    def __init__(self, words: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dibs", "lock", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def line(self) -> str:
        """The next line that the command prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def complaint(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().strip()

    def ended(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DIBS_") and name != "DIBS_MINISTACK_PYTHON"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DIBS_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("DIBS_URL", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def locked() -> Iterator[Callable[..., Locked]]:
    started: list[Locked] = []

    def start(*words: str, **environment: str) -> Locked:
        started.append(Locked(words, {**os.environ, **environment}))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def state(capsys: pytest.CaptureFixture[str], name: str = "x") -> Any:
    capsys.readouterr()
    assert main(["locks", "--json"]) == 0
    return {info["name"]: info for info in json.loads(capsys.readouterr().out)}[name]["state"]


def test_the_command_runs_under_the_lock_and_knows_its_generation(locked: Callable[..., Locked]) -> None:
    status, out, err = locked("x", "--", "sh", "-c", "echo $DIBS_LOCK_GENERATION; exit 7").ended()
    assert (status, out, err) == (7, "1\n", "")
    status, out, _ = locked("x", "--", sys.executable, "-m", "dibs", "locks").ended()
    assert status == 0
    assert out.startswith("held\t"), "dibs itself may be the command"
    status, out, _ = locked("x", "--", "sh", "-c", "echo $DIBS_LOCK_GENERATION").ended()
    assert out == "3\n"


def test_two_commands_never_run_at_once(locked: Callable[..., Locked], tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0\n")
    script = "mkdir inside && n=$(cat count) && echo $((n + 1)) > count && rmdir inside"
    crowd = [locked("x", "--", "sh", "-c", script) for _ in range(6)]
    assert [one.ended()[0] for one in crowd] == [0] * 6
    assert (tmp_path / "count").read_text() == "6\n"


def test_a_wait_that_is_too_long_ends_with_124(locked: Callable[..., Locked]) -> None:
    holder = locked("x", "--", "sh", "-c", "echo in; read line")
    assert holder.line() == "in"
    status, out, err = locked("x", "--wait", "0.1", "--", "echo", "no").ended()
    assert (status, out) == (124, "")
    assert f"pid {holder.process.pid}" in err
    assert locked("y", "--wait", "0.1", "--", "true").ended()[0] == 0, "another name is free"
    assert holder.process.stdin is not None
    holder.process.stdin.write("\n")
    assert holder.ended()[0] == 0


def test_a_waiting_command_starts_when_the_lock_is_free(locked: Callable[..., Locked]) -> None:
    holder = locked("x", "--", "sh", "-c", "echo in; read line; echo out")
    assert holder.line() == "in"
    waiter = locked("x", "--", "echo", "next")
    assert waiter.complaint().startswith("dibs: waiting: 'x' is still held")
    assert holder.process.stdin is not None
    holder.process.stdin.write("\n")
    assert holder.ended()[:2] == (0, "out\n")
    assert waiter.ended()[:2] == (0, "next\n")


@pytest.mark.parametrize(("command", "status"), [("./nothing", 127), ("./plain", 126), (".", 126), ("./no/such", 127)])
def test_a_command_that_cannot_start_has_the_status_of_a_shell(
    tmp_path: Path, command: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain").write_text("no program\n")
    assert main(["lock", "x", "--", command]) == status
    assert capfd.readouterr().err.startswith("dibs: ")
    assert main(["lock", "x", "--wait", "0", "--", "true"]) == 0, "the lock was given back"


def test_a_store_that_cannot_be_used_ends_with_125(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["lock", "x", "--store", str(tmp_path / "file" / "below"), "--", "true"]) == 125
    assert capsys.readouterr().err.startswith("dibs: ")


def test_options_of_the_command_are_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lock", "--ttl", "5", "x", "--", "echo", "--json", "--", "--store"]) == 0
    assert capfd.readouterr().out == "--json -- --store\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_the_lock_released(
    locked: Callable[..., Locked], number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing in the background: a shell lets that ignore SIGINT, so it would outlive the trap.
    script = f"trap 'echo got it; exit 7' {number.name[3:]}; echo in; while :; do read line; done"
    holder = locked("x", "--", "sh", "-c", script)
    assert holder.line() == "in"
    holder.process.send_signal(number)
    assert holder.ended() == (7, "got it\n", "")
    assert state(capsys) == "free"


def test_a_command_that_a_signal_ends_has_the_status_of_a_shell(
    locked: Callable[..., Locked], capsys: pytest.CaptureFixture[str]
) -> None:
    holder = locked("x", "--", "sh", "-c", "echo in; exec sleep 60")
    assert holder.line() == "in"
    holder.process.send_signal(signal.SIGTERM)
    assert holder.ended()[0] == 128 + signal.SIGTERM
    assert state(capsys) == "free"


def test_a_waiter_that_is_interrupted_ends_with_130(locked: Callable[..., Locked]) -> None:
    holder = locked("x", "--", "sh", "-c", "echo in; read line")
    assert holder.line() == "in"
    waiter = locked("x", "--", "true")
    assert waiter.complaint().startswith("dibs: waiting: 'x' is still held")
    waiter.process.send_signal(signal.SIGINT)
    assert waiter.ended() == (130, "", "")


def test_the_command_is_stopped_when_the_lock_is_broken(
    locked: Callable[..., Locked], capsys: pytest.CaptureFixture[str]
) -> None:
    holder = locked("x", "--ttl", "1.2", "--", "sh", "-c", "sleep 60 & echo $!; echo $$; wait")
    pids = int(holder.line()), int(holder.line())
    assert main(["unlock", "x", "--yes"]) == 0
    status, _, err = holder.ended()
    assert status == 125
    assert "the lock was lost" in err
    assert "was stopped" in err
    assert not any(lives(pid) for pid in pids), "with all that it had started"
    assert state(capsys) == "free"


def test_a_command_that_ended_after_the_lock_was_broken_does_not_count(
    locked: Callable[..., Locked], capsys: pytest.CaptureFixture[str]
) -> None:
    holder = locked("x", "--", "sh", "-c", "echo in; read line")
    assert holder.line() == "in"
    assert main(["unlock", "x", "--yes"]) == 0
    assert holder.process.stdin is not None
    holder.process.stdin.write("\n")
    status, _, err = holder.ended()
    assert status == 125
    assert "had ended with status 0" in err


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_the_command_does_not_outlive_a_killed_dibs(locked: Callable[..., Locked]) -> None:
    holder = locked("x", "--", "sh", "-c", "echo $$; read line")
    pid = int(holder.line())
    holder.process.kill()
    wait_until(lambda: not lives(pid))
    assert locked("x", "--", "echo", "mine").ended()[:2] == (0, "mine\n"), "and the lock is free at once"


def test_on_a_terminal_the_keyboard_reaches_the_command(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    script = "trap 'echo got it; exit 7' INT; echo in; while :; do read line && echo read $line; done"
    process = subprocess.Popen(
        [sys.executable, "-c", _LEADER, sys.executable, "-m", "dibs", "lock", "x", "--", "sh", "-c", script],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""

    def shows(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(ours, 1024)

    shows(b"in\r\n")
    os.write(ours, b"hello\n")
    shows(b"read hello\r\n")
    os.write(ours, b"\x03")
    shows(b"got it\r\n")
    assert process.wait(PATIENCE_S) == 7
    assert shown.count(b"got it") == 1
    os.close(ours)


# Makes the terminal its own, as a login shell does, and becomes the command.
_LEADER = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
