"""The table of events, held exhaustively against what must always be true of a cell."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dibs import cell as table
from dibs.cell import TRAIL_LENGTH_MAX, Cell, Ended, Failures, Hold, Value
from dibs.runtime import Holder

MINE, OTHERS, NEW = "mine", "others", "new"
EPOCH, GENERATION = 5, 7


def who(name: str) -> Holder:
    return Holder(name, "boot", 1, 1, 1, "", "", name)


def hold_of(claim: str) -> Hold:
    return Hold(claim, who(claim), 60.0)


def value_of(claim: str, epoch: int) -> Value:
    return Value(epoch, claim, "str", 1, "digest", b"x")


HOLDS = {"none": None, "mine": hold_of(MINE), "others": hold_of(OTHERS)}
VALUES = {"none": None, "current": value_of("earlier", EPOCH), "old": value_of("earlier", EPOCH - 1)}
FAILURES = {"none": None, "some": Failures(2, 1, "ValueError", "host pid 1")}
TRAILS = {
    "empty": (),
    "full": tuple(Ended(GENERATION - number, f"claim{number}", "released") for number in range(TRAIL_LENGTH_MAX)),
}

EVENTS: dict[str, Callable[[Cell], Cell]] = {
    "claim": lambda cell: table.claim(cell, hold_of(NEW)),
    "recompute": lambda cell: table.recompute(cell, hold_of(NEW)),
    "take over": lambda cell: table.take_over(cell, hold_of(NEW)),
    "take over, no death": lambda cell: table.take_over(cell, hold_of(NEW), death=False),
    "bury": table.bury,
    "beat": lambda cell: table.beat(cell, hold_of(MINE)),
    "commit mine": lambda cell: table.commit(cell, value_of(MINE, EPOCH)),
    "commit late": lambda cell: table.commit(cell, value_of(MINE, EPOCH - 1)),
    "fail": lambda cell: table.fail(cell, MINE, "ValueError: new", "host pid 2"),
    "release": lambda cell: table.release(cell, MINE),
    "put": lambda cell: table.put(cell, value_of(NEW, 0)),
    "forget": lambda cell: table.forget(cell, NEW),
    "unlock": lambda cell: table.unlock(cell, MINE),
    "drop old": table.drop_old,
}

HELD = {("mine", value) for value in ("none", "old")} | {("others", value) for value in ("none", "old")}
FREE = {("none", value) for value in VALUES}
MINE_ONLY = {("mine", value) for value in ("none", "old")}

ALLOWED: dict[str, set[tuple[str, str]]] = {
    "claim": {("none", "none"), ("none", "old")},
    "recompute": FREE,
    "take over": HELD,
    "take over, no death": HELD,
    "bury": HELD,
    "beat": MINE_ONLY,
    "commit mine": {(hold, value) for hold in HOLDS for value in ("none", "old")},
    "commit late": set(),
    "fail": MINE_ONLY,
    "release": MINE_ONLY,
    "put": FREE | HELD,
    "forget": FREE | HELD,
    "unlock": MINE_ONLY,
    "drop old": {(hold, "old") for hold in HOLDS},
}
"""The combinations of hold and value on which each event is allowed; a held cell never has a current value."""

COMBINATIONS = [
    (hold, value, failures, trail)
    for hold, value, failures, trail in itertools.product(HOLDS, VALUES, FAILURES, TRAILS)
    if hold == "none" or value != "current"
]


def make(hold: str, value: str, failures: str, trail: str) -> Cell:
    return Cell("key", GENERATION, EPOCH, HOLDS[hold], VALUES[value], FAILURES[failures], TRAILS[trail])


def assert_invariants(before: Cell, after: Cell, event: str) -> None:
    assert after.key == before.key
    became_holder = after.hold is not None and (before.hold is None or after.hold.claim != before.hold.claim)
    assert after.generation == before.generation + became_holder, "each new hold has the next number"
    new_epoch = event in ("put", "forget", "recompute")
    assert after.epoch == before.epoch + new_epoch
    assert len(after.trail) <= TRAIL_LENGTH_MAX
    if after.hold is not None:
        assert table.current(after) is None, "nobody computes what is there"
    lost_hold = before.hold is not None and (after.hold is None or after.hold.claim != before.hold.claim)
    told = after.trail[:1] if event in ("put", "forget") else ()
    assert [ended.how in ("put", "forgotten") for ended in told] == [True] * len(told), "it can learn that it was done"
    trail = after.trail[len(told) :]
    if lost_hold:
        assert trail[0][:2] == (before.generation, before.hold.claim), "a hold that ended can learn how"
        trail = trail[1:]
    assert trail == before.trail[: len(trail)] and len(after.trail) >= min(len(before.trail), TRAIL_LENGTH_MAX)
    if after.value != before.value:
        assert event in ("put", "forget", "commit mine", "drop old"), "only these change the value"
    if table.current(before) is not None and after.epoch == before.epoch:
        assert after.value == before.value, "a value of an epoch stays what it is"


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_every_event_on_every_combination_is_refused_or_keeps_the_invariants(
    event: str, combination: tuple[str, str, str, str]
) -> None:
    before = make(*combination)
    if combination[:2] in ALLOWED[event]:
        assert_invariants(before, EVENTS[event](before), event)
    else:
        with pytest.raises(AssertionError):
            EVENTS[event](before)


@pytest.mark.parametrize("failures", FAILURES)
@pytest.mark.parametrize("event", ["fail", "release", "unlock", "bury", "take over"])
def test_a_recomputation_that_ends_without_a_value_keeps_the_old_one(event: str, failures: str) -> None:
    before = make("mine", "old", failures, "empty")
    assert EVENTS[event](before).value == before.value


@pytest.mark.parametrize("event", ["commit mine", "put", "forget", "recompute"])
def test_a_success_a_put_a_forget_and_a_recompute_clear_the_failures(event: str) -> None:
    assert EVENTS[event](make("none", "old", "some", "empty")).failures is None


def test_failures_and_deaths_are_counted_apart_and_both_survive_a_claim_and_a_release() -> None:
    cell = make("mine", "none", "none", "empty")
    failed = table.fail(cell, MINE, "boom", "here")
    assert failed.failures == Failures(1, 0, "boom", "here")
    died = table.take_over(table.claim(failed, hold_of("a")), hold_of("b"))
    assert died.failures == Failures(1, 1, "boom", "a pid 1")
    assert table.bury(died).failures == Failures(1, 2, "boom", "b pid 1")
    assert table.release(died, "b").failures == died.failures


def test_taking_over_without_a_death_counts_nothing() -> None:
    cell = make("others", "none", "none", "empty")
    assert table.take_over(cell, hold_of(NEW), death=False).failures is None


def test_a_beat_counts_itself_and_brings_the_holders_news() -> None:
    cell = make("mine", "none", "none", "empty")
    news = hold_of(MINE)._replace(progress=0.5, waits_for="keys/other", beat=99)
    beaten = table.beat(table.beat(cell, news), news)
    assert beaten.hold == news._replace(beat=2)


def test_a_commit_says_to_the_trail_whether_the_holder_itself_committed() -> None:
    assert table.how_ended(EVENTS["commit mine"](make("mine", "none", "none", "empty")), MINE) == "committed"
    assert table.how_ended(EVENTS["commit mine"](make("others", "none", "none", "empty")), OTHERS) == "dropped"


def test_the_names_of_the_combinations() -> None:
    named = {(*combination[:3],): table.state(make(*combination)) for combination in COMBINATIONS}
    assert {key for key, state in named.items() if state == "held"} == {key for key in named if key[0] != "none"}
    assert {key for key, state in named.items() if state == "done"} == {
        key for key in named if key[:2] == ("none", "current")
    }
    assert named["none", "none", "some"] == named["none", "old", "some"] == "failed"
    assert named["none", "none", "none"] == named["none", "old", "none"] == "free"


CLAIMS = st.sampled_from(["a", "b", "c"])


@st.composite
def _steps(draw: st.DrawFn) -> list[tuple[str, str, int]]:
    names = ["claim", "recompute", "take over", "bury", "beat", "commit", "fail", "release", "put", "forget", "unlock"]
    step = st.tuples(st.sampled_from(names), CLAIMS, st.integers(-2, 0))
    return draw(st.lists(step, max_size=60))


@settings(max_examples=300, deadline=None)
@given(_steps())
def test_whatever_happens_in_whatever_order_numbers_grow_and_each_epoch_has_one_commit(
    steps: list[tuple[str, str, int]],
) -> None:
    cell = Cell("key")
    commits: dict[int, int] = {}
    holds_given_out = 0
    for number, (name, claim, back) in enumerate(steps):
        fresh = hold_of(f"{claim}{number}")
        mine = cell.hold.claim if cell.hold is not None else "nobody"
        before = cell
        try:
            match name:
                case "claim" | "recompute" | "take over":
                    event = {"claim": table.claim, "recompute": table.recompute, "take over": table.take_over}[name]
                    cell = event(cell, fresh)
                    holds_given_out += 1
                case "beat":
                    cell = table.beat(cell, hold_of(mine))
                case "commit":
                    epoch = cell.epoch + back
                    cell = table.commit(cell, value_of(claim, epoch))
                    commits[epoch] = commits.get(epoch, 0) + 1
                case "fail":
                    cell = table.fail(cell, mine, "error", "by")
                case "release":
                    cell = table.release(cell, mine)
                case "put":
                    cell = table.put(cell, value_of(claim, 0))
                    commits[cell.epoch] = commits.get(cell.epoch, 0) + 1
                case _:
                    cell = {
                        "bury": lambda cell, _: table.bury(cell),
                        "forget": table.forget,
                        "unlock": table.unlock,
                    }[name](cell, claim if name == "forget" else mine)
        except AssertionError:
            cell = before
            continue
        assert_invariants(before, cell, "commit mine" if name == "commit" else name)
    assert all(count == 1 for count in commits.values()), "at most one value per epoch"
    assert cell.generation == holds_given_out
