"""pandas: labels and values, column by column; blocks, how strings are stored, and attrs don't count."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable
from typing import Any

import numpy
import pandas

from dibs.digest.arrays import encode_array, lengths, mask_bytes
from dibs.digest.hashing import streamed
from dibs.digest.naming import full_name, is_own
from dibs.digest.refusal import Refused
from dibs.digest.walk import SCALARS, Encoder, Walk

_str = SCALARS[str]


def find(kind: type, value: Any) -> Encoder | None:
    if issubclass(kind, pandas.DataFrame):
        return _frame if kind is pandas.DataFrame else _with_metadata(kind, _frame)
    if issubclass(kind, pandas.Series):
        return _series if kind is pandas.Series else _with_metadata(kind, _series)
    if issubclass(kind, pandas.Index):
        return _index
    if issubclass(kind, pandas.api.extensions.ExtensionArray):
        return lambda value, walk: walk.known(b"pandas.array", *_values(value, walk))
    if issubclass(kind, pandas.Timestamp):
        return _timestamp
    if issubclass(kind, pandas.Timedelta):
        return lambda value, walk: walk.known(b"pandas.Timedelta", _str(f"{value.unit} {value._value}"))
    if value is pandas.NaT or value is pandas.NA:
        return lambda value, walk: walk.known(b"pandas.missing", _str(str(value)))
    if issubclass(kind, pandas.api.extensions.ExtensionDtype):
        return lambda value, walk: walk.known(b"pandas.dtype", *_dtype(value, walk))
    return None


def _with_metadata(kind: type, content: Encoder) -> Encoder:
    """Subclasses such as GeoDataFrame: their class and the attributes that they declare."""

    own, name = is_own(kind), _str(full_name(kind))

    def encode(value: Any, walk: Walk) -> bytes:
        if own and walk.met is not None:
            walk.met[type(value)] = None
        declared = {each: getattr(value, each, None) for each in value._metadata if each != "_name"}
        state = b"d" + walk.mapping(declared, ".{}".format)
        return walk.known(b"pandas.subclass", name, content(value, walk), state)

    return encode


def _frame(value: pandas.DataFrame, walk: Walk) -> bytes:
    columns: list[bytes] = []
    for position in range(value.shape[1]):
        try:
            columns += _values(value.iloc[:, position].array, walk)
        except Refused as refused:
            raise refused.within(f"[{value.columns[position]!r:.60}]") from refused.__cause__
    labels = walk.attribute(value.index, ".index"), walk.attribute(value.columns, ".columns")
    return walk.known(b"pandas.DataFrame", *labels, *columns)


def _series(value: Any, walk: Walk) -> bytes:
    labels = walk.attribute(value.index, ".index"), walk.attribute(value.name, ".name")
    return walk.known(b"pandas.Series", *labels, *_values(value.array, walk))


def _index(value: Any, walk: Walk) -> bytes:
    names = walk.sequence(list(value.names))
    if isinstance(value, pandas.MultiIndex):
        levels = [part for number in range(value.nlevels) for part in _values(_level(value, number), walk)]
        return walk.known(b"pandas.MultiIndex", b"l" + names, *levels)
    freq = getattr(value, "freq", None)
    spacing = b"N" if freq is None or isinstance(value, pandas.PeriodIndex) else _str(freq.freqstr)
    return walk.known(b"pandas.Index", b"l" + names, spacing, *_values(value.array, walk))


def _level(value: Any, number: int) -> Any:
    return value.get_level_values(number).array


def _timestamp(value: Any, walk: Walk) -> bytes:
    numbers = _str(f"{value.unit} {value._value} {value.fold}")
    return walk.known(b"pandas.Timestamp", numbers, walk.attribute(value.tzinfo, ".tzinfo"))


# --- columns ------------------------------------------------------------------------------------------------


def _dtype(dtype: Any, walk: Walk) -> tuple[bytes, ...]:
    if isinstance(dtype, pandas.CategoricalDtype):
        categories = b"N" if dtype.categories is None else walk.encode(dtype.categories)
        return _str("category"), b"T" if dtype.ordered else b"F", categories
    if isinstance(dtype, pandas.StringDtype):
        return (_str("string" if dtype.na_value is pandas.NA else "str"),)
    return (_str(str(dtype)),)


def _values(array: Any, walk: Walk) -> tuple[bytes, ...]:
    """dtype and values of one column."""
    dtype = array.dtype
    if isinstance(dtype, numpy.dtype):
        if dtype.kind in "mM":
            return (encode_array(numpy.asarray(array), walk),)
        return (encode_array(array.to_numpy(), walk),)
    name = _dtype(dtype, walk)
    if isinstance(dtype, pandas.CategoricalDtype):
        return *name, encode_array(numpy.asarray(array.codes), walk)
    if isinstance(dtype, pandas.StringDtype):
        return *name, *_texts(array, walk)
    if isinstance(dtype, pandas.DatetimeTZDtype | pandas.PeriodDtype):
        return *name, encode_array(array.asi8, walk)
    if isinstance(dtype, pandas.IntervalDtype):
        return *name, walk.encode(array.left), walk.encode(array.right)
    if isinstance(dtype, pandas.SparseDtype):
        return *name, encode_array(numpy.asarray(array), walk)
    if isinstance(dtype, pandas.ArrowDtype):
        from dibs.digest.arrow import values

        arrow = array.__arrow_array__()
        chunks = getattr(arrow, "chunks", None)
        return *name, *values([arrow] if chunks is None else chunks, arrow.type, walk)
    missing = numpy.asarray(array.isna(), dtype=bool)
    plain = getattr(dtype, "numpy_dtype", None)
    if isinstance(plain, numpy.dtype) and plain.kind in "biuf":  # Int64, Float32, boolean
        hidden = array.to_numpy(dtype=plain, na_value=plain.type(0))
        return *name, mask_bytes(missing), encode_array(hidden, walk)
    items = walk.sequence(list(array.astype(object)))
    return _str(full_name(type(array))), *name, b"l" + items


def _texts(array: Any, walk: Walk) -> tuple[bytes, ...]:
    """The same whether Arrow or Python keeps the strings."""
    from_arrow = getattr(array, "__arrow_array__", None)
    if array.dtype.storage == "pyarrow" and "pyarrow" in sys.modules and from_arrow is not None:
        import pyarrow

        from dibs.digest.arrow import values

        arrow = from_arrow(type=pyarrow.large_string())
        return values(getattr(arrow, "chunks", None) or [arrow], arrow.type, walk)
    missing = numpy.asarray(array.isna(), dtype=bool)
    raws = [b"" if gone else text.encode("utf-8", "surrogatepass") for gone, text in _pairs(missing, array)]
    joined = b"".join(raws)
    counts = lengths(numpy.fromiter(map(len, raws), dtype="<i8", count=len(raws)))
    return SCALARS[int](len(raws)), mask_bytes(missing), counts, streamed(b"b", len(joined), (joined,))


def _pairs(missing: Any, array: Iterable[Hashable]) -> Any:
    return zip(missing.tolist(), array, strict=True)
