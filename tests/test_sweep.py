"""Sweeping: only what nothing names and nothing ever will is removed, and evicted values are computed anew."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dibs
from dibs import cell as table
from dibs.cell import Cell, Hold, Value
from dibs.cli.sweep import duration, size
from dibs.errors import StoreUnavailable
from dibs.names import KEYS, blob_name, record_name
from dibs.runtime import Holder
from dibs.stores.memory import MemoryStore
from dibs.sweep import Swept, closed, is_over, sweep, without_value
from dibs.uses import NAMES_MAX, Uses, prefix_of, read_uses
from tests.fakes import Clock, Counted, Elsewhere, FaultyStore, HandRuntime, cache_on
from tests.test_cli import Ran

LARGE = b"x" * 50_000
HOUR_S, DAY_S = 3600.0, 86400.0


class Fleet:
    """A store in memory and a cache on it; the clock is moved by hand."""

    def __init__(self, remote: bool = False) -> None:
        self.runtime = HandRuntime(Clock())
        self.store: Any = FaultyStore(MemoryStore(self.runtime), remote=remote)
        self.cache = cache_on(self.store, self.runtime, ttl_s=10.0)

    @property
    def blobs(self) -> set[str]:
        return {listed.name for listed in self.store.scan_blobs("values/")}

    def sweep(self, **options: Any) -> Swept:
        return sweep(self.cache._cells, self.store, **options)

    def later(self, seconds: float) -> None:
        self.runtime.clock.sleep(seconds)

    def orphan(self, key: str, epoch: int, claim: str = "abc") -> str:
        """A blob as a worker leaves it that dies between its upload and its commit."""
        name = blob_name(record_name(KEYS, key), epoch, claim)
        self.store.upload(name, io.BytesIO(LARGE))
        return name

    def cell(self, key: str) -> Cell:
        return self.cache._cells.look(record_name(KEYS, key), key).cell


@pytest.fixture(params=["here", "remote"])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    return Fleet(remote=request.param == "remote")


# --- the rule -------------------------------------------------------------------------------------------


def blob_of(epoch: int, claim: str) -> str:
    return f"values/keys/k/{epoch}-{claim}"


def value_of(epoch: int, claim: str) -> Value:
    return Value(epoch, claim, "bytes", 3, "", None, blob_of(epoch, claim))


def hold_of(claim: str) -> Hold:
    return Hold(claim, Holder("host", "boot", 1, 2, 3, "", "", claim), 60.0)


@given(st.lists(st.tuples(st.sampled_from(
    ["claim", "recompute", "take over", "commit", "late", "fail", "release", "put", "forget", "bury", "close", "evict"]
), st.integers(0, 3)), max_size=25))  # fmt: skip
def test_what_is_over_stays_over_whatever_happens_next(steps: list[tuple[str, int]]) -> None:
    cell = Cell("k")
    written: list[tuple[int, str]] = []  # every (epoch, claim) that might have a blob
    over: set[tuple[int, str]] = set()
    for number, (step, pick) in enumerate(steps):
        claim, hold = f"c{number}", cell.hold
        before = cell
        if step == "claim" and hold is None and table.current(cell) is None:
            cell = table.claim(cell, hold_of(claim))
            written.append((cell.epoch, claim))
        elif step == "recompute" and hold is None:
            cell = table.recompute(cell, hold_of(claim))
            written.append((cell.epoch, claim))
        elif step == "take over" and hold is not None:
            cell = table.take_over(cell, hold_of(claim))
            written.append((cell.epoch, claim))
        elif step in ("commit", "late") and written:
            # Anybody who ever held may finish at any time.
            epoch, writer = written[-1] if step == "commit" else written[pick % len(written)]
            if table.may_commit(cell, epoch):
                cell = table.commit(cell, value_of(epoch, writer))
        elif step == "fail" and hold is not None:
            cell = table.fail(cell, hold.claim, "error", "by")
        elif step == "release" and hold is not None:
            cell = table.release(cell, hold.claim)
        elif step == "put":
            written.append((cell.epoch + 1, claim))
            cell = table.put(cell, value_of(cell.epoch + 1, claim))
        elif step == "forget":
            cell = table.forget(cell, claim)
        elif step == "bury" and hold is not None:
            cell = table.bury(cell)
        elif step == "close" and table.current(cell) is None:
            cell = closed(cell, cell.epoch + pick - 1, claim)
        elif step == "evict" and cell.value is not None:
            cell = without_value(cell, cell.value, claim) or cell
        assert (cell.epoch, cell.generation) >= (before.epoch, before.generation)
        for epoch, writer in over:
            assert is_over(cell, epoch, writer, blob_of(epoch, writer)), (step, epoch, writer, cell)
        over |= {(e, w) for e, w in written if is_over(cell, e, w, blob_of(e, w))}
        if cell.value is not None:
            assert (cell.value.epoch, cell.value.claim) not in over


def test_ending_an_epoch_keeps_the_old_value_and_the_count_of_failures() -> None:
    cell = table.commit(table.claim(Cell("k"), hold_of("a")), value_of(0, "a"))
    cell = table.recompute(cell, hold_of("b"))
    after = closed(cell, 1, "sweep")
    assert (after.epoch, after.hold, after.value) == (2, None, cell.value)
    assert after.failures is not None
    assert after.failures.deaths == 1
    assert table.how_ended(after, "b") == "taken over"


# --- blobs ----------------------------------------------------------------------------------------------


def test_nothing_is_swept_that_a_cell_names_however_old_it_is(fleet: Fleet) -> None:
    fleet.cache.put("large", LARGE)
    fleet.cache.put("small", 1)
    fleet.later(DAY_S)
    swept = fleet.sweep(grace_s=0.0)
    assert (swept.left, swept.left_bytes, swept.freed_bytes) == (2, len(LARGE) + 1, 0)
    assert fleet.cache.get("large") == LARGE


def test_a_replaced_blob_stays_for_the_grace_time(fleet: Fleet) -> None:
    fleet.cache.put("key", LARGE)
    fleet.cache.put("key", LARGE + b"2")
    (old,) = [blob for blob in fleet.blobs if "/1-" in blob]
    assert fleet.sweep().waiting == 1
    fleet.later(HOUR_S - 1)
    assert old in fleet.blobs
    assert fleet.sweep() == Swept(waiting=1, waiting_bytes=len(LARGE), left=1, left_bytes=len(LARGE) + 1)
    fleet.later(2)
    assert (fleet.sweep().blobs, old in fleet.blobs) == (1, False)
    assert fleet.cache.get("key") == LARGE + b"2"


def test_the_blobs_of_a_key_that_is_replaced_all_the_time_go_too(fleet: Fleet) -> None:
    for _ in range(30):
        fleet.cache.put("key", LARGE)
        fleet.later(HOUR_S / 10)
        fleet.sweep()
    assert len(fleet.blobs) <= 12


def test_the_blob_of_a_worker_that_has_yet_to_commit_is_left_alone_however_old(fleet: Fleet) -> None:
    with fleet.cache.once("key") as slot:
        hold = slot._hold
        assert hold is not None
        blob = fleet.orphan("key", hold.epoch, hold.claim)
        for _ in range(20):
            fleet.later(9.0)
            hold.beat()
            assert fleet.sweep(grace_s=0.0).waiting == 1
        assert blob in fleet.blobs
        slot.commit(LARGE)
    assert fleet.cache.get("key") == LARGE


def test_a_blob_whose_put_has_yet_to_be_written_is_left_alone(fleet: Fleet) -> None:
    fleet.cache.put("key", 1)
    blob = fleet.orphan("key", fleet.cell("key").epoch + 1)
    fleet.later(10 * HOUR_S)
    assert fleet.sweep(grace_s=0.0).waiting == 1
    assert blob in fleet.blobs
    fleet.cache.put("key", 2)
    assert fleet.sweep(grace_s=0.0).blobs == 1
    assert fleet.blobs == set()


def test_a_put_that_is_overtaken_between_its_upload_and_its_write_loses_nothing() -> None:
    fleet = Fleet()
    swept: list[Swept] = []

    def in_between(kind: str, name: str) -> None:
        if kind == "swap" and name.startswith("keys/") and fleet.blobs and not swept:
            swept.append(Swept())
            fleet.store.before = lambda kind, name: None
            Elsewhere(fleet.cache).put("key", "other")
            swept[0] = fleet.sweep(grace_s=0.0)

    fleet.store.before = in_between
    fleet.cache.put("key", LARGE)
    assert swept[0].blobs == 1, "the blob of the overtaken put is garbage"
    assert fleet.cache.get("key") == LARGE


def test_what_a_killed_worker_uploaded_goes_when_another_has_published(fleet: Fleet) -> None:
    assert fleet.cache.get_or_compute("key", Counted(LARGE)) == LARGE
    fleet.orphan("key", fleet.cell("key").epoch)
    fleet.later(HOUR_S + 1)
    assert fleet.sweep().blobs == 1
    assert len(fleet.blobs) == 1
    assert fleet.cache.get("key") == LARGE


def test_what_a_worker_left_that_is_proved_dead_goes_at_once_and_its_epoch_ends(fleet: Fleet) -> None:
    slot = fleet.cache.once("key")
    slot.__enter__()
    hold = slot._hold
    assert hold is not None
    blob = fleet.orphan("key", hold.epoch, hold.claim)
    assert fleet.sweep().waiting == 1
    fleet.runtime.dead[fleet.runtime.process()] = "beacon free"
    assert fleet.sweep(dry_run=True).blobs == 1
    assert blob in fleet.blobs
    assert fleet.sweep().blobs == 1
    cell = fleet.cell("key")
    assert (cell.hold, cell.epoch, fleet.blobs) == (None, hold.epoch + 1, set())
    assert cell.failures is not None
    assert cell.failures.deaths == 1, "a key that kills its workers is still known for it"


def test_a_worker_that_only_seemed_dead_keeps_its_result_to_itself() -> None:
    fleet = Fleet()
    with fleet.cache.once("key") as slot:
        hold = slot._hold
        assert hold is not None
        fleet.orphan("key", hold.epoch, hold.claim)
        fleet.runtime.dead[fleet.runtime.process()] = "a false proof"
        fleet.sweep()
        assert slot.commit(LARGE) == LARGE
    assert "key" not in fleet.cache
    fleet.runtime.dead.clear()
    assert fleet.sweep(grace_s=0.0).left == 0
    assert fleet.blobs == set()


def test_what_was_left_for_a_key_that_nobody_holds_goes_after_the_grace_time(fleet: Fleet) -> None:
    fleet.cache.put("other", 1)
    with pytest.raises(ZeroDivisionError):
        fleet.cache.get_or_compute("failed", Counted(1, ZeroDivisionError()))
    blobs = {fleet.orphan("failed", 0), fleet.orphan("never/written", 1)}
    assert fleet.sweep().waiting == 2
    assert blobs == fleet.blobs
    fleet.later(HOUR_S + 1)
    assert fleet.sweep().blobs == 2
    assert fleet.blobs == set()
    assert fleet.cell("failed").failures is not None
    assert (fleet.cell("failed").epoch, fleet.cell("never/written").epoch) == (1, 2)
    assert fleet.sweep() == Swept(left=1, left_bytes=1)


def test_a_damaged_record_keeps_its_blobs(fleet: Fleet) -> None:
    fleet.cache.put("key", LARGE)
    record = fleet.store.read(record_name(KEYS, "key"))
    assert isinstance(record, dibs.store.Record)
    fleet.store.swap(record_name(KEYS, "key"), record.version, b"garbage")
    fleet.later(DAY_S)
    swept = fleet.sweep(grace_s=0.0)
    assert (swept.damaged, swept.blobs, len(fleet.blobs)) == (1, 0, 1)


def test_blobs_of_strangers_are_left_alone(fleet: Fleet) -> None:
    for name in ("values/readme", "values/keys/key/1", "other/keys/key/0-abc"):
        fleet.store.upload(name, io.BytesIO(b"x"))
    fleet.later(DAY_S)
    assert fleet.sweep(grace_s=0.0) == Swept()
    assert len(fleet.blobs) == 2


def test_a_record_that_names_a_blob_of_another_key_does_not_get_it_removed() -> None:
    fleet = Fleet()
    fleet.cache.put("victim", LARGE)
    fleet.cache.put("key", 1, expires_s=1.0)
    stolen = fleet.cell("victim").value
    assert stolen is not None
    cells, name = fleet.cache._cells, record_name(KEYS, "key")
    seen = cells.look(name, "key")
    assert seen.cell.value is not None
    forged = seen.cell.value._replace(inline=None, blob=stolen.blob)
    cells.write(name, seen, seen.cell._replace(value=forged), 1.0)
    fleet.later(2.0)
    assert fleet.sweep().expired == 1
    assert fleet.cache.get("victim") == LARGE


def test_a_write_whose_fate_is_not_known_gets_no_blob_removed() -> None:
    fleet = Fleet(remote=True)
    fleet.cache.put("key", LARGE, expires_s=5.0)
    fleet.later(6.0)
    fleet.store.plan = ["lost"] * 500
    fleet.sweep()
    assert len(fleet.blobs) == 1
    fleet.store.plan = []
    assert fleet.sweep().expired == 1
    assert fleet.blobs == set()


# --- eviction -------------------------------------------------------------------------------------------


def test_expired_values_are_garbage(fleet: Fleet) -> None:
    fleet.cache.put("large", LARGE, expires_s=50.0)
    fleet.cache.put("small", 1, expires_s=50.0)
    fleet.cache.put("lasting", 1, expires_s=500.0)
    fleet.later(49.0)
    assert fleet.sweep().evicted == 0
    fleet.later(2.0)
    swept = fleet.sweep()
    assert (swept.expired, swept.values_bytes, swept.left) == (2, len(LARGE) + 1, 1)
    assert fleet.blobs == set()
    assert fleet.cell("large").value is None


def test_values_that_nobody_used_are_evicted_and_computed_anew(fleet: Fleet) -> None:
    uses = Uses(fleet.store, fleet.runtime)
    for key in ("used", "unused"):
        fleet.cache.put(key, LARGE)
    fleet.later(20 * HOUR_S)
    uses.note(record_name(KEYS, "used"))
    uses.flush()
    fleet.later(2 * HOUR_S)
    assert fleet.sweep(unused_for_s=23 * HOUR_S).evicted == 0
    swept = fleet.sweep(unused_for_s=12 * HOUR_S)
    assert (swept.unused, swept.left) == (1, 1)
    assert fleet.cache.get("used") == LARGE
    compute = Counted(LARGE)
    assert fleet.cache.get_or_compute("unused", compute) == LARGE
    assert compute.calls == 1


def test_the_least_recently_used_values_make_room_for_the_others(fleet: Fleet) -> None:
    uses = Uses(fleet.store, fleet.runtime)
    for key in ("a", "b", "c", "d"):
        fleet.cache.put(key, LARGE)
        fleet.later(HOUR_S)
    fleet.cache.put("small", "y" * 100)
    uses.note(record_name(KEYS, "a"))
    uses.flush()
    swept = fleet.sweep(max_size_bytes=2 * len(LARGE) + 1000)
    assert (swept.for_room, swept.left, swept.left_bytes) == (2, 3, 2 * len(LARGE) + 100)
    assert [key in fleet.cache for key in ("a", "b", "c", "d", "small")] == [True, False, False, True, True]
    assert len(fleet.blobs) == 2
    swept = fleet.sweep(max_size_bytes=0)
    assert (swept.for_room, swept.left, swept.left_bytes, len(fleet.blobs)) == (3, 0, 0, 0)


def test_a_value_that_is_being_recomputed_is_not_evicted(fleet: Fleet) -> None:
    fleet.cache.put("key", LARGE)

    def compute() -> bytes:
        swept = fleet.sweep(max_size_bytes=0, unused_for_s=0.0, grace_s=0.0)
        assert (swept.evicted, swept.left, swept.blobs) == (0, 1, 0)
        other = Elsewhere(cache_on(fleet.store, HandRuntime(fleet.runtime.clock)))
        assert other.get_or_compute("key", Counted(), stale_ok=True) == LARGE
        return b"new"

    assert fleet.cache.recompute("key", compute) == b"new"


def test_a_value_that_came_since_the_look_is_not_evicted() -> None:
    fleet = Fleet()
    fleet.cache.put("key", LARGE, expires_s=1.0)
    fleet.later(2.0)

    def put_again(kind: str, name: str) -> None:
        if kind == "swap" and name.startswith("keys/"):
            fleet.store.before = lambda kind, name: None
            fleet.cache.put("key", LARGE + b"2")

    fleet.store.before = put_again
    assert fleet.sweep().evicted == 0
    assert fleet.cache.get("key") == LARGE + b"2"


def test_a_value_that_somebody_began_to_recompute_since_the_look_is_not_evicted() -> None:
    fleet = Fleet()
    fleet.cache.put("key", LARGE, expires_s=1.0)
    fleet.later(2.0)
    other = Elsewhere(cache_on(fleet.store, HandRuntime(fleet.runtime.clock)))
    slots: list[Any] = []

    def begin(kind: str, name: str) -> None:
        if kind == "swap" and name.startswith("keys/"):
            fleet.store.before = lambda kind, name: None
            slot = other.once("key")
            slot.__enter__()
            slots.append(slot)

    fleet.store.before = begin
    assert fleet.sweep().evicted == 0
    assert slots[0].commit(b"new") == b"new"
    assert fleet.cache.get("key") == b"new", "its hold was not swept away"


def test_an_epoch_that_was_settled_since_the_look_is_not_ended() -> None:
    fleet = Fleet()
    with pytest.raises(ZeroDivisionError):
        fleet.cache.get_or_compute("key", Counted(1, ZeroDivisionError()))
    fleet.orphan("key", 0)
    fleet.later(HOUR_S + 1)

    def settle(kind: str, name: str) -> None:
        if kind == "swap" and name.startswith("keys/"):
            fleet.store.before = lambda kind, name: None
            Elsewhere(fleet.cache).get_or_compute("key", Counted("value"))

    fleet.store.before = settle
    fleet.sweep()
    assert fleet.cache.get("key") == "value"


def test_dry_run_changes_nothing_and_says_what_would_be_done(fleet: Fleet) -> None:
    fleet.cache.put("expired", LARGE, expires_s=1.0)
    fleet.cache.put("kept", LARGE)
    fleet.cache.put("twice", LARGE)
    fleet.cache.put("twice", LARGE)
    Uses(fleet.store, fleet.runtime).note("keys/kept")
    fleet.later(2 * HOUR_S)
    before = (dict(fleet.store._records), dict(fleet.store._blobs))
    options = {"max_size_bytes": len(LARGE), "unused_for_s": 100 * DAY_S}
    would = fleet.sweep(**options, dry_run=True)
    assert (dict(fleet.store._records), dict(fleet.store._blobs)) == before
    did = fleet.sweep(**options)
    assert would == did
    assert (did.expired, did.for_room, did.blobs, did.left) == (1, 1, 1, 1)


def test_code_versions_of_functions_stay() -> None:
    fleet = Fleet()
    cells = fleet.cache._cells
    name = record_name("functions", "module.f/abc")
    value = Value(1, "c", "json", 2, "", b"{}", expires_s=1.0)
    cells.write(name, cells.look(name, "module.f/abc"), table.put(Cell("module.f/abc"), value), 1.0)
    fleet.later(DAY_S)
    assert fleet.sweep(max_size_bytes=0, unused_for_s=0.0).evicted == 0
    assert cells.look(name, "module.f/abc").cell.value is not None


# --- uses -----------------------------------------------------------------------------------------------


def records_of_uses(fleet: Fleet) -> list[str]:
    return [listed.name for listed in fleet.store.scan("uses/")]


def test_uses_are_written_once_an_hour_and_at_the_end(fleet: Fleet) -> None:
    uses = Uses(fleet.store, fleet.runtime)
    sent = fleet.store.sent
    for _ in range(100):
        uses.note("keys/a")
    assert fleet.store.sent == sent
    fleet.later(HOUR_S)
    uses.note("keys/b")
    assert fleet.store.sent == sent + 1
    uses.note("keys/c")
    uses.flush()
    uses.flush()
    assert fleet.store.sent == sent + 2
    known = read_uses(fleet.store, fleet.runtime, DAY_S).idle_s
    assert set(known) == {prefix_of(f"keys/{key}") for key in "abc"}


def test_many_processes_that_use_the_same_values_write_one_record_each_window(fleet: Fleet) -> None:
    for _ in range(50):
        uses = Uses(fleet.store, fleet.runtime)
        for number in range(10):
            uses.note(f"keys/{number}")
        uses.flush()
    assert len(records_of_uses(fleet)) == 1


def test_what_one_process_remembers_and_writes_is_bounded(fleet: Fleet) -> None:
    uses = Uses(fleet.store, fleet.runtime)
    for number in range(2 * NAMES_MAX):
        uses.note(f"keys/{number}")
    uses.flush()
    for number in range(2 * NAMES_MAX):
        uses.note(f"keys/{number}/again")
    uses.flush()
    assert len(uses._noted) + len(uses._written) <= NAMES_MAX
    assert len(read_uses(fleet.store, fleet.runtime, DAY_S).idle_s) == NAMES_MAX
    records = [fleet.store.read(name) for name in records_of_uses(fleet)]
    assert max(len(record.data) for record in records if isinstance(record, dibs.store.Record)) <= 65536


def test_old_records_of_uses_are_removed(fleet: Fleet) -> None:
    uses = Uses(fleet.store, fleet.runtime)
    uses.note("keys/a")
    uses.flush()
    fleet.runtime.clock.HORIZON_S = 1e9
    fleet.later(89 * DAY_S)
    assert fleet.sweep().uses == 0
    fleet.later(2 * DAY_S)
    assert fleet.sweep(unused_for_s=100 * DAY_S).uses == 0
    assert fleet.sweep().uses == 1
    assert records_of_uses(fleet) == []


def test_a_store_that_is_away_or_read_only_loses_uses_and_nothing_else(fleet: Fleet) -> None:
    uses = Uses(fleet.store, fleet.runtime)
    uses.note("keys/a")
    fleet.store.down = True
    uses.flush()
    fleet.store.down = False
    looking = Uses(fleet.store, fleet.runtime, read_only=True)
    looking.note("keys/a")
    looking.flush()
    assert records_of_uses(fleet) == []


def test_damaged_records_of_uses_count_as_nothing(fleet: Fleet) -> None:
    fleet.store.swap("uses/1/0", None, b"garbage")
    assert read_uses(fleet.store, fleet.runtime, DAY_S).idle_s == {}
    assert fleet.sweep().evicted == 0


# --- on real stores, and from the command line ----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("500", 500), ("10G", 10 * 10**9), ("500M", 500 * 10**6), ("1.5TiB", 3 * 2**39), ("2 kB", 2000),
     ("1MiB", 2**20), ("3gb", 3 * 10**9)],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 30 * DAY_S), ("12h", 12 * HOUR_S), ("90m", 5400.0), ("45s", 45.0), ("1.5h", 5400.0)]
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "G", "10X", "-1", "1e9", "10 G B", "30d", "nan"])
def test_what_is_no_size_is_wrong_usage(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="500M"):
        size(text)


@pytest.mark.parametrize("text", ["", "30", "10G", "-1d", "soon", "1y"])
def test_what_is_no_duration_is_wrong_usage(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="30d"):
        duration(text)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DIBS_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.chdir(tmp_path)
    return str(tmp_path / "cache")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    from dibs.cli import main

    def run(*words: str) -> Ran:
        capsys.readouterr()
        status = main(words)
        return Ran(status, *capsys.readouterr())

    return run


def test_sweep_makes_room_in_a_folder_and_says_what_it_freed(run: Any, url: str) -> None:
    with dibs.open(url) as cache:
        for number in range(4):
            cache.put(f"large/{number}", bytes([number]) * 100_000)
        cache.put("gone", LARGE, expires_s=0.0)
        assert run("sweep", "--store", url, "--max-size", "250k", "--dry-run", "--json").data["for_room"] == 2
        assert len(list(cache.keys())) == 5
        told = run("sweep", "--store", url, "--max-size", "250k", "--json")
        assert told.status == 0
        assert (told.data["expired"], told.data["for_room"], told.data["left"]) == (1, 2, 2)
        assert told.data["freed_bytes"] == 250_000
        assert told.data["fits"]
        assert [f"large/{number}" in cache for number in range(4)] == [False, False, True, True]
    files = [path for path in (Path(url) / "blobs").rglob("*") if path.is_file()]
    assert len(files) == 2
    text = run("sweep", "--store", url).out
    assert "left    2 values: 200 kB" in text
    assert "\033" not in text


def test_sweep_ends_with_1_when_it_cannot_make_enough_room(run: Any, url: str) -> None:
    with dibs.open(url) as cache:
        cache.put("key", LARGE)

        def compute() -> int:
            ran = run("sweep", "--store", url, "--max-size", "0")
            assert ran.status == 1
            assert "50 kB are still taken" in ran.err
            return 1

        cache.recompute("key", compute)


def test_sweep_removes_what_a_killed_upload_left_in_a_folder(run: Any, url: str) -> None:
    with dibs.open(url) as cache:
        cache.put("key", 1)
    (Path(url) / "tmp").mkdir(exist_ok=True)
    (Path(url) / "tmp" / "0123456789abcdef").write_bytes(LARGE)
    told = run("sweep", "--store", url, "--json").data
    assert (told["leftovers"], told["leftovers_bytes"]) == (1, len(LARGE))
    assert list((Path(url) / "tmp").iterdir()) == []


@pytest.mark.parametrize("words", [["--max-size", "soon"], ["--unused-for", "30"], ["--max-size"], ["now"]])
def test_wrong_usage_of_sweep_ends_with_2(run: Any, url: str, words: list[str]) -> None:
    assert run("sweep", "--store", url, *words).status == 2


def test_a_missing_cache_is_not_made_and_a_read_only_one_not_swept(
    run: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("sweep", "--store", url).status == 3
    assert not Path(url).exists()
    dibs.open(url).close()
    monkeypatch.setenv("DIBS_READ_ONLY", "1")
    assert run("sweep", "--store", url).status == 2
    assert run("sweep", "--store", url, "--dry-run").status == 0


def test_sweep_makes_room_in_a_bucket(ministack_server: Any, s3_store: Any, runtime: Any) -> None:
    store = s3_store(ministack_server)
    cache = cache_on(store, runtime)
    for number in range(3):
        cache.put(f"large/{number}", LARGE)
    cache.put("small", 1)
    cache.put("large/0", LARGE + b"2")
    swept = sweep(cache._cells, store)
    assert (swept.waiting, swept.left, swept.blobs) == (1, 4, 0)
    swept = sweep(cache._cells, store, max_size_bytes=60_000, grace_s=0.0)
    assert (swept.blobs, swept.for_room, swept.left) == (1, 2, 2)
    assert len(list(store.scan_blobs("values/"))) == 1
    assert cache.get("small") == 1
    assert cache.get("large/2") == LARGE or cache.get("large/0") == LARGE + b"2"


def test_sweep_ends_uploads_of_dead_workers_in_a_bucket(ministack_server: Any, s3_store: Any, runtime: Any) -> None:
    store = s3_store(ministack_server)
    cache = cache_on(store, runtime)
    blob = blob_name(record_name(KEYS, "key"), 0, "abc")
    doing = store._doing("upload", "PutObject", "blobs/", blob)
    with store._clients.talking(doing):
        client = store._clients.bulk()
        pending = client.create_multipart_upload(Bucket=doing.bucket, Key=doing.key)
        client.upload_part(
            Bucket=doing.bucket, Key=doing.key, UploadId=pending["UploadId"], PartNumber=1, Body=b"x" * (5 << 20)
        )
    assert sweep(cache._cells, store, grace_s=0.0).leftovers == 0, "somebody may be at it"
    cache.get_or_compute("key", Counted(1))
    assert sweep(cache._cells, store).leftovers == 0, "it may be a put"
    assert sweep(cache._cells, store, grace_s=0.0, dry_run=True).leftovers == 1
    swept = sweep(cache._cells, store, grace_s=0.0)
    assert (swept.leftovers, swept.leftovers_bytes) == (1, 5 << 20)
    assert sweep(cache._cells, store, grace_s=0.0).leftovers == 0
    assert cache.get("key") == 1


def test_a_store_that_goes_away_ends_the_sweep_with_its_error() -> None:
    fleet = Fleet(remote=True)
    fleet.cache.put("key", LARGE)
    fleet.store.down = True
    with pytest.raises(StoreUnavailable):
        fleet.sweep()
