"""Frames and series of Polars, by way of Arrow, which shares their memory."""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa


def to_arrow(value: Any) -> tuple[pa.Table, dict[str, Any]] | None:
    """The frame as a table; None for what wouldn't come back with the same schema."""
    if type(value) is pl.Series:
        frame = pl.DataFrame([value.alias("")])
        about = {"type": "polars.Series", "name": value.name}
    elif type(value) is pl.DataFrame:
        frame, about = value, {"type": "polars.DataFrame"}
    else:
        return None
    if any(dtype == pl.Object or pl.Object in _inner(dtype) for dtype in frame.dtypes):
        return None
    if not frame.width:
        return (pa.table({}), about) if not frame.height else None
    try:
        table = frame.to_arrow(compat_level=pl.CompatLevel.newest())
    except pa.ArrowInvalid:  # a type of Polars' own
        return None
    back = _frame(table.slice(0, 0))
    return (table, about) if back.schema == frame.schema else None


def from_arrow(table: pa.Table, about: dict[str, Any]) -> Any:
    frame = _frame(table)
    if about["type"] == "polars.Series":
        return frame.to_series().alias(about["name"])
    return frame


def _frame(table: pa.Table) -> pl.DataFrame:
    try:
        return pl.DataFrame(pl.from_arrow(table))
    except pl.exceptions.PanicException as error:  # no Exception: forged metadata must not pass as an interrupt
        raise ValueError(f"Polars can't read this table: {error}") from None


def _inner(dtype: Any) -> list[Any]:
    inner = getattr(dtype, "inner", None)
    fields = [field.dtype for field in getattr(dtype, "fields", ())] if inner is None else [inner]
    return [found for part in fields for found in (part.base_type(), *_inner(part))]
