"""The simulator itself, shown with toys: what it promises to the code in it, and that verdicts see."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("greenlet")

from dibs.errors import Conflict, StoreUnavailable
from dibs.store import Record
from dibs.testing.simulator import History, Rates, Settings, Strikes, World, drawn
from dibs.testing.simulator.scheduler import Disposed
from dibs.testing.verdicts import violations
from dibs.testing.workloads import Worker

CALM = Settings(workers=1, hosts=1, latency_s=0.02, request_timeout_s=1.0)


class Toy:
    """A workload of one function, with nothing to do afterwards."""

    def __init__(self, work: Callable[[Worker], None]) -> None:
        self.work = work

    def afterwards(self, worker: Worker) -> None:
        pass


def run(work: Callable[[Worker], None], settings: Settings = CALM, seed: int = 1) -> History:
    return World(seed, settings, Toy(work)).run()


def told(history: History, what: str) -> list[Any]:
    return [entry.get("value") for entry in history.of(what)]


def look(worker: Worker, name: str) -> Record | None:
    record = worker.store.read(name)
    assert record is None or isinstance(record, Record)
    return record


def count_to(goal: int) -> Callable[[Worker], None]:
    """Workers count in one record, by compare-and-swap, each `goal` times."""

    def work(worker: Worker) -> None:
        todo = worker.memory.setdefault("todo", list(range(goal)))
        while todo:
            worker.runtime.sleep(worker.chance.random() * 5)
            try:
                record = look(worker, "count")
                number = int(record.data.split()[0]) + 1 if record else 1
                nonce = worker.runtime.token().encode()
                worker.store.swap("count", record.version if record else None, b"%d %s" % (number, nonce))
            except (Conflict, StoreUnavailable):
                continue
            worker.record("counted", value=number)
            todo.pop()

    return work


# --- same seed, same history ----------------------------------------------------------------------------

REPLAY = """
from dibs.testing.simulator import World, drawn
from tests.test_simulator import Toy, count_to
for seed in range(12):
    print("\\n".join(World(seed, drawn(seed), Toy(count_to(20))).run().lines()))
"""


def test_the_same_seed_tells_the_same_history_byte_for_byte() -> None:
    def lines(seed: int) -> list[str]:
        return list(run(count_to(20), drawn(seed), seed).lines())

    assert [lines(seed) for seed in range(20)] == [lines(seed) for seed in range(20)]
    assert lines(1) != lines(2)


def test_the_hash_seed_of_the_interpreter_changes_nothing() -> None:
    def replayed(hash_seed: str) -> bytes:
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run([sys.executable, "-c", REPLAY], env=environ, capture_output=True, check=True).stdout

    first = replayed("1")
    assert len(first) > 10_000
    assert replayed("2") == first


# --- processes ------------------------------------------------------------------------------------------


def test_a_killed_process_runs_no_finally_and_its_replacement_remembers() -> None:
    def work(worker: Worker) -> None:
        lives = worker.memory["lives"] = worker.memory.get("lives", 0) + 1
        try:
            with worker.runtime.lock():
                worker.runtime.at_exit(lambda: worker.record("told", value=f"at exit {lives}"))
                worker.runtime.sleep(500.0 if lives == 1 else 1.0)
        except BaseException as error:
            worker.record("told", value=f"except {type(error).__name__}")
            raise
        finally:
            worker.record("told", value=f"finally {lives}")

    settings = Settings(workers=1, hosts=1, strikes=Strikes(kills=1), strikes_within=0.1, restarts=1.0)
    seed = next(seed for seed in range(50) if list(run(work, settings, seed).of("killed")))
    history = run(work, settings, seed)
    assert told(history, "told") == ["finally 2", "at exit 2"]


def test_what_a_dead_task_does_while_it_is_unwound_reaches_nobody() -> None:
    unwound: list[str] = []

    def work(worker: Worker) -> None:
        if worker.memory.setdefault("lives", 0):
            return
        worker.memory["lives"] = 1
        try:
            worker.runtime.sleep(500.0)
        except BaseException as error:
            unwound.append(type(error).__name__)
            for call in (worker.runtime.monotonic, worker.runtime.token, lambda: worker.store.read("x")):
                with pytest.raises(Disposed):
                    call()
            raise

    settings = Settings(workers=1, hosts=1, strikes=Strikes(kills=1), strikes_within=0.1, restarts=1.0)
    for seed in range(5):
        run(work, settings, seed)
    assert "Disposed" in unwound


def test_a_paused_process_sleeps_through_its_wake_ups_and_then_goes_on() -> None:
    def work(worker: Worker) -> None:
        for _ in range(100):
            before = worker.runtime.monotonic()
            worker.runtime.sleep(1.0)
            worker.record("slept", value=worker.runtime.monotonic() - before)

    settings = Settings(workers=1, hosts=1, strikes=Strikes(pauses=3), strikes_within=0.1)
    history = run(work, settings, next(s for s in range(50) if list(run(work, settings, s).of("paused"))))
    slept = told(history, "slept")
    assert len(slept) == 100
    assert min(slept) >= 1.0
    paused_s = sum(entry["seconds"] for entry in history.of("paused"))
    assert sum(1 for seconds in slept if seconds > 1.1) >= 1
    assert sum(slept) == pytest.approx(100 + paused_s, rel=0.2)


def test_a_suspended_host_stops_its_monotonic_clock_and_not_its_boot_clock() -> None:
    def work(worker: Worker) -> None:
        mono, boot, _ = worker.runtime.elapsed_marks()
        worker.runtime.sleep(100.0)
        later_mono, later_boot, _ = worker.runtime.elapsed_marks()
        worker.record("clocks", value=(later_mono - mono, later_boot - boot))

    settings = Settings(workers=1, hosts=1, strikes=Strikes(suspends=2), strikes_within=0.1)
    seed = next(s for s in range(50) if list(run(work, settings, s).of("suspended")))
    ((mono_s, boot_s),) = told(run(work, settings, seed), "clocks")
    assert mono_s == pytest.approx(100.0, abs=0.1)
    assert boot_s > mono_s + 1.0


def test_a_request_to_end_strikes_where_the_worker_waits_and_cleans_up() -> None:
    def work(worker: Worker) -> None:
        worker.runtime.at_exit(lambda: worker.record("told", value="at exit"))
        try:
            worker.runtime.sleep(500.0)
        finally:
            worker.record("told", value="finally")

    settings = Settings(workers=1, hosts=1, strikes=Strikes(terminations=1), strikes_within=0.1, restarts=0.0)
    seed = next(s for s in range(50) if list(run(work, settings, s).of("asked to end")))
    assert told(run(work, settings, seed), "told") == ["finally", "at exit"]


def test_death_can_be_proved_on_the_same_host_and_nowhere_else() -> None:
    holders: dict[str, Any] = {}

    def work(worker: Worker) -> None:
        if worker.index == 0:
            holders["dead"] = worker.runtime.holder(None)
            return
        holders[f"living{worker.index}"] = worker.runtime.holder(None)
        worker.runtime.sleep(100.0)
        alive = worker.runtime.evidence(holders["living1"])
        worker.record("saw", value=(worker.index, worker.runtime.evidence(holders["dead"]), alive.dead))
        worker.runtime.sleep(100.0)

    # Workers 0 and 2 sit on the first host, 1 and 3 on the second.
    history = run(work, Settings(workers=4, hosts=2))
    saw = {index: (dead, alive) for index, dead, alive in told(history, "saw")}
    assert saw[2][0].dead is not None
    assert saw[2][0].local
    assert saw[3][0] == (None, False)
    assert {alive for _, alive in saw.values()} == {None}


# --- requests -------------------------------------------------------------------------------------------


def one_swap(worker: Worker) -> None:
    before = worker.runtime.monotonic()
    try:
        worker.record("told", value=worker.store.swap("thing", None, b"new"))
    except (Conflict, StoreUnavailable) as error:
        worker.record("told", value=type(error).__name__)
    worker.record("took", value=worker.runtime.monotonic() - before)
    worker.runtime.sleep(400.0)
    record = look(worker, "thing")
    worker.record("found", value=record.data.decode() if record else None)


@pytest.mark.parametrize(
    ("fault", "answers", "landed"),
    [
        ("lost", {"StoreUnavailable"}, None),
        ("answer_lost", {"StoreUnavailable"}, "new"),
        ("ghost", {"StoreUnavailable"}, "new"),
        ("duplicate", {"v1"}, "new"),
        ("second_answer", {"Conflict"}, "new"),
        ("refused", {"StoreUnavailable"}, None),
        ("slow", {"v1", "StoreUnavailable"}, "new"),
    ],
)
def test_a_fault_loses_the_request_or_its_answer(fault: str, answers: set[str], landed: str | None) -> None:
    settings = Settings(workers=1, hosts=1, duration_s=300.0, rates=Rates(**{fault: 1.0}))
    seen = set()
    for seed in range(10):
        history = run(one_swap, settings, seed)
        seen.update(told(history, "told"))
        assert told(history, "found") == [landed]
        assert max(told(history, "took")) <= settings.request_timeout_s + 0.1
        assert len(list(history.of("swap"))) == (1 if landed else 0)
        assert len(list(history.of("conflict"))) == (1 if fault in ("duplicate", "second_answer") else 0)
    assert seen == answers


def test_a_ghost_lands_after_its_sender_was_told_that_it_failed() -> None:
    settings = Settings(workers=1, hosts=1, duration_s=300.0, rates=Rates(ghost=1.0))
    history = run(one_swap, settings)
    (gave_up,) = [entry["t"] for entry in history.of("told")]
    (landed,) = [entry["t"] for entry in history.of("swap")]
    assert landed > gave_up


def test_a_swap_lands_even_if_its_sender_is_killed_on_the_way() -> None:
    def work(worker: Worker) -> None:
        if worker.memory.setdefault("tried", False):
            worker.runtime.sleep(10.0)
            record = look(worker, "thing")
            worker.record("found", value=record is not None)
            return
        worker.memory["tried"] = True
        worker.store.swap("thing", None, b"new")
        worker.record("told", value="answered")

    settings = Settings(workers=1, hosts=1, rates=Rates(kill=1.0), restarts=1.0, duration_s=5.0)
    outcomes = set()
    for seed in range(40):
        history = run(work, settings, seed)
        if list(history.of("killed")):
            outcomes.add((bool(told(history, "told")), *told(history, "found")))
    assert (False, True) in outcomes


def test_watchers_hear_of_writes_and_deaths_on_their_host() -> None:
    def work(worker: Worker) -> None:
        if worker.index == 0:
            worker.runtime.sleep(50.0)
            worker.store.swap("thing", None, b"new")
            worker.runtime.sleep(50.0)
            return
        watch = worker.runtime.watch()
        watch.arm(worker.store.files_of("thing"), ())
        woken = watch.wait(200.0)
        record = look(worker, "thing")
        worker.record("woken", value=(woken, record is not None))

    history = run(work, Settings(workers=2, hosts=1, remote=False, latency_s=0.0001))
    (wrote,) = list(history.of("swap"))
    (woken,) = list(history.of("woken"))
    assert woken["value"] == (True, True)
    assert woken["t"] - wrote["t"] < 0.01


# --- threads of one process -----------------------------------------------------------------------------


def test_a_lock_excludes_the_other_tasks_of_its_process() -> None:
    def work(worker: Worker) -> None:
        runtime, lock, done = worker.runtime, worker.runtime.lock(), worker.runtime.event()
        inside = ended = 0

        def thread() -> None:
            nonlocal inside, ended
            for _ in range(20):
                with lock:
                    inside += 1
                    worker.record("inside", value=inside)
                    runtime.sleep(0.01 * runtime.jitter())
                    inside -= 1
            ended += 1
            if ended == 3:
                done.set()

        for _ in range(3):
            runtime.start(thread, "inside")
        assert done.wait(100.0)

    settings = Settings(workers=1, hosts=1, preemption=0.3)
    assert told(run(work, settings), "inside") == [1] * 60


def test_a_world_in_which_nothing_can_happen_any_more_is_a_hang_and_says_who_waits() -> None:
    def work(worker: Worker) -> None:
        worker.runtime.event().wait()

    history = run(work)
    assert history.ended == "hang"
    assert violations(history) == ["every_wait_ended: the world ended by hang: w0.1 waits for an event"]


def test_a_task_that_never_waits_ends_the_world() -> None:
    def work(worker: Worker) -> None:
        while worker.runtime.monotonic() >= 0:
            pass

    assert run(work).ended == "livelock"


def test_an_exception_that_nobody_catches_is_reported() -> None:
    def work(worker: Worker) -> None:
        raise KeyError("oh")

    (found,) = violations(run(work))
    assert "KeyError: 'oh' at" in found
    assert "test_simulator.py" in found


# --- verdicts -------------------------------------------------------------------------------------------


def relay_with(acquire: Callable[[Worker], int | None]) -> Callable[[Worker], None]:
    """Workers that increment a register under a toy lock, as the real relay does under a real one."""

    def work(worker: Worker) -> None:
        for turn in range(5):
            worker.runtime.sleep(worker.chance.random())
            generation = acquire(worker)
            if generation is None:
                continue
            worker.record("locked", call=turn, lock="toy", generation=generation)
            value = worker.register("toy").read()
            assert value is not None
            worker.runtime.sleep(0.5)
            worker.record("checked", call=turn, lock="toy", generation=generation)
            worker.register("toy").write(value + 1)
            worker.record("wrote", call=turn, lock="toy", generation=generation, value=value + 1)
            record = look(worker, "lock")
            assert record
            worker.store.swap("lock", record.version, b"free %d %s" % (generation, worker.runtime.token().encode()))

    return work


def state_of(worker: Worker) -> tuple[str | None, bytes, int]:
    record = look(worker, "lock")
    if record is None:
        return None, b"free", 0
    word, generation, *_ = record.data.split()
    return record.version, word, int(generation)


def sound(worker: Worker) -> int | None:
    while True:
        version, word, generation = state_of(worker)
        if word == b"free":
            try:
                worker.store.swap("lock", version, b"held %d %s" % (generation + 1, worker.runtime.token().encode()))
                return generation + 1
            except Conflict:
                pass
        worker.runtime.sleep(worker.runtime.jitter() * 0.2)


def read_then_write(worker: Worker) -> int | None:
    """The classic: looks, and then writes whatever the record has become meanwhile."""
    while True:
        _, word, generation = state_of(worker)
        if word == b"free":
            while True:
                version, _, _ = state_of(worker)
                try:
                    data = b"held %d %s" % (generation + 1, worker.runtime.token().encode())
                    worker.store.swap("lock", version, data)
                    return generation + 1
                except Conflict:
                    pass
        worker.runtime.sleep(worker.runtime.jitter() * 0.2)


def test_a_broken_lock_is_caught_and_a_sound_one_is_not() -> None:
    settings = Settings(workers=4, hosts=2, latency_s=0.05)

    def caught(acquire: Callable[[Worker], int | None]) -> list[str]:
        return [found for seed in range(5) for found in violations(run(relay_with(acquire), settings, seed))]

    assert caught(sound) == []
    kinds = {found.partition(":")[0] for found in caught(read_then_write)}
    assert {"holds_never_overlap", "no_increment_is_lost"} <= kinds
