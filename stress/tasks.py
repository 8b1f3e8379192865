"""Thousands of asyncio tasks in several processes ask for the same keys: each is computed once, on few threads.

Each process has a ticker, a task that sleeps for a moment again and again: the longest time by which it came late
is the loop's longest pause.  The same number of tasks that only sleep shows what the machine itself does to a loop, and
the processor time of one round what the pause would be if the process had a processor for itself.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from typing import Any

from stress.fleet import PATIENCE_S, Log, join_all, open_cache, workers

TICK_S = 0.002
BATCH = 100


class Ticker:
    """The longest pause of the loop that it runs in, and the most threads that its process had, while it ran."""

    def __init__(self) -> None:
        self.pause_s = self.round_cpu_s = 0.0
        self.threads = 0
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:  # ends by being cancelled
            before, cpu_s = time.monotonic(), time.process_time()
            await asyncio.sleep(TICK_S)
            self.pause_s = max(self.pause_s, time.monotonic() - before - TICK_S)
            self.round_cpu_s = max(self.round_cpu_s, time.process_time() - cpu_s)
            self.threads = max(self.threads, len(os.listdir("/proc/self/task")))

    def stop(self) -> None:
        self._task.cancel()


async def _only_sleep(tasks: int) -> float:
    ticker = Ticker()
    await asyncio.sleep(0)
    running = []
    for task in range(tasks):
        running.append(asyncio.create_task(asyncio.sleep(0.2)))
        if task % BATCH == 0:
            await asyncio.sleep(0)
    await asyncio.gather(*running)
    ticker.stop()
    return ticker.pause_s


async def _ask(cache: Any, number: int, tasks: int, keys: int, cost_s: float, log: Log) -> Ticker:
    @cache.memoize(name="tasks", deps="none")
    async def value_of(key: str) -> str:
        log.write(what="computed", key=key)
        await asyncio.sleep(cost_s)
        return f"value of {key}"

    async def one(task: int) -> None:
        key = f"key {(task * 7 + number * 13) % keys}"
        value = await value_of(key)
        assert value == f"value of {key}", f"{key} has the value {value!r}"

    ticker = Ticker()
    await asyncio.sleep(0)
    running = []
    for task in range(tasks):
        running.append(asyncio.create_task(one(task)))
        if task % BATCH == 0:
            await asyncio.sleep(0)  # to make thousands of tasks in one go is a pause of the program's own
    await asyncio.wait_for(asyncio.gather(*running), PATIENCE_S)
    ticker.stop()
    return ticker


def _work(
    number: int,
    url: str,
    log_path: str,
    tasks: int,
    keys: int,
    cost_s: float,
    barrier: Barrier,
    settings: dict[str, Any],
) -> None:
    log = Log(log_path)
    with open_cache(url, **settings) as cache:
        gc.disable()  # else a full collection, of whatever the program has, is the longest pause by far
        barrier.wait(PATIENCE_S)
        floor_s = asyncio.run(_only_sleep(tasks))
        barrier.wait(PATIENCE_S)
        began = time.monotonic()
        ticker = asyncio.run(_ask(cache, number, tasks, keys, cost_s, log))
        took_s = time.monotonic() - began
        log.write(
            what="ended",
            pause_s=ticker.pause_s,
            round_cpu_s=ticker.round_cpu_s,
            floor_s=floor_s,
            threads=ticker.threads,
            took_s=took_s,
        )


def compute_in_tasks(
    url: str,
    folder: str,
    processes: int = 8,
    tasks: int = 2000,
    keys: int = 100,
    cost_s: float = 0.05,
    threads_max: int = 16,
    **settings: Any,
) -> dict[str, Any]:
    """Each of `processes` runs `tasks` at once, which ask for `keys`; asserts one computation per key, few threads."""
    log = Log(os.path.join(folder, "tasks.jsonl"))
    barrier = multiprocessing.get_context("fork").Barrier(processes)
    with workers(processes, _work, url, log.path, tasks, keys, cost_s, barrier, settings) as running:
        join_all(running)
    computed: dict[str, int] = {}
    for line in log.read(what="computed"):
        computed[line["key"]] = computed.get(line["key"], 0) + 1
    assert len(computed) == keys and set(computed.values()) == {1}, f"computations per key: {computed}"
    ended = log.read(what="ended")
    assert len(ended) == processes
    threads = max(line["threads"] for line in ended)
    assert threads <= threads_max, f"{threads} threads in one process"
    return {
        "computations": sum(computed.values()),
        "tasks": processes * tasks,
        "threads": threads,
        "pause_s": max(line["pause_s"] for line in ended),
        "round_cpu_s": max(line["round_cpu_s"] for line in ended),
        "floor_s": max(line["floor_s"] for line in ended),
        "seconds": max(line["took_s"] for line in ended),
    }
