"""Tables as Arrow IPC streams, without a copy either way; other libraries' tables by way of it.

What the value was stands in the schema's metadata under `dibs`, as tagged JSON: its type, and what Arrow doesn't say.
https://arrow.apache.org/docs/format/Columnar.html describes the format. Nothing in it is ever unpickled: extension
types other than a few known ones are refused, before the library sees them.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from dibs.codec import tagged
from dibs.codec.encoded import Encoded, Piece, as_piece, in_pieces, module_root, writable

_MARK: Final = b"dibs"
_EXTENSIONS: Final = frozenset(
    {"arrow.uuid", "arrow.json", "arrow.bool8", "arrow.fixed_shape_tensor", "polars.categorical", "polars.enum"}
)
_END: Final = b"\xff\xff\xff\xff\0\0\0\0"
_PICKLED: Final = b"arrow.py_extension_type"


def encode(value: Any) -> Encoded | None:
    """The table in pieces; None when it isn't a table, or one that Arrow wouldn't give back exactly."""
    root = module_root(type(value))
    if root == "pandas":
        from dibs.codec import pandas_tables

        made = pandas_tables.to_arrow(value)
    elif root == "polars":
        from dibs.codec import polars_tables

        made = polars_tables.to_arrow(value)
    else:
        made = _to_table(value)
    if made is None:
        return None
    table, about = made
    nameless = table.num_rows and not table.num_columns  # a stream has no place for how many rows those are
    return _write(table, about) if _is_known(table.schema) and not nameless else None


def decode(data: Piece) -> Any:
    view = writable(data)
    table, about = _read(view)
    kind = about["type"]
    if kind.startswith("pandas."):
        from dibs.codec import pandas_tables

        return pandas_tables.from_arrow(table, about, view)
    if kind.startswith("polars."):
        from dibs.codec import polars_tables

        return polars_tables.from_arrow(table, about)
    return _from_table(table, about)


# -- Arrow's own ---------------------------------------------------------------------------------------------------


def _to_table(value: Any) -> tuple[pa.Table, dict[str, Any]] | None:
    if type(value) is pa.Table:
        return value, {"type": "pyarrow.Table"}
    if type(value) is pa.RecordBatch:
        return pa.Table.from_batches([value]), {"type": "pyarrow.RecordBatch"}
    if type(value) is pa.ChunkedArray or isinstance(value, pa.Array):
        if isinstance(value.type, pa.BaseExtensionType):
            return None
        name = "ChunkedArray" if type(value) is pa.ChunkedArray else "Array"
        return pa.table({"": value}), {"type": f"pyarrow.{name}"}
    return None


def _from_table(table: pa.Table, about: dict[str, Any]) -> Any:
    kind = about["type"]
    if kind == "pyarrow.Table":
        return table
    if kind == "pyarrow.RecordBatch":
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)
    (column,) = table.columns
    if kind == "pyarrow.ChunkedArray":
        return column
    if kind != "pyarrow.Array":
        raise ValueError(f"no table of type {kind!r} is known")
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _is_known(schema: pa.Schema) -> bool:
    return (schema.metadata is None or _MARK not in schema.metadata) and all(map(_is_known_type, schema.types))


def _is_known_type(kind: Any) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name in _EXTENSIONS and _is_known_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _is_known_type(kind.value_type)
    return all(_is_known_type(kind.field(index).type) for index in range(kind.num_fields))


# -- the stream ----------------------------------------------------------------------------------------------------


class _Collector:
    """A file that keeps what is written to it: the writer hands over the columns' own memory."""

    closed = False

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def write(self, buffer: Any) -> int:
        piece = buffer if type(buffer) is bytes else as_piece(buffer)
        self.pieces.append(piece)
        return len(piece)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _write(table: pa.Table, about: dict[str, Any]) -> Encoded | None:
    # A stream that was cut between two batches would pass for a shorter table.
    said = tagged.encode(about | {"rows": table.num_rows}, lambda value: None, None)
    if said is None:
        return None
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _MARK: said.joined()})
    collector = _Collector()
    with pa.ipc.new_stream(pa.PythonFile(collector, mode="w"), table.schema) as writer:
        writer.write_table(table)
    return in_pieces("arrow", collector.pieces)


def _read(view: memoryview) -> tuple[pa.Table, dict[str, Any]]:
    _refuse_pickles(view)
    options = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific)
    with pa.ipc.open_stream(pa.py_buffer(view), options=options) as reader:
        if not all(map(_is_known_type, reader.schema.types)):
            raise ValueError("it has columns of an extension type, which may execute code")
        table = reader.read_all()
    table.validate(full=True)  # offsets that point outside would crash whoever uses them
    metadata = dict(table.schema.metadata or {})
    about = tagged.decode(metadata.pop(_MARK), _nothing)
    if about["rows"] != table.num_rows or bytes(view[-len(_END) :]) != _END:
        raise ValueError(f"{about['rows']} rows were written, {table.num_rows} are there, or the end is missing")
    return table.replace_schema_metadata(metadata or None), about


def _refuse_pickles(view: memoryview) -> None:
    """Old versions of pyarrow load such types by unpickling, so the schema is looked through before it is parsed."""
    start = 8 if bytes(view[:4]) == b"\xff\xff\xff\xff" else 4
    size = int.from_bytes(view[start - 4 : start], "little")
    if not 0 < size <= len(view) - start:
        raise ValueError(f"a schema of {size} bytes is announced in {len(view)} bytes")
    if _PICKLED in bytes(view[start : start + size]):
        raise ValueError("it has columns of an extension type that is pickled")


def _nothing(codec: str, data: memoryview) -> Any:
    raise ValueError("nothing is attached to a table's description")
