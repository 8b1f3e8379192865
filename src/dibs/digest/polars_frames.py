"""Polars: names, dtypes and values, by way of Arrow; chunks and what lies under nulls don't count."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import polars

from dibs.digest.refusal import Refused
from dibs.digest.walk import SCALARS, Encoder, Walk

_str = SCALARS[str]


def find(kind: type, value: Any) -> Encoder | None:
    if issubclass(kind, polars.LazyFrame):
        raise Refused(value, "a LazyFrame is a plan, not its result", "pass frame.collect()")
    if issubclass(kind, polars.DataFrame):
        return _frame
    if issubclass(kind, polars.Series):
        return lambda value, walk: walk.known(b"polars.Series", _str(value.name), *_values(value, walk))
    if issubclass(kind, polars.DataType):
        return lambda value, walk: walk.known(b"polars.DataType", _str(str(value)))
    return None


def _frame(value: Any, walk: Walk) -> bytes:
    parts = [SCALARS[int](value.height)]
    for series in value.get_columns():
        try:
            parts += [_str(series.name), *_values(series, walk)]
        except Refused as refused:
            raise refused.within(f"[{series.name!r:.60}]") from refused.__cause__
    return walk.known(b"polars.DataFrame", *parts)


def _values(series: Any, walk: Walk) -> tuple[bytes, ...]:
    dtype = series.dtype
    name = _str(str(dtype))
    if dtype == polars.Object:
        return name, b"l" + walk.sequence(series.to_list())
    if dtype == polars.Categorical:
        series = series.cast(polars.String)  # the numbers of categories depend on what came before
    elif dtype == polars.Enum:
        name = walk.known(b"polars.Enum", walk.encode(dtype.categories.to_list()))
        series = series.cast(polars.String)
    if find_spec("pyarrow") is None:
        raise Refused(series, "it is read by way of Arrow, and pyarrow is not installed", "install pyarrow")
    from dibs.digest.arrow import values

    arrow = series.to_arrow()
    chunks = getattr(arrow, "chunks", None)
    return name, *values([arrow] if chunks is None else chunks, arrow.type, walk)
