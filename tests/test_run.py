"""`dibs run -- CMD…`, with real processes: once per fleet, and for everybody else as if they had run it.

Commands count their runs by lines that they append to files which are not declared.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE_S = 30.0
DIBS = [sys.executable, "-m", "dibs"]


def wait_until(happened: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < give_up_at, "it didn't happen"
        time.sleep(0.01)


class Ran:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        out, err = process.communicate(timeout=PATIENCE_S)
        self.status, self.out, self.err = process.returncode, out.decode(), err.decode()

    def __iter__(self) -> Iterator[object]:
        return iter((self.status, self.out, self.err))


class Running:
    """`dibs run` in a process of its own."""

    def __init__(self, *words: str, stdin: bytes | None = None, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*DIBS, "run", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )  # fmt: skip
        self._stdin = stdin
        STARTED.append(self.process)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def ended(self) -> Ran:
        if self._stdin is not None and self.process.stdin is not None:
            self.process.stdin.write(self._stdin)
        return Ran(self.process)


STARTED: list[subprocess.Popen[bytes]] = []


def run(*words: str, stdin: bytes | None = None, **environment: str) -> Ran:
    return Running(*words, stdin=stdin, **environment).ended()


def shell(script: str, *options: str, **more: str) -> Ran:
    return run(*options, "--", "sh", "-c", script, **more)


def runs(name: str = "runs") -> int:
    """How often a command has run that appends lines to this file."""
    path = Path(name)
    return len(path.read_text().splitlines()) if path.exists() else 0


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("DIBS_") and name != "DIBS_MINISTACK_PYTHON"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DIBS_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("DIBS_URL", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


# --- hits ---------------------------------------------------------------------------------------------------------


def test_a_command_runs_once_and_comes_back_whole() -> None:
    script = (
        "echo >> runs; echo to stdout; sleep 0.3; echo to stderr >&2; sleep 0.3; printf 'no newline'; "
        "mkdir -p tree/empty; echo text > tree/file; ln -s file tree/link; chmod +x tree/file; echo one > one"
    )
    options = ("--out", "tree", "--out", "one")
    first = shell(script, *options)
    assert list(first) == [0, "to stdout\nno newline", "to stderr\n"]
    before = Path("tree/file").stat()
    subprocess.run(["rm", "-r", "tree", "one"], check=True)
    assert list(shell(script, *options)) == list(first)
    assert runs() == 1
    assert Path("tree/file").read_text() == "text\n"
    assert Path("tree/file").stat().st_mode == before.st_mode
    assert os.readlink("tree/link") == "file"
    assert Path("tree/empty").is_dir()
    assert Path("one").read_text() == "one\n"


def test_both_streams_come_back_in_the_order_in_which_they_came() -> None:
    script = "for n in 1 2 3; do echo out $n; sleep 0.1; echo err $n >&2; sleep 0.1; done; echo >> runs"
    wanted = "".join(f"out {n}\nerr {n}\n" for n in (1, 2, 3))
    for _ in range(2):
        both = subprocess.run([*DIBS, "run", "--", "sh", "-c", script], stdout=-1, stderr=subprocess.STDOUT, check=True)
        assert both.stdout.decode() == wanted
    assert runs() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere in the order in which it could be read")
def test_the_order_is_exact_however_fast_the_writes_follow_each_other() -> None:
    script = "import os, random; r = random.Random(7); [os.write(r.choice([1, 2]), b'%d\\n' % n) for n in range(2000)]"
    command = [*DIBS, "run", "--", sys.executable, "-c", script]
    wanted = "".join(f"{number}\n" for number in range(2000))
    for _ in range(2):
        assert subprocess.run(command, stdout=-1, stderr=subprocess.STDOUT, check=True).stdout.decode() == wanted


def test_nothing_is_lost_of_what_is_printed_too_fast_for_that() -> None:
    script = "import os; [os.write(1 + n % 2, b'%d\\n' % n) for n in range(40000)]"
    for _ in range(2):
        ran = run("--", sys.executable, "-c", script)
        assert ran.out == "".join(f"{number}\n" for number in range(0, 40000, 2))
        assert ran.err == "".join(f"{number}\n" for number in range(1, 40000, 2))


def test_what_is_printed_can_be_read_while_the_command_runs() -> None:
    Path("go").unlink(missing_ok=True)
    running = Running("--", "sh", "-c", "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo done")
    assert running.line() == "begun"
    Path("go").touch()
    assert list(running.ended()) == [0, "done\n", ""]


def test_bytes_that_are_no_text_come_back() -> None:
    data = os.urandom(300_000)
    Path("data").write_bytes(data)
    for _ in range(2):
        ran = subprocess.run([*DIBS, "run", "--in", "data", "--", "cat", "data"], stdout=-1, check=True)
        assert ran.stdout == data


def test_the_working_directory_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    script = f"echo >> {count}; cat in > out"
    Path("in").write_text("same\n")
    assert shell(script, "--in", "in", "--out", "out").status == 0
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    Path("in").write_text("same\n")
    assert shell(script, "--in", "in", "--out", "out").status == 0
    assert runs(str(count)) == 1
    assert Path("out").read_text() == "same\n"


# --- what counts --------------------------------------------------------------------------------------------------


def test_the_contents_of_inputs_count_and_their_times_do_not() -> None:
    Path("tree/deep").mkdir(parents=True)
    Path("tree/deep/file").write_text("one")

    def again() -> int:
        assert shell("echo >> runs", "--in", "tree").status == 0
        return runs()

    assert again() == 1
    os.utime("tree/deep/file", (1, 1))
    assert again() == 1
    Path("tree/deep/file").write_text("two")
    assert again() == 2
    Path("tree/deep/file").rename("tree/deep/other")
    assert again() == 3
    Path("tree/deep/other").rename("tree/deep/file")
    Path("tree/deep/file").write_text("one")
    assert again() == 3, "what was there before is a hit again"


def test_each_declaration_counts() -> None:
    def ran(*options: str, script: str = "echo >> runs; echo $SEED; touch out", **environment: str) -> int:
        before = runs()
        assert shell(script, *options, **environment).status == 0
        return runs() - before

    assert ran() == 1
    assert ran() == 0
    assert ran(SEED="1") == 0, "a variable that isn't named doesn't count"
    assert ran("--env", "SEED") == 1
    assert ran("--env", "SEED", SEED="") == 1, "set to nothing is not the same as not set"
    assert ran("--env", "SEED", SEED="1") == 1
    assert ran("--env", "SEED", SEED="1") == 0
    assert ran("--version", "2") == 1
    assert ran("--name", "other") == 1
    assert ran("--out", "out") == 1
    assert ran("--keep-failures") == 1
    assert ran(script="echo >> runs; touch out") == 1
    assert ran() == 0


def test_stdin_is_empty_unless_it_counts() -> None:
    count = ("--", "sh", "-c", "echo >> runs; wc -c | tr -d ' '")
    assert run(*count, stdin=b"abc").out == "0\n"
    assert run("--stdin", *count, stdin=b"abc").out == "3\n"
    assert run("--stdin", *count, stdin=b"abc").out == "3\n"
    assert runs() == 2
    assert run("--stdin", *count, stdin=b"abcd").out == "4\n"


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_failure_is_handed_on_and_not_kept() -> None:
    for number in (1, 2):
        ran = shell("echo >> runs; echo sorry >&2; exit 7")
        assert list(ran) == [7, "", "sorry\n"]
        assert runs() == number


def test_after_too_many_failures_nobody_tries_and_everybody_hears_why() -> None:
    script = "echo >> runs; echo the disk of the cat is full >&2; exit 7"
    assert [shell(script, DIBS_FAILURES_MAX="2").status for _ in range(3)] == [7, 7, 125]
    refused = shell(script, DIBS_FAILURES_MAX="2")
    assert runs() == 2
    assert refused.out == ""
    assert "the disk of the cat is full" in refused.err
    assert "status 7" in refused.err
    assert "Traceback" not in refused.err
    assert shell(script, "--recompute", DIBS_FAILURES_MAX="2").status == 7, "unless asked to try"


def test_a_failure_is_kept_when_that_is_asked_for() -> None:
    for _ in range(2):
        script = "echo >> runs; echo no; echo partial > out; exit 7"
        ran = shell(script, "--keep-failures", "--out", "out", "--out", "not made")
        assert list(ran) == [7, "no\n", ""]
        assert Path("out").read_text() == "partial\n"
        Path("out").unlink()
    assert runs() == 1
    assert [shell("echo >> killed; kill -9 $$", "--keep-failures").status for _ in (1, 2)] == [137, 137]
    assert runs("killed") == 2, "what a signal ended is no result"


def test_a_missing_output_is_an_error_and_nothing_is_kept() -> None:
    for number in (1, 2):
        ran = shell("echo >> runs; echo x > a", "--out", "a", "--out", "missing")
        assert ran.status == 125
        assert "missing" in ran.err
        assert runs() == number
        Path("a").unlink()


def test_an_output_that_the_command_left_alone_is_not_taken_for_its_result() -> None:
    Path("out").write_text("of something else")
    ran = shell("true", "--out", "out")
    assert ran.status == 125
    assert "as it was before" in ran.err
    assert Path("out").read_text() == "of something else"
    assert shell("echo mine > out", "--out", "out").status == 0
    assert shell("echo mine > out", "--out", "out").status == 0


@pytest.mark.parametrize(("command", "status"), [("./nothing", 127), ("./plain", 126), (".", 126)])
def test_a_command_that_cannot_start_has_the_status_of_a_shell(command: str, status: int) -> None:
    Path("plain").write_text("no program\n")
    for _ in range(4):
        ran = run("--", command)
        assert ran.status == status, "which is no failure of its key"
        assert ran.err.startswith("dibs: ")


def test_an_input_that_changes_meanwhile_is_noticed() -> None:
    Path("in").write_text("one")
    ran = shell("cat in; echo two > in", "--in", "in")
    assert ran.status == 0
    assert ran.out == "one"
    assert "its input changed" in ran.err
    Path("in").write_text("one")
    assert "its input changed" in shell("cat in; echo two > in", "--in", "in").err, "nothing was kept"


def test_wrong_usage_is_told_from_failure() -> None:
    (Path("cache") / "x").mkdir(parents=True)
    assert run("echo", "x").status == 2
    assert run().status == 2
    assert run("--json", "--", "true").status == 2
    assert shell("true", "--env", "A=1").status == 2
    assert shell("true", "--out", ".").status == 2
    assert shell("true", "--out", "..").status == 2
    assert shell("true", "--out", "cache", DIBS_URL="cache/x").status == 2
    assert shell("true", "--in", ".", DIBS_URL="cache/x").status == 2
    assert shell("true", "--in", "cache", "--out", "cache/x").status == 2
    assert shell("true", "--out", "a", "--out", "a/b").status == 2
    missing = shell("echo >> runs", "--in", "missing")
    assert (missing.status, runs()) == (125, 0)
    assert "missing" in missing.err


# --- signals and deaths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("polite", [True, False])
def test_a_signal_is_passed_on_and_the_next_worker_runs_at_once(number: signal.Signals, polite: bool) -> None:
    # Nothing in the background: a shell lets that ignore SIGINT, so it would outlive the trap.
    trap = f"trap 'echo got it; exit 0' {number.name[3:]}; " if polite else ""
    script = f"echo >> runs; [ $(wc -l < runs) = 1 ] || exit 0; {trap}echo in; while :; do sleep 0.05; done"
    running = Running("--", "sh", "-c", script)
    assert running.line() == "in"
    waiter = Running("--", "sh", "-c", script)
    running.process.send_signal(number)
    ended = running.ended()
    assert (ended.status, ended.out) == ((0, "got it\n") if polite else (128 + number, ""))
    assert waiter.ended().status == 0, "what was told to stop has no result, even if it ended well"
    assert runs() == 2


def test_a_signal_reaches_all_that_the_command_has_started() -> None:
    running = Running("--", "sh", "-c", "sleep 60 & echo $!; wait")
    pid = int(running.line())
    running.process.terminate()
    assert running.ended().status == 128 + signal.SIGTERM
    wait_until(lambda: not lives(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_killed_worker_is_replaced_by_one_of_those_who_wait() -> None:
    script = "echo $$; echo >> runs; [ -e go ] || exec sleep 60; echo done > out"
    running = Running("--out", "out", "--", "sh", "-c", script)
    pid = int(running.line())
    waiters = [Running("--out", "out", "--", "sh", "-c", script) for _ in range(3)]
    time.sleep(0.5)
    Path("go").touch()
    running.process.kill()
    ended = [waiter.ended() for waiter in waiters]
    assert [one.status for one in ended] == [0] * 3
    assert len({one.out for one in ended}) == 1
    assert runs() == 2
    wait_until(lambda: not lives(pid))


def test_what_is_left_in_the_background_does_not_keep_the_others_waiting() -> None:
    for _ in range(2):
        assert shell("echo >> runs; sleep 30 & echo done").out == "done\n"
    assert runs() == 1


def test_a_reader_who_leaves_ends_the_command_as_it_would_without_us() -> None:
    for number in (1, 2):
        running = Running("--", "sh", "-c", "echo >> runs; exec yes", DIBS_FAILURES_MAX="1")
        assert running.line() == "y"
        assert running.process.stdout is not None
        running.process.stdout.close()
        assert running.process.wait(PATIENCE_S) == 128 + signal.SIGPIPE
        assert runs() == number, "which is no failure of its key"
    assert shell("yes | head -1").out == "y\n"


def test_a_hold_that_is_lost_ends_with_the_result_of_the_winner() -> None:
    script = "echo >> runs; echo begun; while [ ! -e go ]; do sleep 0.02; done; echo $(wc -l < runs) > out"
    slow = Running("--out", "out", "--", "sh", "-c", script, DIBS_TTL_S="1")
    assert slow.line() == "begun"
    slow.process.send_signal(signal.SIGSTOP)  # its command goes on
    # On the same host a stopped process is alive, and silent: so after a ttl it is replaced.
    winner = Running("--out", "out", "--", "sh", "-c", script, DIBS_TTL_S="1")
    assert winner.line() == "begun"
    Path("go").touch()
    assert winner.ended().status == 0
    slow.process.send_signal(signal.SIGCONT)
    ended = slow.ended()
    assert ended.status == 0
    assert "another worker's result came first" in ended.err
    assert Path("out").read_text() == "2\n"


def test_a_wait_that_is_too_long_ends_with_124() -> None:
    running = Running("--", "sh", "-c", "echo in; exec sleep 60")
    assert running.line() == "in"
    ran = run("--wait", "0.1", "--", "sh", "-c", "echo in; exec sleep 60")
    assert (ran.status, ran.out) == (124, "")
    assert f"pid {running.process.pid}" in ran.err


def test_a_store_that_cannot_be_used_ends_with_125() -> None:
    Path("file").touch()
    ran = shell("true", DIBS_URL="file/below")
    assert ran.status == 125
    assert ran.err.startswith("dibs: ")


def test_a_command_that_waits_for_itself_is_an_error() -> None:
    inner = [*DIBS, "run", "--", "sh", "-c", 'exec "$@"', "sh"]
    Path("same").write_text(f"#!/bin/sh\necho >> runs\nexec {sys.executable} -m dibs run -- ./same\n")
    Path("same").chmod(0o755)
    ran = run("--", "./same")
    assert ran.status == 125
    assert "circle" in ran.err
    assert runs() == 1
    assert run("--", *inner, "echo", "below").out == "below\n", "another command may well be run below"


# --- options ------------------------------------------------------------------------------------------------------


def test_recompute_runs_it_again_and_replaces_the_result() -> None:
    script = "echo >> runs; wc -l < runs | tr -d ' '"
    assert [shell(script).out, shell(script, "--recompute").out, shell(script).out] == ["1\n", "2\n", "2\n"]


def test_an_expired_result_is_run_again() -> None:
    assert shell("echo >> runs", "--expires", "0.01s").status == 0
    time.sleep(0.05)
    assert shell("echo >> runs", "--expires", "1h").status == 0
    assert shell("echo >> runs", "--expires", "1h").status == 0
    assert runs() == 2


def test_a_dry_run_says_what_changed() -> None:
    Path("in").write_text("one")
    command = ("--in", "in", "--env", "SEED", "--", "sh", "-c", "echo >> runs")
    assert run(*command).status == 0
    assert run("--dry-run", *command).status == 0
    Path("in").write_text("another")
    ran = run("--dry-run", "--json", *command)
    assert ran.status == 1
    told = json.loads(ran.out)
    assert told["state"] == "miss"
    assert [change["ingredient"] for change in told["changes"]] == ["in in"]
    assert set(told["ingredients"]) == {"command", "in in", "env SEED"}
    assert run("--dry-run", *command, SEED="1").out.count("env SEED") >= 1
    assert runs() == 1


def test_the_result_is_a_key_like_others() -> None:
    assert shell("echo x > out; echo said", "--out", "out", "--name", "mine").status == 0
    listed = subprocess.run([*DIBS, "ls"], stdout=-1, check=True, text=True).stdout
    (key,) = [word for word in listed.split("\t") if "mine" in word]
    assert key.startswith("run mine/")
    shown = subprocess.run([*DIBS, "show", key.strip()], stdout=-1, check=True, text=True).stdout
    assert "outputs" in shown


def test_the_command_runs_when_the_cache_is_switched_off() -> None:
    for number in (1, 2):
        assert list(shell("echo >> runs; echo x; exit 3", DIBS_DISABLE="1")) == [3, "x\n", ""]
        assert runs() == number


# --- fleets -------------------------------------------------------------------------------------------------------


def test_xargs_runs_each_distinct_command_once() -> None:
    Path("lines").write_text("".join(f"{number % 4}\n" for number in range(16)))
    script = "echo $1 >> runs; sleep 0.2; echo result of $1 | tee out.$1"
    command = ["xargs", "-P", "8", "-I", "{}", *DIBS, "run", "--out", "out.{}", "--", "sh", "-c", script, "sh", "{}"]
    with open("lines") as lines:
        ran = subprocess.run(command, stdin=lines, stdout=-1, stderr=-1, check=True, text=True)
    assert ran.stderr == ""
    assert sorted(Path("runs").read_text().split()) == ["0", "1", "2", "3"]
    assert sorted(ran.stdout.splitlines()) == sorted(f"result of {number % 4}" for number in range(16))
    assert [Path(f"out.{number}").read_text() for number in range(4)] == [f"result of {n}\n" for n in range(4)]


def test_make_is_content_with_what_is_restored() -> None:
    Path("Makefile").write_text(
        f"RUN = {sys.executable} -m dibs run\n"
        "out.txt: in.txt\n\t$(RUN) --in in.txt --out out.txt -- sh -c 'echo >> runs; tr a-z A-Z < in.txt > out.txt'\n"
    )

    def make() -> str:
        return subprocess.run(["make", "-s"], stdout=-1, stderr=-1, check=True, text=True).stdout

    Path("in.txt").write_text("one\n")
    make()
    Path("in.txt").write_text("two\n")
    make()
    assert (runs(), Path("out.txt").read_text()) == (2, "TWO\n")
    Path("in.txt").write_text("one\n")
    make()
    assert (runs(), Path("out.txt").read_text()) == (2, "ONE\n"), "it was restored"
    os.utime("in.txt")
    make()
    assert runs() == 2
    assert "up to date" in subprocess.run(["make"], stdout=-1, check=True, text=True).stdout, "and is newer by now"


def test_on_a_terminal_the_keyboard_reaches_the_command() -> None:
    ours, theirs = os.openpty()
    script = "trap 'echo got it; exit 7' INT; echo in; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [sys.executable, "-c", _LEADER, *DIBS, "run", "--", "sh", "-c", script],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    STARTED.append(process)
    os.close(theirs)
    shown = b""

    def shows(text: bytes) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(ours, 1024)

    shows(b"in\r\n")
    os.write(ours, b"\x03")
    shows(b"got it\r\n")
    assert process.wait(PATIENCE_S) == 7
    assert shown.count(b"got it") == 1
    os.close(ours)


# Makes the terminal its own, as a login shell does, and becomes the command.
_LEADER = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
