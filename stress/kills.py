"""The holder dies: exactly one waiter takes over, as fast as the kernel lets it; other hosts after the ttl."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

from dibs.liveness import silent_after_s
from stress.fleet import PATIENCE_S, Log, join_all, median, open_cache, until, worker, workers


def _compute_for_ever(url: str, key: str, log_path: str, host: str | None, settings: Any) -> None:
    cache, log = open_cache(url, host, **settings), Log(log_path)

    def compute() -> str:
        log.write(what="computing", key=key)
        time.sleep(PATIENCE_S)
        return "never"

    cache.get_or_compute(key, compute)


def _wait_for_value(number: int, url: str, key: str, log_path: str, settings: Any) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    cache.get("warm-up")

    def compute() -> str:
        log.write(what="took over", key=key)
        return f"by {number}"

    log.write(what="asking", key=key)
    value = cache.get_or_compute(key, compute)
    log.write(what="got", key=key, value=value)


def kill_the_holder(url: str, folder: str, kills: int, waiters: int = 3, **settings: Any) -> dict[str, Any]:
    """SIGKILL the computing worker with waiters on the same host; asserts that exactly one takes over.

    Returns the delays from the kill to the successor's first line, beside those of a bare kernel `flock`.
    """
    log = Log(os.path.join(folder, "kills.jsonl"))
    delays_s: list[float] = []
    for number in range(kills):
        key = f"killed/{number}-{os.urandom(3).hex()}"
        with worker(_compute_for_ever, url, key, log.path, None, settings) as holder:
            log.wait_for(what="computing", key=key)
            with workers(waiters, _wait_for_value, url, key, log.path, settings) as waiting:
                log.wait_for(waiters, what="asking", key=key)
                time.sleep(0.05 if url.startswith("s3:") else 0.02)  # let them go to sleep: that is what is measured
                killed_at = time.monotonic()
                holder.kill()
                join_all(waiting)
        successors = log.read(what="took over", key=key)
        assert len(successors) == 1, f"{len(successors)} workers took over {key}"
        values = {line["value"] for line in log.read(what="got", key=key)}
        assert len(values) == 1 and len(log.read(what="got", key=key)) == waiters, values
        delays_s.append(successors[0]["at"] - killed_at)
    kernel_s = [_flock_delay_s(folder, log, waiters) for _ in range(kills)]
    return {"kills": kills, "median_s": median(delays_s), "flock_median_s": median(kernel_s), "max_s": max(delays_s)}


def _flock_holder(path: str, log_path: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    Log(log_path).write(what="flock held", key=path)
    time.sleep(PATIENCE_S)


def _flock_waiter(number: int, path: str, log_path: str) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    Log(log_path).write(what="flock asked", key=path)
    fcntl.flock(fd, fcntl.LOCK_EX)
    Log(log_path).write(what="flock got", key=path)


def _flock_delay_s(folder: str, log: Log, waiters: int) -> float:
    path = os.path.join(folder, f"flock-{os.urandom(4).hex()}")
    with worker(_flock_holder, path, log.path) as holder:
        log.wait_for(what="flock held", key=path)
        with workers(waiters, _flock_waiter, path, log.path) as waiting:
            log.wait_for(waiters, what="flock asked", key=path)
            time.sleep(0.02)
            killed_at = time.monotonic()
            holder.kill()
            join_all(waiting)
    first = min(line["at"] for line in log.read(what="flock got", key=path))
    return float(first - killed_at)


def _ask_other_host(number: int, url: str, key: str, log_path: str, settings: Any) -> None:
    cache, log = open_cache(url, f"other{number}", **settings), Log(log_path)
    cache.get_or_compute(key, lambda: log.write(what="took over", key=key))


def kill_on_another_host(url: str, folder: str, ttl_s: float, poll_s: float, **settings: Any) -> dict[str, Any]:
    """The holder's host is another one: the waiter takes over within 1.1 ttl and one poll, and never before a ttl."""
    log = Log(os.path.join(folder, "hosts.jsonl"))
    key = f"far/{os.urandom(3).hex()}"
    settings = {"ttl_s": ttl_s, **settings}
    with worker(_compute_for_ever, url, key, log.path, "dead-host", settings) as holder:
        log.wait_for(what="computing", key=key)
        with workers(1, _ask_other_host, url, key, log.path, settings) as waiting:
            killed_at = time.monotonic()
            holder.kill()
            join_all(waiting, 10 * ttl_s + 60)
    delay_s = log.wait_for(what="took over", key=key)[0]["at"] - killed_at
    # The last beat came up to a beat before the kill, and was seen up to a poll after it.
    assert delay_s >= ttl_s * 1.1 - ttl_s / 6 - 0.1, f"taken over too early, after {delay_s:.2f} s"
    assert delay_s <= silent_after_s(ttl_s) + poll_s, f"taken over late, after {delay_s:.2f} s"
    return {"ttl_s": ttl_s, "delay_s": delay_s}


def _try_once(number: int, url: str, log_path: str, settings: Any) -> None:
    cache = open_cache(url, "poller", **settings)
    lock = cache.try_lock("polled")
    if lock is not None:
        Log(log_path).write(what="locked", generation=lock.generation)
        lock.release()


def _hold_lock(url: str, log_path: str, settings: Any) -> None:
    lock = open_cache(url, "dead-host", **settings).try_lock("polled")
    assert lock is not None
    Log(log_path).write(what="holding")
    time.sleep(PATIENCE_S)


def poll_by_fresh_processes(url: str, folder: str, ttl_s: float, **settings: Any) -> dict[str, Any]:
    """Nobody watches all the time: `try_lock` once a second, each time from a fresh process on another host."""
    log = Log(os.path.join(folder, "polls.jsonl"))
    settings = {"ttl_s": ttl_s, **settings}
    with worker(_hold_lock, url, log.path, settings) as holder:
        log.wait_for(what="holding")
        killed_at = time.monotonic()
        holder.kill()
        polls = 0
        for _ in until(5 * ttl_s + 30, "take-over by a poller"):
            due_s = killed_at + polls - time.monotonic()
            if due_s > 0:
                time.sleep(due_s)
            polls += 1
            with workers(1, _try_once, url, log.path, settings) as trying:
                join_all(trying)
            if log.read(what="locked"):
                break
    delay_s = log.read(what="locked")[0]["at"] - killed_at
    slack_s = 1.0 + 1.0  # one poll period, and the start of a process on a busy machine
    assert ttl_s * 1.1 - ttl_s / 6 - 0.1 <= delay_s <= silent_after_s(ttl_s) + slack_s, f"{delay_s:.2f} s"
    return {"ttl_s": ttl_s, "delay_s": delay_s, "polls": polls}
