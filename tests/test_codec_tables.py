"""Tables of pandas, Polars and Arrow come back the same, by Arrow where that is exact and by a pickle where not."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import pandas as frames

from bench.sameness import same
from dibs.codec import Codec
from dibs.errors import CodecError

pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")
pa = pytest.importorskip("pyarrow")

CODEC = Codec(None)
REFUSING = Codec("pickles are refused here")
TIMES = pd.date_range("2026-01-01", periods=4, freq="D", tz="Europe/Paris")
MOMENTS = TIMES.tz_localize(None).to_numpy()


def stored_as(value: Any, codec: Codec = CODEC) -> str:
    """The codec of the value, which has come back the same from writable and from immutable memory."""
    encoded = codec.encode(value)
    joined = encoded.joined()
    assert len(joined) == encoded.size_bytes
    for data in (joined, memoryview(bytearray(joined))):
        loaded = codec.decode(encoded.codec, data)
        assert same(loaded, value), f"{value!r}\ncame back as\n{loaded!r}"
    return encoded.codec


def with_attrs() -> Any:
    frame = pd.DataFrame({"a": [1]})
    frame.attrs = {"unit": ("m", 2)}
    return frame


NUMBERS = ("i1", "u2", "i8", "f2", "f4", "f8", "?")

NULLABLE = ("Int16", "Float32", "boolean")

EXACT: dict[str, Callable[[], Any]] = {
    "numbers": lambda: pd.DataFrame({name: numpy.arange(4).astype(name) for name in NUMBERS}),
    "special floats": lambda: pd.DataFrame({"x": [numpy.nan, -0.0, numpy.inf, 5e-324]}),
    "text": lambda: pd.DataFrame({"s": ["x", None, "é😀", ""]}),
    "text as objects": lambda: pd.DataFrame({"s": pd.Series(["x", None, "é"], dtype=object)}),
    "text as objects with nan": lambda: pd.DataFrame({"s": pd.Series(["x", numpy.nan, "é"], dtype=object)}),
    "python strings": lambda: pd.DataFrame({"s": pd.array(["x", None], dtype=pd.StringDtype("python"))}),
    "nullable": lambda: pd.DataFrame({kind: pd.array([1, None], dtype=kind) for kind in NULLABLE}),
    "arrow types": lambda: pd.DataFrame({"l": pd.array([[1], None], dtype=pd.ArrowDtype(pa.list_(pa.int8())))}),
    "categories": lambda: pd.DataFrame({"c": pd.Categorical(["x", None], categories=["y", "x"], ordered=True)}),
    "categories of ints": lambda: pd.DataFrame({"c": pd.Categorical([3, 1, 3])}),
    "no categories": lambda: pd.DataFrame({"c": pd.Categorical([None, None])}),
    "intervals": lambda: pd.DataFrame({"c": pd.cut([1, 2, 3, 4], 2)}),
    "zones": lambda: pd.DataFrame({"p": TIMES, "u": TIMES.tz_convert("UTC"), "n": TIMES.tz_localize(None)}),
    "fixed offset": lambda: pd.DataFrame({"t": TIMES.tz_convert(datetime.timezone(datetime.timedelta(hours=5)))}),
    "units": lambda: pd.DataFrame({unit: TIMES.tz_localize(None).as_unit(unit) for unit in ("s", "ms", "us", "ns")}),
    "gaps in times": lambda: pd.DataFrame(
        {"t": pd.to_datetime(["2026-01-01", None]), "d": pd.to_timedelta([1, None], "s")}),
    "periods": lambda: pd.DataFrame({"p": pd.period_range("2026", periods=3, freq="M")}),
    "index of times": lambda: pd.DataFrame({"x": range(4)}, index=TIMES),
    "index of irregular times": lambda: pd.DataFrame({"x": range(2)}, index=TIMES[[0, 2]]),
    "index of deltas": lambda: pd.DataFrame({"x": range(3)}, index=pd.timedelta_range("1h", periods=3, freq="2h")),
    "index of periods": lambda: pd.DataFrame({"x": range(3)}, index=pd.period_range("2026", periods=3, freq="Q")),
    "index of categories": lambda: pd.DataFrame({"x": range(2)}, index=pd.CategoricalIndex(["b", "a"], name="c")),
    "index of text": lambda: pd.DataFrame({"x": range(2)}, index=pd.Index(["b", "a"], name=("n", 1))),
    "index of floats": lambda: pd.DataFrame({"x": range(2)}, index=[0.5, numpy.nan]),
    "index with a step": lambda: pd.DataFrame({"x": range(3)}, index=pd.RangeIndex(9, 0, -3, name="r")),
    "index of many levels": lambda: pd.DataFrame(
        {"x": range(3)}, index=pd.MultiIndex.from_arrays([["a", None, "b"], TIMES[:3]], names=["l", None])),
    "columns of many levels": lambda: pd.DataFrame(
        numpy.eye(2), columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),
    "columns of all kinds": lambda: pd.DataFrame([[1, 2, 3, 4, 5]], columns=[1, "a", None, (1, 2), 2.5]),
    "columns twice": lambda: pd.DataFrame([[1, 2.5]], columns=["a", "a"]),
    "columns of times": lambda: pd.DataFrame([[1, 2, 3, 4]], columns=TIMES),
    "columns of bools and ints": lambda: pd.DataFrame([[1, 2]], columns=pd.Index([True, 0], dtype=object)),
    "columns with a name": lambda: pd.DataFrame({"a": [1]}).rename_axis(columns="n"),
    "attrs": with_attrs,
    "unique labels": lambda: pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False),
    "strided": lambda: pd.DataFrame(numpy.arange(12.0).reshape(4, 3)[:, ::2]),
    "empty": pd.DataFrame, "no rows": lambda: pd.DataFrame({"a": numpy.zeros(0), "s": pd.Series([], dtype="str")}),
    "no columns": lambda: pd.DataFrame(index=["a", "b"]), "rows left out": lambda: pd.DataFrame({"a": range(9)})[2:7:2],
    "series": lambda: pd.Series([1, 2], index=["a", "b"], name=("x", 1)),
    "series of text": lambda: pd.Series(["a", None]),
    "series without a name": lambda: pd.Series([1.5]), "empty series": lambda: pd.Series([], dtype="f8"),
    "index": lambda: pd.Index([3, 1]), "times": lambda: TIMES, "levels": lambda: pd.MultiIndex.from_tuples([(1, "a")]),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_what_arrow_can_say_of_pandas_comes_back_the_same_without_a_pickle(name: str) -> None:
    assert stored_as(EXACT[name](), REFUSING) == "arrow"


class Frame(pd.DataFrame):  # type: ignore[misc]
    pass


OTHERS: dict[str, Callable[[], Any]] = {
    "objects": lambda: pd.DataFrame({"o": pd.Series(["a", 1, None], dtype=object)}),
    "two kinds of gaps": lambda: pd.DataFrame({"o": pd.Series(["a", numpy.nan, None], dtype=object)}),
    "lone surrogates": lambda: pd.DataFrame({"o": pd.Series(["\ud800"], dtype=object)}),
    "sparse": lambda: pd.DataFrame({"s": pd.arrays.SparseArray([0, 0, 1])}),
    "complex": lambda: pd.DataFrame({"c": [1 + 2j]}),
    "NaN beside NA": lambda: pd.Series(
        pd.arrays.FloatingArray(numpy.array([numpy.nan, 1.0]), numpy.array([False, True]))),
    "subclass": lambda: Frame({"a": [1]}),
    "labels of one's own": lambda: pd.DataFrame([[1]], columns=pd.Index([re.compile("a")], dtype=object)),
    "odd attrs": lambda: pd.DataFrame({"a": [1]}).pipe(lambda frame: frame.attrs.update(f=len) or frame),
    "timestamp": lambda: TIMES[0],
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_arrow_cannot_say_exactly_goes_to_pickle(name: str) -> None:
    value = OTHERS[name]()
    encoded = CODEC.encode(value)
    assert encoded.codec == "pickle"
    loaded = CODEC.decode("pickle", encoded.joined())
    assert type(loaded) is type(value)
    if name not in ("subclass", "NaN beside NA"):
        assert same(loaded, value)
    with pytest.raises(CodecError, match="refused here"):
        REFUSING.encode(value)


@settings(deadline=None, max_examples=60)
@given(
    frames.data_frames(
        [
            frames.column("i", dtype=int),
            frames.column("x", dtype=float),
            frames.column("s", elements=st.text(st.characters(exclude_categories=["Cs"])), dtype=object),
            frames.column("b", dtype=bool),
            frames.column("t", dtype="M8[ns]"),
        ],
        index=frames.range_indexes() | frames.indexes(dtype=int) | frames.indexes(dtype=float),
    )
)
def test_any_frame_comes_back_the_same(frame: Any) -> None:
    assert stored_as(frame, REFUSING) == "arrow"


POLARS: dict[str, Callable[[], Any]] = {
    "numbers": lambda: pl.DataFrame({"i": [1, None], "x": [1.5, float("nan")], "b": [True, None]}),
    "text": lambda: pl.DataFrame({"s": ["a", None], "y": [b"\xff", None]}),
    "categories": lambda: pl.DataFrame({"c": pl.Series(["b", "a"], dtype=pl.Categorical)}),
    "enum": lambda: pl.DataFrame({"e": pl.Series(["b", "a"], dtype=pl.Enum(["a", "b", "c"]))}),
    "nested": lambda: pl.DataFrame({"l": [[1], None], "s": [{"x": 1}, {"x": None}]}),
    "fixed lists": lambda: pl.DataFrame({"a": pl.Series([[1, 2]], dtype=pl.Array(pl.Int8, 2))}),
    "times": lambda: pl.DataFrame({"t": MOMENTS, "d": [datetime.timedelta(1)] * 4, "h": [datetime.time(1)] * 4}),
    "nothing but null": lambda: pl.DataFrame({"n": [None, None]}), "empty": pl.DataFrame,
    "no rows": lambda: pl.DataFrame(schema={"a": pl.Int8}), "series": lambda: pl.Series("s", [1, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", POLARS)
def test_polars_comes_back_the_same_without_a_pickle(name: str) -> None:
    assert stored_as(POLARS[name](), REFUSING) == "arrow"


def test_rows_without_columns_which_no_codec_gives_back_are_not_stored() -> None:
    with pytest.raises(CodecError, match="shape"):
        CODEC.encode(TABLE.select([]))


def test_a_polars_type_that_arrow_has_not_goes_to_pickle() -> None:
    assert stored_as(pl.DataFrame({"i": pl.Series([1, 2], dtype=pl.Int128)})) == "pickle"
    assert CODEC.encode(pl.LazyFrame({"a": [1]})).codec == "pickle"
    with pytest.raises(CodecError):
        REFUSING.encode(pl.DataFrame({"o": pl.Series([object()], dtype=pl.Object)}))


TABLE = pa.table({"a": [1, None, 3], "s": ["x", "y", None], "d": pa.array(["u", "v", "u"]).dictionary_encode()})
ARROW = {
    "table": TABLE, "slice": TABLE.slice(1), "chunks": pa.concat_tables([TABLE, TABLE]), "no rows": TABLE.slice(0, 0),
    "metadata": TABLE.replace_schema_metadata({"by": "me"}), "batch": TABLE.to_batches()[0],
    "array": pa.array([[1], None]),
    "chunked array": pa.chunked_array([[1], [2]]), "empty array": pa.array([], pa.int8()),
    "empty chunked array": pa.chunked_array([], pa.int8()), "no rows of a batch": TABLE.to_batches()[0].slice(0, 0),
    "not null": pa.table([pa.array([1])], pa.schema([pa.field("a", pa.int64(), nullable=False)])),
}  # fmt: skip


@pytest.mark.parametrize("value", ARROW.values(), ids=ARROW)
def test_arrow_comes_back_the_same_without_a_pickle(value: Any) -> None:
    assert stored_as(value, REFUSING) == "arrow"


class Executes(pa.ExtensionType):  # type: ignore[misc]
    loaded = 0

    def __init__(self) -> None:
        super().__init__(pa.int64(), "tests.executes")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Any:
        cls.loaded += 1
        return cls()


def stream(table: Any) -> bytes:
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({b"dibs": f'{{"type":"pyarrow.Table","rows":{table.num_rows}}}'})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_columns_of_an_extension_type_are_refused_where_pickles_are() -> None:
    array = pa.ExtensionArray.from_storage(Executes(), pa.array([1]))
    with pytest.raises(CodecError, match="refused here"):
        REFUSING.encode(pa.table({"a": array}))
    with pytest.raises(CodecError, match="refused here"):
        REFUSING.encode(array)
    pa.register_extension_type(Executes())
    try:
        with pytest.raises(CodecError, match="extension type"):
            REFUSING.decode("arrow", stream(pa.table({"a": array})))
    finally:
        pa.unregister_extension_type("tests.executes")


def test_a_pickled_extension_type_is_refused_before_the_schema_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    field = pa.field("a", pa.int64(), metadata={
        "ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": b"cos\nsystem\n(S'false'\ntR."
    })  # fmt: skip
    data = stream(pa.table([pa.array([1])], pa.schema([field])))
    monkeypatch.setattr(pa.ipc, "open_stream", lambda *_args, **_more: pytest.fail("it was parsed"))
    with pytest.raises(CodecError, match="pickled"):
        REFUSING.decode("arrow", data)


def test_offsets_that_point_outside_are_damage_and_no_crash() -> None:
    array = pa.array(["some", "texts"])
    offsets = bytearray(array.buffers()[1].to_pybytes())
    offsets[4:8] = (10**8).to_bytes(4, "little")
    assert REFUSING.decode("arrow", stream(pa.table({"s": array}))).num_rows == 2
    forged = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(bytes(offsets)), array.buffers()[2]])
    with pytest.raises(CodecError, match="arrow"):
        REFUSING.decode("arrow", stream(pa.table({"s": forged})))


def test_what_describes_a_pandas_table_cannot_ask_for_anything_else() -> None:
    table = pa.table({"0": [1, 2]})
    for about in (
        b'{"type":"pandas.DataFrame"}',
        b'{"type":"pandas.read_pickle","index":{"kind":"RangeIndex","range":{"$range":["0x0","0x2","0x1"]},"name":null}}',
        b'{"type":"pandas.Index","index":{"kind":"eval","name":null,"values":{"kind":"numpy","dtype":"<i8","at":0}}}',
        b'{"type":"pandas.Index","index":{"kind":"Index","name":null,"values":{"kind":"numpy","dtype":"O","at":0}}}',
        b'{"type":"pandas.Index","index":{"kind":"Index","name":null,"values":{"kind":"numpy","dtype":"<f8","at":0}}}',
    ):
        sink = pa.BufferOutputStream()
        forged = table.replace_schema_metadata({b"dibs": about[:-1] + b',"rows":2}'})
        with pa.ipc.new_stream(sink, forged.schema) as writer:
            writer.write_table(forged)
        with pytest.raises(CodecError) as caught:
            REFUSING.decode("arrow", sink.getvalue().to_pybytes())
        assert "rows were written" not in str(caught.value)
