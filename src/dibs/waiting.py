"""Listen until a cell changes, a holder dies, or it is time to look again.

Where the store has local files, a waiter sleeps until the record's file is written or the holder's beacon is let
go, and burns nothing meanwhile.  On a bucket it sends conditional GETs, at intervals that follow what it knows:
a tenth of the time that the computation will still take, or that it has waited already, so that it is late by a
tenth at most; on the holder's own host it watches the beacon as well.

Request budget of one waiter on a bucket: at most `FIRST_MINUTE_REQUESTS_MAX` in its first minute and
`LATER_MINUTE_REQUESTS_MAX` in each later one, whatever the ttl is and the holder promises; one more for each beat
that it sees, since the holder's silence is counted anew.

Nothing in here blocks: whoever waits is a generator that does its requests itself and *yields* each `Pause` that it
wants.  `drive` spends the pauses in a thread; `tasks.walk` spends them in asyncio, without one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, NamedTuple, Protocol, TypeVar

from dibs.cells import Cells, Seen
from dibs.runtime import Evidence, Runtime
from dibs.store import UNCHANGED

T = TypeVar("T")

INTERVAL_MIN_S: Final = 0.1
INTERVAL_MAX_S: Final = 5.0
FIRST_MINUTE_REQUESTS_MAX: Final = 100
LATER_MINUTE_REQUESTS_MAX: Final = 30
_SHARE: Final = 0.1
_BUDGET_SHARE: Final = 1 / 15
_BUDGET_INTERVAL_MAX_S: Final = 3.0
_LOOK_EVERY_S: Final = 1.0
"""Locally a waiter is woken; this is how often it looks all the same."""
_LOOK_WITHOUT_BEACON_S: Final = 0.1


class Awaited(Protocol):
    """What may end a pause early: a watch, or the end of a flight."""

    def wait(self, timeout_s: float) -> bool:
        """Return True as soon as it has happened, False after `timeout_s`."""

    def notify(self, callback: Callable[[], None]) -> bool:
        """Call back, from any thread, perhaps more than once, when `wait` would return True.

        Returns False where nobody can tell; then ask `wait(0)` now and then.
        """


class Pause(NamedTuple):
    """What a generator wishes: to go on after `seconds`, or as soon as `on` happens; it is sent whether that did."""

    seconds: float
    on: Awaited | None = None


Steps = Generator[Pause, bool, T]


def drive(runtime: Runtime, steps: Steps[T]) -> T:
    """Take the steps in this thread, which sleeps through the pauses; return what they return."""
    try:
        pause = next(steps)
        while True:
            try:
                woken = False
                if pause.on is not None:
                    woken = pause.on.wait(pause.seconds)
                else:
                    runtime.sleep(pause.seconds)
            except BaseException as error:  # an interrupt strikes the one who waits, not the one who drives
                pause = steps.throw(error)
            else:
                pause = steps.send(woken)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


def poll_interval_s(waited_s: float, remaining_s: float | None, ttl_s: float, jitter: float) -> float:
    """Seconds until the next look at a bucket; `jitter` in [0, 1) spreads it by a quarter either way."""
    guided_s = waited_s if remaining_s is None or remaining_s <= 0 else max(remaining_s, waited_s / 4)
    longest_s = min(INTERVAL_MAX_S, ttl_s / 3)
    budget_s = min(max(waited_s * _BUDGET_SHARE, INTERVAL_MIN_S), _BUDGET_INTERVAL_MAX_S)
    return max(min(guided_s * _SHARE, longest_s), budget_s) * (0.75 + jitter / 2)


def remaining_s(seen: Seen, since_look_s: float, usual_s: float | None) -> float | None:
    """How long the holder will probably still take; None when nothing is known.

    From its progress, else from what it expects, else from `usual_s`, what such keys took before.
    """
    hold = seen.cell.hold
    if hold is None:
        return None
    held_s = hold.held_s + (seen.age_s or 0.0) + since_look_s
    if hold.progress:
        return max(hold.held_s / min(hold.progress, 1.0) - held_s, 0.0)
    expected_s = hold.expected_s or usual_s
    return None if expected_s is None else max(expected_s - held_s, 0.0)


class Waiter:
    """Waits for changes of one cell; close it when the wait is over."""

    def __init__(self, cells: Cells, name: str, key: str) -> None:
        self._cells = cells
        self._runtime = cells.runtime
        self._name, self._key = name, key
        self._files = cells.store.files_of(name)
        self._watch = self._runtime.watch()
        self._since = self._runtime.monotonic()
        self._armed: tuple[str | None, tuple[str, ...]] | None = None

    def change(self, seen: Seen, evidence: Evidence, usual_s: float | None, limit_s: float) -> Steps[Seen]:
        """Return the cell when it has changed, or `seen` itself when it is time to judge its holder again.

        Returns within `limit_s` plus one request's timeout.
        """
        hold = seen.cell.hold
        assert hold is not None
        runtime = self._runtime
        beacons = (hold.who.beacon,) if evidence.local and hold.who.beacon else ()
        if self._files:
            # Armed first, then looked: a change between the two is not missed.  What was seen after the last arming
            # need not be looked at twice.
            if self._armed != (seen.version, beacons):
                self._watch.arm(self._files, beacons)
                again = self._cells.look_again(self._name, self._key, seen.version)
                if again is not UNCHANGED:
                    return self._looked(again, beacons)
                self._armed = (seen.version, beacons)
            every_s = _LOOK_EVERY_S if beacons or not evidence.local else _LOOK_WITHOUT_BEACON_S
            yield Pause(min(every_s, limit_s), self._watch)
            self._watch.arm(self._files, beacons)
        else:
            waited_s = runtime.monotonic() - self._since
            left_s = remaining_s(seen, waited_s, usual_s)
            interval_s = poll_interval_s(waited_s, left_s, hold.ttl_s, runtime.jitter())
            if not beacons:
                yield Pause(min(interval_s, limit_s))
            else:
                self._watch.arm((), beacons)
                if (yield Pause(min(interval_s, limit_s), self._watch)):
                    return seen
        again = self._cells.look_again(self._name, self._key, seen.version)
        return seen if again is UNCHANGED else self._looked(again, beacons)

    def _looked(self, seen: Seen, beacons: tuple[str, ...]) -> Seen:
        self._armed = (seen.version, beacons)
        return seen

    def close(self) -> None:
        self._watch.close()
