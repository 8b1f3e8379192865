"""SIGSTOP beyond the ttl, SIGCONT, and a late worker that must do no harm."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from dibs.errors import LockLost
from stress.fleet import PATIENCE_S, Log, open_cache, until, worker

RIVALS = ("committed", "computing", "none", "forgotten")


def _late(url: str, key: str, log_path: str, settings: Any) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    with cache.once(key) as slot:
        log.write(what="computing", key=key, generation=slot.generation)
        for _ in until(PATIENCE_S, "go-ahead"):  # a SIGSTOP strikes somewhere in here
            if log.read(what="go", key=key):
                break
        try:
            slot.check()
            log.write(what="check", key=key, lost=False)
        except LockLost:
            log.write(what="check", key=key, lost=True)
        log.write(what="late", key=key, value=slot.commit("late"))


def _rival(url: str, key: str, log_path: str, slow: bool, settings: Any) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)

    def compute() -> str:
        log.write(what="rival computing", key=key)
        if slow:
            log.wait_for(what="late", key=key)
        return "rival"

    log.write(what="rival", key=key, value=cache.get_or_compute(key, compute))


def stop_a_worker(
    url: str, folder: str, rounds: int, rival: str, ttl_s: float = 0.6, **settings: Any
) -> dict[str, Any]:
    """Stop the computing worker beyond its ttl; meanwhile a rival has committed, computes, is absent, or the key was
    forgotten; then let it go on to its commit.  Asserts what each of the two gets and what the store says."""
    log = Log(os.path.join(folder, f"stop-{rival}.jsonl"))
    settings = {"ttl_s": ttl_s, **settings}
    cache = open_cache(url, **settings)
    told = 0
    for number in range(rounds):
        key = f"stopped-{rival}/{number}-{os.urandom(3).hex()}"
        with worker(_late, url, key, log.path, settings) as late:
            first = log.wait_for(what="computing", key=key)[0]
            assert late.pid is not None
            os.kill(late.pid, signal.SIGSTOP)
            if rival in ("committed", "computing"):
                with worker(_rival, url, key, log.path, rival == "computing", settings) as other:
                    done = "rival" if rival == "committed" else "rival computing"
                    log.wait_for(what=done, key=key)
                    _go_on(log, key, late.pid)
                    log.wait_for(what="late", key=key)
                    log.wait_for(what="rival", key=key)
                    other.join(10)
            else:
                time.sleep(ttl_s * 1.3)
                if rival == "forgotten":
                    cache.forget(key)
                _go_on(log, key, late.pid)
            got = log.wait_for(what="late", key=key)[0]["value"]
            late.join(10)
        lost = log.read(what="check", key=key)[0]["lost"]
        told += lost
        there = cache.get(key)
        if rival == "committed":
            assert (lost, got, there) == (True, "rival", "rival"), (lost, got, there)
        elif rival == "computing":
            # Published by the late worker although it had lost the hold; the rival adopts it.
            assert (lost, got, there) == (True, "late", "late"), (lost, got, there)
            assert log.read(what="rival", key=key)[0]["value"] == "late"
        elif rival == "none":
            assert (lost, got, there) == (False, "late", "late"), (lost, got, there)
        else:
            assert (lost, got, there) == (True, "late", None), (lost, got, there)
        assert first["generation"] == 1
    return {"rounds": rounds, "rival": rival, "told": told}


def _go_on(log: Log, key: str, pid: int) -> None:
    log.write(what="go", key=key)
    os.kill(pid, signal.SIGCONT)


def _late_lock(url: str, name: str, log_path: str, settings: Any) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    lock = cache.lock(name).acquire()
    log.write(what="locked", key=name)
    for _ in until(PATIENCE_S, "go-ahead"):
        if log.read(what="go", key=name):
            break
    told = []
    for step in (lock.check, lock.release):
        try:
            step()
            told.append(False)
        except LockLost:
            told.append(True)
    log.write(what="told", key=name, told=told)


def stop_a_lock_holder(url: str, folder: str, rounds: int, ttl_s: float = 0.6, **settings: Any) -> dict[str, Any]:
    """As stop_a_worker, for a plain lock: both `check` and `release` raise LockLost, and the rival's hold stands."""
    log = Log(os.path.join(folder, "stop-lock.jsonl"))
    settings = {"ttl_s": ttl_s, **settings}
    cache = open_cache(url, **settings)
    for number in range(rounds):
        name = f"stopped/{number}-{os.urandom(3).hex()}"
        with worker(_late_lock, url, name, log.path, settings) as late:
            log.wait_for(what="locked", key=name)
            assert late.pid is not None
            os.kill(late.pid, signal.SIGSTOP)
            with cache.lock(name) as lock:
                assert lock.generation == 2
                _go_on(log, name, late.pid)
                assert log.wait_for(what="told", key=name)[0]["told"] == [True, True]
                lock.check()
            late.join(10)
    return {"rounds": rounds}
