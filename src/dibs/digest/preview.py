"""What a value looks like to people, in at most 80 characters; never the basis of a digest."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable
from typing import Any, Final

_SIZE_MAX: Final = 80
_ITEMS_MAX: Final = 8
_DEPTH_MAX: Final = 3
_DIGITS_BITS_MAX: Final = 300
_SHORT: Final = ("datetime", "decimal", "fractions", "uuid", "pathlib", "pathlib._local", "dibs.digest.files")
"""Modules of types whose repr is short and says it all."""
_SHAPED: Final = ("numpy", "pandas", "polars", "pyarrow", "torch", "scipy")


def preview(value: object) -> str:
    """Return the type and a short content, e.g. `0.1`, `'news'`, `ndarray float64 (1000, 3)`.

    Floats are shown with all their digits.  Never raises, and never takes long, however large the value is.
    """
    try:
        shown = _preview(value, 0)
    except Exception:
        shown = f"<{type(value).__qualname__}>"
    shown = " ".join(shown.split())
    return shown if len(shown) <= _SIZE_MAX else f"{shown[: _SIZE_MAX - 1]}…"


def _preview(value: Any, depth: int) -> str:
    kind = type(value)
    if value is None or kind in (bool, float, complex, type(...), range):
        return repr(value)
    if kind is int:
        bits = value.bit_length()
        return repr(value) if bits <= _DIGITS_BITS_MAX else f"int of {bits} bits"
    if kind is str or kind is bytes or kind is bytearray:
        return repr(value) if len(value) <= _SIZE_MAX else f"{value[: _SIZE_MAX - 20]!r}… ({len(value)})"
    if depth >= _DEPTH_MAX:
        return f"{kind.__qualname__}(…)"
    if kind in (list, tuple, set, frozenset):
        return _items(kind, value, depth)
    if kind is dict:
        pairs = itertools.islice(value.items(), _ITEMS_MAX)
        shown = (f"{_preview(key, depth + 1)}: {_preview(item, depth + 1)}" for key, item in pairs)
        return f"{{{_joined(shown, len(value))}}}"
    if kind.__module__.partition(".")[0] in _SHAPED:
        return _shaped(value, kind)
    if isinstance(value, type) or hasattr(value, "__code__"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, enum.Enum):
        return f"{kind.__qualname__}.{value.name}"
    named = getattr(kind, "__dataclass_fields__", None)
    if named is not None:
        fields = [name for name, field in named.items() if field.repr]  # the others may be secrets
        shown = (f"{name}={_preview(getattr(value, name, None), depth + 1)}" for name in fields[:_ITEMS_MAX])
        return f"{kind.__qualname__}({_joined(shown, len(fields))})"
    if kind.__module__ in _SHORT:
        return repr(value)
    return kind.__qualname__


def _items(kind: type, value: Any, depth: int) -> str:
    # The order of a set differs from process to process: for people, sorted.
    some: Iterable[str] = (_preview(item, depth + 1) for item in itertools.islice(value, _ITEMS_MAX))
    if kind in (set, frozenset):
        some = sorted(some) if len(value) <= _ITEMS_MAX else ()
    shown = _joined(some, len(value))
    if kind is list:
        return f"[{shown}]"
    if kind is tuple:
        return f"({shown},)" if len(value) == 1 else f"({shown})"
    return f"{{{shown}}}" if kind is set else f"frozenset({{{shown}}})"


def _joined(shown: Iterable[str], size: int) -> str:
    text, left = "", size
    for part in shown:
        text += f", {part}" if text else part
        left -= 1
        if len(text) > _SIZE_MAX:
            break
    if left > 0:
        return f"{text}, … ({size})" if text else f"… ({size})"
    return text


def _shaped(value: Any, kind: type) -> str:
    """Arrays, frames and tensors: never their elements, which may be many, or on another device."""
    shape = getattr(value, "shape", None)
    if shape == ():
        item = getattr(value, "item", None)
        device = getattr(getattr(value, "device", None), "type", "cpu")
        if item is not None and device in ("cpu", None):
            return f"{kind.__qualname__}({item()!r})"
    dtype = getattr(value, "dtype", None)
    parts = [kind.__qualname__, "" if dtype is None else str(dtype), "" if shape is None else str(tuple(shape))]
    return " ".join(part for part in parts if part)
