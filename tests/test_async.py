"""Computing once, locks and blocks in asyncio: waits take no thread, and a cancelled task leaves nothing behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest

import dibs
from dibs.cache import Cache
from dibs.errors import ComputeFailed, LockLost, WaitCircle, WaitTimeout
from dibs.once import Ask
from dibs.runtime.system import SystemRuntime
from dibs.stores.memory import MemoryStore
from stress.tasks import compute_in_tasks
from tests.fakes import Elsewhere, FaultyStore, break_lock, cache_on, crowd, in_thread

PATIENCE_S = 3.0


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    runtime = SystemRuntime(runtime_dir=str(tmp_path_factory.mktemp("runtime")))
    return cache_on(MemoryStore(runtime), runtime)


def run(main: Coroutine[Any, Any, Any], threads: int = 8) -> Any:
    """Run it with so many threads for what blocks; fails instead of hanging."""

    async def limited() -> Any:
        asyncio.get_running_loop().set_default_executor(concurrent.futures.ThreadPoolExecutor(threads))
        return await asyncio.wait_for(main, PATIENCE_S)

    return asyncio.run(limited())


def holder_of(cache: Cache, name: str) -> int | None:
    """The generation of whoever holds, or None."""
    return next((info.generation for info in cache.holds() if info.name == name), None)


def test_tasks_hold_a_lock_one_after_the_other(cache: Cache) -> None:
    inside, generations = [], []

    async def worker() -> None:
        async with cache.lock("name") as lock:
            inside.append(1)
            assert len(inside) == 1
            await asyncio.sleep(0.001)
            lock.check()
            generations.append(lock.generation)
            inside.pop()

    async def main() -> None:
        await asyncio.gather(*[worker() for _ in range(3)])

    run(main())
    assert generations == [1, 2, 3]
    assert holder_of(cache, "name") is None


def test_the_loop_goes_on_while_a_task_waits(cache: Cache) -> None:
    async def main() -> int:
        ticks = 0
        with cache.lock("name"):
            waiting = asyncio.get_running_loop().create_task(enter(cache), context=Context())
            for _ in range(20):
                await asyncio.sleep(0.005)
                ticks += 1
            assert not waiting.done()
            waiting.cancel()
        return ticks

    assert run(main()) == 20


async def enter(cache: Cache) -> None:
    # A task of its own flow: it knows nothing of the lock that the test holds.
    from dibs import contend

    contend.holds_of_flow.set(())
    async with cache.lock("name"):
        pass


def test_a_block_with_a_commit_works_in_a_task(cache: Cache) -> None:
    async def main() -> Any:
        async with cache.once("key") as slot:
            assert not slot.done
            slot.commit("value")
        async with cache.once("key") as slot:
            return slot.value

    assert run(main()) == "value"


def test_a_block_that_raises_gives_the_key_back_as_failed(cache: Cache) -> None:
    async def main() -> None:
        async with cache.once("key"):
            raise ValueError("planned")

    with pytest.raises(ValueError, match="planned"):
        run(main())
    assert cache.status().failed == 1 and holder_of(cache, "key") is None


@pytest.mark.parametrize("form", ["lock", "once"])
def test_a_task_that_is_cancelled_in_the_block_gives_it_back(cache: Cache, form: str) -> None:
    async def main() -> None:
        entered = asyncio.Event()

        async def worker() -> None:
            async with cache.lock("x") if form == "lock" else cache.once("x"):
                entered.set()
                await asyncio.sleep(100)

        task = asyncio.create_task(worker())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert holder_of(cache, "x") is None
    assert cache.status().failed == 0, "and that is no failure"


def cancelled_while_waiting(cache: Cache, form: str) -> None:
    """One task waits, is cancelled, and what it waited for becomes free."""
    other = cache_on(cache._store, cache._runtime)

    async def main() -> None:
        async def worker() -> None:
            async with cache.lock("x") if form == "lock" else cache.once("x"):
                raise AssertionError("it was cancelled before")

        with other.lock("x") if form == "lock" else other.once("x"):
            task = asyncio.get_running_loop().create_task(worker(), context=Context())
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.5)

    run(main())
    assert holder_of(other, "x") is None


def test_a_task_that_is_cancelled_while_it_waits_for_a_lock_never_keeps_it(cache: Cache) -> None:
    cancelled_while_waiting(cache, "lock")


def test_a_task_that_is_cancelled_while_it_waits_for_a_key_never_keeps_it(cache: Cache) -> None:
    cancelled_while_waiting(cache, "once")


def test_more_waiting_tasks_than_threads_are_no_deadlock(cache: Cache) -> None:
    async def worker() -> None:
        async with cache.lock("name", wait_s=2 * PATIENCE_S):
            await asyncio.sleep(0.01)

    async def main() -> None:
        await asyncio.gather(*[worker() for _ in range(4)])

    run(main(), threads=2)


def test_a_lock_object_works_again_after_a_cancelled_wait(cache: Cache) -> None:
    lock = cache.lock("name")

    async def take() -> None:
        async with lock:
            pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with cache.lock("name"):
            task = loop.create_task(take(), context=Context())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await loop.create_task(take(), context=Context())

    run(main())


def test_leaving_a_lost_lock_raises_lock_lost(cache: Cache) -> None:
    async def main() -> None:
        async with cache.lock("name"):
            await asyncio.to_thread(break_lock, cache, "name")

    with pytest.raises(LockLost, match="dropped"):
        run(main())


def test_entering_twice_in_one_task_is_a_circle_and_not_a_hang(cache: Cache) -> None:
    async def main() -> None:
        async with cache.lock("name"), cache.lock("name"):
            pass

    with pytest.raises(WaitCircle):
        run(main())
    assert holder_of(cache, "name") is None


@pytest.mark.parametrize("cancelled", ["before", "after"])
@pytest.mark.parametrize("form", ["lock", "once", "key"])
def test_a_task_that_is_cancelled_at_the_moment_of_the_answer_never_keeps_it(
    cache: Cache, form: str, cancelled: str
) -> None:
    async def compute() -> None:
        raise AssertionError("it was cancelled before")

    async def worker() -> None:
        if form == "key":
            await asked(cache, "x", compute)
        async with cache.lock("x") if form == "lock" else cache.once("x"):
            await compute()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        send = loop.call_soon_threadsafe

        def send_and_cancel(what: Any, *arguments: Any, **options: Any) -> Any:
            steps = [lambda: what(*arguments), task.cancel]
            return send(lambda: [step() for step in (steps if cancelled == "after" else steps[::-1])])

        loop.call_soon_threadsafe = send_and_cancel  # type: ignore[method-assign]
        task = loop.create_task(worker(), context=Context())
        with pytest.raises(asyncio.CancelledError):
            await task
        loop.call_soon_threadsafe = send  # type: ignore[method-assign]
        for _ in range(100):
            if holder_of(cache, "x") is None:
                break
            await asyncio.sleep(0.005)

    run(main())
    assert holder_of(cache, "x") is None


def test_a_task_enters_a_reentrant_lock_again_and_no_other_task_of_its_thread_does(cache: Cache) -> None:
    async def again(context: Context | None) -> Any:
        async def enter_it() -> None:
            async with cache.lock("name", reentrant=True, wait_s=0.05):
                raise AssertionError("two tasks are in the block")

        return (await asyncio.gather(asyncio.create_task(enter_it(), context=context), return_exceptions=True))[0]

    async def main() -> tuple[Any, Any]:
        async with cache.lock("name", reentrant=True) as outer:
            async with cache.lock("name", reentrant=True) as inner:
                assert inner.generation == outer.generation
            assert outer.held
            return await again(None), await again(Context())

    inherited, own = run(main())
    assert isinstance(inherited, WaitCircle) and "Context" in inherited.__notes__[0]
    assert isinstance(own, WaitTimeout)


def test_one_lock_object_serves_one_task_at_a_time(cache: Cache) -> None:
    lock = cache.lock("name")

    async def take() -> None:
        async with lock:
            await asyncio.sleep(0.01)

    async def main() -> list[Any]:
        return await asyncio.gather(take(), take(), return_exceptions=True)

    taken, refused = run(main())
    assert taken is None and isinstance(refused, RuntimeError) and "in use" in str(refused)
    assert holder_of(cache, "name") is None


# -- computing once ----------------------------------------------------------------------------------------------


def asked(cache: Cache, key: str, compute: Any, **ask: Any) -> Coroutine[Any, Any, Any]:
    return cache._once.aget_or_compute(key, compute, Ask(**ask))


class Slow:
    """An async computation that says when it begins and ends when it may."""

    def __init__(self, result: Any = "value") -> None:
        self.result = result
        self.calls = 0
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self) -> Any:
        self.calls += 1
        self.began.set()
        await self.may_end.wait()
        return self.result


@pytest.fixture
def other(cache: Cache) -> Any:
    """Another process on the same store."""
    return Elsewhere(cache_on(cache._store, cache._runtime))


@pytest.mark.parametrize("size", [1, 5_000, 3_000_000], ids=["light", "shared", "large"])
def test_tasks_that_ask_at_once_share_one_computation_and_get_their_own_copies(cache: Cache, size: int) -> None:
    calls = []

    async def compute() -> list[str]:
        calls.append(1)
        await asyncio.sleep(0.01)
        return ["x" * size]

    async def one() -> list[str]:
        value: list[str] = await asked(cache, "key", compute)
        assert value == ["x" * size], "nobody sees what another has done to his copy"
        value.append("mine")
        return value

    async def main() -> list[Any]:
        return await asyncio.gather(*[one() for _ in range(50)])

    results = run(main())
    assert len(calls) == 1 and len({id(result) for result in results}) == 50
    assert cache.stats().misses == 50


def test_a_value_that_is_there_is_found_by_one_look_for_all_who_ask_together(cache: Cache) -> None:
    cache.put("key", ["value"])
    store = FaultyStore(cache._store)  # type: ignore[arg-type]
    counting = cache_on(store, cache._runtime)
    before = store.reads

    async def main() -> list[Any]:
        return await asyncio.gather(*[asked(counting, "key", None) for _ in range(30)])

    results = run(main())
    assert results == [["value"]] * 30 and len({id(result) for result in results}) == 30
    assert store.reads - before < 5 and counting.stats().hits == 30


@pytest.mark.parametrize("form", ["key", "lock", "once"])
def test_hundreds_of_waiting_tasks_take_a_few_threads_and_the_loop_goes_on(tmp_path: Path, form: str) -> None:
    # Given a folder, where waiters are woken, and one who holds what hundreds of tasks want
    with dibs.open(str(tmp_path), allow_pickle=True) as cache, dibs.open(str(tmp_path), allow_pickle=True) as holder:

        async def wants() -> Any:
            if form == "key":
                return await asked(cache, "x", None)
            if form == "lock":
                async with cache.lock("x"):
                    return "value"
            async with cache.once("x") as slot:
                return slot.value

        async def main() -> tuple[int, int, list[Any]]:
            before = threading.active_count()
            held: Any = Elsewhere(holder.lock("x") if form == "lock" else holder.once("x"))
            with held as got:
                tasks = [asyncio.create_task(wants()) for _ in range(300)]
                most = ticks = 0
                for _ in range(40):
                    await asyncio.sleep(0.005)
                    ticks += 1
                    most = max(most, threading.active_count() - before)
                assert not any(task.done() for task in tasks)
                if form != "lock":
                    got.commit("value")
            if form == "lock":
                for task in tasks[20:]:
                    task.cancel()
                await asyncio.gather(*tasks[20:], return_exceptions=True)
            return most, ticks, await asyncio.gather(*tasks[:20 if form == "lock" else 300])

        most, ticks, results = run(main())
        assert most <= 8, "a heartbeat, a listener, and the pool"
        assert ticks == 40 and set(results) == {"value"}


def test_where_nothing_tells_of_changes_a_task_asks_now_and_then_but_not_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SystemRuntime, "_shared_inotify", lambda runtime: None)
    with dibs.open(str(tmp_path), allow_pickle=True) as cache, dibs.open(str(tmp_path), allow_pickle=True) as holder:
        looked = []
        look_again = cache._cells.look_again
        cache._cells.look_again = lambda *about: (looked.append(1), look_again(*about))[1]  # type: ignore[method-assign]

        async def main() -> Any:
            with Elsewhere(holder.once("x")) as slot:
                task = asyncio.create_task(asked(cache, "x", None))
                await asyncio.sleep(0.4)
                assert len(looked) < 6 and not task.done()
                slot.commit("value")
            return await task

        assert run(main()) == "value"


def test_a_task_joins_the_flight_of_a_thread_and_a_thread_that_of_a_task(cache: Cache) -> None:
    computing, go_on = threading.Event(), threading.Event()

    def compute() -> str:
        computing.set()
        go_on.wait(10.0)
        return "by a thread"

    async def main() -> None:
        with in_thread(lambda: cache.get_or_compute("a", compute)) as results:
            await asyncio.to_thread(computing.wait, 10.0)
            task = asyncio.create_task(asked(cache, "a", None))
            await asyncio.sleep(0.02)
            go_on.set()
            assert await task == "by a thread"
        assert results == ["by a thread"]
        slow = Slow("by a task")
        task = asyncio.create_task(asked(cache, "b", slow))
        await slow.began.wait()
        thread = asyncio.create_task(asyncio.to_thread(cache.get_or_compute, "b", compute))
        await asyncio.sleep(0.02)
        slow.may_end.set()
        assert await task == await thread == "by a task"

    run(main())
    assert cache.stats().computed == 2


def test_tasks_of_two_loops_share_one_flight(cache: Cache) -> None:
    calls = []

    async def compute() -> str:
        calls.append(1)
        await asyncio.sleep(0.05)
        return "value"

    async def main() -> list[Any]:
        return await asyncio.gather(*[asked(cache, "key", compute) for _ in range(20)])

    assert crowd(3, lambda number: asyncio.run(main())) == [["value"] * 20] * 3
    assert len(calls) == 1


def test_a_leader_that_is_cancelled_gives_up_politely_and_a_follower_takes_its_turn(cache: Cache) -> None:
    async def main() -> None:
        first, second = Slow(), Slow("of the second")
        leader = asyncio.create_task(asked(cache, "key", first))
        await first.began.wait()
        followers = [asyncio.create_task(asked(cache, "key", second)) for _ in range(5)]
        await asyncio.sleep(0.02)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        second.may_end.set()
        assert await asyncio.gather(*followers) == ["of the second"] * 5
        assert (first.calls, second.calls) == (1, 1)

    run(main())
    assert cache._cells.look("keys/key", "key").cell.failures is None and cache.stats().failures == 0


def test_a_follower_that_is_cancelled_disturbs_nobody(cache: Cache) -> None:
    async def main() -> None:
        slow = Slow()
        leader = asyncio.create_task(asked(cache, "key", slow))
        await slow.began.wait()
        followers = [asyncio.create_task(asked(cache, "key", slow)) for _ in range(5)]
        await asyncio.sleep(0.02)
        for follower in followers[:3]:
            follower.cancel()
        slow.may_end.set()
        results = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["str"] + ["CancelledError"] * 3 + ["str"] * 2
        assert slow.calls == 1

    run(main())


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.003, 0.1])
def test_whenever_tasks_are_cancelled_nothing_stays_held_and_the_key_can_be_had(cache: Cache, after_s: float) -> None:
    async def main() -> None:
        slow = Slow()
        tasks = [asyncio.create_task(asked(cache, f"key {number}", slow)) for number in range(10)]
        await asyncio.sleep(after_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        slow.may_end.set()
        assert await asyncio.gather(*[asked(cache, f"key {number}", slow) for number in range(10)]) == ["value"] * 10

    run(main())
    assert not list(cache.holds()) and cache.status().failed == 0
    assert not cache._once._flights._flights, "and no flight is left open"


def test_a_task_that_is_cancelled_while_another_process_computes_leaves_nothing(cache: Cache, other: Any) -> None:
    async def main() -> None:
        with other.once("key"):
            task = asyncio.create_task(asked(cache, "key", Slow()))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.3)

    run(main())
    assert holder_of(cache, "key") is None


def test_a_failing_computation_raises_in_its_task_and_the_others_take_turns_up_to_failures_max(cache: Cache) -> None:
    calls = []

    async def compute() -> None:
        calls.append(1)
        await asyncio.sleep(0.001)
        raise ValueError("planned")

    async def main() -> list[Any]:
        return await asyncio.gather(*[asked(cache, "key", compute) for _ in range(6)], return_exceptions=True)

    results = run(main())
    assert sorted(type(result).__name__ for result in results) == ["ComputeFailed"] * 3 + ["ValueError"] * 3
    assert len(calls) == 3
    failed = next(result for result in results if isinstance(result, ComputeFailed))
    assert "in compute" in failed.traceback


def test_a_task_that_waits_for_itself_is_a_circle(cache: Cache) -> None:
    async def nested(*keys: str) -> Any:
        async def compute() -> Any:
            return await nested(*keys[1:]) if len(keys) > 1 else "value"

        return await asked(cache, keys[0], compute)

    with pytest.raises(WaitCircle) as caught:
        run(nested("a", "b", "a"))
    assert set(caught.value.keys) == {"a", "b"}
    assert run(nested("a", "b", "c")) == "value"


def test_two_tasks_that_wait_for_each_other_are_a_circle_for_one_and_the_other_goes_on(cache: Cache) -> None:
    async def main() -> list[Any]:
        both = asyncio.Barrier(2)

        async def worker(mine: str, theirs: str) -> Any:
            async def value() -> str:
                return theirs

            async def compute() -> str:
                await both.wait()
                return f"{mine}+{await asked(cache, theirs, value)}"

            return await asked(cache, mine, compute)

        return await asyncio.gather(worker("a", "b"), worker("b", "a"), return_exceptions=True)

    results = run(main())
    assert any(isinstance(result, WaitCircle) for result in results), results
    assert all(isinstance(result, WaitCircle | str) for result in results), results


def test_an_async_function_where_a_plain_one_belongs_is_a_clear_error_and_the_reverse(cache: Cache) -> None:
    async def compute() -> str:
        return "value"

    with pytest.raises(TypeError, match="async function"):
        cache.get_or_compute("key", compute)
    with pytest.raises(TypeError, match="can't be awaited"):
        run(asked(cache, "key", lambda: "value"))
    assert cache.status().failed == 0 and holder_of(cache, "key") is None, "and no failure of the key"
    assert cache.get_or_compute("key", lambda: "value") == "value"


def test_a_blocking_call_for_what_a_task_of_its_own_loop_computes_is_an_error_and_not_a_hang(cache: Cache) -> None:
    async def main() -> None:
        slow = Slow()
        task = asyncio.create_task(asked(cache, "key", slow))
        await slow.began.wait()
        with pytest.raises(WaitCircle) as caught:
            cache.get_or_compute("key", lambda: "never")
        assert "await" in caught.value.__notes__[0]
        slow.may_end.set()
        assert await task == "value"

    run(main())


@pytest.mark.parametrize("where", ["this process", "another"])
def test_a_task_waits_no_longer_than_wait_s(cache: Cache, other: Any, where: str) -> None:
    async def main() -> None:
        if where == "another":
            with other.once("key"), pytest.raises(WaitTimeout, match="still held"):
                await asked(cache, "key", None, wait_s=0.05)
            return
        slow = Slow()
        task = asyncio.create_task(asked(cache, "key", slow))
        await slow.began.wait()
        with pytest.raises(WaitTimeout, match="another thread or task"):
            await asked(cache, "key", None, wait_s=0.05)
        slow.may_end.set()
        await task

    run(main())


def test_no_task_gets_a_value_that_was_forgotten_before_it_asked(cache: Cache) -> None:
    # Given a task whose value is committed, and which is still busy with its last words
    committed, go_on = threading.Event(), threading.Event()

    def linger(event: Any) -> None:
        if event.kind == "committed" and not committed.is_set():
            committed.set()
            go_on.wait(10.0)

    cache.on_event(linger)

    async def value(what: str) -> str:
        return what

    async def main() -> Any:
        first = asyncio.create_task(asked(cache, "key", lambda: value("forgotten")))
        await asyncio.to_thread(committed.wait, 10.0)
        # when the key is forgotten, and another task asks for it then
        await asyncio.to_thread(cache.forget, "key")
        second = asyncio.create_task(asked(cache, "key", lambda: value("new")))
        await asyncio.sleep(0.05)
        go_on.set()
        await first
        # then it gets a new value.
        return await second

    assert run(main()) == "new"


def test_recomputations_that_ask_together_are_one(cache: Cache) -> None:
    cache.put("key", "old")

    async def main() -> None:
        slow = Slow("new")
        tasks = [asyncio.create_task(asked(cache, "key", slow, recompute=True)) for _ in range(5)]
        await slow.began.wait()
        assert await asked(cache, "key", None, stale_ok=True) == "old"
        slow.may_end.set()
        assert await asyncio.gather(*tasks) == ["new"] * 5 and slow.calls == 1

    run(main())


def test_thousands_of_tasks_in_processes_compute_each_key_once_on_few_threads(tmp_path: Path) -> None:
    counted = compute_in_tasks(str(tmp_path / "cache"), str(tmp_path), processes=3, tasks=700, keys=30, cost_s=0.5)
    # A loop that stood still while a task waits would stand still for as long as another process computes.
    assert counted["pause_s"] < 0.5, counted
