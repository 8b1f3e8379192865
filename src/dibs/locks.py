"""Plain locks: a cell without a value, bound strictly to the claim of its holder."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from dibs.cell import Cell
from dibs.cells import Seen
from dibs.contend import Contender, Settled, enter, leave
from dibs.errors import DibsError, LockLost, WaitCircle, WaitTimeout
from dibs.hold import LiveHold, Terms
from dibs.names import LOCKS, record_name
from dibs.runtime import Event
from dibs.tasks import in_pool, walk
from dibs.waiting import Steps, drive


class Lock:
    """A lock over the whole fleet, for a `with` or `async with` block; made by `Cache.lock` and `Cache.try_lock`.

    Closing the cache gives the lock up at once: `held` is False then, `check` and the end of the block raise LockLost.

    Guaranteed: `generation` is larger than that of every earlier holder of this name.  Not guaranteed: that no
    two workers ever run in the block at once: a worker that is paused for longer than its ttl goes on for a moment
    before it can know.  Ask `check` before each step that matters, or hand `generation` to a resource that refuses
    smaller ones (Kleppmann, "How to do distributed locking", 2016).

    A task that is started in the block inherits what its parent holds: if it asks for the same lock that is a
    WaitCircle, also with `reentrant`, because a parent that awaits it would wait for ever.  Start a task that may wait
    with a context of its own: `loop.create_task(…, context=contextvars.Context())`.
    """

    def __init__(
        self,
        contender: Contender,
        name: str,
        terms: Terms,
        wait_s: float | None,
        reentrant: bool = False,
        owner: object = None,
    ) -> None:
        self.name = name
        # The cache, which gives up at exit what is held, is there as long as its locks: of open(…).try_lock(…) too.
        self._owner = owner
        self._contender = contender.within(terms.beat_s)
        self._terms = terms
        self._wait_s = wait_s
        self._reentrant = reentrant
        self._hold: LiveHold | None = None
        self._shared = False
        self._generation = 0
        self._entering = self._tried = False

    def acquire(self) -> Self:
        """Take the lock; raises WaitTimeout when somebody else keeps it for longer than `wait_s`.

        Raises WaitCircle when this thread or task holds it already (unless `reentrant`), or when its holder
        waits, in the end, for something that this thread or task holds.
        """
        if self._shares():
            return self
        holds: list[LiveHold] = []
        self._entering = True
        try:
            self._enter(drive(self._contender.runtime, self._contending(holds.append)))
        except BaseException:
            self._hold = None
            for hold in holds:
                hold.abandon()
            raise
        finally:
            self._entering = False
        return self

    def _enter(self, got: LiveHold | Settled[Cell]) -> None:
        assert isinstance(got, LiveHold)
        got.thread = self._contender.runtime.thread()  # for a task, another one has taken the steps
        self._hold = got
        enter(got)

    def _shares(self) -> bool:
        """True when this thread or task holds the lock already, and may."""
        if self._hold is not None or self._entering:
            raise RuntimeError(f"this Lock object of {self.name!r} is in use; make one per block with cache.lock()")
        if self._reentrant:
            name = record_name(LOCKS, self.name)
            for hold in self._contender.own_holds():
                if hold.name == name and hold.thread == self._contender.runtime.thread():
                    self._hold, self._shared = hold, True
                    return True
        return False

    def _contending(self, taken: Callable[[LiveHold], object] = lambda hold: None) -> Steps[LiveHold | Settled[Cell]]:
        return self._contender.contending(LOCKS, self.name, self._terms, self._wait_s, _never_settled, taken=taken)

    def release(self) -> None:
        """Give the lock back; raises LockLost when it was lost before, so that nobody believes a broken block."""
        hold, self._hold = self._hold, None
        if hold is None:
            raise LockLost(f"{self.name!r} is not held by this Lock object")
        self._generation = hold.generation
        shared, self._shared = self._shared, False
        if hold.mine() and (hold.ended or (shared and hold.lost_because)):
            why = hold.lost_because or "it was given up before its block ended, by cache.close()"
            raise LockLost(f"{self.name!r} (generation {hold.generation}): {why}")
        if shared:
            return
        try:
            leave(hold)
            hold.release()
        except BaseException:
            hold.abandon()
            raise

    @property
    def generation(self) -> int:
        """The fencing token: grows with every holder of this name, for ever.

        0 before the lock is taken; after the block still the one that it had.
        """
        if self._hold is not None:
            self._generation = self._hold.generation
        return self._generation

    @property
    def held(self) -> bool:
        """True while this process can prove, without asking the store, that it holds."""
        return self._hold is not None and self._hold.held

    @property
    def lost(self) -> Event:
        """Set when the lock is known to be lost; as threading.Event, for code that waits for something else too."""
        return self._held().lost

    def check(self) -> None:
        """Return if this process provably holds, asking the store if need be; raise LockLost otherwise."""
        self._held().check()

    def beat(self, progress: float | None = None) -> None:
        """Prove now that the holder lives; `progress` in [0, 1] is shown to those who wait."""
        hold = self._held()
        if progress is not None:
            hold.progress = float(progress)
        hold.beat()

    def _held(self) -> LiveHold:
        if self._hold is None:
            raise LockLost(f"{self.name!r} is not held by this Lock object")
        return self._hold

    def __enter__(self) -> Self:
        if self._tried:  # taken by try_lock just before
            self._tried = False
            return self
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hold is None:
            return  # released inside the block
        try:
            self.release()
        except DibsError as problem:
            if error is None:
                raise
            # The block's own error matters more; this one goes with it.
            error.add_note(f"dibs: {type(problem).__name__} while {self.name!r} was released: {problem}")

    async def __aenter__(self) -> Self:
        if self._tried:  # taken by try_lock just before
            self._tried = False
            return self
        if self._shares():
            return self
        self._entering = True
        try:
            self._enter(await walk(self._contender.pool, self._contending(), _give_back))
        except WaitCircle as circle:
            if any(hold.name == record_name(LOCKS, self.name) for hold in self._contender.own_holds()):
                circle.add_note(
                    f"{self.name!r} is held by this task, or by the one that started it: start a task that its parent "
                    "doesn't wait for with context=contextvars.Context()"
                )
            raise
        finally:
            self._entering = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._shared:
            leave(self._hold)  # in this task's context, not in that of a thread
        if kind is GeneratorExit:  # the loop is gone, and nothing can be awaited
            self._contender.pool.submit(lambda: self.__exit__(kind, error, trace))
        else:
            await in_pool(self._contender.pool, lambda: self.__exit__(kind, error, trace))

    def __repr__(self) -> str:
        how = f"generation {self.generation}, {'held' if self.held else 'lost'}" if self._hold else "not held"
        return f"<dibs.Lock {self.name!r}: {how}>"


def try_lock(contender: Contender, name: str, terms: Terms, owner: object = None) -> Lock | None:
    """Return the lock, taken, or None at once when somebody else has it."""
    lock = Lock(contender, name, terms, wait_s=0.0, owner=owner)
    try:
        lock.acquire()
    except WaitTimeout:
        return None
    lock._tried = True
    return lock


def _give_back(got: LiveHold | Settled[Cell]) -> None:
    """The task that wanted it was cancelled."""
    if isinstance(got, LiveHold):
        got.release()


def _never_settled(seen: Seen) -> Settled[Cell] | None:
    return None
