"""dibs: the first worker to call dibs on a key computes it; everybody else gets the result.

>>> import dibs
>>> cache = dibs.open("memory:")
>>> cache.get_or_compute("answer", lambda: 42)
42
"""

from typing import TYPE_CHECKING, Any

from dibs.cache import Cache
from dibs.codec import register_codec
from dibs.errors import (
    CodecError,
    ComputeFailed,
    Conflict,
    CorruptValue,
    DibsError,
    LockLost,
    SettingsError,
    StoreUnavailable,
    StoreUnsuitable,
    Undigestible,
    WaitCircle,
    WaitTimeout,
)
from dibs.events import Event
from dibs.locks import Lock
from dibs.opening import open  # noqa: A004
from dibs.report import LockInfo, Status
from dibs.slot import Slot
from dibs.stats import Stats

__all__ = [
    "AsyncMemoized",
    "Cache",
    "CodecError",
    "ComputeFailed",
    "Conflict",
    "CorruptValue",
    "DibsError",
    "Event",
    "Explanation",
    "File",
    "Lock",
    "LockInfo",
    "LockLost",
    "Memoized",
    "SettingsError",
    "Shelved",
    "Slot",
    "Stats",
    "Status",
    "StoreUnavailable",
    "StoreUnsuitable",
    "Undigestible",
    "WaitCircle",
    "WaitTimeout",
    "open",
    "register_codec",
    "register_digest",
]

if TYPE_CHECKING:
    from dibs.digest import File, register_digest
    from dibs.memoize import AsyncMemoized, Explanation, Memoized, Shelved

_WHEN_USED = {
    "AsyncMemoized": "dibs.memoize",
    "Explanation": "dibs.memoize",
    "File": "dibs.digest",
    "Memoized": "dibs.memoize",
    "Shelved": "dibs.memoize",
    "register_digest": "dibs.digest",
}
"""Loaded when first asked for: those who only use string keys and locks should not pay for them."""


def __getattr__(name: str) -> Any:
    if name not in _WHEN_USED:
        raise AttributeError(f"module 'dibs' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHEN_USED[name]), name)
