"""The store in memory, for tests and for one process that wants no files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Final, Literal, NamedTuple

from dibs.errors import Conflict
from dibs.runtime import Runtime
from dibs.store import UNCHANGED, Listed, Record, Source, Unchanged, Version, checked_name

_PIECE_SIZE: Final = 1 << 20


class _Kept(NamedTuple):
    data: bytes
    version: Version
    written: float


class MemoryStore:
    """See `store.Store` and `store.Blobs`.  Each instance is a store of its own, whatever its name."""

    remote: Final = False
    server: Final = ""
    dialects: Final = ("plain",)

    private: Final = True
    """Nobody else can write here, so pickles are taken."""

    def __init__(self, runtime: Runtime, name: str = "") -> None:
        self.url = f"memory:{name}"
        self.dialect = self.dialects[0]
        self.request_timeout_s = 10.0
        self._runtime = runtime
        self._begin()
        runtime.after_fork(self._begin)
        self._records: dict[str, _Kept] = {}
        self._blobs: dict[str, bytes] = {}
        self._uploaded: dict[str, float] = {}

    def _begin(self) -> None:
        self._lock = self._runtime.lock()  # a forked child must not wait for a thread of its parent

    def read(self, name: str, unless: Version | None = None) -> Record | None | Literal[Unchanged.UNCHANGED]:
        kept = self._records.get(checked_name(name))
        if kept is None:
            return None
        if kept.version == unless:
            return UNCHANGED
        return Record(kept.data, kept.version, max(0.0, self._runtime.boot_time() - kept.written))

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        kept = _Kept(bytes(new), self._runtime.token(), self._runtime.boot_time())
        with self._lock:
            there = self._records.get(checked_name(name))
            if (there.version if there else None) != old:
                raise Conflict(name)
            self._records[name] = kept
        return kept.version

    def scan(self, prefix: str) -> Iterator[Listed]:
        return self._listed(self._records, prefix)

    def _listed(self, things: dict[str, _Kept], prefix: str) -> Iterator[Listed]:
        if prefix:
            checked_name(prefix.removesuffix("/"))
        now = self._runtime.boot_time()
        for name, kept in list(things.items()):
            if name.startswith(prefix):
                yield Listed(name, len(kept.data), max(0.0, now - kept.written))

    def erase(self, name: str) -> None:
        with self._lock:
            self._records.pop(checked_name(name), None)

    def files_of(self, name: str) -> tuple[str, ...]:
        checked_name(name)
        return ()

    def limit_requests(self, seconds: float) -> None:
        pass  # nothing here waits

    def close(self) -> None:
        pass

    def upload(self, name: str, source: Source) -> None:
        pieces = []
        while piece := source.read(_PIECE_SIZE):
            pieces.append(piece)
        self._blobs[checked_name(name)] = b"".join(pieces)
        self._uploaded[name] = self._runtime.boot_time()

    def download(self, name: str) -> AbstractContextManager[BinaryIO]:
        try:
            return io.BytesIO(self._blobs[checked_name(name)])
        except KeyError:
            raise FileNotFoundError(f"no such blob: {name}") from None

    def remove(self, name: str) -> None:
        self._blobs.pop(checked_name(name), None)
        self._uploaded.pop(name, None)

    def scan_blobs(self, prefix: str) -> Iterator[Listed]:
        kept = {name: _Kept(data, "", self._uploaded.get(name, 0.0)) for name, data in list(self._blobs.items())}
        return self._listed(kept, prefix)

    def clear_leftovers(self, gone: Callable[[str], bool], dry_run: bool = False) -> Iterator[Listed]:
        return iter(())  # an upload that fails leaves nothing here
