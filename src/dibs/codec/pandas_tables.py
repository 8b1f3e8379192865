"""DataFrames, Series and indexes of pandas as Arrow columns, each with a description that gives it back exactly.

pandas' own conversion keeps most of a frame; here nothing is left to chance. Each column whose type is known becomes
one Arrow column on the same memory, and its description (which dtype, which zone, which categories) stands in the
table's metadata as tagged JSON. What isn't known here (objects, sparse columns, subclasses) is left to a pickle.
"""

from __future__ import annotations

from typing import Any, Final

import numpy
import pandas as pd
import pyarrow as pa
from pyarrow import compute

from dibs.codec.pandas_labels import NotSayable, read_labels, say_labels, say_range

_NATIVE: Final = {name: pa.from_numpy_dtype(name) for name in (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)}  # fmt: skip
_MASKED: Final = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64",
                  "boolean")  # fmt: skip
_MOMENTS: Final = {"DatetimeIndex": pd.DatetimeIndex, "TimedeltaIndex": pd.TimedeltaIndex}
_INDEXES: Final = {
    "Index": pd.Index, **_MOMENTS, "PeriodIndex": pd.PeriodIndex, "CategoricalIndex": pd.CategoricalIndex,
}  # fmt: skip

About = dict[str, Any]


def to_arrow(value: Any) -> tuple[pa.Table, About] | None:
    """The value as a table and what describes it; None when it holds anything that isn't known exactly."""
    columns: list[Any] = []
    try:
        if type(value) is pd.DataFrame:
            about = _say_frame(value, columns)
        elif type(value) is pd.Series:
            about = {"type": "pandas.Series", "name": value.name, "index": _say_index(value.index, columns)}
            about |= {"values": _say_array(value.array, columns)} | _say_extras(value)
        elif isinstance(value, pd.Index):
            about = {"type": "pandas.Index", "index": _say_index(value, columns)}
        else:
            return None
        return pa.table(columns, names=[str(number) for number in range(len(columns))]), about
    except (NotSayable, pa.ArrowException, UnicodeError):
        return None


def from_arrow(table: pa.Table, about: About, memory: memoryview) -> Any:
    """The value again; its numbers lie in `memory`, from which the table was read."""
    read = _Columns(table, memory)
    index = _read_index(about["index"], read)
    kind = about["type"]
    value: Any
    if kind == "pandas.Index":
        return index
    if kind == "pandas.Series":
        value = _series(_read_array(about["values"], read), index, about["name"])
    elif kind == "pandas.DataFrame":
        arrays = [_read_array(said, read) for said in about["values"]]
        value = pd.DataFrame({n: _series(array, index) for n, array in enumerate(arrays)}, index=index, copy=False)
        value.columns = read_labels(about["columns"])
    else:
        raise ValueError(f"no table of type {kind!r} is known")
    if about["attrs"]:
        value.attrs = about["attrs"]
    return value.set_flags(allows_duplicate_labels=False) if about["unique"] else value


def _say_frame(value: pd.DataFrame, columns: list[Any]) -> About:
    about: About = {"type": "pandas.DataFrame", "columns": say_labels(value.columns)}
    about["index"] = _say_index(value.index, columns)
    about["values"] = [_say_array(value.iloc[:, n].array, columns) for n in range(value.shape[1])]
    return about | _say_extras(value)


def _say_extras(value: Any) -> About:
    return {"attrs": value.attrs, "unique": not value.flags.allows_duplicate_labels}


def _series(array: Any, index: pd.Index, name: Any = None) -> pd.Series:
    return pd.Series(array, index=index, dtype=array.dtype, name=name, copy=False)


# -- indexes -------------------------------------------------------------------------------------------------------


def _say_index(index: pd.Index, columns: list[Any]) -> About:
    if type(index) is pd.RangeIndex:
        return say_range(index)
    if type(index) is pd.MultiIndex:
        levels = [say_labels(level) for level in index.levels]
        codes = [_say_array(code, columns) for code in index.codes]
        return {"kind": "MultiIndex", "levels": levels, "codes": codes, "names": list(index.names)}
    kind = type(index).__name__
    if _INDEXES.get(kind) is not type(index):
        raise NotSayable
    said = {"kind": kind, "name": index.name, "values": _say_array(index.array, columns)}
    if kind in _MOMENTS and index.freq is not None:
        said["freq"] = index.freqstr
        if pd.tseries.frequencies.to_offset(said["freq"]) != index.freq:
            raise NotSayable
    return said


def _read_index(said: About, read: _Columns) -> pd.Index:
    kind = said["kind"]
    if kind == "RangeIndex":
        return read_labels(said)
    if kind == "MultiIndex":
        levels = [read_labels(level) for level in said["levels"]]
        codes = [_read_array(code, read) for code in said["codes"]]
        return pd.MultiIndex(levels, codes, names=said["names"], verify_integrity=True)
    array = _read_array(said["values"], read)
    index = _INDEXES[kind](array, name=said["name"], copy=False, **({"dtype": array.dtype} if kind == "Index" else {}))
    if said.get("freq") is not None:
        index.freq = said["freq"]
    if type(index).__name__ != kind:
        raise ValueError(f"its index was a {kind}")
    return index


# -- columns -------------------------------------------------------------------------------------------------------


def _say_array(array: Any, columns: list[Any]) -> About:
    """Put one column to the others; return what describes it."""
    if not isinstance(array, pd.api.extensions.ExtensionArray) or isinstance(array.dtype, numpy.dtype):
        array = numpy.asarray(array)
    elif type(array) is pd.arrays.NumpyExtensionArray:  # and not the array of texts that inherits from it
        array = array.to_numpy(copy=False)
    dtype = array.dtype
    said: About
    if isinstance(array, numpy.ndarray):
        column, said = _say_numbers(array)
    elif isinstance(dtype, pd.StringDtype):
        missing = "nan" if dtype.na_value is not pd.NA else "NA"
        column, said = pa.array(array), {"kind": "string", "storage": dtype.storage, "missing": missing}
        if pd.StringDtype(dtype.storage, _missing(missing)) != dtype:
            raise NotSayable
    elif dtype.name in _MASKED and dtype == pd.api.types.pandas_dtype(dtype.name):
        column, said = pa.array(array), {"kind": "masked", "dtype": dtype.name}
        _require(dtype.kind != "f" or not compute.any(compute.is_nan(column)).as_py())  # NaN beside NA
    elif isinstance(dtype, pd.ArrowDtype):
        column, said = pa.array(array), {"kind": "arrow"}
    elif isinstance(dtype, pd.DatetimeTZDtype):
        column, said = pa.array(array.asi8), {"kind": "zoned", "unit": dtype.unit, "zone": _as_time(dtype.tz)}
    elif isinstance(dtype, pd.PeriodDtype):
        column, said = pa.array(array.asi8), {"kind": "period", "freq": dtype.name[len("period[") : -1]}
        _require(pd.PeriodDtype(said["freq"]) == dtype)
    elif isinstance(dtype, pd.CategoricalDtype):
        column, codes = _say_numbers(numpy.asarray(array.codes))
        labels = say_labels(dtype.categories)
        said = {"kind": "category", "codes": codes["dtype"], "labels": labels, "ordered": dtype.ordered}
    else:
        raise NotSayable
    columns.append(column)
    return said | {"at": len(columns) - 1}


def _say_numbers(array: Any) -> tuple[Any, About]:
    dtype = array.dtype
    if dtype.kind == "O":
        return _say_texts(array)
    said = {"kind": "numpy", "dtype": dtype.str}
    _require(dtype.isnative and numpy.dtype(dtype.str).type is dtype.type)
    if dtype.name in _NATIVE:
        return pa.array(array, from_pandas=False), said
    if dtype.kind in "mM":
        return pa.array(array.view("i8")), said
    if dtype.kind == "b":
        return pa.array(array.view("u1")), said
    raise NotSayable


def _say_texts(array: Any) -> tuple[Any, About]:
    """Text as objects, with one kind of gaps; other objects could be anything."""
    kinds = set(map(type, array))
    gaps = kinds - {str}
    if gaps == {float} and all(type(item) is str or item != item for item in array):
        return pa.array(array, pa.large_string(), from_pandas=True), {"kind": "text", "missing": "nan"}
    _require(gaps <= {type(None)})
    return pa.array(array, pa.large_string()), {"kind": "text", "missing": "None"}


def _require(known: bool) -> None:
    if not known:
        raise NotSayable


def _as_time(zone: Any) -> Any:
    import datetime

    return datetime.time(tzinfo=zone)  # which tagged JSON can say


def _missing(said: str) -> Any:
    return {"nan": numpy.nan, "NA": pd.NA, "None": None}[said]


class _Columns:
    """The columns of a table that was read from `memory`."""

    def __init__(self, table: pa.Table, memory: memoryview) -> None:
        self._table = table
        self._memory = memory
        self._start = pa.py_buffer(memory).address

    def __getitem__(self, at: int) -> Any:
        column = self._table.column(at)
        if column.num_chunks == 1:
            return column.chunk(0)
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)

    def numbers(self, at: int, dtype: numpy.dtype[Any]) -> Any:
        """A writable array on the column's own bytes. (The library's would be read-only.)"""
        column = self[at]
        stored = _NATIVE.get(dtype.name) or (pa.int64() if dtype.kind in "mM" else pa.uint8())
        if column.type != stored or column.null_count or dtype.kind not in "biufmM":
            raise ValueError(f"column {at} is {column.type}, and can't be read as {dtype}")
        if len(column) == 0:
            return numpy.zeros(0, dtype)
        buffer = column.buffers()[1]
        start = buffer.address - self._start + column.offset * dtype.itemsize
        size = len(column) * dtype.itemsize
        if start >= 0 and start + size <= len(self._memory):
            return numpy.frombuffer(self._memory[start : start + size], dtype)
        return numpy.frombuffer(buffer, dtype, len(column), column.offset * dtype.itemsize).copy()


def _read_array(said: About, read: _Columns) -> Any:
    at, kind = said["at"], said["kind"]
    if kind == "numpy":
        return read.numbers(at, numpy.dtype(said["dtype"]))
    if kind == "zoned":
        dtype = pd.DatetimeTZDtype(said["unit"], said["zone"].tzinfo)
        moments = pd.DatetimeIndex(read.numbers(at, numpy.dtype(f"<M8[{dtype.unit}]")), copy=False)
        return moments.tz_localize("UTC").tz_convert(dtype.tz).array.astype(dtype, copy=False)
    if kind == "period":
        return pd.arrays.PeriodArray(read.numbers(at, numpy.dtype("<i8")), dtype=pd.PeriodDtype(said["freq"]))
    if kind == "category":
        dtype = pd.CategoricalDtype(read_labels(said["labels"]), said["ordered"])
        return pd.Categorical.from_codes(read.numbers(at, numpy.dtype(said["codes"])), dtype=dtype)
    column = read[at]
    if kind == "text":
        objects = column.to_numpy(zero_copy_only=False).astype(object)
        if column.null_count:
            objects[column.is_null().to_numpy(zero_copy_only=False)] = _missing(said["missing"])
        return objects
    if kind == "string":
        return pd.StringDtype(said["storage"], _missing(said["missing"])).__from_arrow__(column)
    if kind == "masked" and said["dtype"] in _MASKED:
        return pd.api.types.pandas_dtype(said["dtype"]).__from_arrow__(column)
    if kind == "arrow":
        return pd.arrays.ArrowExtensionArray(column)
    raise ValueError(f"no column of kind {kind!r} is known")
