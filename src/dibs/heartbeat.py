"""One scheduler per process keeps all its holds alive.

It knows its holds weakly: a hold that the program lost track of stops beating and is taken over.
Beats don't wait for each other: each runs in a short-lived thread of its own, and a hold whose beat is still on
its way is not asked again.  The scheduler starts with the first hold and rests when there is none.

A thread can't beat while native code keeps the interpreter lock.  Where that is to be feared a *stand-in*, outside
this process, beats for whatever the scheduler is late with; it must know of a hold from its first moment on.
"""

from __future__ import annotations

from itertools import count
from typing import Final, NamedTuple, Protocol
from weakref import ref

from dibs.errors import StoreUnavailable
from dibs.events import log
from dibs.runtime import Event, Runtime

THREADS_MAX: Final = 32
_REST_MAX_S: Final = 30.0
_CLOSING_S: Final = 0.01
_UNDER_WAY: Final = float("inf")


class Beating(Protocol):
    """What the scheduler asks of a hold; all but `beat_s` are the scheduler's to set."""

    beat_s: float
    due_at: float
    beating: bool
    serial: int

    def keep(self) -> float | None:
        """Beat once; return the seconds until the next one, or None when there is nothing to keep any more."""


class Report(NamedTuple):
    """What a stand-in did for one hold."""

    marks: tuple[float, float, float] | None
    """`Runtime.elapsed_marks` from before the last beat that was confirmed; None before the first."""
    version: str
    """At which that beat left the record; empty when anything else changed in the record too."""
    beat: int
    lost: bool
    """The record doesn't carry the claim any more."""


class Seat(Protocol):
    """The place of one hold with a stand-in."""

    def tell(self, version: str, marks: tuple[float, float, float]) -> None:
        """The holder has rewritten the record, which is at `version` now, and sent that not before `marks`."""

    def report(self) -> Report | None:
        """What was done since the last `tell`; None if nothing was."""

    def leave(self) -> None:
        """Beat no more for this hold.  Safe to call from a finalizer, and twice."""


class StandIn(Protocol):
    """Beats for holds whose own process is late with it."""

    def start(self, who: int, beat_s: float) -> None:
        """Be there from now on for `who`, who is about to ask for a hold with such a beat."""

    def seat(
        self, claim: str, name: str, version: str, marks: tuple[float, float, float], beat_s: float, over_at: float
    ) -> Seat | None:
        """Beat for this hold, until `monotonic` is `over_at`, whenever its holder is late; None: there is no room."""

    def look_after(self) -> None:
        """See that it still runs; replace it, and say so, if it doesn't."""

    def rest(self, who: int) -> None:
        """`who` holds nothing any more."""


class Heartbeat:
    """Beats for holds until they are removed or gone."""

    def __init__(self, runtime: Runtime, stand_in: StandIn | None = None) -> None:
        self._runtime = runtime
        self.stand_in = stand_in
        self._begin()
        runtime.after_fork(self._begin)

    def _begin(self) -> None:
        """Again in a forked child, where nothing is held and no thread runs: Lock and Slot objects come along."""
        runtime = self._runtime
        self._lock = runtime.lock()
        self._wake = runtime.event()
        self._holds: dict[int, ref[Beating]] = {}
        self._serials = count(1)
        self._wakes_at: float | None = None
        self._closed = False
        self._expected = 0
        self._newest = 0
        self._shortest_s = _REST_MAX_S

    def expect(self, beat_s: float) -> None:
        """A hold is about to be asked for; `expected` must follow.  Raises StoreUnavailable once closed."""
        with self._lock:
            if self._closed:
                raise StoreUnavailable(
                    "this cache is closed, or its process is about to end: no new holds", certain=True
                )
            self._expected += 1
        if self.stand_in is not None:
            try:
                self.stand_in.start(id(self), beat_s)
                self._wake_by(self._runtime.monotonic() + beat_s)  # somebody must look after it
            except BaseException:
                self.expected()
                raise

    def expected(self) -> None:
        with self._lock:
            self._expected -= 1

    def close(self, patience_s: float) -> None:
        """Let no hold come any more, and wait for those that are just being asked for."""
        with self._lock:
            self._closed = True
            self._wake.set()
        give_up_at = self._runtime.monotonic() + patience_s
        while self._expected and self._runtime.monotonic() < give_up_at:
            self._runtime.sleep(0.01)

    def add(self, hold: Beating, since: float | None = None) -> None:
        """Begin to beat for `hold`, first `beat_s` after `since` (when it was asked for; default: now).

        A scheduler that rests, or would wake in time anyway, is not woken: short holds cost no thread switch.
        """
        hold.due_at = (self._runtime.monotonic() if since is None else since) + hold.beat_s
        hold.beating = False
        hold.serial = next(self._serials)
        with self._lock:
            if self._closed:
                raise StoreUnavailable("this cache was closed while the hold was asked for")
            self._holds[hold.serial] = ref(hold)
            self._newest = hold.serial
            if hold.beat_s < self._shortest_s:
                self._shortest_s = hold.beat_s
            if len(self._holds) == 1:
                self._runtime.keeps(id(self), True)
            if self._wakes_at is not None and hold.due_at >= self._wakes_at:
                return
        try:
            self._wake_by(hold.due_at)
        except BaseException:
            with self._lock:
                self._holds.pop(hold.serial, None)
            raise

    def _wake_by(self, due_at: float) -> None:
        """See that the scheduler runs, and wakes by then."""
        with self._lock:
            if self._wakes_at is not None:
                if due_at < self._wakes_at:
                    self._wake.set()
                return
            self._wakes_at = due_at
        try:
            self._runtime.start(self._run, "dibs-heartbeat")
        except BaseException:
            with self._lock:
                self._wakes_at = None  # it does not run: whoever comes next starts it
            raise

    def remove(self, hold: Beating) -> None:
        with self._lock:
            self._holds.pop(hold.serial, None)
            if not self._holds:
                self._runtime.keeps(id(self), False)
                if self._closed:
                    self._wake.set()

    def living(self) -> list[Beating]:
        """The holds that are kept now."""
        with self._lock:
            return self._living()

    def hurry(self, hold: Beating) -> None:
        """Beat for `hold` soon, because it has news."""
        with self._lock:
            hold.due_at = self._runtime.monotonic()
            self._wake.set()

    def _run(self) -> None:
        idle_s, newest = 0.0, 0
        while True:  # ends when there was nothing to keep for a whole rest, or soon when it is closed
            wake, rest_s, idle = self._beat_what_is_due()
            woken = wake.wait(_CLOSING_S if self._closed and idle else max(rest_s, 0.001))
            if not idle or woken or newest != self._newest:
                idle_s, newest = 0.0, self._newest
            else:
                idle_s += rest_s
            if idle_s >= _REST_MAX_S or (self._closed and idle and not woken):
                with self._lock:
                    if not self._holds and not self._expected:
                        self._wakes_at = None
                        if self.stand_in is not None:
                            self.stand_in.rest(id(self))
                        return

    def _beat_what_is_due(self) -> tuple[Event, float, bool]:
        """Send the beats that are due; how to be woken, how long to rest, and whether there is nothing to do.

        A function of its own, so that no variable of a resting thread keeps alive a hold that is lost track of.
        """
        if self.stand_in is not None:
            self.stand_in.look_after()
        now = self._runtime.monotonic()
        with self._lock:
            self._wake = wake = self._runtime.event()
            holds = self._living()
            due = [hold for hold in holds if not hold.beating and hold.due_at <= now]
            for hold in due:
                hold.beating = True
                hold.due_at = _UNDER_WAY
            waiting = [hold.due_at for hold in holds if not hold.beating]
            # Idle, it rests no longer than the shortest beat so far: the next hold need not wake it.
            rest_s = min([at - now for at in waiting] + [_REST_MAX_S if holds else self._shortest_s])
            self._wakes_at = now + rest_s
        self._start_beats(due)
        return wake, rest_s, not holds

    def _start_beats(self, due: list[Beating]) -> None:
        """One thread per beat, fewer only when there are very many; without threads, one beat after the other."""
        for batch in [due[i::THREADS_MAX] for i in range(min(len(due), THREADS_MAX))]:
            try:
                self._runtime.start(lambda batch=batch: self._beat(batch), "dibs-beat")  # type: ignore[misc]
            except RuntimeError:
                self._beat(batch)

    def _living(self) -> list[Beating]:
        living: list[Beating] = []
        for serial, reference in list(self._holds.items()):
            hold = reference()
            if hold is None:
                del self._holds[serial]
            else:
                living.append(hold)
        return living

    def _beat(self, holds: list[Beating]) -> None:
        for hold in holds:
            try:
                next_s = hold.keep()
            except Exception:
                log.exception("a heartbeat failed; it will be tried again")
                next_s = hold.beat_s / 4
            with self._lock:
                hold.beating = False
                if next_s is None:
                    self._holds.pop(hold.serial, None)
                    continue
                if hold.due_at == _UNDER_WAY:  # nobody was in a hurry meanwhile
                    hold.due_at = self._runtime.monotonic() + next_s
                if self._wakes_at is None or hold.due_at < self._wakes_at:
                    self._wake.set()
