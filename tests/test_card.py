"""The card: made once, mended from its copy, and a floor that is raised before anything is healed."""

from __future__ import annotations

import json

import pytest

from dibs.card import COPY_NAME, FLOOR_STEP, NAME, Card, raise_floor, read_card, write_card
from dibs.cells import Cells
from dibs.errors import StoreUnsuitable
from dibs.events import Events
from dibs.names import KEYS, record_name
from dibs.record import sealed
from dibs.store import Record
from dibs.stores.memory import MemoryStore
from tests.fakes import FaultyStore, HandRuntime, cache_on


@pytest.fixture
def runtime() -> HandRuntime:
    return HandRuntime()


@pytest.fixture
def store(runtime: HandRuntime) -> FaultyStore:
    return FaultyStore(MemoryStore(runtime))


def damage(store: FaultyStore, name: str, data: bytes = b"garbage") -> None:
    record = store.read(name)
    assert isinstance(record, Record)
    store.swap(name, record.version, data)


def bytes_of(store: FaultyStore, name: str) -> bytes:
    record = store.read(name)
    assert isinstance(record, Record)
    return record.data


def test_a_new_store_has_no_card_and_gets_one_with_a_copy(store: FaultyStore, runtime: HandRuntime) -> None:
    assert read_card(store) is None
    card = write_card(store, runtime, None, read_only=False)
    assert read_card(store) == card
    assert bytes_of(store, NAME) == bytes_of(store, COPY_NAME)


def test_writing_it_again_changes_nothing_and_sends_nothing(store: FaultyStore, runtime: HandRuntime) -> None:
    card = write_card(store, runtime, ("server", "plain"), read_only=False)
    sent = store.sent
    assert write_card(store, runtime, ("server", "plain"), read_only=False) == card
    assert store.sent == sent


def test_servers_are_added_and_a_new_dialect_replaces_the_old(store: FaultyStore, runtime: HandRuntime) -> None:
    for server in (("one", "plain"), ("two", "plain"), ("one", "unquoted")):
        card = write_card(store, runtime, server, read_only=False)
    assert card.servers == (("two", "plain"), ("one", "unquoted"))
    assert read_card(store) == card


@pytest.mark.parametrize("damaged", [b"", b"garbage", b'{"dibs":1,"check":"'])
@pytest.mark.parametrize("which", [NAME, COPY_NAME])
def test_one_damaged_record_is_mended_from_the_other(
    store: FaultyStore, runtime: HandRuntime, which: str, damaged: bytes
) -> None:
    raise_floor(store, runtime)
    card = read_card(store)
    damage(store, which, damaged)
    assert read_card(store) == card
    if which == NAME:
        assert bytes_of(store, NAME) == bytes_of(store, COPY_NAME)
    assert raise_floor(store, runtime) == 2 * FLOOR_STEP


@pytest.mark.parametrize("flip", range(0, 300, 7))
def test_a_flipped_byte_in_the_card_never_makes_another_card(
    store: FaultyStore, runtime: HandRuntime, flip: int
) -> None:
    card = write_card(store, runtime, ("server", "plain"), read_only=False)
    data = bytearray(bytes_of(store, NAME))
    data[flip % len(data)] ^= 0x20
    damage(store, NAME, bytes(data))
    assert read_card(store) == card


def test_a_card_that_is_gone_comes_back_from_its_copy(runtime: HandRuntime) -> None:
    first = MemoryStore(runtime)
    card = write_card(first, runtime, None, read_only=False)
    second = MemoryStore(runtime)
    record = first.read(COPY_NAME)
    assert isinstance(record, Record)
    second.swap(COPY_NAME, None, record.data)
    assert read_card(second) == card


def test_both_damaged_is_an_error_that_says_what_to_do(store: FaultyStore, runtime: HandRuntime) -> None:
    write_card(store, runtime, None, read_only=False)
    damage(store, NAME)
    damage(store, COPY_NAME)
    with pytest.raises(StoreUnsuitable, match=r"card .* damaged.*copy.*restore"):
        read_card(store)


def test_a_foreign_record_in_the_place_of_the_card_is_damage(store: FaultyStore, runtime: HandRuntime) -> None:
    card = write_card(store, runtime, None, read_only=False)
    damage(store, NAME, sealed(b'"attempt":"a","hits":1}\n'))
    assert read_card(store) == card


def test_a_card_of_another_digest_is_an_error_that_names_it(store: FaultyStore, runtime: HandRuntime) -> None:
    write_card(store, runtime, None, read_only=False)
    body = {"store_id": "x", "floor": 0, "digest": "sha3", "servers": []}
    damage(store, NAME, sealed(json.dumps(body)[1:].encode()))
    with pytest.raises(StoreUnsuitable, match="sha3"):
        read_card(store)


def test_read_only_writes_no_card(store: FaultyStore, runtime: HandRuntime) -> None:
    assert write_card(store, runtime, None, read_only=True).store_id
    assert cache_on(store, runtime, read_only=True).get("key") is None
    assert store.sent == 0


def test_read_only_does_not_mend_a_damaged_card(store: FaultyStore, runtime: HandRuntime) -> None:
    write_card(store, runtime, None, read_only=False)
    damage(store, NAME)
    sent = store.sent
    cache_on(store, runtime, read_only=True)
    assert store.sent == sent


def at_requests(store: FaultyStore, kind: str, name: str, number: int, what: object) -> None:
    """Do `what` before the `number`-th such request."""
    left = [number]

    def before(this_kind: str, this_name: str) -> None:
        if (this_kind, this_name) == (kind, name):
            left[0] -= 1
            if left[0] == 0:
                what()  # type: ignore[operator]

    store.before = before


REQUESTS = [
    ("read", NAME, 1), ("read", COPY_NAME, 1), ("read", COPY_NAME, 2), ("swap", COPY_NAME, 1), ("swap", NAME, 1),
]  # fmt: skip


@pytest.mark.parametrize("moment", REQUESTS, ids=str)
def test_two_workers_that_create_the_card_at_once_agree_on_it(
    store: FaultyStore, runtime: HandRuntime, moment: tuple[str, str, int]
) -> None:
    other = HandRuntime(runtime.clock)
    theirs: list[Card] = []
    at_requests(store, *moment, lambda: theirs.append(write_card(store._store, other, None, read_only=False)))
    mine = write_card(store, runtime, None, read_only=False)
    assert theirs == [mine] == [read_card(store)]


@pytest.mark.parametrize("moment", [("read", COPY_NAME, 2)], ids=str)
def test_two_workers_that_create_the_card_at_once_leave_a_copy_that_agrees_with_it(
    store: FaultyStore, runtime: HandRuntime, moment: tuple[str, str, int]
) -> None:
    other = HandRuntime(runtime.clock)
    at_requests(store, *moment, lambda: write_card(store._store, other, None, read_only=False))
    mine = write_card(store, runtime, None, read_only=False)
    damage(store, NAME)
    assert read_card(store) == mine


@pytest.mark.parametrize("moment", [r for r in REQUESTS if r != ("read", COPY_NAME, 2)], ids=str)
def test_two_floors_that_are_raised_at_once_differ(
    store: FaultyStore, runtime: HandRuntime, moment: tuple[str, str, int]
) -> None:
    write_card(store, runtime, None, read_only=False)
    other = HandRuntime(runtime.clock)
    theirs: list[int] = []
    at_requests(store, *moment, lambda: theirs.append(raise_floor(store._store, other)))
    mine = raise_floor(store, runtime)
    assert sorted([mine, *theirs]) == [FLOOR_STEP, 2 * FLOOR_STEP]


@pytest.mark.parametrize("moment", [("read", COPY_NAME, 1), ("swap", COPY_NAME, 1)], ids=str)
def test_the_copy_never_goes_back_so_that_a_lost_card_never_repeats_a_floor(
    store: FaultyStore, runtime: HandRuntime, moment: tuple[str, str, int]
) -> None:
    write_card(store, runtime, None, read_only=False)
    other = HandRuntime(runtime.clock)
    given_out: list[int] = []
    # Given a worker that raised the floor, and slept before it wrote the copy while others raised it twice
    at_requests(
        store, *moment, lambda: given_out.extend(raise_floor(store._store, other) for _ in range(2))
    )
    given_out.append(raise_floor(store, runtime))
    # when the card is damaged then, and mended from its copy
    damage(store, NAME)
    # then the next floor is above all that were given out.
    assert len(given_out) == 3 and raise_floor(store, runtime) > max(given_out)


def test_healing_raises_the_floor_before_it_writes_the_cell(store: FaultyStore, runtime: HandRuntime) -> None:
    card = write_card(store, runtime, None, read_only=False)
    name = record_name(KEYS, "key")
    store.swap(name, None, b"garbage")
    cells = Cells(store, runtime, card, Events(runtime))
    order: list[tuple[str, int]] = []

    def before(kind: str, written: str) -> None:
        if kind == "swap":
            order.append((written, card_now().floor))

    def card_now() -> Card:
        found = read_card(store._store)
        assert found is not None
        return found

    store.before = before
    healed = cells.look(name, "key").cell
    assert order[-1] == (name, FLOOR_STEP), "the floor stood in the card when the cell was written"
    assert (healed.generation, healed.epoch) == (FLOOR_STEP, FLOOR_STEP)


def test_numbers_after_a_healing_are_above_all_before(runtime: HandRuntime) -> None:
    store = FaultyStore(MemoryStore(runtime))
    cache = cache_on(store, runtime)
    generations = []
    for _ in range(3):
        with cache.lock("name") as lock:
            generations.append(lock.generation)
        damage(store, "locks/name", b"")
        with cache.lock("name") as lock:
            generations.append(lock.generation)
    assert generations == sorted(set(generations))
