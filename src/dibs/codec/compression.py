"""Optional zstd around what a codec wrote, where it gains: the codec's name then ends in `+zstd`.

The data is one zstd frame that says how long its content is. Floats aren't compressed: their noise gains little, costs
much, and an array that is stored as it is can be mapped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from dibs.codec.encoded import Encoded, Piece, in_pieces, module_root
from dibs.errors import CodecError

SUFFIX: Final = "+zstd"

_LEVEL: Final = 3
_GAIN_MIN: Final = 0.05
_SAMPLE_BYTES: Final = 1 << 20
_SAMPLES: Final = 16
_PART_BYTES: Final = 1 << 20
_SMALL_BYTES: Final = 256
_FREE_BYTES: Final = 64 << 20
_ARROW_FLOATS: Final = ("halffloat", "float", "double")
_RATIO_MAX: Final = 4096
"""More than this (and 64 MiB) is never compressed, so a frame that claims it was made to exhaust the memory."""


def zstd() -> Any:
    """The module: part of Python 3.14, a package before."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise CodecError(
            'compressed values need zstd, which is not installed here: pip install "dibs[zstd]" (backports.zstd), '
            "or use Python 3.14"
        ) from error
    return zstd


def compressed(encoded: Encoded, value: Any) -> Encoded:
    """The same value, smaller; or as it was, when that isn't worth it."""
    library = zstd()
    if encoded.size_bytes < _SMALL_BYTES or is_mostly_floats(value):
        return encoded
    if encoded.size_bytes > 4 * _SAMPLE_BYTES:
        sample = _sample(encoded)
        if len(library.compress(sample, level=_LEVEL)) > len(sample) * (1 - _GAIN_MIN):
            return encoded
    compressor = library.ZstdCompressor(level=_LEVEL)
    compressor.set_pledged_input_size(encoded.size_bytes)
    pieces = [packed for part in _parts(encoded) if (packed := compressor.compress(part))]
    made = in_pieces(encoded.codec + SUFFIX, [*pieces, compressor.flush()])
    if made.size_bytes > encoded.size_bytes * (1 - _GAIN_MIN) or encoded.size_bytes > _size_max(made.size_bytes):
        return encoded
    return made


def decompressed(data: Piece) -> memoryview:
    """What was compressed, in memory of its own; ValueError when the frame isn't as `compressed` made it."""
    library = zstd()
    size = library.get_frame_info(data).decompressed_size
    if size is None or size > _size_max(len(data)):
        raise ValueError(f"{size} bytes of content are announced in a frame of {len(data)} bytes")
    content = memoryview(bytearray(size))
    decompressor = library.ZstdDecompressor()
    packed, given, filled = memoryview(data), 0, 0
    while not decompressor.eof:
        part: Piece = b""
        if decompressor.needs_input:
            if given >= len(packed):
                raise ValueError("the frame is cut off")
            part = packed[given : given + _PART_BYTES]
            given += len(part)
        part = decompressor.decompress(part, _PART_BYTES)
        content[filled : filled + len(part)] = part  # ValueError where the frame has more than it said
        filled += len(part)
    if filled != size or given != len(packed) or decompressor.unused_data:
        raise ValueError(f"{filled} bytes of content, but {size} were announced, or something stands behind the frame")
    return content


def is_mostly_floats(value: Any) -> bool:
    """Whether more than half of an array, table or state dict is floating point numbers."""
    parts = value.values() if isinstance(value, dict) else (value,)
    counts = [_float_bytes(part) for part in parts]
    return 2 * sum(floats for floats, _ in counts) > sum(total for _, total in counts)


def _float_bytes(value: Any) -> tuple[int, int]:
    """How many bytes of the value are floats, and how many there are; (0, 0) for what isn't known here."""
    root, kind = module_root(type(value)), type(value).__name__
    parts: list[tuple[bool, int]] = []
    if root == "numpy" and kind == "ndarray":
        parts = [(value.dtype.kind in "fc", value.nbytes)]
    elif root == "torch" and hasattr(value, "is_floating_point"):
        size = value.numel() * value.element_size()
        parts = [(value.is_floating_point() or value.is_complex(), size)]
    elif root == "pandas" and kind == "DataFrame":
        sizes = value.memory_usage(index=False)
        parts = [(dtype.kind in "fc", int(size)) for dtype, size in zip(value.dtypes, sizes, strict=True)]
    elif root == "pandas" and kind == "Series":
        parts = [(value.dtype.kind in "fc", value.nbytes)]
    elif root == "polars" and kind == "DataFrame":
        parts = [(column.dtype.is_float(), column.estimated_size()) for column in value.iter_columns()]
    elif root == "polars" and kind == "Series":
        parts = [(value.dtype.is_float(), value.estimated_size())]
    elif root == "pyarrow" and kind in ("Table", "RecordBatch"):
        parts = [(str(column.type) in _ARROW_FLOATS, column.nbytes) for column in value.columns]
    return sum(size for is_float, size in parts if is_float), sum(size for _, size in parts)


def _size_max(packed_bytes: int) -> int:
    return max(_FREE_BYTES, _RATIO_MAX * packed_bytes)


def _sample(encoded: Encoded) -> bytes:
    """Parts from all over the value: the beginning alone may be of another kind."""
    step = max(encoded.size_bytes // _PART_BYTES // _SAMPLES, 1)
    return b"".join(part[: _SAMPLE_BYTES // _SAMPLES] for part in islice(_parts(encoded), 0, None, step))


def _parts(encoded: Encoded) -> Iterator[Piece]:
    for piece in encoded.pieces:
        view = memoryview(piece)
        for start in range(0, len(view), _PART_BYTES):
            yield view[start : start + _PART_BYTES]
