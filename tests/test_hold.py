"""Holds: believed while they can be proved, lost with a reason, given up once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dibs import cell as table
from dibs.card import write_card
from dibs.cell import Value
from dibs.cells import Cells
from dibs.errors import Conflict, LockLost, StoreUnavailable
from dibs.events import Event, Events
from dibs.heartbeat import Heartbeat
from dibs.hold import LiveHold, Terms
from dibs.liveness import silent_after_s, trusted_for_s
from dibs.names import KEYS, record_name
from dibs.stores.memory import MemoryStore
from tests.fakes import Clock, FaultyStore, HandRuntime, cache_on, in_thread, until

NAME = record_name(KEYS, "key")
TTL_S = 60.0


class Worker:
    """One process with its own view of a shared store."""

    def __init__(self, memory: MemoryStore | None = None, clock: Clock | None = None) -> None:
        self.runtime = HandRuntime(clock)
        self.memory = memory or MemoryStore(self.runtime)
        self.store = FaultyStore(self.memory)
        card = write_card(self.memory, self.runtime, None, read_only=False)
        self.cells = Cells(self.store, self.runtime, card, Events(self.runtime))
        self.heartbeat = Heartbeat(self.runtime)

    def hold(self, event: Callable = table.claim, **terms: object) -> LiveHold:
        hold = LiveHold(self.cells, self.heartbeat, NAME, "key", Terms(TTL_S, TTL_S / 6, **terms))
        hold.acquire(self.cells.look(NAME, "key"), event)
        return hold

    def rival(self) -> Worker:
        return Worker(self.memory, self.runtime.clock)

    def cell(self) -> table.Cell:
        return Worker(self.memory, self.runtime.clock).cells.look(NAME, "key").cell

    def value(self, text: bytes = b"mine") -> Value:
        return Value(0, "", "bytes", len(text), "digest", text)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_a_new_hold_is_held_has_the_next_generation_and_stands_in_the_record(worker: Worker) -> None:
    hold = worker.hold()
    assert hold.held and hold.generation == 1
    assert table.holds(worker.cell(), hold.claim)
    hold.release()
    assert worker.hold().generation == 2


def test_only_one_of_two_that_saw_the_same_free_cell_becomes_the_holder(worker: Worker) -> None:
    rival = worker.rival()
    seen = rival.cells.look(NAME, "key")
    worker.hold()
    late = LiveHold(rival.cells, rival.heartbeat, NAME, "key", Terms(TTL_S, 10.0))
    with pytest.raises(Conflict):
        late.acquire(seen, table.claim)


def test_belief_ends_well_before_any_observer_may_act(worker: Worker) -> None:
    hold = worker.hold()
    worker.runtime.sleep(trusted_for_s(TTL_S) - 0.01)
    assert hold.held
    worker.runtime.sleep(0.02)
    assert not hold.held
    assert worker.runtime.monotonic() - 1000 < silent_after_s(TTL_S)


def test_the_deadline_counts_from_before_the_claim_was_sent_not_from_its_answer(worker: Worker) -> None:
    worker.store.plan = ["lost"]
    worker.store.before = lambda kind, name: kind == "read" and worker.runtime.clock.sleep(30.0)
    seen = Worker(worker.memory, worker.runtime.clock).cells.look(NAME, "key")
    hold = LiveHold(worker.cells, worker.heartbeat, NAME, "key", Terms(TTL_S, 10.0))
    hold.acquire(seen, table.claim)
    worker.runtime.sleep(trusted_for_s(TTL_S) - 30.0)
    assert not hold.held


def test_a_suspend_counts_although_the_monotonic_clock_stood_still(worker: Worker) -> None:
    hold = worker.hold()
    worker.runtime.suspended_s = trusted_for_s(TTL_S)
    assert not hold.held


def test_after_a_suspend_a_hold_that_nobody_took_goes_on(worker: Worker) -> None:
    hold = worker.hold()
    worker.runtime.suspended_s = 10 * TTL_S
    hold.check()
    assert hold.held
    hold.release()
    assert table.how_ended(worker.cell(), hold.claim) == "released"


def test_beats_prolong_it_and_are_counted_in_the_record(worker: Worker) -> None:
    hold = worker.hold()
    for _ in range(10):
        worker.runtime.sleep(30.0)
        assert hold.keep() == 10.0
    assert hold.held
    there = worker.cell().hold
    assert there is not None and there.beat == 10 and there.held_s == 300.0


def losses() -> dict[str, Callable[[Worker], object]]:
    def change(event: Callable[[table.Cell], table.Cell]) -> Callable[[Worker], object]:
        return lambda rival: rival.cells.change(NAME, "key", "x", lambda seen: event(seen.cell), 1.0)

    return {
        "taken over": lambda rival: rival.hold(table.take_over),
        "forgotten": change(lambda cell: table.forget(cell, "x")),
        "put": change(lambda cell: table.put(cell, Value(0, "x", "bytes", 1, "d", b"x"))),
        "unlocked": change(lambda cell: table.unlock(cell, cell.hold.claim)),
        "healed": lambda rival: (
            rival.memory.swap(NAME, rival.cells.look(NAME, "key").version, b"garbage"),
            rival.cells.look(NAME, "key"),
        ),
    }


@pytest.mark.parametrize("how", losses())
def test_whoever_loses_a_hold_learns_it_by_beat_check_and_release(worker: Worker, how: str) -> None:
    hold = worker.hold()
    lost = hold.lost
    losses()[how](worker.rival())
    before = worker.cell()
    assert not hold.beat()
    assert lost.is_set() and not hold.held
    for ask in (hold.check, hold.release):
        with pytest.raises(LockLost, match=r"'key' \(generation 1\)"):
            ask()
    assert worker.cell() == before, "and changes nothing"
    assert worker.cells.events.counts["lost"] == 1


@pytest.mark.parametrize("how", losses())
def test_a_lost_hold_that_never_beat_is_noticed_at_release(worker: Worker, how: str) -> None:
    hold = worker.hold()
    losses()[how](worker.rival())
    with pytest.raises(LockLost):
        hold.release()


def test_a_check_after_the_deadline_asks_the_store_and_raises_when_it_is_silent(worker: Worker) -> None:
    hold = worker.hold()
    worker.runtime.sleep(trusted_for_s(TTL_S))
    worker.store.down = True
    with pytest.raises(LockLost, match="could not be asked"):
        hold.check()
    worker.store.down = False
    hold.check()


def test_a_beat_after_the_release_never_revives_the_hold(worker: Worker) -> None:
    hold = worker.hold()
    hold.release()
    assert not hold.beat() and hold.keep() is None
    assert worker.cell().hold is None


def test_a_beat_that_arrives_after_the_release_changes_nothing(worker: Worker) -> None:
    # Given a beat whose request is still on its way when the hold is released
    hold = worker.hold()
    worker.store.plan = ["lost"]
    late: list[tuple[str, str | None, bytes]] = []
    swap = worker.store.swap

    def keep_back(name: str, old: str | None, new: bytes) -> str:
        late.append((name, old, new))
        return swap(name, old, new)

    worker.store.swap = keep_back  # type: ignore[method-assign]
    hold.beat()
    hold.release()
    # when it arrives
    for name, old, new in late:
        with pytest.raises(Conflict):
            worker.memory.swap(name, old, new)
    # then the cell is free.
    assert worker.cell().hold is None


@pytest.mark.parametrize("plan", [["lost"], ["answer lost"], ["late"]], ids="+".join)
@pytest.mark.parametrize("what", ["beat", "release", "fail", "commit"])
def test_lost_requests_and_lost_answers_change_no_outcome(worker: Worker, what: str, plan: list[str]) -> None:
    hold = worker.hold()
    worker.store.plan = list(plan)
    match what:
        case "beat":
            assert hold.beat() and hold.held
            assert table.holds(worker.cell(), hold.claim)
        case "release":
            hold.release()
            assert table.how_ended(worker.cell(), hold.claim) == "released"
        case "fail":
            hold.fail("Traceback")
            assert worker.cell().failures == table.Failures(1, 0, "Traceback", worker.cell().failures.by)
        case "commit":
            assert hold.commit(worker.value(), 60.0).how == "published"
            assert table.current(worker.cell()).inline == b"mine"


def test_a_release_that_was_done_without_an_answer_is_no_loss_although_a_rival_holds_by_now(worker: Worker) -> None:
    hold = worker.hold()
    rival = worker.rival()
    worker.store.plan = ["answer lost"]
    taken: list[LiveHold] = []
    worker.store.before = lambda kind, name: kind == "read" and not taken and taken.append(rival.hold())
    hold.release()
    assert table.holds(worker.cell(), taken[0].claim)


def test_a_committed_value_is_published_also_when_the_hold_was_taken_over(worker: Worker) -> None:
    hold = worker.hold()
    rival = worker.rival().hold(table.take_over)
    assert hold.commit(worker.value(), 1.0).how == "published"
    assert rival.commit(worker.value(b"theirs"), 1.0).how == "adopted"
    assert table.current(worker.cell()).inline == b"mine"


def test_a_value_of_an_epoch_that_is_over_is_refused_and_stays_invisible(worker: Worker) -> None:
    hold = worker.hold()
    losses()["forgotten"](worker.rival())
    outcome = hold.commit(worker.value(), 1.0)
    assert outcome.how == "refused" and "epoch" in outcome.reason
    assert worker.cell().value is None


def test_a_commit_whose_answer_was_lost_is_published_although_the_value_was_replaced_since(worker: Worker) -> None:
    hold = worker.hold()
    rival = worker.rival()
    worker.store.plan = ["answer lost"]
    done: list[object] = []
    worker.store.before = lambda kind, name: kind == "read" and not done and done.append(losses()["put"](rival))
    assert hold.commit(worker.value(), 60.0).how == "published"


def test_a_commit_ends_with_unavailable_when_patience_does(worker: Worker) -> None:
    hold = worker.hold()
    worker.store.down = True
    began = worker.runtime.monotonic()
    with pytest.raises(StoreUnavailable):
        hold.commit(worker.value(), 12.0)
    assert worker.runtime.monotonic() - began <= 12.5


def test_hold_max_s_ends_the_beats_and_says_so(worker: Worker) -> None:
    hold = worker.hold(hold_max_s=100.0)
    events: list[Event] = []
    worker.cells.events.listen(events.append)
    worker.runtime.sleep(99.0)
    assert hold.keep() == 10.0
    worker.runtime.sleep(2.0)
    beat = worker.cell().hold.beat
    assert [hold.keep(), hold.keep()] == [10.0, 10.0], "it goes on looking, so that `lost` is set in time"
    assert worker.cell().hold.beat == beat, "and beats no more"
    assert [event.kind for event in events] == ["beat failed"] and "hold_max_s" in events[0].detail
    worker.rival().hold(table.take_over)
    assert hold.keep() is None and hold.lost.is_set()


def test_a_check_does_not_prolong_a_hold_beyond_hold_max_s(worker: Worker) -> None:
    hold = worker.hold(hold_max_s=100.0)
    worker.runtime.sleep(200.0)
    with pytest.raises(LockLost):
        hold.check()


def test_a_manual_hold_beats_only_when_told(worker: Worker) -> None:
    hold = worker.hold(manual=True)
    worker.runtime.sleep(30.0)
    assert hold.keep() == 10.0, "the scheduler may ask"
    assert worker.cell().hold.beat == 0, "and changes nothing"
    assert hold.beat()
    assert worker.cell().hold.beat == 1


def test_a_beat_that_fails_is_tried_again_sooner(worker: Worker) -> None:
    hold = worker.hold()
    worker.store.down = True
    assert hold.keep() == 2.5
    assert not hold.lost.is_set()


def test_what_a_holder_waits_for_reaches_the_record_at_once_in_manual_mode_and_with_the_next_beat_otherwise(
    worker: Worker,
) -> None:
    hold = worker.hold(manual=True)
    hold.announce("keys/other")
    assert worker.cell().hold.waits_for == "keys/other"
    hold.announce(None)
    assert worker.cell().hold.waits_for is None


def test_a_forked_child_owns_nothing(worker: Worker) -> None:
    hold = worker.hold()
    before = worker.cell()
    worker.runtime.become_a_child()
    assert not hold.held and not hold.beat() and hold.keep() is None
    hold.release()
    hold.fail("error")
    with pytest.raises(LockLost, match="forked"):
        hold.check()
    assert worker.cell() == before


def test_a_claim_that_stayed_unknown_and_landed_late_counts_as_abandoned(worker: Worker) -> None:
    worker.store.plan = ["late"]
    hold = LiveHold(worker.cells, worker.heartbeat, NAME, "key", Terms(0.001, 0.0001))
    seen = worker.cells.look(NAME, "key")
    with pytest.raises(StoreUnavailable):
        hold.acquire(seen, table.claim)
    assert table.holds(worker.cells.look(NAME, "key").cell, hold.claim), "it landed after all"
    assert worker.cells.is_abandoned(hold.claim)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_while_claiming_leaves_no_hold(worker: Worker) -> None:
    seen = worker.cells.look(NAME, "key")
    swap = worker.store.swap

    def interrupted(name: str, old: str | None, new: bytes) -> str:
        worker.store.swap = swap  # type: ignore[method-assign]
        swap(name, old, new)
        raise KeyboardInterrupt

    worker.store.swap = interrupted  # type: ignore[method-assign]
    hold = LiveHold(worker.cells, worker.heartbeat, NAME, "key", Terms(TTL_S, 10.0))
    with pytest.raises(KeyboardInterrupt):
        hold.acquire(seen, table.claim)
    assert worker.cell().hold is None


def test_an_interrupt_while_claiming_stays_an_interrupt_when_the_store_is_down_too(worker: Worker) -> None:
    seen = worker.cells.look(NAME, "key")

    def interrupted(name: str, old: str | None, new: bytes) -> str:
        worker.store.down = True
        raise KeyboardInterrupt

    worker.store.swap = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        LiveHold(worker.cells, worker.heartbeat, NAME, "key", Terms(TTL_S, 10.0)).acquire(seen, table.claim)


def test_an_interrupt_while_committing_leaves_no_hold_that_blocks_the_others(worker: Worker) -> None:
    hold = worker.hold()

    def interrupted(name: str, old: str | None, new: bytes) -> str:
        del worker.store.swap
        raise KeyboardInterrupt

    worker.store.swap = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        hold.commit(worker.value(), 1.0)
    hold.release()
    assert worker.cell().hold is None


def test_a_callback_may_give_up_the_hold_that_it_hears_about(worker: Worker) -> None:
    hold = worker.hold()
    finished: list[bool] = []

    def callback(event: Event) -> None:
        with pytest.raises(LockLost):
            hold.release()
        finished.append(True)

    worker.cells.events.listen(callback)
    losses()["forgotten"](worker.rival())
    import threading

    threading.Thread(target=hold.beat, daemon=True).start()
    until(lambda: finished, 0.5)


def test_two_threads_that_ask_one_hold_at_once_beat_one_after_the_other(worker: Worker) -> None:
    hold = worker.hold()
    with in_thread(lambda: [hold.beat() for _ in range(50)]) as results:
        mine = [hold.beat() for _ in range(50)]
    assert all(mine) and all(results[0])
    assert worker.cell().hold.beat == 100


@pytest.mark.parametrize("ask", ["beat", "commit", "release"])
def test_a_callback_that_hears_of_a_healed_record_may_ask_for_that_very_hold(worker: Worker, ask: str) -> None:
    # Given a hold whose record was damaged, and a callback that gives the hold up
    hold = worker.hold()
    worker.memory.swap(NAME, worker.cells.look(NAME, "key").version, b"garbage")
    heard: list[str] = []

    def callback(event: Event) -> None:
        heard.append(event.kind)
        try:
            hold.release()
        except LockLost:
            pass

    worker.cells.events.listen(callback)
    # when the holder meets the damage
    what = {"beat": hold.beat, "commit": lambda: hold.commit(worker.value(), 1.0), "release": hold.release}[ask]
    with in_thread(what, 2.0):
        pass
    # then nobody waits for anybody.
    assert heard[0] == "healed" and worker.cells.events.counts["healed"] == 1


def test_what_happens_under_the_mutex_is_told_also_when_the_store_goes_away(worker: Worker) -> None:
    hold = worker.hold()
    worker.memory.swap(NAME, worker.cells.look(NAME, "key").version, b"garbage")
    healed_at: list[int] = []

    def down_after_healing(kind: str, name: str) -> None:
        if kind == "read" and name == NAME:
            healed_at.append(worker.store.reads)
            worker.store.down = len(healed_at) > 1

    worker.store.before = down_after_healing
    with pytest.raises(StoreUnavailable):
        hold.release(patience_s=0.0)
    assert worker.cells.events.counts["healed"] == 1


def test_a_hold_that_nobody_can_give_up_any_more_is_complained_about(worker: Worker) -> None:
    hold = worker.hold()
    with pytest.warns(ResourceWarning, match=r"'key' was held and nobody can give it up"):
        del hold


@pytest.mark.parametrize("end", ["released", "lost", "child", "never held", "interrupted"])
def test_a_hold_that_is_over_goes_without_a_complaint(
    worker: Worker, end: str, recwarn: pytest.WarningsRecorder
) -> None:
    if end == "never held":
        hold = LiveHold(worker.cells, worker.heartbeat, NAME, "key", Terms(TTL_S, 10.0))
    elif end == "interrupted":
        worker.heartbeat.add = interrupt  # type: ignore[method-assign]
        hold = LiveHold(worker.cells, worker.heartbeat, NAME, "key", Terms(TTL_S, 10.0))
        with pytest.raises(KeyboardInterrupt):
            hold.acquire(worker.cells.look(NAME, "key"), table.claim)
    else:
        hold = worker.hold()
    if end == "released":
        hold.release()
    elif end == "lost":
        losses()["forgotten"](worker.rival())
        hold.beat()
    elif end == "child":
        worker.runtime.become_a_child()
    del hold
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


def test_closing_a_cache_while_its_store_is_down_takes_one_patience_for_all_holds() -> None:
    runtime = HandRuntime()
    store = FaultyStore(MemoryStore(runtime))
    cache = cache_on(store, runtime, ttl_s=TTL_S)
    locks = [cache.try_lock(f"lock{number}") for number in range(20)]
    store.down = True
    began = runtime.monotonic()
    cache.close()
    assert runtime.monotonic() - began < 5.0
    assert not any(lock.held for lock in locks), "and nothing is kept any longer"
    assert cache._heartbeat.living() == []


def test_a_hold_over_its_limit_says_so_when_it_is_checked(worker: Worker) -> None:
    hold = worker.hold(hold_max_s=100.0)
    worker.runtime.sleep(200.0)
    with pytest.raises(LockLost, match="longer than hold_max_s = 100"):
        hold.check()


def test_a_claim_that_certainly_was_not_written_is_not_remembered_as_abandoned(worker: Worker) -> None:
    def full(kind: str, name: str) -> None:
        if kind == "swap":
            raise StoreUnavailable("disk full", certain=True)

    seen = worker.cells.look(NAME, "key")
    worker.store.before = full
    hold = LiveHold(worker.cells, worker.heartbeat, NAME, "key", Terms(TTL_S, 10.0))
    with pytest.raises(StoreUnavailable):
        hold.acquire(seen, table.claim)
    assert not worker.cells.is_abandoned(hold.claim)
