"""Frames, tables and columns: labels and values count, and how they are stored does not."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

from dibs.digest import digest_of
from dibs.errors import Undigestible
from tests.digest_asserts import all_differ, equal, needed

# --- pandas -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pd() -> Any:
    return needed("pandas")


def frame(pd: Any, size: int = 6) -> Any:
    return pd.DataFrame(
        {
            "id": range(size),
            "x": [number / 3 if number % 2 else None for number in range(size)],
            "name": [None if number == 2 else f"name {number}" for number in range(size)],
            "kind": pd.Categorical([f"kind {number % 2}" for number in range(size)]),
            "when": pd.date_range("2026-01-01", periods=size, tz="UTC"),
            "count": pd.array([None, *range(size - 1)], dtype="Int64"),
        }
    )


def test_equal_frames_have_equal_digests(pd: Any) -> None:
    whole = frame(pd)
    longer = pd.concat([frame(pd), frame(pd)], ignore_index=True)
    assert equal(
        whole,
        copy.deepcopy(whole),
        pickle.loads(pickle.dumps(whole)),
        longer.iloc[:6].reset_index(drop=True),
        longer[longer.index >= 6].reset_index(drop=True),
        whole[list(whole.columns)],
    )
    by_columns = pd.DataFrame({name: whole[name] for name in whole.columns})
    noted = whole.copy()
    noted.attrs["note"] = "doesn't count"
    assert equal(whole, by_columns, noted)


def test_blocks_do_not_count(pd: Any) -> None:
    numbers = np.arange(12.0).reshape(4, 3)
    one = pd.DataFrame(numbers, columns=list("abc"))
    other = pd.DataFrame({name: numbers[:, place].copy() for place, name in enumerate("abc")})
    assert equal(one, other, pd.DataFrame(np.asfortranarray(numbers), columns=list("abc")))


def test_each_part_of_a_frame_counts(pd: Any) -> None:
    whole = frame(pd)
    others = [
        whole.assign(x=whole["x"].fillna(0)),
        whole.assign(name=whole["name"].fillna("")),
        whole[::-1],
        whole.iloc[:5],
        whole.rename(columns={"id": "no"}),
        whole.set_index("id", drop=False),
        whole[sorted(whole.columns)],
        whole.assign(id=whole["id"].astype("int32")),
        whole.assign(kind=whole["kind"].cat.as_ordered()),
        whole.assign(kind=whole["kind"].cat.add_categories(["more"])),
        whole.assign(count=whole["count"].fillna(0)),
        whole.assign(when=whole["when"].dt.tz_convert("Europe/Berlin")),
        whole.rename_axis("index"),
        whole.assign(name=whole["name"].astype(object)),
        whole.assign(name=whole["name"].astype("string")),
    ]
    assert all_differ(whole, *others)


def test_values_under_missing_ones_do_not_count(pd: Any) -> None:
    one = pd.arrays.IntegerArray(np.array([1, 2]), np.array([False, True]))
    other = pd.arrays.IntegerArray(np.array([1, 9]), np.array([False, True]))
    assert equal(one, other)
    assert all_differ(one, pd.array([1, 2], dtype="Int64"), pd.array([1, None], dtype="Int32"))


def test_strings_are_equal_however_they_are_stored(pd: Any) -> None:
    needed("pyarrow")
    texts = ["a", None, "ü😀", ""]
    stored = [pd.Series(texts, dtype=pd.StringDtype(storage)) for storage in ("pyarrow", "python")]
    assert equal(
        *stored,
        pd.concat([stored[0][:1], stored[0][1:]]),
        pd.Series(["x", *texts], dtype="string")[1:].reset_index(drop=True),
    )
    assert all_differ(
        stored[0], pd.Series(["a", "", "ü😀", ""], dtype="string"), pd.Series(["a", None, "ü", "😀"], dtype="string")
    )
    assert all_differ(stored[0], pd.Series(texts, dtype=object), pd.Series(texts, dtype="str"))


def test_indexes_count_by_labels(pd: Any) -> None:
    assert equal(pd.RangeIndex(3), pd.Index([0, 1, 2]), pd.RangeIndex(0, 3), pd.Index([9, 0, 1, 2])[1:])
    dates = pd.date_range("2026-01-01", periods=3)
    assert all_differ(
        pd.Index([0, 1]),
        pd.Index([0.0, 1.0]),
        pd.Index([0, 1], name="n"),
        pd.Index(["0", "1"]),
        dates,
        dates._with_freq(None),
        dates.tz_localize("UTC"),
        pd.period_range("2026", periods=2, freq="Y"),
        pd.interval_range(0, 2),
        pd.interval_range(0, 2, closed="left"),
        pd.timedelta_range("1D", periods=2),
    )
    whole = pd.MultiIndex.from_product([["a", "b"], [1, 2]], names=["x", "y"])
    assert equal(whole[:2], pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["x", "y"]))
    assert all_differ(whole, whole[:2], whole.rename(["x", "z"]), whole[::-1])


def test_scalars_of_pandas_are_told_apart(pd: Any) -> None:
    stamp = pd.Timestamp("2026-11-21 12:00")
    assert equal(stamp, pd.Timestamp("2026-11-21 12:00"))
    assert all_differ(
        stamp,
        stamp.tz_localize("UTC"),
        stamp.to_pydatetime(),
        pd.NaT,
        pd.NA,
        None,
        float("nan"),
        pd.Timedelta("1D"),
        pd.Interval(0, 1),
        pd.Period("2026"),
        pd.offsets.Day(2),
        pd.offsets.Day(),
    )


def test_sparse_and_arrow_columns_have_digests(pd: Any) -> None:
    needed("pyarrow")
    columns = [pd.arrays.SparseArray([0, 0, 1]), pd.array([0, 0, 1], dtype="int64[pyarrow]"), pd.array([0, 0, 1])]
    assert all_differ(*columns, *map(pd.Series, columns))
    assert equal(columns[1], pd.array([5, 0, 0, 1], dtype="int64[pyarrow]")[1:])


def test_subclasses_of_frames_count_by_class_and_metadata(pd: Any) -> None:
    class Named(pd.DataFrame):  # type: ignore[misc]
        _metadata = ["unit"]  # noqa: RUF012 - as pandas wants it

    one, other = Named({"a": [1]}), Named({"a": [1]})
    one.unit = other.unit = "m"
    assert equal(one, other)
    other.unit = "km"
    assert all_differ(one, other, pd.DataFrame({"a": [1]}))


def test_the_path_to_a_refused_element_names_the_column(pd: Any) -> None:
    bad = pd.DataFrame({"a": [1], "b": [io.StringIO()]})
    with pytest.raises(Undigestible, match=r"^data\['b'\]\[0\] \(_io.StringIO\)"):
        digest_of(bad, "data")


# --- arrow and polars -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pa() -> Any:
    return needed("pyarrow")


def arrow_columns(pa: Any) -> list[Any]:
    return [
        pa.array([1, None, 3, 4]),
        pa.array([1.5, float("nan"), None, 0.0]),
        pa.array([True, None, False, True]),
        pa.array(["a", None, "", "bcd"]),
        pa.array([b"a", None, b"", b"b"]),
        pa.array(["a", None], pa.large_string()),
        pa.array(["a", "bcd", "ef"], pa.large_string()),
        pa.array([[1, 2], None, [], [None]]),
        pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2)),
        pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}]),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        pa.array(["x", "y", None, "x"]).dictionary_encode(),
        pa.array([None, None]),
        pa.array([1, None], pa.decimal128(5)),
        pa.array([1, None], pa.timestamp("us", "UTC")),
        pa.array(["a", None, "bcdefghijklmnopqrstuvw"], pa.string_view()),
    ]


def test_chunks_and_offsets_of_arrow_do_not_count(pa: Any) -> None:
    for column in arrow_columns(pa):
        twice = pa.chunked_array([column, column])
        sliced = pa.concat_arrays([column, column]).slice(len(column))
        assert equal(column, sliced), column.type
        assert equal(
            twice, pa.chunked_array([column[:1], column[1:], column]), pa.chunked_array([twice.combine_chunks()])
        )
        assert all_differ(column, column.slice(1), twice), column.type


def test_what_lies_under_nulls_does_not_count(pa: Any) -> None:
    valid = pa.py_buffer(b"\x05")
    for kind, width in ((pa.int32(), 4), (pa.float64(), 8)):
        one = pa.Array.from_buffers(kind, 3, [valid, pa.py_buffer(bytes(3 * width))])
        other = pa.Array.from_buffers(kind, 3, [valid, pa.py_buffer(bytes(width) + b"\xaa" * width + bytes(width))])
        assert one.equals(other) and equal(one, other)
    offsets = pa.py_buffer(np.array([0, 1, 3, 4], "i4").tobytes())
    one = pa.Array.from_buffers(pa.string(), 3, [valid, offsets, pa.py_buffer(b"aXXb")])
    assert equal(one, pa.array(["a", None, "b"]))


def test_a_bitmap_without_nulls_is_no_bitmap(pa: Any) -> None:
    data = pa.py_buffer(np.arange(3, dtype="i8").tobytes())
    with_bitmap = pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(b"\xff"), data])
    assert equal(with_bitmap, pa.array([0, 1, 2]))


def test_tables_count_by_names_types_and_values(pa: Any) -> None:
    table = pa.table({"a": [1, None], "b": ["x", "y"]})
    assert equal(table, table.replace_schema_metadata({"k": "v"}), pa.concat_tables([table[:1], table[1:]]))
    assert all_differ(
        table,
        table[:1],
        table.rename_columns(["a", "c"]),
        table.select(["b", "a"]),
        table.to_batches()[0],
        table.set_column(0, "a", pa.array([1, None], "int32")),
    )
    assert all_differ(
        pa.array(["x", "x"]).dictionary_encode(), pa.array(["x", "y"]).dictionary_encode(), pa.array(["x", "x"])
    )


def test_polars_counts_by_names_dtypes_and_values() -> None:
    pl = needed("polars")
    whole = pl.DataFrame({"a": [1, None, 3], "s": ["x", None, "long enough to be a view"], "l": [[1.5], [], None]})
    assert equal(whole, whole.clone(), pl.concat([whole[:1], whole[1:]], rechunk=False), pl.concat([whole, whole])[3:])
    assert all_differ(
        whole,
        whole[:2],
        whole.rename({"a": "b"}),
        whole.select("s", "a", "l"),
        whole["a"],
        whole.with_columns(pl.col("a").cast(pl.Int32)),
        whole.fill_null(0),
        whole.to_arrow(),
    )
    first = pl.Series(["b", "a"], dtype=pl.Categorical)
    pl.Series(["c", "a", "b"], dtype=pl.Categorical)
    assert equal(first, pl.Series(["a", "b", "a"], dtype=pl.Categorical)[1:])
    assert all_differ(first, first.cast(pl.String), first.cast(pl.Enum(["a", "b"])), first.cast(pl.Enum(["b", "a"])))
    with pytest.raises(Undigestible, match="collect"):
        digest_of(whole.lazy())
