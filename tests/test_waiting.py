"""How often a waiter asks, and what it makes of what it knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dibs.cell import Cell, Hold
from dibs.cells import Seen
from dibs.runtime import Holder
from dibs.waiting import (
    FIRST_MINUTE_REQUESTS_MAX,
    INTERVAL_MAX_S,
    INTERVAL_MIN_S,
    LATER_MINUTE_REQUESTS_MAX,
    poll_interval_s,
    remaining_s,
)


def held(age_s: float | None = 0.0, **news: float) -> Seen:
    return Seen(Cell("k", hold=Hold("c", Holder("h", "b", 1, 1, 1, "", "", "p"), 60.0, **news)), "v", "a", age_s)


def requests(seconds: float, ttl_s: float, promised_s: float | None, jitter: float) -> list[float]:
    """When one waiter asks, if its holder promises again and again to be ready in `promised_s`."""
    asked = [0.0]
    while asked[-1] < seconds:
        asked.append(asked[-1] + poll_interval_s(asked[-1], promised_s, ttl_s, jitter))
    return asked[:-1]


def budget_is_kept(asked: list[float]) -> bool:
    minutes = [sum(minute * 60 <= at < (minute + 1) * 60 for at in asked) for minute in range(5)]
    return minutes[0] <= FIRST_MINUTE_REQUESTS_MAX and max(minutes[1:]) <= LATER_MINUTE_REQUESTS_MAX


def test_the_request_budget_is_kept_with_the_default_ttl_when_nothing_is_promised() -> None:
    assert budget_is_kept(requests(300, 60.0, None, 0.5))


@pytest.mark.parametrize(("ttl_s", "promised_s"), [(1.0, None), (6.0, None), (60.0, 0.1), (60.0, 1.0)])
def test_the_request_budget_is_kept_whatever_the_holder_promises(ttl_s: float, promised_s: float | None) -> None:
    assert budget_is_kept(requests(300, ttl_s, promised_s, 0.5))


@given(st.floats(0, 1e6), st.none() | st.floats(0, 1e6), st.floats(0.05, 6e5), st.floats(0, 0.999))
def test_an_interval_is_never_too_short_nor_too_long(
    waited_s: float, promised_s: float | None, ttl_s: float, jitter: float
) -> None:
    interval_s = poll_interval_s(waited_s, promised_s, ttl_s, jitter)
    assert INTERVAL_MIN_S * 0.75 <= interval_s <= max(INTERVAL_MAX_S, INTERVAL_MIN_S) * 1.25


def test_a_waiter_is_late_by_about_a_tenth_at_most() -> None:
    for finished_s in (2.0, 10.0, 30.0):
        asked = requests(60, 60.0, None, 0.5)
        noticed_s = next(at for at in asked if at >= finished_s)
        assert noticed_s - finished_s <= 0.1 * finished_s + INTERVAL_MIN_S


def test_progress_tells_best_then_what_the_holder_expects_then_what_was_usual() -> None:
    assert remaining_s(held(held_s=10.0, progress=0.25), 0.0, 5.0) == 30.0
    assert remaining_s(held(held_s=10.0, expected_s=100.0), 0.0, 5.0) == 90.0
    assert remaining_s(held(held_s=10.0), 0.0, 50.0) == 40.0
    assert remaining_s(held(held_s=10.0), 0.0, None) is None


def test_time_since_the_record_was_written_counts() -> None:
    assert remaining_s(held(age_s=5.0, held_s=10.0, progress=0.5), 2.0, None) == 3.0
    assert remaining_s(held(age_s=500.0, held_s=10.0, progress=0.5), 2.0, None) == 0.0


@pytest.mark.parametrize("progress", [0.0, 1.0, 7.0, -1.0])
def test_absurd_progress_breaks_nothing(progress: float) -> None:
    left = remaining_s(held(held_s=10.0, progress=progress), 1.0, None)
    assert left is None or left >= 0.0
