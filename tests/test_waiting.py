"""How often a waiter asks, what it makes of what it knows, and how it waits without a thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dibs.cell import Cell, Hold
from dibs.cells import Seen
from dibs.errors import StoreUnavailable
from dibs.runtime import Holder
from dibs.runtime import pool as pool_module
from dibs.runtime.pool import Pool
from dibs.runtime.system import SystemRuntime
from dibs.stores.memory import MemoryStore
from dibs.tasks import Inbox, inbox
from dibs.waiting import (
    FIRST_MINUTE_REQUESTS_MAX,
    INTERVAL_MAX_S,
    INTERVAL_MIN_S,
    LATER_MINUTE_REQUESTS_MAX,
    Pause,
    Steps,
    drive,
    poll_interval_s,
    remaining_s,
)
from tests.fakes import FaultyStore, HandRuntime, cache_on, until


def held(age_s: float | None = 0.0, **news: float) -> Seen:
    return Seen(Cell("k", hold=Hold("c", Holder("h", "b", 1, 1, 1, "", "", "p"), 60.0, **news)), "v", "a", age_s)


def requests(seconds: float, ttl_s: float, promised_s: float | None, jitter: float) -> list[float]:
    """When one waiter asks, if its holder promises again and again to be ready in `promised_s`."""
    asked = [0.0]
    while asked[-1] < seconds:
        asked.append(asked[-1] + poll_interval_s(asked[-1], promised_s, ttl_s, jitter))
    return asked[:-1]


def budget_is_kept(asked: list[float]) -> bool:
    minutes = [sum(minute * 60 <= at < (minute + 1) * 60 for at in asked) for minute in range(5)]
    return minutes[0] <= FIRST_MINUTE_REQUESTS_MAX and max(minutes[1:]) <= LATER_MINUTE_REQUESTS_MAX


def test_the_request_budget_is_kept_with_the_default_ttl_when_nothing_is_promised() -> None:
    assert budget_is_kept(requests(300, 60.0, None, 0.5))


@pytest.mark.parametrize(("ttl_s", "promised_s"), [(1.0, None), (6.0, None), (60.0, 0.1), (60.0, 1.0)])
def test_the_request_budget_is_kept_whatever_the_holder_promises(ttl_s: float, promised_s: float | None) -> None:
    assert budget_is_kept(requests(300, ttl_s, promised_s, 0.5))


@given(st.floats(0, 1e6), st.none() | st.floats(0, 1e6), st.floats(0.05, 6e5), st.floats(0, 0.999))
def test_an_interval_is_never_too_short_nor_too_long(
    waited_s: float, promised_s: float | None, ttl_s: float, jitter: float
) -> None:
    interval_s = poll_interval_s(waited_s, promised_s, ttl_s, jitter)
    assert INTERVAL_MIN_S * 0.75 <= interval_s <= max(INTERVAL_MAX_S, INTERVAL_MIN_S) * 1.25


def test_a_waiter_is_late_by_about_a_tenth_at_most() -> None:
    for finished_s in (2.0, 10.0, 30.0):
        asked = requests(60, 60.0, None, 0.5)
        noticed_s = next(at for at in asked if at >= finished_s)
        assert noticed_s - finished_s <= 0.1 * finished_s + INTERVAL_MIN_S


def test_progress_tells_best_then_what_the_holder_expects_then_what_was_usual() -> None:
    assert remaining_s(held(held_s=10.0, progress=0.25), 0.0, 5.0) == 30.0
    assert remaining_s(held(held_s=10.0, expected_s=100.0), 0.0, 5.0) == 90.0
    assert remaining_s(held(held_s=10.0), 0.0, 50.0) == 40.0
    assert remaining_s(held(held_s=10.0), 0.0, None) is None


def test_time_since_the_record_was_written_counts() -> None:
    assert remaining_s(held(age_s=5.0, held_s=10.0, progress=0.5), 2.0, None) == 3.0
    assert remaining_s(held(age_s=500.0, held_s=10.0, progress=0.5), 2.0, None) == 0.0


@pytest.mark.parametrize("progress", [0.0, 1.0, 7.0, -1.0])
def test_absurd_progress_breaks_nothing(progress: float) -> None:
    left = remaining_s(held(held_s=10.0, progress=progress), 1.0, None)
    assert left is None or left >= 0.0


# -- what doesn't block ------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(tmp_path: Path) -> SystemRuntime:
    return SystemRuntime(runtime_dir=str(tmp_path / "runtime"))


def test_whoever_drives_sleeps_through_the_pauses_and_interrupts_strike_the_one_who_waits() -> None:
    runtime = HandRuntime()
    said = []

    def steps() -> Steps[str]:
        try:
            assert (yield Pause(5.0)) is False
            assert runtime.monotonic() == began + 5.0
            yield Pause(7.0, Interrupted())
        except KeyboardInterrupt:
            said.append("interrupted")
            return "tidied"
        return "never"

    class Interrupted:
        def wait(self, timeout_s: float) -> bool:
            raise KeyboardInterrupt

        def notify(self, callback: Callable[[], None]) -> bool:
            return False

    began = runtime.monotonic()
    assert drive(runtime, steps()) == "tidied" and said == ["interrupted"]


def test_a_watch_calls_back_when_its_file_changes_and_not_before_or_after_it_is_closed(
    tmp_path: Path, runtime: SystemRuntime
) -> None:
    file, called = tmp_path / "file", []
    file.write_bytes(b"old")
    watch = runtime.watch()
    watch.arm([str(file)], [])
    if not watch.notify(lambda: called.append(1)):
        pytest.skip("no inotify on this machine")
    assert not called and not watch.wait(0.0)
    file.write_bytes(b"new")
    until(lambda: called)
    assert watch.wait(0.0)
    watch.arm([str(file)], [])
    watch.notify(lambda: called.append(2))
    watch.close()
    file.write_bytes(b"newer")
    threading.Event().wait(0.05)
    assert 2 not in called
    # Nobody listens any more, so the thread that did ends.
    until(lambda: not any(thread.name == "dibs-watch" for thread in threading.enumerate()))


def test_a_change_before_there_is_a_callback_is_told_at_once(tmp_path: Path, runtime: SystemRuntime) -> None:
    file, called = tmp_path / "file", []
    file.write_bytes(b"old")
    watch, other = runtime.watch(), runtime.watch()
    watch.arm([str(file)], [])
    file.write_bytes(b"new")
    other.arm([str(file)], [])
    other.wait(0.0)  # reads the events for all
    if not watch.notify(lambda: called.append(1)):
        pytest.skip("no inotify on this machine")
    until(lambda: called)
    watch.close()
    other.close()


def test_a_pool_takes_calls_in_turn_on_a_few_threads_which_end_when_idle(
    runtime: SystemRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "IDLE_S", 0.02)
    pool, names, gate = Pool(runtime, 3), [], threading.Event()

    def call(number: int) -> None:
        gate.wait(10.0)
        names.append((number, threading.get_ident()))

    for number in range(50):
        pool.submit(lambda number=number: call(number))  # type: ignore[misc]
    gate.set()
    until(lambda: len(names) == 50)
    assert sorted(number for number, _ in names) == list(range(50)) and len({ident for _, ident in names}) <= 3
    until(lambda: pool._threads == 0)
    pool.submit(lambda: call(50))
    until(lambda: len(names) == 51)


def test_a_call_that_fails_costs_no_thread(runtime: SystemRuntime, caplog: pytest.LogCaptureFixture) -> None:
    pool, done = Pool(runtime, 1), []
    pool.submit(lambda: 1 / 0)
    pool.submit(lambda: done.append(1))
    until(lambda: done)
    assert "ZeroDivisionError" in caplog.text


def test_a_forked_child_has_a_pool_of_its_own(runtime: SystemRuntime) -> None:
    # Given a pool whose threads have something to do when the process forks
    pool, gate, done = Pool(runtime, 1), threading.Event(), []
    pool.submit(lambda: gate.wait(10.0))
    pool.submit(lambda: done.append("parent's"))
    child = os.fork()
    if child == 0:
        try:
            pool.submit(lambda: done.append("child's"))
            until(lambda: done)
            os._exit(0 if done == ["child's"] else 1)
        finally:
            os._exit(2)
    # then the child's calls run there, and its parent's don't.
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.set()
    until(lambda: done)
    assert done == ["parent's"]


def test_a_loop_goes_round_while_thousands_of_tasks_have_something_to_do() -> None:
    rounds = []

    async def one(box: Inbox) -> None:
        turn = box.turn()
        if turn is not None:
            await turn
        rounds.append(len(ticks))

    async def main() -> None:
        ticker = asyncio.create_task(tick())
        await asyncio.gather(*[one(inbox()) for _ in range(1000)])
        ticker.cancel()

    async def tick() -> None:
        while True:
            ticks.append(1)
            await asyncio.sleep(0)

    ticks: list[int] = []
    asyncio.run(main())
    per_round = [rounds.count(number) for number in set(rounds)]
    assert len(rounds) == 1000 and max(per_round) <= 100, "others have their turn in between"


# -- an outage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wait_s", "patience_s"), [(0.0, 1.5), (5.0, 6.0), (None, 61.0)])
def test_in_an_outage_a_lock_is_tried_no_longer_than_its_wait(wait_s: float | None, patience_s: float) -> None:
    runtime = HandRuntime()
    store = FaultyStore(MemoryStore(runtime))
    cache = cache_on(store, runtime, ttl_s=60.0)
    store.plan = ["lost"] * 1000
    began = runtime.monotonic()
    with pytest.raises(StoreUnavailable):
        cache.try_lock("name") if wait_s == 0.0 else cache.lock("name", wait_s=wait_s).acquire()
    assert runtime.monotonic() - began <= patience_s


def test_an_answer_that_is_lost_once_costs_a_try_lock_nothing() -> None:
    runtime = HandRuntime()
    cache = cache_on(FaultyStore(MemoryStore(runtime), "answer lost"), runtime)
    assert cache.try_lock("name") is not None
