"""`python -m bench [PART…]`: parts are uncontended, handoff, waiter, stampede, hit.

All contenders of a part are interleaved, round by round, in one folder; shown are medians over the rounds and the
ratio to the floor of the same run.  Compare ratios: machines, and minutes, differ.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from typing import Any

from bench.contenders import CACHES, HITS, LOCKS, Ask, Guard, fresh_folder, version_of

ROUNDS = 5
PROCESSES_HANDOFF, HOLDS_EACH, SECTION_S = 8, 25, 0.001
PROCESSES_STAMPEDE, KEYS, COST_S = 16, 20, 0.05
HELD_S = 4.0
FORK = multiprocessing.get_context("fork")


def uncontended(where: str) -> None:
    """Microseconds for acquire + release that nobody contends for."""
    found: dict[str, list[float]] = {name: [] for name in LOCKS}
    with fresh_folder(where) as folder:
        guards = {name: make(folder) for name, make in LOCKS.items()}
        for _ in range(ROUNDS):
            for name, guard in guards.items():
                pairs = 300 if "Lease" in name else 2000
                found[name].append(_per_call_s(lambda guard=guard: (guard.acquire(), guard.release()), pairs))
    _table("acquire + release, uncontended", found, 1e6, "µs", "O_EXCL + unlink (floor)")


def _per_call_s(call: Callable[[], Any], times: int) -> float:
    call()
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def handoff(where: str) -> None:
    """Milliseconds from one process's release to another's acquire, with eight that want it all the time."""
    names = ["kernel flock", "fasteners", "filelock.FileLock", "diskcache.Lock", "dibs"]
    medians: dict[str, list[float]] = {name: [] for name in names}
    tails: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS - 2):
        for name in names:
            with fresh_folder(where) as folder:
                gaps = sorted(_gaps_s(name, folder))
            medians[name].append(gaps[len(gaps) // 2])
            tails[name].append(gaps[int(len(gaps) * 0.99)])
    what = f"hand-off, {PROCESSES_HANDOFF} processes, 1 ms inside"
    _table(f"{what}, median", medians, 1e3, "ms", "kernel flock")
    _table(f"{what}, p99", tails, 1e3, "ms", "kernel flock")


def _gaps_s(name: str, folder: str) -> list[float]:
    barrier, results = FORK.Barrier(PROCESSES_HANDOFF), FORK.SimpleQueue()
    workers = [
        FORK.Process(target=_hammer, args=(name, folder, barrier, results)) for _ in range(PROCESSES_HANDOFF)
    ]
    for worker in workers:
        worker.start()
    holds = sorted(hold for _ in workers for hold in results.get())
    for worker in workers:
        worker.join()
    for before, after in pairwise(holds):
        assert before[1] <= after[0], f"{name}: two holders at once"
    return [after[0] - before[1] for before, after in pairwise(holds) if before[2] != after[2]]


def _hammer(name: str, folder: str, barrier: Barrier, results: Any) -> None:
    guard = LOCKS[name](folder)
    holds = []
    barrier.wait()
    for _ in range(HOLDS_EACH):
        guard.acquire()
        entered = time.monotonic()
        time.sleep(SECTION_S)
        holds.append((entered, time.monotonic(), os.getpid()))
        guard.release()
    results.put(holds)


def waiter(where: str) -> None:
    """Milliseconds of CPU that a waiter burns in a second of waiting."""
    names = ["kernel flock", "fasteners", "filelock.FileLock", "diskcache.Lock", "dibs"]
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(2):
        for name in names:
            with fresh_folder(where) as folder:
                held, results = FORK.Barrier(2), FORK.SimpleQueue()
                holder = FORK.Process(target=_hold, args=(name, folder, held))
                waiting = FORK.Process(target=_wait, args=(name, folder, held, results))
                holder.start()
                waiting.start()
                cpu_s, waited_s = results.get()
                holder.join()
                waiting.join()
            found[name].append(cpu_s / waited_s)
    _table("CPU of a waiter, per second waited", found, 1e3, "ms", "kernel flock")


def _hold(name: str, folder: str, held: Any) -> None:
    guard = LOCKS[name](folder)
    for held_s in (0.3, HELD_S):
        guard.acquire()
        held.wait()
        time.sleep(held_s)
        guard.release()
        held.wait()


def _wait(name: str, folder: str, held: Any, results: Any) -> None:
    guard: Guard = LOCKS[name](folder)
    # What is loaded at the first wait of a process is not waiting: only the second wait counts.
    for _ in range(2):
        held.wait()
        began, cpu = time.monotonic(), time.process_time()
        guard.acquire()
        taken = time.process_time() - cpu, time.monotonic() - began
        guard.release()
        held.wait()
    results.put(taken)


def stampede(where: str) -> None:
    """Seconds until sixteen processes have the same twenty keys of 50 ms, and how many were computed."""
    found: dict[str, list[float]] = {name: [] for name in CACHES}
    computed: dict[str, list[int]] = {name: [] for name in CACHES}
    for _ in range(ROUNDS - 2):
        for name in CACHES:
            with fresh_folder(where) as folder:
                took_s, computations = _stampede(name, folder)
            found[name].append(took_s)
            computed[name].append(computations)
    title = f"{PROCESSES_STAMPEDE} processes, the same {KEYS} keys of 50 ms (ideal 1.00 s)"
    _table(title, found, 1.0, "s", "by hand (floor)")
    for name, counts in computed.items():
        print(f"    {name:28} computations: {', '.join(map(str, counts))}")


def _stampede(name: str, folder: str) -> tuple[float, int]:
    barrier = FORK.Barrier(PROCESSES_STAMPEDE + 1)
    log = os.path.join(folder, "log")
    workers = [FORK.Process(target=_ask_all, args=(name, folder, log, barrier)) for _ in range(PROCESSES_STAMPEDE)]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.monotonic()
    for worker in workers:
        worker.join()
    took_s = time.monotonic() - began
    with open(log, "rb") as file:
        return took_s, len(file.read())


def _ask_all(name: str, folder: str, log: str, barrier: Barrier) -> None:
    ask: Ask = CACHES[name](folder)
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def compute() -> dict[str, float]:
        os.write(fd, b".")
        time.sleep(COST_S)
        return {"accuracy": 0.9, "loss": 0.1}

    barrier.wait()
    for number in range(KEYS):
        assert ask(f"key{number}", compute) == {"accuracy": 0.9, "loss": 0.1}


def hit(where: str) -> None:
    """Microseconds for a small value that is there."""
    found: dict[str, list[float]] = {name: [] for name in HITS}
    with fresh_folder(where) as folder:
        asks = {name: make(folder) for name, make in HITS.items()}
        for _ in range(ROUNDS):
            for name, ask in asks.items():
                found[name].append(_per_call_s(lambda ask=ask: ask("key", _small), 2000))
    _table("warm hit of a small value", found, 1e6, "µs", "by hand (floor)")


def _small() -> dict[str, Any]:
    return {"accuracy": 0.9, "loss": 0.1, "name": "knn"}


PARTS = {"uncontended": uncontended, "handoff": handoff, "waiter": waiter, "stampede": stampede, "hit": hit}
_lines: list[dict[str, Any]] = []


def _table(title: str, found: dict[str, list[float]], scale: float, unit: str, floor: str) -> None:
    medians = {name: sorted(values)[len(values) // 2] for name, values in found.items()}
    print(f"\n{title}")
    for name, value in medians.items():
        low, high = min(found[name]) * scale, max(found[name]) * scale
        ratio = value / medians[floor]
        print(f"    {name:28} {value * scale:9.3f} {unit}  [{low:.3f} to {high:.3f}]  {ratio:8.2f} x {floor}")
        _lines.append({"title": title, "name": name, "value": value * scale, "unit": unit, "ratio": ratio})


def main(chosen: Iterator[str], where: str | None, as_json: bool) -> None:
    names = list(chosen) or list(PARTS)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.platform()}")
    print(", ".join(f"{name} {version}" for name in LOCKS if (version := version_of(name))))
    with tempfile.TemporaryDirectory(dir=where) as folder:
        for name in names:
            PARTS[name](folder)
    if as_json:
        print(json.dumps(_lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("part", nargs="*", choices=[*PARTS, []], help="what to measure (default: all)")
    parser.add_argument("--where", help="folder to work in, on the disk that you mean (default: the temporary one)")
    parser.add_argument("--json", action="store_true", help="print the numbers once more, as one JSON list")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    sys.exit(main(arguments.part, arguments.where, arguments.json))
