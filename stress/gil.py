"""Native code that keeps the interpreter lock beyond the ttl: no thread of its process can beat meanwhile."""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack
from typing import Any

from dibs.errors import LockLost
from stress.fleet import PATIENCE_S, Log, open_cache, worker

TTLS = 3.0


def _keep_the_interpreter(seconds: float) -> None:
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # PyDLL calls without giving the lock away


def _holder(url: str, name: str, log_path: str, settings: Any) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    lock = cache.lock(name).acquire()
    with cache.once(name) as slot:
        log.write(what="computing", name=name)
        _keep_the_interpreter(TTLS * settings["ttl_s"])
        held = slot.held and lock.held
        told = []
        for step in (slot.check, lock.check):
            try:
                step()
                told.append(False)
            except LockLost:
                told.append(True)
        value = slot.commit("late")
    try:
        lock.release()
        told.append(False)
    except LockLost:
        told.append(True)
    log.write(what="late", name=name, value=value, held=held, told=told)


def _rival(url: str, name: str, log_path: str, settings: Any) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    log.wait_for(what="computing", name=name)
    value = cache.get_or_compute(name, lambda: "rival")
    with cache.lock(name) as lock:
        log.write(what="rival", name=name, value=value, generation=lock.generation, takeovers=cache.stats().takeovers)
        log.wait_for(what="late", name=name)


def keep_the_interpreter(
    url: str, folder: str, rounds: int, heartbeat: str, ttl_s: float = 1.0, at_once: int = 5, **settings: Any
) -> dict[str, Any]:
    """Fresh workers hold a key and a lock, and at once keep the interpreter lock for 3 ttl, while a rival wants both.

    Asserts with heartbeat "process" that nothing was taken over and every holder could prove its hold; with "thread"
    that every holder was told, by `check` and by `release`, and got the rival's value.
    """
    log = Log(os.path.join(folder, f"gil-{heartbeat}.jsonl"))
    settings = {"ttl_s": ttl_s, "heartbeat": heartbeat, **settings}
    names = [f"gil-{heartbeat}/{number}-{os.urandom(3).hex()}" for number in range(rounds)]
    for start in range(0, rounds, at_once):
        with ExitStack() as stack:
            running = []
            for name in names[start : start + at_once]:
                running.append(stack.enter_context(worker(_holder, url, name, log.path, settings, method="spawn")))
                running.append(stack.enter_context(worker(_rival, url, name, log.path, settings, method="spawn")))
            for process in running:
                process.join(PATIENCE_S)
                assert process.exitcode == 0, f"a worker ended with {process.exitcode} (None: still running)"
    late = {line["name"]: line for line in log.read(what="late")}
    rivals = {line["name"]: line for line in log.read(what="rival")}
    assert set(late) == set(rivals) == set(names)
    takeovers = sum(line["takeovers"] for line in rivals.values())
    told = sum(all(line["told"]) for line in late.values())
    for name in names:
        got = late[name]["value"], rivals[name]["value"], rivals[name]["generation"]
        if heartbeat == "process":
            # The lock is free when its holder has left it, so the rival's generation is 2 without a take-over.
            assert got == ("late", "late", 2) and late[name]["held"], (name, got, late[name])
        else:
            assert got == ("rival", "rival", 2) and all(late[name]["told"]), (name, got, late[name])
    if heartbeat == "process":
        assert takeovers == 0 and not any(any(line["told"]) for line in late.values()), takeovers
    return {"rounds": rounds, "takeovers": takeovers, "told": told}
