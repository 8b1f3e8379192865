"""Death is proved when it happened and never otherwise: beacons, pids, forks, namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dibs.runtime import Evidence, Holder, beacon, process
from dibs.runtime.system import SystemRuntime

ELSEWHERE = 1  # no PID namespace has this inode

Start = Callable[..., tuple[int, Holder]]


@pytest.fixture
def beacon_dir(tmp_path: Path) -> str:
    return str(tmp_path / "beacons")


@pytest.fixture
def mine(tmp_path: Path) -> SystemRuntime:
    return SystemRuntime(runtime_dir=str(tmp_path / "runtime"))


@pytest.fixture
def start(mine: SystemRuntime, beacon_dir: str) -> Iterator[Start]:
    """Fork a process that holds, runs `then`, and stays until it is killed."""
    children = []

    def fork(then: Callable[[], None] = lambda: None) -> tuple[int, Holder]:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                holder = mine.holder(beacon_dir)
                then()
                os.write(writer, json.dumps(holder).encode())
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        children.append(child)
        os.close(writer)
        holder = Holder(*json.loads(os.read(reader, 4096)))
        os.close(reader)
        return child, holder

    yield fork
    for child in children:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def by_beacon_only(holder: Holder) -> Holder:
    return holder._replace(pid_namespace=ELSEWHERE)


def by_pid_only(holder: Holder) -> Holder:
    return holder._replace(beacon="", beacon_inode="")


ALIVE = Evidence(None, local=True)


def test_this_process_is_alive(mine: SystemRuntime, beacon_dir: str) -> None:
    holder = mine.holder(beacon_dir)
    assert holder.pid == os.getpid()
    assert mine.evidence(holder) == ALIVE
    assert mine.holder(beacon_dir) is holder, "it is cached"


def test_a_living_process_is_alive_by_every_evidence(mine: SystemRuntime, start: Start) -> None:
    _, holder = start()
    for seen in (holder, by_beacon_only(holder), by_pid_only(holder), by_pid_only(by_beacon_only(holder))):
        assert mine.evidence(seen) == ALIVE


def test_a_killed_process_is_dead(mine: SystemRuntime, start: Start) -> None:
    child, holder = start()
    kill(child)
    assert mine.evidence(holder) == Evidence("beacon free", local=True)
    assert mine.evidence(by_beacon_only(holder)) == Evidence("beacon free", local=True)
    assert mine.evidence(by_pid_only(holder)) == Evidence(f"pid {child} is gone", local=True)
    assert mine.evidence(by_pid_only(by_beacon_only(holder))) == ALIVE, "nothing proves it"


def test_a_zombie_is_dead(mine: SystemRuntime, start: Start) -> None:
    child, holder = start()
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # not reaped
    assert mine.evidence(by_pid_only(holder)) == Evidence(f"pid {child} is a zombie", local=True)
    assert mine.evidence(holder) == Evidence("beacon free", local=True)


def test_a_stopped_process_is_alive(mine: SystemRuntime, start: Start) -> None:
    child, holder = start()
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    for seen in (holder, by_beacon_only(holder), by_pid_only(holder)):
        assert mine.evidence(seen) == ALIVE


def test_a_pid_of_another_start_was_reused(mine: SystemRuntime, start: Start) -> None:
    child, holder = start()
    earlier = by_pid_only(holder)._replace(start_ticks=holder.start_ticks - 1)
    assert mine.evidence(earlier) == Evidence(f"pid {child} was reused", local=True)
    assert mine.evidence(earlier._replace(start_ticks=0)) == ALIVE, "an unknown start proves nothing"


def test_a_held_beacon_outranks_the_pid(mine: SystemRuntime, start: Start) -> None:
    _, holder = start()
    assert mine.evidence(holder._replace(start_ticks=1)) == ALIVE


def test_another_boot_proves_nothing(mine: SystemRuntime, start: Start) -> None:
    child, holder = start()
    kill(child)
    for boot in ("another", ""):
        assert mine.evidence(holder._replace(boot=boot)) == Evidence(None, local=False)
    other_host = SystemRuntime(boot="another", runtime_dir=mine._runtime_dir)
    assert other_host.evidence(holder) == Evidence(None, local=False)


def test_a_missing_or_other_beacon_proves_nothing(mine: SystemRuntime, start: Start) -> None:
    child, holder = start()
    os.unlink(holder.beacon)
    assert mine.evidence(by_beacon_only(holder)) == ALIVE
    Path(holder.beacon).touch()
    assert mine.evidence(by_beacon_only(holder)) == ALIVE, "another inode"
    kill(child)
    assert mine.evidence(by_beacon_only(holder)) == ALIVE, "another inode"


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "plain file"])
def test_a_record_can_not_make_us_open_anything_else(
    mine: SystemRuntime, start: Start, tmp_path: Path, kind: str
) -> None:
    child, holder = start()
    kill(child)
    path = tmp_path / ("0123456789abcdef.beacon" if kind != "plain file" else "notes.txt")
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(holder.beacon)
        case "directory":
            path.mkdir()
        case "plain file":
            path.touch()
    inode = beacon.identity(os.lstat(path))
    assert mine.evidence(by_beacon_only(holder)._replace(beacon=str(path), beacon_inode=inode)) == ALIVE


def test_a_beacon_is_found_where_this_container_has_the_folder(mine: SystemRuntime, start: Start) -> None:
    child, holder = start()
    kill(child)
    elsewhere = by_beacon_only(holder)._replace(beacon=f"/mounted/elsewhere/{os.path.basename(holder.beacon)}")
    assert mine.evidence(elsewhere) == ALIVE
    mine.holder(os.path.dirname(holder.beacon))
    assert mine.evidence(elsewhere) == Evidence("beacon free", local=True)


def test_a_program_that_closes_all_descriptors_still_lives(mine: SystemRuntime, start: Start) -> None:
    _, holder = start(lambda: os.close(mine._lit[0].fd))
    assert mine.evidence(holder) == ALIVE


def test_a_forked_child_keeps_no_beacon_alive(mine: SystemRuntime, start: Start) -> None:
    reader, writer = os.pipe()

    def fork_again() -> None:
        if (grandchild := os.fork()) == 0:
            signal.pause()
        os.write(writer, b"%d" % grandchild)

    child, holder = start(fork_again)
    grandchild = int(os.read(reader, 20))
    watch = mine.watch()
    watch.arm((), [holder.beacon])
    try:
        kill(child)
        assert watch.wait(10)  # the grandchild closes its copy as soon as it runs at all
        assert mine.evidence(by_beacon_only(holder)) == Evidence("beacon free", local=True)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_forked_child_lets_no_beacon_go(mine: SystemRuntime, start: Start) -> None:
    def fork_and_end() -> None:
        if (grandchild := os.fork()) == 0:
            sys.exit(0)  # an orderly end, with all its callbacks
        os.waitpid(grandchild, 0)

    _, holder = start(fork_and_end)
    assert os.path.exists(holder.beacon)
    assert mine.evidence(by_beacon_only(holder)) == ALIVE


def test_each_process_has_an_identity_of_its_own(mine: SystemRuntime, start: Start, beacon_dir: str) -> None:
    ours = mine.holder(beacon_dir)
    _, one = start()
    _, other = start()
    assert len({ours.process, one.process, other.process}) == 3
    assert len({ours.beacon, one.beacon, other.beacon}) == 3
    assert one.pid != ours.pid


def test_a_forked_child_draws_other_tokens(mine: SystemRuntime) -> None:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, mine.token().encode())
        os._exit(0)
    assert os.read(reader, 16).decode() != mine.token()
    os.wait()


def test_an_orderly_end_takes_the_beacon_away(beacon_dir: str) -> None:
    program = f"""
from dibs.runtime.system import system
print(system().holder({beacon_dir!r}).beacon)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(beacon_dir)
    assert not os.path.exists(ran.stdout.strip())


def test_an_end_with_a_failing_callback_leaves_the_beacon_as_a_witness(beacon_dir: str) -> None:
    program = f"""
from dibs.runtime.system import system
system().at_exit(lambda: 1 / 0)
print(system().holder({beacon_dir!r}).beacon)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert beacon.state(ran.stdout.strip()) == "free"


def test_a_removed_beacon_is_replaced(mine: SystemRuntime, beacon_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mine.holder(beacon_dir)
    shutil.rmtree(beacon_dir)
    later = time.monotonic() + 11
    monkeypatch.setattr("dibs.runtime.system.time.monotonic", lambda: later)
    second = mine.holder(beacon_dir)
    assert second.beacon_inode != first.beacon_inode
    assert beacon.state(second.beacon, second.beacon_inode) == "held"


def test_without_a_writable_directory_there_is_no_beacon_and_a_warning(
    mine: SystemRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    holder = mine.holder("/proc/nowhere/beacons")
    assert (holder.beacon, holder.beacon_inode) == ("", "")
    assert len(caplog.records) == 1


def test_old_free_beacons_are_cleared_away_and_held_ones_are_not(
    mine: SystemRuntime, start: Start, beacon_dir: str
) -> None:
    _, old_and_held = start()
    dead, old_and_dead = start()
    young, young_and_dead = start()
    kill(dead)
    kill(young)
    two_days_ago = time.time() - 2 * 24 * 3600
    for holder in (old_and_held, old_and_dead):
        os.utime(holder.beacon, (two_days_ago, two_days_ago))
    ours = mine.holder(beacon_dir)
    left = {os.path.join(beacon_dir, name) for name in os.listdir(beacon_dir)}
    assert left == {ours.beacon, old_and_held.beacon, young_and_dead.beacon}


def test_beacons_prove_across_pid_namespaces(mine: SystemRuntime, beacon_dir: str, tmp_path: Path) -> None:
    program = tmp_path / "holder.py"
    program.write_text(f"""
import json, signal
from dibs.runtime.system import SystemRuntime
runtime = SystemRuntime(runtime_dir={str(tmp_path / "inside")!r})
print(json.dumps(runtime.holder({beacon_dir!r})), flush=True)
signal.pause()
""")
    mine.holder(beacon_dir)
    inside = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, str(program)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert inside.stdout is not None
    assert inside.stderr is not None
    line = inside.stdout.readline()
    if not line:
        pytest.skip(f"NOT TESTED, needs root: a PID namespace: {inside.stderr.read().strip()}")
    holder = Holder(*json.loads(line))
    assert holder.pid_namespace != mine.holder(beacon_dir).pid_namespace
    assert holder.pid == 1, "which is somebody else out here"
    assert mine.evidence(holder) == ALIVE
    watch = mine.watch()
    watch.arm([], [holder.beacon])
    inside.kill()
    assert watch.wait(10)
    assert mine.evidence(holder) == Evidence("beacon free", local=True)
    assert mine.evidence(by_pid_only(holder)) == ALIVE
    inside.communicate()


def test_start_times_are_not_compared_where_clocks_are_shifted(tmp_path: Path) -> None:
    program = f"""
from dibs.runtime.system import SystemRuntime
print(SystemRuntime(runtime_dir={str(tmp_path / "inside")!r}).holder(None).start_ticks)
"""
    ran = subprocess.run(
        ["unshare", "--time", "--fork", "--boottime", "1000", "--monotonic", "1000", sys.executable, "-c", program],
        capture_output=True, text=True,
    )  # fmt: skip
    if ran.returncode:
        pytest.skip(f"NOT TESTED, needs root: a time namespace: {ran.stderr.strip()}")
    assert ran.stdout.strip() == "0"
    assert process.start_ticks(os.getpid()) > 0
