"""Values to bytes and back: the same value, of the same type, or a clear refusal."""

from __future__ import annotations

import collections
import datetime
import enum
import math
import threading
from typing import Any

import numpy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.sameness import same
from dibs.codec import Codec, digest
from dibs.errors import CodecError

CODEC = Codec(None)
REFUSING = Codec("pickles are refused here")

scalars = (
    st.none() | st.booleans() | st.integers(-(2**9999), 2**9999) | st.floats(allow_nan=False)
    | st.text(st.characters(blacklist_categories=["Cs"]))
)  # fmt: skip
jsonable = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abé", max_size=3), inner, max_size=4)
)


moments = st.datetimes(timezones=st.none() | st.timezones() | st.just(datetime.UTC), allow_imaginary=True)
hashables = st.recursive(
    scalars | st.binary(max_size=9) | st.dates() | moments | st.timedeltas() | st.fractions() | st.uuids()
    | st.decimals(allow_nan=False) | st.complex_numbers(allow_nan=False) | st.times()
    | st.builds(range, st.integers(), st.integers()) | st.text(st.characters(), max_size=4),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
nested = st.recursive(
    hashables | st.just(math.nan) | st.just(-0.0) | st.binary(min_size=4000, max_size=5000).map(bytearray),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(hashables, inner, max_size=4)
    | st.tuples(inner, inner) | st.sets(hashables, max_size=3),
    max_leaves=12,
)  # fmt: skip


def there_and_back(value: Any, codec: Codec = CODEC) -> Any:
    encoded = codec.encode(value)
    return codec.decode(encoded.codec, encoded.joined())


@given(st.binary())
def test_bytes_stay_as_they_are(value: bytes) -> None:
    assert CODEC.encode(value) == ("bytes", (value,), len(value))
    assert same(there_and_back(value), value)


@given(st.text(st.characters()))
@example("\ud800")
@example("\ud83d\ude00")
@example("")
def test_any_text_comes_back(value: str) -> None:
    assert CODEC.encode(value).codec == "str"
    assert same(there_and_back(value), value)


@settings(deadline=None)
@given(jsonable)
@example([True, 1, 1.0, False, 0, -0.0, None])
@example([math.nan, math.inf, -math.inf, 5e-324])
@example({"b": 1, "a": {"": []}})
@example(["\ud800", "\0", "\u2028", "😀"])
def test_what_json_can_say_comes_back_with_its_types_and_in_its_order(value: Any) -> None:
    if type(value) not in (bytes, str):
        assert REFUSING.encode(value).codec == "json", "no pickle is needed"
    assert same(there_and_back(value, REFUSING), value)


@settings(deadline=None)
@given(nested)
def test_any_nested_standard_value_comes_back_with_all_its_types_without_a_pickle(value: Any) -> None:
    for codec in (REFUSING, CODEC):
        assert same(there_and_back(value, codec), value)
    assert REFUSING.encode(value).codec in ("bytes", "bytearray", "str", "json", "tagged-json")


@settings(deadline=None, max_examples=30)
@given(nested)
def test_a_pickle_gives_the_same_value_as_the_safe_codecs_do(value: Any) -> None:
    encoded = CODEC.encode(value, "pickle")
    assert same(CODEC.decode("pickle", encoded.joined()), there_and_back(value, REFUSING))


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Level(enum.IntEnum):
    HIGH = 3


class Flag(enum.Flag):
    A = 1


Point = collections.namedtuple("Point", "x y")

TAGGED = [
    (1, 2), [(1,)], {1: "int key"}, {None: 1}, {("a",): 1}, {1, 2}, frozenset([1]), 1 + 2j, [b"bytes"],
    [bytearray(b"x")], {"a": {"b": (1,)}}, 2**20_000, range(3), {"$tuple": [(1,)]}, {"": (), "$": 2},
    numpy.longlong(3), numpy.str_("a\0"), numpy.bytes_(b"a\0"), numpy.datetime64("2020-01-01", "25s"),
    numpy.longdouble(1) / 3,
    numpy.float64(1.5), numpy.int64(3), [numpy.float64(1.5)], {"a": numpy.bool_(True)}, ValueError("x").args,
    ["\ud83d\ude00"], {"\ud83d\ude00": 1, "😀": 2},
]  # fmt: skip

OTHERS = [
    Text("sub"), Number(3), Point(1, 2), collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]),
    Level.HIGH, Flag.A, [Text("sub")], {"a": Number(3)}, {Text("key"): 1},
]  # fmt: skip


@pytest.mark.parametrize("value", TAGGED, ids=lambda value: f"{type(value).__name__}")
def test_what_json_would_change_is_tagged_and_comes_back_with_its_types_without_a_pickle(value: Any) -> None:
    assert REFUSING.encode(value).codec == "tagged-json"
    assert same(there_and_back(value, REFUSING), value)


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: type(value).__name__)
def test_what_no_safe_codec_gives_back_exactly_goes_to_pickle_and_comes_back_equal_in_type(value: Any) -> None:
    assert CODEC.encode(value).codec == "pickle"
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("value", OTHERS[:3], ids=str)
def test_where_pickle_is_refused_the_error_says_why_and_carries_the_value(value: Any) -> None:
    with pytest.raises(CodecError, match="pickles are refused here") as caught:
        REFUSING.encode(value)
    assert caught.value.value is value


def test_functions_and_local_classes_are_pickled_by_value() -> None:
    assert there_and_back(lambda x: x + 1)(1) == 2


def test_what_cannot_be_pickled_is_a_codec_error_that_carries_the_value() -> None:
    value = [threading.Lock()]
    with pytest.raises(CodecError, match="can't be pickled") as caught:
        CODEC.encode(value)
    assert caught.value.value is value


def test_a_list_that_contains_itself_and_one_that_is_very_deep_are_stored_or_refused_but_never_crash() -> None:
    loop: list[Any] = []
    loop.append(loop)
    loaded = there_and_back(loop)
    assert loaded[0] is loaded
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(CodecError):
        CODEC.encode(deep)


def test_a_value_that_shares_its_parts_is_encoded_in_time() -> None:
    shared: list[Any] = []
    for _ in range(20):
        shared = [shared, shared]
    # Pickle stores each shared part once; as JSON it would be 2**20 pairs of brackets.
    assert CODEC.encode(shared).size_bytes < 10_000


structured = numpy.dtype([("id", "<i4"), ("name", "U5"), ("sub", [("x", ">f8")], (2,))])
ARRAYS = {
    "float64": numpy.arange(6.0).reshape(2, 3),
    "big endian": numpy.arange(6, dtype=">i2"),
    "F order": numpy.asfortranarray(numpy.arange(12).reshape(3, 4)),
    "0-d": numpy.array(3.5),
    "empty": numpy.empty((0, 3), "f4"),
    "strided": numpy.arange(20)[::3],
    "bool": numpy.array([True, False]),
    "complex": numpy.array([1 + 2j]),
    "text": numpy.array(["é", "abc"]),
    "bytes": numpy.array([b"a", b"bc"]),
    "times": numpy.array(["2024-01-01", "NaT"], "datetime64[ns]"),
    "structured": numpy.zeros(3, structured),
    "nan": numpy.array([numpy.nan, -0.0]),
    "void": numpy.array([b"ab"], "V2"),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_come_back_with_dtype_shape_order_and_every_bit_and_can_be_written(array: numpy.ndarray) -> None:
    encoded = REFUSING.encode(array)
    loaded = REFUSING.decode(encoded.codec, encoded.joined())
    assert encoded.codec == "npy"
    assert loaded.dtype == array.dtype and loaded.dtype.byteorder == array.dtype.byteorder
    assert loaded.shape == array.shape
    assert loaded.tobytes() == array.tobytes()
    assert array.ndim < 2 or loaded.flags.f_contiguous == array.flags.f_contiguous
    loaded[...] = loaded
    assert type(loaded) is numpy.ndarray


@pytest.mark.parametrize(
    "array",
    [numpy.array([{}, None]), numpy.ma.array([1], mask=[True]), numpy.array([1]).view(numpy.recarray)],
    ids=["object", "masked", "subclass"],
)
def test_other_arrays_go_to_pickle(array: Any) -> None:
    assert CODEC.encode(array).codec == "pickle"
    assert type(there_and_back(array)) is type(array)


OVERLAPPING = numpy.zeros(2, {"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [0, 2]})
BACKWARDS = numpy.zeros(2, {"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [4, 0]})


@pytest.mark.parametrize("array", [OVERLAPPING, BACKWARDS], ids=["overlapping", "backwards"])
def test_an_array_that_npy_cannot_say_goes_to_pickle(array: Any) -> None:
    assert CODEC.encode(array).codec == "pickle"
    loaded = there_and_back(array)
    assert loaded.dtype == array.dtype and loaded.tobytes() == array.tobytes()


@pytest.mark.parametrize("codec", ["bytes", "str", "json", "npy", "pickle"])
def test_the_codecs_are_named_in_the_error_when_their_bytes_cannot_be_loaded(codec: str) -> None:
    if codec == "bytes":
        return
    with pytest.raises(CodecError, match=codec):
        CODEC.decode(codec, b"\xff\xfe garbage")


def test_an_unknown_codec_is_an_error_that_names_it() -> None:
    with pytest.raises(CodecError, match="'zarr'"):
        CODEC.decode("zarr", b"")


def test_an_array_of_pickles_in_disguise_is_refused() -> None:
    import io

    file = io.BytesIO()
    numpy.save(file, numpy.array([{}]), allow_pickle=True)
    with pytest.raises(CodecError):
        REFUSING.decode("npy", file.getvalue())


def test_equal_bytes_have_equal_digests_and_others_do_not() -> None:
    assert digest(b"a") == digest(b"a") != digest(b"b")
    assert len(digest(b"")) == 32


def test_a_list_that_names_a_small_part_twice_needs_no_pickle() -> None:
    row = [0, 0]
    assert REFUSING.encode([row] * 3).codec == "json"
