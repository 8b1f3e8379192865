"""Large values are in memory once, whichever way they go, and are read through once per host and then trusted."""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dibs import values
from dibs.cache import Cache
from dibs.codec import Encoded, digest
from dibs.runtime import memory
from dibs.runtime.system import SystemRuntime
from dibs.runtime.verified import PLACES, Verified
from dibs.settings import Settings
from dibs.stores import s3_blobs, s3_download
from dibs.stores.local import LocalStore
from dibs.testing.servers import Server
from stress.large import break_connections, damage_mapped, in_fresh_process, store_and_load

numpy = pytest.importorskip("numpy")

SIZE = 1 << 20
MEMORY_MIB = 256


def an_array(seed: int = 1) -> Any:
    return numpy.random.default_rng(seed).integers(0, 256, SIZE, dtype=numpy.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def fresh_cache(folder: str, runtime_dir: Path) -> Cache:
    """As a process that has just started would open it."""
    runtime = SystemRuntime(runtime_dir=str(runtime_dir))
    return Cache(LocalStore(folder, runtime), runtime, Settings())


@pytest.fixture
def opened(folder: str, tmp_path: Path) -> Iterator[Callable[[], Cache]]:
    """Opens the folder anew, with a memory of what was verified that all share."""
    caches: list[Cache] = []

    def open_cache() -> Cache:
        caches.append(fresh_cache(folder, tmp_path / "runtime"))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the contents that were checked against their digest."""
    sizes: list[int] = []

    def counted(content: bytes | memoryview) -> str:
        sizes.append(len(content))
        return digest(content)

    monkeypatch.setattr(values, "digest", counted)
    return sizes


def blob_of(folder: str) -> Path:
    (path,) = (path for path in Path(folder, "blobs").rglob("*") if path.is_file())
    return path


# --- loading from a folder --------------------------------------------------------------------------------


def test_an_array_from_a_folder_is_mapped_and_what_its_owner_writes_stays_with_him(
    opened: Callable[[], Cache], folder: str
) -> None:
    cache = opened()
    cache.get_or_compute("array", an_array)
    mine, yours = cache.get("array"), cache.get("array")
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        assert sum(line.rstrip().endswith(str(blob_of(folder))) for line in maps) >= 2
    assert mine.flags.writeable
    mine[:] = 0
    assert (yours == an_array()).all()
    assert (opened().get("array") == an_array()).all()


def test_mapped_values_keep_no_descriptor_and_give_their_pages_back(opened: Callable[[], Cache]) -> None:
    cache = opened()
    cache.get_or_compute("array", an_array)
    cache.get("array")
    before = len(os.listdir("/proc/self/fd"))
    arrays = [cache.get("array") for _ in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before

    def mappings() -> int:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            return sum("/blobs/" in line for line in maps)

    assert mappings() >= 50
    del arrays
    gc.collect()
    assert mappings() == 0


def test_what_a_forked_child_writes_to_a_loaded_array_stays_with_it(opened: Callable[[], Cache]) -> None:
    cache = opened()
    cache.get_or_compute("array", an_array)
    array = cache.get("array")
    child = os.fork()
    if child == 0:
        try:
            array[:] = 0
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (array == an_array()).all()


def test_a_blob_is_read_through_once_per_host_and_not_at_all_where_it_was_written(
    opened: Callable[[], Cache], folder: str, tmp_path: Path, digested: list[int]
) -> None:
    opened().get_or_compute("array", an_array)
    for _ in range(2):
        assert (opened().get("array") == an_array()).all()
    assert digested == [], "who has just written it, and whoever shares his memory, need not look again"
    elsewhere = tmp_path / "another user's runtime directory"
    for _ in range(3):
        with fresh_cache(folder, elsewhere) as cache:
            assert (cache.get("array") == an_array()).all()
    assert len(digested) == 1


def flipped(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(SIZE // 2)
        byte = file.read(1)[0]
        file.seek(SIZE // 2)
        file.write(bytes([byte ^ 1]))


def wait_for_a_tick(path: Path) -> None:
    """Return when the file system's clock has moved on: nothing can be done about a time that is set back before."""
    probe = path.with_name("probe")
    while True:
        probe.write_bytes(b"")
        ticked = probe.stat().st_ctime_ns > path.stat().st_ctime_ns
        probe.unlink()
        if ticked:
            return


def flipped_with_its_times_set_back(path: Path) -> None:
    wait_for_a_tick(path)
    status = path.stat()
    flipped(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def truncated(path: Path) -> None:
    os.truncate(path, SIZE // 2)


def grown(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def replaced_by_a_twin(path: Path) -> None:
    wait_for_a_tick(path)
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [flipped, flipped_with_its_times_set_back, truncated, grown, replaced_by_a_twin, Path.unlink],
    ids=lambda damage: damage.__name__,
)
@pytest.mark.parametrize("known", [True, False], ids=["verified before", "never verified"])
def test_a_blob_that_was_changed_is_a_reported_miss_that_heals(
    opened: Callable[[], Cache], folder: str, tmp_path: Path, damage: Callable[[Path], None], known: bool
) -> None:
    opened().get_or_compute("array", an_array)
    # When it is damaged at once, perhaps within the same tick of the file system's clock,
    damage(blob_of(folder))
    cache = opened() if known else fresh_cache(folder, tmp_path / "knows nothing")
    seen: list[str] = []
    cache.on_event(lambda event: seen.append(event.kind))
    assert cache.get("array") is None
    assert seen.count("healed") == 1
    assert (cache.get_or_compute("array", lambda: an_array(2)) == an_array(2)).all()
    assert (opened().get("array") == an_array(2)).all()


def test_where_others_can_write_a_value_is_copied_and_checked_each_time(
    opened: Callable[[], Cache], folder: str, digested: list[int]
) -> None:
    """For they could change a mapped file after it was checked."""
    opened().get_or_compute("array", an_array)
    os.chmod(folder, 0o770)
    cache = opened()
    for _ in range(2):
        array = cache.get("array")
        assert (array == an_array()).all()
        array[:] = 0
    assert len(digested) == 2
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        assert not any(str(blob_of(folder)) in line for line in maps)


def test_a_mapped_file_that_is_damaged_never_gives_a_wrong_value(tmp_path: Path) -> None:
    damage_mapped(str(tmp_path), rounds=20)


# --- what was verified ------------------------------------------------------------------------------------


def test_what_was_verified_is_shared_by_processes_of_one_boot_only(tmp_path: Path) -> None:
    Verified(str(tmp_path), "boot").mark("this")
    assert Verified(str(tmp_path), "boot").knows("this")
    assert not Verified(str(tmp_path), "boot").knows("that")
    assert not Verified(str(tmp_path), "another boot").knows("this")
    assert not Verified(None, "boot").knows("this")


def test_the_memory_of_what_was_verified_does_not_grow_and_stands_many_writers(tmp_path: Path) -> None:
    def mark(number: int) -> None:
        mine = Verified(str(tmp_path), "boot")
        for item in range(3000):
            mine.mark(f"{number} {item}")

    threads = [threading.Thread(target=mark, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = Verified(str(tmp_path), "boot")
    known = sum(fresh.knows(f"{number} {item}") for number in range(4) for item in range(3000))
    # Of n marks in m places about m (1 - exp(-n/m)) are still there: 10,963 of these.
    assert known > 10_500
    assert not any(fresh.knows(f"{number} {item}") for number in range(4, 8) for item in range(3000))
    assert (tmp_path / "verified").stat().st_size <= PLACES * 16


def test_a_damaged_memory_of_what_was_verified_only_costs_another_look(tmp_path: Path) -> None:
    Verified(str(tmp_path), "boot").mark("this")
    path = tmp_path / "verified"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert not Verified(str(tmp_path), "boot").knows("this")
    path.write_bytes(b"")
    assert not Verified(str(tmp_path), "boot").knows("this")


# --- streaming --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[3, 0, 5], [70_000, 1, 2], [1] * 300_000, [5_000_000, 7, 5_000_000], []])
@pytest.mark.parametrize("at_once", [1000, 1 << 20])
def test_pieces_are_streamed_in_order_in_reads_that_are_neither_many_nor_large(sizes: list[int], at_once: int) -> None:
    content = os.urandom(sum(sizes))
    pieces, at = [], 0
    for size in sizes:
        pieces.append(memoryview(content)[at : at + size])
        at += size
    source = values._Streamed(pieces)
    reads = []
    while chunk := source.read(at_once):
        assert len(chunk) <= at_once
        reads.append(bytes(chunk))
    assert b"".join(reads) == content
    assert source.hexdigest() == digest(content)
    assert len(reads) <= len(content) // min(at_once, 1 << 16) + len([size for size in sizes if size > 1 << 16]) + 2


def test_ingredients_stand_in_the_record_whatever_the_size_of_the_value(opened: Callable[[], Cache]) -> None:
    cache = opened()
    for content in (b"small", b"x" * 100_000):
        encoded = Encoded("bytes", (content,), len(content))
        value = cache._values.store("keys/k", encoded, 0, "c" * 16, 0.0, None, b'{"a":1}')
        assert value.ingredients == b'{"a":1}'
        assert cache._values.store("keys/k", encoded, 0, "d" * 16, 0.0, None).ingredients is None
        assert (value.blob is None) == (len(content) < 100)


def test_anonymous_pages_are_not_shared_with_children() -> None:
    pages = memory.anonymous(4096)
    child = os.fork()
    if child == 0:
        pages[0] = 1
        os._exit(0)
    os.waitpid(child, 0)
    assert pages[0] == 0


# --- how much memory it takes -----------------------------------------------------------------------------

def test_a_large_array_is_in_memory_once(folder: str, tmp_path: Path) -> None:
    store_and_load(folder, str(tmp_path), MEMORY_MIB)


def test_a_large_array_is_in_memory_once_on_its_way_to_and_from_a_bucket(
    ministack_server: Server, tmp_path: Path
) -> None:
    store_and_load(ministack_server.url("dibs-tests", f"large-{os.getpid()}"), str(tmp_path), MEMORY_MIB)


def test_once_verified_a_fresh_process_reads_nothing_of_a_large_array_until_it_is_touched(folder: str) -> None:
    in_fresh_process(folder, "store", 64)
    program = """
import resource, sys
import numpy, dibs

def touched_kib():
    with open("/proc/self/smaps_rollup") as file:
        return int(next(line for line in file if line.startswith("Rss:")).split()[1])

cache = dibs.open(sys.argv[1])
cache.get("warm-up")
before = touched_kib()
array = cache.get("large")
print(touched_kib() - before)
"""
    ran = subprocess.run([sys.executable, "-c", program, folder], check=True, stdout=subprocess.PIPE, text=True)
    assert int(ran.stdout) < 8 * 1024


def test_connections_that_break_in_parts_and_ranges_leave_a_value_whole_or_absent(
    ministack_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_blobs, "PART_SIZE", 5 << 20)
    monkeypatch.setattr(s3_download, "RANGE_SIZE", 1 << 20)
    monkeypatch.setattr(s3_download, "BACKOFF_MAX_S", 0.01)
    break_connections(ministack_server, "dibs-tests", rounds=2, mib=16)


# --- kills ------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import numpy, dibs
from dibs import values

read = values._Streamed.read

def deadly(self, size):
    self.reads = getattr(self, "reads", 0) + 1
    if self.reads > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, size)

values._Streamed.read = deadly
dibs.open(sys.argv[1]).get_or_compute("large", lambda: numpy.arange(1 << 23))
"""


def test_a_kill_during_an_upload_leaves_nothing_to_be_seen_and_the_rest_can_be_cleared(
    opened: Callable[[], Cache], folder: str
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, folder])
    assert killed.returncode == -signal.SIGKILL
    store, cache = opened()._values._blobs, opened()
    assert list(store.scan_blobs("values/")) == []
    assert cache.get("large") is None
    assert (cache.get_or_compute("large", an_array) == an_array()).all()
    assert sum(line.size_bytes for line in store.clear_leftovers(lambda name: False)) > 0
    assert os.listdir(os.path.join(folder, "tmp")) == []


def test_a_source_is_read_in_the_thread_that_uploads(opened: Callable[[], Cache]) -> None:
    threads = set()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    opened()._values._blobs.upload("values/x", Watched(b"x" * 100_000))
    assert threads == {threading.get_ident()}
