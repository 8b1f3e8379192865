"""`memoize`: one computation per call, whatever way the arguments are given; and what can be asked about a call."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

import dibs
from dibs import Cache, SettingsError, Undigestible
from dibs.memoize import Memoized

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@pytest.fixture(params=["memory:", "folder"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Cache:
    return dibs.open("memory:" if request.param == "memory:" else tmp_path / "cache")


def test_a_call_is_computed_once_however_its_arguments_are_given(cache: Cache) -> None:
    @cache.memoize
    def add(a: int, b: int = 2, *more: int, scale: float = 1.0, **rest: int) -> float:
        calls.append((a, b))
        return (a + b + sum(more) + sum(rest.values())) * scale

    assert add(1) == add(a=1) == add(1, 2) == add(b=2, a=1) == add(1, scale=1.0) == 3.0
    assert calls == [(1, 2)]
    assert add(1, 2, 3) == 6.0
    assert add(1, 2, x=3, y=4) == add(1, 2, y=4, x=3) == 10.0
    assert len(calls) == 3


def test_different_arguments_are_different_calls(cache: Cache) -> None:
    @cache.memoize
    def same(x: Any, y: Any = None) -> Any:
        calls.append(x)
        return x

    for value in (1, 1.0, True, "1", b"1", (1,), [1], None, {1: 1}, {"1": 1}):
        assert same(value) == value
        assert type(same(value)) is type(value)
    assert len(calls) == 10


def test_the_key_can_be_asked_for_and_used_like_any_key(cache: Cache) -> None:
    @cache.memoize
    def double(x: int) -> int:
        calls.append(x)
        return 2 * x

    key = double.key(21)
    name, _, digest = key.rpartition("/")
    assert name.endswith("double")
    assert len(digest) == 40
    assert key not in cache
    assert double(21) == 42
    assert cache.get(key) == 42
    cache.forget(key)
    cache.put(key, 43)
    assert double(21) == 43
    assert calls == [21]


def test_peek_is_done_forget_and_recompute(cache: Cache) -> None:
    @cache.memoize
    def count(x: int) -> int:
        calls.append(x)
        return len(calls)

    assert not count.is_done(1)
    assert count.peek(1, default=-1) == -1
    with pytest.raises(KeyError, match="count"):
        count.peek(1)
    assert count(1) == 1
    assert count.is_done(1)
    assert count.peek(1) == 1
    assert count.recompute(1) == 2
    assert count(1) == 2
    count.forget(1)
    assert not count.is_done(1)
    assert count(1) == 3
    assert count(2) == 4
    assert count.forget_all() == 2
    assert not count.is_done(1)
    assert not count.is_done(2)


def test_forget_all_leaves_other_functions_alone(cache: Cache) -> None:
    @cache.memoize
    def one(x: int) -> int:
        return x

    @cache.memoize(name="one.more")
    def other(x: int) -> int:
        return x

    one(1), other(1)
    one.forget_all()
    assert other.is_done(1)


def test_what_the_wrapped_function_raises_is_raised_and_not_kept(cache: Cache) -> None:
    @cache.memoize
    def fails(x: int) -> int:
        calls.append(x)
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            fails(1)
    assert calls == [1, 1]
    with pytest.raises(TypeError, match=r"fails\(\) missing 1 required positional argument: 'x'"):
        fails()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        fails(1, z=2)  # type: ignore[call-arg]


def test_ignored_arguments_do_not_count_and_must_exist(cache: Cache) -> None:
    @cache.memoize(ignore=("verbose", "log"))
    def work(x: int, verbose: bool = False, log: Any = None) -> int:
        calls.append(x)
        return x

    assert work(1) == work(1, verbose=True) == work(1, log=print)
    assert calls == [1]
    with pytest.raises(SettingsError, match=r"'verbos'.*x, verbose"):
        cache.memoize(ignore=("verbos",))(lambda x, verbose: x)
    with pytest.raises(SettingsError, match="expected several"):
        cache.memoize(ignore="verbose")(lambda x, verbose: x)


def test_a_key_function_stands_for_the_arguments(cache: Cache) -> None:
    @cache.memoize(key=lambda rows, **_: (len(rows), sum(rows)))
    def total(rows: Any, note: str = "") -> int:
        calls.append(note)
        return sum(rows)

    assert total([1, 2, 3]) == total((3, 2, 1), note="again") == 6
    assert len(calls) == 1


def test_files_count_by_content(cache: Cache, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("1,2")

    @cache.memoize(files=[data])
    def read() -> str:
        calls.append(1)
        return data.read_text()

    @cache.memoize
    def size(file: dibs.File) -> int:
        calls.append(2)
        return len(Path(file).read_text())

    assert read() == read() == "1,2"
    assert size(dibs.File(data)) == size(dibs.File(data)) == 3
    data.write_text("1,2,3")
    assert read() == "1,2,3"
    assert size(dibs.File(data)) == 5
    assert calls == [1, 2, 1, 2]
    data.unlink()
    with pytest.raises(Exception, match=r"data\.csv"):
        read()


def test_an_argument_without_a_digest_is_an_error_that_names_it(cache: Cache, tmp_path: Path) -> None:
    @cache.memoize
    def consume(config: Any) -> None: ...

    with (tmp_path / "x").open("w") as file, pytest.raises(Undigestible, match=r"config\[.log.\]") as caught:
        consume({"log": file})
    assert isinstance(caught.value, TypeError)


def test_expired_values_are_computed_again(cache: Cache) -> None:
    @cache.memoize(expires_s=0.0)
    def now() -> int:
        calls.append(1)
        return len(calls)

    assert (now(), now()) == (1, 2)


class Model:
    cache: Any = None

    def __init__(self, rate: float) -> None:
        self.rate = rate


def test_methods_count_their_object_by_content(cache: Cache) -> None:
    class Scaler(Model):
        @cache.memoize
        def scale(self, x: int) -> float:
            calls.append(x)
            return x * self.rate

        @staticmethod
        @cache.memoize
        def plain(x: int) -> int:
            return x + 1

        @cache.memoize
        @staticmethod
        def other(x: int) -> int:
            return x + 2

        @cache.memoize
        @classmethod
        def named(cls, x: int) -> str:
            return f"{cls.__name__}{x}"

        @cache.memoize(ignore=("self",))
        def whoever(self, x: int) -> int:
            calls.append("whoever")
            return x

    class Sub(Scaler):
        pass

    one, same, different = Scaler(2.0), Scaler(2.0), Scaler(3.0)
    assert one.scale(4) == same.scale(4) == 8.0
    assert calls == [4]
    assert different.scale(4) == 12.0
    assert one.scale.is_done(4)
    assert not one.scale.is_done(5)
    assert one.scale.key(4) == same.scale.key(x=4) != different.scale.key(4)
    assert Scaler.scale(one, 4) == 8.0
    assert len(calls) == 2
    assert Scaler.plain(1) == one.plain(1) == 2
    assert Scaler.other(1) == one.other(1) == 3
    assert Scaler.other.is_done(1)
    assert (Scaler.named(1), Sub.named(1), one.named(1)) == ("Scaler1", "Sub1", "Scaler1")
    assert one.whoever(1) == different.whoever(1)
    assert calls.count("whoever") == 1


def test_what_can_not_be_memoized_is_refused_with_the_reason(cache: Cache) -> None:
    def generator() -> Any:
        yield 1

    for wrong, reason in (
        (generator, "yields"), (Model, "is a class"), (property(lambda self: 1), "@property"), (5, "can't be called"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=reason):
            cache.memoize(wrong)  # type: ignore[call-overload]
    with pytest.raises(SettingsError, match="deps"):
        cache.memoize(deps="all")(lambda: 1)  # type: ignore[call-overload]


def test_the_wrapped_function_looks_like_itself(cache: Cache) -> None:
    @cache.memoize
    def documented(x: int, *, y: str = "a") -> str:
        """What it does."""
        return y * x

    assert documented.__doc__ == "What it does."
    assert documented.__name__ == "documented"
    assert str(inspect.signature(documented)) == "(x: 'int', *, y: 'str' = 'a') -> 'str'"
    assert documented.__wrapped__(2, y="b") == "bb"
    assert isinstance(documented, Memoized)
    assert "documented" in repr(documented)


def test_a_shelved_value_is_loaded_when_it_is_asked_for(tmp_path: Path) -> None:
    cache = dibs.open(tmp_path / "cache")

    @cache.memoize
    def big(n: int) -> bytes:
        calls.append(n)
        return bytes(n)

    @cache.memoize
    def length(data: Any) -> int:
        return len(data.get())

    shelved = big.shelve(100_000)
    assert calls == [100_000]
    sent = pickle.dumps(shelved)
    assert len(sent) < 2000
    assert pickle.loads(sent).get() == bytes(100_000)
    assert length(shelved) == length(big.shelve(100_000)) == 100_000
    big.forget(100_000)
    with pytest.raises(LookupError, match="gone"):
        shelved.get()


def test_keys_may_be_any_value(cache: Cache) -> None:
    assert cache.get_or_compute(("train", {"lr": 0.1}), lambda: 1) == 1
    assert cache.get_or_compute(("train", {"lr": 0.1}), lambda: 2) == 1
    assert cache.get(("train", {"lr": 0.2})) is None
    assert ("train", {"lr": 0.1}) in cache
    cache.put(5, "five")
    assert cache.get(5) == "five"
    assert cache.get(5.0) is None
    with cache.once(frozenset("ab")) as slot:
        slot.commit("set")
    assert cache.get(frozenset("ba")) == "set"


def test_an_async_function_is_awaited_as_before(cache: Cache) -> None:
    @cache.memoize
    async def slow(x: int) -> int:
        calls.append(x)
        await asyncio.sleep(0.01)
        return x * 2

    async def main() -> None:
        assert await asyncio.gather(*(slow(3) for _ in range(20))) == [6] * 20
        assert await slow.is_done(3)
        assert await slow.peek(3) == 6
        assert await slow.peek(4, default=0) == 0
        assert await slow.recompute(3) == 6
        assert await (await slow.shelve(3)).get_async() == 6 if hasattr(dibs.Shelved, "get_async") else True
        await slow.forget(3)
        assert not await slow.is_done(3)
        assert await slow.forget_all() == 1

    asyncio.run(main())
    assert calls == [3, 3]


def test_options_of_the_value_are_handed_on(tmp_path: Path) -> None:
    cache = dibs.open(tmp_path / "cache")

    @cache.memoize(codec="pickle")
    def plain() -> dict[str, int]:
        return {"a": 1}

    assert plain() == plain() == {"a": 1}
    seen = cache._cells.look(f"keys/{plain.key().replace('<', '%3C').replace('>', '%3E')}", plain.key())
    assert seen.cell.value is not None
    assert seen.cell.value.codec == "pickle"


def test_two_versions_of_the_code_live_side_by_side(cache: Cache) -> None:
    def make(text: str) -> Any:
        def versioned(x: int) -> str:
            calls.append(text)
            return text

        return cache.memoize(name="versioned", version=text)(versioned)

    one, two = make("one"), make("two")
    assert [one(1), two(1), one(1), two(1)] == ["one", "two", "one", "two"]
    assert calls == ["one", "two"]


def test_after_a_retag_the_old_entries_count(cache: Cache) -> None:
    def make(text: str) -> Any:
        def tagged(x: int) -> str:
            calls.append(text)
            return text

        return cache.memoize(name="tagged", version=text)(tagged)

    one, two, three = make("one"), make("two"), make("three")
    assert one(1) == "one"
    old = two.retag()
    assert old.digest == one._recipe.identity.code().digest
    assert two(1) == "one"
    assert two.key(1) == one.key(1)
    assert three(2) == "three"
    three.retag(old.digest[:8])
    assert three(1) == "one"
    assert calls == ["one", "three"]
    with pytest.raises(LookupError, match="no earlier version"):
        two.retag("ffff")


def test_a_memoized_function_of_a_module_is_sent_by_name_and_a_local_one_by_value(tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level
    cache = dibs.open(tmp_path / "cache")

    @cache.memoize
    def local(x: int) -> int:
        return x + 1

    assert local(1) == 2
    arrived = cloudpickle.loads(cloudpickle.dumps(local))
    assert arrived.key(1) == local.key(1)
    assert arrived.is_done(1)
    assert functools.partial(arrived, 1)() == 2


shared = dibs.open("memory:")


@shared.memoize
def at_module_level(x: int) -> int:
    return x


def test_a_disabled_cache_just_calls_and_a_read_only_one_reads(tmp_path: Path) -> None:
    def work(x: int) -> int:
        calls.append(x)
        return x

    writer = dibs.open(tmp_path / "cache")
    assert writer.memoize(work)(1) == 1
    reader = dibs.open(tmp_path / "cache", read_only=True)
    memoized = reader.memoize(work)
    assert memoized(1) == 1
    assert calls == [1]
    assert memoized(2) == memoized(2) == 2
    assert calls == [1, 2, 2]
    off = dibs.open(tmp_path / "cache", disable=True).memoize(work)
    assert off(1) == 1
    assert calls == [1, 2, 2, 1]


def test_with_a_secret_notes_about_code_that_are_not_signed_are_not_believed_and_do_no_harm(tmp_path: Path) -> None:
    def make(cache: Cache, text: str) -> Any:
        return cache.memoize(name="signed", version=text)(lambda x: calls.append(text) or text)

    plain = dibs.open(tmp_path / "cache")
    make(plain, "one")(1)
    make(plain, "two").retag()  # whoever could write here may have done this
    signed = dibs.open(tmp_path / "cache", secret="s" * 32)
    assert make(signed, "two")(2) == "two"
    assert make(signed, "two").key(1) != make(signed, "one").key(1)
    with pytest.raises(dibs.CodecError, match="not signed"):
        make(signed, "one")(1)


def test_a_codec_that_nobody_knows_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'parqet'"):
        dibs.open(tmp_path / "cache", codec="parqet")
    cache = dibs.open(tmp_path / "cache")
    with pytest.raises(SettingsError, match=r"'parqet'.*register_codec"):
        cache.memoize(codec="parqet")(lambda: 1)


def test_of_an_ignored_self_the_code_of_its_class_still_counts(cache: Cache) -> None:
    def make(factor: int) -> Any:
        class Scaler:
            def __init__(self, note: Any) -> None:
                self.note = note

            def factor(self) -> int:
                return factor

            @cache.memoize(name="scaled", ignore=("self",))
            def scaled(self, x: int) -> int:
                return x * self.factor()

        return Scaler

    two, three = make(2), make(3)
    assert two(object()).scaled(1) == two(print).scaled(1) == 2
    assert three(None).scaled(1) == 3
    assert two(1).scaled.key(1) == two(2).scaled.key(1) != three(1).scaled.key(1)


def test_the_code_of_the_class_of_an_argument_counts(cache: Cache) -> None:
    def make(power: int) -> Any:
        class Model:
            def __init__(self, rate: float) -> None:
                self.rate = rate

            def predict(self, x: float) -> float:
                return float((self.rate * x) ** power)

        return Model

    @cache.memoize
    def score(model: Any) -> float:
        return float(model.predict(3.0))

    @cache.memoize(deps="function")
    def named(model: Any) -> float:
        return float(model.predict(3.0))

    linear, square = make(1), make(2)
    assert (score(linear(2.0)), score(square(2.0))) == (6.0, 36.0)
    assert score.key(linear(2.0)) == score.key(linear(2.0)) != score.key(linear(1.0))
    assert named.key(linear(2.0)) == named.key(square(2.0))
    changed = score.explain(square(1.0)).changes
    assert any(change.ingredient.startswith("argument model") for change in changed)
