"""The scenarios of `stress/` on a bucket, with the counts that CI has time for; `make stress` runs the full ones."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dibs.testing.servers import Server
from stress.damage import Objects, damage_everything
from stress.failures import failing_key, killing_key
from stress.faults import all_faults
from stress.kills import kill_on_another_host, kill_the_holder, poll_by_fresh_processes
from stress.locks import count_under_lock
from stress.once import compute_once
from stress.pauses import RIVALS, stop_a_lock_holder, stop_a_worker
from stress.requests import count_requests

BUCKET = "dibs-tests"
_numbers = itertools.count()

pytestmark = pytest.mark.s3


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("dibs").setLevel(logging.ERROR)
    yield
    logging.getLogger("dibs").setLevel(logging.NOTSET)


@pytest.fixture
def url(ministack_server: Server) -> str:
    return ministack_server.url(BUCKET, f"stress-{next(_numbers)}")


@pytest.mark.parametrize(("processes", "method"), [(2, "spawn"), (8, "fork"), (8, "forkserver"), (64, "fork")])
def test_processes_that_ask_for_the_same_keys_compute_each_once(
    url: str, tmp_path: Path, processes: int, method: str
) -> None:
    crowd = processes == 64
    rounds = 2 if crowd else 10
    compute_once(url, str(tmp_path / "log"), processes, method, rounds, inherit=crowd, ttl_s=30.0)


def test_increments_under_a_lock_are_exact_and_generations_grow(url: str, tmp_path: Path) -> None:
    count_under_lock(url, str(tmp_path), 8, 50)


def test_one_waiter_takes_over_from_a_killed_worker_of_this_host(url: str, tmp_path: Path) -> None:
    kill_the_holder(url, str(tmp_path), kills=10)


def test_a_waiter_takes_over_from_a_killed_worker_of_another_host(url: str, tmp_path: Path) -> None:
    kill_on_another_host(url, str(tmp_path), ttl_s=5.0, poll_s=1.5)


def test_fresh_processes_that_poll_once_a_second_take_over_in_time(url: str, tmp_path: Path) -> None:
    poll_by_fresh_processes(url, str(tmp_path), ttl_s=5.0)


@pytest.mark.parametrize("rival", RIVALS)
def test_a_worker_that_was_stopped_beyond_its_ttl_does_no_harm(url: str, tmp_path: Path, rival: str) -> None:
    stop_a_worker(url, str(tmp_path), rounds=2, rival=rival, ttl_s=4.0)


def test_a_lock_holder_that_was_stopped_beyond_its_ttl_is_told(url: str, tmp_path: Path) -> None:
    stop_a_lock_holder(url, str(tmp_path), rounds=2, ttl_s=4.0)


def test_a_key_that_fails_is_tried_in_turn_and_then_given_up_with_its_traceback(url: str, tmp_path: Path) -> None:
    failing_key(url, str(tmp_path))


def test_a_key_that_kills_its_workers_is_given_up_after_so_many_deaths(url: str, tmp_path: Path) -> None:
    killing_key(url, str(tmp_path))


def test_no_fault_at_any_call_of_any_operation_is_misreported(ministack_server: Server, tmp_path: Path) -> None:
    all_faults(ministack_server, BUCKET, str(tmp_path), rounds=20)


def test_a_hit_is_one_get_and_a_computed_small_value_one_get_and_two_puts(ministack_server: Server) -> None:
    count_requests(ministack_server, BUCKET)


def test_a_damaged_object_is_a_healed_miss_and_never_a_wrong_value(ministack_server: Server) -> None:
    def make(number: int) -> tuple[str, Objects]:
        prefix = f"damage-{number}"
        return ministack_server.url(BUCKET, prefix), Objects(ministack_server.client(), BUCKET, prefix)

    damage_everything(make, flips=2)


@pytest.mark.ceph
def test_an_independent_s3_computes_once_and_counts_exactly_too(ceph_server: Server, tmp_path: Path) -> None:
    url = ceph_server.url(BUCKET, "stress")
    compute_once(url, str(tmp_path / "log"), 4, "fork", rounds=2)
    count_under_lock(url, str(tmp_path), 4, 10)
