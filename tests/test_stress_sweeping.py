"""The scenarios of `stress/sweeping.py` with the counts that CI has time for; `make stress` runs the full ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dibs.stores.s3 import S3Store
from dibs.testing.servers import Server
from stress.sweeping import evict_while_working, kill_during_upload, sweep_while_working


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The scenario's forgets and recomputations are said as they happen."""
    import logging

    logging.getLogger("dibs").setLevel(logging.ERROR)
    yield
    logging.getLogger("dibs").setLevel(logging.NOTSET)


def test_nothing_is_lost_and_no_value_is_wrong_while_sweeps_run(tmp_path: Path) -> None:
    told = sweep_while_working(str(tmp_path / "cache"), str(tmp_path), processes=3, seconds=3.0)
    assert told["blobs swept"] > 50
    assert told["sweeps"] > 10


def test_evicted_values_are_computed_anew_and_right(tmp_path: Path) -> None:
    told = evict_while_working(str(tmp_path / "cache"), str(tmp_path), processes=2, seconds=2.0)
    assert told["evicted"] > 20


def test_nothing_is_lost_in_a_bucket_either(
    tmp_path: Path, ministack_server: Server, s3_store: Callable[..., S3Store]
) -> None:
    told = sweep_while_working(s3_store(ministack_server).url, str(tmp_path), 2, seconds=4.0, sweepers=1)
    assert told["blobs swept"] > 5


def test_a_worker_that_is_killed_while_it_uploads_leaves_nothing_that_a_sweep_does_not_remove(tmp_path: Path) -> None:
    kill_during_upload(str(tmp_path / "cache"), str(tmp_path), kills=1)


def test_so_it_is_in_a_bucket(
    tmp_path: Path, ministack_server: Server, s3_store: Callable[..., S3Store]
) -> None:
    kill_during_upload(s3_store(ministack_server).url, str(tmp_path), kills=1)
