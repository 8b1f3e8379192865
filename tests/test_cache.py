"""The public face as an object: opened, copied, pickled, closed, and not kept longer than it is used."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import re
import weakref
from pathlib import Path

import pytest

import dibs
from dibs.errors import SettingsError
from dibs.runtime.system import SystemRuntime
from dibs.stores import open_store
from dibs.stores.memory import MemoryStore
from tests.fakes import Counted, HandRuntime, cache_on, crowd

URL = "cache"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_folder_is_opened_by_its_path_a_pathless_default_or_a_url(tmp_path: Path) -> None:
    with dibs.open(URL) as cache:
        cache.put("key", [1])
    for url in (str(tmp_path / URL), f"file://{tmp_path / URL}"):
        with dibs.open(url) as cache:
            assert cache.get("key") == [1]
    with dibs.open() as cache:
        assert cache.url.endswith("/.dibs")


def test_a_store_of_ones_own_can_be_opened() -> None:
    cache = dibs.open(MemoryStore(SystemRuntime()))
    assert cache.get_or_compute("key", Counted()) == "value"


@pytest.mark.parametrize("url", ["nonsense://x", "file://relative"])
def test_an_unknown_url_is_an_error_that_names_what_is_known(url: str) -> None:
    with pytest.raises(SettingsError, match=r"file://"):
        dibs.open(url)


@pytest.mark.parametrize(
    "url",
    ["s3:/bucket/x", "s3:bucket/x", "file:/x", "https:/x", "http://x/y", "gs://bucket/x", "redis://x",
     "C:\\cache", "c:/cache", "D:cache", "\\\\server\\cache", Path("s3://bucket/x")],
)  # fmt: skip
def test_what_looks_like_a_url_never_becomes_a_directory_of_that_name(url: str | Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(repr(str(url)))):
        dibs.open(url)
    assert not any(tmp_path.iterdir())


def test_schemes_may_be_in_capitals_and_odd_directories_are_spelt_out(tmp_path: Path) -> None:
    assert dibs.open("MEMORY:").url.startswith("memory:")
    dibs.open(f"FILE://{tmp_path}/a%20b").close()
    dibs.open("./s3:/x").close()
    assert (tmp_path / "a b").is_dir() and (tmp_path / "s3:" / "x").is_dir()
    assert open_store("S3://bucket/x", SystemRuntime()).url == "s3://bucket/x"


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "copy"])
def test_a_copy_of_a_cache_is_a_cache_on_the_same_store_with_the_same_settings(how: str) -> None:
    cache = dibs.open(URL, ttl_s=30.0, failures_max=7)
    match how:
        case "pickle":
            twin = pickle.loads(pickle.dumps(cache))
        case "deepcopy":
            twin = copy.deepcopy({"a": cache})["a"]
        case _:
            twin = copy.copy(cache)
    cache.put("key", (1, 2))
    assert twin.get("key") == (1, 2)
    assert twin.settings == cache.settings
    with cache.lock("name"):
        assert twin.try_lock("name") is None


def test_a_pickled_cache_says_nothing_of_what_it_holds() -> None:
    cache = dibs.open(URL)
    with cache.lock("name"):
        assert b"name" not in pickle.dumps(cache).replace(b"__name__", b"")


def test_closing_gives_up_what_is_held_and_closing_twice_is_fine() -> None:
    cache, other = dibs.open(URL), dibs.open(URL)
    lock = cache.lock("name").acquire()
    cache.close()
    cache.close()
    assert not lock.held
    assert other.try_lock("name") is not None
    assert cache.get("key") is None, "and it works again when it is used"


def test_totals_are_the_sum_of_all_that_closed() -> None:
    for number in range(3):
        with dibs.open(URL) as cache:
            cache.get_or_compute(f"key{number}", Counted())
    with dibs.open(URL) as cache:
        assert cache.total_stats().computed == 3


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_caches_that_are_pickled_along_with_tasks_do_not_pile_up() -> None:
    cache = dibs.open(URL)
    cache.put("key", "value")
    payload = pickle.dumps(cache)
    assert pickle.loads(payload).get("key") == "value"
    before = descriptors()
    for _ in range(30):
        assert pickle.loads(payload).get("key") == "value"
    gc.collect()
    assert descriptors() <= before + 5


def test_a_closed_cache_can_be_collected() -> None:
    cache = dibs.open(URL)
    alive = weakref.ref(cache)
    cache.close()
    del cache
    gc.collect()
    assert alive() is None


def test_status_counts_what_is_done_free_failed_and_held() -> None:
    cache = cache_on(MemoryStore(HandRuntime()))
    cache.put("done", b"12345")
    cache.put("forgotten", 1)
    cache.forget("forgotten")
    with pytest.raises(ValueError, match="planned"):
        cache.get_or_compute("failed", Counted("", ValueError("planned")))
    with cache.once("held"):
        status = cache.status()
    assert (status.done, status.free, status.failed, status.damaged) == (1, 1, 1, 0)
    assert [hold.name for hold in status.holds] == ["held"]
    assert status.failures == [("failed", 1, 0, "ValueError: planned")]
    assert status.stored_bytes == 5


def test_keys_are_listed_long_and_odd_ones_too() -> None:
    cache = cache_on(MemoryStore(HandRuntime()))
    keys = {"plain", "", "..", "a/b", "x" * 1000, "é" * 200}
    for key in keys:
        cache.put(key, 1)
    assert set(cache.keys()) == keys


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 300_000])
def test_values_of_any_size_come_back_before_and_after_the_limit_of_the_record(size: int) -> None:
    cache = dibs.open(URL)
    value = os.urandom(size)
    cache.put("key", value)
    assert dibs.open(URL).get("key") == value


def test_forget_of_an_unknown_key_writes_nothing() -> None:
    memory = MemoryStore(HandRuntime())
    cache_on(memory).forget("key")
    assert not [name for name in memory._records if "key" in name]


def test_pickles_need_a_private_folder_or_a_word(tmp_path: Path) -> None:
    with dibs.open(URL) as cache:
        cache.put("key", {len, max})
    (tmp_path / URL).chmod(0o777)
    with dibs.open(URL) as cache:
        with pytest.raises(dibs.CodecError, match="allow_pickle"):
            cache.get("key")
        with pytest.raises(dibs.CodecError, match="allow_pickle"):
            cache.put("other", {len})
    with dibs.open(URL, allow_pickle=True) as cache:
        assert cache.get("key") == {len, max}
    (tmp_path / URL).chmod(0o700)
    with dibs.open(URL, allow_pickle=False) as cache, pytest.raises(dibs.CodecError, match="allow_pickle is False"):
        cache.get("key")


def test_many_threads_on_many_keys_compute_each_once() -> None:
    cache = dibs.open(URL)
    computes = [Counted(number) for number in range(10)]

    def work(thread: int) -> list[int]:
        return [cache.get_or_compute(f"key{number}", computes[number]) for number in range(10)]

    assert crowd(8, work) == [list(range(10))] * 8
    assert [compute.calls for compute in computes] == [1] * 10


def test_a_path_is_as_good_as_a_string(tmp_path: Path) -> None:
    with dibs.open(tmp_path / "elsewhere") as cache:
        assert cache.url.endswith("/elsewhere")


def test_something_that_cannot_be_called_is_no_failure_of_the_key() -> None:
    cache = cache_on(MemoryStore(HandRuntime()))
    with pytest.raises(TypeError, match="function without arguments"):
        cache.get_or_compute("key", 42)  # type: ignore[arg-type]
    assert cache.status().failed == 0


def test_the_fencing_number_outlives_the_block() -> None:
    cache = cache_on(MemoryStore(HandRuntime()))
    with cache.lock("name") as lock:
        pass
    assert lock.generation == 1


def test_a_family_is_forgotten_whole_with_its_long_keys_and_nothing_else() -> None:
    with dibs.open("memory:") as cache:
        long = "train.embed/" + "x" * 500
        family = ["train.embed/a", "train.embed/", long, "train.embed/~%"]
        others = ["train.embed", "train.embed.more/a", "train.embed/a/b", "other/a"]
        for key in family + others:
            cache.put(key, key)
        assert cache._forget_family("train.embed") == len(family)
        assert [key for key in family if key in cache] == []
        assert [key for key in others if key not in cache] == []
        very = "f" * 400
        cache.put(f"{very}/a", 1)
        assert cache._forget_family(very) == 1
        assert f"{very}/a" not in cache
