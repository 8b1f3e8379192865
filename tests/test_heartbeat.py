"""One scheduler keeps all holds alive, lets the lost ones go, and survives what goes wrong."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator

import pytest

from dibs.errors import StoreUnavailable
from dibs.heartbeat import Heartbeat
from dibs.runtime.system import SystemRuntime
from tests.fakes import HandRuntime, until

BEAT_S = 0.01


class Hold:
    """Something to be kept; `keep` does what the test wants."""

    due_at = 0.0
    beating = False
    serial = 0

    def __init__(self, what: Callable[[], float | None] | None = None, beat_s: float = BEAT_S) -> None:
        self.beat_s = beat_s
        self.beats = Counter()
        self._what = what

    def keep(self) -> float | None:
        self.beats.count += 1
        return self.beat_s if self._what is None else self._what()


class Counter:
    count = 0


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory) -> SystemRuntime:
    return SystemRuntime(runtime_dir=str(tmp_path_factory.mktemp("runtime")))


@pytest.fixture
def heartbeat(runtime: SystemRuntime) -> Iterator[Heartbeat]:
    heartbeat = Heartbeat(runtime)
    yield heartbeat
    for hold in heartbeat.living():
        heartbeat.remove(hold)


def test_holds_are_kept_again_and_again(heartbeat: Heartbeat) -> None:
    holds = [Hold() for _ in range(5)]
    for hold in holds:
        heartbeat.add(hold)
    until(lambda: all(hold.beats.count >= 5 for hold in holds))


def test_the_first_beat_comes_after_one_interval_not_at_once(heartbeat: Heartbeat) -> None:
    later, soon = Hold(beat_s=100.0), Hold()
    heartbeat.add(later)
    heartbeat.add(soon)
    until(lambda: soon.beats.count >= 3)
    assert later.beats.count == 0


def test_a_removed_hold_beats_no_more(heartbeat: Heartbeat) -> None:
    removed, other = Hold(), Hold()
    heartbeat.add(removed)
    heartbeat.add(other)
    until(lambda: removed.beats.count)
    heartbeat.remove(removed)
    until(lambda: not removed.beating)
    before, seen = removed.beats.count, other.beats.count
    until(lambda: other.beats.count > seen + 5)
    assert removed.beats.count == before


def test_a_hold_that_says_it_is_over_is_let_go(heartbeat: Heartbeat) -> None:
    over, other = Hold(lambda: None), Hold()
    heartbeat.add(over)
    heartbeat.add(other)
    until(lambda: other.beats.count >= 5)
    assert over.beats.count == 1
    assert heartbeat.living() == [other]


def test_beats_do_not_wait_for_each_other(heartbeat: Heartbeat) -> None:
    stuck = threading.Event()

    def hang() -> float:
        stuck.wait(10.0)
        return BEAT_S

    slow, quick = Hold(hang), Hold()
    heartbeat.add(slow)
    heartbeat.add(quick)
    until(lambda: slow.beats.count and quick.beats.count >= 10)
    assert slow.beats.count == 1, "and a beat that is on its way is not sent a second time"
    stuck.set()
    until(lambda: slow.beats.count >= 2)


def test_a_beat_that_raises_is_tried_again(heartbeat: Heartbeat) -> None:
    def fail() -> float:
        raise RuntimeError("planned by the test")

    hold = Hold(fail)
    heartbeat.add(hold)
    until(lambda: hold.beats.count >= 3)


def test_news_go_out_before_the_next_beat_is_due(heartbeat: Heartbeat) -> None:
    hold = Hold(beat_s=100.0)
    heartbeat.add(hold)
    heartbeat.hurry(hold)
    until(lambda: hold.beats.count == 1)


def test_a_hold_that_comes_while_the_scheduler_sleeps_long_is_kept_in_time(heartbeat: Heartbeat) -> None:
    heartbeat.add(Hold(beat_s=0.001))
    long, short = Hold(beat_s=25.0), Hold()
    heartbeat.add(long)
    heartbeat.add(short)
    until(lambda: short.beats.count >= 2)


def test_a_leaked_hold_that_never_beat_is_forgotten(heartbeat: Heartbeat) -> None:
    heartbeat.add(Hold(beat_s=100.0))
    gc.collect()
    assert heartbeat.living() == []


def test_a_leaked_hold_stops_beating(heartbeat: Heartbeat) -> None:
    # Given a hold that beats and that nobody but the scheduler knows any more
    hold = Hold()
    beats = hold.beats
    heartbeat.add(hold)
    until(lambda: beats.count >= 2)
    del hold
    # then it stops.
    gc.collect()
    witness = Counter()

    def settled() -> bool:
        before, witness.count = witness.count, beats.count
        return before == beats.count

    quiet = threading.Event()
    for _ in range(10):
        quiet.wait(5 * BEAT_S)
        if settled() and settled():
            return
    raise AssertionError(f"still beating after {beats.count} beats")


def test_news_that_come_while_a_beat_is_on_its_way_are_not_forgotten() -> None:
    runtime = HandRuntime()
    heartbeat = Heartbeat(runtime)

    def news_arrive() -> float:
        heartbeat.hurry(hold)
        return 10.0

    hold = Hold(news_arrive, beat_s=10.0)
    heartbeat.add(hold)
    hold.beating = True
    heartbeat._beat([hold])
    assert hold.due_at <= runtime.monotonic()


def test_a_thread_that_cannot_be_started_does_not_end_all_beats(runtime: SystemRuntime) -> None:
    start, failed = runtime.start, []

    def start_or_fail(target: Callable[[], None], name: str) -> None:
        if name == "dibs-beat" and not failed:
            failed.append(name)
            raise RuntimeError("can't start new thread")
        start(target, name)

    runtime.start = start_or_fail  # type: ignore[method-assign]
    hook, threading.excepthook = threading.excepthook, lambda args: None
    try:
        hold = Hold()
        Heartbeat(runtime).add(hold)
        until(lambda: failed)
        until(lambda: hold.beats.count >= 2, 1.0)
    finally:
        threading.excepthook = hook


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


@pytest.mark.parametrize("held", [False, True])
def test_a_closed_scheduler_ends_its_thread_at_once(heartbeat: Heartbeat, held: bool) -> None:
    # Given a scheduler that rests, with nothing to do for a while
    before = threads_named("dibs-heartbeat")
    hold = Hold(beat_s=100.0)
    heartbeat.add(hold)
    mine = [thread for thread in threads_named("dibs-heartbeat") if thread not in before]
    assert len(mine) == 1
    if not held:
        heartbeat.remove(hold)
    # when it is closed, and the last hold is given up
    wake = heartbeat._wake
    heartbeat.close(0.0)
    until(lambda: heartbeat._wake is not wake)
    heartbeat.remove(hold)
    # then its thread doesn't linger.
    mine[0].join(2.0)
    assert not mine[0].is_alive()


def test_a_closed_scheduler_refuses_new_holds_and_says_that_nothing_happened(heartbeat: Heartbeat) -> None:
    heartbeat.close(0.0)
    with pytest.raises(StoreUnavailable, match="closed") as caught:
        heartbeat.expect(BEAT_S)
    assert caught.value.certain


class StandIn:
    """Writes down what it is asked."""

    def __init__(self, heartbeat: Heartbeat | None = None) -> None:
        self.asked: list[str] = []

    def start(self, who: int, beat_s: float) -> None:
        self.asked.append("start")

    def look_after(self) -> None:
        self.asked.append("look after")

    def rest(self, who: int) -> None:
        self.asked.append("rest")


def test_a_stand_in_is_there_before_a_hold_is_asked_for_and_rests_after_the_last(runtime: SystemRuntime) -> None:
    stand_in = StandIn()
    heartbeat = Heartbeat(runtime, stand_in)  # type: ignore[arg-type]
    heartbeat.expect(100.0)
    assert stand_in.asked[0] == "start"
    heartbeat.close(0.0)
    until(lambda: stand_in.asked.count("look after") >= 4)
    assert "rest" not in stand_in.asked, "a hold is just being asked for"
    heartbeat.expected()
    until(lambda: "rest" in stand_in.asked)


def test_a_stand_in_that_cannot_start_leaves_no_hold_expected(runtime: SystemRuntime) -> None:
    class Interrupted(StandIn):
        def start(self, who: int, beat_s: float) -> None:
            raise KeyboardInterrupt

    heartbeat = Heartbeat(runtime, Interrupted())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        heartbeat.expect(100.0)
    assert heartbeat._expected == 0
