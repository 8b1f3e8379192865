"""Arrow's arrays and tables: by type, validity and values; chunks, offsets and what lies under nulls don't count."""

from __future__ import annotations

from typing import Any, Final

import numpy
import pyarrow as pa
import pyarrow.compute as pc

from dibs.digest.arrays import chunks_of, lengths, mask_bytes
from dibs.digest.hashing import streamed
from dibs.digest.walk import SCALARS, Encoder, Walk

_str = SCALARS[str]
_FLOATS: Final = {16: "<f2", 32: "<f4", 64: "<f8"}


def find(kind: type, value: Any) -> Encoder | None:
    if issubclass(kind, pa.ChunkedArray):
        return lambda value, walk: walk.known(b"arrow.ChunkedArray", *column(value.chunks, value.type, walk))
    if issubclass(kind, pa.Array):
        return lambda value, walk: walk.known(b"arrow.Array", *column([value], value.type, walk))
    if issubclass(kind, pa.Table | pa.RecordBatch):
        return _table
    if issubclass(kind, pa.Scalar):
        return _scalar
    if issubclass(kind, pa.Buffer):
        return lambda value, walk: walk.known(b"arrow.Buffer", streamed(b"b", value.size, (memoryview(value),)))
    if issubclass(kind, pa.Schema):
        return lambda value, walk: walk.known(b"arrow.Schema", *(_field(field) for field in value))
    if issubclass(kind, pa.Field):
        return lambda value, walk: walk.known(b"arrow.Field", _field(value))
    if issubclass(kind, pa.DataType):
        return lambda value, walk: walk.known(b"arrow.DataType", _str(str(value)))
    return None


def _field(field: Any) -> bytes:
    return _str(f"{field.name}: {field.type}{'' if field.nullable else ' not null'}")


def _table(value: Any, walk: Walk) -> bytes:
    """Metadata of the schema doesn't count, as for `equals`."""
    is_table = isinstance(value, pa.Table)
    parts = []
    for number, field in enumerate(value.schema):
        chunks = value.column(number).chunks if is_table else [value.column(number)]
        parts += [_field(field), *column(chunks, field.type, walk)]
    rows = SCALARS[int](value.num_rows)
    return walk.known(b"arrow.Table" if is_table else b"arrow.RecordBatch", rows, *parts)


def _scalar(value: Any, walk: Walk) -> bytes:
    return walk.known(b"arrow.Scalar", *column([pa.array([value.as_py()], value.type)], value.type, walk))


# --- columns ------------------------------------------------------------------------------------------------


def column(chunks: list[Any], kind: Any, walk: Walk) -> tuple[bytes, ...]:
    """Type, number, validity and values of an array in chunks."""
    return _str(str(kind)), *values(chunks, kind, walk)


def values(chunks: list[Any], kind: Any, walk: Walk) -> tuple[bytes, ...]:
    """Number, validity and values, without the type."""
    types = pa.types
    chunks = [chunk for chunk in chunks if len(chunk)]
    if isinstance(kind, pa.BaseExtensionType):
        return values([chunk.storage for chunk in chunks], kind.storage_type, walk)
    if types.is_dictionary(kind):
        decoded = values([chunk.dictionary_decode() for chunk in chunks], kind.value_type, walk)
        if not kind.ordered or not chunks:
            return decoded  # how it is packed doesn't count
        return *decoded, walk.encode(pa.chunked_array(chunks).unify_dictionaries().chunk(0).dictionary)
    missing = b"N"
    if sum(chunk.null_count for chunk in chunks) and not types.is_null(kind):
        masks = [chunk.is_null().to_numpy(zero_copy_only=False) for chunk in chunks]
        missing = mask_bytes(numpy.concatenate(masks))
    return SCALARS[int](sum(map(len, chunks))), missing, *_values(chunks, kind, walk)


def _values(chunks: list[Any], kind: Any, walk: Walk) -> tuple[bytes, ...]:
    types = pa.types
    if types.is_null(kind):
        return ()
    if types.is_boolean(kind):
        flags = [numpy.asarray(_filled(chunk, False), dtype=numpy.uint8) for chunk in chunks]
        return (_joined(flags),)
    wide = _as_large(kind)
    if wide is not None:
        return _texts([chunk.cast(wide) if chunk.type != wide else chunk for chunk in chunks])
    if types.is_struct(kind):
        parts, flat = [], [chunk.flatten() for chunk in chunks]
        for number, field in enumerate(kind):
            parts += [_field(field), *values([children[number] for children in flat], field.type, walk)]
        return tuple(parts)
    if types.is_fixed_size_list(kind):
        return values([chunk.flatten() for chunk in chunks], kind.value_type, walk)
    if types.is_list(kind) or types.is_large_list(kind):
        counts = [numpy.asarray(chunk.value_lengths().fill_null(0), dtype="<i8") for chunk in chunks]
        items = values([chunk.flatten() for chunk in chunks], kind.value_type, walk)
        return lengths(numpy.concatenate(counts) if counts else ()), *items
    width = _width(kind)
    if width:
        return (_fixed(chunks, kind, width),)
    # Unions, maps, views of lists: item by item
    return (b"l" + walk.sequence([item for chunk in chunks for item in chunk.to_pylist()]),)


def _filled(chunk: Any, value: Any) -> Any:
    filled = chunk.fill_null(value) if chunk.null_count else chunk
    return filled.to_numpy(zero_copy_only=False)


def _as_large(kind: Any) -> Any:
    """The type with 64-bit offsets that texts are read from."""
    types = pa.types
    if types.is_large_string(kind) or types.is_large_binary(kind):
        return kind
    if types.is_string(kind) or getattr(types, "is_string_view", _no)(kind):
        return pa.large_string()
    return pa.large_binary() if types.is_binary(kind) or getattr(types, "is_binary_view", _no)(kind) else None


def _no(kind: Any) -> bool:
    return False


def _texts(chunks: list[Any]) -> tuple[bytes, ...]:
    """Lengths in bytes, and all bytes."""
    counts, pieces = [], []
    for chunk in chunks:
        if chunk.null_count:
            chunk = pc.fill_null(chunk, "" if pa.types.is_large_string(chunk.type) else b"")
        _, offsets, data = chunk.buffers()
        bounds = numpy.frombuffer(offsets, dtype="<i8", count=len(chunk) + 1, offset=8 * chunk.offset)
        counts.append(numpy.diff(bounds))
        if data is not None:
            pieces.append(memoryview(data)[bounds[0] : bounds[-1]])
    size_bytes = sum(piece.nbytes for piece in pieces)
    return lengths(numpy.concatenate(counts) if counts else ()), streamed(b"b", size_bytes, pieces)


def _width(kind: Any) -> int:
    try:
        bits: int = kind.bit_width
    except ValueError:
        return 0
    return bits // 8 if bits % 8 == 0 else 0


def _fixed(chunks: list[Any], kind: Any, width: int) -> bytes:
    """Values of one width, where they lie; zeros where a null hides something."""
    flats = []
    for chunk in chunks:
        flat = numpy.frombuffer(chunk.buffers()[1], dtype=numpy.uint8)
        flat = flat[width * chunk.offset : width * (chunk.offset + len(chunk))]
        if chunk.null_count:
            flat = flat.copy()
            flat.reshape(-1, width)[chunk.is_null().to_numpy(zero_copy_only=False)] = 0
        flats.append(flat)
    if pa.types.is_floating(kind):
        flats = [flat.view(_FLOATS[8 * width]) for flat in flats]
    return _joined(flats)


def _joined(flats: list[Any]) -> bytes:
    return streamed(b"b", sum(flat.nbytes for flat in flats), (piece for flat in flats for piece in chunks_of(flat)))
