"""A helper process keeps holds alive while native code keeps the interpreter lock, and prolongs nothing else."""

from __future__ import annotations

import ctypes
import json
import logging
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dibs
from dibs import beater, heartbeat
from dibs import cell as table
from dibs.beater import Beater, beating, stand_in_for
from dibs.beater.beating import Beats
from dibs.beater.board import SEATS_MAX, Answer, Board, Notice
from dibs.errors import LockLost, SettingsError, WaitTimeout
from dibs.names import LOCKS, record_name
from dibs.runtime import process
from dibs.runtime.system import SystemRuntime, system
from dibs.store import limited_s
from dibs.stores.memory import MemoryStore
from tests.fakes import FaultyStore, until
from tests.test_hold import TTL_S, Worker, losses

TTL = 0.6
NAME = record_name(LOCKS, "name")

BEGIN = """
import ctypes, json, os, sys, time
import dibs
url, heartbeat, ttl_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
native = ctypes.PyDLL(None)  # which keeps the interpreter lock while it calls

def keep_the_interpreter(seconds):
    native.usleep(int(seconds * 1e6))

def say(**what):
    print(json.dumps(what), flush=True)

def helper():
    return cache._heartbeat.stand_in._board.helper[0]
"""


@contextmanager
def program(code: str, url: object, heartbeat: str = "process", ttl_s: float = TTL) -> Iterator[subprocess.Popen[str]]:
    """Another program, which speaks JSON lines; it is gone, and so is its helper, when the block ends."""
    command = [sys.executable, "-c", BEGIN + code, str(url), heartbeat, str(ttl_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def heard(running: subprocess.Popen[str]) -> Any:
    assert running.stdout is not None
    return json.loads(running.stdout.readline())


def alive(pid: int) -> bool:
    return process.fate(pid, 0).dead is None


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


HOLD_AND_KEEP = """
cache = dibs.open(url, heartbeat=heartbeat, ttl_s=ttl_s)
lock = cache.lock("name").acquire()
say(held=True)
keep_the_interpreter(3 * ttl_s)
held = lock.held
try:
    lock.check()
    lost = ""
except dibs.LockLost as error:
    lost = str(error)
say(held=held, lost=lost)
sys.stdin.read()
"""


def test_nobody_takes_over_from_native_code_that_keeps_the_interpreter_lock(url: str) -> None:
    with program(HOLD_AND_KEEP, url) as holder, dibs.open(url, ttl_s=TTL) as cache:
        heard(holder)
        with pytest.raises(WaitTimeout):
            cache.lock("name", wait_s=2.9 * TTL).acquire()
        assert heard(holder) == {"held": True, "lost": ""}, "and it can prove it without asking the store"


def test_with_threads_only_the_late_worker_is_told(url: str) -> None:
    with program(HOLD_AND_KEEP, url, "thread") as holder, dibs.open(url, ttl_s=TTL) as cache:
        heard(holder)
        with cache.lock("name", wait_s=5 * TTL) as lock:
            assert lock.generation == 2
            told = heard(holder)
            assert not told["held"] and "taken over" in told["lost"]


def test_hold_max_s_ends_the_beats_of_the_helper_too(url: str) -> None:
    code = HOLD_AND_KEEP.replace('lock("name")', 'lock("name", hold_max_s=ttl_s)')
    with program(code, url) as holder, dibs.open(url, ttl_s=TTL) as cache:
        heard(holder)
        with cache.lock("name", wait_s=2.9 * TTL):
            assert "longer than hold_max_s" in heard(holder)["lost"]


def test_a_stopped_holder_is_silent_and_told_when_it_goes_on(url: str) -> None:
    with program(HOLD_AND_KEEP, url) as holder, dibs.open(url, ttl_s=TTL) as cache:
        heard(holder)
        os.kill(holder.pid, signal.SIGSTOP)
        with cache.lock("name", wait_s=5 * TTL) as lock:
            assert lock.generation == 2
            os.kill(holder.pid, signal.SIGCONT)
            assert "taken over" in heard(holder)["lost"]


def test_the_helper_ends_with_its_holder_although_a_child_has_all_of_its_descriptors(url: str) -> None:
    code = """
cache = dibs.open(url, heartbeat=heartbeat, ttl_s=ttl_s)
lock = cache.lock("name").acquire()
child = native.fork()  # behind the back of Python: nothing is closed
if child == 0:
    native.sleep(30)
    os._exit(0)
say(helper=helper(), child=child)
sys.stdin.read()
"""
    with program(code, url, ttl_s=19.0) as holder:  # so that it looks at the board every 1.6 s only
        told = heard(holder)
        try:
            assert alive(told["helper"])
            holder.kill()
            until(lambda: not alive(told["helper"]), 1.2)
        finally:
            os.kill(told["child"], signal.SIGKILL)


def test_the_helper_ends_soon_after_the_cache_is_closed_although_a_child_has_its_descriptors(url: str) -> None:
    cache = dibs.open(url, ttl_s=TTL, heartbeat="process")
    with cache.lock("name"):
        pid = helper_of(cache)
        child = ctypes.CDLL(None).fork()  # behind the back of Python: nothing is closed
        if child == 0:
            signal.pause()
    try:
        assert alive(pid)
        cache.close()
        until(lambda: not alive(pid), 2.0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def helper_of(cache: dibs.Cache) -> int:
    stand_in = cache._heartbeat.stand_in
    assert isinstance(stand_in, Beater) and stand_in._board is not None
    return stand_in._board.helper[0]


def test_an_idle_cache_lets_its_helper_go_and_gets_another_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_REST_MAX_S", 0.05)
    with dibs.open(url, ttl_s=TTL, heartbeat="process") as cache:
        with cache.lock("name"):
            pid = helper_of(cache)
        until(lambda: not alive(pid), 5.0)
        with cache.lock("name"):
            assert helper_of(cache) != pid and alive(helper_of(cache))


def test_a_helper_that_is_killed_is_replaced_with_a_warning_and_the_hold_goes_on(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with dibs.open(url, ttl_s=TTL, heartbeat="process") as cache, cache.lock("name") as lock:
        pid = helper_of(cache)
        with caplog.at_level(logging.WARNING, "dibs"):
            os.kill(pid, signal.SIGKILL)
            until(lambda: helper_of(cache) != pid and alive(helper_of(cache)), 10.0)
        assert "helper process" in caplog.text and "killed or out of memory" in caplog.text
        lock.check()
        assert lock.generation == 1


def test_a_helper_that_cannot_open_the_store_says_why_and_is_not_started_over_and_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = SystemRuntime(runtime_dir=str(tmp_path))
    stand_in = Beater(runtime, "nowhere://at/all", "plain", 10.0)
    with caplog.at_level(logging.WARNING, "dibs"):
        stand_in._users.add(1)
        for _ in range(2):  # the second one at once, the next only after a pause
            stand_in.look_after()
            until(lambda: stand_in.look_after() or stand_in._failures > _)  # noqa: B023
        until(lambda: stand_in.look_after() or stand_in._connection is None)
    stand_in.rest(1)
    assert "SettingsError: nowhere:// is no store" in caplog.text
    assert stand_in._not_before > runtime.monotonic()


def test_programs_that_wait_for_all_their_children_do_not_wait_for_the_helper(url: str) -> None:
    code = """
cache = dibs.open(url, heartbeat=heartbeat, ttl_s=ttl_s)
lock = cache.lock("name").acquire()
try:
    while True:
        os.wait()
except ChildProcessError:
    say(helper=helper())
sys.stdin.read()
"""
    with program(code, url) as holder:
        assert alive(heard(holder)["helper"])


def test_the_helper_hears_no_ctrl_c_and_keeps_nothing_open(url: str) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with dibs.open(url, ttl_s=TTL, heartbeat="process") as cache, cache.lock("name"):
        pid = helper_of(cache)
        os.close(writing)
        assert select.select([reading], [], [], 5.0)[0] and os.read(reading, 1) == b"", "nobody has the other end"
        assert os.getsid(pid) != os.getsid(0)
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        with cache.lock("other"):
            assert helper_of(cache) == pid and alive(pid)
    os.close(reading)


def test_nothing_of_the_store_stands_on_the_command_line(url: str) -> None:
    with dibs.open(url, ttl_s=TTL, heartbeat="process") as cache, cache.lock("name"):
        line = Path(f"/proc/{helper_of(cache)}/cmdline").read_bytes()
        assert b"keeps the holds of process" in line and url.encode() not in line


def _in_a_worker(url: str, answers: Any) -> None:
    with dibs.open(url, ttl_s=TTL, heartbeat="process") as cache, cache.lock("name") as lock:
        answers.put((os.getpid(), helper_of(cache), alive(helper_of(cache)), lock.generation))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_have_helpers_of_their_own(url: str, method: str) -> None:
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    with dibs.open(url, ttl_s=TTL, heartbeat="process") as cache, cache.lock("other"):
        worker = context.Process(target=_in_a_worker, args=(url, answers), daemon=True)
        worker.start()
        pid, helper, was_alive, generation = answers.get()
        worker.join(10)
        assert pid == worker.pid and was_alive and generation == 1
        assert helper != helper_of(cache) and alive(helper_of(cache)), "and the parent keeps its own"
        until(lambda: not alive(helper), 5.0)


def test_a_forked_child_that_uses_the_cache_of_its_parent_gets_a_helper_of_its_own(url: str) -> None:
    with dibs.open(url, ttl_s=TTL, heartbeat="process") as cache, cache.lock("name") as lock:
        pid = helper_of(cache)
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                with cache.lock("other"):
                    os.write(writing, json.dumps([helper_of(cache), lock.held]).encode())
                cache.close()
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            helper, held = json.loads(answer.read())
        os.wait()
        assert helper != pid and not held
        assert alive(pid) and lock.held
        lock.check()


@pytest.mark.parametrize("options", [["-I"], ["-S"], ["-W", "error"]], ids=" ".join)
def test_the_helper_finds_what_its_holder_found_however_that_was_started(url: str, options: list[str]) -> None:
    code = f"import sys\nsys.path[:] = {[*sys.path]!r}\n" + BEGIN + HOLD_AND_KEEP.replace("3 *", "0 *").replace(
        "say(held=True)", "say(helper=helper())"
    )
    command = [sys.executable, *options, "-c", code, url, "process", "0.6"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd="/") as running:
        assert alive(heard(running)["helper"])
        running.kill()


def test_what_no_helper_can_open_is_an_error_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="memory: store; use a folder"):
        dibs.open("memory:", heartbeat="process")
    with pytest.raises(SettingsError, match="give its URL"):
        dibs.open(MemoryStore(system()), heartbeat="process")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(SettingsError, match="no Python interpreter"):
        dibs.open(url, heartbeat="process")


def test_caches_on_one_store_share_a_helper(url: str) -> None:
    with dibs.open(url, heartbeat="process") as one, dibs.open(url, heartbeat="process") as other:
        assert one._heartbeat.stand_in is other._heartbeat.stand_in
        with dibs.open(url + "2", heartbeat="process") as third:
            assert third._heartbeat.stand_in is not one._heartbeat.stand_in


# -- the board -----------------------------------------------------------------------------------------------------


def notice(**other: Any) -> Notice:
    return Notice("c" * 16, NAME, "version", (1.0, 2.0, 3.0), 1.0, 10.0, float("inf"))._replace(**other)


def test_what_one_side_writes_the_other_side_reads() -> None:
    mine = Board()
    theirs = Board(os.dup(mine.fd))
    first, second = mine.take(), mine.take()
    assert first is not None and second is not None
    assert mine.notify(second, notice())
    assert list(theirs.notices()) == [(second, notice())]
    theirs.reply(second, Answer("c" * 16, "version", None, "next", 3, False))
    assert mine.answer(second) == Answer("c" * 16, "version", None, "next", 3, False)
    mine.give_back(second)
    assert list(theirs.notices()) == []


def test_a_half_written_notice_is_not_believed() -> None:
    board = Board()
    seat = board.take()
    assert seat is not None
    board.notify(seat, notice())
    at = 4096 + seat * 1536 + 20
    board._memory[at : at + 4] = b"\xff\xff\xff\xff"
    assert list(board.notices()) == []


def test_a_seat_is_given_to_one_hold_at_a_time_and_an_old_answer_is_nobodys(tmp_path: Path) -> None:
    stand_in = Beater(SystemRuntime(runtime_dir=str(tmp_path)), "nowhere", "plain", 10.0)
    stand_in._board = board = Board()
    old = stand_in.seat("a" * 16, NAME, "v1", (1.0, 1.0, 1.0), 10.0, 1e9)
    assert old is not None
    board.reply(0, Answer("a" * 16, "v1", (2.0, 2.0, 2.0), "v2", 1, False))
    assert old.report() is not None
    old.leave()
    old.leave()
    new = stand_in.seat("b" * 16, NAME, "v1", (1.0, 1.0, 1.0), 10.0, 1e9)
    other = stand_in.seat("c" * 16, NAME, "v1", (1.0, 1.0, 1.0), 10.0, 1e9)
    assert new is not None and other is not None
    assert new.report() is None and old.report() is None
    old.tell("v9", (9.0, 9.0, 9.0))
    assert {found.claim for _, found in board.notices()} == {"b" * 16, "c" * 16}
    new.tell("v2", (9.0, 9.0, 9.0))
    board.reply(0, Answer("b" * 16, "v1", (2.0, 2.0, 2.0), "v3", 1, False))
    assert new.report() is None, "the holder has written since"


def test_holds_that_find_no_room_are_kept_by_a_thread_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in = Beater(SystemRuntime(runtime_dir=str(tmp_path)), "nowhere", "plain", 10.0)
    stand_in._board = Board()
    seats = [stand_in.seat("a" * 16, NAME, "v", (1.0, 1.0, 1.0), 10.0, 1e9) for _ in range(SEATS_MAX)]
    assert None not in seats
    with caplog.at_level(logging.WARNING, "dibs"):
        assert stand_in.seat("a" * 16, NAME, "v", (1.0, 1.0, 1.0), 10.0, 1e9) is None
    assert "too many holds" in caplog.text


# -- the beats of the helper, without a process around them ----------------------------------------------------------


class Someone:
    """The holder's process, as a test wants it."""

    pidfd, look_s = -1, float("inf")
    is_paused = False

    def gone(self) -> bool:
        return False

    def paused(self) -> bool:
        return self.is_paused


class Helped:
    """A holder, its hold, and a helper whose clock is the holder's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worker = Worker()
        self.runtime = self.worker.runtime
        self.store = FaultyStore(self.worker.memory)
        monkeypatch.setattr(beating, "system", lambda: self.runtime)
        monkeypatch.setattr(beating, "open_store", lambda url, runtime: self.store)
        self.board, self.someone = Board(), Someone()
        connection, self._other = socket.socketpair()
        orders = {"url": "", "dialect": "plain", "beat_s": 10.0, "number": 1}
        self.beats = Beats(orders, self.someone, self.board, connection)  # type: ignore[arg-type]
        stand_in = Beater(self.runtime, "", "plain", 10.0)  # type: ignore[arg-type]
        stand_in._board = self.board
        stand_in.start = lambda who, beat_s: None  # type: ignore[method-assign]
        self.worker.heartbeat.stand_in = stand_in

    def look(self) -> None:
        """The helper looks at the board, and beats where that is due."""
        self.runtime.started.clear()
        self.beats._start_what_is_due()
        for beat in self.runtime.started:
            beat()

    def late(self, times: int = 1) -> None:
        for _ in range(times):
            self.runtime.sleep(15.0)
            self.look()


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> Helped:
    return Helped(monkeypatch)


def test_the_helper_beats_only_for_a_holder_that_is_late(helped: Helped) -> None:
    hold = helped.worker.hold()
    helped.look()
    for _ in range(5):
        helped.runtime.sleep(10.0)
        hold.keep()
        helped.look()
    assert helped.store.sent == helped.store.reads == 0
    helped.late()
    assert helped.store.sent == 1


def test_a_holder_believes_in_its_hold_by_the_beats_of_the_helper(helped: Helped) -> None:
    hold = helped.worker.hold()
    who = helped.worker.cell().hold.who
    helped.late(20)
    assert hold.held
    hold.check()
    there = helped.worker.cell().hold
    assert there.beat == 20 and there.held_s == 300.0 and there.who == who
    helped.runtime.sleep(TTL_S)
    assert not hold.held, "and not for longer than by its own"


def test_the_deadline_counts_from_before_the_helper_sent_its_beat(helped: Helped) -> None:
    hold = helped.worker.hold()
    helped.store.before = lambda kind, name: kind == "swap" and helped.runtime.clock.sleep(20.0)
    helped.late()
    helped.runtime.sleep(TTL_S * 2 / 3 - 20.0 - 0.1)
    assert hold.held
    helped.runtime.sleep(0.2)
    assert not hold.held


@pytest.mark.parametrize("end", ["release", "commit"])
def test_a_hold_that_the_helper_kept_ends_without_a_request_more(helped: Helped, end: str) -> None:
    hold = helped.worker.hold()
    helped.late(3)
    store = helped.worker.store
    sent, reads = store.sent, store.reads
    if end == "release":
        hold.release()
    else:
        assert hold.commit(helped.worker.value(), 1.0).how == "published"
    assert (store.sent - sent, store.reads - reads) == (1, 0)
    assert helped.worker.cell().hold is None


def test_holder_and_helper_take_turns(helped: Helped) -> None:
    hold = helped.worker.hold()
    store = helped.worker.store
    sent, reads = store.sent, store.reads
    for turn in range(5):
        helped.late()
        hold.progress = turn / 10
        assert hold.keep() == 10.0
    assert helped.worker.cell().hold.beat == 10 and helped.worker.cell().hold.progress == 0.4
    assert (store.sent, store.reads) == (sent + 5, reads), "and the holder doesn't stumble over the helper's beats"
    helped.late(5)
    assert hold.held
    assert helped.worker.cell().hold.progress == 0.4, "the helper keeps what the holder wrote"


def test_what_others_changed_beside_the_hold_is_never_undone(helped: Helped) -> None:
    # Given a hold over an old value, which turns out to be unreadable while the helper beats
    worker = helped.worker
    worker.hold().commit(worker.value(b"old"), 1.0)
    hold = worker.hold(table.recompute)
    helped.late()
    rival = worker.rival()
    rival.cells.change(hold.name, "key", "x", lambda seen: table.drop_old(seen.cell), 1.0)
    helped.late()
    assert hold.held and worker.cell().value is None
    # when the holder writes again, then the value stays away.
    assert hold.beat()
    assert worker.cell().value is None and worker.cell().hold.beat == 3
    hold.release()


@pytest.mark.parametrize("how", losses())
def test_the_helper_never_touches_a_record_without_the_claim_and_tells_its_holder(helped: Helped, how: str) -> None:
    hold = helped.worker.hold()
    losses()[how](helped.worker.rival())
    before = helped.worker.cell()
    helped.late(2)
    assert helped.store.applied == 0 and helped.worker.cell() == before
    assert not hold.held, "at once, and not only when its time is up"
    with pytest.raises(LockLost):
        hold.check()


def test_a_record_that_was_damaged_is_left_to_its_holder(helped: Helped) -> None:
    helped.worker.hold()
    memory = helped.worker.memory
    name = record_name("keys", "key")
    memory.swap(name, memory.read(name).version, b"garbage")
    helped.late(2)
    assert memory.read(name).data == b"garbage"


@pytest.mark.parametrize("why", ["paused", "overdue", "given up", "out of sight"])
def test_nothing_prolongs_a_hold_that_its_holder_does_not_keep(helped: Helped, why: str) -> None:
    hold = helped.worker.hold(hold_max_s=20.0 if why == "overdue" else None)
    helped.late()
    assert helped.store.sent == 1
    if why == "paused":
        helped.someone.is_paused = True
    elif why == "given up":
        hold.let_go()
    elif why == "out of sight":
        with pytest.warns(ResourceWarning, match="was held and nobody can give it up"):
            del hold
    helped.late(3)
    assert helped.store.sent == 1


@pytest.mark.parametrize("plan", [["lost"], ["answer lost"], ["late"]], ids="+".join)
def test_a_beat_of_the_helper_without_an_answer_is_brought_to_an_end(helped: Helped, plan: list[str]) -> None:
    hold = helped.worker.hold()
    helped.store.plan = list(plan)
    helped.late()
    assert hold.held and helped.worker.cell().hold.beat == 1
    hold.release()
    assert table.how_ended(helped.worker.cell(), hold.claim) == "released"


def test_a_store_that_was_down_is_asked_again_soon(helped: Helped) -> None:
    hold = helped.worker.hold()
    helped.store.down = True
    helped.late()
    helped.store.down = False
    helped.runtime.sleep(2.5)
    helped.look()
    assert hold.held and helped.worker.cell().hold.beat == 1


def test_requests_of_the_helper_take_at_most_one_beat_of_the_hold_that_they_are_for(helped: Helped) -> None:
    limits: list[float] = []
    helped.store.before = lambda kind, name: limits.append(limited_s(99.0))
    hold = helped.worker.hold()
    limits.clear()
    helped.late()
    assert set(limits) == {10.0}
    seat = helped.board.take()
    assert seat is not None and helped.board.notify(seat, notice(beat_s=2.0))
    helped.look()
    assert limits[-1] == 2.0
    limits.clear()
    helped.late()
    assert hold.held and 10.0 in limits


def test_a_release_that_crosses_a_beat_of_the_helper_wins(helped: Helped) -> None:
    hold = helped.worker.hold()
    helped.late()
    released: list[bool] = []

    def release_first(kind: str, name: str) -> None:
        if kind == "swap" and not released:
            released.append(True)
            hold.release()

    helped.store.before = release_first
    helped.late()
    assert released and helped.worker.cell().hold is None
    assert helped.store.applied == 1


def test_stand_ins_are_told_apart_by_store_and_process(url: str) -> None:
    with dibs.open(url) as cache:
        one = stand_in_for(cache._store, system(), 10.0)
        assert stand_in_for(cache._store, system(), 10.0) is one
        assert (system().process(), cache.url, cache._store.dialect) in beater._known
