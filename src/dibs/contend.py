"""Contend for one cell: become its holder, take over from the dead, or wait until it is settled.

The one loop behind computing once and plain locks, for threads and for tasks: it yields where it wants to wait
(see `waiting`).  Look, lock and look again are one swap: there is no window between "not there yet" and "mine".
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from copy import copy
from typing import Final, Generic, NamedTuple, TypeVar
from weakref import ref

from dibs import cell as table
from dibs.cell import Cell, Hold
from dibs.cells import Cells, Seen
from dibs.errors import Conflict, StoreUnavailable, WaitCircle, WaitTimeout
from dibs.events import Kind
from dibs.heartbeat import Heartbeat
from dibs.hold import LiveHold, Terms
from dibs.liveness import Verdict, judge, silent_after_s
from dibs.names import LOCKS, address, from_address, record_name
from dibs.runtime import Evidence
from dibs.runtime.pool import Pool
from dibs.waiting import Pause, Steps, Waiter, remaining_s

T = TypeVar("T")

_ANNOUNCE_AFTER_S: Final = 0.5
_REPORTS_S: Final = (1.0, 10.0, 60.0)
_REPORT_LOUDLY_S: Final = 60.0
_REPORT_EVERY_S: Final = 600.0
_CIRCLE_LENGTH_MAX: Final = 32
_SILENCE_SLACK_S: Final = 0.01
_OUTAGES_TTL: Final = 5
_OUTAGE_MIN_S: Final = 60.0
_PATIENCE_MIN_S: Final = 1.0
"""Even who won't wait finds out what became of a request that was not answered."""
_TWICE: Final = "take it once around the whole, or with reentrant=True, which its own thread may repeat."
_THREADS_LOCAL: Final = 3
_THREADS_REMOTE: Final = 8

holds_of_flow: ContextVar[tuple[ref[LiveHold], ...]] = ContextVar("holds_of_flow", default=())
"""What the running flow (thread or task) holds, outermost first; a new task inherits what it was started under.

To wait for that is a circle: nobody can see whether the parent awaits the task, and most do.  Weak: a lock that the
program lost track of must not be kept by the thread that took it.
"""


class Settled(NamedTuple, Generic[T]):
    """What the asker wanted is there already."""

    what: T


def own_holds(store_id: str | None = None) -> tuple[LiveHold, ...]:
    """The holds of this flow that are still kept, in all stores or in that one."""
    return tuple(
        hold
        for reference in holds_of_flow.get()
        if (hold := reference()) is not None
        and not hold.ended
        and hold.mine()
        and (store_id is None or hold.store_id == store_id)
    )


def enter(hold: LiveHold) -> None:
    """From here on this flow holds `hold`."""
    holds_of_flow.set((*(reference for reference in holds_of_flow.get() if _kept(reference)), ref(hold)))


def leave(hold: LiveHold | None) -> None:
    """This flow holds it no more."""
    kept = (reference for reference in holds_of_flow.get() if _kept(reference))
    holds_of_flow.set(tuple(reference for reference in kept if reference() is not hold))


def _kept(reference: ref[LiveHold]) -> bool:
    hold = reference()
    return hold is not None and not hold.ended


def raise_if_own(mine: tuple[LiveHold, ...], name: str) -> None:
    """Raise WaitCircle when this flow would wait for a record that it holds itself."""
    for number, hold in enumerate(mine):
        if hold.name == name:
            keys = [held.key for held in mine[number:]]
            if name.startswith(f"{LOCKS}/"):
                raise WaitCircle(keys, f"{hold.key!r} is held here already: {_TWICE}")
            raise WaitCircle(keys)


class Contender:
    """What it takes to contend for the cells of one store."""

    def __init__(self, cells: Cells, heartbeat: Heartbeat) -> None:
        self.cells = cells
        self.heartbeat = heartbeat
        self.runtime = cells.runtime
        # Threads that take steps of tasks: as many as requests may be on their way to a server; in a folder a step
        # takes microseconds, and more threads would only fight the event loop for the interpreter.
        self.pool = Pool(self.runtime, _THREADS_REMOTE if cells.store.remote else _THREADS_LOCAL)

    def within(self, beat_s: float) -> Contender:
        """One whose holds beat so often: each of its requests takes at most that long, and others' are left alone."""
        if beat_s >= self.cells.store.request_timeout_s:
            return self
        contender = copy(self)
        contender.cells = self.cells.within(beat_s)
        return contender

    def contending(
        self,
        space: str,
        key: str,
        terms: Terms,
        wait_s: float | None,
        settled: Callable[[Seen], Settled[T] | None],
        event: Callable[[Seen], Callable[[Cell, Hold], Cell]] = lambda seen: table.claim,
        usual_s: float | None = None,
        deaths_max: int | None = None,
        seen: Seen | None = None,
        taken: Callable[[LiveHold], object] = lambda hold: None,
    ) -> Steps[LiveHold | Settled[T]]:
        """Come to a hold, or to what `settled` made of the cell.

        `settled` looks at the cell first, each time; `event` says how a free cell is claimed.  `usual_s` is how
        long such holds last, `seen` a look at the cell that was taken just now.  A key that has killed
        `deaths_max` holders is not taken over but buried, which `settled` then sees.
        Raises WaitTimeout after `wait_s` (None: never), WaitCircle, StoreUnavailable.
        """
        name = record_name(space, key)
        attempt = _Attempt(self, space, key, wait_s, usual_s, seen)
        try:
            while True:  # ends by a hold, by `settled`, or by an error of `attempt.wait`
                seen = attempt.seen
                answer = settled(seen)
                if answer is not None:
                    attempt.report_waited()
                    return answer
                how: Callable[[Cell, Hold], Cell] | None
                if seen.cell.hold is None:
                    how = event(seen)
                else:
                    how = attempt.take_over()
                if how is None:
                    yield from attempt.wait()
                    continue
                if how is table.take_over and deaths_max is not None and attempt.deaths() + 1 >= deaths_max:
                    attempt.bury()
                    continue
                hold = LiveHold(self.cells, self.heartbeat, name, key, terms)
                hold.expected_s = usual_s
                taken(hold)
                try:
                    hold.acquire(seen, how, attempt.patience_s(terms.ttl_s))
                except Conflict as conflict:
                    attempt.look(conflict)
                    continue
                try:
                    attempt.report_acquired(hold)
                except BaseException:
                    hold.abandon()
                    raise
                return hold
        finally:
            attempt.close()

    def own_holds(self) -> tuple[LiveHold, ...]:
        """The holds of this flow in this store; what it holds in others can't be told to those who wait here."""
        return own_holds(self.cells.card.store_id)

    def judge(self, name: str, seen: Seen) -> Verdict:
        """Judge the holder of a cell by what is known on this host, for a reader that won't wait."""
        hold = seen.cell.hold
        assert hold is not None
        first_s = self.runtime.first_seen(self.cells.card.store_id, name, seen.version or "")
        age_s = seen.age_s if self.cells.store.remote else None
        return judge(hold, self.runtime.evidence(hold.who), self.runtime.monotonic() - first_s, age_s)

    def circle(self, space: str, key: str) -> list[str] | None:
        """The keys of the circle that this flow closes by waiting for `key`, if it does."""
        return self.circle_from(self.cells.look(record_name(space, key), key).cell)

    def circle_from(self, cell: Cell) -> list[str] | None:
        """Follow what holders say they wait for, from the holder of `cell`, until it comes back to this flow."""
        claims = {hold.claim for hold in self.own_holds()}
        keys = [cell.key]
        for _ in range(_CIRCLE_LENGTH_MAX):
            if cell.hold is None or cell.hold.waits_for is None:
                return None
            space, key = from_address(cell.hold.waits_for)
            cell = self.cells.look(record_name(space, key), key).cell
            if cell.hold is not None and cell.hold.claim in claims:
                return [cell.key, *keys]
            keys.append(cell.key)
        return None


class _Attempt:
    """The state of one contender's wait."""

    def __init__(
        self,
        contender: Contender,
        space: str,
        key: str,
        wait_s: float | None,
        usual_s: float | None,
        seen: Seen | None,
    ) -> None:
        self._contender = contender
        self._cells = contender.cells
        self._runtime = contender.runtime
        self._address, self._name, self._key = address(space, key), record_name(space, key), key
        self._wait_s = wait_s
        self._usual_s = usual_s
        self._began = self._answered_at = self._runtime.monotonic()
        self._waiter: Waiter | None = None
        self._report_at_s = _REPORTS_S[0]
        self._announced: tuple[LiveHold, ...] = ()
        self._verdict: Verdict | None = None
        self._noted: tuple[str | None, float] = (None, 0.0)
        self._shared: tuple[str | None, float] = (None, 0.0)
        self._evidence = Evidence(None, False)
        self._contested = False
        self.seen = seen or self._cells.recall(self._name) or self._cells.look(self._name, key)

    def look(self, conflict: Conflict) -> None:
        self._contested = True
        self.seen = self._cells.look_after(conflict, self._name, self._key)

    def take_over(self) -> Callable[[Cell, Hold], Cell] | None:
        """How to take the cell over from its holder; None while that one is alive."""
        hold = self.seen.cell.hold
        assert hold is not None
        if self._cells.is_abandoned(hold.claim):
            self._verdict = Verdict("dead", "an abandoned claim of this process")
            return lambda cell, new: table.take_over(cell, new, death=False)
        self._evidence = self._runtime.evidence(hold.who)
        age_s = self.seen.age_s if self._cells.store.remote else None
        self._verdict = judge(hold, self._evidence, self._unchanged_s(), age_s)
        return table.take_over if self._verdict.over else None

    def deaths(self) -> int:
        failures = self.seen.cell.failures
        return failures.deaths if failures is not None else 0

    def bury(self) -> None:
        """End a dead holder's hold without taking its place."""
        try:
            self.seen = self._cells.write(self._name, self.seen, table.bury(self.seen.cell), patience_s=5.0)
        except Conflict as conflict:
            self.look(conflict)

    def _unchanged_s(self) -> float:
        """How long this host has seen the cell at this version.

        What this process saw is counted from its own first look.  What others on this host saw is asked only at
        the second look, or when there will be none: most waits are over before silence matters.
        """
        now, version = self._runtime.monotonic(), self.seen.version
        if self._noted[0] != version:
            self._noted = (version, now)
            if self._left_s() > 0:
                return 0.0
        if self._shared[0] != version:
            at = self._runtime.first_seen(self._cells.card.store_id, self._name, version or "")
            self._shared = (version, at)
        return now - min(self._noted[1], self._shared[1])

    def wait(self) -> Steps[None]:
        """Wait for news of the holder; raises WaitTimeout or WaitCircle."""
        left_s = self._left_s()
        if left_s <= 0:
            raise WaitTimeout(f"{self._key!r} is still held after {self._waited_s():.1f} s by {self._by()}")
        self._report()
        if self._waiter is None:
            self._waiter = Waiter(self._cells, self._name, self._key)
        if self._contender.own_holds() and self._waited_s() < _ANNOUNCE_AFTER_S:
            left_s = min(left_s, _ANNOUNCE_AFTER_S)
        hold = self.seen.cell.hold
        assert hold is not None
        noted_s = self._runtime.monotonic() - self._noted[1]
        left_s = min(left_s, max(silent_after_s(hold.ttl_s) - noted_s, 0.0) + _SILENCE_SLACK_S)
        try:
            self._look_for_circle()
            self.seen = yield from self._waiter.change(self.seen, self._evidence, self._usual_s, left_s)
            self._answered_at = self._runtime.monotonic()
        except StoreUnavailable:
            # Waiting outlives an outage, but not one of which no end is in sight.
            outage_s = self._runtime.monotonic() - self._answered_at
            if self._left_s() <= 0 or outage_s > max(_OUTAGES_TTL * hold.ttl_s, _OUTAGE_MIN_S):
                raise
            yield Pause(min(1.0, max(self._left_s(), 0.0)) * (0.5 + self._runtime.jitter() / 2))

    def _look_for_circle(self) -> None:
        """Raise WaitCircle when what this flow waits for waits, in the end, for this flow."""
        mine = self._contender.own_holds()
        if not mine:
            return
        raise_if_own(mine, self._name)
        if self._waited_s() >= _ANNOUNCE_AFTER_S and not self._announced:
            self._announced = mine
            for hold in mine:
                hold.announce(self._address)
        circle = self._contender.circle_from(self.seen.cell)
        if circle is not None:
            raise WaitCircle(circle)

    def _report(self) -> None:
        """Say for whom this waits: soon for those who listen, and in the log of everybody when it gets long."""
        waited_s = self._waited_s()
        if waited_s < self._report_at_s:
            return
        kind: Kind = "waiting" if waited_s < _REPORT_LOUDLY_S else "still waiting"
        self._report_at_s = next((at for at in _REPORTS_S if at > waited_s), waited_s + _REPORT_EVERY_S)
        self._cells.events.emit(kind, self._key, self.seen.cell.generation, detail=f"for {self._by()}")

    def _by(self) -> str:
        """For whom this waits, in words."""
        hold = self.seen.cell.hold
        if hold is None:
            return "nobody any more"
        now = self._runtime.monotonic()
        parts = [f"{hold.who.host} pid {hold.who.pid}", f"generation {self.seen.cell.generation}"]
        parts.append(f"held for {hold.held_s + (self.seen.age_s or 0.0):.0f} s at its last beat (number {hold.beat})")
        parts.append(f"which was first seen here {now - self._noted[1]:.1f} s ago")
        if hold.progress is not None:
            parts.append(f"progress {hold.progress:.0%}")
        left_s = remaining_s(self.seen, now - self._noted[1], self._usual_s)
        if left_s is not None:
            parts.append(f"probably done in {left_s:.0f} s")
        if hold.waits_for is not None:
            parts.append(f"itself waiting for {hold.waits_for}")
        return ", ".join(parts)

    def report_acquired(self, hold: LiveHold) -> None:
        hold.contested = self._contested or self._waiter is not None
        waited_s = self.report_waited()
        events = self._cells.events
        if self.seen.cell.hold is not None and self._verdict is not None:
            before = self.seen.cell.hold.who
            detail = f"from {before.host} pid {before.pid}, {self._verdict.reason}"
            events.emit("taken over", self._key, hold.generation, hold.epoch, waited_s, detail)
        events.emit("claimed", self._key, hold.generation, hold.epoch)

    def report_waited(self) -> float:
        """Seconds that this contender had to wait for others."""
        if self._waiter is None:
            return 0.0
        waited_s = self._waited_s()
        self._cells.events.emit("waited", self._key, self.seen.cell.generation, self.seen.cell.epoch, waited_s)
        return waited_s

    def _waited_s(self) -> float:
        return self._runtime.monotonic() - self._began

    def _left_s(self) -> float:
        return float("inf") if self._wait_s is None else self._wait_s - self._waited_s()

    def patience_s(self, ttl_s: float) -> float:
        """How long to ask a store that doesn't answer what became of a claim: for what is left of the wait."""
        return min(ttl_s, max(self._left_s(), _PATIENCE_MIN_S))

    def close(self) -> None:
        for hold in self._announced:
            hold.announce(None)
        if self._waiter is not None:
            self._waiter.close()
