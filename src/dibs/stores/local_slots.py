"""The file of one record: two slots, of which the one written last counts.

A swap writes the older slot by one `pwrite` (1 µs, where replacing the file costs ten times as much), so a
reader always finds the newer slot whole.  A file is whole when its size is exactly two slots, both headers are
right, their sequence numbers differ by exactly one, and the newer payload matches its checksum.  Everything else
is damage or a write in progress, and *under the guard* of the record it is damage.  A file is born with both
slots written, the older one empty: so a slot that was zeroed or cut off can never be taken for one that was
never written, and an older record never comes back.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final, NamedTuple, TypeAlias
from zlib import crc32

from dibs.store import Version

MAGIC: Final = b"dib\x01"
HEADER: Final = struct.Struct("<4sIIQ16sQQII")
HEADER_SIZE: Final = HEADER.size
CHECKED_SIZE: Final = HEADER_SIZE - 4  # the header's own checksum stands last
SLOT_SIZE_MIN: Final = 2048  # two make one block, which a kill can't tear
SMALL_FILE_SIZE: Final = 8192
DAMAGE_READ_MAX: Final = 1 << 20
DAMAGED: Final = "damaged."


class Slot(NamedTuple):
    """The newer slot of a whole file."""

    data: bytes
    seq: int
    nonce: bytes
    clock: int
    """Names the clock that `written_us` was read from; 0 for none."""
    written_us: int
    slot_size: int
    offset: int

    @property
    def version(self) -> Version:
        return version_of(self.seq, self.nonce)


Stamp: TypeAlias = tuple[bytes, int, int]
"""What tells one write from all others: 16 random characters; and the clock and time of it, as in `Slot`."""


def version_of(seq: int, nonce: bytes) -> Version:
    return f"{seq:x}.{nonce.decode('latin-1')}"


def slot_size_for(size_bytes: int) -> int:
    """The smallest slot that leaves some room for the record to grow."""
    wanted = HEADER_SIZE + size_bytes + size_bytes // 4
    return max(SLOT_SIZE_MIN, 1 << (wanted - 1).bit_length())


def encoded(data: bytes, seq: int, slot_size: int, stamp: Stamp) -> bytes:
    nonce, clock, written_us = stamp
    header = HEADER.pack(MAGIC, slot_size, len(data), seq, nonce, clock, written_us, crc32(data), 0)
    checked = header[:CHECKED_SIZE]
    return checked + crc32(checked).to_bytes(4, "little") + data


def _empty(seq: int, slot_size: int) -> bytes:
    return encoded(b"", seq, slot_size, (b"", 0, 0))


def _header(raw: bytes, offset: int, slot_size: int) -> tuple[bytes, int, int, int, bytes, int, int, int, int] | None:
    header = HEADER.unpack_from(raw, offset)
    if (
        header[8] != crc32(raw[offset : offset + CHECKED_SIZE])
        or header[0] != MAGIC
        or header[1] != slot_size
        or header[2] > slot_size - HEADER_SIZE
    ):
        return None
    return header


def newer(raw: bytes) -> Slot | None:
    """The newer slot of a small file, given all of it; None if it isn't whole."""
    slot_size = len(raw) >> 1
    if slot_size << 1 != len(raw) or slot_size < SLOT_SIZE_MIN:
        return None
    first, second = _header(raw, 0, slot_size), _header(raw, slot_size, slot_size)
    if first is None or second is None:
        return None
    if first[3] - second[3] == 1:
        chosen, offset = first, 0
    elif second[3] - first[3] == 1:
        chosen, offset = second, slot_size
    else:
        return None
    _, _, length, seq, nonce, clock, written_us, checksum, _ = chosen
    start = offset + HEADER_SIZE
    data = raw[start : start + length]
    if crc32(data) != checksum:
        return None
    return Slot(data, seq, nonce, clock, written_us, slot_size, offset)


def read(fd: int) -> Slot | None:
    """The newer slot of the file; None if it isn't whole."""
    raw = os.read(fd, SMALL_FILE_SIZE + 1)
    return newer(raw) if len(raw) <= SMALL_FILE_SIZE else _read_large(fd)


def _read_large(fd: int) -> Slot | None:
    size = os.fstat(fd).st_size
    slot_size = size >> 1
    if slot_size << 1 != size:
        return None
    heads = os.pread(fd, HEADER_SIZE, 0), os.pread(fd, HEADER_SIZE, slot_size)
    if len(heads[0]) != HEADER_SIZE or len(heads[1]) != HEADER_SIZE:
        return None  # it shrinks as we read
    first, second = _header(heads[0], 0, slot_size), _header(heads[1], 0, slot_size)
    if first is None or second is None or abs(first[3] - second[3]) != 1:
        return None
    chosen, offset = (first, 0) if first[3] > second[3] else (second, slot_size)
    _, _, length, seq, nonce, clock, written_us, checksum, _ = chosen
    data = os.pread(fd, length, offset + HEADER_SIZE)
    if len(data) != length or crc32(data) != checksum:
        return None
    return Slot(data, seq, nonce, clock, written_us, slot_size, offset)


def damaged_version(fd: int) -> Version:
    """A version for bytes that are no record, so that they can be swapped for one."""
    from blake3 import blake3

    raw = os.pread(fd, DAMAGE_READ_MAX, 0)
    return DAMAGED + blake3(raw + b"%d" % os.fstat(fd).st_size).hexdigest()[:16]


def write_new(fd: int, data: bytes, seq: int, stamp: Stamp) -> None:
    """Fill an empty file.  Killed at any step it leaves a file that isn't whole."""
    slot_size = slot_size_for(len(data))
    slot, other = encoded(data, seq, slot_size, stamp), _empty(seq - 1, slot_size)
    if 2 * slot_size <= SMALL_FILE_SIZE:
        _pwrite(fd, slot.ljust(slot_size, b"\0") + other.ljust(slot_size, b"\0"), 0)
        return
    _pwrite(fd, slot, 0)
    _pwrite(fd, other, slot_size)
    os.ftruncate(fd, 2 * slot_size)  # the rest is a hole; the size makes it whole


def fits(slot: Slot, data: bytes) -> bool:
    return HEADER_SIZE + len(data) <= slot.slot_size


def write_next(fd: int, slot: Slot, data: bytes, stamp: Stamp) -> None:
    """Write the record that follows `slot` over the older slot."""
    offset = slot.slot_size - slot.offset
    try:
        _pwrite(fd, encoded(data, slot.seq + 1, slot.slot_size, stamp), offset)
    except OSError:
        # Undo what can't have been seen yet: the header's block is there already, so this needs no space.
        os.pwrite(fd, _empty(slot.seq - 1, slot.slot_size), offset)
        raise


def _pwrite(fd: int, data: bytes, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):  # the disk filled up on the way; trying the rest says how
        more = os.pwrite(fd, data[written:], offset + written)
        if not more:
            raise OSError(errno.EIO, "nothing could be written")
        written += more
