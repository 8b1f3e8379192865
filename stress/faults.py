"""Every fault at every S3 call of every operation, on a real server behind a proxy: nothing is misreported.

For each pair of operation and fault: what the caller was told is compared with what a second cache, which talks
to the server directly, finds there.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from dibs import cell as table
from dibs.cache import Cache
from dibs.cell import Cell, Hold
from dibs.errors import LockLost, StoreUnavailable
from dibs.names import LOCKS, record_name
from dibs.record import encode
from dibs.runtime.system import SystemRuntime
from dibs.settings import Settings
from dibs.stores import open_store
from dibs.testing.proxy import FaultProxy
from dibs.testing.proxy_faults import (
    ANSWER_HANGS,
    ANSWER_LOST,
    REQUEST_HANGS,
    REQUEST_LOST,
    TWICE,
    Fault,
    Lie,
    Request,
    delayed,
    status,
)
from dibs.testing.servers import Server
from stress.fleet import until

TTL_S: Final = 6.0
_TRIES_MAX: Final = 3
FAULTS: Final[dict[str, Fault]] = {
    "request lost": REQUEST_LOST,
    "request hangs": REQUEST_HANGS,
    "answer lost": ANSWER_LOST,
    "answer hangs": ANSWER_HANGS,
    "delivered twice": TWICE,
    "409": status(409),
    "412": status(412),
    "412 although applied": status(412, applied=True),
    "429": status(429),
    "500": status(500),
    "500 although applied": status(500, applied=True),
    "503": status(503),
    "late by more than a ttl": delayed(TTL_S * 1.5),
}


class Bench:
    """Two caches on one bucket: `near` goes through the faulty proxy, `far` is another host with a direct line."""

    def __init__(self, server: Server, bucket: str, folder: str) -> None:
        self.proxy = FaultProxy(server.endpoint_url, plan=self._plan)
        self.folder = folder
        self.prefix = f"faults-{os.urandom(4).hex()}"
        self._faults: dict[str, tuple[int, Fault]] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.fired: Counter[tuple[str, str]] = Counter()
        self._direct = server.url(bucket, self.prefix)
        self._proxied = self._direct.replace(server.endpoint_url.partition("//")[2], "{}")

    def __enter__(self) -> Bench:
        self.proxy.__enter__()
        far_runtime = SystemRuntime(boot="far", host="far", runtime_dir=os.path.join(self.folder, "far"))
        near_runtime = SystemRuntime(runtime_dir=os.path.join(self.folder, "near"))
        settings = Settings(ttl_s=TTL_S)
        self.far = Cache(open_store(self._direct, far_runtime), far_runtime, settings)
        proxied = self._proxied.format(self.proxy.endpoint_url.partition("//")[2])
        self.near = Cache(open_store(proxied, near_runtime), near_runtime, settings)
        self.near_runtime = near_runtime
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()
        self.proxy.__exit__(None, None, None)

    def strike(self, key: str, put: int, fault: Fault) -> None:
        """Let `fault` happen to the `put`th PUT, from now on, of the record of `key`."""
        with self._lock:
            self._counts[key] = 0
            self._faults[key] = (put, fault)

    def _plan(self, request: Request) -> Fault | Lie | None:
        key = request.key.rpartition("/")[2]
        with self._lock:
            if request.method != "PUT" or key not in self._faults:
                return None
            self._counts[key] += 1
            put, fault = self._faults[key]
            if self._counts[key] != put:
                return None
            del self._faults[key]
            operation, _, name = key.partition("-")
            self.fired[operation, name.rpartition("-")[0]] += 1
            return fault


def claim(bench: Bench, key: str, fault: Fault) -> None:
    bench.strike(key, 1, fault)
    try:
        lock = bench.near.lock(key).acquire()
    except StoreUnavailable:
        _nobody_holds_for_longer_than_a_ttl(bench, key)
        return
    lock.check()
    assert bench.far.try_lock(key) is None, "two believe that they hold"
    assert _there(bench, key).generation == lock.generation == 1
    lock.release()


def beat(bench: Bench, key: str, fault: Fault) -> None:
    lock = bench.near.lock(key).acquire()
    bench.strike(key, 1, fault)
    lock.beat()
    lock.check()
    hold = _there(bench, key).hold
    assert hold is not None and hold.beat >= 1, "a beat that was reported is not there"
    assert bench.far.try_lock(key) is None, "two believe that they hold"
    lock.release()


def release(bench: Bench, key: str, fault: Fault) -> None:
    lock = bench.near.lock(key).acquire()
    bench.strike(key, 1, fault)
    try:
        lock.release()
    except LockLost as error:
        raise AssertionError("a release that came through was reported as a loss") from error
    except StoreUnavailable:
        _nobody_holds_for_longer_than_a_ttl(bench, key)
        return
    after = bench.far.try_lock(key)
    assert after is not None and after.generation == 2, "released, and yet not free"
    after.release()


def take_over(bench: Bench, key: str, fault: Fault) -> None:
    # A holder of this very host that died: its beacon is there, and free.
    with tempfile.NamedTemporaryFile(dir=bench.folder, delete=False) as file:
        beacon, inode = file.name, os.fstat(file.fileno())
    who = bench.near_runtime.holder(None)._replace(
        beacon=beacon, beacon_inode=f"{inode.st_dev}:{inode.st_ino}", process="dead", pid=1
    )
    dead = table.claim(Cell(key), Hold("dead-claim", who, ttl_s=TTL_S))
    bench.far._store.swap(record_name(LOCKS, key), None, encode(dead, os.urandom(8).hex()))
    bench.strike(key, 1, fault)
    lock = bench.near.try_lock(key)
    assert lock is not None, "the dead holder was not taken over"
    lock.check()
    assert bench.far.try_lock(key) is None, "two believe that they hold"
    there = _there(bench, key)
    assert there.generation == lock.generation == 2, there
    assert there.failures is not None and there.failures.deaths == 1, "the death was counted twice, or not at all"
    lock.release()


def commit(bench: Bench, key: str, fault: Fault) -> None:
    computed = []

    def compute() -> str:
        computed.append(1)
        return f"value of {key}"

    bench.strike(key, 2, fault)  # the first PUT is the claim
    value = bench.near.get_or_compute(key, compute)
    again = bench.far.get_or_compute(key, compute)
    assert value == again == f"value of {key}"
    assert len(computed) == 1, "it was committed, and yet computed again"


def forget(bench: Bench, key: str, fault: Fault) -> None:
    bench.far.put(key, "old")
    bench.strike(key, 1, fault)
    bench.near.forget(key)
    assert bench.far.get(key) is None, "forgotten, and yet there"
    seen = bench.far._cells.look(record_name("keys", key), key)
    assert seen.cell.epoch == 2, f"one forget moved the epoch from 1 to {seen.cell.epoch}"


OPERATIONS: Final[dict[str, Callable[[Bench, str, Fault], None]]] = {
    "claim": claim,
    "beat": beat,
    "release": release,
    "takeover": take_over,
    "commit": commit,
    "forget": forget,
}


def _there(bench: Bench, key: str) -> Cell:
    return bench.far._cells.look(record_name(LOCKS, key), key).cell


def _nobody_holds_for_longer_than_a_ttl(bench: Bench, key: str) -> None:
    began = time.monotonic()
    for _ in until(TTL_S * 1.1 + 2.0, "end of a hold that nobody believes in"):
        lock = bench.far.try_lock(key)
        if lock is not None:
            lock.release()
            return
    raise AssertionError(f"held by nobody for {time.monotonic() - began:.1f} s")


def all_faults(server: Server, bucket: str, folder: str, rounds: int, threads: int = 8) -> dict[str, Any]:
    """Every pair of operation and fault `rounds` times; asserts that each fired, and that nothing was misreported."""
    jobs = [
        (operation, fault, number) for number in range(rounds) for operation in OPERATIONS for fault in FAULTS
    ]
    wrong: list[str] = []
    with Bench(server, bucket, folder) as bench:

        def run(job: tuple[str, str, int]) -> None:
            operation, fault, number = job
            for attempt in range(_TRIES_MAX):
                key = f"{operation}-{fault.replace(' ', '_')}-{number}.{attempt}"
                try:
                    OPERATIONS[operation](bench, key, FAULTS[fault])
                    return
                except StoreUnavailable as error:
                    # "I don't know" is an honest answer, and a busy machine's server may take longer than a beat;
                    # always giving it is not.
                    problem: Exception = error
                except Exception as error:
                    problem = error
                    break
            wrong.append(f"{operation}, {fault}, round {number}: {type(problem).__name__}: {problem}")

        began = time.monotonic()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, jobs))
        fired = dict(bench.fired)
    assert not wrong, f"{len(wrong)} of {len(jobs)} went wrong:\n" + "\n".join(wrong[:20])
    expected = {(operation, fault.replace(" ", "_")): rounds for operation in OPERATIONS for fault in FAULTS}
    assert all(fired.get(pair, 0) >= rounds for pair in expected), {p: n for p, n in fired.items() if n < rounds}
    return {"pairs": len(expected), "fired": sum(fired.values()), "seconds": time.monotonic() - began}
