"""Writes whose outcome is unknown are brought to an end: done once, refused, or said to be unknown."""

from __future__ import annotations

import itertools

import pytest

from dibs import cell as table
from dibs.card import write_card
from dibs.cell import Cell, Hold
from dibs.cells import Cells, Seen
from dibs.errors import Conflict, StoreUnavailable, StoreUnsuitable
from dibs.events import Events
from dibs.names import KEYS, record_name
from dibs.record import encode
from dibs.store import UNCHANGED, Record
from dibs.stores.memory import MemoryStore
from tests.fakes import FaultyStore, HandRuntime

NAME = record_name(KEYS, "key")
PATIENCE_S = 30.0


_forgets = itertools.count()


def forget(cells: Cells, patience_s: float = 1.0) -> None:
    claim = f"forget {next(_forgets)}"
    cells.change(NAME, "key", claim, lambda seen: table.forget(seen.cell, claim), patience_s)


class Bench:
    """A store with one cell in it, and two workers: the one that is tested, and a rival."""

    def __init__(self, *plan: str, remote: bool = False, fresh: bool = False) -> None:
        self.runtime = HandRuntime()
        memory = MemoryStore(self.runtime)
        card = write_card(memory, self.runtime, None, read_only=False)
        self.rival = Cells(memory, self.runtime, card, Events(self.runtime))
        self.start = Seen(Cell("key"), None)
        if not fresh:
            self.start = self.rival.write(NAME, self.start, Cell("key", 1), 1.0)
        self.store = FaultyStore(memory, *plan, remote=remote)
        self.cells = Cells(self.store, self.runtime, card, Events(self.runtime))
        self.hold = Hold("claim", self.runtime.holder(None), 60.0)
        self.wanted = table.claim(self.start.cell, self.hold)

    def write(self, patience_s: float = PATIENCE_S) -> Seen:
        return self.cells.write(NAME, self.start, self.wanted, patience_s)

    def there(self) -> Cell:
        return self.rival.look(NAME, "key").cell


FAULTS = ["", "lost", "answer lost", "late"]
SEQUENCES = [plan for length in (1, 2, 3) for plan in itertools.product(FAULTS, repeat=length)]


@pytest.mark.parametrize("fresh", [False, True], ids=["replaced", "created"])
@pytest.mark.parametrize("plan", SEQUENCES, ids="+".join)
def test_whatever_gets_lost_or_late_a_write_is_done_exactly_once(plan: tuple[str, ...], fresh: bool) -> None:
    bench = Bench(*plan, fresh=fresh)
    written = bench.write()
    record = bench.store.read(NAME)
    assert bench.store.applied == 1
    assert bench.there() == written.cell == bench.wanted
    assert isinstance(record, Record) and written.version == record.version


@pytest.mark.parametrize("plan", [p for p in SEQUENCES if len(p) < 3], ids="+".join)
def test_a_request_that_was_delivered_twice_is_done_once_and_not_called_refused(plan: tuple[str, ...]) -> None:
    bench = Bench(*plan, "twice", remote=True)
    written = bench.write()
    assert bench.there() == written.cell == bench.wanted
    assert bench.store.applied == 1


@pytest.mark.parametrize("before", [(), ("lost",), ("lost", "lost")], ids=str)
def test_a_rival_who_came_first_is_a_conflict_and_keeps_what_he_wrote(before: tuple[str, ...]) -> None:
    bench = Bench(*before, "overtaken")
    theirs = bench.start.cell._replace(generation=9)
    bench.store.rival = lambda: bench.rival.write(NAME, bench.start, theirs, 1.0)
    with pytest.raises(Conflict):
        bench.write()
    assert bench.there() == theirs
    assert bench.store.applied == 0


def test_a_late_request_that_finds_a_rivals_record_changes_nothing() -> None:
    # Given a request that is still on its way when a rival writes
    bench = Bench("late")
    theirs = bench.start.cell._replace(generation=9)
    bench.store.before = lambda kind, name: kind == "read" and overtake()
    done: list[Seen] = []

    def overtake() -> None:
        if not done:
            done.append(bench.rival.write(NAME, bench.start, theirs, 1.0))

    # then it is refused, and stays refused when it arrives.
    with pytest.raises(Conflict):
        bench.write()
    assert bench.there() == theirs


def test_a_write_that_landed_and_was_changed_by_others_since_is_a_conflict() -> None:
    bench = Bench("answer lost")

    def rival_forgets() -> None:
        bench.store.before = lambda kind, name: None
        forget(bench.rival)

    bench.store.before = lambda kind, name: kind == "read" and rival_forgets()
    with pytest.raises(Conflict):
        bench.write()
    assert table.how_ended(bench.there(), "claim") == "dropped", "and the trail tells the writer"


def test_a_store_that_stays_silent_is_unavailable_when_patience_ends_and_not_later() -> None:
    bench = Bench()
    bench.store.down = True
    began = bench.runtime.monotonic()
    with pytest.raises(StoreUnavailable, match="may have happened"):
        bench.write(7.0)
    assert bench.runtime.monotonic() - began <= 7.0


def test_without_patience_one_request_is_sent() -> None:
    bench = Bench()
    bench.store.down = True
    with pytest.raises(StoreUnavailable):
        bench.write(0.0)
    assert (bench.store.sent, bench.store.reads) == (1, 0)


def test_an_outage_that_ends_in_time_is_outlived() -> None:
    bench = Bench()
    bench.store.down = True
    bench.runtime.clock.after(5.0, lambda: setattr(bench.store, "down", False))
    assert bench.write().cell == bench.wanted == bench.there()
    assert bench.store.applied == 1


@pytest.mark.parametrize("ends", [True, False])
def test_a_write_that_was_only_kept_waiting_is_asked_again_and_said_not_to_have_happened(ends: bool) -> None:
    bench = Bench()
    swap, busy = bench.store.swap, [True]

    def behind_a_guard(name: str, old: str | None, new: bytes) -> str:
        if busy[0]:
            raise StoreUnavailable("the guard is locked", certain=True, passing=True)
        return swap(name, old, new)

    bench.store.swap = behind_a_guard  # type: ignore[method-assign]
    if ends:
        bench.runtime.clock.after(3.0, lambda: busy.__setitem__(0, False))
        assert bench.write(7.0).cell == bench.there()
    else:
        with pytest.raises(StoreUnavailable, match="nothing was written") as raised:
            bench.write(7.0)
        assert raised.value.certain and "may have happened" not in str(raised.value)


def test_a_resend_is_byte_for_byte_the_first_request() -> None:
    bench = Bench("lost", "lost")
    sent: list[bytes] = []
    swap = bench.store.swap

    def watched(name: str, old: str | None, new: bytes) -> str:
        sent.append(new)
        return swap(name, old, new)

    bench.store.swap = watched  # type: ignore[method-assign]
    bench.write()
    assert len(sent) == 3 and len(set(sent)) == 1


def test_reading_with_the_known_version_says_unchanged() -> None:
    bench = Bench()
    seen = bench.cells.look(NAME, "key")
    assert bench.cells.look_again(NAME, "key", seen.version) is UNCHANGED
    assert bench.cells.look_again(NAME, "key", None) == seen


DAMAGE = {"empty": b"", "garbage": b"garbage", "foreign": encode(Cell("another key", 3, 3), "a")}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_record_is_healed_above_the_floor_and_reported(data: bytes) -> None:
    bench = Bench()
    bench.store.swap(NAME, bench.start.version, data)
    healed = bench.cells.look(NAME, "key")
    assert healed.cell.generation > 2**39 and healed.cell.hold is healed.cell.value is None
    assert bench.cells.events.counts["healed"] == 1
    assert bench.cells.look(NAME, "key").cell == healed.cell


def test_read_only_reports_damage_and_leaves_it() -> None:
    bench = Bench()
    version = bench.store.swap(NAME, bench.start.version, b"garbage")
    bench.cells.read_only = True
    assert bench.cells.look(NAME, "key").cell == Cell("key")
    record = bench.store.read(NAME)
    assert isinstance(record, Record) and record.version == version
    assert bench.cells.events.counts["healed"] == 1


def test_two_healers_heal_once() -> None:
    bench = Bench()
    bench.store.swap(NAME, bench.start.version, b"garbage")
    theirs: list[Seen] = []

    def rival_heals(kind: str, name: str) -> None:
        if (kind, name) == ("swap", NAME) and not theirs:
            theirs.append(bench.rival.look(NAME, "key"))

    bench.store.before = rival_heals
    assert bench.cells.look(NAME, "key").cell == theirs[0].cell
    assert bench.cells.events.counts["healed"] == 0 and bench.rival.events.counts["healed"] == 1


def test_a_record_of_a_newer_format_is_never_healed() -> None:
    from blake3 import blake3

    bench = Bench()
    body = b'"new":1}\n'
    newer = b'{"dibs":2,"check":"' + blake3(b"2" + body).hexdigest(16).encode() + b'",' + body
    version = bench.store.swap(NAME, bench.start.version, newer)
    with pytest.raises(StoreUnsuitable, match="format 2"):
        bench.cells.look(NAME, "key")
    record = bench.store.read(NAME)
    assert isinstance(record, Record) and record.version == version


def test_a_record_that_is_damaged_again_and_again_is_given_up_with_an_error() -> None:
    bench = Bench()
    bench.store.swap(NAME, bench.start.version, b"garbage")

    def spoil(kind: str, name: str) -> None:
        if (kind, name) == ("read", NAME):
            record = bench.rival.store.read(NAME)
            assert isinstance(record, Record)
            bench.rival.store.swap(NAME, record.version, b"garbage")

    bench.store.before = spoil
    with pytest.raises(StoreUnavailable, match="again and again"):
        bench.cells.look(NAME, "key")


@pytest.mark.parametrize("plan", [("lost",), ("answer lost",), ("late",), ("lost", "answer lost")], ids="+".join)
def test_a_change_is_applied_once_whatever_gets_lost(plan: tuple[str, ...]) -> None:
    bench = Bench(*plan)
    forget(bench.cells, PATIENCE_S)
    assert bench.there().epoch == bench.start.cell.epoch + 1


def test_a_change_is_applied_to_what_a_rival_wrote_meanwhile() -> None:
    bench = Bench("overtaken")
    bench.store.rival = lambda: forget(bench.rival)
    forget(bench.cells, PATIENCE_S)
    assert bench.there().epoch == bench.start.cell.epoch + 2


def test_a_change_that_never_comes_first_ends_with_an_error() -> None:
    bench = Bench()

    def overtake(kind: str, name: str) -> None:
        if kind == "swap":
            forget(bench.rival)

    bench.store.before = overtake
    with pytest.raises(StoreUnavailable, match="200 times"):
        forget(bench.cells, 1.0)


def test_a_put_whose_answer_was_lost_does_not_undo_a_later_put() -> None:
    from dibs.cell import Value

    def put(cells: Cells, claim: str) -> None:
        value = Value(0, claim, "str", 1, "d", b"x")
        cells.change(NAME, "key", claim, lambda seen: table.put(seen.cell, value), PATIENCE_S)

    bench = Bench("answer lost")
    others: list[None] = []

    def rival_puts(kind: str, name: str) -> None:
        if kind == "read" and bench.store.applied == 1 and not others:
            others.append(put(bench.rival, "second"))

    bench.store.before = rival_puts
    # Given a put that was done without an answer, and another one after it
    put(bench.cells, "first")
    # then readers never see the first one come back.
    assert bench.there().value is not None and bench.there().value.claim == "second"
