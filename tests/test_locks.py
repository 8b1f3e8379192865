"""Plain locks: one holder, growing generations, and nobody who believes in a lost one."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dibs
from dibs.cache import Cache
from dibs.contend import leave, own_holds
from dibs.errors import LockLost, SettingsError, StoreUnavailable, WaitCircle, WaitTimeout
from dibs.runtime.system import SystemRuntime
from dibs.stores.memory import MemoryStore
from tests.fakes import Elsewhere, HandRuntime, break_lock, cache_on, crowd, in_thread, until


@pytest.fixture(autouse=True)
def own_flow() -> Iterator[None]:
    """Each test is a flow of its own: it leaves no holds to the next."""
    yield
    for hold in own_holds():
        leave(hold)


@pytest.fixture
def runtime() -> HandRuntime:
    return HandRuntime()


@pytest.fixture
def memory(runtime: HandRuntime) -> MemoryStore:
    return MemoryStore(runtime)


@pytest.fixture
def cache(memory: MemoryStore, runtime: HandRuntime) -> Cache:
    return cache_on(memory, runtime)


@pytest.fixture
def other(memory: MemoryStore, runtime: HandRuntime) -> Any:
    """A process on another host."""
    return Elsewhere(cache_on(memory, HandRuntime(runtime.clock)))


@pytest.fixture
def threads(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    runtime = SystemRuntime(runtime_dir=str(tmp_path_factory.mktemp("runtime")))
    return cache_on(MemoryStore(runtime), runtime)


def test_a_lock_keeps_others_out_until_it_is_left(cache: Cache, other: Any) -> None:
    with cache.lock("name") as lock:
        assert lock.held and lock.generation == 1
        lock.check()
        assert other.try_lock("name") is None
        with pytest.raises(WaitTimeout):
            other.lock("name", wait_s=5.0).acquire()
    assert other.try_lock("name").generation == 2


def test_generations_grow_through_release_take_over_and_unlock(cache: Cache, other: Any, runtime: HandRuntime) -> None:
    seen = []
    for step in ("release", "silence", "unlock", "release"):
        lock = cache.lock("name").acquire()
        seen.append(lock.generation)
        if step == "silence":
            runtime.sleep(100.0)
            taken = other.lock("name").acquire()
            seen.append(taken.generation)
            taken.release()
        elif step == "unlock":
            break_lock(other, "name")
        if step == "release":
            lock.release()
        else:
            with pytest.raises(LockLost):
                lock.release()
    assert seen == [1, 2, 3, 4, 5]


def test_try_lock_from_fresh_calls_takes_over_although_nobody_watches_all_the_time(
    cache: Cache, other: Any, runtime: HandRuntime
) -> None:
    cache.lock("name").acquire()
    began, got = runtime.monotonic(), None
    while got is None:
        runtime.sleep(1.0)
        got = other.try_lock("name")
    assert 66.0 <= runtime.monotonic() - began <= 68.0


def test_threads_hold_it_one_after_the_other(threads: Cache) -> None:
    inside, overlaps, generations = [], [], []

    def work(number: int) -> None:
        for _ in range(5):
            with threads.lock("name") as lock:
                inside.append(number)
                overlaps.append(len(inside) > 1)
                generations.append(lock.generation)
                inside.pop()

    assert crowd(4, work) == [None] * 4
    assert not any(overlaps) and generations == list(range(1, 21))


def test_a_thread_that_takes_it_twice_gets_an_error_and_not_a_hang(cache: Cache) -> None:
    with cache.lock("name"):
        with pytest.raises(WaitCircle, match=r"'name'.*reentrant=True") as raised:
            cache.lock("name").acquire()
        assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
        assert cache.try_lock("name") is None


def test_a_reentrant_lock_can_be_taken_again_by_its_thread_and_is_free_after_the_last(cache: Cache, other: Any) -> None:
    with cache.lock("name", reentrant=True) as outer:
        with cache.lock("name", reentrant=True) as inner:
            assert inner.generation == outer.generation
        assert outer.held and other.try_lock("name") is None
    assert other.try_lock("name") is not None


def test_a_reentrant_lock_of_one_name_in_two_stores_is_two_locks(cache: Cache, runtime: HandRuntime) -> None:
    second = MemoryStore(runtime)
    with cache.lock("name", reentrant=True), cache_on(second, runtime).lock("name", reentrant=True):
        assert Elsewhere(cache_on(second, HandRuntime(runtime.clock))).try_lock("name") is None


def test_another_thread_is_no_re_entry(threads: Cache) -> None:
    with (
        threads.lock("name", reentrant=True),
        in_thread(lambda: threads.lock("name", reentrant=True, wait_s=0.05).acquire()) as results,
    ):
        pass
    assert isinstance(results[0], WaitTimeout) or results[0].generation == 2


def test_a_circle_of_two_locks_in_two_threads_is_an_error(threads: Cache) -> None:
    both = threading.Barrier(2)

    def work(number: int) -> str:
        with threads.lock("ab"[number]):
            both.wait(10.0)
            with threads.lock("ba"[number]):
                return "both"

    results = crowd(2, work)
    assert any(isinstance(result, WaitCircle) for result in results), results
    assert all(result == "both" or isinstance(result, WaitCircle) for result in results), results


def test_a_lost_lock_says_so_by_event_check_and_release(cache: Cache, other: Any) -> None:
    lock = cache.lock("name").acquire()
    lost = lock.lost
    break_lock(other, "name")
    lock.beat()
    assert lost.is_set() and not lock.held
    with pytest.raises(LockLost):
        lock.check()
    with pytest.raises(LockLost, match="generation 1"):
        lock.release()


def test_the_error_of_the_block_matters_more_than_the_lost_lock_and_carries_a_note(cache: Cache, other: Any) -> None:
    def block() -> None:
        with cache.lock("name"):
            break_lock(other, "name")
            raise ValueError("planned")

    with pytest.raises(ValueError, match="planned") as caught:
        block()
    assert "LockLost" in caught.value.__notes__[0]


def test_a_lock_that_was_lost_raises_when_the_block_ends_well(cache: Cache, other: Any) -> None:
    with pytest.raises(LockLost), cache.lock("name"):
        break_lock(other, "name")


def test_a_lock_released_inside_the_block_may_be_left(cache: Cache, other: Any) -> None:
    with cache.lock("name") as lock:
        lock.release()
        assert other.try_lock("name") is not None
    with pytest.raises(LockLost):
        lock.release()


def test_one_lock_object_serves_one_block_at_a_time_and_may_be_used_again(cache: Cache) -> None:
    lock = cache.lock("name")
    with lock, pytest.raises(RuntimeError, match="in use"):
        lock.acquire()
    with lock:
        assert lock.generation == 2


@pytest.mark.parametrize("terms", [{"ttl_s": 0.0}, {"ttl_s": float("nan")}, {"beat_s": 50.0}, {"hold_max_s": -1.0}])
def test_impossible_times_are_refused_before_anything_is_taken(cache: Cache, terms: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        cache.lock("name", **terms)
    assert list(cache.locks()) == []


def test_locks_and_holds_list_who_has_what(cache: Cache, other: Any, runtime: HandRuntime) -> None:
    with cache.lock("held"), other.once("key"):
        other.lock("free").acquire().release()
        listed = {info.name: info for info in cache.locks()}
        assert (listed["held"].state, listed["free"].state) == ("held", "free")
        assert listed["held"].owner == runtime.host and listed["held"].generation == 1
        assert {info.name for info in cache.holds()} == {"held", "key"}


def test_a_lock_that_the_program_lost_track_of_stops_beating(threads: Cache) -> None:
    threads.lock("name").acquire()
    gc.collect()
    assert threads._heartbeat.living() == []


def test_a_lock_held_beyond_its_ttl_is_kept_by_its_beats(threads: Cache) -> None:
    other = cache_on(threads._store, threads._runtime)
    with threads.lock("name", ttl_s=0.1) as lock:
        assert isinstance(Elsewhere(other).try_lock("name"), type(None))
        beats = threads._cells
        until(lambda: (beats.look("locks/name", "name").cell.hold.beat or 0) >= 12)
        lock.check()
        assert Elsewhere(other).try_lock("name") is None


@pytest.mark.parametrize(
    "taken",
    ["held = dibs.open(url).try_lock('name')", "held = dibs.open(url).once('name').__enter__()"],
)
def test_what_a_cache_that_nobody_keeps_has_taken_is_usable_and_given_up_at_exit(tmp_path: Path, taken: str) -> None:
    url = str(tmp_path / "cache")
    script = f"import gc, dibs\nurl = {url!r}\n{taken}\ngc.collect()\nassert held.held\nheld.beat(0.5)\nheld.check()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    with dibs.open(url) as cache:
        # then the record itself says that nobody holds it: no need to prove anybody's death.
        assert not list(cache.holds()) and cache.total_stats().takeovers == 0
        assert [info.state for info in cache.locks()] in ([], ["free"])


def test_closing_the_cache_in_a_block_frees_the_lock_and_the_block_learns_of_it(cache: Cache, other: Any) -> None:
    outer = cache.lock("name", reentrant=True).acquire()
    inner = cache.lock("name", reentrant=True).acquire()
    cache.close()
    assert not outer.held
    with pytest.raises(LockLost, match="given up"):
        outer.check()
    taken = other.try_lock("name")
    assert taken.held
    for lock in (inner, outer):
        with pytest.raises(LockLost, match="close"):
            lock.__exit__(None, None, None)
    assert taken.held, "what is another's now was given up at the end of the block"
    with pytest.raises(StoreUnavailable, match="closed"):
        cache.lock("name", wait_s=0.0).acquire()
