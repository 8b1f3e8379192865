"""One scheduler per process keeps all its holds alive.

It knows its holds weakly: a hold that the program lost track of stops beating and is taken over.
Beats don't wait for each other: each runs in a short-lived thread of its own, and a hold whose beat is still on
its way is not asked again.  The scheduler starts with the first hold and rests when there is none.
"""

from __future__ import annotations

from itertools import count
from typing import Final, Protocol
from weakref import ref

from dibs.errors import StoreUnavailable
from dibs.events import log
from dibs.runtime import Event, Runtime

THREADS_MAX: Final = 32
_REST_MAX_S: Final = 30.0
_UNDER_WAY: Final = float("inf")


class Beating(Protocol):
    """What the scheduler asks of a hold; all but `beat_s` are the scheduler's to set."""

    beat_s: float
    due_at: float
    beating: bool
    serial: int

    def keep(self) -> float | None:
        """Beat once; return the seconds until the next one, or None when there is nothing to keep any more."""


class Heartbeat:
    """Beats for holds until they are removed or gone."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
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

    def expect(self) -> None:
        """A hold is about to be asked for; `expected` must follow.  Raises StoreUnavailable once closed."""
        with self._lock:
            if self._closed:
                raise StoreUnavailable("this cache is closed, or its process is about to end: no new holds")
            self._expected += 1

    def expected(self) -> None:
        with self._lock:
            self._expected -= 1

    def close(self, patience_s: float) -> None:
        """Let no hold come any more, and wait for those that are just being asked for."""
        with self._lock:
            self._closed = True
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
            if len(self._holds) == 1:
                self._runtime.keeps(id(self), True)
            if self._wakes_at is None:
                self._wakes_at = hold.due_at
                start = True
            else:
                start = False
                if hold.due_at < self._wakes_at:
                    self._wake.set()
        if start:
            try:
                self._runtime.start(self._run, "dibs-heartbeat")
            except BaseException:
                with self._lock:
                    self._wakes_at = None  # it does not run: whoever comes next starts it
                    self._holds.pop(hold.serial, None)
                raise

    def remove(self, hold: Beating) -> None:
        with self._lock:
            self._holds.pop(hold.serial, None)
            if not self._holds:
                self._runtime.keeps(id(self), False)

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
        while True:  # ends when there was nothing to keep for a whole rest
            wake, rest_s, idle = self._beat_what_is_due()
            woken = wake.wait(max(rest_s, 0.001))
            if idle and not woken:
                with self._lock:
                    if not self._holds:
                        self._wakes_at = None
                        return

    def _beat_what_is_due(self) -> tuple[Event, float, bool]:
        """Send the beats that are due; how to be woken, how long to rest, and whether there is nothing to do.

        A function of its own, so that no variable of a resting thread keeps alive a hold that is lost track of.
        """
        now = self._runtime.monotonic()
        with self._lock:
            self._wake = wake = self._runtime.event()
            holds = self._living()
            due = [hold for hold in holds if not hold.beating and hold.due_at <= now]
            for hold in due:
                hold.beating = True
                hold.due_at = _UNDER_WAY
            waiting = [hold.due_at for hold in holds if not hold.beating]
            rest_s = min([at - now for at in waiting] + [_REST_MAX_S])
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
