"""dibs: the first worker to call dibs on a key computes it; everybody else gets the result.

>>> import dibs
>>> cache = dibs.open("memory:")
>>> cache.get_or_compute("answer", lambda: 42)
42
"""

from dibs.cache import Cache
from dibs.codec import register_codec
from dibs.digest import File, register_digest
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
from dibs.memoize import AsyncMemoized, Explanation, Memoized, Shelved
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
