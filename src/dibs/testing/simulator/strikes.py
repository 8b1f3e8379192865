"""What strikes a world from outside: kills, stops, suspends, reboots, partitions, outages, stepped clocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from dibs.testing.simulator.hosts import Host, Process

if TYPE_CHECKING:
    from dibs.testing.simulator.world import World

_FATES: Final = ("lost", "answer_lost", "ghost", "duplicate", "second_answer", "refused", "slow")


class Strikes:
    """Draws what goes wrong, and when, from the world's chance."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._outage = ""
        rates = world.settings.rates
        self._fates: list[tuple[float, str]] = []
        upto = 0.0
        for fate in _FATES:
            if share := getattr(rates, fate):
                upto += share
                self._fates.append((upto, fate.replace("_", " ")))

    def plan(self) -> None:
        """Draw all strikes of the world's duration beforehand."""
        world, numbers = self._world, self._world.settings.strikes
        kinds: tuple[tuple[float, Callable[[], None]], ...] = (
            (numbers.kills, self._kill),
            (numbers.terminations, self._terminate),
            (numbers.pauses, self._pause),
            (numbers.suspends, self._suspend),
            (numbers.reboots, self._reboot),
            (numbers.partitions, self._partition),
            (numbers.outages, self._begin_outage),
            (numbers.clock_steps, self._step_clock),
            (numbers.damages, self._damage),
        )
        span_s = world.settings.duration_s * world.settings.strikes_within
        for mean, strike in kinds:
            when = 0.0
            while mean:
                when += world.chance.expovariate(1.0) * span_s / mean
                if when >= span_s:
                    break
                world.scheduler.at(when, partial(self._unless_healed, strike))

    def _unless_healed(self, strike: Callable[[], None]) -> None:
        if not self._world.healed:
            strike()

    def lift(self) -> None:
        """Everything that still lasts ends now."""
        self._outage = ""
        for host in self._world.hosts:
            host.cut_off = False
            host.wake_up()
            for process in host.alive():
                host.unpause(process)

    # --- requests ---

    def fate(self, process: Process) -> str:
        if process.host.cut_off:
            return "lost"
        if self._outage:
            return self._outage
        if self._fates:
            drawn = self._world.chance.random()
            for upto, fate in self._fates:
                if drawn < upto:
                    return fate
        return ""

    def around_request(self, process: Process, within_s: float) -> None:
        """Perhaps strike before the request arrives, between its effect and its answer, or soon after."""
        world, rates = self._world, self._world.settings.rates
        for rate, strike in (
            (rates.kill, partial(world.kill, process, "at request")),
            (rates.pause, partial(self.pause, process)),
            (rates.terminate, partial(world.terminate, process, "at request")),
        ):
            if rate and world.chance.random() < rate:
                world.scheduler.after(world.chance.random() * within_s * 1.5, partial(self._unless_healed, strike))

    # --- processes ---

    def _some_process(self) -> Process | None:
        """Any living one, but rather one that holds something."""
        living = [seat.process for seat in self._world.seats if seat.process is not None]
        holding = [process for process in living if process.who in self._world.holding.values()]
        if holding and self._world.chance.random() < 0.7:
            living = holding
        return self._world.chance.choice(living) if living else None

    def _some_host(self) -> Host:
        return self._world.chance.choice(self._world.hosts)

    def _length_s(self) -> float:
        """Around a beat, around a ttl, or far beyond it."""
        chance = self._world.chance
        return chance.choice((0.2, 1.2, 4.0)) * self._world.settings.ttl_s * (0.2 + chance.random())

    def _kill(self) -> None:
        process = self._some_process()
        if process is not None:
            self._world.kill(process, "kill")

    def _terminate(self) -> None:
        process = self._some_process()
        if process is not None:
            self._world.terminate(process, "terminate")

    def _pause(self) -> None:
        process = self._some_process()
        if process is not None:
            self.pause(process)

    def pause(self, process: Process) -> None:
        if process.paused or process.gate.dead or self._world.healed:
            return
        length_s = self._length_s()
        self._world.record(process.who, "paused", fault="pause", seconds=round(length_s, 3))
        process.host.pause(process)
        self._world.scheduler.after(length_s, partial(self._unpause, process))

    def _unpause(self, process: Process) -> None:
        if process.paused and not process.gate.dead:
            self._world.record(process.who, "goes on")
            process.host.unpause(process)

    # --- hosts and the store ---

    def _suspend(self) -> None:
        host, length_s = self._some_host(), self._length_s()
        if host.suspended_at is None:
            self._world.record(host.name, "suspended", fault="suspend", seconds=round(length_s, 3))
            host.suspend()
            self._world.scheduler.after(length_s, host.wake_up)

    def _reboot(self) -> None:
        host = self._some_host()
        self._world.record(host.name, "rebooted", fault="reboot")
        killed = [seat for seat in self._world.seats if seat.process is not None and seat.process.host is host]
        host.reboot()
        for seat in killed:
            assert seat.process is not None
            self._world.record(seat.process.who, "killed", fault="reboot")
            self._world.bury(seat)

    def _partition(self) -> None:
        host, length_s = self._some_host(), self._length_s()
        if not host.cut_off:
            self._world.record(host.name, "cut off", fault="partition", seconds=round(length_s, 3))
            host.cut_off = True
            self._world.scheduler.after(length_s, partial(self._reconnect, host))

    def _reconnect(self, host: Host) -> None:
        host.cut_off = False

    def _begin_outage(self) -> None:
        kind, length_s = self._world.chance.choice(("refused", "lost", "slow")), self._length_s()
        self._world.record("store", "outage", fault=f"outage: {kind}", seconds=round(length_s, 3))
        self._outage = kind
        self._world.scheduler.after(length_s, self._end_outage)

    def _end_outage(self) -> None:
        self._outage = ""

    def _damage(self) -> None:
        """A large value gets lost or damaged where it lies."""
        chance, blobs = self._world.chance, self._world.bucket.blobs
        if blobs:
            name, kind = chance.choice(sorted(blobs)), chance.choice(("lost", "cut", "changed"))
            self._world.record("store", "damaged", fault=f"damage: {kind}", blob=name)
            if kind == "lost":
                del blobs[name]
            else:
                half = len(blobs[name]) // 2
                blobs[name] = blobs[name][:half] + (b"?" + blobs[name][half + 1 :] if kind == "changed" else b"")

    def _step_clock(self) -> None:
        host = self._some_host()
        seconds = self._world.chance.choice((-1, 1)) * self._world.chance.choice((1.0, 60.0, 3600.0))
        self._world.record(host.name, "clock stepped", fault="clock step", seconds=seconds)
        host.step_wall(seconds)
