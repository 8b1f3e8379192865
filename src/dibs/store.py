"""The one primitive: small records that change by compare-and-swap, and large blobs that never change.

Everything above is written once over these two protocols; a backend is one file in `stores/`.

What a store must promise: `read` and `swap` of one record are linearizable, and at most one of several
swaps from the same version succeeds.
What it need not promise: that an answer arrives.  A swap that raises `StoreUnavailable` is *unknown*: it may
have happened, may not have, and may still happen later, at most once and only from the version it named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import BinaryIO, Final, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from dibs.errors import SettingsError

Version: TypeAlias = str
"""The opaque name of exactly the bytes that a record had when it was read or written."""

RECORD_SIZE_MAX: Final = 64 * 1024
"""Bytes.  A record is one line of JSON and at most `INLINE_SIZE_MAX` bytes of value."""

INLINE_SIZE_MAX: Final = 16 * 1024
"""Bytes.  Larger values go to a blob."""


_limit_s: ContextVar[float] = ContextVar("dibs_request_limit_s", default=float("inf"))


@contextmanager
def asked_within(seconds: float) -> Iterator[None]:
    """Let each `read` and `swap` in this block, by this thread, take at most so long; see `limited_s`."""
    token = _limit_s.set(min(seconds, _limit_s.get()))
    try:
        yield
    finally:
        _limit_s.reset(token)


def limited_s(request_timeout_s: float) -> float:
    """How long a request may take that is sent now: as the store says, or less when its sender is in a hurry.

    A lock with a beat of its own is: waiting longer for an answer than until the next beat would lose it.
    """
    return min(request_timeout_s, _limit_s.get())


class Record(NamedTuple):
    """The bytes of a record, their version, and the seconds since they were written by the store's own clock.

    `age_s` is None where the store can't tell.  `data` may be damaged (also empty): a store hands out what it
    has, with a version from which it can be swapped; whoever decodes it finds out.
    """

    data: bytes
    version: Version
    age_s: float | None = None


class Unchanged(Enum):
    """The answer to a read with `unless` when the record still has that version."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED


class Listed(NamedTuple):
    """One line of a listing: a hint, not a verdict."""

    name: str
    size_bytes: int
    age_s: float | None


@runtime_checkable
class Store(Protocol):
    """Small records under names; see the module for what must hold."""

    @property
    def url(self) -> str:
        """Where this store is, for people and for opening it again; without secrets."""

    @property
    def remote(self) -> bool:
        """True when a request crosses a network: waiters then poll gently instead of being woken."""

    @property
    def server(self) -> str:
        """Which server answers, so that what was found out about it can be remembered; empty for none."""

    dialect: str
    """How this server wants to be spoken to: one of `dialects`, chosen by the probe."""

    @property
    def dialects(self) -> tuple[str, ...]:
        """The dialects that this kind of store knows, the usual one first."""

    @property
    def request_timeout_s(self) -> float:
        """The longest that one `read` or `swap` takes before it raises `StoreUnavailable`; see also `limited_s`."""

    def limit_requests(self, seconds: float) -> None:
        """Let a `read` or `swap` take at most this long from now on, if they could take longer."""

    def read(self, name: str, unless: Version | None = None) -> Record | None | Literal[Unchanged.UNCHANGED]:
        """Return the record, None when there is none, or UNCHANGED when its version is still `unless`."""

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        """Replace the record if it is at version `old` (None: if there is none) and return the new version.

        Raises Conflict when it certainly was not at `old` and nothing was written by this call, and
        StoreUnavailable when it isn't known whether the write happened or will happen.
        """

    def scan(self, prefix: str) -> Iterator[Listed]:
        """List the records whose names begin with `prefix` (a whole number of path segments, ending in "/")."""

    def erase(self, name: str) -> None:
        """Remove a scratch record of the probe or the doctor.

        Never a cell: the numbers that it has given out would start anew.
        """

    def files_of(self, name: str) -> tuple[str, ...]:
        """The local files whose modification means that the record changed; empty where there are none."""

    def close(self) -> None:
        """Give up descriptors and connections; the store opens them again when it is used again."""


class Source(Protocol):
    """What an upload reads from: any binary file, or something that hands out views of memory without copying it."""

    def read(self, size: int, /) -> bytes | memoryview:
        """At most `size` bytes, and none only at the end."""


@runtime_checkable
class Blobs(Protocol):
    """Large bytes under names, immutable once written, streamed; no conditions needed."""

    def upload(self, name: str, source: Source) -> None:
        """Store all of `source` under `name`; the blob is complete before it can be seen."""

    def download(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open the blob for reading; raises FileNotFoundError when there is none.  Local: a real file."""

    def remove(self, name: str) -> None:
        """Remove the blob; no error when there is none."""

    def scan_blobs(self, prefix: str) -> Iterator[Listed]:
        """List the blobs whose names begin with `prefix`, as `scan` lists records; a hint too."""

    def clear_leftovers(self, gone: Callable[[str], bool], dry_run: bool = False) -> Iterator[Listed]:
        """Remove what uploads left whose writers died, and tell of each; with `dry_run`, only tell.

        An upload that a living writer is at is never disturbed: where the store can't see who lives, `gone` is asked,
        with the name of the blob, whether nothing can come of it any more.
        """


class Backend(Store, Blobs, Protocol):
    """A store that keeps both records and blobs."""


_SEGMENT: Final = re.compile(r"[A-Za-z0-9%._=,+@~-]{1,200}\Z")
NAME_LENGTH_MAX: Final = 512


def checked_name(name: str) -> str:
    """Return `name` if it can't leave the store's root: segments of plain characters, joined by "/".

    Raises SettingsError otherwise.  Keys are escaped before they become names, so users don't meet this.
    """
    if len(name) <= NAME_LENGTH_MAX:
        for segment in name.split("/"):
            if not _SEGMENT.match(segment) or segment in (".", ".."):
                break
        else:
            return name
    raise SettingsError(
        f"{name[:200]!r} is no record name: at most {NAME_LENGTH_MAX} characters, segments joined by '/', each of "
        "1 to 200 letters, digits or %._=,+@~- and neither '.' nor '..'"
    )
