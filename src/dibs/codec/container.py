"""Several byte strings in one, each at a multiple of 64 bytes, so that arrays in a mapped file are aligned.

    8 bytes   magic
    8 bytes   number of sections n, little endian like all numbers here
    8 n bytes length of each section
    zeros up to the next multiple of 64, then each section followed by such zeros

The last section ends the data. Nothing else may stand behind it, and no length may point beyond it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from dibs.codec.encoded import Encoded, Piece, whole

MAGIC: Final = b"\x89dibs\r\n\x01"
"""Neither a pickle (0x80) nor JSON (ASCII) begins like this; the last byte is the version of this layout."""

_ALIGN: Final = 64


def pack(codec: str, sections: Sequence[Encoded]) -> Encoded:
    """One encoded value of many; their pieces are not copied."""
    sizes = [section.size_bytes for section in sections]
    head = MAGIC + struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes)
    parts: list[Iterable[Piece]] = []
    total = 0
    for part in (whole("", head), *sections):
        padding = bytes(-total % _ALIGN)
        parts += ((padding,), part.pieces)
        total += len(padding) + part.size_bytes
    return Encoded(codec, _Chain(parts), total)


def unpack(data: memoryview) -> list[memoryview]:
    """The sections, as views; ValueError when the lengths don't fit the data."""
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise ValueError("it doesn't begin as a container does")
    (count,) = struct.unpack_from("<Q", data, 8)
    end = 16 + 8 * count
    if end > len(data):
        raise ValueError(f"{count} sections are announced in {len(data)} bytes")
    sections = []
    for size in struct.unpack_from(f"<{count}Q", data, 16):
        start = end + -end % _ALIGN
        end = start + size
        if end > len(data):
            raise ValueError(f"a section of {size} bytes is announced at {start} of {len(data)} bytes")
        sections.append(data[start:end])
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes stand behind the last section")
    return sections


class _Chain:
    """The pieces of all parts, walked anew each time."""

    def __init__(self, parts: Sequence[Iterable[Piece]]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[Piece]:
        return chain.from_iterable(self._parts)
