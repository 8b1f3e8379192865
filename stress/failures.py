"""Computations that raise, and computations that kill: everybody learns of it, nobody gets None."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Barrier
from typing import Any

from dibs.errors import ComputeFailed
from stress.fleet import PATIENCE_S, Log, join_all, open_cache, workers


def _ask_for_trouble(number: int, url: str, key: str, log_path: str, how: str, barrier: Barrier, settings: Any) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)

    def compute() -> None:
        log.write(what="computing", key=key)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(f"planned, in worker {number}")

    barrier.wait(PATIENCE_S)
    try:
        got = cache.get_or_compute(key, compute)
    except ValueError:
        log.write(what="raised", key=key)
    except ComputeFailed as error:
        log.write(what="failed", key=key, failures=error.failures, deaths=error.deaths, text=str(error))
    else:
        log.write(what="got", key=key, value=got)


def _crowd(url: str, key: str, log: Log, how: str, count: int, settings: Any) -> None:
    barrier = multiprocessing.get_context("fork").Barrier(count)
    with workers(count, _ask_for_trouble, url, key, log.path, how, barrier, settings) as running:
        if how == "raise":
            join_all(running)
        for process in running:
            process.join(PATIENCE_S)
            assert process.exitcode in (0, -signal.SIGKILL), process.exitcode


def failing_key(url: str, folder: str, processes: int = 8, failures_max: int = 3, **settings: Any) -> dict[str, Any]:
    """All ask for a key whose computation raises: it runs `failures_max` times, then all the others get the
    remote traceback; after `retry_after_s` it is tried once more, and after a forget from the start."""
    log, key = Log(os.path.join(folder, "failing.jsonl")), "failing"
    settings = {"failures_max": failures_max, "retry_after_s": 2.0, **settings}
    _crowd(url, key, log, "raise", processes, settings)
    assert len(log.read(what="computing")) == len(log.read(what="raised")) == failures_max
    failed = log.read(what="failed")
    assert len(failed) == processes - failures_max and not log.read(what="got")
    assert all(line["failures"] == failures_max for line in failed)
    assert all("ValueError: planned, in worker" in line["text"] and "in compute" in line["text"] for line in failed)
    cache = open_cache(url, **settings)
    computed: list[int] = []
    tries = 0
    while not computed:
        tries += 1
        try:
            assert cache.get_or_compute(key, lambda: computed.append(1) or "value") == "value"
        except ComputeFailed:
            cache._runtime.sleep(0.1)
        assert tries < 100, "not tried again after retry_after_s"
    assert tries > 2, "tried again before retry_after_s"
    assert computed == [1] and cache.get(key) == "value"
    cache.close()
    return {"processes": processes, "computations": failures_max}


def killing_key(url: str, folder: str, processes: int = 6, deaths_max: int = 3, **settings: Any) -> dict[str, Any]:
    """All ask for a key that kills whoever computes it: `deaths_max` workers die, the others get ComputeFailed."""
    log, key = Log(os.path.join(folder, "killing.jsonl")), "killing"
    _crowd(url, key, log, "kill", processes, {"deaths_max": deaths_max, **settings})
    assert len(log.read(what="computing")) == deaths_max
    failed = log.read(what="failed")
    assert len(failed) == processes - deaths_max and all(line["deaths"] == deaths_max for line in failed), failed
    with open_cache(url, deaths_max=deaths_max, **settings) as cache:
        cache.forget(key)
        assert cache.get_or_compute(key, lambda: "value") == "value"
    return {"processes": processes, "deaths": deaths_max}
