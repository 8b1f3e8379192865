"""NumPy arrays as `.npy` files (format 1.0, or 3.0 for field names that aren't ASCII), without a copy either way.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html describes the format; `numpy.load` reads what is
written here. Arrays of objects are left to other codecs: a `.npy` file would hold them as a pickle.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy
from numpy.lib.format import descr_to_dtype, dtype_to_descr

from dibs.codec.encoded import Encoded, Piece, as_piece, writable

KINDS: Final = "?biufcmMSUV"
_MAGIC: Final = b"\x93NUMPY"
_ALIGN: Final = 64
_HEADER_MAX: Final = 10_000
"""NumPy's own limit: evaluating a longer literal may crash the interpreter."""
_CHUNK_BYTES: Final = 1 << 22


def encode(value: Any) -> Encoded | None:
    """The array in pieces; None when it isn't exactly an `ndarray`, or of a dtype that the format can't say."""
    if type(value) is not numpy.ndarray:
        return None
    dtype = value.dtype
    if dtype.hasobject or dtype.char not in "?bBhHiIlLqQefdgFDGmMSUV" or not _sayable(dtype):
        return None
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    head = _header(dtype, fortran, value.shape)
    if head is None:
        return None
    pieces: Iterable[Piece]
    if value.nbytes == 0:
        pieces = (head,)
    elif value.flags.c_contiguous or fortran:
        pieces = (head, as_piece(value.reshape(-1, order="A").view(numpy.uint8)))
    else:
        pieces = _Chunks(head, value)
    return Encoded("npy", pieces, len(head) + value.nbytes)


def decode(data: Piece) -> Any:
    """A writable array: on the memory of `data` itself when that is writable, else on a copy."""
    view = memoryview(data)
    dtype, fortran, shape, start = _read_header(view)
    size = math.prod(shape) * dtype.itemsize
    if size != len(view) - start:
        raise ValueError(f"{len(view) - start} bytes of content, but {dtype} of shape {shape} takes {size}")
    order: Any = "F" if fortran else "C"
    if size == 0:
        return numpy.empty(shape, dtype, order)
    array: Any = numpy.ndarray(shape, dtype, writable(view[start:]), order=order)
    return array if array.flags.aligned else array.copy(order=order)


def _sayable(dtype: numpy.dtype[Any]) -> bool:
    """A few structured types (fields that overlap or run backwards) have no name in this format."""
    if dtype.kind != "V":
        return True
    try:
        return bool(descr_to_dtype(dtype_to_descr(dtype)) == dtype)
    except ValueError:
        return False


def _header(dtype: numpy.dtype[Any], fortran: bool, shape: tuple[int, ...]) -> bytes | None:
    fields = {"descr": dtype_to_descr(dtype), "fortran_order": bool(fortran), "shape": shape}
    text = "{" + "".join(f"'{name}': {said!r}, " for name, said in fields.items()) + "}"
    version, length_bytes = (1, 2) if text.isascii() else (3, 4)
    said = text.encode()
    begun = len(_MAGIC) + 2 + length_bytes
    padded = said + b" " * (-(begun + len(said) + 1) % _ALIGN) + b"\n"
    if len(padded) > _HEADER_MAX:
        return None
    return _MAGIC + bytes((version, 0)) + len(padded).to_bytes(length_bytes, "little") + padded


def _read_header(view: memoryview) -> tuple[numpy.dtype[Any], bool, tuple[int, ...], int]:
    if bytes(view[:6]) != _MAGIC or len(view) < 12:
        raise ValueError("it doesn't begin as a .npy file does")
    version = view[6]
    if version not in (1, 2, 3):
        raise ValueError(f"it is of version {version} of the .npy format")
    begun = 10 if version == 1 else 12
    length = int.from_bytes(view[8:begun], "little")
    if length > min(_HEADER_MAX, len(view) - begun):
        raise ValueError(f"a header of {length} bytes is announced in {len(view)} bytes")
    text = str(view[begun : begun + length], "utf-8" if version == 3 else "latin-1")
    return *_parsed(text), begun + length


@functools.lru_cache(maxsize=256)  # parsing takes longer than all the rest
def _parsed(text: str) -> tuple[numpy.dtype[Any], bool, tuple[int, ...]]:
    said = ast.literal_eval(text)
    descr, fortran, shape = said["descr"], said["fortran_order"], said["shape"]
    dtype = descr_to_dtype(descr)
    if dtype.hasobject:
        raise ValueError("arrays of objects are pickles in disguise")
    if type(fortran) is not bool or type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"no array has this header: {text[:200]}")
    return dtype, fortran, shape


class _Chunks:
    """Header and content of an array that isn't contiguous, in C order, a few MiB at a time."""

    def __init__(self, head: bytes, array: Any) -> None:
        self._head = head
        self._array = array

    def __iter__(self) -> Iterator[Piece]:
        yield self._head
        flags: Any = ["external_loop", "buffered", "zerosize_ok"]
        items = max(_CHUNK_BYTES // self._array.itemsize, 1)
        for chunk in numpy.nditer(self._array, flags=flags, buffersize=items, order="C"):
            yield chunk.tobytes()  # type: ignore[attr-defined]  # with this flag, a chunk is an array
