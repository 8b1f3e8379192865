"""All ask for the same keys at once: each is computed exactly once."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from multiprocessing.synchronize import Barrier
from typing import Any

from dibs.cache import Cache
from stress.fleet import PATIENCE_S, Log, open_cache

_state: dict[str, Any] = {}


def _begin(
    environment: dict[str, str],
    url: str,
    log_path: str,
    barrier: Barrier,
    settings: dict[str, Any],
    inherited: Cache | None,
) -> None:
    os.environ.update(environment)  # that of a fork server is as old as the server, without a store's credentials
    _state["cache"] = inherited if inherited is not None else open_cache(url, **settings)
    _state["log"] = Log(log_path)
    _state["barrier"] = barrier


def _ask_all(task: tuple[str, int, float]) -> list[str]:
    prefix, keys, cost_s = task
    cache, log = _state["cache"], _state["log"]
    order = list(range(keys))
    random.shuffle(order)
    _state["barrier"].wait(PATIENCE_S)
    answers: dict[int, str] = {}
    for number in order:
        key = f"{prefix}/{number}"

        def compute(key: str = key) -> str:
            log.write(key=key)
            time.sleep(cost_s)
            return f"value of {key} by {os.getpid()}"

        answers[number] = cache.get_or_compute(key, compute)
    return [answers[number] for number in range(keys)]


def compute_once(
    url: str,
    log_path: str,
    processes: int,
    method: str,
    rounds: int,
    keys: int = 20,
    cost_s: float = 0.002,
    inherit: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """A pool is reused over `rounds`, each with fresh keys; asserts exactly one computation per key.

    `inherit`: the workers use the parent's Cache object (forked, or pickled) instead of opening their own.
    """
    context = multiprocessing.get_context(method)
    barrier = context.Barrier(processes)
    log = Log(log_path)
    inherited = open_cache(url, **settings) if inherit else None
    label = f"{method}-{processes}-{os.urandom(4).hex()}"
    began = time.monotonic()
    given = (dict(os.environ), url, log_path, barrier, settings, inherited)
    with context.Pool(processes, _begin, given) as pool:
        for round_ in range(rounds):
            prefix = f"{label}-{round_}"
            answers = pool.map(_ask_all, [(prefix, keys, cost_s)] * processes, chunksize=1)
            counts: dict[str, int] = {}
            for line in log.read():
                if line["key"].startswith(f"{prefix}/"):
                    counts[line["key"]] = counts.get(line["key"], 0) + 1
            assert len(counts) == keys and set(counts.values()) == {1}, f"computations per key: {counts}"
            assert all(answer == answers[0] for answer in answers), "not everybody got the same values"
            assert [a.rpartition(" by ")[0] for a in answers[0]] == [f"value of {prefix}/{n}" for n in range(keys)]
        pool.close()
        pool.join()
    return {"rounds": rounds, "computations": rounds * keys, "seconds": time.monotonic() - began}
