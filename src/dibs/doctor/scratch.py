"""A scratch place below a store, where nobody else looks, and of which nothing is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import BinaryIO, Literal

from dibs.errors import DibsError, SettingsError
from dibs.runtime import Runtime
from dibs.store import Backend, Listed, Record, Source, Unchanged, Version
from dibs.stores import directory_of, open_store


class Scratch:
    """A place below a store where nobody else looks."""

    def __init__(
        self, opener: Callable[[], Backend], prefix: str, root: str = "", directory: str | None = None
    ) -> None:
        self._opener = opener
        self.prefix = prefix
        self.root, self.directory = root, directory
        self.dialect = ""
        self.written: dict[str, None] = {}
        self.blobs: dict[str, None] = {}

    def open(self) -> Scratched:
        """Another client of the place."""
        inner = self._opener()
        inner.dialect = self.dialect or inner.dialect
        return Scratched(inner, self)

    def clean(self, scan: bool) -> None:
        """Remove what was written, as far as the store can."""
        store = self._opener()
        names = self.written
        if scan:
            names |= {listed.name: None for listed in store.scan(self.prefix)}
        for name, remove in [*((name, store.erase) for name in names), *((name, store.remove) for name in self.blobs)]:
            with suppress(SettingsError):  # a name that was refused
                remove(name)
        store.close()


class Scratched:
    """A store, seen below a prefix; it remembers what was written."""

    def __init__(self, inner: Backend, scratch: Scratch) -> None:
        self.inner = inner
        self._prefix, self._written, self._blobs = scratch.prefix, scratch.written, scratch.blobs
        self.url, self.remote, self.server, self.dialects = inner.url, inner.remote, inner.server, inner.dialects

    @property
    def dialect(self) -> str:
        return self.inner.dialect

    @dialect.setter
    def dialect(self, dialect: str) -> None:
        self.inner.dialect = dialect

    @property
    def request_timeout_s(self) -> float:
        return self.inner.request_timeout_s

    def limit_requests(self, seconds: float) -> None:
        self.inner.limit_requests(seconds)

    def read(self, name: str, unless: Version | None = None) -> Record | None | Literal[Unchanged.UNCHANGED]:
        return self.inner.read(self._prefix + name, unless)

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        self._written[self._prefix + name] = None  # also with `old`: some servers create all the same
        return self.inner.swap(self._prefix + name, old, new)

    def scan(self, prefix: str) -> Iterator[Listed]:
        for listed in self.inner.scan(self._prefix + prefix):
            yield listed._replace(name=listed.name.removeprefix(self._prefix))

    def files_of(self, name: str) -> tuple[str, ...]:
        return self.inner.files_of(self._prefix + name)

    def close(self) -> None:
        self.inner.close()

    def upload(self, name: str, source: Source) -> None:
        self._blobs[self._prefix + name] = None
        self.inner.upload(self._prefix + name, source)

    def download(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self.inner.download(self._prefix + name)

    def erase(self, name: str) -> None:
        self.inner.erase(self._prefix + name)

    def remove(self, name: str) -> None:
        self.inner.remove(self._prefix + name)
        self._blobs.pop(self._prefix + name, None)

    def scan_blobs(self, prefix: str) -> Iterator[Listed]:
        for listed in self.inner.scan_blobs(self._prefix + prefix):
            yield listed._replace(name=listed.name.removeprefix(self._prefix))

    def clear_leftovers(self, gone: Callable[[str], bool], dry_run: bool = False) -> Iterator[Listed]:
        """Those of this scratch; others are none of its business."""

        def ours(name: str) -> bool:
            return name.startswith(self._prefix) and gone(name.removeprefix(self._prefix))

        for listed in self.inner.clear_leftovers(ours, dry_run):
            yield listed._replace(name=listed.name.removeprefix(self._prefix))


@contextmanager
def scratch_below(url: str, runtime: Runtime) -> Iterator[Scratch]:
    directory = directory_of(url)
    token = f"doctor-{runtime.token()}"
    if directory is not None:
        yield from _scratch_directory(directory, token, runtime)
        return
    store = open_store(url, runtime)
    # A store in memory is all its own clients.
    opener = (lambda: open_store(url, runtime)) if store.remote else (lambda: store)
    scratch = Scratch(opener, f"{token}/")
    honest = False
    try:
        yield scratch
        honest = True
    finally:
        with suppress(DibsError):
            scratch.clean(scan=honest)


def _scratch_directory(root: str, token: str, runtime: Runtime) -> Iterator[Scratch]:
    """A store of its own below the store's directory, which leaves no trace, not even of the directory itself."""
    import shutil

    root = os.path.realpath(root)
    missing = []
    parent = root
    while not os.path.exists(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    directory = os.path.join(root, token)
    try:
        yield Scratch(lambda: open_store(directory, runtime), "", root, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        for made in missing:
            with suppress(OSError):
                os.rmdir(made)
