"""Simulated machines: clocks that disagree, processes that die, and what a host can prove about their deaths.

True time is the scheduler's.  No simulated program can see it: each host has a monotonic clock with its own
offset and rate that stands still while the host is suspended, a boot clock that doesn't, and a wall clock
that is wrong by up to an hour and gets stepped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from dibs.runtime import Evidence, Holder
from dibs.testing.simulator.scheduler import Gate, Scheduler, Task

RATE_ERROR_MAX: Final = 0.05
SKEW_S_MAX: Final = 3600.0
TICK: Final = 1e-9
WAKE_S_MAX: Final = 0.001
"""A sleeper wakes up to this much late, as on a real machine; so every wait makes time pass."""


def hexadecimal(chance: random.Random) -> str:
    return f"{chance.getrandbits(64):016x}"


class Process:
    """One simulated process: its tasks stop and die together."""

    def __init__(self, host: Host, who: str, namespace: int, pid: int, beacon: str, inode: str) -> None:
        self.host = host
        self.who = who
        self.namespace = namespace
        self.pid = pid
        self.start_ticks = round(host.boot_clock() * 100)
        self.token = hexadecimal(host.chance)
        self.beacon = beacon
        self.beacon_inode = inode
        self.gate = Gate()
        self.at_exit: list[Callable[[], None]] = []
        self.paused = False
        self.asked_to_end = False
        self.main: Task | None = None

    def holder(self) -> Holder:
        host = self.host
        return Holder(
            host.name,
            host.boot,
            self.namespace,
            self.pid,
            self.start_ticks,
            self.beacon,
            self.beacon_inode,
            self.token,
        )


class Host:
    """One machine, with what its kernel knows."""

    def __init__(self, name: str, scheduler: Scheduler, chance: random.Random) -> None:
        self.name = name
        self.scheduler = scheduler
        self.chance = chance
        self.cut_off = False
        """A network partition: no request from here gets through."""
        self.suspended_at: float | None = None
        self._skew_s = 1.7e9 + chance.uniform(-SKEW_S_MAX, SKEW_S_MAX)
        self._inodes = chance.randrange(1000, 9000)
        self._boot()

    def _boot(self) -> None:
        self.boot = hexadecimal(self.chance)
        self.rate = 1.0 + self.chance.uniform(-RATE_ERROR_MAX, RATE_ERROR_MAX)
        self._booted = self.scheduler.now
        self._asleep_s = 0.0
        self._mono_offset = self.chance.uniform(0.0, 1e5)
        self._boot_offset = self._mono_offset + self.chance.uniform(0.0, 1e4)
        # Containers see each other's records but not each other's pids; a pid there is soon used again.
        self.namespaces = [self.chance.randrange(4026531836, 4026540000) for _ in range(self.chance.choice((1, 1, 2)))]
        self.processes: dict[tuple[int, int], Process] = {}
        self.beacons: dict[str, str] = {}
        self.seen: dict[tuple[str, str], tuple[str, float]] = {}
        self.watches: dict[str, list[Callable[[], None]]] = {}

    # --- clocks ---

    def monotonic(self) -> float:
        now = self.scheduler.now if self.suspended_at is None else self.suspended_at
        return self._mono_offset + self.rate * (now - self._booted - self._asleep_s)

    def boot_clock(self) -> float:
        return self._boot_offset + self.rate * (self.scheduler.now - self._booted)

    def wall(self) -> float:
        return self._skew_s + self.rate * self.scheduler.now

    def step_wall(self, seconds: float) -> None:
        self._skew_s += seconds

    def wake_after(self, task: Task, seconds: float, value: object = None) -> None:
        """Wake `task` when its monotonic clock has gone on by `seconds`, and a little later."""
        seconds = max(seconds, 0.0) + self.chance.random() * WAKE_S_MAX
        due = self.monotonic() + seconds
        self.scheduler.after(seconds / self.rate, partial(self._fire, task, task.parked, due, value))

    def _fire(self, task: Task, parked: int, due: float, value: object) -> None:
        if task.parked != parked or task.done or task.gate.dead:
            return
        if task.gate.shut:
            task.gate.kept.append(partial(self._fire, task, parked, due, value))
            return
        missing = due - self.monotonic()
        if missing > TICK:  # the host was suspended meanwhile, and its clock stood still
            self.scheduler.after(missing / self.rate + TICK, partial(self._fire, task, parked, due, value))
            return
        self.scheduler.resume(task, parked, value)

    # --- processes ---

    def start(self, who: str) -> Process:
        namespace = self.chance.choice(self.namespaces)
        used = {pid for space, pid in self.processes if space == namespace}
        pid = next(pid for pid in range(self.chance.randrange(1, 3), 99) if pid not in used)
        self._inodes += 1
        inode = f"64769:{self._inodes}"
        # Some processes have no beacon: their directory can't be written.
        beacon = f"sim:beacons/{self.boot}/{self._inodes}" if self.chance.random() < 0.85 else ""
        process = Process(self, who, namespace, pid, beacon, inode if beacon else "")
        self.processes[namespace, pid] = process
        if beacon:
            self.beacons[beacon] = inode
        if self.suspended_at is not None:
            self.scheduler.shut(process.gate)
        return process

    def end(self, process: Process) -> None:
        """The process is gone, and with it all it was doing; its greenlets are kept, and never run again."""
        if process.gate.dead:
            return
        process.gate.dead = True
        process.gate.kept.clear()
        del self.processes[process.namespace, process.pid]
        if process.beacon:
            del self.beacons[process.beacon]
            self.notify(process.beacon)

    def alive(self) -> Iterator[Process]:
        return iter(list(self.processes.values()))

    def pause(self, process: Process) -> None:
        if not process.paused and not process.gate.dead:
            process.paused = True
            self.scheduler.shut(process.gate)

    def unpause(self, process: Process) -> None:
        if process.paused and not process.gate.dead:
            process.paused = False
            self.scheduler.open(process.gate)

    def suspend(self) -> None:
        if self.suspended_at is None:
            self.suspended_at = self.scheduler.now
            for process in self.alive():
                self.scheduler.shut(process.gate)

    def wake_up(self) -> None:
        if self.suspended_at is not None:
            self._asleep_s += self.scheduler.now - self.suspended_at
            self.suspended_at = None
            for process in self.alive():
                self.scheduler.open(process.gate)

    def reboot(self) -> None:
        """All processes die at once; clocks, boot id and everything that was only remembered are new."""
        for process in self.alive():
            self.end(process)
        self.suspended_at = None
        self._boot()

    # --- what can be known here ---

    def evidence(self, holder: Holder, mine: Process) -> Evidence:
        if not holder.boot or holder.boot != self.boot:
            return Evidence(None, False)
        if holder.beacon and self.beacons.get(holder.beacon) != holder.beacon_inode:
            return Evidence("beacon free", True)
        if holder.pid_namespace and holder.pid_namespace == mine.namespace:
            there = self.processes.get((holder.pid_namespace, holder.pid))
            if there is None:
                return Evidence("pid gone", True)
            if holder.start_ticks and there.start_ticks != holder.start_ticks:
                return Evidence("pid used again", True)
        return Evidence(None, True)

    def first_seen(self, store_id: str, name: str, version: str) -> float:
        known = self.seen.get((store_id, name))
        if known is None or known[0] != version:
            known = (version, self.monotonic())
            self.seen[store_id, name] = known
        return known[1]

    def notify(self, file: str) -> None:
        """Wake whoever watches this file or beacon on this host."""
        for wake in list(self.watches.get(file, ())):
            wake()
