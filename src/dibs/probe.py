"""Does this server keep its word?  A few requests in a row that only an honest store answers right.

Run once per store and server, and remembered in the card; races are `doctor`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from dibs.card import Card, read_card, write_card
from dibs.errors import Conflict, DibsError, StoreUnavailable, StoreUnsuitable
from dibs.runtime import Runtime
from dibs.store import Backend, Record, Unchanged, Version

_ATTEMPTS_MAX: Final = 3


def introduce(store: Backend, runtime: Runtime, read_only: bool = False) -> Card:
    """Return the store's card, after probing the server if the card doesn't vouch for it yet.

    One read when it does.  Raises StoreUnsuitable when the server doesn't honour conditions.
    """
    card = _read_patiently(store, runtime, read_only)
    known = dict(card.servers) if card is not None else {}
    if card is not None and (not store.remote or store.server in known or read_only):
        store.dialect = known.get(store.server, store.dialect)
        return card
    if store.remote and not read_only:
        store.dialect = probe(store, runtime)
    return write_card(store, runtime, (store.server, store.dialect) if store.remote else None, read_only)


def _read_patiently(store: Backend, runtime: Runtime, read_only: bool) -> Card | None:
    """Read the card; when several workers mend a damaged one at once, all but one of them read again."""
    for attempt in range(_ATTEMPTS_MAX):
        with suppress(Conflict):
            return read_card(store, read_only)
        runtime.sleep(0.05 * runtime.jitter() * (attempt + 1))
    raise StoreUnavailable(f"the card of {store.url} kept changing while it was mended")


def probe(store: Backend, runtime: Runtime) -> str:
    """Return the dialect in which the server honours every condition; raise StoreUnsuitable if there is none."""
    for attempt in range(_ATTEMPTS_MAX):
        name = f"probe/{runtime.token()}"
        try:
            return _probe(store, name)
        except (StoreUnavailable, Conflict) as error:
            if attempt == _ATTEMPTS_MAX - 1:
                raise StoreUnavailable(f"{store.url} could not be probed: {error}") from error
            runtime.sleep(0.2 + runtime.jitter())
        finally:
            with suppress(DibsError):
                store.erase(name)
    raise AssertionError("unreachable")


def _probe(store: Backend, name: str) -> str:
    body = [f"dibs probe {number} {name}".encode() for number in range(6)]
    if store.read(name) is not None:
        raise _lies(store, "it answers a read of a name that was never written")
    first = _swapped(store, name, None, body[0])
    _must_refuse(store, lambda: store.swap(name, None, body[1]), "it ignores If-None-Match (create only if absent)")
    second = _swap_in_a_dialect(store, name, first, body[2])
    if second == first:
        raise _lies(store, "it gives different bytes the same version (ETag)")
    _must_refuse(store, lambda: store.swap(name, first, body[3]), "it ignores If-Match (change only from this version)")
    _must_refuse(
        store, lambda: store.swap(f"{name}-absent", second, body[4]), "it creates a record on If-Match of an absent one"
    )
    record = store.read(name)
    if not isinstance(record, Record) or record.data != body[2] or record.version != second:
        raise _lies(store, "a read doesn't return what was written last")
    if not isinstance(store.read(name, unless=second), Unchanged):
        raise _lies(store, "it sends a record whole although If-None-Match says that it is known")
    return store.dialect


def _swap_in_a_dialect(store: Backend, name: str, old: Version, new: bytes) -> Version:
    for dialect in store.dialects:
        store.dialect = dialect
        with suppress(Conflict):
            return _swapped(store, name, old, new)
    raise _lies(store, "it refuses If-Match with the version that it has just given out")


def _swapped(store: Backend, name: str, old: Version | None, new: bytes) -> Version:
    """Swap; a refusal may be the second answer to a request that was sent twice on its way."""
    try:
        return store.swap(name, old, new)
    except Conflict:
        record = store.read(name)
        if isinstance(record, Record) and record.data == new:
            return record.version
        raise


def _must_refuse(store: Backend, write: Callable[[], Version], lie: str) -> None:
    try:
        write()
    except Conflict:
        return
    raise _lies(store, lie)


def _lies(store: Backend, lie: str) -> StoreUnsuitable:
    return StoreUnsuitable(
        f"{store.url} (server {store.server or 'local'}) can't coordinate workers: {lie}. Use a server with "
        "conditional writes (AWS S3, Cloudflare R2, Ceph from 16, MinIO from 2024-09), or a local directory"
    )
