"""Is the holder alive?  By evidence, by silence, and never by comparing clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dibs.cell import Hold
from dibs.liveness import RATE_MARGIN, TTL_MAX_S, TTL_MIN_S, judge, silent_after_s, trusted_for_s
from dibs.runtime import Evidence, Holder

HOLD = Hold("c", Holder("h", "b", 1, 1, 1, "", "", "p"), 60.0)
NOTHING = Evidence(None, False)

ttls = st.floats(TTL_MIN_S, TTL_MAX_S)


@given(ttls, st.floats(1 / 1.6, 1.6))
def test_the_holder_gives_up_before_any_observer_acts_for_all_clock_rates_in_the_margin(
    ttl_s: float, rate: float
) -> None:
    # Given an observer whose clock runs `rate` times as fast, then in the holder's seconds it acts after:
    acts_after_s = silent_after_s(ttl_s) / rate
    assert trusted_for_s(ttl_s) < acts_after_s
    assert RATE_MARGIN > 1.6


@given(ttls, st.floats(0, 2), st.booleans())
def test_silence_begins_at_a_tenth_more_than_the_ttl_and_not_before(ttl_s: float, share: float, local: bool) -> None:
    hold = HOLD._replace(ttl_s=ttl_s)
    verdict = judge(hold, Evidence(None, local), share * ttl_s, None)
    assert verdict.over == (share * ttl_s >= silent_after_s(ttl_s))


def test_proof_of_death_ends_the_wait_at_once_and_its_reason_is_told() -> None:
    verdict = judge(HOLD, Evidence("beacon free", True), 0.0, 0.0)
    assert verdict == ("dead", "beacon free")
    assert verdict.over


def test_nothing_that_is_known_means_alive() -> None:
    assert not judge(HOLD, NOTHING, None, None).over


def test_a_living_beacon_does_not_prolong_a_silent_hold() -> None:
    assert judge(HOLD, Evidence(None, True), 66.0, None).state == "silent"


@pytest.mark.parametrize(("age_s", "over"), [(66.0, False), (136.9, False), (137.0, True), (1e9, True)])
def test_the_stores_own_clock_is_believed_with_a_wide_margin_only(age_s: float, over: bool) -> None:
    assert judge(HOLD, NOTHING, None, age_s).over is over


@pytest.mark.parametrize("ttl_s", [-1.0, 0.0, 1e-9, 1e30, float("inf")])
def test_an_absurd_ttl_in_a_record_neither_kills_at_once_nor_lives_for_ever(ttl_s: float) -> None:
    hold = HOLD._replace(ttl_s=ttl_s)
    assert not judge(hold, NOTHING, TTL_MIN_S, None).over
    assert judge(hold, NOTHING, TTL_MAX_S * 1.2, None).over
