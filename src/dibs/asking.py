"""How a cache answers: from the fleet; or alone, when it is switched off, read only, or its store is away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dibs.errors import StoreUnavailable
from dibs.events import Events, log
from dibs.once import Ask, Once
from dibs.settings import Settings


class Asking:
    """Asks for keys by the rules of one cache's settings."""

    def __init__(self, once: Once, settings: Settings, events: Events) -> None:
        self._once = once
        self._settings = settings
        self._events = events

    def ask(self, key: str, compute: Callable[[], Any], ask: Ask) -> Any:
        """The value of `key`, computed by `compute` unless somebody has done so, or is doing it."""
        if not callable(compute):
            raise TypeError(f"compute must be a function without arguments, not {compute!r:.80}")
        settings = self._settings
        if settings.disable:
            return compute()
        if settings.read_only:
            found = None if ask.recompute else self._once.get(key)
            return compute() if found is None else found[0]
        if settings.on_unavailable == "raise":
            return self._once.get_or_compute(key, compute, ask)
        attempt = _Attempt(compute)
        try:
            return self._once.get_or_compute(key, attempt, ask)
        except StoreUnavailable as error:
            self._alone(key, attempt, error)
            return compute()

    async def ask_async(self, key: str, compute: Callable[[], Awaitable[Any]], ask: Ask) -> Any:
        """As ask, for asyncio; `compute` runs in the calling task."""
        settings = self._settings
        if settings.disable:
            return await compute()
        if settings.read_only:
            found = None if ask.recompute else await self._once.aget(key)
            return await compute() if found is None else found[0]
        if settings.on_unavailable == "raise":
            return await self._once.aget_or_compute(key, compute, ask)
        attempt = _Attempt(compute)
        try:
            return await self._once.aget_or_compute(key, attempt, ask)
        except StoreUnavailable as error:
            self._alone(key, attempt, error)
            return await compute()

    def _alone(self, key: str, attempt: _Attempt, error: StoreUnavailable) -> None:
        """Go on without the store; raises `error` when it is the computation's own trouble, with whatever store."""
        if attempt.began:
            raise error
        log.warning("%r is computed without sharing it: %s", key, error)
        self._events.emit("unpublished", key, detail=str(error))


class _Attempt:
    """A computation, and whether it has begun."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute
        self.began = False

    def __call__(self) -> Any:
        self.began = True
        return self._compute()
