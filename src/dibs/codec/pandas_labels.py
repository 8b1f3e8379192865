"""Labels of pandas (column names, categories, levels) as JSON: exact, or not at all.

There are few of them as a rule, so each set of labels is put together again and compared before it is trusted.
"""

from __future__ import annotations

from typing import Any, Final

import numpy
import pandas as pd

from dibs.codec import tagged

_LABELS_MAX: Final = 100_000
_DTYPES: Final = ("object", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32",
                  "float64")  # fmt: skip


class NotSayable(Exception):
    """The value holds something that isn't known exactly; a pickle may hold it."""


def say_labels(index: pd.Index) -> dict[str, Any]:
    """What `read_labels` makes this index of; raises NotSayable."""
    if type(index) is pd.RangeIndex:
        return say_range(index)
    if len(index) > _LABELS_MAX:
        raise NotSayable
    said = _said(index)
    # What is stored is what JSON makes of it, so that is what must give back the same labels.
    encoded = tagged.encode(said, lambda value: None, None)
    if encoded is None:
        raise NotSayable
    try:
        back = read_labels(tagged.decode(encoded.joined(), lambda codec, data: None))
    except (ValueError, TypeError):
        raise NotSayable from None
    if type(back) is not type(index) or not back.identical(index):
        raise NotSayable
    return said


def say_range(index: pd.RangeIndex) -> dict[str, Any]:
    return {"kind": "RangeIndex", "range": range(index.start, index.stop, index.step), "name": index.name}


def read_labels(said: dict[str, Any]) -> Any:
    kind = said["kind"]
    if kind == "RangeIndex":
        return pd.RangeIndex(said["range"], name=said["name"])
    if kind == "MultiIndex":
        levels = [read_labels(level) for level in said["levels"]]
        return pd.MultiIndex(levels, said["codes"], names=said["names"])
    if kind == "IntervalIndex":
        left, right = read_labels(said["left"]), read_labels(said["right"])
        return pd.IntervalIndex.from_arrays(left, right, closed=said["closed"], name=said["name"])
    if kind in ("DatetimeIndex", "TimedeltaIndex"):
        made = getattr(pd, kind)(numpy.array(said["ticks"], "i8").view(said["dtype"]), name=said["name"])
        if said["zone"] is not None:
            made = made.tz_localize("UTC").tz_convert(said["zone"].tzinfo)
        made.freq = said["freq"]
        return made
    if kind != "Index":
        raise ValueError(f"no labels of kind {kind!r} are known")
    return pd.Index(said["labels"], dtype=_read_dtype(said["dtype"]), name=said["name"], tupleize_cols=False)


def _said(index: Any) -> dict[str, Any]:
    kind = type(index).__name__
    said: dict[str, Any] = {"kind": kind, "name": index.name}
    if type(index) is pd.MultiIndex:
        said["names"] = list(index.names)
        said["levels"] = [say_labels(level) for level in index.levels]
        said["codes"] = [numpy.asarray(code).tolist() for code in index.codes]
    elif type(index) is pd.IntervalIndex:
        said |= {"left": say_labels(index.left), "right": say_labels(index.right), "closed": index.closed}
    elif type(index) is pd.DatetimeIndex or type(index) is pd.TimedeltaIndex:
        import datetime

        zone = getattr(index, "tz", None)
        said["zone"] = None if zone is None else datetime.time(tzinfo=zone)
        said["ticks"] = index.asi8.tolist()
        said["dtype"] = f"<{'M' if kind == 'DatetimeIndex' else 'm'}8[{index.unit}]"
        said["freq"] = None if index.freq is None else index.freqstr
    elif type(index) is pd.Index:
        said["dtype"] = _say_dtype(index.dtype)
        said["labels"] = index.tolist()
    else:
        raise NotSayable
    return said


def _say_dtype(dtype: Any) -> Any:
    if isinstance(dtype, pd.StringDtype):
        return [dtype.storage, dtype.na_value is pd.NA]
    if not isinstance(dtype, numpy.dtype) or dtype.name not in _DTYPES:
        raise NotSayable
    return dtype.name


def _read_dtype(said: Any) -> Any:
    if isinstance(said, str) and said in _DTYPES:
        return numpy.dtype(said)
    storage, is_na = said
    return pd.StringDtype(storage, pd.NA if is_na else numpy.nan)
