"""The card: the one record that describes a store.

It says which format the records have, the store's id, the digest algorithm, which servers were probed and how
they want to be spoken to, and the floor: healing a damaged record starts above every number given out before,
so the floor is raised first.  A copy stands beside it, because a lost floor could not be found again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, NamedTuple

from dibs.errors import Conflict, StoreUnavailable, StoreUnsuitable
from dibs.record import FORMAT, Damaged, sealed, unsealed
from dibs.runtime import Runtime
from dibs.store import Record, Store, Unchanged, Version

NAME: Final = "card"
COPY_NAME: Final = "card-copy"
DIGEST: Final = "blake3"
FLOOR_STEP: Final = 2**40
"""More holds than one key can have between two healings."""
_ATTEMPTS_MAX: Final = 50
_SERVERS_MAX: Final = 16


class Card(NamedTuple):
    store_id: str
    floor: int = 0
    digest: str = DIGEST
    servers: tuple[tuple[str, str], ...] = ()
    """Servers that were found to honour conditions, each with the dialect that it wants."""


def read_card(store: Store, read_only: bool = False) -> Card | None:
    """Return the store's card; None when it has none yet.

    A damaged card is mended from its copy (when `read_only`, only read from it).
    """
    return _read(store, read_only)[0]


def write_card(store: Store, runtime: Runtime, server: tuple[str, str] | None, read_only: bool) -> Card:
    """Return the card, created if absent, naming `server` (address and dialect) as one that was probed."""

    def described(card: Card | None) -> Card:
        card = card or Card(runtime.token() + runtime.token())
        if server is not None and server not in card.servers:
            others = [other for other in card.servers if other[0] != server[0]]
            card = card._replace(servers=(*others[-_SERVERS_MAX + 1 :], server))
        return card

    if read_only:
        return described(read_card(store, read_only=True))
    return _update(store, runtime, described)


def raise_floor(store: Store, runtime: Runtime) -> int:
    """Raise the floor, durably, and return it: above every generation and epoch that was ever given out."""

    def raised(card: Card | None) -> Card:
        card = card or Card(runtime.token() + runtime.token())
        return card._replace(floor=card.floor + FLOOR_STEP)

    return _update(store, runtime, raised).floor


def _update(store: Store, runtime: Runtime, change: Callable[[Card | None], Card]) -> Card:
    """Change the card, then bring the copy up to it; nobody is told before both are written."""
    for attempt in range(_ATTEMPTS_MAX):
        try:
            card, version = _read(store, read_only=False)
            new = change(card)
            data = _encode(new, runtime.token())
            if new != card:
                store.swap(NAME, version, data)
            break
        except Conflict:
            runtime.sleep(0.02 * runtime.jitter() * (attempt + 1))
    else:
        raise _restless(store)
    for attempt in range(_ATTEMPTS_MAX):
        try:
            _follow(store, new, data)
            return new
        except Conflict:
            runtime.sleep(0.02 * runtime.jitter() * (attempt + 1))
    raise _restless(store)


def _restless(store: Store) -> StoreUnavailable:
    return StoreUnavailable(f"the card of {store.url} kept changing while it was written; is something rewriting it?")


def _follow(store: Store, card: Card, data: bytes) -> None:
    """Make the copy say what `card` says, unless it is the same store's and further on already."""
    record = store.read(COPY_NAME)
    assert not isinstance(record, Unchanged)
    if record is not None:
        try:
            copy = _decode(record, store)
        except Damaged:
            pass
        else:
            if copy == card or (copy.store_id == card.store_id and copy.floor > card.floor):
                return
    store.swap(COPY_NAME, None if record is None else record.version, data)


def _read(store: Store, read_only: bool) -> tuple[Card | None, Version | None]:
    record = store.read(NAME)
    assert not isinstance(record, Unchanged)
    if record is not None:
        try:
            return _decode(record, store), record.version
        except Damaged:
            pass
    copy = store.read(COPY_NAME)
    assert not isinstance(copy, Unchanged)
    if copy is None and record is None:
        return None, None
    if copy is not None:
        try:
            card = _decode(copy, store)
        except Damaged:
            pass
        else:
            if read_only:
                return card, None
            return card, store.swap(NAME, None if record is None else record.version, copy.data)
    raise StoreUnsuitable(
        f"the card of {store.url} is damaged, and so is its copy: what else was damaged can't be told. "
        "Use a new directory or prefix; to keep the values, restore either of the two from a backup"
    )


def _encode(card: Card, attempt: str) -> bytes:
    body = {"attempt": attempt, "format": FORMAT, **card._asdict()}
    return sealed(json.dumps(body, separators=(",", ":"))[1:].encode())


def _decode(record: Record, store: Store) -> Card:
    try:
        fields = json.loads(b"{" + unsealed(record.data))
        digest = fields["digest"]
        servers = tuple((address, dialect) for address, dialect in fields["servers"])
        card = Card(fields["store_id"], fields["floor"], digest, servers)
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged from error
    if digest != DIGEST:
        raise StoreUnsuitable(f"{store.url} was written with digests by {digest}; this dibs uses {DIGEST}")
    return card
