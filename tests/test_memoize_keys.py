"""What a memoized function's options do to its keys; what is kept of arguments; values that the store can't keep."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FaultyStore, HandRuntime, cache_on

import dibs
from dibs import Cache, SettingsError, StoreUnavailable, Undigestible
from dibs.stores.memory import MemoryStore

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return dibs.open(tmp_path / "cache")


def test_another_key_function_makes_other_keys_though_its_results_are_equal(cache: Cache) -> None:
    def make(key: Callable[..., Any], **options: Any) -> Any:
        @cache.memoize(key=key, name="rows", **options)
        def rows(given: list[int]) -> list[int]:
            return list(given)

        return rows

    assert make(lambda given: len(given))([9, 9, 9]) == [9, 9, 9]
    assert make(lambda given: sum(given))([1, 2]) == [1, 2], "3 was a length, and is a sum now"
    assert make(lambda given: len(given))([7, 7, 7]) == [9, 9, 9]
    changes = make(lambda given: max(given)).explain([3]).changes
    assert [change.ingredient for change in changes] == ["key= function"]
    # With a version, its author says when results change.
    assert make(lambda given: len(given), version="1")([9, 9, 9]) == [9, 9, 9]
    assert make(lambda given: sum(given), version="1")([1, 2]) == [9, 9, 9]


def test_a_key_without_a_digest_is_said_to_be_what_the_key_function_returned(cache: Cache) -> None:
    with pytest.raises(Undigestible, match=r"^key= \(_thread\.lock\)"):
        cache.memoize(key=lambda x: threading.Lock())(lambda x: x)(1)


def test_declared_files_count_by_content_wherever_they_are(cache: Cache, tmp_path: Path) -> None:
    def make(path: Path) -> Any:
        return cache.memoize(files=[path], name="read")(lambda: calls.append(1))

    here, there, other = tmp_path / "a" / "data", tmp_path / "b" / "data", tmp_path / "c" / "data"
    for path, text in ((here, "same"), (there, "same"), (other, "different")):
        path.parent.mkdir()
        path.write_text(text)
    assert make(here).key() == make(there).key() != make(other).key()
    make(here)()
    (change,) = make(other).explain().changes
    assert change.ingredient == "files[0]"
    assert str(other) in change.now


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, "name = ''"),
        ({"name": 5}, "name = 5"),
        ({"name": "x" * 5000}, "at most"),
        ({"name": "a\x1b[31m"}, "one line"),
        ({"name": "a\nb"}, "one line"),
        ({"name": "\ud800"}, "one line"),
        ({"version": 1.5}, "version = 1.5"),
        ({"version": True}, "version = True"),
        ({"version": object()}, "version = <object"),
        ({"files": [5]}, "files has 5"),
        ({"files": None}, "files = None"),
        ({"ignore": ["x"], "key": len}, "leave out ignore="),
        ({"ignore": 3}, "ignore = 3"),
    ],
)
def test_an_impossible_option_is_refused_where_it_is_given(cache: Cache, options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        cache.memoize(**options)(lambda x: x)


@pytest.mark.parametrize("name", ["a/b", "a b", "ü/ñ", "x" * 990, "..", ".", "a/", "/", "~", "日本"])
def test_any_name_on_one_line_does(cache: Cache, name: str) -> None:
    work = cache.memoize(name=name)(lambda x: x)
    neighbour = cache.memoize(name=f"{name}/more")(lambda x: x)
    assert (work(1), work(2), neighbour(1)) == (1, 2, 1)
    assert work.name == name
    assert work.explain(1).state == "hit"
    assert work.explain(3).looked_at == 2
    assert len(work.versions()) == 1
    assert work.forget_all() == 2
    assert not work.is_done(1)
    assert neighbour.is_done(1)


def test_a_version_may_be_a_number_and_nothing_is_a_version_too(cache: Cache) -> None:
    def make(version: Any) -> str:
        return cache.memoize(name="f", version=version)(lambda x: x).key(1)

    assert make(2) == make("2")
    assert len({make(version) for version in (None, "", 0, 1, "one")}) == 5


def test_what_is_printed_about_a_key_never_acts_on_the_terminal(cache: Cache) -> None:
    @cache.memoize
    def fails(x: Any) -> None:
        raise ValueError("\x1b[31mred\x07\u202e")

    with pytest.raises(ValueError, match="red"):
        fails("\x1b]0;title\x07")
    text = str(fails.explain("\x1b]0;title\x07"))
    assert "failed" in text
    assert r"\x1b[31mred" in text
    assert all(line.isprintable() for line in text.split("\n"))
    cache.put("family/\x1b[2J", 1)
    assert all(line.isprintable() for line in str(cache.explain("family/\x1b[2J")).split("\n"))


def test_nothing_is_kept_of_an_ignored_argument(cache: Cache) -> None:
    @cache.memoize(ignore=("password",))
    def fetch(user: str, password: str) -> str:
        return user

    fetch("ada", "hunter2")
    (ingredients,) = [cache.explain(key).ingredients for key in list(cache.keys())]
    assert "ada" in str(ingredients)
    assert "hunter2" not in str(ingredients)
    assert "password" not in str(ingredients)


@dataclasses.dataclass
class Login:
    user: str
    password: str = dataclasses.field(repr=False)


def test_fields_that_a_dataclass_does_not_show_are_not_kept_either(cache: Cache) -> None:
    @cache.memoize
    def fetch(login: Login) -> str:
        return login.user

    fetch(Login("ada", "hunter2"))
    assert fetch.explain(Login("ada", "hunter2")).ingredients["argument login"][1] == "Login(user='ada')"
    for path in Path(cache.url.removeprefix("file://")).rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()
    assert not fetch.is_done(Login("ada", "other")), "it counts all the same"


def test_an_error_that_can_not_even_be_shown_arrives_as_it_is(cache: Cache) -> None:
    class Broken(Exception):
        lock = threading.Lock()

        def __str__(self) -> str:
            raise ValueError("no text")

        __repr__ = __str__

    @cache.memoize
    def fails() -> None:
        raise Broken(threading.Lock())

    with pytest.raises(Broken):
        fails()
    assert fails.explain().state == "failed"


def test_a_retag_can_be_taken_back(cache: Cache) -> None:
    def make(cache: Cache, text: str) -> Any:
        return cache.memoize(name="tagged", version=text)(lambda x: calls.append(text) or text)

    one, two = make(cache, "one"), make(cache, "two")
    assert (one(1), two(2)) == ("one", "two")
    two.retag()
    assert two(1) == "one"
    own = two._recipe.identity.code().digest
    two.retag(own[:10])
    again = make(dibs.open(cache.url), "two")
    for each in (two, again):
        assert (each(1), each(2)) == ("two", "two")
    assert calls == ["one", "two", "two"]
    again.retag()
    assert again(1) == "one"


def test_what_a_call_is_made_of_is_noted_before_the_function_changes_it(cache: Cache) -> None:
    @cache.memoize
    def grow(items: list[int]) -> int:
        items.append(1)
        return len(items)

    assert grow([]) == grow([]) == 1
    assert cache.explain(grow.key([])).ingredients["argument items"][1] == "[]"


def test_no_caller_shares_an_object_with_another_or_with_the_cache(cache: Cache) -> None:
    started = threading.Barrier(8)

    @cache.memoize
    def build(x: int) -> list[int]:
        calls.append(x)
        return [x]

    def one() -> None:
        started.wait()
        got = build(1)
        results.append(got[:])
        got.append(9)

    results: list[list[int]] = []
    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[1]] * 8
    assert build(1) == [1]
    assert calls == [1]


def test_a_circle_of_memoized_functions_is_an_error_and_a_ladder_is_none(cache: Cache) -> None:
    @cache.memoize
    def ping(n: int) -> int:
        return int(pong(n))

    @cache.memoize
    def pong(n: int) -> int:
        return int(ping(n))

    @cache.memoize
    def even(n: int) -> bool:
        return n == 0 or bool(odd(n - 1))

    @cache.memoize
    def odd(n: int) -> bool:
        return n != 0 and bool(even(n - 1))

    with pytest.raises(dibs.WaitCircle, match=r"ping.*pong.*ping"):
        ping(1)
    assert even(10)


def test_the_same_memoized_function_serves_one_event_loop_after_another(cache: Cache) -> None:
    @cache.memoize
    async def slow(x: int) -> list[int]:
        calls.append(x)
        await asyncio.sleep(0.01)
        return [x]

    async def many() -> list[list[int]]:
        return await asyncio.gather(*(slow(number % 10) for number in range(200)))

    for _ in range(2):
        found = asyncio.run(many())
        assert len({id(one) for one in found}) == 200
    assert sorted(calls) == list(range(10))


# -- shelved without a store ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"disable": True}, {"read_only": True}])
def test_a_shelved_value_is_there_also_when_no_store_keeps_it(tmp_path: Path, how: dict[str, Any]) -> None:
    dibs.open(tmp_path / "cache").put("a", 1)
    cache = dibs.open(tmp_path / "cache", **how)

    @cache.memoize
    def work(x: int) -> int:
        calls.append(x)
        return 2 * x

    @cache.memoize
    async def later(x: int) -> int:
        return 3 * x

    assert work.shelve(2).get() == 4
    assert calls == [2]
    assert asyncio.run(later.shelve(2)).get() == 6


def test_a_store_that_is_away_at_the_first_call_stops_nobody_who_said_so(caplog: pytest.LogCaptureFixture) -> None:
    runtime = HandRuntime()
    store = FaultyStore(MemoryStore(runtime))
    tolerant, strict = cache_on(store, runtime, on_unavailable="compute"), cache_on(store, runtime)
    store.down = True
    with caplog.at_level(logging.WARNING):
        work = tolerant.memoize(lambda x: calls.append(x) or x + 1)
        assert work(1) == work(1) == 2
        assert work.shelve(1).get() == 2
    assert len(calls) == 3
    assert "without sharing" in caplog.text
    with pytest.raises(StoreUnavailable):
        strict.memoize(lambda x: x)(1)
    store.down = False
    assert work(1) == work(1) == 2
    assert len(calls) == 4


# -- types ----------------------------------------------------------------------------------------------------------


TYPED = """
import dibs
cache = dibs.open("memory:")

@cache.memoize
def load(x: int, *, y: str = "") -> list[str]: ...
@cache.memoize(ignore=("y",), version=1)
def fit(x: int, y: str) -> float: ...
@cache.memoize
async def fetch(x: int) -> bytes: ...
@cache.memoize(expires_s=3)
async def poll(x: int) -> bytes: ...

class Model:
    @cache.memoize
    def predict(self, x: int) -> complex: ...
    @cache.memoize
    async def later(self, x: int) -> complex: ...
    @staticmethod
    @cache.memoize
    def static(x: int) -> set[int]: ...
    @property
    @cache.memoize
    def shown(self) -> int: ...

model = Model()
load(1, y="")            # list[str]
load.recompute(1)        # list[str]
load.shelve(1).get()     # list[str]
load.key(1, y="")        # str
load.peek(1)             # Any
load.is_done(1)          # bool
load.forget(1)           # None
load.forget_all()        # int
fit(1, "")               # float
model.predict(1)         # complex
model.predict.key(1)     # str
Model.predict(model, 1)  # complex
Model.static(1)          # set[int]
Model.static.key(1)      # str
model.shown              # int
load("a")                # error
load.key("a")            # error
load.is_done()           # error
model.predict("a")       # error
model.predict.key("a")   # error

async def main() -> None:
    await fetch(1)                 # bytes
    await poll(1)                  # bytes
    await fetch.recompute(1)       # bytes
    await fetch.is_done(1)         # bool
    (await fetch.shelve(1)).get()  # bytes
    await model.later(1)           # complex
    await model.later.is_done(1)   # bool
    await fetch("a")               # error
"""


def test_type_checkers_see_the_wrapped_signature(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    expected: dict[int, str] = {}
    lines = []
    for number, line in enumerate(TYPED.strip().splitlines(), 1):
        call, mark, what = line.partition("  # ")
        if mark:
            expected[number] = what
            indent = call[: len(call) - len(call.lstrip())]
            line = call if what == "error" else f"{indent}reveal_type({call.strip()})"
        lines.append(line)
    (tmp_path / "typed.py").write_text("\n".join(lines))
    package = str(Path(dibs.__file__).parent.parent)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--disable-error-code=empty-body", "--follow-imports=silent"),
            *("--config-file=", f"--cache-dir={Path(__file__).parent.parent / '.mypy_cache' / 'typed'}", "typed.py"),
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "MYPYPATH": package},
    )  # fmt: skip
    found: dict[int, str] = {}
    for line in done.stdout.splitlines():
        told = re.match(r'typed\.py:(\d+): (note: Revealed type is "(.*)"|error: .*)', line)
        if told:
            found[int(told[1])] = told[3].replace("builtins.", "") if told[3] else "error"
    assert found == expected, done.stdout
