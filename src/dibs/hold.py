"""Acquire, keep, commit and release one cell.

A hold is believed only as long as its own deadline says, and that is judged at the moment of the question:
counted from *before* the last confirmed beat was sent, by the fastest of three clocks, so that suspends, pauses
and clock steps all shorten it.  After the deadline the store is asked: a hold that nobody took goes on.

A hold that is lost does no harm: plain locks are bound to their claim, and a finished value is published by the
rule of its epoch, whoever holds the cell by then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from typing import Final, Literal, NamedTuple

from dibs import cell as table
from dibs.cell import Cell, Hold, Value
from dibs.cells import Cells, Seen
from dibs.errors import Conflict, DibsError, LockLost, StoreUnavailable, StoreUnsuitable
from dibs.events import Kind, Unsaid
from dibs.heartbeat import Heartbeat, Report, Seat, StandIn
from dibs.liveness import trusted_for_s
from dibs.runtime import Event

_RECONCILIATIONS_MAX: Final = 100


class Terms(NamedTuple):
    """For how long, and how, a hold is kept."""

    ttl_s: float
    beat_s: float
    hold_max_s: float | None = None
    manual: bool = False


class Outcome(NamedTuple):
    """What became of a finished value.

    `published`: it is (or was) the value of its epoch.  `adopted`: somebody else's came first and is this one.
    `refused`: the epoch moved on, so it goes to its own caller only; the text says why.
    """

    how: Literal["published", "adopted", "refused"]
    seen: Seen
    reason: str = ""


class LiveHold:
    """One hold of this process; safe to use from several threads."""

    # For the scheduler.
    due_at = 0.0
    beating = False
    serial = 0
    _overdue_said = False

    _seat: Seat | None = None  # with whoever beats when this process is kept from it (`heartbeat.StandIn`)

    def __init__(self, cells: Cells, heartbeat: Heartbeat, name: str, key: str, terms: Terms) -> None:
        self._cells = cells
        self._runtime = runtime = cells.runtime
        self._heartbeat = heartbeat
        self.name, self.key = name, key
        self.terms = terms
        self.store_id = cells.card.store_id
        self.beat_s = terms.beat_s
        self.claim = runtime.token()
        self.process = runtime.process()
        self.thread = runtime.thread()
        self.generation = 0
        self.epoch = 0
        self.progress: float | None = None
        self.waits_for: str | None = None
        self.expected_s: float | None = None
        self.contested = True
        self.ended = False
        self.lost_because = ""
        """Why this hold is lost; empty while it is not."""
        self._unsaid: Unsaid | None = None
        # Beats, commit and release of one hold never overlap: each goes out from the last confirmed version.
        self._mutex = runtime.lock()
        self._seen: Seen
        self._marks = self._began = runtime.elapsed_marks()

    # -- becoming the holder -------------------------------------------------------------------------------------

    def acquire(
        self, seen: Seen, event: Callable[[Cell, Hold], Cell], patience_s: float | None = None
    ) -> None:
        """Become the holder by applying `event` (claim, recompute or take_over) to the cell as it was seen.

        A store that doesn't answer is asked again for `patience_s` (default: a ttl).
        Raises Conflict when somebody else was faster.
        """
        self._heartbeat.expect(self.beat_s)
        try:
            self._acquire(seen, event, self.terms.ttl_s if patience_s is None else patience_s)
        finally:
            self._heartbeat.expected()

    def _acquire(self, seen: Seen, event: Callable[[Cell, Hold], Cell], patience_s: float) -> None:
        runtime, terms = self._runtime, self.terms
        self._marks = self._began = runtime.elapsed_marks()
        who = runtime.holder(self._cells.beacon_dir)
        hold = Hold(self.claim, who, terms.ttl_s, expected_s=self.expected_s, since=round(runtime.wall(), 3))
        try:
            self._seen = self._cells.write(self.name, seen, event(seen.cell, hold), patience_s)
        except (Conflict, StoreUnavailable) as error:
            # It may land yet, or was refused as the echo of its own success: nobody stands behind it.
            if not (isinstance(error, StoreUnavailable) and error.certain):
                self._cells.abandon(self.claim)
            raise
        except BaseException:
            self._tidy()
            raise
        self.generation, self.epoch = self._seen.cell.generation, self._seen.cell.epoch
        try:
            self._heartbeat.add(self, self._marks[0])
            if self._heartbeat.stand_in is not None:
                self._take_seat(self._heartbeat.stand_in)
        except BaseException:
            self._stop_keeping()
            self._tidy()
            raise

    def _tidy(self) -> None:
        """An interrupt struck while the claim was on its way, or just after: free it if it landed."""
        self.ended = True
        self._cells.abandon(self.claim)
        with suppress(DibsError):  # the interrupt is what the caller must hear of
            if table.holds((seen := self._quiet().look(self.name, self.key)).cell, self.claim):
                self._cells.write(self.name, seen, table.release(seen.cell, self.claim), patience_s=0.0)

    def abandon(self) -> None:
        """Give it up without a word, because an interrupt struck where nobody else could."""
        if self.generation and not self.ended:
            with suppress(DibsError):
                self.release(patience_s=0.0)

    def let_go(self) -> None:
        """Keep it no longer, without asking the store or waiting for a beat on its way: its ttl ends it."""
        self.ended = True
        self._heartbeat.remove(self)
        if self._seat is not None:
            self._seat.leave()

    def __del__(self) -> None:
        # Nothing that could wait or raise: this runs wherever the garbage collector strikes.
        if self.generation and not self.ended and not self.lost_because and self.mine():
            if self._seat is not None:
                self._seat.leave()
            warnings.warn(
                f"{self.key!r} was held and nobody can give it up any more, so it will time out: keep the lock or "
                "slot in a variable, or use `with`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    # -- the stand-in --------------------------------------------------------------------------------------------

    def _take_seat(self, stand_in: StandIn) -> None:
        version, limit_s = self._seen.version or "", self.terms.hold_max_s
        over_at = float("inf") if limit_s is None else self._began[0] + limit_s
        self._seat = stand_in.seat(self.claim, self.name, version, self._marks, self.beat_s, over_at)

    def _report(self) -> Report | None:
        seat = self._seat
        return None if seat is None else seat.report()

    def _catch_up(self) -> None:
        """Go on from the record as the stand-in left it: what it wrote differs in the hold only."""
        report, cell = self._report(), self._seen.cell
        if report is not None and report.version and cell.hold is not None and cell.hold.claim == self.claim:
            self._seen = Seen(cell._replace(hold=cell.hold._replace(beat=report.beat)), report.version)

    def _stop_keeping(self) -> None:
        self._heartbeat.remove(self)
        if self._seat is not None:
            self._catch_up()
            self._seat.leave()
            self._seat = None

    # -- keeping it ----------------------------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """True while this process can prove, without asking the store, that it holds."""
        return self._kept() and self._trusted()

    @property
    def lost(self) -> Event:
        """Set once it is known that the hold is lost; made when first asked for, since most holds never are."""
        event: Event = self.__dict__.setdefault("_lost", self._runtime.event())
        if self.lost_because:
            event.set()
        return event

    def _kept(self) -> bool:
        return not self.ended and not self.lost_because and self.mine()

    @property
    def held_s(self) -> float:
        """Seconds since this hold was asked for."""
        return self._runtime.monotonic() - self._began[0]

    def check(self) -> None:
        """Return if this process provably holds; ask the store if need be; raise LockLost otherwise."""
        if self._kept() and (self._trusted() or (not self._overdue() and self.beat() and self._trusted())):
            return
        raise LockLost(f"{self.key!r} (generation {self.generation}): {self._why_lost()}")

    def keep(self) -> float | None:
        """One beat for the scheduler; the seconds until the next, or None when there is nothing to keep."""
        if self.terms.manual:
            return self.beat_s
        if not self._kept():
            return None
        if self._overdue():
            if not self._overdue_said:
                self._overdue_said = True
                self._say("beat failed", f"held for hold_max_s = {self.terms.hold_max_s:g} s: beats stop")
                self._tell()
            return self.beat_s if self._look_if_lost() else None
        return self.beat_s if self.beat() else self.beat_s / 4

    def _look_if_lost(self) -> bool:
        """Without a beat: whoever waits for `lost` must hear of the take-over."""
        with self._mutex:
            if self._kept():
                with suppress(StoreUnavailable, StoreUnsuitable):
                    seen = self._quiet().look(self.name, self.key)
                    if not table.holds(seen.cell, self.claim):
                        self._seen = seen
                        self._lose()
        self._tell()
        return self._kept()

    def beat(self) -> bool:
        """Prove to the others that this holder lives; False when the store didn't take it this time."""
        if not self.mine():
            return False
        with self._mutex:
            beaten = self._beat()
        self._tell()
        return beaten

    def _beat(self) -> bool:
        if self.ended or self.lost_because:
            return False
        marks = self._runtime.elapsed_marks()
        try:
            if not self._rewrite(self._beaten, self.beat_s):
                self._lose()
                return False
        except (StoreUnavailable, StoreUnsuitable) as error:
            self._say("beat failed", str(error))
            return False
        self._marks = marks
        if self._seat is not None:
            self._seat.tell(self._seen.version or "", marks)
        return True

    def _overdue(self) -> bool:
        return self.terms.hold_max_s is not None and self.held_s >= self.terms.hold_max_s

    def _tell(self) -> None:
        """Emit what happened under the mutex: a callback may ask, or give up, the hold that it hears about."""
        if self._unsaid is not None:
            self._unsaid.tell(self._cells.events)

    def _say(self, kind: Kind, detail: str) -> None:
        self._quiet().events.emit(kind, self.key, self.generation, self.epoch, detail=detail)

    def _quiet(self) -> Cells:
        """The cells, for use under the mutex: what they have to say is told afterwards."""
        cells = copy(self._cells)
        cells.events = self._unsaid = self._unsaid or Unsaid()
        return cells

    def _beaten(self, cell: Cell) -> Cell:
        assert cell.hold is not None
        news = cell.hold._replace(
            held_s=round(self.held_s, 3),
            progress=self.progress,
            waits_for=self.waits_for,
            expected_s=self.expected_s,
        )
        return table.beat(cell, news)

    def announce(self, waits_for: str | None) -> None:
        """Let others see what this holder waits for, or that it waits no more."""
        if self.waits_for != waits_for and not self.ended:
            self.waits_for = waits_for
            if self.terms.manual:
                self.beat()
            else:
                self._heartbeat.hurry(self)

    # -- ending it -----------------------------------------------------------------------------------------------

    def release(self, patience_s: float | None = None) -> None:
        """Give the hold up; raises LockLost when it was lost before.

        A store that doesn't answer is asked again for `patience_s` (default: a ttl, after which others act anyway).
        """
        self._end(lambda cell: table.release(cell, self.claim), "released", patience_s)

    def fail(self, error: str) -> None:
        """Give the hold up because the computation raised `error` (a traceback as text)."""
        who = self._runtime.holder(self._cells.beacon_dir)
        self._end(lambda cell: table.fail(cell, self.claim, error, f"{who.host} pid {who.pid}"), "failed")

    def _end(self, event: Callable[[Cell], Cell], how: str, patience_s: float | None = None) -> None:
        if not self.mine():
            return  # a forked child owns nothing that its parent holds
        try:
            with self._mutex:
                if self.ended:
                    return
                self._stop_keeping()
                # Whatever comes: it is not kept any more, and if the store stays silent its ttl ends it.
                self.ended = True
                if not self.lost_because:
                    if self._given_up(event, self.terms.ttl_s if patience_s is None else patience_s, how):
                        return
                    self._lose()
        finally:
            self._tell()
        raise LockLost(f"{self.key!r} (generation {self.generation}): {self._why_lost()}")

    def _given_up(self, event: Callable[[Cell], Cell], patience_s: float, how: str) -> bool:
        try:
            done = self._rewrite(event, patience_s) or table.how_ended(self._seen.cell, self.claim) == how
        except DibsError:
            raise
        except BaseException:
            self._tidy()
            raise
        if done and not self.contested:
            self._cells.remember(self.name, self._seen)
        return done

    def commit(self, value: Value, patience_s: float) -> Outcome:
        """Publish `value` if the epoch that it was computed for is still asked for and has no value yet.

        Ends the hold.  Raises StoreUnavailable when the store could not be reached within `patience_s`.
        """
        if not self.mine():
            self._mutex = self._runtime.lock()  # the parent's may have been taken when it forked
        try:
            with self._mutex:
                if self.mine():
                    self._stop_keeping()
                outcome = self._publish(value._replace(epoch=self.epoch, claim=self.claim), patience_s)
                self.ended = True  # only now: whoever is interrupted before still has a hold to give up
                return outcome
        finally:
            self._tell()

    def _publish(self, value: Value, patience_s: float) -> Outcome:
        give_up_at = self._runtime.monotonic() + patience_s
        seen = self._seen
        for _ in range(_RECONCILIATIONS_MAX):
            cell = seen.cell
            if table.may_commit(cell, self.epoch):
                left_s = max(give_up_at - self._runtime.monotonic(), 0.0)
                try:
                    self._seen = self._cells.write(self.name, seen, table.commit(cell, value), left_s)
                    return Outcome("published", self._seen)
                except Conflict as conflict:
                    seen = self._look(conflict, give_up_at)
                    continue
            there = table.current(cell)
            if cell.epoch == self.epoch and there is not None:
                return Outcome("published" if there.claim == self.claim else "adopted", seen)
            if table.how_ended(cell, self.claim) == "committed":
                return Outcome("published", seen)
            return Outcome("refused", seen, f"epoch {self.epoch} is over, the key is at epoch {cell.epoch}")
        raise StoreUnavailable(f"{self.key!r} kept changing while its value was committed")

    def _look(self, conflict: Conflict, give_up_at: float) -> Seen:
        while True:  # ends when the store answers or patience does
            try:
                return self._quiet().look_after(conflict, self.name, self.key)
            except StoreUnavailable:
                if self._runtime.monotonic() >= give_up_at:
                    raise
                self._runtime.sleep(0.1 * (0.5 + self._runtime.jitter()))

    # -- shared --------------------------------------------------------------------------------------------------

    def _rewrite(self, event: Callable[[Cell], Cell], patience_s: float) -> bool:
        """Apply `event` to our held cell; False when it is not ours any more (then `_seen` says whose)."""
        self._catch_up()
        give_up_at = self._runtime.monotonic() + patience_s
        for _ in range(_RECONCILIATIONS_MAX):
            if not table.holds(self._seen.cell, self.claim):
                return False
            try:
                left_s = max(give_up_at - self._runtime.monotonic(), 0.0)
                self._seen = self._cells.write(self.name, self._seen, event(self._seen.cell), left_s)
                return True
            except Conflict as conflict:
                # Perhaps a late beat of our own: a held record with my claim is mine, whatever its attempt.
                self._seen = self._look(conflict, give_up_at)
        raise StoreUnavailable(f"{self.key!r} kept changing while it was rewritten")

    def _lose(self) -> None:
        cell = self._seen.cell
        how = table.how_ended(cell, self.claim) or "no longer in the record"
        now = ""
        if cell.hold is not None:
            who = cell.hold.who
            now = f"; now held by {who.host} pid {who.pid} (generation {cell.generation})"
        self.lost_because = f"{how}{now}"
        if "_lost" in self.__dict__:
            self.lost.set()
        self._stop_keeping()
        self._say("lost", self.lost_because)

    def _why_lost(self) -> str:
        if not self.mine():
            return "it belongs to the process that forked this one"
        if self.lost_because:
            return self.lost_because
        if self.ended:
            return "it was given up before"
        if self._overdue():
            return f"held for {self.held_s:.1f} s, longer than hold_max_s = {self.terms.hold_max_s:g} s"
        return f"the store could not be asked for {self._elapsed_s(self._marks):.1f} s (ttl {self.terms.ttl_s:g} s)"

    def mine(self) -> bool:
        """False in a forked child, which owns nothing that its parent holds."""
        return self._runtime.process() == self.process

    def _trusted(self) -> bool:
        report = self._report()
        if report is not None and report.lost:
            return False
        marks = self._marks if report is None or report.marks is None else max(self._marks, report.marks)
        return self._elapsed_s(marks) < trusted_for_s(self.terms.ttl_s)

    def _elapsed_s(self, since: tuple[float, float, float]) -> float:
        now = self._runtime.elapsed_marks()
        return max(now[0] - since[0], now[1] - since[1], now[2] - since[2])
