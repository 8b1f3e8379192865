"""The block form of computing once: `with cache.once(key) as slot`."""

from __future__ import annotations

from contextvars import Token
from types import TracebackType
from typing import Any, Self

from dibs.contend import holds_of_flow, own_holds
from dibs.errors import LockLost
from dibs.hold import LiveHold
from dibs.names import KEYS, record_name
from dibs.once import Ask, Once


class Slot:
    """A key while it is asked for in a block; made by `Cache.once`."""

    def __init__(self, once: Once, key: str, ask: Ask) -> None:
        self.key = key
        self._once = once
        self._ask = ask
        self._hold: LiveHold | None = None
        self._found: tuple[Any] | None = None
        self._token: Token[tuple[LiveHold, ...]] | None = None

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
        self._kept().check()

    def beat(self, progress: float | None = None) -> None:
        """Tell the waiters how far it is (`progress` in [0, 1]); with heartbeat="manual" also that it lives."""
        hold = self._kept()
        if progress is not None:
            hold.progress = progress
        if hold.terms.manual:
            hold.beat()

    def commit(self, value: Any) -> Any:
        """Publish `value` and return the winning one: this, or that of whoever took over and was faster."""
        hold = self._kept()
        self._found = (self._once.publish(record_name(KEYS, self.key), hold, value, self._ask.expires_s),)
        self._leave()
        return self._found[0]

    def _kept(self) -> LiveHold:
        if self._hold is None or self._found is not None:
            raise LockLost(f"{self.key!r} is not held in this block: slot.done is {self.done}")
        return self._hold

    def __enter__(self) -> Self:
        got = self._once.open_slot(self.key, self._ask)
        if isinstance(got, LiveHold):
            self._hold = got
            holds_of_flow.set((*own_holds(), got))
        else:
            self._found = got
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hold is not None and self._found is None:
            self._once.give_up(self._hold, error)
        self._leave()

    def _leave(self) -> None:
        holds_of_flow.set(tuple(hold for hold in own_holds() if hold is not self._hold))

    async def __aenter__(self) -> Self:
        import asyncio

        got = await asyncio.to_thread(self._once.open_slot, self.key, self._ask)
        if isinstance(got, LiveHold):
            self._hold = got
            holds_of_flow.set((*own_holds(), got))
        else:
            self._found = got
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        if self._hold is not None and self._found is None:
            await asyncio.to_thread(self._once.give_up, self._hold, error)
        self._leave()
