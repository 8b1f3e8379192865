"""One simulated fleet, from a seed to its history.

Workers run a workload in simulated processes on simulated hosts against one simulated store, while faults
drawn from the seed strike them.  After `duration_s` the faults end, all workers have to come to rest by
themselves, and a last worker on a fresh host looks whether everything still can be had.
"""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from dibs.store import Version
from dibs.testing.simulator.cells import described, described_cells
from dibs.testing.simulator.history import History, one_line
from dibs.testing.simulator.hosts import Host, Process, hexadecimal
from dibs.testing.simulator.runtime import SimRuntime
from dibs.testing.simulator.scheduler import Disposed, Scheduler, Task, Thrown
from dibs.testing.simulator.settings import Settings, drawn
from dibs.testing.simulator.store import Bucket, SimStore
from dibs.testing.simulator.strikes import Strikes
from dibs.testing.workloads import Register, Workload, open_workload

REST_TTLS: Final = 2.5
"""After so many ttl without any worker, nothing may be held any more, but by the dead."""


class Seat:
    """One worker through all its lives: what it remembers, and the process it is now."""

    def __init__(self, index: int, host: Host, chance: random.Random) -> None:
        self.index = index
        self.host = host
        self.chance = chance
        self.memory: dict[str, Any] = {}
        self.lives = 0
        self.process: Process | None = None
        self.done = False


class SimWorker:
    """What a workload sees of one life of one worker."""

    def __init__(self, world: World, seat: Seat, process: Process, runtime: SimRuntime, store: SimStore) -> None:
        self._world = world
        self.name = process.who
        self.index = seat.index
        self.chance = seat.chance
        self.memory = seat.memory
        self.runtime = runtime
        self.store = store

    def record(self, what: str, **fields: Any) -> None:
        self._world.record(self.name, what, **fields)

    def register(self, name: str) -> Register:
        return self._world.registers.setdefault(name, Register())


class World:
    """A fleet in a box.  `run` it once; everything in it follows from `seed` and `settings`."""

    def __init__(self, seed: int, settings: Settings | None = None, workload: Workload | None = None) -> None:
        self.settings = settings = settings or drawn(seed)
        self.chance = chance = random.Random(f"dibs world {seed}")
        self.scheduler = Scheduler(chance)
        self.scheduler.on_crash = self._crashed
        self.history = History(seed, settings.facts())
        self.workload = workload or open_workload(settings.workload, random.Random(f"dibs plan {seed}"), settings)
        self.hosts = [Host(f"host{i}", self.scheduler, chance) for i in range(settings.hosts)]
        self.bucket = Bucket(self, self.hosts)
        self.registers: dict[str, Register] = {}
        self.healed = False
        """No more faults: the world has to come to rest."""
        self.strikes = Strikes(self)
        self.seats = [
            Seat(i, self.hosts[i % settings.hosts], random.Random(f"dibs worker {seed} {i}"))
            for i in range(settings.workers)
        ]
        self.holding: dict[str, str] = {}
        """Record name -> the worker life that holds it."""
        self._names: dict[str, str] = {}

    def run(self) -> History:
        settings, scheduler = self.settings, self.scheduler
        # Collecting cycles at moments of its own, the collector could call into the world in between.
        collecting = gc.isenabled()
        gc.disable()
        # Warnings of simulated workers are no news to whoever runs the simulator; the history has the events.
        log = logging.getLogger("dibs")
        silent, log.disabled = log.disabled, True
        try:
            for seat in self.seats:
                scheduler.after(
                    self.chance.random() * settings.ttl_s / 3, partial(self.start, seat, self.workload.work)
                )
            self.strikes.plan()
            scheduler.at(settings.duration_s, self._heal)
            limit_s = 3 * settings.duration_s + 60 * settings.ttl_s
            self.history.ended = self._run(limit_s)
        finally:
            scheduler.dispose()
            log.disabled = silent
            if collecting:
                gc.enable()
        return self.history

    def _run(self, limit_s: float) -> str:
        ended = self.scheduler.run(self._all_done, limit_s)
        if ended == "finished":
            self._heal()
            rest = self.scheduler.now + REST_TTLS * self.settings.ttl_s
            self.scheduler.at(rest, lambda: None)
            ended = self.scheduler.run(lambda: self.scheduler.now >= rest, rest)
            for fields in described_cells(self.bucket, self._names):
                self.record("world", "at rest", **fields)
            host = Host("last-host", self.scheduler, self.chance) if self.settings.remote else self.hosts[0]
            last = Seat(len(self.seats), host, random.Random(f"dibs worker {self.history.seed} last"))
            self.seats.append(last)
            self.start(last, self.workload.afterwards)
            ended = self.scheduler.run(self._all_done, limit_s + rest)
        if ended != "finished":
            for task in self.scheduler.tasks:
                if not (task.done or task.gate.dead):
                    self.record("world", "still waits", task=task.name, waits_for=task.waits_for)
        return ended

    def record(self, who: str, what: str, **fields: Any) -> None:
        if not self.scheduler.over:
            self.history.add(self.scheduler.now, who, what, **fields)

    def _all_done(self) -> bool:
        return all(seat.done for seat in self.seats)

    def _heal(self) -> None:
        if not self.healed:
            self.healed = True
            self.record("world", "faults end")
            self.strikes.lift()

    # --- lives of a worker ---

    def start(self, seat: Seat, work: Callable[[Any], None]) -> None:
        seat.lives += 1
        process = seat.process = seat.host.start(f"w{seat.index}.{seat.lives}")
        self._names[process.token] = process.who
        runtime = SimRuntime(process, self.settings.preemption)
        worker = SimWorker(self, seat, process, runtime, SimStore(self.bucket, process))
        about = {"host": seat.host.name, "boot": seat.host.boot, "pid": process.pid, "beacon": bool(process.beacon)}
        self.record(process.who, "started", **about, rate=round(seat.host.rate, 4))
        process.main = self.scheduler.spawn(process.gate, partial(self._live, seat, worker, work), process.who)

    def _live(self, seat: Seat, worker: SimWorker, work: Callable[[Any], None]) -> None:
        assert seat.process is not None
        try:
            try:
                work(worker)
            except SystemExit:
                worker.record("terminated")
            except Exception as error:
                self._crashed(self.scheduler.running(), error)
            worker.runtime.run_exit_callbacks()
        except SystemExit:
            worker.record("terminated", detail="once more, on the way out")
        except Disposed:
            return
        worker.record("ended")
        seat.host.end(seat.process)
        seat.process = None
        # What a polite stop has left undone, the next life goes on with.
        if seat.memory.get("todo") and self.chance.random() < self.settings.restarts:
            self.scheduler.after(self.chance.random() * 10.0, partial(self.start, seat, work))
        else:
            seat.done = True

    def kill(self, process: Process, why: str) -> None:
        """End a process as SIGKILL does: none of its tasks ever runs again, also not to clean up."""
        seat = next((seat for seat in self.seats if seat.process is process), None)
        if seat is None or process.gate.dead:
            return
        self.record(process.who, "killed", fault=why)
        process.host.end(process)
        self.bury(seat)

    def bury(self, seat: Seat) -> None:
        """Its process is dead; perhaps it lives again, a while later, on the same host."""
        seat.process = None
        if self.chance.random() < self.settings.restarts:
            delay_s = self.chance.expovariate(1.0) * self.chance.choice((0.1, 3.0, self.settings.ttl_s))
            self.scheduler.after(delay_s, partial(self.start, seat, self.workload.work))
        else:
            seat.done = True

    def terminate(self, process: Process, why: str) -> None:
        """Ask a process to end, once: SystemExit strikes its main task wherever it waits."""
        asked, process.asked_to_end = process.asked_to_end, True
        if process.main is not None and not (asked or process.main.done or process.gate.dead):
            self.record(process.who, "asked to end", fault=why)
            self.scheduler.wake(process.main, process.main.parked, Thrown(SystemExit(143)))

    def _crashed(self, task: Task, error: BaseException) -> None:
        # File names without directories: a history must not name the machine it was made on.
        at, frames = error.__traceback__, []
        while at is not None:
            frames.append(f"{at.tb_frame.f_code.co_filename.rpartition('/')[2]}:{at.tb_lineno}")
            at = at.tb_next
        self.record(task.name, "crashed", error=one_line(error), frames=frames[-6:])

    # --- what the store tells ---

    def fate(self, process: Process, what: str, name: str) -> str:
        if self.healed:
            return ""
        fate = self.strikes.fate(process)
        if fate:
            self.record(process.who, "fault", fault=fate, request=what, name=name)
        return fate

    def strike(self, process: Process, within_s: float) -> None:
        if not self.healed:
            self.strikes.around_request(process, within_s)

    def wrote(self, who: str, name: str, old: Version | None, new: Version, data: bytes) -> None:
        fields = described(data, self.bucket, self._names)
        if "claim" in fields:
            self.holding[name] = fields["holder"]
        else:
            self.holding.pop(name, None)
        self.record(who, "swap", name=name, old=old, new=new, **fields)

    def refused(self, who: str, name: str, old: Version | None, there: Version | None) -> None:
        self.record(who, "conflict", name=name, old=old, there=there)

    def new_token(self) -> str:
        return hexadecimal(self.chance)
