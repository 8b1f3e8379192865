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

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_WINDOWS: Final = re.compile(r"[A-Za-z]:|\\\\")


def scheme_of(url: str) -> str:
    """The scheme of a URL in lower case, "" for a plain path.

    Raises SettingsError for what is neither and would become a directory of a surprising name, such as "s3:/bucket".
    """
    if _WINDOWS.match(url):
        raise SettingsError(f"{url!r} is a path of Windows, where dibs doesn't run; under WSL: /mnt/c/…")
    found = _SCHEME.match(url)
    if found is None:
        return ""
    scheme, rest = found[1].lower(), url[found.end() :]
    if scheme == "memory" or rest.startswith("//"):
        return scheme
    if rest.startswith("/") or scheme in ("file", "s3"):
        meant = f"{scheme}://{'/' if scheme == 'file' else ''}{rest.lstrip('/')}"
        raise SettingsError(
            f"{url!r} is no URL and hardly a path: write {meant} "
            f"(as a string: a pathlib.Path loses one slash), or ./{url} for a directory of that name"
        )
    return ""


def directory_of(url: str) -> str | None:
    """The directory that `url` names, or None when it names a store of another kind."""
    from urllib.parse import unquote

    match scheme_of(url):
        case "":
            return os.path.expanduser(url)
        case "file":
            path = url[len("file://") :].removeprefix("localhost")
            if not path.startswith("/"):
                raise SettingsError(f"{url!r} names no absolute path: write file:///path, or the plain path")
            return unquote(path)
    return None


def open_store(url: str, runtime: Runtime, make: bool = True) -> Backend:
    """Open the store at `url`: a directory ("./cache", "file:///data/cache"), "memory:" or "s3://bucket/prefix".

    A directory that isn't there is made, or, unless `make`, is StoreUnavailable.
    Raises SettingsError for a scheme that nobody knows, and StoreUnsuitable for a place that can't be a store.
    """
    if not url:
        raise SettingsError("no store is named: give a directory, or a URL such as s3://bucket/prefix")
    directory = directory_of(url)
    if directory is not None:
        return _open_directory(directory, runtime, make)
    scheme = scheme_of(url)
    known = {"memory": _open_memory, "s3": _open_s3}
    if opener := known.get(scheme):
        return opener(url, runtime)
    offered = _offered()
    if scheme in offered:
        return offered[scheme]()(url, runtime)
    names = ", ".join([*(f"{name}://" for name in sorted(["file", "s3", *offered])), "memory:", "or a directory"])
    raise SettingsError(f"{scheme}:// is no store that dibs knows (from {url!r}). It knows {names}.")


def stand_in_for(url: str, runtime: Runtime) -> Backend:
    """Memory that says it is the store at `url`: for a cache that is switched off, and leaves its store alone."""
    from urllib.parse import quote

    from dibs.stores.memory import MemoryStore

    directory = directory_of(url)
    store = MemoryStore(runtime)
    store.url = url if directory is None else "file://" + quote(os.path.realpath(directory))
    return store


Opener = Callable[[str, Runtime], Backend]


def _offered() -> dict[str, Callable[[], Opener]]:
    from importlib.metadata import entry_points

    return {point.name: point.load for point in entry_points(group=ENTRY_POINTS)}


def _open_directory(path: str, runtime: Runtime, make: bool) -> Backend:
    from dibs.stores.local import LocalStore

    return LocalStore(path, runtime, make=make)


def _open_memory(url: str, runtime: Runtime) -> Backend:
    from dibs.stores.memory import MemoryStore

    return MemoryStore(runtime, url.partition(":")[2])


def _open_s3(url: str, runtime: Runtime) -> Backend:
    from dibs.stores.s3 import open_s3

    return open_s3(url, runtime)
