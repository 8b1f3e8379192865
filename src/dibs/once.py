"""Compute each key once: ask, claim, compute, publish; or wait for whoever does, and take its turn if it fails.

Threads block and tasks don't, on the same way: a look; a flight, if another one of this process is at it (`flights`);
else the fleet (`contend`).
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import CoroutineType
from typing import Any, Final, NamedTuple, TypeVar

from dibs import cell as table
from dibs.cell import Cell, Hold, Value
from dibs.cells import Cells, Seen
from dibs.codec import Encoded
from dibs.contend import Contender, Settled, enter, leave
from dibs.errors import CodecError, ComputeFailed, DibsError, LockLost, StoreUnavailable, StoreUnsuitable
from dibs.events import log
from dibs.flights import Caller, Flight, Flights
from dibs.hold import LiveHold, Outcome, Terms
from dibs.names import KEYS, record_name
from dibs.tasks import NotAwaitable, Together, awaitable, in_pool, inbox, running_loop, walk
from dibs.values import Values
from dibs.waiting import Steps, drive

T = TypeVar("T")

_ERROR_TEXT_MAX: Final = 8_000
SHARED_SIZE_MAX: Final = 1 << 20
"""Bytes of an encoded value that one flight keeps for its followers; what is larger they load from the store."""
_LIGHT_SIZE_MAX: Final = 1 << 12
"""Bytes that an event loop may decode itself: sending them to another thread would cost more."""
_ROUNDS_MAX: Final = 10_000


class Ask(NamedTuple):
    """How a key is asked for."""

    wait_s: float | None = None
    expires_s: float | None = None
    stale_ok: bool = False
    recompute: bool = False
    ingredients: Callable[[], bytes] | None = None
    """What the key was made of; asked for once, when a value is published."""
    codec: str | None = None


class Limits(NamedTuple):
    """When a key is given up for a while."""

    failures_max: int = 3
    deaths_max: int = 10
    retry_after_s: float = 60.0


class Once:
    """Computes the keys of one store, each once."""

    def __init__(
        self, contender: Contender, values: Values, terms: Terms, limits: Limits, used: Callable[[str], object]
    ) -> None:
        """`used` is told the name of each record whose value was read."""
        self._used = used
        self._contender = contender
        self._cells: Cells = contender.cells
        self._values = values
        self._terms = terms
        self._limits = limits
        self.runtime = contender.runtime
        self._events = self._cells.events
        self._pool = contender.pool
        self._flights = Flights(contender)
        self._looks: Together[Caller] = Together(self._pool, self.runtime.lock())
        self._usual_s: dict[str, float] = {}

    # -- asking --------------------------------------------------------------------------------------------------

    def get(self, key: str) -> tuple[Any] | None:
        """The value in a tuple, or None when there is none to be had now."""
        return self._at_hand((Caller(key, None, 0.0),), Ask())[0]

    async def aget(self, key: str) -> tuple[Any] | None:
        """As get, from a task."""
        return await self.aside(lambda: self.get(key))

    async def aside(self, call: Callable[[], T]) -> T:
        """What `call`, which asks the store and waits for nobody, returns; the event loop goes on meanwhile."""
        return await in_pool(self._pool, call)

    def get_or_compute(self, key: str, compute: Callable[[], Any], ask: Ask) -> Any:
        """The value of `key`, computed by `compute` unless somebody in the fleet has done so, or is doing it."""
        caller = Caller(key, ask.wait_s, self.runtime.monotonic())
        (found,) = self._at_hand((caller,), ask)
        if found is not None:
            return found[0]
        try:
            got = drive(self.runtime, self._turn(caller, ask))
            return self._computed(caller, got, compute, ask) if isinstance(got, LiveHold) else got[0]
        except BaseException:
            for hold in caller.holds:  # kept by nobody, when an interrupt struck between two steps
                hold.abandon()
            raise
        finally:
            self._flights.land(caller)

    async def aget_or_compute(self, key: str, compute: Callable[[], Awaitable[Any]], ask: Ask) -> Any:
        """As get_or_compute, from a task: `compute` runs in it, and the event loop goes on during every wait.

        A task that is cancelled gives up politely: that is no failure of the key, and the next one takes its turn.
        """
        turn = inbox().turn()
        if turn is not None:
            await turn
        caller = Caller(key, ask.wait_s, self.runtime.monotonic(), running_loop())

        def give_back(got: LiveHold | tuple[Any]) -> None:
            if isinstance(got, LiveHold):
                self.give_up(got, None)
            self._flights.land(caller)

        try:
            found = await self._together(caller, ask)
            if found is not None:
                return found[0]
            got = await walk(self._pool, self._turn(caller, ask), give_back)
            return await self._acomputed(caller, got, compute, ask) if isinstance(got, LiveHold) else got[0]
        finally:
            self._flights.land(caller)

    async def _together(self, caller: Caller, ask: Ask) -> tuple[Any] | None:
        """The value in a tuple, if this task comes to it along with others: by one look, or one flight, for all.

        None when it is its turn to lead a flight, or when it holds something, which it must mind while it waits.
        """
        alone = bool(self._contender.own_holds())
        for _ in range(_ROUNDS_MAX):
            flight = None if alone or ask.stale_ok else self._flights.open(caller.name)
            if flight is None:
                about = caller.name, ask.recompute, ask.stale_ok
                found = await self._looks.call(about, caller, lambda callers: self._at_hand(callers, ask))
                if found is not None or alone:
                    return found
                flight = self._flights.join(caller)
                if flight is caller.flight:
                    return None
            self._miss(caller)
            await self._flights.followed(caller, flight)
            if isinstance(flight.landed, tuple) and len(flight.landed[1]) <= _LIGHT_SIZE_MAX:
                found = self._landed(caller, flight)
            else:
                found = await self.aside(lambda flight=flight: self._landed(caller, flight))  # type: ignore[misc]
            if found is not None:
                return found
        raise _damaged(caller.key)

    def _at_hand(self, callers: Sequence[Caller], ask: Ask) -> list[tuple[Any] | None]:
        """For each of those who ask for one key now: the value in a tuple of its own, if there is one to be had."""
        name, key = callers[0].name, callers[0].key
        seen = self._cells.look(name, key)
        wanted = self._wanted(seen, ask) if ask.stale_ok else self._values.fresh
        answers = []
        for caller in callers:
            caller.seen = seen
            found = None if ask.recompute else self._values.load(name, seen, wanted)
            answers.append(found)
            if found is not None:
                self._hit(seen)
            elif not ask.recompute:
                self._miss(caller)
        return answers

    def _turn(self, caller: Caller, ask: Ask) -> Steps[LiveHold | tuple[Any]]:
        """Come to the value in a tuple, or to a hold to compute under; then the caller's flight is still open."""
        name, key = caller.name, caller.key
        try:
            for _ in range(_ROUNDS_MAX):
                flight = self._flights.join(caller)
                leads = flight is caller.flight
                if leads:
                    wanted = self._wanted(caller.seen, ask)
                    got = yield from self._contending(caller, ask, wanted)
                    if isinstance(got, LiveHold):
                        return got
                    found = self._values.load(name, got.what, wanted)
                    self._flights.land(caller)
                else:
                    yield from self._flights.following(caller, flight)
                    found = self._landed(caller, flight)
                if found is not None:
                    return found
                caller.seen = self._cells.look(name, key)  # nothing landed; or it could not be read, and was forgotten
                if not leads and not ask.recompute:
                    found = self._values.load(name, caller.seen, self._values.fresh)
                    if found is not None:
                        return found
        except BaseException:
            self._flights.land(caller)
            raise
        raise _damaged(key)

    def _landed(self, caller: Caller, flight: Flight) -> tuple[Any] | None:
        """A follower's own copy of what the leader computed: never made of memory that its caller owns by now."""
        landed = flight.landed
        if landed is None:
            return None
        if not isinstance(landed, Value):
            return (self._values.decode(*landed),)
        epoch, claim = landed.epoch, landed.claim

        def same(seen: Seen) -> Value | None:
            now = seen.cell.value
            return now if now is not None and (now.epoch, now.claim) == (epoch, claim) else None

        return self._values.load(caller.name, self._cells.look(caller.name, caller.key), same)

    def _contending(
        self, caller: Caller, ask: Ask, wanted: Callable[[Seen], Value | None]
    ) -> Steps[LiveHold | Settled[Seen]]:
        key, first = caller.key, caller.seen
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

        left_s = caller.left_s(self.runtime.monotonic())
        wait_s = None if left_s is None else max(left_s, 0.0)
        usual_s, deaths_max, taken = self._usual(key), self._limits.deaths_max, caller.holds.append
        return self._contender.contending(
            KEYS, key, self._terms, wait_s, settled, event, usual_s, deaths_max, first, taken
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

    def open_slot(self, key: str, ask: Ask) -> LiveHold | tuple[Any]:
        """For the block form: a hold to compute under, or the value in a tuple."""
        return drive(self.runtime, self._opening(key, ask))

    async def aopen_slot(self, key: str, ask: Ask) -> LiveHold | tuple[Any]:
        """As open_slot, from a task."""

        def give_back(got: LiveHold | tuple[Any]) -> None:
            if isinstance(got, LiveHold):
                self.give_up(got, None)

        return await walk(self._pool, self._opening(key, ask), give_back)

    def _opening(self, key: str, ask: Ask) -> Steps[LiveHold | tuple[Any]]:
        caller = Caller(key, ask.wait_s, self.runtime.monotonic())
        for _ in range(_ROUNDS_MAX):
            caller.seen = self._cells.look(caller.name, key)
            wanted = self._wanted(caller.seen, ask)
            got = yield from self._contending(caller, ask, wanted)
            if isinstance(got, LiveHold):
                return got
            found = self._values.load(caller.name, got.what, wanted)
            if found is not None:
                self._hit(got.what)
                return found
        raise _damaged(key)

    def _computed(self, caller: Caller, hold: LiveHold, compute: Callable[[], Any], ask: Ask) -> Any:
        """Run `compute` under `hold` and publish what it returns; the value that won is returned."""
        enter(hold)
        try:
            result = compute()
        except BaseException as error:
            self.give_up(hold, error)
            raise
        finally:
            leave(hold)
        if isinstance(result, CoroutineType):
            result.close()
            self.give_up(hold, None)
            raise TypeError(f"compute of {hold.key!r} is an async function, which only a task can await, by memoize")
        return self.publish(caller.name, hold, result, ask, caller.flight)

    async def _acomputed(
        self, caller: Caller, hold: LiveHold, compute: Callable[[], Awaitable[Any]], ask: Ask
    ) -> Any:
        """As _computed, in a task; the store is asked elsewhere."""
        enter(hold)
        try:
            result = await awaitable(compute(), hold.key)
        except BaseException as problem:
            leave(hold)
            await self.agive_up(hold, None if isinstance(problem, NotAwaitable) else problem)
            raise
        leave(hold)
        return await self.aside(lambda: self.publish(caller.name, hold, result, ask, caller.flight))

    def give_up(self, hold: LiveHold, error: BaseException | None) -> None:
        """End a hold whose computation raised (or ended without a value): a failure of the key, or politely."""
        try:
            if isinstance(error, Exception) and not isinstance(error, DibsError | MemoryError) and not _cancels(error):
                hold.fail(text := _text_of(error))
                said = text.rstrip().rpartition("\n")[2]  # an error's own repr may raise
                self._events.emit("failed", hold.key, hold.generation, hold.epoch, hold.held_s, said)
            else:
                hold.release()
                self._events.emit("released", hold.key, hold.generation, hold.epoch, hold.held_s)
        except LockLost:
            pass  # said already, by the event; the computation's own error is what the caller needs
        except (StoreUnavailable, StoreUnsuitable) as problem:
            log.warning("the hold of %r could not be given up and will time out: %s", hold.key, problem)

    async def agive_up(self, hold: LiveHold, error: BaseException | None) -> None:
        """As give_up, from a task; it is given up also when the task is cancelled meanwhile."""
        if isinstance(error, GeneratorExit):  # the loop is gone, and nothing can be awaited
            self._pool.submit(lambda: self.give_up(hold, None))
        else:
            await self.aside(lambda: self.give_up(hold, error))

    def publish(self, name: str, hold: LiveHold, result: Any, ask: Ask, flight: Flight | None = None) -> Any:
        """Commit `result`; return it, or the value of whoever was first."""
        encoded: Encoded | None = None
        try:
            cost_s = hold.held_s
            self._events.emit("computed", hold.key, hold.generation, hold.epoch, cost_s)
            self._remember(hold.key, cost_s)
            encoded = self._values.encode(result, ask.codec)
            if flight is not None:
                self._flights.close(name, flight)
            ingredients = b"" if ask.ingredients is None else ask.ingredients()
            value = self._values.store(name, encoded, hold.epoch, hold.claim, cost_s, ask.expires_s, ingredients)
            outcome = hold.commit(value, patience_s=self._terms.ttl_s)
        except (StoreUnavailable, StoreUnsuitable) as problem:
            self._abandon(hold)
            self._unpublished(hold, problem)
            if flight is not None and flight.joined and encoded is not None:
                flight.landed = (encoded.codec, encoded.joined())
        except BaseException:
            self._abandon(hold)
            raise
        else:
            if outcome.how != "published":
                return self._settle(name, hold, value, result, outcome)
            self._events.emit("committed", hold.key, hold.generation, hold.epoch)
            if flight is not None and flight.joined:
                small = encoded.size_bytes <= SHARED_SIZE_MAX
                flight.landed = (encoded.codec, encoded.joined()) if small else value
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

    def _miss(self, caller: Caller) -> None:
        if not caller.missed:
            caller.missed = True
            self._events.emit("miss", caller.key)

    def _hit(self, seen: Seen) -> None:
        value = seen.cell.value
        self._used(record_name(KEYS, seen.cell.key))
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
    return "".join(traceback.format_exception(error)).encode("ascii", "backslashreplace").decode()[-_ERROR_TEXT_MAX:]


def _target_epoch(cell: Cell) -> int:
    """The epoch of the value that a recompute asks for: the one that is being computed, else the next."""
    computing = cell.hold is not None and table.current(cell) is None
    return cell.epoch if computing else cell.epoch + 1


def _cancels(error: Exception) -> bool:
    """True for errors that mean "stop" rather than "failed" (cancellation is not an Exception in asyncio)."""
    return type(error).__name__ in ("CancelledError", "Cancelled")


def _damaged(key: str) -> StoreUnavailable:
    return StoreUnavailable(f"the value of {key!r} was damaged {_ROUNDS_MAX} times in a row")
