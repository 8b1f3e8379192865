"""Which values were used lately: noted in memory at each hit, written to the store now and then, read by `dibs sweep`.

A hit costs one GET and no write, so a record can't say when it was last used.  Instead each process remembers
which records it hit, and adds the digests of their names to one of a few records of the current window of six hours:
when the cache is closed, and once an hour while it is busy.  How long ago a use was is what the store's own clock
says about the record that tells of it, so no two machines' clocks are compared.

What that means: a use is known to within a window; the last hour's uses of a worker that was killed are lost, and so
are those beyond `NAMES_MAX` in one window; then the age of the value decides, or an earlier use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from blake3 import blake3

from dibs.errors import Conflict, DibsError
from dibs.events import log
from dibs.record import Damaged, sealed, unsealed
from dibs.runtime import Runtime
from dibs.store import RECORD_SIZE_MAX, Listed, Record, Store

SPACE: Final = "uses/"
WINDOW_S: Final = 6 * 3600.0
"""Names of one window are kept together, so that a thousand processes that use the same values write them once."""
FLUSH_EVERY_S: Final = 3600.0
NAMES_MAX: Final = 32_000
"""Of one process in one window."""

_PREFIX_SIZE: Final = 8
_PER_RECORD_MAX: Final = (RECORD_SIZE_MAX - 256) // _PREFIX_SIZE
_SHARDS: Final = 8
_TRIES_MAX: Final = 3


def prefix_of(name: str) -> bytes:
    """What stands for a record in the records of uses; the name itself would be twenty times as long."""
    return blake3(name.encode()).digest(_PREFIX_SIZE)


class Uses:
    """What this process used; safe to use from several threads, since each step is one operation on a set."""

    def __init__(self, store: Store, runtime: Runtime, read_only: bool = False) -> None:
        self._store, self._runtime = store, runtime
        self._read_only = read_only
        self._begin()
        runtime.after_fork(self._begin)

    def _begin(self) -> None:
        self._noted: set[str] = set()
        self._written: set[str] = set()
        self._window = -1
        self._due_at = self._runtime.monotonic() + FLUSH_EVERY_S
        self._lock = self._runtime.lock()

    def note(self, name: str) -> None:
        """The value of the record `name` was used; costs a fraction of a microsecond but once an hour."""
        noted = self._noted
        if len(noted) < NAMES_MAX:
            noted.add(name)
        if self._runtime.monotonic() >= self._due_at:
            self.flush()

    def flush(self) -> None:
        """Write down what was noted since the last time; trouble with the store is logged, for this is only a hint."""
        with self._lock:
            self._due_at = self._runtime.monotonic() + FLUSH_EVERY_S
            window = int(self._runtime.wall() // WINDOW_S)
            if window != self._window:
                self._window, self._written = window, set()
            noted, self._noted = self._noted, set()
            if self._read_only:
                return
            left = max(NAMES_MAX - len(self._written), 0)
            # Both in one step of C: another thread may be adding a name to the old set at this very moment.
            new = list(noted - self._written)[:left]
            if not new:
                return
            self._written.update(new)
            try:
                _write(self._store, self._runtime, window, {prefix_of(name) for name in new})
            except DibsError as error:
                log.info("which values were used is not written down this time: %s", error)


def _write(store: Store, runtime: Runtime, window: int, prefixes: set[bytes]) -> None:
    """Add to one of the window's shared records; what finds no room there goes to records of its own."""
    if len(prefixes) <= _PER_RECORD_MAX // 2:
        for _ in range(_TRIES_MAX):
            name = f"{SPACE}{window}/{int(runtime.jitter() * _SHARDS)}"
            record = store.read(name)
            assert record is None or isinstance(record, Record)
            there = set(_decoded(record)) if record is not None else set()
            together = there | prefixes
            if together == there:
                return
            if len(together) > _PER_RECORD_MAX:
                break
            try:
                store.swap(name, None if record is None else record.version, _encoded(runtime, together))
                return
            except Conflict:
                continue
    waiting = list(prefixes)
    while waiting:
        chunk, waiting = waiting[:_PER_RECORD_MAX], waiting[_PER_RECORD_MAX:]
        store.swap(f"{SPACE}{window}/{runtime.token()}", None, _encoded(runtime, chunk))


def _encoded(runtime: Runtime, prefixes: Iterable[bytes]) -> bytes:
    return sealed(b'"attempt":"%s"}\n' % runtime.token().encode() + b"".join(sorted(prefixes)))


def _decoded(record: Record) -> Iterator[bytes]:
    """The prefixes in a record; none in a damaged one."""
    try:
        _, _, behind = unsealed(record.data).partition(b"\n")
    except Damaged:
        return
    for at in range(0, len(behind) - _PREFIX_SIZE + 1, _PREFIX_SIZE):
        yield behind[at : at + _PREFIX_SIZE]


class Used(NamedTuple):
    """What the records of uses say."""

    idle_s: dict[bytes, float]
    """By prefix: seconds since the last known use."""
    old: list[Listed]
    """Records of uses that are older than what was asked for."""

    def since_s(self, name: str, otherwise_s: float) -> float:
        """Seconds since the value of that record was last used, as far as is known."""
        return min(self.idle_s.get(prefix_of(name), otherwise_s), otherwise_s)


def read_uses(store: Store, runtime: Runtime, last_s: float) -> Used:
    """All uses of the last `last_s` seconds."""
    used = Used({}, [])
    for listed in store.scan(SPACE):
        idle_s = _age_s(listed, store, runtime)
        if idle_s > last_s:
            used.old.append(listed)
            continue
        record = store.read(listed.name)
        if isinstance(record, Record):
            for prefix in _decoded(record):
                used.idle_s[prefix] = min(idle_s, used.idle_s.get(prefix, idle_s))
    return used


def _age_s(listed: Listed, store: Store, runtime: Runtime) -> float:
    """By the store's clock; in a folder whose machine was booted since, by the window in the name."""
    if listed.age_s is not None:
        return listed.age_s
    window = listed.name.split("/")[1]
    if store.remote or not window.isdigit():
        return 0.0
    return max(runtime.wall() - (int(window) + 1) * WINDOW_S, 0.0)
