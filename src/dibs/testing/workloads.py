"""What workers do in a rehearsal: the same work in the simulator, on real processes and on a cluster.

A workload knows nothing of where it runs: everything comes from its `Worker`, and all that it reports goes
into the history, from which `verdicts` judges.  Every computed value carries a *mark*, a random number of its
own, so that a value can be followed from the computation that made it to everyone who ever saw it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from dibs.errors import DibsError, SettingsError, StoreUnavailable, WaitTimeout
from dibs.runtime import Runtime
from dibs.store import Backend

if TYPE_CHECKING:
    from dibs.cache import Cache

_MARK: Final = re.compile(r"<<([0-9a-f]{16})>>")
TRIES_MAX: Final = 60
"""So often does a worker ask again when the store did not answer."""
OPENINGS_MAX: Final = 500
"""The first opening of a bucket is a dozen requests, all of which must succeed."""
LARGE: Final = 20_000
"""Bytes of a value that doesn't fit into its record."""


class Register:
    """A plain number that knows nothing of locks; with fencing numbers, it refuses whoever comes late."""

    def __init__(self) -> None:
        self.value = 0
        self.fence = 0

    def read(self, generation: int = 0) -> int | None:
        self.fence = max(self.fence, generation)
        return None if generation < self.fence else self.value

    def write(self, value: int, generation: int = 0) -> bool:
        if generation < self.fence:
            return False
        self.fence = max(self.fence, generation)
        self.value = value
        return True


class Worker(Protocol):
    """One life of one worker: its way to the world."""

    name: str
    index: int
    chance: random.Random
    memory: dict[str, Any]
    """What the worker remembers when it is killed and started again."""

    @property
    def runtime(self) -> Runtime: ...
    @property
    def store(self) -> Backend: ...
    def record(self, what: str, **fields: Any) -> None:
        """Add to the history."""

    def register(self, name: str) -> Register:
        """The register of that name, shared by all workers."""


class Size(Protocol):
    """What a workload needs to know of the world; the simulator's `Settings` are one."""

    @property
    def workers(self) -> int: ...
    @property
    def keys(self) -> int: ...
    @property
    def duration_s(self) -> float: ...
    @property
    def ttl_s(self) -> float: ...
    @property
    def ages(self) -> bool:
        """The store tells the age of what it keeps."""


class Workload(Protocol):
    def work(self, worker: Worker) -> None:
        """All that a worker does; in a later life, what is left of it."""

    def afterwards(self, worker: Worker) -> None:
        """What a last worker does when all others have ended: everything must still be to be had."""


class Boom(Exception):
    """A computation that fails, as the plan has it."""


def open_cache(worker: Worker, ttl_s: float) -> Cache:
    """The cache of this worker; its store may take a while to answer."""
    from dibs.cache import Cache
    from dibs.settings import Settings

    for tried in range(OPENINGS_MAX):
        try:
            return Cache(worker.store, worker.runtime, Settings(ttl_s=ttl_s))
        except StoreUnavailable:
            if tried == OPENINGS_MAX - 1:
                raise
            worker.runtime.sleep(worker.chance.random() * ttl_s / 2)
    raise AssertionError("unreachable")


Opener = Callable[[Worker, float], Any]


def open_workload(name: str, chance: random.Random, size: Size) -> Workload:
    """The workload of that name, with a plan drawn from `chance`."""
    from dibs.testing.relay import Relay

    kinds: dict[str, Callable[[random.Random, Size], Workload]] = {
        "compute_once": ComputeOnce,
        "relay": Relay,
        "recompute": Recompute,
    }
    if name not in kinds:
        raise SettingsError(f"{name!r} is no workload; there are {', '.join(kinds)}")
    return kinds[name](chance, size)


def mark_of(value: object) -> str:
    found = _MARK.match(value) if isinstance(value, str) else None
    return found[1] if found else f"not ours: {str(value)[:40]!r}"


class KeyPlan(NamedTuple):
    """How the computation of one key goes, whoever does it."""

    key: str
    seconds: float
    size_bytes: int
    asks: tuple[int, ...]
    """Keys that it needs itself: only later ones, unless circles are what is to be tried."""
    failing: float


class Opened:
    """A cache in use by one life of a worker, with everything it does recorded."""

    def __init__(self, worker: Worker, cache: Any, plans: Sequence[KeyPlan], expires_s: float | None = None) -> None:
        self.worker = worker
        self.cache = cache
        self.plans = plans
        self.expires_s = expires_s
        cache.on_event(self._on_event)

    def _on_event(self, event: Any) -> None:
        if event.kind not in ("hit", "miss", "waiting"):
            fields = {"generation": event.generation, "epoch": event.epoch, "detail": event.detail[:120]}
            self.worker.record(f"event: {event.kind}", key=event.key, **fields)

    def call(self, what: str, key: str, do: Callable[[int], Any], **asked: Any) -> bool:
        """Record one call of the cache, with its result; False when it is worth another try."""
        call = self.worker.memory["calls"] = self.worker.memory.get("calls", 0) + 1
        self.worker.record("asked", call=call, method=what, key=key, **asked)
        try:
            value = do(call)
        except (DibsError, Boom) as error:
            kind = type(error).__name__
            self.worker.record("raised", call=call, method=what, key=key, error=kind, detail=str(error)[:160])
            return not isinstance(error, StoreUnavailable | WaitTimeout)
        returned = {} if what in ("put", "forget") else {"mark": None if value is None else mark_of(value)}
        self.worker.record("returned", call=call, method=what, key=key, **returned)
        return True

    def get_or_compute(self, i: int, **options: Any) -> bool:
        key, ask = self.plans[i].key, partial(self.cache.get_or_compute, expires_s=self.expires_s)
        return self.call("get_or_compute", key, lambda call: ask(key, self.compute(i, call), **options), **options)

    def once(self, i: int) -> bool:
        """The block form of the same."""
        key = self.plans[i].key

        def block(call: int) -> Any:
            with self.cache.once(key, expires_s=self.expires_s) as slot:
                if not slot.done:
                    value = self.compute(i, call)()
                    if self.worker.chance.random() < 0.5:
                        slot.check()
                    slot.commit(value)
                return slot.value

        return self.call("once", key, block)

    def any_form(self, i: int) -> bool:
        """Ask for a key in one of the ways there are."""
        form = self.worker.chance.choice(("plain", "plain", "plain", "once", "patient"))
        if form == "once":
            return self.once(i)
        if form == "patient":
            return self.get_or_compute(i, wait_s=self.worker.chance.choice((0.0, 1.0, 30.0)))
        return self.get_or_compute(i)

    def compute(self, i: int, call: int) -> Callable[[], str]:
        worker, plan = self.worker, self.plans[i]

        def compute() -> str:
            mark = worker.runtime.token()
            worker.record("computing", key=plan.key, mark=mark, call=call)
            for j in plan.asks:
                self._need(j)
            worker.runtime.sleep(plan.seconds * (0.7 + 0.6 * worker.chance.random()))
            if worker.chance.random() < plan.failing:
                worker.record("failed", key=plan.key, mark=mark, call=call)
                raise Boom(f"planned failure of {plan.key}")
            worker.record("computed", key=plan.key, mark=mark, call=call)
            return f"<<{mark}>>" + "x" * plan.size_bytes

        return compute

    def _need(self, j: int) -> None:
        """Ask for another key within a computation; its failure is ours."""
        if not self.get_or_compute(j):
            raise StoreUnavailable(f"{self.plans[j].key} could not be had")

    def value(self, i: int) -> tuple[str, str]:
        """A value to put, made on the spot, and its mark."""
        mark = self.worker.runtime.token()
        return mark, f"<<{mark}>>" + "x" * self.plans[i].size_bytes


def _plans(chance: random.Random, size: Size, nested: float, failing: float, circles: bool = False) -> list[KeyPlan]:
    plans = []
    for i in range(size.keys):
        longest_s = chance.choice((0.1, 5.0, 20.0, size.ttl_s, 3 * size.ttl_s))
        later = list(range(0 if circles else i + 1, size.keys))
        asks = tuple(sorted(chance.sample(later, min(len(later), 1 + (chance.random() < 0.3)))))
        plans.append(
            KeyPlan(
                f"key{i}",
                longest_s * chance.random(),
                LARGE if chance.random() < 0.25 else 0,
                asks if chance.random() < nested else (),
                failing if chance.random() < 0.3 else 0.0,
            )
        )
    return plans


class ComputeOnce:
    """Workers ask for overlapping lists of keys, each in its own order.

    Some computations fail, some ask for other keys, some last longer than a ttl.
    """

    def __init__(self, chance: random.Random, size: Size, opener: Opener = open_cache) -> None:
        self._open = opener
        self._size = size
        self._circles = chance.random() < 0.15
        failing = chance.choice((0.0, 0.0, 0.5))
        self.plans = _plans(chance, size, 0.7 if self._circles else 0.25, failing, self._circles)
        # From a stampede to workers that hardly meet.
        self._thinking_s = chance.choice((0.0, 0.5, 5.0, 0.4 * size.duration_s / size.keys))
        self._threads = chance.choice((1, 1, 2))

    def work(self, worker: Worker) -> None:
        memory = worker.memory
        if "todo" not in memory:
            memory["todo"] = [i for i in range(len(self.plans)) if worker.chance.random() < 0.8] or [0]
            worker.chance.shuffle(memory["todo"])
        self._warn(worker)
        with self._open(worker, self._size.ttl_s) as cache:
            opened = Opened(worker, cache, self.plans)
            done = worker.runtime.event()
            running = self._threads

            def thread() -> None:
                nonlocal running
                self._ask_all(opened, memory["todo"])
                running -= 1
                if not running:
                    done.set()

            for _ in range(1, self._threads):
                worker.runtime.start(thread, "asking")
            thread()
            done.wait()

    def _warn(self, worker: Worker) -> None:
        if self._circles:
            worker.record("may meet circles")

    def _ask_all(self, opened: Opened, todo: list[int]) -> None:
        worker = opened.worker
        while todo:
            worker.runtime.sleep(worker.chance.random() * self._thinking_s)
            if not todo:
                return  # the other thread took the last one meanwhile
            i = todo[-1]
            for _ in range(TRIES_MAX):
                if opened.any_form(i):
                    break
                worker.runtime.sleep(worker.chance.random() * self._size.ttl_s / 2)
            if todo and todo[-1] == i:
                todo.pop()
            elif i in todo:
                todo.remove(i)

    def afterwards(self, worker: Worker) -> None:
        self._warn(worker)
        with self._open(worker, self._size.ttl_s) as cache:
            opened = Opened(worker, cache, self.plans)
            for i in range(len(self.plans)):
                opened.get_or_compute(i)


class Recompute:
    """Readers against writers who put, forget and recompute, on a few keys."""

    def __init__(self, chance: random.Random, size: Size, opener: Opener = open_cache) -> None:
        self._open = opener
        self._size = size
        self.plans = _plans(chance, size, nested=0.1, failing=chance.choice((0.0, 0.0, 0.2)))[: max(2, size.keys // 2)]
        self.plans = [plan._replace(asks=tuple(j for j in plan.asks if j < len(self.plans))) for plan in self.plans]
        self._thinking_s = chance.choice((2.0, 10.0))
        self._turns = 12
        # Whole seconds are all that some stores can tell of an age.
        self._expires_s = chance.choice((None, None, 15.0, 90.0)) if size.ages else None

    def work(self, worker: Worker) -> None:
        memory, chance = worker.memory, worker.chance
        if "todo" not in memory:
            memory["todo"] = [chance.randrange(len(self.plans)) for _ in range(self._turns)]
        with self._open(worker, self._size.ttl_s) as cache:
            opened = Opened(worker, cache, self.plans, self._expires_s)
            while memory["todo"]:
                worker.runtime.sleep(chance.random() * self._thinking_s)
                i = memory["todo"][-1]
                methods = ("get_or_compute", "stale", "get", "put", "forget", "recompute")
                method = chance.choices(methods, (4, 2, 3, 1, 1, 2))[0]
                for _ in range(TRIES_MAX):
                    if self._once(opened, method, i):
                        break
                    worker.runtime.sleep(chance.random() * self._size.ttl_s / 2)
                memory["todo"].pop()

    def _once(self, opened: Opened, method: str, i: int) -> bool:
        key, cache = opened.plans[i].key, opened.cache
        if method == "get_or_compute":
            return opened.any_form(i)
        if method == "stale":
            return opened.get_or_compute(i, stale_ok=True)
        if method == "get":
            return opened.call("get", key, lambda call: cache.get(key))
        if method == "forget":
            return opened.call("forget", key, lambda call: cache.forget(key))
        if method == "recompute":
            recompute = partial(cache.recompute, expires_s=self._expires_s)
            return opened.call("recompute", key, lambda call: recompute(key, opened.compute(i, call)))
        mark, value = opened.value(i)
        opened.worker.record("putting", key=key, mark=mark)
        return opened.call("put", key, lambda call: cache.put(key, value, expires_s=self._expires_s))

    def afterwards(self, worker: Worker) -> None:
        with self._open(worker, self._size.ttl_s) as cache:
            opened = Opened(worker, cache, self.plans)
            for i in range(len(self.plans)):
                opened.get_or_compute(i)
