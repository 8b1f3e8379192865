"""Promises that a planted bug (`python -m stress.mutants`) could break without any other test noticing."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from dibs.liveness import trusted_for_s
from dibs.names import KEYS, LOCKS, record_name
from dibs.runtime.system import SystemRuntime
from dibs.settings import beat_of
from dibs.store import limited_s
from dibs.stores.memory import MemoryStore
from tests.fakes import FaultyStore, HandRuntime, cache_on, crowd, until
from tests.test_cells import Bench
from tests.test_hold import TTL_S, Worker

NAME = record_name(KEYS, "key")
LARGE = b"x" * 50_000


def test_the_deadline_counts_from_before_a_beat_was_sent_not_from_its_answer() -> None:
    # Given a beat that takes 30 s to be answered
    worker = Worker()
    hold = worker.hold()
    worker.runtime.sleep(10.0)
    worker.store.before = lambda kind, name: kind == "swap" and worker.runtime.clock.sleep(30.0)
    assert hold.beat()
    worker.store.before = lambda kind, name: None
    # then these 30 s are gone from what it proves.
    worker.runtime.sleep(trusted_for_s(TTL_S) - 30.0 - 0.01)
    assert hold.held
    worker.runtime.sleep(0.02)
    assert not hold.held


def test_the_very_first_request_delivered_twice_is_done_once_and_not_called_refused() -> None:
    bench = Bench("twice", remote=True)
    written = bench.write()
    assert bench.there() == written.cell == bench.wanted
    assert bench.store.applied == 1


def test_a_reader_whose_blob_was_replaced_meanwhile_gets_the_new_value_and_reports_no_damage() -> None:
    # Given a reader that has seen a value whose blob is gone when it asks for it, because a new value came
    runtime = HandRuntime()
    memory = MemoryStore(runtime)
    writer = cache_on(memory, runtime)
    writer.put("key", LARGE)
    store = FaultyStore(memory)
    new = b"y" + LARGE

    def download(name: str) -> AbstractContextManager[BinaryIO]:
        if writer.get("key") == LARGE:
            writer.put("key", new)
            memory.remove(name)
        return memory.download(name)

    store.download = download  # type: ignore[method-assign]
    reader = cache_on(store, HandRuntime(runtime.clock))
    # then it reads the cell again before it calls that damage.
    assert reader.get("key", "missing") == new
    assert reader.stats().healed == 0


def test_a_request_takes_at_most_one_beat_of_the_cache_and_of_each_lock() -> None:
    limits: list[float] = []
    taken: dict[str, set[float]] = {}
    store = FaultyStore(MemoryStore(HandRuntime()))
    store.limit_requests = limits.append  # type: ignore[method-assign]
    store.before = lambda kind, name: taken.setdefault(name, set()).add(limited_s(limits[-1]))
    cache = cache_on(store, ttl_s=60.0)
    with cache.lock("deploy", ttl_s=6.0) as lock, cache.lock("usual"):
        lock.beat()
        cache.put("key", "value")
    cache.get("key")
    # then the short-lived lock is in a hurry, and nobody else because of it.
    assert taken[record_name(LOCKS, "deploy")] == {beat_of(6.0, None)}
    assert taken[record_name(LOCKS, "usual")] == taken[record_name(KEYS, "key")] == {beat_of(60.0, None)}


def test_threads_that_follow_another_send_one_request_each(tmp_path: Path) -> None:
    # Given eight threads that have all looked and found nothing
    runtime = SystemRuntime(runtime_dir=str(tmp_path))
    store = FaultyStore(MemoryStore(runtime))
    sent: list[str] = []
    store.before = lambda kind, name: sent.append(kind) if name == NAME else None
    cache = cache_on(store, runtime)

    def compute() -> str:
        until(lambda: sent.count("read") >= 8)
        threading.Event().wait(0.2)  # the last of them takes its place
        return "value"

    # then one of them claims and commits, and the others get the value without asking again.
    assert crowd(8, lambda number: cache.get_or_compute("key", compute)) == ["value"] * 8
    assert (sent.count("read"), sent.count("swap")) == (8, 2)
