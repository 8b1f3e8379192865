"""dibs: the first worker to call dibs on a key computes it; everybody else gets the result.

>>> import dibs
>>> cache = dibs.open("memory:")
>>> cache.get_or_compute("answer", lambda: 42)
42
"""

from dibs.cache import Cache
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
    "Cache",
    "CodecError",
    "ComputeFailed",
    "Conflict",
    "CorruptValue",
    "DibsError",
    "Event",
    "Lock",
    "LockInfo",
    "LockLost",
    "SettingsError",
    "Slot",
    "Stats",
    "Status",
    "StoreUnavailable",
    "StoreUnsuitable",
    "Undigestible",
    "WaitCircle",
    "WaitTimeout",
    "open",
]
