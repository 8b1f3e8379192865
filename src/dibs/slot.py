"""The block form of computing once: `with cache.once(key) as slot`."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from dibs.contend import enter, leave
from dibs.errors import LockLost
from dibs.hold import LiveHold
from dibs.names import KEYS, record_name
from dibs.once import Ask, Once


class Slot:
    """A key while it is asked for in a block; made by `Cache.once`."""

    def __init__(self, once: Once | None, key: str, ask: Ask, owner: object = None) -> None:
        # Without a `once` dibs is switched off: the block computes, and what it commits stays its own.
        self.key = key
        self._once = once
        self._owner = owner  # the cache, which at exit gives up what is held, is there as long as its slots
        self._ask = ask
        self._hold: LiveHold | None = None
        self._found: tuple[Any] | None = None

    @property
    def done(self) -> bool:
        """True when there is a value: it was found, or committed in this block."""
        return self._found is not None

    @property
    def value(self) -> Any:
        """The value; raises LookupError before there is one."""
        if self._found is None:
            raise LookupError(f"{self.key!r} has no value yet: compute it and call slot.commit(value)")
        return self._found[0]

    @property
    def generation(self) -> int:
        """The number of this hold of the key, larger than every earlier one; 0 when the value was found."""
        return self._hold.generation if self._hold is not None else 0

    @property
    def held(self) -> bool:
        """True while this process can prove, without asking the store, that it holds the key."""
        return self._hold is not None and self._hold.held

    def check(self) -> None:
        """Raise LockLost when this process can't prove any more that it holds the key."""
        if self._once is not None:
            self._kept().check()

    def beat(self, progress: float | None = None) -> None:
        """Tell the waiters how far it is (`progress` in [0, 1]); with heartbeat="manual" also that it lives."""
        if self._once is None:
            return
        hold = self._kept()
        if progress is not None:
            hold.progress = float(progress)
        if hold.terms.manual:
            hold.beat()

    def commit(self, value: Any) -> Any:
        """Publish `value` and return the winning one: this, or that of whoever took over and was faster."""
        if self._once is None:
            self._found = (value,)
            return value
        hold = self._kept()
        self._found = (self._once.publish(record_name(KEYS, self.key), hold, value, self._ask),)
        leave(self._hold)
        return self._found[0]

    def _kept(self) -> LiveHold:
        if self._hold is None or self._found is not None:
            raise LockLost(f"{self.key!r} is not held in this block: slot.done is {self.done}")
        return self._hold

    def __enter__(self) -> Self:
        if self._once is not None:
            self._begin(self._once.open_slot(self.key, self._ask))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._once is not None and self._hold is not None and self._found is None:
            self._once.give_up(self._hold, error)
        leave(self._hold)

    def _begin(self, got: LiveHold | tuple[Any]) -> None:
        if isinstance(got, LiveHold):
            self._hold = got
            enter(got)
        else:
            self._found = got

    async def __aenter__(self) -> Self:
        once = self._once
        if once is not None:
            self._begin(await once.aopen_slot(self.key, self._ask))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        once, hold = self._once, self._hold
        leave(hold)
        if once is not None and hold is not None and self._found is None:
            await once.agive_up(hold, error)
