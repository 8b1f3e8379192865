"""Every error that dibs raises; each leaf says what the reader can do about it.

    DibsError
    ├── Conflict           somebody else changed the record (seen by store authors only)
    ├── StoreUnavailable   the store did not answer; a write may or may not have happened
    ├── StoreUnsuitable    the store ignores conditions, lacks a permission, is of the wrong kind or a newer format
    ├── SettingsError      an unknown or impossible setting
    ├── Undigestible       an argument has no stable digest
    ├── CodecError         the value can't be stored, or the stored bytes may not be loaded
    ├── CorruptValue       the bytes don't match their digest (a cache treats it as a miss and heals it)
    ├── ComputeFailed      the key failed too often
    ├── WaitCircle         workers wait for each other in a circle
    ├── LockLost           this process can't prove any more that it holds
    └── WaitTimeout        somebody else held it for longer than you would wait
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class DibsError(Exception):
    """The root of all errors that dibs raises itself."""


class Conflict(DibsError):
    """The record is not at the version that the swap expected: read again, decide again."""


class StoreUnavailable(DibsError):
    """The store did not answer, or answered with a passing fault.

    A write that raises this may or may not have happened, and may still happen later; unless `certain`: then nothing
    was written, and asking again won't help before somebody makes room, unless the trouble is `passing`.
    """

    def __init__(self, message: str = "", certain: bool = False, passing: bool = False) -> None:
        super().__init__(message)
        self.certain, self.passing = certain, passing


class StoreUnsuitable(DibsError):
    """The store can't keep dibs' promises as it is; the message says why and what to do."""


class SettingsError(DibsError, ValueError):
    """A setting is unknown, ill-typed or impossible; the message names it and where it stands."""


class Undigestible(DibsError, TypeError):
    """An argument has no stable digest; the message names it, its type and the remedies."""


class CodecError(DibsError):
    """The value can't be stored, or the stored bytes may not be loaded.

    When a finished computation can't be stored, ``value`` carries its result, so that nothing is lost.
    """

    def __init__(self, message: str, value: Any = None) -> None:
        super().__init__(message)
        self.value = value

    def __reduce__(self) -> tuple[type[CodecError], tuple[Any, ...]]:
        # What can't be stored can seldom be sent either; the message must arrive all the same.
        return type(self), tuple(self.args)


class CorruptValue(DibsError):
    """The stored bytes don't match their digest."""


class ComputeFailed(DibsError):
    """The key failed, or killed its worker, too often; ``traceback`` is the last one, as text.

    ``key``, ``failures`` and ``deaths`` are as recorded, ``by`` names host and pid of the last failure.
    """

    def __init__(self, key: str, failures: int, deaths: int, by: str, traceback: str, remedy: str) -> None:
        super().__init__(key, failures, deaths, by, traceback, remedy)
        self.key, self.failures, self.deaths = key, failures, deaths
        self.by, self.traceback, self.remedy = by, traceback, remedy

    def __str__(self) -> str:
        tally = f"{self.failures} failures, {self.deaths} deaths of its worker"
        last = f"; the last on {self.by}:\n{self.traceback.rstrip()}" if self.traceback else ""
        return f"{self.key!r} can't be computed ({tally}). {self.remedy}{last}"


class WaitCircle(DibsError):
    """Workers wait for each other in a circle; ``keys`` names the members in order."""

    def __init__(
        self, keys: Sequence[str], remedy: str = "Compute these keys in one fixed order, or merge them into one."
    ) -> None:
        super().__init__(tuple(keys), remedy)
        self.keys, self.remedy = tuple(keys), remedy

    def __str__(self) -> str:
        path = " -> ".join(repr(key) for key in (*self.keys, self.keys[0]))
        return f"a circle of waits: {path}. {self.remedy}"


class LockLost(DibsError):
    """This process can't prove any more that it holds; stop touching what the hold protects."""


class WaitTimeout(DibsError, TimeoutError):
    """Somebody else held it for longer than ``wait_s``; the message says who."""
