"""Are two values the same? Equal with equal types all the way down: nan is nan, and 0.0 is not -0.0."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any


def same(one: Any, other: Any) -> bool:
    """Strict sameness of values of the standard types, NumPy, pandas, Polars, Arrow and PyTorch."""
    kind = type(one)
    if kind is not type(other):
        return False
    if isinstance(one, dict):
        # Order counts too; of attributes (OrderedDict may have some) as well as of items.
        pairs = zip(one.items(), other.items(), strict=False)
        extras = same(getattr(one, "__dict__", None), getattr(other, "__dict__", None))
        return len(one) == len(other) and extras and all(same(a, b) for a, b in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and _paired(list(one), list(other))
    if isinstance(one, float):
        return one.hex() == float.hex(other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    for package, judge in _JUDGES.items():
        if kind.__module__.partition(".")[0] == package and package in sys.modules:
            return judge(one, other)
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other))
    if kind.__name__ == "Decimal":
        return one.as_tuple() == other.as_tuple()
    if hasattr(one, "tzinfo"):
        return one == other and one.fold == other.fold and same_zone(one.tzinfo, other.tzinfo)
    return bool(one == other)


def same_zone(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)


def _paired(ones: list[Any], others: list[Any]) -> bool:
    for one in ones:
        found = next((n for n, other in enumerate(others) if same(one, other)), None)
        if found is None:
            return False
        del others[found]
    return True


def _same_numpy(one: Any, other: Any) -> bool:
    if one.dtype != other.dtype or one.dtype.byteorder != other.dtype.byteorder or one.shape != other.shape:
        return False
    if hasattr(one, "mask"):
        return bool((one.mask == other.mask).all()) and one.filled().tobytes() == other.filled().tobytes()
    if one.dtype.hasobject:
        return all(map(same, one.ravel().tolist(), other.ravel().tolist()))
    return bool(one.tobytes() == other.tobytes())


def _same_pandas(one: Any, other: Any) -> bool:
    from pandas import testing

    name = type(one).__name__
    try:
        if name == "DataFrame":
            testing.assert_frame_equal(one, other, check_exact=True, check_freq=True, check_flags=True)
        elif name == "Series":
            testing.assert_series_equal(one, other, check_exact=True, check_freq=True, check_flags=True)
        elif hasattr(one, "names"):
            testing.assert_index_equal(one, other, exact=True, check_exact=True)
            return bool(getattr(one, "freq", None) == getattr(other, "freq", None))
        else:
            return bool(one == other)
    except AssertionError:
        return False
    labels = [(frame.columns if name == "DataFrame" else frame.index) for frame in (one, other)]
    columns = ((one[c], other[c]) for c in one) if name == "DataFrame" and one.columns.is_unique else [(one, other)]
    objects = ((a, b) for a, b in columns if str(getattr(a, "dtype", "")) == "object")
    return (
        same(one.attrs, other.attrs)
        and list(map(type, labels[0])) == list(map(type, labels[1]))
        and type(one.index) is type(other.index)
        and all(all(map(same, a.tolist(), b.tolist())) for a, b in objects)
    )


def _same_polars(one: Any, other: Any) -> bool:
    if hasattr(one, "schema"):
        return bool(one.schema == other.schema and one.equals(other))
    return bool(one.dtype == other.dtype and one.name == other.name and one.equals(other))


def _same_arrow(one: Any, other: Any) -> bool:
    if hasattr(one, "schema"):
        return bool(one.equals(other, check_metadata=True))
    return bool(one.type == other.type and one.equals(other))


def _same_torch(one: Any, other: Any) -> bool:
    import torch

    if not isinstance(one, torch.Tensor):
        return same(one.state_dict(), other.state_dict()) if hasattr(one, "state_dict") else bool(one == other)
    if one.dtype != other.dtype or one.shape != other.shape or one.requires_grad != other.requires_grad:
        return False
    if one.is_sparse:
        return bool(torch.equal(one.to_dense(), other.to_dense()))
    return bytes(one.detach().contiguous().reshape(-1).view(torch.uint8).numpy()) == bytes(
        other.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    )


_JUDGES = {
    "numpy": _same_numpy,
    "pandas": _same_pandas,
    "polars": _same_polars,
    "pyarrow": _same_arrow,
    "torch": _same_torch,
}
