"""The stores, and how a URL becomes one; each is imported when it is first opened."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

from dibs.errors import SettingsError
from dibs.runtime import Runtime
from dibs.store import Backend

ENTRY_POINTS: Final = "dibs.stores"
"""Other packages offer stores in this entry-point group: the scheme, and a function of (url, runtime)."""

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_store(url: str, runtime: Runtime) -> Backend:
    """Open the store at `url`: a directory ("./cache", "file:///data/cache"), "memory:" or "s3://bucket/prefix".

    Raises SettingsError for a scheme that nobody knows, and StoreUnsuitable for a place that can't be a store.
    """
    if not url:
        raise SettingsError("no store is named: give a directory, or a URL such as s3://bucket/prefix")
    if url.startswith("memory:"):
        return _open_memory(url, runtime)
    found = _SCHEME.match(url)
    if not found:
        return _open_directory(os.path.expanduser(url), runtime)
    scheme = found[1].lower()
    known = {"file": _open_file, "s3": _open_s3}
    if opener := known.get(scheme):
        return opener(url, runtime)
    offered = _offered()
    if scheme in offered:
        return offered[scheme]()(url, runtime)
    names = ", ".join([*(f"{name}://" for name in sorted([*known, *offered])), "memory:", "or a directory"])
    raise SettingsError(f"{scheme}:// is no store that dibs knows (from {url!r}). It knows {names}.")


Opener = Callable[[str, Runtime], Backend]


def _offered() -> dict[str, Callable[[], Opener]]:
    from importlib.metadata import entry_points

    return {point.name: point.load for point in entry_points(group=ENTRY_POINTS)}


def _open_directory(path: str, runtime: Runtime) -> Backend:
    from dibs.stores.local import LocalStore

    return LocalStore(path, runtime)


def _open_file(url: str, runtime: Runtime) -> Backend:
    from urllib.parse import unquote

    path = url[len("file://") :].removeprefix("localhost")
    if not path.startswith("/"):
        raise SettingsError(f"{url!r} names no absolute path: write file:///path, or the plain path")
    return _open_directory(unquote(path), runtime)


def _open_memory(url: str, runtime: Runtime) -> Backend:
    from dibs.stores.memory import MemoryStore

    return MemoryStore(runtime, url.removeprefix("memory:"))


def _open_s3(url: str, runtime: Runtime) -> Backend:
    from dibs.stores.s3 import open_s3

    return open_s3(url, runtime)
