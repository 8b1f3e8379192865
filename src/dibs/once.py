"""Compute each key once: ask, claim, compute, publish; or wait for whoever does, and take its turn if it fails.

Threads of one process share one flight per key: the first asks the fleet, the others wait for it in memory and
then decode their own copy of the value.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from dibs import cell as table
from dibs.cell import Cell, Hold, Value
from dibs.cells import Cells, Seen
from dibs.codec import Encoded
from dibs.contend import Contender, Settled, enter, leave, raise_if_own
from dibs.errors import (
    CodecError,
    ComputeFailed,
    DibsError,
    LockLost,
    StoreUnavailable,
    StoreUnsuitable,
    WaitCircle,
    WaitTimeout,
)
from dibs.events import log
from dibs.hold import LiveHold, Outcome, Terms
from dibs.names import KEYS, address, record_name
from dibs.values import Values

_ERROR_TEXT_MAX: Final = 8_000
_FOLLOW_S: Final = 0.5
_ROUNDS_MAX: Final = 10_000


class Ask(NamedTuple):
    """How a key is asked for."""

    wait_s: float | None = None
    expires_s: float | None = None
    stale_ok: bool = False
    recompute: bool = False


class Limits(NamedTuple):
    """When a key is given up for a while."""

    failures_max: int = 3
    deaths_max: int = 10
    retry_after_s: float = 60.0


class Flight:
    """One asking of one key in this process; `landed` is what came of it: where the value is, or its bytes."""

    def __init__(self, once: Once) -> None:
        self.ended = once.runtime.event()
        self.landed: Value | tuple[str, bytes] | None = None


class Once:
    """Computes the keys of one store, each once."""

    def __init__(self, contender: Contender, values: Values, terms: Terms, limits: Limits) -> None:
        self._contender = contender
        self._cells: Cells = contender.cells
        self._values = values
        self._terms = terms
        self._limits = limits
        self.runtime = contender.runtime
        self._events = self._cells.events
        self._lock = self.runtime.lock()
        self._flights: dict[str, Flight] = {}
        self._usual_s: dict[str, float] = {}

    # -- asking --------------------------------------------------------------------------------------------------

    def get(self, key: str) -> tuple[Any] | None:
        """The value in a tuple, or None when there is none to be had now."""
        name = record_name(KEYS, key)
        seen = self._cells.look(name, key)
        found = self._values.load(name, seen, self._values.fresh)
        if found is None:
            self._events.emit("miss", key)
        else:
            self._hit(seen)
        return found

    def get_or_compute(self, key: str, compute: Callable[[], Any], ask: Ask) -> Any:
        """The value of `key`, computed by `compute` unless somebody in the fleet has done so, or is doing it."""
        name = record_name(KEYS, key)
        seen = self._cells.look(name, key)
        if not ask.recompute:
            found = self._values.load(name, seen, self._values.fresh)
            if found is not None:
                self._hit(seen)
                return found[0]
            self._events.emit("miss", key)
        began = self.runtime.monotonic()
        for _ in range(_ROUNDS_MAX):
            mine = Flight(self)
            try:
                flight = self._flights.setdefault(name, mine)
                answer = self._lead(name, key, seen, compute, ask, began, mine) if flight is mine else None
            finally:
                try:
                    self._close(name, mine)
                finally:  # also when an interrupt strikes in there: nobody may wait for this one any more
                    mine.ended.set()
            if flight is not mine:
                self._follow(flight, key, ask, began)
                self._close(name, flight)  # its leader may have been interrupted before it could
                found = self._landed(name, key, flight.landed)
                if found is not None:
                    return found[0]
                seen = self._cells.look(name, key)
                found = None if ask.recompute else self._values.load(name, seen, self._values.fresh)
                if found is not None:
                    return found[0]
                continue
            if answer is not None:
                return answer[0]
            seen = self._cells.look(name, key)  # what was found could not be read, and was forgotten
        raise StoreUnavailable(f"the value of {key!r} was damaged {_ROUNDS_MAX} times in a row")

    def _landed(self, name: str, key: str, landed: Value | tuple[str, bytes] | None) -> tuple[Any] | None:
        """A follower's own copy of what the leader computed: never made of memory that its caller owns by now."""
        if landed is None:
            return None
        if not isinstance(landed, Value):
            return (self._values.decode(*landed),)
        if landed.inline is not None:
            return (self._values.decode(landed.codec, landed.inline),)
        epoch, claim = landed.epoch, landed.claim

        def same(seen: Seen) -> Value | None:
            now = seen.cell.value
            return now if now is not None and (now.epoch, now.claim) == (epoch, claim) else None

        return self._values.load(name, self._cells.look(name, key), same)

    def _close(self, name: str, flight: Flight) -> None:
        """Let nobody join any more: whoever asks from now on may have heard of a forget, and looks for himself."""
        with self._lock:
            if self._flights.get(name) is flight:
                del self._flights[name]

    def _follow(self, flight: Flight, key: str, ask: Ask, began: float) -> None:
        """Wait for another thread's flight; raises WaitTimeout or WaitCircle."""
        mine = self._contender.own_holds()
        raise_if_own(mine, record_name(KEYS, key))
        announced = False
        try:
            while not flight.ended.is_set():
                waited_s = self.runtime.monotonic() - began
                left_s = None if ask.wait_s is None else ask.wait_s - waited_s
                if left_s is not None and left_s <= 0:
                    raise WaitTimeout(f"{key!r} is still computed by another thread after {waited_s:.1f} s")
                if mine and waited_s >= _FOLLOW_S:
                    announced = True
                    for hold in mine:
                        hold.announce(address(KEYS, key))
                    circle = self._contender.circle(KEYS, key)
                    if circle is not None:
                        raise WaitCircle(circle)
                pause_s = _FOLLOW_S if mine or left_s is not None else None
                flight.ended.wait(min(pause_s, left_s) if pause_s and left_s is not None else pause_s)
        finally:
            if announced:
                for hold in mine:
                    hold.announce(None)

    def _lead(
        self, name: str, key: str, seen: Seen, compute: Callable[[], Any], ask: Ask, began: float, flight: Flight
    ) -> tuple[Any] | None:
        """Get the value from the fleet or compute it; None when the value that was found could not be read."""
        wanted = self._wanted(seen, ask)
        wait_s = None if ask.wait_s is None else max(ask.wait_s - (self.runtime.monotonic() - began), 0.0)
        holds: list[LiveHold] = []
        try:
            got = self._contend(key, seen, ask, wait_s, wanted, taken=holds.append)
            if isinstance(got, Settled):
                return self._values.load(name, got.what, wanted)
            return (self.computed(name, got, compute, ask.expires_s, flight),)
        except BaseException:
            for hold in holds:  # kept by nobody, when an interrupt struck between two steps
                hold.abandon()
            raise

    def _contend(
        self,
        key: str,
        first: Seen,
        ask: Ask,
        wait_s: float | None,
        wanted: Callable[[Seen], Value | None],
        stop: Callable[[], bool] = lambda: False,
        taken: Callable[[LiveHold], object] = lambda hold: None,
    ) -> LiveHold | Settled[Seen]:
        target = _target_epoch(first.cell)

        def settled(seen: Seen) -> Settled[Seen] | None:
            if wanted(seen) is not None:
                return Settled(seen)
            if seen.cell.hold is None and not (ask.recompute and target > seen.cell.epoch):
                self._refuse_if_failed(key, seen)
            return None

        def event(seen: Seen) -> Callable[[Cell, Hold], Cell]:
            # A value that is there but not wanted any more (expired, or to be replaced) ends its epoch.
            return table.claim if table.current(seen.cell) is None and not ask.recompute else table.recompute

        usual_s, deaths_max = self._usual(key), self._limits.deaths_max
        return self._contender.contend(
            KEYS, key, self._terms, wait_s, settled, event, usual_s, deaths_max, first, stop, taken
        )

    def _wanted(self, first: Seen, ask: Ask) -> Callable[[Seen], Value | None]:
        """Which value answers this ask: for a recompute only one of the epoch that it starts, or joins."""
        if ask.recompute:
            target = _target_epoch(first.cell)
            return lambda seen: self._values.fresh(seen) if seen.cell.epoch >= target else None

        def fresh_or_stale(seen: Seen) -> Value | None:
            value = self._values.fresh(seen)
            if value is not None or not ask.stale_ok or seen.cell.hold is None or seen.cell.value is None:
                return value
            name = record_name(KEYS, seen.cell.key)
            return None if self._contender.judge(name, seen).over else seen.cell.value

        return fresh_or_stale

    def _refuse_if_failed(self, key: str, seen: Seen) -> None:
        failed, limits = seen.cell.failures, self._limits
        if failed is None or (failed.failures < limits.failures_max and failed.deaths < limits.deaths_max):
            return
        age_s = seen.age_s
        if age_s is None:
            name = record_name(KEYS, key)
            first_s = self.runtime.first_seen(self._cells.card.store_id, name, seen.version or "")
            age_s = self.runtime.monotonic() - first_s
        if age_s < limits.retry_after_s:
            remedy = (
                f"It is tried again after {limits.retry_after_s - age_s:.0f} s more without an attempt, or at once "
                f"after cache.forget({key!r})"
            )
            raise ComputeFailed(key, failed.failures, failed.deaths, failed.by, failed.error, remedy)

    # -- computing -----------------------------------------------------------------------------------------------

    def open_slot(
        self, key: str, ask: Ask, stop: Callable[[], bool] = lambda: False
    ) -> LiveHold | tuple[Any]:
        """For the block form: a hold to compute under, or the value in a tuple."""
        name = record_name(KEYS, key)
        for _ in range(_ROUNDS_MAX):
            seen = self._cells.look(name, key)
            wanted = self._wanted(seen, ask)
            got = self._contend(key, seen, ask, ask.wait_s, wanted, stop)
            if isinstance(got, LiveHold):
                return got
            found = self._values.load(name, got.what, wanted)
            if found is not None:
                self._hit(got.what)
                return found
        raise StoreUnavailable(f"the value of {key!r} was damaged {_ROUNDS_MAX} times in a row")

    def computed(
        self, name: str, hold: LiveHold, compute: Callable[[], Any], expires_s: float | None, flight: Flight | None
    ) -> Any:
        """Run `compute` under `hold` and publish what it returns; the value that won is returned."""
        enter(hold)
        try:
            result = compute()
        except BaseException as error:
            self.give_up(hold, error)
            raise
        finally:
            leave(hold)
        return self.publish(name, hold, result, expires_s, flight)

    def give_up(self, hold: LiveHold, error: BaseException | None) -> None:
        """End a hold whose computation raised (or ended without a value): a failure of the key, or politely."""
        try:
            if isinstance(error, Exception) and not isinstance(error, DibsError | MemoryError) and not _cancels(error):
                hold.fail(_text_of(error))
                self._events.emit("failed", hold.key, hold.generation, hold.epoch, hold.held_s, repr(error))
            else:
                hold.release()
                self._events.emit("released", hold.key, hold.generation, hold.epoch, hold.held_s)
        except LockLost:
            pass  # said already, by the event; the computation's own error is what the caller needs
        except (StoreUnavailable, StoreUnsuitable) as problem:
            log.warning("the hold of %r could not be given up and will time out: %s", hold.key, problem)

    def publish(
        self, name: str, hold: LiveHold, result: Any, expires_s: float | None, flight: Flight | None = None
    ) -> Any:
        """Commit `result`; return it, or the value of whoever was first."""
        encoded: Encoded | None = None
        try:
            cost_s = hold.held_s
            self._events.emit("computed", hold.key, hold.generation, hold.epoch, cost_s)
            self._remember(hold.key, cost_s)
            encoded = self._values.encode(result)
            if flight is not None:
                self._close(name, flight)
            value = self._values.store(name, encoded, hold.epoch, hold.claim, cost_s, expires_s)
            outcome = hold.commit(value, patience_s=self._terms.ttl_s)
        except (StoreUnavailable, StoreUnsuitable) as problem:
            self._abandon(hold)
            self._unpublished(hold, problem)
            if flight is not None and encoded is not None:
                flight.landed = (encoded.codec, encoded.joined())
        except BaseException:
            self._abandon(hold)
            raise
        else:
            if outcome.how != "published":
                return self._settle(name, hold, value, result, outcome)
            self._events.emit("committed", hold.key, hold.generation, hold.epoch)
            if flight is not None:
                flight.landed = value
        return result

    def _settle(self, name: str, hold: LiveHold, value: Value, result: Any, outcome: Outcome) -> Any:
        """Somebody else's value, or another epoch, came first; the followers of this flight look for themselves."""
        self._values.discard(value)
        reason = outcome.reason
        if outcome.how == "adopted":
            try:
                found = self._values.load(name, outcome.seen, lambda seen: table.current(seen.cell))
            except (CodecError, StoreUnavailable, StoreUnsuitable) as problem:
                found, reason = None, f"another worker's value came first, and can't be had: {problem}"
            if found is not None:
                self._events.emit("adopted", hold.key, hold.generation, hold.epoch)
                return found[0]
        self._events.emit("refused", hold.key, hold.generation, hold.epoch, detail=reason)
        return result

    def _abandon(self, hold: LiveHold) -> None:
        """Give up a hold after trouble at its commit: one try, for the caller has waited long enough."""
        self._cells.abandon(hold.claim)
        with suppress(DibsError):
            hold.release(patience_s=0.0)

    def _unpublished(self, hold: LiveHold, problem: Exception) -> None:
        """The caller gets what it computed, whatever the store says; the error is reported."""
        self._events.emit("unpublished", hold.key, hold.generation, hold.epoch, detail=str(problem))

    # -- bookkeeping ---------------------------------------------------------------------------------------------

    def _hit(self, seen: Seen) -> None:
        value = seen.cell.value
        self._events.emit("hit", seen.cell.key, seconds=value.cost_s if value is not None else 0.0)

    def _usual(self, key: str) -> float | None:
        """How long computations of this family of keys (all before the last slash) usually take."""
        return self._usual_s.get(key.rpartition("/")[0])

    def _remember(self, key: str, cost_s: float) -> None:
        family = key.rpartition("/")[0]
        if len(self._usual_s) < 1000 or family in self._usual_s:
            before = self._usual_s.get(family, cost_s)
            self._usual_s[family] = 0.7 * before + 0.3 * cost_s


def _text_of(error: Exception) -> str:
    """The end of the traceback, as plain ASCII, so that its size in the record is known."""
    text = "".join(traceback.format_exception(error))
    return text.encode("ascii", "backslashreplace").decode()[-_ERROR_TEXT_MAX:]


def _target_epoch(cell: Cell) -> int:
    """The epoch of the value that a recompute asks for: the one that is being computed, else the next."""
    computing = cell.hold is not None and table.current(cell) is None
    return cell.epoch if computing else cell.epoch + 1


def _cancels(error: Exception) -> bool:
    """True for errors that mean "stop" rather than "failed" (cancellation is not an Exception in asyncio)."""
    return type(error).__name__ in ("CancelledError", "Cancelled")
