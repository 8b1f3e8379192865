"""The scenarios of `stress/` on a folder, with the counts that CI has time for; `make stress` runs the full ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from stress.clocks import skewed_clocks
from stress.damage import damage_everything, fresh_folder
from stress.failures import failing_key, killing_key
from stress.fleet import METHODS
from stress.full_disk import full_disk
from stress.kills import kill_on_another_host, kill_the_holder, poll_by_fresh_processes
from stress.locks import count_under_lock, one_owner
from stress.once import compute_once
from stress.pauses import RIVALS, stop_a_lock_holder, stop_a_worker


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The workers would fill the terminal with the take-overs that they are made to do."""
    logging.getLogger("dibs").setLevel(logging.ERROR)
    yield
    logging.getLogger("dibs").setLevel(logging.NOTSET)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("processes", [2, 8, 64])
def test_processes_that_ask_for_the_same_keys_compute_each_once(tmp_path: Path, processes: int, method: str) -> None:
    compute_once(str(tmp_path / "cache"), str(tmp_path / "log"), processes, method, rounds=50)


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_that_is_inherited_or_pickled_into_workers_computes_once_too(tmp_path: Path, method: str) -> None:
    compute_once(str(tmp_path / "cache"), str(tmp_path / "log"), 4, method, rounds=3, inherit=True)


@pytest.mark.parametrize(("processes", "holds"), [(8, 500), (64, 200)])
def test_increments_under_a_lock_are_exact_and_generations_grow(tmp_path: Path, processes: int, holds: int) -> None:
    count_under_lock(str(tmp_path / "cache"), str(tmp_path), processes, holds)


def test_one_waiter_takes_over_from_a_killed_worker_of_this_host(tmp_path: Path) -> None:
    kill_the_holder(str(tmp_path / "cache"), str(tmp_path), kills=20)


def test_a_waiter_takes_over_from_a_killed_worker_of_another_host(tmp_path: Path) -> None:
    kill_on_another_host(str(tmp_path / "cache"), str(tmp_path), ttl_s=2.0, poll_s=1.0)


def test_fresh_processes_that_poll_once_a_second_take_over_in_time(tmp_path: Path) -> None:
    poll_by_fresh_processes(str(tmp_path / "cache"), str(tmp_path), ttl_s=4.0)


@pytest.mark.parametrize("rival", RIVALS)
def test_a_worker_that_was_stopped_beyond_its_ttl_does_no_harm(tmp_path: Path, rival: str) -> None:
    stop_a_worker(str(tmp_path / "cache"), str(tmp_path), rounds=15, rival=rival)


def test_a_lock_holder_that_was_stopped_beyond_its_ttl_is_told(tmp_path: Path) -> None:
    stop_a_lock_holder(str(tmp_path / "cache"), str(tmp_path), rounds=15)


@pytest.mark.parametrize(("names", "stale"), [(400, True), (2000, False)])
def test_no_name_has_two_owners(tmp_path: Path, names: int, stale: bool) -> None:
    one_owner(str(tmp_path / "cache"), str(tmp_path), names, 8, stale)


@pytest.mark.parametrize(("holder_skew_s", "taker_skew_s"), [(600, 0), (0, 600)])
def test_wall_clocks_ten_minutes_apart_change_nothing(tmp_path: Path, holder_skew_s: int, taker_skew_s: int) -> None:
    skewed_clocks(str(tmp_path / "cache"), str(tmp_path), 1.5, holder_skew_s, taker_skew_s)


def test_a_key_that_fails_is_tried_in_turn_and_then_given_up_with_its_traceback(tmp_path: Path) -> None:
    failing_key(str(tmp_path / "cache"), str(tmp_path))


def test_a_key_that_kills_its_workers_is_given_up_after_so_many_deaths(tmp_path: Path) -> None:
    killing_key(str(tmp_path / "cache"), str(tmp_path))


def test_on_a_full_disk_the_caller_gets_its_value_and_the_cache_stays_clean(tmp_path: Path) -> None:
    try:
        full_disk(str(tmp_path))
    except PermissionError as why:
        pytest.skip(str(why))


def test_a_damaged_file_is_a_healed_miss_and_never_a_wrong_value(tmp_path: Path) -> None:
    damage_everything(fresh_folder(str(tmp_path)), flips=30)
