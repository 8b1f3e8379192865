"""Open the cache that is asked for: existing ones only, unless the command is there to make one."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from dibs.cache import Cache
from dibs.card import read_card
from dibs.cells import Cells
from dibs.errors import SettingsError, StoreUnavailable
from dibs.events import Events
from dibs.runtime import Runtime
from dibs.settings import Settings, gather
from dibs.store import Backend
from dibs.stores import directory_of, scheme_of

DEFAULT_URL: Final = "./.dibs"


class Place(NamedTuple):
    """An existing cache, with what it takes to look at single cells."""

    cache: Cache
    cells: Cells
    store: Backend
    runtime: Runtime


def wanted(options: argparse.Namespace, read_only: bool = False) -> tuple[str, Settings]:
    """The URL and the settings of the cache that is meant, from the options, the environment and the files."""
    arguments: dict[str, object] = {"read_only": True} if read_only else {}
    if options.store is not None:
        arguments["url"] = options.store
    url, settings = gather(arguments)
    return url or DEFAULT_URL, settings


@contextmanager
def existing(options: argparse.Namespace, writes: bool = False) -> Iterator[Place]:
    """The cache that is meant; nothing is made that isn't there.  Raises StoreUnavailable when it isn't."""
    url, settings = wanted(options, read_only=not writes)
    if writes and settings.read_only:
        raise SettingsError("read_only is set, by DIBS_READ_ONLY or in a settings file: this command would write")
    _reject_memory(url)
    directory = directory_of(url)
    if directory is not None and not os.path.isdir(directory):
        raise StoreUnavailable(_absent(directory))
    from dibs.runtime.system import system
    from dibs.stores import open_store

    runtime = system()
    store = open_store(url, runtime)
    store.limit_requests(settings.beat)
    card = read_card(store, settings.read_only)
    if card is None:
        raise StoreUnavailable(_absent(store.url))
    with Cache(store, runtime, settings) as cache:
        cells = Cells(store, runtime, card, Events(runtime), settings.read_only)
        yield Place(cache, cells, store, runtime)


@contextmanager
def made(options: argparse.Namespace) -> Iterator[Cache]:
    """The cache that is meant, made if it isn't there."""
    url, settings = wanted(options)
    _reject_memory(url)
    from dibs.runtime.system import system
    from dibs.stores import open_store

    with Cache(open_store(url, system()), system(), settings) as cache:
        yield cache


def _reject_memory(url: str) -> None:
    if scheme_of(url) == "memory":
        raise SettingsError(f"{url} lives and dies with one process: name a directory or a bucket with --store")


def _absent(where: str) -> str:
    return f"there is no cache at {where}. Name one with --store or $DIBS_URL; the first worker that opens it makes it"
