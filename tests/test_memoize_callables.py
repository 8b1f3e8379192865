"""`memoize` of whatever can be called, in whatever way it is written, kept on objects and sent to other programs."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import logging
import operator
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import dibs
from dibs import Cache, SettingsError, Undigestible

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return dibs.open(tmp_path / "cache")


def scaled(a: int, b: int, c: int = 3) -> int:
    return a + b + c


class Scale:
    def __init__(self, rate: int) -> None:
        self.rate = rate

    def __call__(self, x: int) -> int:
        return x * self.rate


def test_parameters_may_have_the_names_that_dibs_uses_itself(cache: Cache) -> None:
    @cache.memoize
    def f(self: int, key: int = 2, function: int = 3, default: int = 4, args: int = 5, kwargs: int = 6) -> int:
        calls.append(self)
        return self + key + function + default + args + kwargs

    assert f(self=1) == f(1) == f(1, key=2, function=3, args=5, kwargs=6, default=4) == 21
    assert f.key(self=1) == f.key(1)
    assert f.is_done(self=1)
    assert f.peek(self=1) == 21
    assert f.explain(self=1).state == "hit"
    assert f.shelve(self=1).get() == 21
    f.forget(self=1)
    assert f.recompute(self=1) == 21
    assert calls == [1, 1]


def test_partials_and_callable_objects_count_with_what_they_hold(cache: Cache) -> None:
    one, two = (cache.memoize(functools.partial(scaled, first, c=5)) for first in (1, 2))
    assert (one(2), two(2)) == (8, 9)
    assert one.key(2) != two.key(2)
    double, triple = cache.memoize(Scale(2)), cache.memoize(Scale(3))
    assert (double(5), triple(5)) == (10, 15)
    assert double.is_done(5)
    assert "Scale" in repr(double)
    nested: Any = cache.memoize(functools.partial(functools.partial(_later, 1), 2))
    assert asyncio.run(nested(3)) == 6


async def _later(a: int, b: int, c: int) -> int:
    return a + b + c


class _Later:
    async def __call__(self, x: int) -> int:
        return x


def test_an_async_callable_object_is_awaited(cache: Cache) -> None:
    assert asyncio.run(cache.memoize(_Later())(1)) == 1


def test_frameworks_see_that_an_async_function_must_be_awaited(cache: Cache) -> None:
    class Model:
        @cache.memoize
        async def predict(self, x: int) -> int:
            return x

    one: Any = cache.memoize(_later)
    if sys.version_info < (3, 12):  # inspect can't be told there; those who ask asyncio, or look at __call__, see it
        see = asyncio.iscoroutinefunction  # type: ignore[deprecated,unused-ignore]
        assert inspect.iscoroutinefunction(one.__call__)
    else:
        see = inspect.iscoroutinefunction
    assert see(one)
    assert see(Model().predict)
    assert not see(cache.memoize(scaled))


def test_a_builtin_without_a_signature_is_refused(cache: Cache) -> None:
    assert cache.memoize(sorted)([2, 1], reverse=True) == [1, 2][::-1]
    for wrong in (max, functools.partial(int, base=2)):
        with pytest.raises(SettingsError, match="wrap it in a function of your own"):
            cache.memoize(wrong)


def test_a_function_may_be_called_like_a_keyword(cache: Cache) -> None:
    def f(x: int) -> int:
        return x

    f.__name__ = "class"
    assert cache.memoize(f)(1) == 1


def test_attributes_of_the_function_stay_but_hide_no_method(cache: Cache) -> None:
    def f(x: int) -> int:
        return x

    f.unit, f.key, f._keeper = "m", 5, 6  # type: ignore[attr-defined]
    memoized: Any = cache.memoize(f)
    assert memoized(1) == 1
    assert memoized.unit == "m"
    assert memoized.key(1).startswith(memoized.name)


def test_memoized_twice_in_one_cache_is_refused_but_in_two_caches_it_is_two_levels(tmp_path: Path) -> None:
    near, far = dibs.open("memory:"), dibs.open(tmp_path / "far")
    once = far.memoize(scaled)
    with pytest.raises(SettingsError, match="memoized in this cache already"):
        far.memoize(once)
    both = near.memoize(once)
    assert both(1, 2) == 6
    assert both.is_done(1, 2)
    assert once.is_done(1, 2)


@pytest.mark.parametrize("options", [{"version": "1"}, {"deps": "none"}])
def test_lambdas_whose_code_does_not_count_need_a_name(cache: Cache, options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="needs a name="):
        cache.memoize(**options)(lambda x: x)
    assert cache.memoize(name="one", **options)(lambda x: x + 1)(1) == 2
    assert cache.memoize(name="two", **options)(lambda x: x + 2)(1) == 3


# -- objects -----------------------------------------------------------------------------------------------------


class Model:
    """Keeps memoized functions in all the ways that classes do."""

    cache = dibs.open("memory:")

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.log = logging.getLogger("model")
        self.fit = self.cache.memoize(self.fit)  # type: ignore[method-assign]

    def fit(self, x: int) -> int:
        calls.append(("fit", x))
        return x * self.rate

    @cache.memoize
    def predict(self, x: int) -> int:
        calls.append(("predict", x))
        return x * self.rate

    @cache.memoize
    def __hidden(self, x: int) -> int:
        return x + self.rate

    def hidden(self) -> Any:
        return self.__hidden

    alias = cache.memoize(lambda self, x: x - self.rate)

    @functools.cached_property
    def doubled(self) -> int:
        return 2 * self.rate

    @property
    @cache.memoize
    def shown(self) -> str:
        return f"rate {self.rate}"


def test_a_method_that_is_memoized_on_each_object_counts_the_object(cache: Cache) -> None:
    one, same, other = Model(2), Model(2), Model(3)
    assert (one.fit(5), same.fit(5), other.fit(5)) == (10, 10, 15)
    assert calls == [("fit", 5), ("fit", 5)]
    one.rate = 4
    assert one.fit(5) == 20, "the object is another by now"
    assert (one.shown, other.shown) == ("rate 4", "rate 3")


def test_an_object_that_keeps_its_cache_has_the_same_key_in_every_cache(cache: Cache, tmp_path: Path) -> None:
    class Pipeline:
        def __init__(self, cache: Cache) -> None:
            self.cache = cache

    @cache.memoize
    def run(pipeline: Pipeline) -> None: ...

    elsewhere = dibs.open(tmp_path / "elsewhere", ttl_s=30)
    assert run.key(Pipeline(cache)) == run.key(Pipeline(elsewhere)) == run.key(Pipeline(dibs.open("memory:")))


def test_a_cached_property_of_self_changes_no_key() -> None:
    one = Model(7)
    key = one.predict.key(1)
    assert one.doubled == 14
    assert one.predict.key(1) == key


def test_a_bound_method_has_the_signature_without_self() -> None:
    assert str(inspect.signature(Model(1).predict)) == "(x: 'int') -> 'int'"
    assert str(inspect.signature(Model.predict)) == "(self, x: 'int') -> 'int'"


def test_bound_methods_are_sent_along_with_their_object() -> None:
    one = Model(5)
    del one.fit
    for bound in (one.predict, one.hidden(), one.alias):
        arrived = pickle.loads(pickle.dumps(bound))
        assert arrived(3) == bound(3)
        assert arrived.key(3) == bound.key(3)
    assert copy.deepcopy(one.predict)(2) == 10
    assert copy.deepcopy(Model.predict) is Model.predict


def test_a_memoized_function_counts_as_an_argument_like_what_it_wraps(cache: Cache) -> None:
    @cache.memoize
    def apply(function: Any, x: int) -> int:
        calls.append(x)
        return int(function(x))

    plain, other = cache.memoize(scaled), cache.memoize(operator.neg)
    assert apply.key(plain, 1) == apply.key(cache.memoize(scaled), 1) != apply.key(other, 1)
    assert apply(Model(2).predict, 1) == apply(Model(2).predict, 1) == 2
    assert apply(Model(3).predict, 1) == 3
    assert len([call for call in calls if call == 1]) == 2


def test_a_lock_in_self_is_named_with_the_way_out(cache: Cache) -> None:
    class Guarded:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        @cache.memoize
        def work(self, x: int) -> int:
            return x

    with pytest.raises(Undigestible, match=r"self\.lock .*lock.*(?s:.*)ignore=\('self',\)(?s:.*)__dibs_key__"):
        Guarded().work(1)


class Below:
    @classmethod
    @Model.cache.memoize
    def made(cls, x: int = 0) -> tuple[str, int]:
        return cls.__name__, x


def test_a_class_method_above_memoize_never_answers_for_the_wrong_call() -> None:
    assert Below.made(1) == ("Below", 1)  # type: ignore[arg-type,call-arg]
    if sys.version_info < (3, 13):
        assert Below.made.is_done(1)  # type: ignore[arg-type,call-arg]
    else:
        with pytest.raises(TypeError, match="above @classmethod"):
            Below.made.is_done(1)  # type: ignore[arg-type,call-arg]


def test_on_the_other_python_a_class_method_above_memoize_never_answers_for_the_wrong_call(tmp_path: Path) -> None:
    other = os.environ.get("DIBS_OTHER_PYTHON")
    if not other:
        pytest.skip("DIBS_OTHER_PYTHON names no other Python")
    program = (
        "import dibs\n"
        "cache = dibs.open('memory:')\n"
        "class C:\n"
        "    @classmethod\n"
        "    @cache.memoize\n"
        "    def below(cls, x=0): return x\n"
        "    @cache.memoize\n"
        "    @classmethod\n"
        "    def above(cls, x=0): return x\n"
        "print(C.below(1), C().above(1), C.above.is_done(1))\n"
        "try: print(C.below.is_done(1))\n"
        "except TypeError as error: print('above @classmethod' in str(error))\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([other, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "True", "True"]


# -- other programs ----------------------------------------------------------------------------------------------


PROGRAM = """
import pickle, subprocess, sys
import cloudpickle
import dibs

cache = dibs.open("cache")

@cache.memoize
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

class Model:
    @cache.memoize
    def double(self, x):
        return 2 * x

THERE = "import pickle, sys; f = pickle.load(sys.stdin.buffer); print(f(9), end=' ')"

if __name__ == "__main__":
    assert pickle.loads(pickle.dumps(fib)) is fib
    for thing in (fib, Model().double, lambda n: fib(n) + 1):
        subprocess.run([sys.executable, "-c", THERE], input=cloudpickle.dumps(thing), check=True)
    arrived = subprocess.run(
        [sys.executable, "-c", THERE.replace("f(9)", "f.key(9)")], input=cloudpickle.dumps(fib), stdout=-1, check=True
    )
    print(arrived.stdout.decode().strip() == fib.key(9))
"""


def test_functions_of_the_program_itself_are_sent_by_value_to_programs_that_lack_them(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["34", "18", "35", "True"], done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_takes_memoized_functions_and_methods(tmp_path: Path, method: str) -> None:
    (tmp_path / "program.py").write_text(
        PROGRAM.partition("THERE")[0].replace("import cloudpickle\n", "import multiprocessing\n")
        + "if __name__ == '__main__':\n"
        f"    with multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
        "        print(pool.map(fib, [9, 10]) + pool.map(Model().double, [2, 3]))\n"
        "    print(fib.is_done(10), Model().double.is_done(3))\n"
    )
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[34, 55, 4, 6]", "True True"], done.stderr
