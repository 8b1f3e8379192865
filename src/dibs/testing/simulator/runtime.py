"""The door to uncertainty, simulated: one `SimRuntime` per simulated process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dibs.runtime import Event, Evidence, Holder, Watch
from dibs.testing.simulator.hosts import Process, hexadecimal
from dibs.testing.simulator.scheduler import Scheduler, Task

NOTICE_S_MAX = 0.002
"""A watcher hears of a change at most so much later."""


class SimLock:
    """As threading.Lock: whoever comes first when it is free gets it, waiting longest helps nothing."""

    def __init__(self, runtime: SimRuntime) -> None:
        self._scheduler = runtime.scheduler
        self._host = runtime.machine.host
        self._preemption = runtime.preemption
        self._taken = False
        self._queue: list[tuple[Task, int]] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        scheduler.check()
        if self._preemption and scheduler.chance.random() < self._preemption:
            scheduler.give_way()
        if self._taken and not blocking:
            return False
        deadline = self._host.monotonic() + timeout if timeout >= 0 else None
        while self._taken:
            task = scheduler.running()
            if deadline is not None:
                left = deadline - self._host.monotonic()
                if left <= 0:
                    return False
                self._host.wake_after(task, left)
            self._queue.append((task, task.parked))
            scheduler.park("a lock of its own process")
        self._taken = True
        return True

    def release(self) -> None:
        if not self._taken:
            raise RuntimeError("release unlocked lock")
        self._taken = False
        queue = self._queue = [(task, parked) for task, parked in self._queue if task.parked == parked]
        if queue and not self._scheduler.over:
            task, parked = queue.pop(self._scheduler.chance.randrange(len(queue)))
            self._scheduler.wake(task, parked)

    def locked(self) -> bool:
        return self._taken

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class SimEvent:
    """As threading.Event."""

    def __init__(self, runtime: SimRuntime) -> None:
        self._scheduler = runtime.scheduler
        self._host = runtime.machine.host
        self._set = False
        self._queue: list[tuple[Task, int]] = []

    def set(self) -> None:
        self._set = True
        queue, self._queue = self._queue, []
        if not self._scheduler.over:
            for task, parked in queue:
                self._scheduler.wake(task, parked)

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        self._scheduler.check()
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        self._scheduler.check()
        if not self._set and (timeout is None or timeout > 0):
            task = self._scheduler.running()
            if timeout is not None:
                self._host.wake_after(task, timeout)
            # Those who timed out are dropped here, so that an endless loop of waits doesn't grow the queue.
            self._queue = [(task, parked) for task, parked in self._queue if task.parked == parked]
            self._queue.append((task, task.parked))
            self._scheduler.park("an event" if timeout is None else f"an event, {timeout:g} s at most")
        return self._set


class SimWatch:
    """Wakes on writes to the records of a notifying store, and on deaths on the same host."""

    def __init__(self, runtime: SimRuntime) -> None:
        self._scheduler = runtime.scheduler
        self._host = runtime.machine.host
        self._armed: tuple[str, ...] = ()
        self._changed = False
        self._waiting: tuple[Task, int] | None = None

    def arm(self, files: Sequence[str], beacons: Sequence[str]) -> None:
        self._scheduler.check()
        wanted = (*files, *beacons)
        if wanted != self._armed:
            self.close()
            for file in wanted:
                self._host.watches.setdefault(file, []).append(self._notice)
            self._armed = wanted
        self._changed = False

    def _notice(self) -> None:
        self._changed = True
        if self._waiting is not None:
            task, parked = self._waiting
            self._scheduler.wake(task, parked, None, self._scheduler.chance.random() * NOTICE_S_MAX)

    def wait(self, timeout_s: float) -> bool:
        self._scheduler.check()
        if not self._changed and timeout_s > 0:
            task = self._scheduler.running()
            self._waiting = (task, task.parked)
            self._host.wake_after(task, timeout_s)
            try:
                self._scheduler.park(f"a change of {', '.join(self._armed) or 'nothing'}, {timeout_s:g} s at most")
            finally:
                self._waiting = None
        return self._changed

    def notify(self, callback: Callable[[], None]) -> bool:
        return False  # no event loop runs in here

    def close(self) -> None:
        for file in self._armed:
            watches = self._host.watches.get(file, [])
            if self._notice in watches:
                watches.remove(self._notice)
        self._armed = ()


class SimRuntime:
    """The `Runtime` of one simulated process."""

    def __init__(self, machine: Process, preemption: float = 0.0) -> None:
        self.machine = machine
        self.scheduler: Scheduler = machine.host.scheduler
        self.preemption = preemption
        """How likely a task is to lose its turn where it takes a lock."""

    def monotonic(self) -> float:
        self.scheduler.check()
        return self.machine.host.monotonic()

    def boot_time(self) -> float:
        self.scheduler.check()
        return self.machine.host.boot_clock()

    def elapsed_marks(self) -> tuple[float, float, float]:
        self.scheduler.check()
        host = self.machine.host
        return host.monotonic(), host.boot_clock(), host.wall()

    def wall(self) -> float:
        self.scheduler.check()
        return self.machine.host.wall()

    def sleep(self, seconds: float) -> None:
        self.machine.host.wake_after(self.scheduler.running(), seconds)
        self.scheduler.park(f"{seconds:g} s of sleep")

    def start(self, target: Callable[[], None], name: str) -> None:
        self.scheduler.check()
        self.scheduler.spawn(self.machine.gate, target, f"{self.machine.who}/{name}")

    def lock(self) -> SimLock:
        return SimLock(self)

    def event(self) -> Event:
        return SimEvent(self)

    def token(self) -> str:
        self.scheduler.check()
        return hexadecimal(self.scheduler.chance)

    def jitter(self) -> float:
        self.scheduler.check()
        return self.scheduler.chance.random()

    def process(self) -> str:
        return self.machine.token

    def thread(self) -> int:
        return self.scheduler.running().ident

    def holder(self, beacon_dir: str | None) -> Holder:
        self.scheduler.check()
        return self.machine.holder()

    def evidence(self, holder: Holder) -> Evidence:
        self.scheduler.check()
        return self.machine.host.evidence(holder, self.machine)

    def watch(self) -> Watch:
        return SimWatch(self)

    def first_seen(self, store_id: str, name: str, version: str) -> float:
        self.scheduler.check()
        return self.machine.host.first_seen(store_id, name, version)

    def is_verified(self, what: str) -> bool:
        return False  # no files are mapped in here

    def mark_verified(self, what: str) -> None:
        pass

    def at_exit(self, callback: Callable[[], None]) -> None:
        self.machine.at_exit.append(callback)

    def keeps(self, keeper: int, something: bool) -> None:
        pass

    def after_fork(self, callback: Callable[[], None]) -> None:
        """Nothing forks in here."""

    def run_exit_callbacks(self) -> None:
        """What an orderly end does; the last that was registered goes first."""
        while self.machine.at_exit:
            self.machine.at_exit.pop()()
