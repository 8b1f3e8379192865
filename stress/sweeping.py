"""Workers compute, put, forget, recompute and read large values while others sweep all the time: nothing is lost.

Every value says which key and which writing of it it is, so that a wrong one shows; a value that was published and
that nobody forgot, replaced or evicted has to be there to the end.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

from dibs.errors import StoreUnavailable
from dibs.sweep import Swept, sweep
from stress.fleet import PATIENCE_S, Log, join_all, open_cache, worker, workers

SHARED_KEYS = 12
SIZE = 40_000


def _value(key: str, writer: str) -> bytes:
    head = f"{key} by {writer} ".encode()
    return head + b"." * (SIZE - len(head))


def _check(key: str, value: bytes) -> str:
    """The writer of the value; fails when it is another key's, torn, or no value at all."""
    assert isinstance(value, bytes), f"{key}: {value!r:.80}"
    head, _, dots = value.partition(b" .")
    said, _, writer = head.decode().partition(" by ")
    assert said == key and len(value) == SIZE and not dots.strip(b"."), f"{key}: {value[:80]!r}"
    return writer


def _work(number: int, url: str, log_path: str, seconds: float, settings: dict[str, Any]) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    rng = random.Random(number)
    counts = dict.fromkeys(("computed", "put", "forgotten", "recomputed", "read", "missed", "own"), 0)
    own: dict[str, str] = {}
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        key, writer = f"shared/{rng.randrange(SHARED_KEYS)}", f"{number}-{os.urandom(4).hex()}"

        def compute(key: str = key, writer: str = writer) -> bytes:
            counts["computed"] += 1
            time.sleep(rng.random() * 0.004)
            return _value(key, writer)

        match rng.randrange(10):
            case 0:
                cache.put(key, _value(key, writer))
                counts["put"] += 1
            case 1:
                cache.forget(key)
                counts["forgotten"] += 1
            case 2:
                _check(key, cache.recompute(key, compute))
                counts["recomputed"] += 1
            case 3 | 4 | 5:
                found = cache.get(key)
                counts["read" if found is not None else "missed"] += 1
                if found is not None:
                    _check(key, found)
            case 6:
                # Keys of this worker alone: nobody else writes them, so what was put must be found again.
                mine = f"own/{number}/{rng.randrange(3)}"
                cache.put(mine, _value(mine, writer))
                own[mine] = writer
            case _:
                _check(key, cache.get_or_compute(key, compute))
        for mine, last in own.items():
            found = cache.get(mine)
            assert found is not None, f"{mine}, written as {last}, was lost"
            assert _check(mine, found) == last, f"{mine}: {found[:60]!r} instead of {last}"
            counts["own"] += 1
    log.write(what="worked", healed=cache.stats().healed, **counts)
    cache.close()


def _sweep(number: int, url: str, log_path: str, seconds: float, grace_s: float, settings: dict[str, Any]) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    total, sweeps = Swept(), 0
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        # The shared keys alone are evictable: what a worker owns was used just now.
        swept = sweep(cache._cells, cache._store, grace_s=grace_s, unused_for_s=seconds)
        total, sweeps = total.plus(**{**swept._asdict(), "left": 0, "left_bytes": 0}), sweeps + 1
    log.write(what="swept", sweeps=sweeps, **total._asdict())
    cache.close()


def _evict(number: int, url: str, log_path: str, seconds: float, settings: dict[str, Any]) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    evicted = 0
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        swept = sweep(cache._cells, cache._store, grace_s=0.0, max_size_bytes=SHARED_KEYS * SIZE // 2)
        evicted += swept.for_room
    log.write(what="evicted", evicted=evicted)
    cache.close()


def sweep_while_working(
    url: str, folder: str, processes: int, seconds: float, sweepers: int = 2, grace_s: float = 0.0, **settings: Any
) -> dict[str, Any]:
    """Sweeps run in a loop beside the work; asserts that no value is lost or wrong, and that garbage goes.

    With `grace_s` 0 a replaced blob is removed under the hands of whoever reads it, which is the worst case.
    """
    open_cache(url, **settings).close()
    log_path = f"{folder}/log"
    with (
        workers(processes, _work, url, log_path, seconds, settings) as working,
        workers(sweepers, _sweep, url, log_path, seconds, grace_s, settings) as sweeping,
    ):
        join_all(working + sweeping, seconds + 120)
    return _told(url, Log(log_path), settings)


def evict_while_working(url: str, folder: str, processes: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """Values are evicted all the time; asserts that whoever asks gets the right value all the same."""
    open_cache(url, **settings).close()
    log_path = f"{folder}/log"
    with (
        workers(processes, _ask, url, log_path, seconds, settings) as working,
        workers(1, _evict, url, log_path, seconds, settings) as evicting,
    ):
        join_all(working + evicting, seconds + 120)
    evicted = sum(line["evicted"] for line in Log(log_path).read(what="evicted"))
    assert evicted, "nothing was evicted"
    return {"evicted": evicted, **_told(url, Log(log_path), settings)}


def _ask(number: int, url: str, log_path: str, seconds: float, settings: dict[str, Any]) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    rng = random.Random(number)
    counts = {"computed": 0, "read": 0}
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        key, writer = f"shared/{rng.randrange(SHARED_KEYS)}", f"{number}-{os.urandom(4).hex()}"

        def compute(key: str = key, writer: str = writer) -> bytes:
            counts["computed"] += 1
            return _value(key, writer)

        _check(key, cache.get_or_compute(key, compute))
        counts["read"] += 1
    log.write(what="worked", healed=cache.stats().healed, **counts)
    cache.close()


class _Stalling:
    """A stream that says when half of it went by, and then waits to be killed."""

    def __init__(self, source: Any, log: Log, size_bytes: int) -> None:
        self._source, self._log, self._left = source, log, size_bytes // 2

    def read(self, size: int, /) -> bytes | memoryview:
        if self._left <= 0:
            self._log.write(what="half way")
            time.sleep(PATIENCE_S)
        piece: bytes | memoryview = self._source.read(size)
        self._left -= len(piece)
        return piece


def _upload_half(url: str, log_path: str, size_bytes: int, settings: dict[str, Any]) -> None:
    cache, log = open_cache(url, **settings), Log(log_path)
    store: Any = cache._store
    upload = store.upload
    store.upload = lambda name, source: upload(name, _Stalling(source, log, size_bytes))
    cache.get_or_compute("key", lambda: b"x" * size_bytes)


def kill_during_upload(
    url: str, folder: str, kills: int, size_bytes: int = 60_000_000, **settings: Any
) -> dict[str, Any]:
    """SIGKILL amidst an upload; asserts that nothing of it can be seen, and that one sweep removes the rest."""
    freed = 0
    with open_cache(url, **settings) as cache:
        for number in range(kills):
            log = Log(f"{folder}/log-{number}")
            with worker(_upload_half, url, log.path, size_bytes, settings) as process:
                log.wait_for(what="half way")
                during = sweep(cache._cells, cache._store, grace_s=0.0)
                assert (during.leftovers, during.blobs) == (0, 0), "a living worker's upload was disturbed"
                process.kill()
                process.join(10)
            assert cache.get("key") is None and not list(cache._store.scan_blobs("values/"))
            after = sweep(cache._cells, cache._store)
            assert after.leftovers == 1, after
            freed += after.leftovers_bytes
            again = sweep(cache._cells, cache._store, grace_s=0.0)
            assert not again.freed_bytes and not again.waiting, again
        assert cache.get_or_compute("key", lambda: b"y" * size_bytes) == b"y" * size_bytes
    return {"kills": kills, "freed_bytes": freed}


def _told(url: str, log: Log, settings: dict[str, Any]) -> dict[str, Any]:
    """The sums of all workers; asserts that nothing was taken for damage, and that nothing is left behind."""
    worked, swept = log.read(what="worked"), log.read(what="swept")
    told = {
        name: sum(line[name] for line in worked) for name in worked[0] if name not in ("pid", "at", "what")
    }
    told["sweeps"] = sum(line["sweeps"] for line in swept)
    told["blobs swept"] = sum(line["blobs"] for line in swept)
    told["evicted as unused"] = sum(line["unused"] for line in swept)
    assert not told.pop("healed"), "a value was taken for damaged: its blob was removed while a cell named it"
    with open_cache(url, **settings) as cache:
        for _ in range(20):
            last = sweep(cache._cells, cache._store, grace_s=0.0)
            named = {f"values/{listed.name}/" for listed in cache._store.scan("keys/")}
            blobs = [blob.name for blob in cache._store.scan_blobs("values/")]
            assert all(any(blob.startswith(name) for name in named) for blob in blobs), "a blob without a record"
            if not last.blobs and not last.waiting:
                break
        assert not last.waiting, f"{last.waiting} blobs stay although nobody works any more"
        for key in list(cache.keys()):
            try:
                found = cache.get(key)
            except StoreUnavailable:
                continue
            if found is not None:
                _check(key, found)
        told["left"] = last.left
    return told
