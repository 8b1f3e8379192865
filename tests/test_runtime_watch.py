"""A watch wakes on every way a record or a holder changes, with inotify and without."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dibs.runtime import Watch, linux
from dibs.runtime.system import SystemRuntime
from dibs.runtime.watch import Inotify
from dibs.stores.local import LocalStore

LONG_S = 20.0
NAME = "keys/f/0"


@pytest.fixture(params=["inotify", "polling"])
def mine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SystemRuntime:
    if request.param == "polling":

        def exhausted() -> int:
            raise OSError(24, "too many inotify instances")

        monkeypatch.setattr(linux, "inotify_init", exhausted)
    return SystemRuntime(runtime_dir=str(tmp_path / "runtime"))


@pytest.fixture
def store(mine: SystemRuntime, tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"), mine)


@pytest.fixture
def watch(mine: SystemRuntime) -> Iterator[Watch]:
    watch = mine.watch()
    yield watch
    watch.close()


def wakes(watch: Watch, change: Callable[[], object]) -> bool:
    """Whether the change, made by another thread while we wait, ends the wait early."""
    timer = threading.Timer(0.02, change)
    timer.start()
    started = time.monotonic()
    woken = watch.wait(LONG_S)
    timer.join()
    return woken and time.monotonic() - started < LONG_S / 2


def test_a_swap_in_place_wakes(store: LocalStore, watch: Watch) -> None:
    version = store.swap(NAME, None, b"a")
    for number in range(5):
        watch.arm(store.files_of(NAME), ())
        written: list[str] = []

        def write(number: int = number, written: list[str] = written, old: str = version) -> None:
            written.append(store.swap(NAME, old, b"%d" % number))

        assert wakes(watch, write)
        version = written[0]


def test_a_swap_that_replaces_the_file_wakes_and_so_does_the_next(store: LocalStore, watch: Watch) -> None:
    version = store.swap(NAME, None, b"a")
    watch.arm(store.files_of(NAME), ())
    assert wakes(watch, lambda: store.swap(NAME, version, b"b" * 9000))
    watch.arm(store.files_of(NAME), ())
    record = store.read(NAME)
    assert wakes(watch, lambda: store.swap(NAME, record.version, b"c"))  # type: ignore[union-attr]


def test_a_file_renamed_over_it_wakes(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "record").write_text("old")
    (tmp_path / "new").write_text("new")
    watch.arm([str(tmp_path / "record")], ())
    assert wakes(watch, lambda: os.replace(tmp_path / "new", tmp_path / "record"))


def test_a_file_that_appears_wakes(tmp_path: Path, watch: Watch) -> None:
    watch.arm([str(tmp_path / "record")], ())
    assert wakes(watch, (tmp_path / "record").touch)


def test_a_change_between_arm_and_wait_is_not_missed(store: LocalStore, watch: Watch) -> None:
    version = store.swap(NAME, None, b"a")
    for number in range(20):
        watch.arm(store.files_of(NAME), ())
        version = store.swap(NAME, version, b"%d" % number)
        assert watch.wait(LONG_S)


def test_nothing_does_not_wake_and_the_timeout_is_kept(store: LocalStore, watch: Watch) -> None:
    store.swap(NAME, None, b"a")
    for timeout_s in (0.0, 0.0004, 0.0113, 0.05):
        watch.arm(store.files_of(NAME), ())
        started = time.monotonic()
        assert not watch.wait(timeout_s)
        assert time.monotonic() - started >= timeout_s


def test_another_record_does_not_wake(store: LocalStore, watch: Watch) -> None:
    store.swap(NAME, None, b"a")
    other = store.swap("keys/f/1", None, b"a")
    watch.arm(store.files_of("keys/f/1"), ())
    watch.arm(store.files_of(NAME), ())
    store.swap("keys/f/1", other, b"b")
    assert not watch.wait(0.03)


def hold_in_a_child(runtime: SystemRuntime, beacon_dir: str) -> tuple[int, str]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, runtime.holder(beacon_dir).beacon.encode())
            while True:
                signal.pause()
        finally:
            os._exit(1)
    beacon = os.read(reader, 4096).decode()
    os.close(reader)
    os.close(writer)
    return child, beacon


def test_the_death_of_a_holder_wakes(mine: SystemRuntime, store: LocalStore, watch: Watch) -> None:
    store.swap(NAME, None, b"held")
    child, beacon = hold_in_a_child(mine, store.beacon_dir)
    watch.arm(store.files_of(NAME), [beacon])
    assert not watch.wait(0.03), "it lives"
    assert wakes(watch, lambda: os.kill(child, signal.SIGKILL))
    assert _is_free(beacon), "by then the lock is free, so nobody looks in vain"
    os.waitpid(child, 0)


def _is_free(path: str) -> bool:
    from dibs.runtime import beacon

    return beacon.state(path) == "free"


def test_a_watch_waits_for_the_lock_that_is_let_go_just_after_the_event(watch: Watch, tmp_path: Path) -> None:
    beacon = tmp_path / "0123456789abcdef.beacon"
    fd = os.open(beacon, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    watch.arm((), [str(beacon)])

    def die_slowly() -> None:
        os.close(os.open(beacon, os.O_RDWR))  # as the kernel: the event first,
        time.sleep(0.005)
        os.close(fd)  # then the lock

    dying = threading.Thread(target=die_slowly)
    dying.start()
    assert watch.wait(LONG_S)
    assert _is_free(str(beacon)), "whoever is woken must see the death"
    dying.join()


def test_a_holder_that_died_before_we_watched_wakes(mine: SystemRuntime, store: LocalStore, watch: Watch) -> None:
    store.swap(NAME, None, b"held")
    child, beacon = hold_in_a_child(mine, store.beacon_dir)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    watch.arm(store.files_of(NAME), [beacon])
    assert watch.wait(LONG_S)
    watch.arm(store.files_of(NAME), [beacon])
    assert not watch.wait(0.01), "it has been told once"


def test_a_beacon_that_is_gone_does_not_wake(store: LocalStore, watch: Watch, tmp_path: Path) -> None:
    store.swap(NAME, None, b"held")
    watch.arm(store.files_of(NAME), [str(tmp_path / "0123456789abcdef.beacon")])
    assert not watch.wait(0.01)


def test_many_threads_each_wake_for_their_own_record(mine: SystemRuntime, store: LocalStore) -> None:
    names = [f"keys/f/{number}" for number in range(12)]
    versions = {name: store.swap(name, None, b"a") for name in names}
    armed = threading.Barrier(len(names) + 1)
    woken: list[str] = []

    def wait(name: str) -> None:
        watch = mine.watch()
        watch.arm(store.files_of(name), ())
        armed.wait(LONG_S)
        if watch.wait(LONG_S):
            woken.append(name)
        watch.close()

    threads = [threading.Thread(target=wait, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    armed.wait(LONG_S)
    for number, name in enumerate(names):
        store.swap(name, versions[name], b"b")
        threads[number].join(LONG_S / 2)
        assert not threads[number].is_alive(), f"{name} changed, and its waiter sleeps"
    assert woken == names


def test_when_the_thread_that_reads_for_all_leaves_another_takes_over(mine: SystemRuntime, store: LocalStore) -> None:
    versions = [store.swap(f"keys/f/{number}", None, b"a") for number in range(2)]
    first, second = mine.watch(), mine.watch()
    first.arm(store.files_of("keys/f/0"), ())
    second.arm(store.files_of("keys/f/1"), ())
    results: list[bool] = []
    leader = threading.Thread(target=lambda: first.wait(0.05))
    follower = threading.Thread(target=lambda: results.append(second.wait(LONG_S)))
    leader.start()
    follower.start()
    leader.join()
    store.swap("keys/f/1", versions[1], b"b")
    follower.join(LONG_S / 2)
    assert results == [True]


def test_two_watches_of_one_file_do_not_disturb_each_other(mine: SystemRuntime, store: LocalStore) -> None:
    version = store.swap(NAME, None, b"a")
    first, second = mine.watch(), mine.watch()
    first.arm(store.files_of(NAME), ())
    second.arm(store.files_of(NAME), ())
    first.close()
    assert wakes(second, lambda: store.swap(NAME, version, b"b"))


def test_a_forked_child_watches_for_itself_and_takes_nothing_from_its_parent(
    mine: SystemRuntime, store: LocalStore, watch: Watch
) -> None:
    version = store.swap(NAME, None, b"a")
    watch.arm(store.files_of(NAME), ())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            watch.wait(0)
            watch.arm(store.files_of(NAME), ())
            os.write(writer, b"armed")
            os._exit(0 if watch.wait(LONG_S) else 1)
        finally:
            os._exit(2)
    assert os.read(reader, 5) == b"armed"
    store.swap(NAME, version, b"b")
    assert os.waitpid(child, 0)[1] == 0
    assert watch.wait(LONG_S), "the parent gets its event too"


def test_waiting_burns_no_cpu(mine: SystemRuntime, store: LocalStore, watch: Watch) -> None:
    store.swap(NAME, None, b"a")
    watch.arm(store.files_of(NAME), ())
    before = time.process_time()
    assert not watch.wait(0.3)
    assert time.process_time() - before < 0.06


def test_a_descriptor_that_somebody_closed_is_not_closed_once_more(tmp_path: Path) -> None:
    inotify = Inotify()
    fd = inotify.fd
    os.close(fd)
    (tmp_path / "file").touch()
    mine = os.open(tmp_path / "file", os.O_RDONLY)
    if mine != fd:
        os.dup2(mine, fd)
        os.close(mine)
    inotify.abandon()
    os.close(fd)  # or it is not open any more
