"""Plain locks: exact counters, no overlap, generations that only grow, stale and fresh names with one owner."""

from __future__ import annotations

import multiprocessing
import os
import time
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from typing import Any

from stress.fleet import PATIENCE_S, Log, join_all, open_cache, worker, workers


def _increment(number: int, url: str, path: str, log_path: str, holds: int, barrier: Barrier, settings: Any) -> None:
    cache = open_cache(url, **settings)
    lines: list[dict[str, Any]] = []
    barrier.wait(PATIENCE_S)
    for _ in range(holds):
        with cache.lock("counter") as lock:
            entered = time.monotonic()
            with open(path, encoding="ascii") as file:
                count = int(file.read())
            with open(path, "w", encoding="ascii") as file:
                file.write(str(count + 1))
            lines.append({"entered": entered, "left": time.monotonic(), "generation": lock.generation})
    log = Log(log_path)
    for line in lines:
        log.write(**line)


def count_under_lock(url: str, folder: str, processes: int, holds: int, **settings: Any) -> dict[str, Any]:
    """Processes increment a plain file under one lock; asserts the exact count, no overlap, growing generations."""
    path, log = os.path.join(folder, "counter"), Log(os.path.join(folder, "holds.jsonl"))
    with open(path, "w", encoding="ascii") as file:
        file.write("0")
    barrier = multiprocessing.get_context("fork").Barrier(processes + 1)
    with workers(processes, _increment, url, path, log.path, holds, barrier, settings) as running:
        barrier.wait(PATIENCE_S)
        began = time.monotonic()
        join_all(running, 600.0)
    took_s = time.monotonic() - began
    with open(path, encoding="ascii") as file:
        assert int(file.read()) == processes * holds, "increments were lost"
    lines = sorted(log.read(), key=lambda line: float(line["entered"]))
    assert len(lines) == processes * holds
    for before, after in pairwise(lines):
        assert before["left"] <= after["entered"], f"two holders at once: {before} {after}"
        assert before["generation"] < after["generation"], f"generations went back: {before} {after}"
    return {"holds": len(lines), "seconds": took_s, "holds_per_s": len(lines) / took_s}


def _hold_all(url: str, names: int, log_path: str, settings: Any) -> None:
    cache = open_cache(url, **settings)
    kept = [cache.try_lock(f"stale/{number}") for number in range(names)]
    assert all(kept)
    Log(log_path).write(what="holding")
    time.sleep(PATIENCE_S)


def _take_all(number: int, url: str, names: int, prefix: str, log_path: str, barrier: Barrier, settings: Any) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    barrier.wait(PATIENCE_S)
    kept = []
    for name in range(names):
        lock = cache.try_lock(f"{prefix}/{name}")
        if lock is not None:
            kept.append(lock)
            log.write(what="owner", name=name, generation=lock.generation)
    log.write(what="asked")
    barrier.wait(PATIENCE_S)  # nobody releases before everybody has asked
    for lock in kept:
        lock.release()


def one_owner(url: str, folder: str, names: int, processes: int, stale: bool, **settings: Any) -> dict[str, Any]:
    """Processes race for names; stale: the names belong to a process that was killed.  One owner each."""
    prefix = "stale" if stale else "fresh"
    log = Log(os.path.join(folder, f"{prefix}.jsonl"))
    if stale:
        with worker(_hold_all, url, names, log.path, settings) as holder:
            log.wait_for(what="holding")
            holder.kill()
            holder.join()
    barrier = multiprocessing.get_context("fork").Barrier(processes)
    with workers(processes, _take_all, url, names, prefix, log.path, barrier, settings) as running:
        join_all(running)
    owners: dict[int, int] = {}
    for line in log.read(what="owner"):
        owners[line["name"]] = owners.get(line["name"], 0) + 1
    assert len(owners) == names, f"{names - len(owners)} names have no owner"
    assert set(owners.values()) == {1}, f"names with two owners: {[n for n, c in owners.items() if c > 1]}"
    return {"names": names, "owners": len(owners)}
