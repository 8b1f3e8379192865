"""Locks and blocks in asyncio: they wait beside the loop, and a cancelled task leaves nothing behind."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

import pytest

from dibs.cache import Cache
from dibs.errors import LockLost
from dibs.runtime.system import SystemRuntime
from dibs.stores.memory import MemoryStore
from tests.fakes import break_lock, cache_on

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
    from dibs.errors import WaitCircle

    async def main() -> None:
        async with cache.lock("name"), cache.lock("name"):
            pass

    with pytest.raises(WaitCircle):
        run(main())
    assert holder_of(cache, "name") is None


@pytest.mark.parametrize("form", ["lock", "once"])
def test_a_task_that_is_cancelled_at_the_moment_of_the_answer_never_keeps_it(cache: Cache, form: str) -> None:
    async def worker() -> None:
        async with cache.lock("x") if form == "lock" else cache.once("x"):
            raise AssertionError("it was cancelled before")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        send = loop.call_soon_threadsafe

        def send_and_cancel(what: Any, *arguments: Any, **options: Any) -> Any:
            return send(lambda: (what(*arguments), task.cancel()))

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
