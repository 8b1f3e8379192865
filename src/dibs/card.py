"""The card: the one record that describes a store.

It says which format the records have, the store's id, the digest algorithm, which servers were probed and how
they want to be spoken to, and the floor: healing a damaged record starts above every number given out before,
so the floor is raised first.  A copy stands beside it, because a lost floor could not be found again.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from dibs.errors import Conflict, StoreUnsuitable
from dibs.record import FORMAT, Damaged, sealed, unsealed
from dibs.runtime import Runtime
from dibs.store import Record, Store, Unchanged, Version

NAME: Final = "card"
COPY_NAME: Final = "card-copy"
DIGEST: Final = "blake3"
FLOOR_STEP: Final = 2**40
"""More holds than one key can have between two healings."""
_ATTEMPTS_MAX: Final = 50


class Card(NamedTuple):
    store_id: str
    floor: int = 0
    digest: str = DIGEST
    servers: tuple[tuple[str, str], ...] = ()
    """Servers that were found to honour conditions, each with the dialect that it wants."""


def read_card(store: Store) -> Card | None:
    """Return the store's card; None when it has none yet.  A damaged card is mended from its copy."""
    return _read(store)[0]


def write_card(store: Store, runtime: Runtime, server: tuple[str, str] | None, read_only: bool) -> Card:
    """Return the card, created if absent, naming `server` (address and dialect) as one that was probed."""

    def described(card: Card | None) -> Card:
        card = card or Card(runtime.token() + runtime.token())
        if server is not None and server not in card.servers:
            card = card._replace(servers=(*(s for s in card.servers if s[0] != server[0]), server))
        return card

    if read_only:
        return described(read_card(store))
    return _update(store, runtime, described)


def raise_floor(store: Store, runtime: Runtime) -> int:
    """Raise the floor, durably, and return it: above every generation and epoch that was ever given out."""

    def raised(card: Card | None) -> Card:
        card = card or Card(runtime.token() + runtime.token())
        return card._replace(floor=card.floor + FLOOR_STEP)

    return _update(store, runtime, raised).floor


def _update(store: Store, runtime: Runtime, change: Any) -> Card:
    for attempt in range(_ATTEMPTS_MAX):
        card, version, copy_version = _read(store)
        new: Card = change(card)
        if new == card and copy_version is not None:
            return new
        data = _encode(new, runtime.token())
        try:
            # The copy first: whatever the card says, the copy has said before.
            store.swap(COPY_NAME, _version(store, COPY_NAME), data)
            if new != card:
                store.swap(NAME, version, data)
            return new
        except Conflict:
            runtime.sleep(0.02 * runtime.jitter() * (attempt + 1))
    raise StoreUnsuitable(f"the card of {store.url} kept changing while it was written; is something rewriting it?")


def _version(store: Store, name: str) -> Version | None:
    record = store.read(name)
    assert not isinstance(record, Unchanged)
    return None if record is None else record.version


def _read(store: Store) -> tuple[Card | None, Version | None, Version | None]:
    record = store.read(NAME)
    assert not isinstance(record, Unchanged)
    try:
        if record is not None:
            return _decode(record, store), record.version, record.version
    except Damaged:
        pass
    copy = store.read(COPY_NAME)
    assert not isinstance(copy, Unchanged)
    if copy is None:
        if record is None:
            return None, None, None
    else:
        try:
            card = _decode(copy, store)
        except Damaged:
            pass
        else:
            try:
                version = store.swap(NAME, None if record is None else record.version, copy.data)
            except Conflict:
                return _read(store)  # somebody else mended it, and at most once per damage
            return card, version, copy.version
    raise StoreUnsuitable(
        f"the card of {store.url} is damaged, and so is its copy: what else was damaged can't be told. "
        "Use a new directory or prefix; to keep the values, restore either of the two from a backup"
    )


def _encode(card: Card, attempt: str) -> bytes:
    body = {"attempt": attempt, "format": FORMAT, **card._asdict()}
    return sealed(json.dumps(body, separators=(",", ":"))[1:].encode())


def _decode(record: Record, store: Store) -> Card:
    fields = json.loads(b"{" + unsealed(record.data))
    if fields["digest"] != DIGEST:
        raise StoreUnsuitable(f"{store.url} was written with digests by {fields['digest']}; this dibs uses {DIGEST}")
    servers = tuple((address, dialect) for address, dialect in fields["servers"])
    return Card(fields["store_id"], fields["floor"], fields["digest"], servers)
