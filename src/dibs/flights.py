"""Threads and tasks of one process that ask for the same key share one flight: the first leads, the others follow.

The leader asks the fleet, or computes; the others wait for the end of its flight in memory, and then get their own
copy of what landed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dibs.cell import Value
from dibs.cells import Seen
from dibs.contend import Contender, raise_if_own
from dibs.errors import WaitCircle, WaitTimeout
from dibs.hold import LiveHold
from dibs.names import KEYS, address, record_name
from dibs.runtime import Runtime
from dibs.tasks import running_loop, until
from dibs.waiting import Pause, Steps

_CIRCLE_S: Final = 0.5
"""How often, and how soon, a follower that holds something looks whether it waits for itself."""
_PATIENTLY_S: Final = 3600.0


class Flight:
    """One asking of one key in this process; `landed` is what came of it: its bytes, or where the value is."""

    def __init__(self, runtime: Runtime, loop: object | None) -> None:
        self.loop = loop
        """The event loop whose task leads it; None for a thread."""
        self.landed: Value | tuple[str, bytes] | None = None
        self.joined = False
        """Somebody follows, most likely; who joins at the last moment looks for himself."""
        self._ended = runtime.event()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def wait(self, timeout_s: float) -> bool:
        return self._ended.wait(timeout_s)

    def notify(self, callback: Callable[[], None]) -> bool:
        self._callbacks.append(callback)
        if self.ended:  # perhaps before it could see the callback
            callback()
        return True

    def end(self) -> None:
        self._ended.set()
        for callback in self._callbacks:
            callback()


class Caller:
    """Whoever asks, on the way to a value: found, got from another, or computed in its own turn."""

    def __init__(self, key: str, wait_s: float | None, began: float, loop: object | None = None) -> None:
        self.name = record_name(KEYS, key)
        self.key = key
        self.loop = loop
        self.seen: Seen
        self.missed = False
        self.flight: Flight | None = None
        """The one that it leads, if it does."""
        self.holds: list[LiveHold] = []
        self._wait_s, self._began = wait_s, began

    def waited_s(self, now: float) -> float:
        return now - self._began

    def left_s(self, now: float) -> float | None:
        """How much longer it would wait for others; None: as long as it takes."""
        return None if self._wait_s is None else self._wait_s - (now - self._began)


class Flights:
    """The flights of one cache in this process."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._runtime = contender.runtime
        self._lock = self._runtime.lock()
        self._flights: dict[str, Flight] = {}

    def open(self, name: str) -> Flight | None:
        """The flight that may be joined now."""
        flight = self._flights.get(name)
        if flight is not None:
            flight.joined = True
        return flight

    def join(self, caller: Caller) -> Flight:
        """The open flight of this key; if there is none, a new one that the caller leads until `land`."""
        if caller.flight is None:
            name, mine = caller.name, Flight(self._runtime, caller.loop)
            caller.flight = mine
            flight = self._flights.setdefault(name, mine)
            if flight is not mine:
                caller.flight = None
                flight.joined = True
            return flight
        return caller.flight

    def close(self, name: str, flight: Flight) -> None:
        """Let nobody join any more: whoever asks from now on may have heard of a forget, and looks for himself."""
        with self._lock:
            if self._flights.get(name) is flight:
                del self._flights[name]

    def land(self, caller: Caller) -> None:
        """End the flight that the caller leads, if it does: nobody may wait for it any more."""
        flight = caller.flight
        if flight is not None:
            try:
                self.close(caller.name, flight)
            finally:  # also when an interrupt strikes in there
                flight.end()
            caller.flight = None

    def following(self, caller: Caller, flight: Flight) -> Steps[None]:
        """Wait for the flight of another thread or task; raises WaitTimeout or WaitCircle."""
        key = caller.key
        mine = self._contender.own_holds()
        raise_if_own(mine, caller.name)
        if caller.loop is None and flight.loop is not None and flight.loop is running_loop():
            circle = WaitCircle([key])
            circle.add_note(f"a task of this event loop computes {key!r}, and a blocking call would stop it: await it")
            raise circle
        announced = False
        try:
            while not flight.ended:
                now = self._runtime.monotonic()
                left_s = caller.left_s(now)
                if left_s is not None and left_s <= 0:
                    raise _timeout(caller, now)
                if mine and caller.waited_s(now) >= _CIRCLE_S:
                    announced = True
                    for hold in mine:
                        hold.announce(address(KEYS, key))
                    keys = self._contender.circle(KEYS, key)
                    if keys is not None:
                        raise WaitCircle(keys)
                pause_s = _CIRCLE_S if mine or left_s is not None else _PATIENTLY_S
                yield Pause(pause_s if left_s is None else min(pause_s, left_s), flight)
        finally:
            if announced:
                for hold in mine:
                    hold.announce(None)
        self.close(caller.name, flight)  # its leader may have been interrupted before it could

    async def followed(self, caller: Caller, flight: Flight) -> None:
        """As following, for a task that holds nothing; raises WaitTimeout."""
        while not flight.ended:
            now = self._runtime.monotonic()
            left_s = caller.left_s(now)
            if left_s is not None and left_s <= 0:
                raise _timeout(caller, now)
            await until(flight, _PATIENTLY_S if left_s is None else left_s)


def _timeout(caller: Caller, now: float) -> WaitTimeout:
    waited_s = caller.waited_s(now)
    return WaitTimeout(f"{caller.key!r} is still computed by another thread or task after {waited_s:.1f} s")
