"""An encoded value: the codec's name and the bytes in pieces, which may share memory with the value itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from blake3 import blake3

from dibs.hashing import THREADED_SIZE, hasher

Piece: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes; of a memoryview, the items are single bytes too, so that `len` counts them."""

_THREADS_WORTH_IT_BYTES: Final = 1 << 20


class Encoded(NamedTuple):
    """What a codec made of a value.

    The pieces can be walked several times. They may be views of the value's own memory, so that a large array is not
    copied: whoever keeps them beyond the moment when others get hold of the value must copy them first (`joined`).
    """

    codec: str
    pieces: Iterable[Piece]
    size_bytes: int

    def joined(self) -> bytes:
        """All pieces as one object that shares no memory with the value."""
        pieces = self.pieces
        if type(pieces) is tuple and len(pieces) == 1 and type(pieces[0]) is bytes:
            return pieces[0]
        return b"".join(pieces)


def whole(codec: str, data: bytes) -> Encoded:
    return Encoded(codec, (data,), len(data))


def in_pieces(codec: str, pieces: Iterable[Piece]) -> Encoded:
    """An encoded value of pieces that are all there already."""
    kept = tuple(pieces)
    return Encoded(codec, kept, sum(map(len, kept)))


def as_piece(buffer: object) -> memoryview:
    """The bytes of any contiguous buffer, not copied."""
    view = memoryview(buffer)  # type: ignore[arg-type]
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def writable(data: Piece) -> memoryview:
    """The same bytes in memory that the decoded value may own: the view itself, or a copy of immutable bytes."""
    view = memoryview(data)
    return memoryview(bytearray(view)) if view.readonly else view


def module_root(kind: type) -> str:
    """The package that defines a type; where a value of it is at hand, that package has been imported."""
    module = kind.__module__
    return module.partition(".")[0] if isinstance(module, str) else ""


class Hasher:
    """Digest of a stream of pieces: feed it, then ask for 32 hexadecimal digits. Large pieces use all cores."""

    def __init__(self) -> None:
        self._blake3 = hasher(THREADED_SIZE)

    def update(self, piece: Piece) -> None:
        self._blake3.update(piece)

    def hexdigest(self) -> str:
        return str(self._blake3.hexdigest(16))


def digest(content: Piece | Iterable[Piece]) -> str:
    """Content digest of a stored value, whole or in pieces: blake3, 32 hexadecimal digits."""
    if isinstance(content, bytes | bytearray | memoryview):
        if len(content) <= _THREADS_WORTH_IT_BYTES:
            return blake3(content).hexdigest(16)
        content = (content,)
    summing = Hasher()
    for piece in content:
        summing.update(piece)
    return summing.hexdigest()
