"""NumPy's arrays and scalars: by dtype, shape and content in C order, whatever their memory looks like.

Byte order, strides and padding don't count; a NaN is a NaN, whatever its bits.  Content is hashed where it lies, or
copied a few megabytes at a time where it must be rearranged.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import numpy

from dibs.digest import objects
from dibs.digest.hashing import number, streamed
from dibs.digest.naming import full_name
from dibs.digest.refusal import Refused
from dibs.digest.walk import SCALARS, Encoder, Walk

_CHUNK_SIZE: Final = 8 << 20
_CANONICAL_SIZE: Final = 1 << 20
_HALF_INFINITY: Final = 0x7C00

_str = SCALARS[str]


def find(kind: type, value: Any) -> Encoder | None:
    if kind is numpy.ndarray or kind is numpy.memmap:
        return encode_array
    if issubclass(kind, numpy.ma.MaskedArray):
        return _masked if kind is numpy.ma.MaskedArray else objects.with_attributes(kind, _masked)
    if issubclass(kind, numpy.ndarray):
        return objects.with_attributes(kind, _subclass_content)
    if issubclass(kind, numpy.generic):
        return _scalar if kind.__module__.partition(".")[0] == "numpy" else None
    if issubclass(kind, numpy.dtype):
        return _dtype
    if issubclass(kind, numpy.random.Generator):
        return _generator
    if issubclass(kind, numpy.random.RandomState):
        return _random_state
    if issubclass(kind, numpy.random.BitGenerator):
        return _bit_generator
    return _ufunc if kind is numpy.ufunc else None


def encode_array(array: Any, walk: Walk) -> bytes:
    """An ndarray, or a view as one of a memmap."""
    return walk.known(b"ndarray", *parts(array, walk))


def parts(array: Any, walk: Walk) -> tuple[bytes, ...]:
    """dtype, shape, content; the content of structured arrays field by field."""
    dtype = array.dtype
    kind = dtype.kind
    shape = b"t" + walk.sequence(array.shape)
    if dtype.names is not None:
        fields = [walk.known(b"ndarray", *parts(numpy.asarray(array[name]), walk)) for name in dtype.names]
        return (b"l" + walk.sequence(list(dtype.names)), shape, *fields)
    if kind == "O":
        return _str("O"), shape, b"l" + walk.sequence(array.reshape(-1).tolist())
    if kind == "T":  # strings of any length; missing ones are what the dtype says
        missing = walk.encode(getattr(dtype, "na_object", ...))
        return _str("T"), shape, missing, b"l" + walk.sequence(array.reshape(-1).tolist())
    return _str(_dtype_name(dtype, array)), shape, content(array)


def _dtype_name(dtype: Any, value: Any) -> str:
    if type(dtype).__module__.partition(".")[0] != "numpy" or dtype.kind not in "biufcmMSUV":
        # bfloat16 and its like; their bytes are their value
        if dtype.hasobject:
            raise Refused(value, f"nothing is known of the dtype {dtype}")
        return f"{dtype.itemsize}:{full_name(type(dtype))}:{dtype}"
    if dtype.kind in "fc" and dtype.itemsize > 8 * (1 + (dtype.kind == "c")):
        return f"{dtype.char}{numpy.finfo(dtype).nmant}"
    if dtype.kind == "V" and dtype.name != f"void{8 * dtype.itemsize}" and dtype.itemsize:
        return f"|V{dtype.itemsize}:{dtype.name}"
    name: str = dtype.newbyteorder("<").str
    return name


# --- content ----------------------------------------------------------------------------------------------


def content(array: Any) -> bytes:
    """The elements in C order, little-endian, as the encoding of bytes."""
    dtype = array.dtype
    if dtype.kind in "fc" and dtype.itemsize > 8 * (1 + (dtype.kind == "c")):
        return _long_doubles(array)
    size_bytes = array.size * dtype.itemsize
    if not size_bytes:
        return streamed(b"b", 0, ())
    return streamed(b"b", size_bytes, chunks_of(array))


def chunks_of(array: Any) -> Iterator[Any]:
    """The bytes of the elements in C order, in pieces."""
    for chunk in _in_order(array):
        if chunk.dtype.kind in "fc":
            yield from _canonical(chunk)
        else:
            yield chunk.view(numpy.uint8)


def _in_order(array: Any) -> Iterator[Any]:
    """Flat contiguous native pieces; copied piece by piece when the memory says it otherwise."""
    dtype = array.dtype
    swapped = not dtype.isnative if sys.byteorder == "little" else dtype.newbyteorder("<") != dtype
    if array.flags.c_contiguous and not swapped:
        yield array.reshape(-1).view(numpy.ndarray)
        return
    target = dtype.newbyteorder("<")
    if array.ndim == 0:
        yield array.reshape(1).astype(target)
        return
    rows = max(_CHUNK_SIZE * array.shape[0] // (array.size * dtype.itemsize), 1)
    for start in range(0, array.shape[0], rows):
        yield numpy.asarray(array[start : start + rows]).astype(target, order="C").reshape(-1)


def _canonical(flat: Any) -> Iterator[Any]:
    """The bytes of flat floats, with every NaN of the same bits."""
    if flat.dtype.kind == "c":
        flat = flat.view(f"{flat.dtype.byteorder}f{flat.dtype.itemsize // 2}")
    if not _may_have_nan(flat):
        yield flat.view(numpy.uint8)
        return
    step = _CANONICAL_SIZE // flat.dtype.itemsize
    for start in range(0, flat.size, step):
        piece = flat[start : start + step]
        strange = piece != piece
        if strange.any():
            piece = piece.copy()
            piece[strange] = numpy.nan
        yield piece.view(numpy.uint8)


def _may_have_nan(flat: Any) -> bool:
    if flat.dtype.itemsize == 2:  # twenty times faster by bits
        return bool(((flat.view(numpy.uint16) & 0x7FFF) > _HALF_INFINITY).any())
    with numpy.errstate(invalid="ignore"):
        least = flat.min()  # one pass, at the speed of memory
    return bool(least != least)


def _long_doubles(array: Any) -> bytes:
    """Extended precision: the padding of its 12 or 16 bytes is whatever was there."""
    flat = numpy.ascontiguousarray(array).reshape(-1)
    flat = flat.astype(flat.dtype.newbyteorder("="))
    if flat.dtype.kind == "c":
        flat = flat.view(numpy.longdouble)
    flat = numpy.where(numpy.isnan(flat), numpy.longdouble("nan"), flat)
    used = 10 if numpy.finfo(numpy.longdouble).nmant == 63 else flat.dtype.itemsize
    significant = numpy.ascontiguousarray(flat.view(numpy.uint8).reshape(-1, flat.dtype.itemsize)[:, :used])
    return streamed(b"b", significant.size, (significant.reshape(-1),))


def mask_bytes(mask: Any) -> bytes:
    """Which elements are there or missing, one bit each; `N` when nothing is missing."""
    if not mask.any():
        return b"N"
    packed = numpy.packbits(mask.reshape(-1), bitorder="little")
    return streamed(b"b", packed.size, (packed,))


# --- the other kinds ---------------------------------------------------------------------------------------


def _subclass_content(value: Any, walk: Walk) -> bytes:
    return encode_array(value.view(numpy.ndarray), walk)


def _masked(value: Any, walk: Walk) -> bytes:
    """What a mask hides doesn't count."""
    mask = numpy.ma.getmaskarray(value)
    data = numpy.array(value.data, copy=True, subok=False)
    fill = 0.0 if value is numpy.ma.masked else value.fill_value  # the constant has none, nor lets it be made
    if mask.dtype.names is None:
        data[mask] = numpy.zeros((), dtype=data.dtype)[()]
    else:
        _hide_fields(data, mask)
    hidden = encode_array(mask, walk)
    return walk.known(b"masked", encode_array(data, walk), hidden, walk.encode(numpy.asarray(fill)))


def _hide_fields(data: Any, mask: Any) -> None:
    for name in mask.dtype.names:
        if mask.dtype[name].names:
            _hide_fields(data[name], mask[name])
        else:
            data[name][mask[name]] = numpy.zeros((), dtype=data[name].dtype)[()]


def _scalar(value: Any, walk: Walk) -> bytes:
    return walk.known(b"numpy scalar", *parts(numpy.asarray(value), walk))


def _dtype(value: Any, walk: Walk) -> bytes:
    return walk.known(b"dtype", *parts(numpy.empty(0, value), walk))


def _generator(value: Any, walk: Walk) -> bytes:
    return walk.known(b"Generator", walk.encode(value.bit_generator))


def _bit_generator(value: Any, walk: Walk) -> bytes:
    return walk.known(b"BitGenerator", walk.encode(value.state))


def _random_state(value: Any, walk: Walk) -> bytes:
    return walk.known(b"RandomState", walk.encode(value.get_state(legacy=False)))


def _ufunc(value: Any, walk: Walk) -> bytes:
    name = value.__name__
    for module in ("numpy", "scipy.special"):
        if getattr(sys.modules.get(module), name, None) is value:
            return walk.known(b"ufunc", _str(f"{module}.{name}"))
    raise Refused(value, "it has no name by which others could find it", "pass the function that it was made of")


def lengths(counts: Any) -> bytes:
    """Lengths of the items of a column."""
    flat = numpy.ascontiguousarray(counts, dtype="<i8")
    return streamed(b"b", flat.nbytes, (flat.view(numpy.uint8),)) if flat.size else b"b" + number(0)
