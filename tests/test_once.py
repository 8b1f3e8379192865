"""Each key is computed once: by whom, after which failures, and what everybody else gets.

Most of these run by hand: two caches on one store are two processes on two hosts, and time passes when one waits.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dibs.cache import Cache
from dibs.cell import Failures
from dibs.contend import leave, own_holds
from dibs.errors import (
    CodecError,
    ComputeFailed,
    LockLost,
    SettingsError,
    StoreUnavailable,
    WaitCircle,
    WaitTimeout,
)
from dibs.names import KEYS, record_name
from dibs.once import Ask
from dibs.runtime.system import SystemRuntime
from dibs.store import Record
from dibs.stores.local import LocalStore
from dibs.stores.memory import MemoryStore
from tests.fakes import Counted, Elsewhere, FaultyStore, HandRuntime, cache_on, crowd, in_thread, until

NAME = record_name(KEYS, "key")
LARGE = b"x" * 50_000


@pytest.fixture(autouse=True)
def own_flow() -> Iterator[None]:
    """Each test is a flow of its own: it leaves no holds to the next."""
    yield
    for hold in own_holds():
        leave(hold)


class Fleet:
    """Caches of several processes on several hosts, on one store and one clock."""

    def __init__(self, **settings: Any) -> None:
        self.runtime = HandRuntime()
        self.clock = self.runtime.clock
        self.memory = MemoryStore(self.runtime)
        self.settings = settings
        self.store = FaultyStore(self.memory)
        self.cache = cache_on(self.store, self.runtime, **settings)

    def another(self, **settings: Any) -> Cache:
        """The cache of another process, on another host."""
        return Elsewhere(cache_on(self.memory, HandRuntime(self.clock), **{**self.settings, **settings}))  # type: ignore[return-value]

    def alive(self, *caches: Cache) -> None:
        """From now on the heart of these caches beats once a second."""
        for cache in caches:
            self.clock.every(1.0, lambda cache=cache: [hold.keep() for hold in cache._heartbeat.living()])

    def cell(self, key: str = "key") -> Any:
        return self.another()._cells.look(record_name(KEYS, key), key).cell


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def threads(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache whose threads are real ones."""
    runtime = SystemRuntime(runtime_dir=str(tmp_path_factory.mktemp("runtime")))
    return cache_on(MemoryStore(runtime), runtime)


# -- one computation ---------------------------------------------------------------------------------------------


def test_the_second_asker_gets_the_value_of_the_first(fleet: Fleet) -> None:
    compute = Counted({"a": [1]})
    assert fleet.cache.get_or_compute("key", compute) == {"a": [1]}
    assert fleet.cache.get_or_compute("key", compute) == {"a": [1]}
    assert fleet.another().get_or_compute("key", compute) == {"a": [1]}
    assert compute.calls == 1


@pytest.mark.parametrize("value", [b"inline", LARGE], ids=["inline", "blob"])
def test_threads_that_ask_at_once_share_one_computation_and_get_their_own_copies(threads: Cache, value: bytes) -> None:
    everybody_asks = threading.Event()
    calls: list[int] = []

    def compute() -> list[Any]:
        calls.append(1)
        everybody_asks.wait(0.2)
        return [value.decode()]

    results = crowd(8, lambda number: threads.get_or_compute("key", compute))
    assert results == [[value.decode()]] * 8
    assert len(calls) == 1
    assert len({id(result) for result in results}) == 8, "nobody can spoil another's copy"


def test_threads_of_two_caches_on_one_store_compute_once(threads: Cache) -> None:
    other = cache_on(threads._store, threads._runtime)
    calls: list[int] = []
    pause = threading.Event()

    def compute() -> str:
        calls.append(1)
        pause.wait(0.1)
        return "value"

    results = crowd(6, lambda number: (threads, other)[number % 2].get_or_compute("key", compute))
    assert results == ["value"] * 6 and len(calls) == 1


def test_a_waiter_gets_the_value_when_it_is_committed(fleet: Fleet) -> None:
    waiter = fleet.another()
    with fleet.cache.once("key") as slot:
        fleet.alive(fleet.cache)
        fleet.clock.after(200.0, lambda: slot.commit("theirs"))
        compute = Counted()
        assert waiter.get_or_compute("key", compute) == "theirs"
    assert compute.calls == 0


def test_a_waiter_of_a_silent_holder_takes_over_after_the_ttl_and_a_tenth(fleet: Fleet) -> None:
    waiter = fleet.another()
    with fleet.cache.once("key"):
        began = fleet.clock.now
        assert waiter.get_or_compute("key", Counted("mine")) == "mine"
        assert 66.0 <= fleet.clock.now - began <= 75.0
    assert fleet.cell().failures is None


def test_a_waiter_of_a_dead_holder_takes_over_at_once_and_the_death_is_counted(fleet: Fleet) -> None:
    waiter = fleet.another()
    with fleet.cache.once("key"):
        waiter._runtime.dead[fleet.runtime.process()] = "beacon free"
        began = fleet.clock.now
        with waiter.once("key") as slot:
            assert fleet.clock.now - began < 0.5
            assert fleet.cell().failures == Failures(0, 1, "", fleet.cell().failures.by)
            slot.commit("mine")


def test_a_late_worker_returns_the_committed_value_and_not_its_own(fleet: Fleet) -> None:
    rival = fleet.another()

    def slow() -> str:
        fleet.clock.sleep(100.0)
        assert rival.get_or_compute("key", Counted("rival's")) == "rival's"
        return "late"

    assert fleet.cache.get_or_compute("key", slow) == "rival's"
    assert fleet.cache.stats().adopted == 1


def test_a_late_worker_whose_rival_still_computes_publishes_and_the_rival_adopts(fleet: Fleet) -> None:
    rival = fleet.another()

    def slow() -> str:
        fleet.clock.sleep(100.0)
        slots.append(rival.once("key"))
        slots[0].__enter__()
        return "late"

    slots: list[Any] = []
    assert fleet.cache.get_or_compute("key", slow) == "late"
    assert slots[0].commit("rival's") == "late"
    assert fleet.another().get("key") == "late"


# -- failures ----------------------------------------------------------------------------------------------------


def test_a_failing_computation_raises_here_and_the_next_asker_tries(fleet: Fleet) -> None:
    compute = Counted("value", ZeroDivisionError("first"))
    with pytest.raises(ZeroDivisionError, match="first"):
        fleet.cache.get_or_compute("key", compute)
    assert fleet.another().get_or_compute("key", compute) == "value"
    assert compute.calls == 2
    assert fleet.cell().failures is None, "a success clears the failures"


def test_a_waiter_takes_its_turn_when_the_holder_fails(fleet: Fleet) -> None:
    waiter = fleet.another()
    fleet.alive(fleet.cache)
    slot = fleet.cache.once("key").__enter__()
    fleet.clock.after(5.0, lambda: slot.__exit__(OSError, OSError("planned"), None))
    compute = Counted("mine")
    assert waiter.get_or_compute("key", compute) == "mine"
    assert compute.calls == 1


def test_after_failures_max_everybody_gets_the_remote_traceback_and_nobody_computes() -> None:
    fleet = Fleet(failures_max=2)
    for number in range(2):
        with pytest.raises(ValueError, match="planned"):
            fleet.another().get_or_compute("key", Counted("", ValueError(f"planned {number}")))
    compute = Counted()
    for cache in (fleet.cache, fleet.another()):
        with pytest.raises(ComputeFailed) as caught:
            cache.get_or_compute("key", compute)
    assert compute.calls == 0
    assert (caught.value.failures, caught.value.deaths) == (2, 0)
    assert "ValueError: planned 1" in caught.value.traceback and "in __call__" in caught.value.traceback
    assert "host" in caught.value.by and "forget" in str(caught.value)


def test_threads_of_one_flight_that_fails_take_turns_up_to_failures_max(threads: Cache) -> None:
    compute = Counted("never", *[ValueError("planned") for _ in range(9)])
    results = crowd(6, lambda number: threads.get_or_compute("key", compute))
    assert compute.calls == 3
    assert sorted(type(result).__name__ for result in results) == ["ComputeFailed"] * 3 + ["ValueError"] * 3


def failed(fleet: Fleet) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="planned"):
            fleet.cache.get_or_compute("key", Counted("", ValueError("planned")))


def test_after_retry_after_s_without_an_attempt_one_more_is_made(fleet: Fleet) -> None:
    failed(fleet)
    fleet.clock.sleep(59.0)
    with pytest.raises(ComputeFailed):
        fleet.cache.get_or_compute("key", Counted())
    fleet.clock.sleep(2.0)
    with pytest.raises(ValueError, match="planned"):
        fleet.cache.get_or_compute("key", Counted("", ValueError("planned")))
    with pytest.raises(ComputeFailed):
        fleet.another().get_or_compute("key", Counted())
    fleet.clock.sleep(61.0)
    assert fleet.cache.get_or_compute("key", Counted()) == "value"


@pytest.mark.parametrize("how", ["forget", "recompute", "put"])
def test_forget_recompute_and_put_give_a_failed_key_another_chance(fleet: Fleet, how: str) -> None:
    failed(fleet)
    match how:
        case "forget":
            fleet.cache.forget("key")
        case "recompute":
            assert fleet.cache.recompute("key", Counted()) == "value"
        case _:
            fleet.cache.put("key", "value")
    assert fleet.cache.get_or_compute("key", Counted()) == "value"


def test_a_key_that_kills_its_workers_is_given_up_after_deaths_max() -> None:
    fleet = Fleet(deaths_max=3)
    dead: dict[str, str] = {}
    for _ in range(3):
        victim = fleet.another()
        victim._runtime.dead = dead
        assert not victim.once("key").__enter__().done
        dead[victim._runtime.process()] = "beacon free"
    fleet.runtime.dead = dead
    compute = Counted()
    with pytest.raises(ComputeFailed) as caught:
        fleet.cache.get_or_compute("key", compute)
    assert compute.calls == 0 and caught.value.deaths == 3


NO_FAILURES: list[BaseException] = [
    KeyboardInterrupt(), SystemExit(1), MemoryError(), asyncio.CancelledError(), concurrent.futures.CancelledError(),
    StoreUnavailable("planned"), LockLost("planned"), WaitTimeout("planned"), GeneratorExit(),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_FAILURES, ids=lambda error: type(error).__name__)
def test_what_only_stops_a_computation_is_no_failure_of_the_key_and_frees_it(
    fleet: Fleet, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        fleet.cache.get_or_compute("key", Counted("", error))
    cell = fleet.cell()
    assert cell.hold is None and cell.failures is None
    assert fleet.another().get_or_compute("key", Counted()) == "value"


# -- values that change under a computation ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["put", "forget"])
@pytest.mark.parametrize("value", ["late", LARGE], ids=["inline", "blob"])
def test_the_value_of_a_late_worker_is_its_callers_only(fleet: Fleet, how: str, value: Any) -> None:
    other = fleet.another()

    def compute() -> Any:
        other.put("key", "stated") if how == "put" else other.forget("key")
        return value

    assert fleet.cache.get_or_compute("key", compute) == value
    assert fleet.another().get("key") == ("stated" if how == "put" else None)
    assert fleet.cache.stats().refused == 1
    assert not [name for name in fleet.memory._blobs if "key" in name], "nothing is left lying about"


def test_a_recompute_replaces_the_value_for_everybody(fleet: Fleet) -> None:
    fleet.cache.put("key", "old")
    assert fleet.another().recompute("key", Counted("new")) == "new"
    assert fleet.cache.get("key") == "new"


def test_a_recompute_joins_the_one_that_is_running(fleet: Fleet) -> None:
    fleet.cache.put("key", "old")
    joiner, compute = fleet.another(), Counted("joiner's")
    fleet.alive(fleet.cache)
    running = fleet.cache._once
    hold: Any = running.open_slot("key", Ask(recompute=True))
    fleet.clock.after(3.0, lambda: running.publish(NAME, hold, "new", Ask()))
    assert joiner.recompute("key", compute) == "new"
    assert compute.calls == 0


def test_stale_ok_readers_get_the_old_value_while_somebody_computes_a_new_one(fleet: Fleet) -> None:
    fleet.cache.put("key", "old")
    seen: list[Any] = []

    def compute() -> str:
        reader = fleet.another()
        seen.append(reader.get_or_compute("key", Counted("never"), stale_ok=True))
        with pytest.raises(WaitTimeout):
            reader.get_or_compute("key", Counted("never"), wait_s=1.0)
        return "new"

    assert fleet.cache.recompute("key", compute) == "new"
    assert seen == ["old"]
    assert fleet.another().get_or_compute("key", Counted("never"), stale_ok=True) == "new"


def test_stale_ok_computes_when_nobody_else_does(fleet: Fleet) -> None:
    fleet.cache.put("key", "old", expires_s=1.0)
    fleet.clock.sleep(2.0)
    assert fleet.cache.get_or_compute("key", Counted("new"), stale_ok=True) == "new"


def test_stale_ok_readers_take_over_from_a_holder_that_died(fleet: Fleet) -> None:
    fleet.cache.put("key", "old", expires_s=1.0)
    fleet.clock.sleep(2.0)
    fleet.another().once("key").__enter__()  # and dies
    reader, compute = fleet.another(), Counted("new")
    for _ in range(20):
        reader.get_or_compute("key", compute, stale_ok=True)
        fleet.clock.sleep(60.0)
    assert compute.calls == 1


def test_a_stale_reader_of_a_missing_blob_does_not_disturb_the_recomputation(fleet: Fleet) -> None:
    fleet.cache.put("key", LARGE)

    def compute() -> str:
        fleet.memory._blobs.clear()
        with pytest.raises(WaitTimeout):
            fleet.another().get_or_compute("key", Counted("reader's"), stale_ok=True, wait_s=1.0)
        return "new"

    fleet.cache.recompute("key", compute)
    assert fleet.another().get("key") == "new"


def test_an_expired_value_is_a_miss_and_is_computed_anew(fleet: Fleet) -> None:
    compute = Counted()
    fleet.cache.get_or_compute("key", compute, expires_s=10.0)
    fleet.clock.sleep(9.0)
    assert fleet.another().get("key") == "value" and "key" in fleet.cache
    fleet.clock.sleep(1.0)
    assert fleet.another().get("key") is None and "key" not in fleet.cache
    fleet.cache.get_or_compute("key", compute)
    assert compute.calls == 2
    fleet.clock.sleep(1e4)
    assert fleet.cache.get("key") == "value", "this one doesn't expire"


def test_a_failing_recomputation_raises_and_a_stale_value_survives_in_the_cell(fleet: Fleet) -> None:
    fleet.cache.put("key", "old")
    with pytest.raises(ValueError, match="planned"):
        fleet.cache.recompute("key", Counted("", ValueError("planned")))
    assert fleet.cell().value.inline == b"old"


def test_nobody_gets_a_value_that_was_forgotten_before_it_asked(threads: Cache) -> None:
    # Given a thread that has committed a value and is still busy with its last words
    committed, go_on = threading.Event(), threading.Event()

    def linger(event: Any) -> None:
        if event.kind == "committed" and not committed.is_set():
            committed.set()
            go_on.wait(10.0)

    threads.on_event(linger)
    with in_thread(lambda: threads.get_or_compute("key", Counted("forgotten"))):
        assert committed.wait(10.0)
        # when another forgets the key, and asks for it then
        threads.forget("key")
        with in_thread(lambda: threads.get_or_compute("key", Counted("new"))) as asked:
            until(lambda: threads.stats().misses == 2)
            threading.Event().wait(0.05)
            go_on.set()
    # then it gets a new value.
    assert asked == ["new"]


# -- waiting and circles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait_s", [0.0, 0.3, 5.0, 40.0])
def test_wait_s_is_honoured_and_the_error_says_for_whom(fleet: Fleet, wait_s: float) -> None:
    waiter = fleet.another()
    fleet.alive(fleet.cache)
    with fleet.cache.once("key"):
        began = fleet.clock.now
        with pytest.raises(WaitTimeout, match=rf"'key'.*{fleet.runtime.host} pid") as caught:
            waiter.get_or_compute("key", Counted(), wait_s=wait_s)
        assert wait_s <= fleet.clock.now - began <= wait_s + 0.1
    assert isinstance(caught.value, TimeoutError)


def test_a_thread_that_follows_another_honours_its_wait_s(threads: Cache) -> None:
    computing, go_on = threading.Event(), threading.Event()

    def compute() -> str:
        computing.set()
        go_on.wait(10.0)
        return "value"

    with in_thread(lambda: threads.get_or_compute("key", compute)) as results:
        assert computing.wait(10.0)
        with pytest.raises(WaitTimeout, match="another thread"):
            threads.get_or_compute("key", compute, wait_s=0.05)
        go_on.set()
    assert results == ["value"]


def test_an_outage_while_waiting_is_outlived(fleet: Fleet) -> None:
    waiter = fleet.cache
    holder = fleet.another()
    fleet.alive(holder)
    with holder.once("key") as slot:
        fleet.clock.after(2.0, lambda: setattr(fleet.store, "down", True))
        fleet.clock.after(20.0, lambda: setattr(fleet.store, "down", False))
        fleet.clock.after(30.0, lambda: slot.commit("value"))
        assert waiter.get_or_compute("key", Counted()) == "value"


def nested(cache: Cache, *keys: str) -> Any:
    """Compute each key by asking for the next."""
    return cache.get_or_compute(keys[0], lambda: nested(cache, *keys[1:]) if len(keys) > 1 else "value")


@pytest.mark.parametrize(
    "keys",
    [
        ("a", "a"),
        ("a", "b", "a"),
        ("a", "b", "c", "b"),
    ],
    ids="-".join,
)
def test_a_circle_in_one_thread_is_an_error_that_names_the_keys(fleet: Fleet, keys: tuple[str, ...]) -> None:
    with pytest.raises(WaitCircle) as caught:
        nested(fleet.cache, *keys)
    assert set(caught.value.keys) == set(keys[keys.index(keys[-1]) :])
    assert all(fleet.cell(key).hold is None and fleet.cell(key).failures is None for key in keys), "and no failure"


def test_a_computation_may_ask_for_other_keys(fleet: Fleet) -> None:
    assert nested(fleet.cache, "a", "b", "c") == "value"
    assert [fleet.cache.get(key) for key in "abc"] == ["value"] * 3


@pytest.mark.parametrize("processes", [1, 2], ids=["two threads", "two processes"])
def test_a_circle_of_two_workers_is_an_error_for_one_and_the_other_goes_on(threads: Cache, processes: int) -> None:
    caches = [threads, threads if processes == 1 else cache_on(threads._store, threads._runtime)]
    both = threading.Barrier(2)

    def worker(number: int) -> Any:
        mine, other = ("a", "b")[number], ("b", "a")[number]

        def compute() -> str:
            both.wait(10.0)
            return f"{mine}+{caches[number].get_or_compute(other, lambda: other)}"

        return caches[number].get_or_compute(mine, compute)

    results = crowd(2, worker)
    circles = [result for result in results if isinstance(result, WaitCircle)]
    assert circles, results
    assert all(set(circle.keys) == {"a", "b"} for circle in circles)
    assert len(circles) == 2 or any(isinstance(result, str) for result in results)


def test_the_same_key_in_another_store_is_no_circle(fleet: Fleet) -> None:
    # Given a front cache whose computation asks a second store for the same key, which somebody else computes there
    back = Fleet()
    holder = Elsewhere(cache_on(back.memory, HandRuntime(fleet.clock)))
    fleet.alive(holder)
    front, behind = fleet.cache, cache_on(back.memory, fleet.runtime)
    with holder.once("key") as slot:
        fleet.clock.after(1.0, lambda: slot.commit("from behind"))
        # then it waits for it, as it would for any other key.
        assert front.get_or_compute("key", lambda: behind.get_or_compute("key", Counted())) == "from behind"


def test_a_wait_in_another_store_is_not_told_to_this_one(fleet: Fleet) -> None:
    back = Fleet()
    holder = Elsewhere(cache_on(back.memory, HandRuntime(fleet.clock)))
    fleet.alive(holder, fleet.cache)
    told: list[str | None] = []
    behind = cache_on(back.memory, fleet.runtime)
    with holder.once("other") as slot:
        fleet.clock.after(4.0, lambda: told.append(fleet.cell().hold.waits_for))
        fleet.clock.after(5.0, lambda: slot.commit("from behind"))
        fleet.cache.get_or_compute("key", lambda: behind.get_or_compute("other", Counted()))
    assert told == [None]


def test_a_waiting_holder_tells_what_it_waits_for_and_takes_it_back(fleet: Fleet) -> None:
    holder = fleet.another()
    fleet.alive(holder, fleet.cache)
    told: list[str | None] = []
    with holder.once("inner") as slot:
        fleet.clock.after(4.0, lambda: told.append(fleet.cell("outer").hold.waits_for))
        fleet.clock.after(5.0, lambda: slot.commit("value"))

        def compute() -> Any:
            value = fleet.cache.get_or_compute("inner", Counted())
            fleet.clock.sleep(2.0)
            told.append(fleet.cell("outer").hold.waits_for)
            return value

        fleet.cache.get_or_compute("outer", compute)
    assert told == ["keys/inner", None]


# -- trouble with the store and with values ----------------------------------------------------------------------


def test_a_value_that_cannot_be_stored_comes_with_the_error_and_leaves_no_hold(fleet: Fleet) -> None:
    value = [threading.Lock()]
    with pytest.raises(CodecError) as caught:
        fleet.cache.get_or_compute("key", Counted(value))
    assert caught.value.value is value
    assert fleet.cell().hold is None and fleet.cell().failures is None


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), ValueError("numpy")], ids=repr)
def test_whatever_the_codec_raises_leaves_no_hold(fleet: Fleet, error: BaseException) -> None:
    def refuse(value: Any) -> Any:
        raise error

    fleet.cache._values._codec.encode = refuse  # type: ignore[method-assign]
    with pytest.raises((type(error), CodecError)):
        fleet.cache.get_or_compute("key", Counted())
    assert fleet.cell().hold is None


@pytest.mark.parametrize("value", ["small", LARGE], ids=["inline", "blob"])
def test_when_the_store_fails_at_the_commit_the_caller_gets_the_value_and_an_event(fleet: Fleet, value: Any) -> None:
    def compute() -> Any:
        fleet.store.down = True
        return value

    assert fleet.cache.get_or_compute("key", compute) == value
    assert fleet.cache.stats().unpublished == 1
    fleet.store.down = False
    assert fleet.cache.get("key") is None


def test_when_only_the_upload_fails_the_hold_is_given_up(fleet: Fleet) -> None:
    fleet.store.blobs_down = True
    assert fleet.cache.get_or_compute("key", Counted(LARGE)) == LARGE
    assert fleet.cell().hold is None and fleet.cache.stats().unpublished == 1


def test_a_refused_value_reaches_its_caller_although_its_blob_cannot_be_removed(fleet: Fleet) -> None:
    other = fleet.another()

    def remove(name: str) -> None:
        raise StoreUnavailable("503")

    def compute() -> bytes:
        other.forget("key")
        fleet.store.remove = remove  # type: ignore[method-assign]
        return LARGE

    assert fleet.cache.get_or_compute("key", compute) == LARGE


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_missing_or_damaged_blob_is_reported_and_healed_by_computing_anew(fleet: Fleet, damage: str) -> None:
    fleet.cache.put("key", LARGE)
    (name,) = fleet.memory._blobs
    if damage == "missing":
        del fleet.memory._blobs[name]
    else:
        fleet.memory.upload(name, io.BytesIO(LARGE[:-1] if damage == "truncated" else b"y" + LARGE[1:]))
    compute = Counted(LARGE)
    reader = fleet.another()
    assert reader.get("key", "missing") == "missing"
    assert reader.stats().healed == 1
    assert reader.get_or_compute("key", compute) == LARGE
    assert fleet.cache.get("key") == LARGE and compute.calls == 1


def test_a_damaged_record_is_a_miss_that_heals(fleet: Fleet) -> None:
    fleet.cache.put("key", "old")
    record = fleet.memory.read(NAME)
    assert isinstance(record, Record)
    fleet.memory.swap(NAME, record.version, record.data[:40])
    assert fleet.cache.get_or_compute("key", Counted("new")) == "new"
    assert fleet.another().get("key") == "new" and fleet.cache.stats().healed == 1


def test_on_unavailable_raise_is_the_default_and_compute_works_without_the_store() -> None:
    for how in ("raise", "compute"):
        fleet = Fleet(on_unavailable=how)
        fleet.store.down = True
        compute = Counted()
        if how == "raise":
            with pytest.raises(StoreUnavailable):
                fleet.cache.get_or_compute("key", compute)
        else:
            assert fleet.cache.get_or_compute("key", compute) == "value"
            assert fleet.cache.stats().unpublished == 1
        assert compute.calls == (how == "compute")


def test_a_computation_that_raises_store_unavailable_runs_once_and_its_error_arrives() -> None:
    fleet = Fleet(on_unavailable="compute")
    compute = Counted("second time", StoreUnavailable("of another store"))
    with pytest.raises(StoreUnavailable, match="another store"):
        fleet.cache.get_or_compute("key", compute)
    assert compute.calls == 1


@pytest.mark.parametrize("progress", ["nan", "numpy"])
def test_odd_progress_does_not_cost_the_hold(fleet: Fleet, progress: str) -> None:
    import numpy

    fleet.alive(fleet.cache)
    with fleet.cache.once("key") as slot:
        slot.beat(progress=float("nan") if progress == "nan" else numpy.float64(0.5))
        fleet.clock.sleep(2.0)
        assert fleet.cell().hold is not None
        assert slot.commit("value") == "value"
    assert fleet.another().get("key") == "value"


def test_a_ttl_that_is_a_numpy_number_is_a_number() -> None:
    import numpy

    fleet = Fleet(ttl_s=numpy.float64(30.0))
    with fleet.cache.once("key"):
        assert fleet.cell().hold is not None


def test_a_key_with_lone_surrogates_is_refused_clearly(fleet: Fleet) -> None:
    with pytest.raises(SettingsError, match="surrogates"):
        fleet.cache.put("\ud83d\ude00", "value")


def test_no_record_outgrows_its_limit(fleet: Fleet) -> None:
    from dibs.store import INLINE_SIZE_MAX, RECORD_SIZE_MAX

    key = "😀" * 1024
    fleet.cache.put(key, b"x" * INLINE_SIZE_MAX)
    with pytest.raises(ValueError, match="😀"):
        fleet.cache.recompute(key, Counted("", ValueError("😀" * 8000)))
    assert max(len(kept.data) for kept in fleet.memory._records.values()) <= RECORD_SIZE_MAX


def test_ingredients_are_asked_for_once_and_only_when_a_value_is_published(fleet: Fleet) -> None:
    ingredients = Counted(b'{"source": ["ab", "def f"]}')
    ask = Ask(ingredients=ingredients)
    with pytest.raises(ValueError, match="planned"):
        fleet.cache._once.get_or_compute("key", Counted("", ValueError("planned")), ask)
    assert ingredients.calls == 0
    for cache in (fleet.cache, fleet.another()):
        assert cache._once.get_or_compute("key", Counted(), ask) == "value"
    assert ingredients.calls == 1
    assert fleet.cell().value.ingredients == b'{"source": ["ab", "def f"]}'


def test_a_codec_that_is_asked_for_is_the_one_that_is_used(fleet: Fleet) -> None:
    assert fleet.cache._once.get_or_compute("key", Counted("value"), Ask(codec="pickle")) == "value"
    assert fleet.cell().value.codec == "pickle"
    assert fleet.another().get("key") == "value"


@pytest.mark.parametrize("count", [2_000, 300_000], ids=["shared in memory", "loaded from the store"])
def test_a_follower_gets_what_was_published_although_the_leaders_caller_changes_it_at_once(
    threads: Cache, count: int
) -> None:
    # Given a leader whose caller fills the array that it got with other numbers as soon as it has it
    import numpy

    computing, go_on = threading.Event(), threading.Event()

    def compute() -> Any:
        computing.set()
        go_on.wait(10.0)
        return numpy.zeros(count)

    def lead() -> None:
        threads.get_or_compute("key", compute).fill(7.0)

    with in_thread(lead), in_thread(lambda: threads.get_or_compute("key", compute)) as followed:
        assert computing.wait(10.0)
        until(lambda: threads.stats().misses == 2)
        threading.Event().wait(0.05)
        go_on.set()
    # then its followers get the zeros that were published.
    assert not followed[0].any() and threads.stats().computed == 1


def test_a_stale_ok_reader_of_the_same_process_does_not_wait_for_the_recomputation(threads: Cache) -> None:
    threads.put("key", "old")
    computing, go_on = threading.Event(), threading.Event()

    def compute() -> str:
        computing.set()
        go_on.wait(10.0)
        return "new"

    with in_thread(lambda: threads.recompute("key", compute)) as results:
        assert computing.wait(10.0)
        assert threads.get_or_compute("key", Counted("never"), stale_ok=True) == "old"
        go_on.set()
    assert results == ["new"]


# -- the block form ----------------------------------------------------------------------------------------------


def test_the_block_form_computes_and_publishes_and_then_finds(fleet: Fleet) -> None:
    with fleet.cache.once("key") as slot:
        assert not slot.done and slot.held and slot.generation == 1
        with pytest.raises(LookupError, match="commit"):
            _ = slot.value
        slot.beat(progress=0.5)
        slot.check()
        assert slot.commit("value") == "value" == slot.value
        assert slot.done
    with fleet.another().once("key") as slot:
        assert slot.done and slot.value == "value" and slot.generation == 0


def test_leaving_the_block_without_a_commit_frees_the_key_politely(fleet: Fleet) -> None:
    with fleet.cache.once("key"):
        pass
    assert fleet.cell().hold is None and fleet.cell().failures is None


def test_an_exception_of_the_block_is_a_failure_of_the_key(fleet: Fleet) -> None:
    with pytest.raises(ValueError, match="planned"), fleet.cache.once("key"):
        raise ValueError("planned")
    assert fleet.cell().failures.failures == 1 and "planned" in fleet.cell().failures.error


def test_an_exception_after_the_commit_is_no_failure(fleet: Fleet) -> None:
    def block() -> None:
        with fleet.cache.once("key") as slot:
            slot.commit("value")
            raise ValueError("planned")

    with pytest.raises(ValueError, match="planned"):
        block()
    assert fleet.cache.get("key") == "value" and fleet.cell().failures is None


def test_a_commit_adopts_the_value_of_a_rival_who_was_faster(fleet: Fleet) -> None:
    with fleet.cache.once("key") as slot:
        fleet.clock.sleep(100.0)
        fleet.another().get_or_compute("key", Counted("rival's"))
        assert slot.commit("mine") == "rival's" == slot.value


def test_a_check_in_the_block_raises_when_the_key_was_taken_over(fleet: Fleet) -> None:
    rival = fleet.another()

    def block() -> None:
        with fleet.cache.once("key") as slot:
            fleet.clock.sleep(100.0)
            rival.once("key").__enter__()
            slot.check()

    with pytest.raises(LockLost, match="taken over"):
        block()
    assert fleet.cell().hold.who.host == rival._runtime.host, "the rival's hold stands"
    assert fleet.cell().failures.failures == 0


@pytest.mark.parametrize("what", ["commit", "check", "beat"])
def test_a_slot_that_is_done_can_be_neither_committed_nor_beaten(fleet: Fleet, what: str) -> None:
    fleet.cache.put("key", "value")
    with fleet.cache.once("key") as slot, pytest.raises(LockLost):
        slot.commit("other") if what == "commit" else getattr(slot, what)()


# -- counts ------------------------------------------------------------------------------------------------------


def test_events_tell_the_story_of_a_key_in_order(fleet: Fleet) -> None:
    kinds: list[str] = []
    fleet.cache.on_event(lambda event: kinds.append(event.kind))
    fleet.cache.get_or_compute("key", Counted())
    fleet.cache.get("key")
    fleet.cache.forget("key")
    assert kinds == ["miss", "claimed", "computed", "committed", "hit", "forgotten"]


def test_a_callback_that_raises_disturbs_nobody(fleet: Fleet) -> None:
    fleet.cache.on_event(lambda event: 1 / 0)
    assert fleet.cache.get_or_compute("key", Counted()) == "value"


def test_stats_count_what_was_done_and_saved(fleet: Fleet) -> None:
    def compute() -> str:
        fleet.clock.sleep(7.0)
        return "value"

    fleet.cache.get_or_compute("key", compute)
    for _ in range(3):
        fleet.cache.get_or_compute("key", compute)
    stats = fleet.cache.stats()
    assert (stats.misses, stats.computed, stats.committed, stats.hits) == (1, 1, 1, 3)
    assert stats.computed_s == pytest.approx(7.0) and stats.saved_s == pytest.approx(21.0)


def test_a_wait_that_ends_with_the_others_value_is_counted_with_its_time(fleet: Fleet) -> None:
    waiter = fleet.another()
    fleet.alive(fleet.cache)
    with fleet.cache.once("key") as slot:
        fleet.clock.after(10.0, lambda: slot.commit("value"))
        waiter.get_or_compute("key", Counted())
    assert waiter.stats().waits == 1
    assert 9.0 < waiter.stats().waited_s < 12.0


def test_take_overs_and_waits_for_them_are_counted(fleet: Fleet) -> None:
    waiter = fleet.another()
    with fleet.cache.once("key"):
        waiter.get_or_compute("key", Counted())
    assert (waiter.stats().takeovers, waiter.stats().waits) == (1, 1)


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_values_expire_and_failures_are_retried_while_the_machine_is_suspended(tmp_path: Path, kind: str) -> None:
    runtime = HandRuntime()
    store = LocalStore(str(tmp_path / "cache"), runtime) if kind == "folder" else MemoryStore(runtime)
    asleep, awake = cache_on(store, runtime, failures_max=1, retry_after_s=60.0), cache_on(store, runtime)
    asleep.put("key", "value", expires_s=60.0)
    with pytest.raises(ZeroDivisionError):
        asleep.get_or_compute("failing", lambda: 1 // 0)
    with pytest.raises(ComputeFailed):
        asleep.get_or_compute("failing", lambda: 1)
    assert [asleep.get("key"), asleep.get("key")] == ["value", "value"]
    runtime.suspended_s += 100.0
    assert asleep.get("key") is None, "although it has read and kept the record before"
    assert awake.get("key") is None
    assert asleep.get_or_compute("failing", lambda: 1) == 1
