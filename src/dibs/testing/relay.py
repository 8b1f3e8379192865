"""Plain locks as a workload: workers pass a lock from hand to hand around a register that must never lose a step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dibs.errors import DibsError, LockLost
from dibs.testing.workloads import TRIES_MAX, Opener, Size, Worker, open_cache


@contextmanager
def _released(lock: Any) -> Iterator[Any]:
    try:
        yield lock
    finally:
        lock.release()


class Relay:
    """Workers take locks around a plain register: read, take a while, check, write one more."""

    def __init__(self, chance: random.Random, size: Size, opener: Opener = open_cache) -> None:
        self._open = opener
        self._size = size
        self.locks = [f"lock{i}" for i in range(chance.randint(1, 3))]
        self.fenced = {name for name in self.locks if chance.random() < 0.4}
        self._holding_s = chance.choice((0.05, 2.0, 0.3 * size.ttl_s, 1.5 * size.ttl_s))
        self._thinking_s = chance.choice((0.1, 5.0))
        # As many as the duration has room for.
        turns = size.duration_s / size.workers / (self._holding_s + 0.1) * len(self.locks)
        self._turns = int(min(max(turns, 3), 12))

    def work(self, worker: Worker) -> None:
        memory, chance = worker.memory, worker.chance
        if "todo" not in memory:
            memory["todo"] = [chance.choice(self.locks) for _ in range(self._turns)]
        with self._open(worker, self._size.ttl_s) as cache:
            while memory["todo"]:
                worker.runtime.sleep(chance.random() * self._thinking_s)
                name = memory["todo"][-1]
                for _ in range(TRIES_MAX):
                    if self._increment(worker, cache, name):
                        break
                    worker.runtime.sleep(chance.random() * self._size.ttl_s / 3)
                memory["todo"].pop()

    def _increment(self, worker: Worker, cache: Any, name: str, patient: bool = False) -> bool:
        turn = worker.memory["calls"] = worker.memory.get("calls", 0) + 1
        ttl_s, written = self._size.ttl_s, False
        wait_s = None if patient else worker.chance.choice((None, None, None, 0.0, 1.0, 2 * ttl_s))
        method = "lock" if wait_s != 0.0 else "try_lock"
        worker.record("asked", call=turn, method=method, key=name, wait_s=wait_s)
        try:
            lock = cache.lock(name, ttl_s=ttl_s, wait_s=wait_s) if wait_s != 0.0 else cache.try_lock(name, ttl_s=ttl_s)
            if lock is None:
                worker.record("returned", call=turn, method=method, key=name)
                return False
            with lock if method == "lock" else _released(lock) as lock:
                worker.record("locked", call=turn, lock=name, generation=lock.generation)
                written = self._read_and_write(worker, lock, name, turn)
                worker.record("unlocking", call=turn, lock=name, generation=lock.generation)
        except LockLost as error:
            worker.record("lost", call=turn, lock=name, detail=str(error)[:160])
        except DibsError as error:
            what, detail = type(error).__name__, str(error)[:160]
            worker.record("raised", call=turn, method=method, key=name, error=what, detail=detail)
        else:
            worker.record("returned", call=turn, method=method, key=name)
        return written

    def _read_and_write(self, worker: Worker, lock: Any, name: str, turn: int) -> bool:
        runtime, register = worker.runtime, worker.register(name)
        fence = lock.generation if name in self.fenced else 0
        if not fence:
            lock.check()
            worker.record("checked", call=turn, lock=name, generation=lock.generation)
        before = register.read(fence)
        if before is None:
            worker.record("fenced off", call=turn, lock=name, generation=fence, at="read")
            return False
        runtime.sleep(self._holding_s * (0.3 + worker.chance.random()))
        if fence:
            # No check: it is the register that refuses whoever comes too late.
            if not register.write(before + 1, fence):
                worker.record("fenced off", call=turn, lock=name, generation=fence, at="write")
                return False
        else:
            # Nothing may come between the check and the write: a check says how it was, not how it will be.
            lock.check()
            worker.record("checked", call=turn, lock=name, generation=lock.generation)
            register.write(before + 1)
        worker.record("wrote", call=turn, lock=name, generation=lock.generation, value=before + 1)
        return True

    def afterwards(self, worker: Worker) -> None:
        with self._open(worker, self._size.ttl_s) as cache:
            for name in self.locks:
                self._increment(worker, cache, name, patient=True)
