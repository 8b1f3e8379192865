"""Children: a forked one owns nothing of its parent's, and every kind may use the cache."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest

import dibs
from tests.fakes import Counted, until

JOIN_S = 20.0


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[dibs.Cache]:
    with dibs.open(str(tmp_path / "cache"), ttl_s=3.0) as cache:
        yield cache


def in_child(what: Callable[[], Any]) -> Any:
    """Run `what` in a forked child, which ends at once; its result, or an error with its traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                answer: Any = (True, what())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        good, result = pickle.load(pipe)
    os.waitpid(child, 0)
    assert good, result
    return result


def hold_of(cache: dibs.Cache, space: str, key: str) -> Any:
    return cache._cells.look(f"{space}/{key}", key).cell.hold


def test_a_child_of_a_lock_holder_owns_nothing_and_cannot_release_for_it(cache: dibs.Cache) -> None:
    with cache.lock("name") as lock:
        before = hold_of(cache, "locks", "name").claim

        def child() -> tuple[bool, str, bool]:
            held = lock.held
            try:
                lock.check()
                checked = "held"
            except dibs.LockLost as error:
                checked = str(error)
            lock.beat()
            lock.__exit__(None, None, None)
            cache.close()
            return held, checked, cache.try_lock("name") is None

        held, checked, kept_out = in_child(child)
        assert not held and "forked" in checked and kept_out
        assert hold_of(cache, "locks", "name").claim == before
        lock.check()
    assert cache.try_lock("name") is not None


def test_a_parent_keeps_its_lock_beyond_the_ttl_after_a_child_came_and_went(cache: dibs.Cache) -> None:
    with cache.lock("name", ttl_s=0.3) as lock:
        in_child(lambda: cache.get("anything"))
        before = hold_of(cache, "locks", "name").beat
        until(lambda: hold_of(cache, "locks", "name").beat >= before + 10)
        lock.check()


def test_a_child_may_use_the_cache_and_lock_for_itself(cache: dibs.Cache) -> None:
    cache.put("key", [1])

    def child() -> Any:
        with cache.lock("its own") as lock:
            return cache.get("key"), cache.get_or_compute("computed there", lambda: 7), lock.generation, lock.held

    assert in_child(child) == ([1], 7, 1, True)
    assert cache.get("computed there") == 7
    assert cache.try_lock("its own") is not None


def test_the_hold_of_a_child_that_died_in_its_computation_is_taken_over_at_once(cache: dibs.Cache) -> None:
    def child() -> None:
        cache.once("key").__enter__()

    in_child(child)
    assert hold_of(cache, "keys", "key") is not None
    assert cache.get_or_compute("key", Counted("mine"), wait_s=1.0) == "mine"
    assert cache.stats().takeovers == 1


def test_a_fork_in_the_middle_of_a_computation_computes_once(cache: dibs.Cache) -> None:
    def compute() -> str:
        assert in_child(lambda: cache.get_or_compute("other", lambda: "from the child")) == "from the child"
        assert in_child(lambda: [hold.held for hold in _own()]) == []
        return "value"

    assert cache.get_or_compute("key", compute) == "value"
    assert cache.get("other") == "from the child"


def _own() -> tuple[Any, ...]:
    from dibs.contend import own_holds

    return own_holds()


def test_a_fork_while_other_threads_use_the_cache_never_hangs_the_child(cache: dibs.Cache) -> None:
    stop = threading.Event()

    def busy(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            cache.get_or_compute(f"{number}-{turn}", lambda turn=turn: turn)
            with cache.lock(f"lock{number}"):
                pass

    threads = [threading.Thread(target=busy, args=(number,), daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            assert in_child(lambda number=number: cache.get_or_compute(f"child{number}", lambda: number)) == number
    finally:
        stop.set()
        for thread in threads:
            thread.join(JOIN_S)


@pytest.mark.timeout(30)
def test_a_commit_in_a_child_does_not_hang_on_a_lock_that_the_parent_had_taken(cache: dibs.Cache) -> None:
    with cache.once("key") as slot:
        lock = slot._hold._heartbeat._lock

        def child() -> str:
            done: list[str] = []
            thread = threading.Thread(target=lambda: done.append(slot.commit("value")), daemon=True)
            thread.start()
            thread.join(2.0)
            return done[0]

        with lock:  # as another thread of the parent might at that moment
            answer = in_child(child)
        assert answer == "value"


def child_asks(cache: dibs.Cache, number: int, answers: Any) -> None:
    def compute() -> int:
        threading.Event().wait(0.05)
        return number

    answers.put((number, cache.get_or_compute("key", compute), cache.stats().computed))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_every_kind_share_a_cache_that_was_handed_to_them(cache: dibs.Cache, method: str) -> None:
    context: BaseContext = multiprocessing.get_context(method)
    answers = context.Queue()
    children = [context.Process(target=child_asks, args=(cache, number, answers)) for number in range(3)]
    for child in children:
        child.start()
    got = [answers.get(timeout=JOIN_S) for _ in children]
    for child in children:
        child.join(JOIN_S)
        assert child.exitcode == 0
    assert len({value for _, value, _ in got}) == 1
    assert sum(computed for _, _, computed in got) == 1


def compute_in_pool(cache: dibs.Cache, key: str) -> Any:
    return cache.get_or_compute(key, lambda: key.upper())


def test_a_pool_is_reused_over_rounds(cache: dibs.Cache) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        for turn in range(3):
            keys = [f"{turn}-{number}" for number in range(4)] * 3
            assert pool.starmap(compute_in_pool, [(cache, key) for key in keys]) == [key.upper() for key in keys]


def count_in_child(cache: dibs.Cache) -> None:
    cache.get_or_compute("key", lambda: "value")


def test_the_numbers_of_a_forked_worker_reach_the_totals(cache: dibs.Cache) -> None:
    child = multiprocessing.get_context("fork").Process(target=count_in_child, args=(cache,))
    child.start()
    child.join(JOIN_S)
    assert child.exitcode == 0
    assert cache.total_stats().computed == 1


KEPT: list[Any] = []


def leave_holding(cache: dibs.Cache) -> None:
    KEPT.extend([cache, cache.lock("name").acquire()])
    sys.exit(0)


@pytest.mark.parametrize(
    "method",
    [
        "fork",
        "spawn",
    ],
)
def test_a_worker_that_ends_in_an_orderly_way_gives_its_holds_back(cache: dibs.Cache, method: str) -> None:
    child = multiprocessing.get_context(method).Process(target=leave_holding, args=(cache,))
    child.start()
    child.join(JOIN_S)
    assert hold_of(cache, "locks", "name") is None
