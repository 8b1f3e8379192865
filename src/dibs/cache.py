"""The public face of one cache: `memoize`, `get_or_compute`, `once`, `get`, `put`, `forget`, `lock`."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from dibs import cell as table
from dibs import report
from dibs.arguments import checked_expiry, checked_key, checked_name, checked_wait
from dibs.asking import Asking
from dibs.cell import Cell, Value
from dibs.cells import Cells, Seen
from dibs.closing import give_up_all
from dibs.contend import Contender
from dibs.errors import DibsError, SettingsError
from dibs.events import Event, Events, log
from dibs.heartbeat import Heartbeat, StandIn
from dibs.hold import Terms
from dibs.locks import Lock
from dibs.locks import try_lock as try_to_lock
from dibs.names import KEYS, LOCKS, record_name
from dibs.once import Ask, Limits, Once
from dibs.probe import introduce
from dibs.report import LockInfo, Status
from dibs.runtime import Runtime
from dibs.settings import UNSET, Settings, beat_of, check_terms
from dibs.slot import Slot
from dibs.stats import Stats, add_to_totals, read_totals
from dibs.store import Backend
from dibs.trust import codec_for, signer_for
from dibs.uses import Uses
from dibs.values import Values

if TYPE_CHECKING:  # 30 ms that those who only use string keys and locks should not pay
    from dibs.memoize import AsyncMemoized, Decorator, Deps, Explanation, Memoized, Versions

P = ParamSpec("P")
T = TypeVar("T")


class Cache:
    """One cache on one store.  Thread-safe; may be pickled, deep-copied, sent to workers and used after a fork."""

    def __init__(self, store: Backend, runtime: Runtime, settings: Settings | None = None) -> None:
        """For `open`, for tests and for the simulator; `runtime` is the door to time, chance and threads."""
        self.settings = settings or Settings()
        self._store = store
        self._runtime = runtime
        self._closed = False
        store.limit_requests(self.settings.beat)
        self._card = introduce(store, runtime, self.settings.read_only)
        self._events = Events(runtime)
        self._assemble()
        runtime.after_fork(self._assemble)

    def _assemble(self) -> None:
        """Put the parts together; again in a forked child, which owns none of its parent's holds or threads."""
        settings, runtime = self.settings, self._runtime
        callbacks = self._events.callbacks
        self._events = Events(runtime)
        self._events.callbacks = callbacks
        self._closed = False
        self._cells = Cells(self._store, runtime, self._card, self._events, settings.read_only)
        self._heartbeat = Heartbeat(runtime, self._stand_in())
        self._contender = Contender(self._cells, self._heartbeat)
        self._values = Values(self._cells, self._store, codec_for(self._store, settings), signer_for(settings))
        limits = Limits(settings.failures_max, settings.deaths_max, settings.retry_after_s)
        self._uses = Uses(self._store, runtime, settings.read_only)
        self._once = Once(self._contender, self._values, self._terms(), limits, self._uses.note)
        self._asking = Asking(self._once, settings, self._events)
        self._known_versions: Versions | None = None
        runtime.at_exit(self.close)

    def _stand_in(self) -> StandIn | None:
        """Who beats while native code keeps this process from doing so; None: nobody."""
        if self.settings.heartbeat != "process" or self.settings.read_only or self.settings.disable:
            return None
        from dibs.beater import stand_in_for

        return stand_in_for(self._store, self._runtime, self.settings.beat)

    def _terms(self) -> Terms:
        settings = self.settings
        return Terms(settings.ttl_s, settings.beat, settings.hold_max_s, settings.heartbeat == "manual")

    # -- functions -----------------------------------------------------------------------------------------------

    @overload
    def memoize(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> AsyncMemoized[P, T]: ...
    @overload
    def memoize(self, function: Callable[P, T], /) -> Memoized[P, T]: ...
    @overload
    def memoize(
        self,
        /,
        *,
        name: str | None = None,
        version: str | int | None = None,
        ignore: Iterable[str] = (),
        files: Iterable[str | os.PathLike[str]] = (),
        packages: Iterable[str] = (),
        deps: Deps = "project",
        expires_s: float | None = None,
        stale_ok: bool = False,
        key: Callable[..., Any] | None = None,
        codec: str | None = None,
    ) -> Decorator: ...
    def memoize(
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        version: str | int | None = None,
        ignore: Iterable[str] = (),
        files: Iterable[str | os.PathLike[str]] = (),
        packages: Iterable[str] = (),
        deps: Deps = "project",
        expires_s: float | None = None,
        stale_ok: bool = False,
        key: Callable[..., Any] | None = None,
        codec: str | None = None,
    ) -> Any:
        """Compute each call of a function once in the whole fleet: `@cache.memoize`, or `@cache.memoize(...)`.

        The key is made of the function's name and code (with the functions, classes and constants of the project
        that it uses), and of its arguments, by name and content.  For functions, methods (whose `self` counts as an
        argument), static and class methods (put memoize above), and async functions.

        `name`: instead of the module and the name.  `version`: stands for the code; change it when results change.
        `ignore`: parameters that don't count.  `files`: files that the function reads, which count by content.
        `packages`: installed packages whose versions count.
        `deps`: "project" (the default), "function" (its own code only) or "none" (its name only).
        `expires_s`: seconds after which a value counts as missing; `stale_ok`: take the old one while somebody
        computes anew.  `key`: a function of the arguments whose result counts in their place.  `codec`: how
        values are stored, instead of by their type.

        Raises SettingsError for what can't be memoized.

        >>> import dibs
        >>> cache = dibs.open("memory:")
        >>> @cache.memoize
        ... def square(x: int) -> int:
        ...     return x * x
        >>> square(3), square.is_done(3), square.is_done(4)
        (9, True, False)
        """
        from dibs.memoize import Options, memoized

        recipe: dict[str, Any] = {
            "name": name, "version": version, "ignore": ignore, "files": files, "packages": packages, "deps": deps,
            "key": key,
        }  # fmt: skip
        options = Options(checked_expiry(expires_s), stale_ok, codec)
        if function is None:
            return lambda function: memoized(self, function, options, recipe)
        return memoized(self, function, options, recipe)

    @property
    def _versions(self) -> Versions:
        if self._known_versions is None:
            from dibs.memoize import Versions

            self._known_versions = Versions(self._cells, self._values)
        return self._known_versions

    def _forget_family(self, family: str) -> int:
        """Forget every key that begins with "<family>/"; how many there were."""
        self._writable("forget_all")
        keys = list(report.family(self._cells, family))
        for key in keys:
            self.forget(key)
        return len(keys)

    # -- keys ----------------------------------------------------------------------------------------------------

    def get_or_compute(
        self,
        key: Any,
        compute: Callable[[], T],
        *,
        expires_s: float | None = None,
        stale_ok: bool = False,
        wait_s: float | None = UNSET,
    ) -> T:
        """Return the value of `key`; `compute` it unless somebody in the fleet has, or is doing so right now.

        `expires_s`: seconds after which the value, if computed here, counts as missing.  `stale_ok`: take an older
        value while somebody computes a new one.  `wait_s`: the longest wait for another worker (default: the
        cache's setting).

        Guaranteed: everybody who asks for this key gets one and the same value (until a forget, a put or its
        expiry), and nobody gets None for a failure.  Not guaranteed: that `compute` never runs twice; a worker
        that dies or is paused for longer than its ttl is replaced.

        Raises what `compute` raised, here; ComputeFailed when the key failed too often; WaitTimeout; WaitCircle;
        CodecError (which carries the value) when it can't be stored; StoreUnavailable.
        """
        ask = Ask(self._wait_s(wait_s), checked_expiry(expires_s), stale_ok)
        return self._ask(checked_key(key), compute, ask)  # type: ignore[no-any-return]

    def recompute(self, key: Any, compute: Callable[[], T], *, expires_s: float | None = None) -> T:
        """Compute `key` anew, or join whoever is computing it; until the commit, `stale_ok` readers get the old value.

        Raises as get_or_compute.
        """
        ask = Ask(self.settings.wait_s, checked_expiry(expires_s), recompute=True)
        return self._ask(checked_key(key), compute, ask)  # type: ignore[no-any-return]

    def _ask(self, key: str, compute: Callable[[], Any], ask: Ask) -> Any:
        return self._asking.ask(key, compute, ask)

    async def _ask_async(self, key: str, compute: Callable[[], Awaitable[Any]], ask: Ask) -> Any:
        return await self._asking.ask_async(key, compute, ask)

    async def _aside(self, call: Callable[[], T]) -> T:
        """What `call` returns, from a thread: the event loop goes on meanwhile."""
        return await self._once.aside(call)

    def once(
        self,
        key: Any,
        *,
        expires_s: float | None = None,
        wait_s: float | None = UNSET,
        ingredients: Callable[[], bytes] | None = None,
    ) -> Slot:
        """The block form: `with cache.once(key) as slot`.

        In the block, either `slot.done` and `slot.value` is there, or this worker holds the key: compute, call
        `slot.beat(progress=…)` and `slot.check()` on the way, and publish with `slot.commit(value)`.  Leaving the
        block without a commit gives the hold up (by an exception of the block: as a failure of the key).
        `ingredients`: what the key is made of, for `dibs explain`: {label: [digest, preview]} as JSON.
        """
        key = checked_key(key)
        if self.settings.disable:
            return Slot(None, key, Ask())
        self._writable("once")
        ask = Ask(self._wait_s(wait_s), checked_expiry(expires_s), ingredients=ingredients)
        return Slot(self._once, key, ask, self)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of `key`, or `default` when there is none now.  Never waits, never computes."""
        key = checked_key(key)
        if self.settings.disable:
            return default
        found = self._once.get(key)
        return default if found is None else found[0]

    def __contains__(self, key: Any) -> bool:
        """True when `get` would find a value (its bytes are not read)."""
        key = checked_key(key)
        if self.settings.disable:
            return False
        return self._values.fresh(self._cells.look(record_name(KEYS, key), key)) is not None

    def put(self, key: Any, value: Any, *, expires_s: float | None = None) -> None:
        """State the value of `key`, over whatever is there; a computation that runs keeps its result to itself."""
        key = checked_key(key)
        self._writable("put")
        name, expires_s = record_name(KEYS, key), checked_expiry(expires_s)
        encoded = self._values.encode(value)
        claim = self._runtime.token()
        stored: Value | None = None

        def event(seen: Seen) -> Cell:
            # The blob is named by the epoch that this put begins, so that nobody takes it for garbage before.
            nonlocal stored
            epoch = seen.cell.epoch + 1
            if stored is None or stored.epoch != epoch:
                if stored is not None:
                    self._values.discard(stored)
                stored = self._values.store(name, encoded, epoch, claim, 0.0, expires_s)
            return table.put(seen.cell, stored)

        self._cells.change(name, key, claim, event, self.settings.ttl_s)
        self._events.emit("put", key)

    def forget(self, key: Any) -> None:
        """Forget the value and the failures of `key`; a computation that runs keeps its result to itself."""
        key = checked_key(key)
        self._writable("forget")
        claim = self._runtime.token()

        def event(seen: Seen) -> Cell | None:
            return table.forget(seen.cell, claim) if seen.version is not None else None

        self._cells.change(record_name(KEYS, key), key, claim, event, self.settings.ttl_s)
        self._events.emit("forgotten", key)

    # -- locks ---------------------------------------------------------------------------------------------------

    def lock(
        self,
        name: str,
        *,
        ttl_s: float | None = None,
        beat_s: float | None = None,
        hold_max_s: float | None = None,
        wait_s: float | None = UNSET,
        reentrant: bool = False,
    ) -> Lock:
        """A lock over the whole fleet: `with cache.lock(name) as lock`.  Times default to the cache's.

        Raises, when entered, WaitTimeout after `wait_s`, WaitCircle, StoreUnavailable; when left, LockLost.
        """
        terms = self._lock_terms(name, ttl_s, beat_s, hold_max_s)
        return Lock(self._contender, name, terms, self._wait_s(wait_s), reentrant, self)

    def try_lock(
        self, name: str, *, ttl_s: float | None = None, beat_s: float | None = None, hold_max_s: float | None = None
    ) -> Lock | None:
        """Take the lock and return it, or None at once when somebody else has it.  Leave it by `release` or `with`."""
        return try_to_lock(self._contender, name, self._lock_terms(name, ttl_s, beat_s, hold_max_s), self)

    def _lock_terms(self, name: str, ttl_s: float | None, beat_s: float | None, hold_max_s: float | None) -> Terms:
        checked_name(name, "lock")
        self._writable("lock")
        if self.settings.disable:
            log.warning("%s is switched off: the lock %r excludes the threads of this process only", self.url, name)
        terms = self._terms()
        if ttl_s is None and beat_s is None and hold_max_s is None:
            return terms
        ttl_s = terms.ttl_s if ttl_s is None else ttl_s
        hold_max_s = terms.hold_max_s if hold_max_s is None else hold_max_s
        check_terms(ttl_s, beat_s, hold_max_s)
        return Terms(ttl_s, beat_of(ttl_s, beat_s), hold_max_s, terms.manual)

    def unlock(self, name: str) -> bool:
        """Break the hold of a lock, whoever has it now; False when nobody does.

        The holder learns of it at its next beat or check; until then two workers may run in the block.
        """
        self._writable("unlock")
        record = record_name(LOCKS, name)
        hold = self._cells.look(record, name).cell.hold
        if hold is None:
            return False
        claim = hold.claim

        def event(seen: Seen) -> Cell | None:
            return table.unlock(seen.cell, claim) if table.holds(seen.cell, claim) else None

        self._cells.change(record, name, claim, event, self.settings.ttl_s)
        return True

    # -- looking -------------------------------------------------------------------------------------------------

    def locks(self) -> Iterator[LockInfo]:
        """Every lock that was ever taken, with its state now."""
        for seen in report.seen_in(self._cells, LOCKS):
            if seen is not None:
                yield report.info(self._cells, LOCKS, seen)

    def holds(self) -> Iterator[LockInfo]:
        """What is held now, keys and locks."""
        return report.holds(self._cells)

    def keys(self) -> Iterator[str]:
        """Every key that has a record, in no order; whether it has a value is decided when it is read."""
        return (key for key, *_ in report.key_names(self._cells))

    def explain(self, key: str) -> Explanation:
        """What a stored key is made of, and what changed since the nearest other entry of its function."""
        from dibs.memoize import explain

        return explain(self._versions, key, None)

    def status(self) -> Status:
        """How many keys are done, free and failed, and who holds what; reads every record."""
        return report.status(self._cells)

    def stats(self) -> Stats:
        """What this process did and saved through this cache so far."""
        requests: dict[str, int] = dict(getattr(self._store, "requests", {}))
        return Stats.of(self._events.counts, self._events.seconds, requests)

    def total_stats(self) -> Stats:
        """What all processes did that have closed this cache, as the store remembers."""
        return read_totals(self._store)

    def on_event(self, callback: Callable[[Event], None]) -> None:
        """Call `callback` with an `Event` for everything that happens here, in the thread where it happens."""
        self._events.listen(callback)

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._store.url

    # -- the object itself ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up what this process holds, add its numbers to the store's, and let go of files and connections.

        Happens by itself at the end of the process, for a cache that is still in use then.
        """
        if self._closed:
            return
        self._closed = True
        give_up_all(self._heartbeat, self._runtime)
        if not self.settings.read_only and self._events.counts:
            try:
                add_to_totals(self._store, self._runtime, self.stats())
            except DibsError as error:
                log.info("the numbers of this process are not in the store's: %s", error)
        self._uses.flush()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Cache], tuple[Any, ...]]:
        if self._store.url.startswith("memory:"):
            raise SettingsError("a memory: cache lives in one process and can't be sent to another: use a folder")
        return _reopened, (self._store.url, self.settings)

    def __dibs_key__(self) -> str:
        return "cache"  # where results are kept says nothing about what they are

    def __repr__(self) -> str:
        return f"<dibs.Cache {self._store.url}>"

    def _wait_s(self, wait_s: float | None) -> float | None:
        return self.settings.wait_s if wait_s is UNSET else checked_wait(wait_s)

    def _writable(self, what: str) -> None:
        if self.settings.read_only:
            raise SettingsError(f"{what}: this cache was opened read_only")


def _reopened(url: str, settings: Settings) -> Cache:
    from dibs.runtime.system import system
    from dibs.stores import open_store, stand_in_for

    if settings.disable:
        return Cache(stand_in_for(url, system()), system(), settings)
    return Cache(open_store(url, system(), make=not settings.read_only), system(), settings)
