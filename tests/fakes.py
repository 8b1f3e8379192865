"""What the tests of the core run on: a clock moved by hand, hosts that share it, and stores that misbehave on order.

Everything here runs in one thread: whoever sleeps moves the clock, and what was planned for the time in between
happens on the way.  A wait that nothing could end is an error at once instead of a test that hangs.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context
from typing import Any, BinaryIO

from dibs import cell as table
from dibs.cache import Cache
from dibs.errors import Conflict, StoreUnavailable
from dibs.locks import Lock
from dibs.names import LOCKS, record_name
from dibs.runtime import Evidence, Holder
from dibs.settings import Settings
from dibs.slot import Slot
from dibs.store import Record, Unchanged, Version
from dibs.stores.memory import MemoryStore

_hosts = itertools.count(1)


class WouldHang(AssertionError):
    """Nothing is planned that could ever end this wait."""


class Clock:
    """Seconds that pass only when somebody sleeps."""

    HORIZON_S = 100_000.0

    def __init__(self) -> None:
        self.now = 1000.0
        self._numbers = itertools.count()
        self._plans: list[tuple[float, int, Callable[[], object]]] = []

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        """Do `what` when the clock is moved past `seconds` from now."""
        heapq.heappush(self._plans, (self.now + seconds, next(self._numbers), what))

    def every(self, seconds: float, what: Callable[[], object]) -> None:
        """Do `what` again and again, until it returns False."""

        def once() -> None:
            if what() is not False:
                self.after(seconds, once)

        self.after(seconds, once)

    def sleep(self, seconds: float) -> None:
        end = self.now + max(seconds, 1e-6)  # below that, adding to `now` might change nothing
        while self._plans and self._plans[0][0] <= end:
            at, _, what = heapq.heappop(self._plans)
            self.now = max(self.now, at)
            what()
        self.now = max(self.now, end)
        if self.now > self.HORIZON_S:
            raise WouldHang(f"still waiting after {self.now:.0f} s")

    def step(self) -> None:
        """Move to the next thing that is planned."""
        if not self._plans:
            raise WouldHang("nothing is planned that could end this wait")
        self.sleep(self._plans[0][0] - self.now)


class HandEvent:
    """As threading.Event, on a clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        end = None if timeout is None else self._clock.now + timeout
        while not self._set:
            if end is None:
                self._clock.step()
            elif self._clock.now >= end:
                break
            else:
                self._clock.sleep(min(end - self._clock.now, 0.1))
        return self._set


class HandWatch:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def arm(self, files: object, beacons: object) -> None: ...

    def wait(self, timeout_s: float) -> bool:
        self._clock.sleep(timeout_s)
        return False

    def notify(self, callback: Callable[[], None]) -> bool:
        return False

    def close(self) -> None: ...


class HandRuntime:
    """See `runtime.Runtime`: one process on a host of its own.  Threads are started only by `run_threads`."""

    def __init__(self, clock: Clock | None = None, boot: str | None = None) -> None:
        self.clock = clock or Clock()
        number = next(_hosts)
        self.host, self.boot = f"host{number}", boot or f"boot{number}"
        self._number = number
        self._tokens = itertools.count(1)
        self._process = self.token()
        self.dead: dict[str, str] = {}
        """Processes that are proved dead, with the reason."""
        self.started: list[Callable[[], None]] = []
        self._sightings: dict[tuple[str, str], tuple[str, float]] = {}
        self.suspended_s = 0.0

    def monotonic(self) -> float:
        return self.clock.now

    def wall(self) -> float:
        return 1.7e9 + self.clock.now

    def boot_time(self) -> float:
        return self.clock.now + self.suspended_s

    def elapsed_marks(self) -> tuple[float, float, float]:
        return self.clock.now, self.boot_time(), self.wall()

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    def start(self, target: Callable[[], None], name: str) -> None:
        self.started.append(target)

    def lock(self) -> AbstractContextManager[Any]:
        return threading.Lock()

    def event(self) -> HandEvent:
        return HandEvent(self.clock)

    def token(self) -> str:
        return f"{self._number:06x}{next(self._tokens):010x}"

    def jitter(self) -> float:
        return 0.5

    def process(self) -> str:
        return self._process

    def become_a_child(self) -> None:
        """As if this process had been forked, and this were the child."""
        self._process = self.token()

    def thread(self) -> int:
        return threading.get_ident()

    def holder(self, beacon_dir: str | None) -> Holder:
        return Holder(self.host, self.boot, 1, self._number, 7, "", "", self._process)

    def evidence(self, holder: Holder) -> Evidence:
        return Evidence(self.dead.get(holder.process), holder.boot == self.boot)

    def watch(self) -> HandWatch:
        return HandWatch(self.clock)

    def first_seen(self, store_id: str, name: str, version: str) -> float:
        known = self._sightings.get((store_id, name))
        if known is None or known[0] != version:
            known = self._sightings[store_id, name] = (version, self.clock.now)
        return known[1]

    def is_verified(self, what: str) -> bool:
        return False

    def mark_verified(self, what: str) -> None: ...

    def at_exit(self, callback: Callable[[], None]) -> None: ...

    def keeps(self, keeper: int, something: bool) -> None: ...

    def after_fork(self, callback: Callable[[], None]) -> None: ...


Fault = str
"""What goes wrong with one swap: see `FaultyStore`."""


class FaultyStore:
    """A store in front of another one, which spoils the swaps of cells in the order of `plan`.

    ""                 nothing goes wrong
    "lost"             the request never arrives; StoreUnavailable
    "answer lost"      it is done, and nobody says so; StoreUnavailable
    "twice"            it is delivered twice, and the second answer comes back: Conflict
    "late"             it arrives just before the next request of any kind; StoreUnavailable
    "overtaken"        it never arrives, and somebody else's write (`rival`) does; StoreUnavailable

    `down` True: nothing is answered at all.  `applied` counts the swaps of cells that were done.
    """

    beacon_dir = None

    def __init__(self, store: MemoryStore, *plan: Fault, remote: bool = False) -> None:
        self._store = store
        self.plan = list(plan)
        self.rival: Callable[[], object] = lambda: None
        self.down = False
        self.blobs_down = False
        self.applied = 0
        self.sent = 0
        self.reads = 0
        self._late: list[tuple[str, Version | None, bytes]] = []
        self.remote = remote
        self.server = "test" if remote else ""
        self.dialect, self.dialects = store.dialect, store.dialects
        self.before: Callable[[str, str], object] = lambda kind, name: None
        """Called with ("read" or "swap", name) before each request."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _arrive(self) -> None:
        late, self._late = self._late, []
        for name, old, new in late:
            try:
                self._apply(name, old, new)
            except Conflict:
                pass

    def _apply(self, name: str, old: Version | None, new: bytes) -> Version:
        version = self._store.swap(name, old, new)
        self.applied += name.startswith(("keys/", "locks/"))
        return version

    def read(self, name: str, unless: Version | None = None) -> Record | None | Unchanged:
        self.before("read", name)
        self._arrive()
        self.reads += 1
        if self.down:
            raise StoreUnavailable("the store is down")
        return self._store.read(name, unless)

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        self.before("swap", name)
        self._arrive()
        self.sent += 1
        if self.down:
            raise StoreUnavailable("the store is down")
        fault = self.plan.pop(0) if self.plan and name.startswith(("keys/", "locks/")) else ""
        if fault == "":
            return self._apply(name, old, new)
        if fault == "answer lost":
            self._apply(name, old, new)
        elif fault == "late":
            self._late.append((name, old, new))
        elif fault == "twice":
            self._apply(name, old, new)
            self._apply(name, old, new)
        elif fault == "overtaken":
            self.rival()
        else:
            assert fault == "lost", fault
        raise StoreUnavailable(fault)

    def upload(self, name: str, source: BinaryIO) -> None:
        if self.down or self.blobs_down:
            raise StoreUnavailable("the store is down")
        self._store.upload(name, source)

    def remove(self, name: str) -> None:
        if self.down or self.blobs_down:
            raise StoreUnavailable("the store is down")
        self._store.remove(name)


def cache_on(store: Any, runtime: Any = None, **settings: Any) -> Cache:
    settings.setdefault("allow_pickle", True)
    return Cache(store, runtime or HandRuntime(), Settings(**settings))


class Elsewhere:
    """A cache, a slot or a lock of another process: what it does knows nothing of the holds of this flow."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if name.startswith("_") or not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            result = Context().run(found, *args, **kwargs)
            return Elsewhere(result) if isinstance(result, Slot | Lock) else result

        return call

    def __enter__(self) -> Elsewhere:
        Context().run(self._thing.__enter__)
        return self

    def __exit__(self, *error: Any) -> None:
        Context().run(self._thing.__exit__, *error)

    def __contains__(self, key: str) -> bool:
        return key in self._thing


def break_lock(cache: Any, name: str) -> None:
    """Take a lock away from whoever holds it, as an operator does."""
    record, claim = record_name(LOCKS, name), cache._cells.look(record_name(LOCKS, name), name).cell.hold.claim
    cache._cells.change(record, name, claim, lambda seen: table.unlock(seen.cell, claim), 5.0)


class Counted:
    """A computation that counts how often it was asked, and may raise first."""

    def __init__(self, result: Any = "value", *errors: BaseException) -> None:
        self.result = result
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.result


def crowd(size: int, what: Callable[[int], object], timeout_s: float = 20.0) -> list[Any]:
    """Run `what(number)` in threads at once; their results, or the errors that they raised, in order."""
    results: list[Any] = [None] * size
    barrier = threading.Barrier(size)

    def run(number: int) -> None:
        barrier.wait(timeout_s)
        try:
            results[number] = what(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_s)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return results


@contextmanager
def in_thread(what: Callable[[], object], timeout_s: float = 20.0) -> Iterator[list[Any]]:
    """Run `what` beside the block; the list has its result, or its error, when the block is left."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(what())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield results
    finally:
        thread.join(timeout_s)
        assert not thread.is_alive(), "a thread hangs"


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Return when `condition` holds; looks again every few milliseconds."""
    tick = threading.Event()
    for _ in range(int(timeout_s / 0.005)):
        if condition():
            return
        tick.wait(0.005)
    raise AssertionError(f"still not true after {timeout_s:g} s")
