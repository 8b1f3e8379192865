"""Memory that a process shares with its helper: what is held, and what the helper did about it.

Each hold has a seat.  A seat has two halves, a *notice* that only the holder writes and an *answer* that only the
helper writes, so neither ever waits for the other, nor for the interpreter lock of the other.  Each half says its
size and a checksum: whoever reads one while it is written sees that, and looks again later.
"""

from __future__ import annotations

import marshal
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

LATE_PER_BEAT: Final = 1.5
"""A holder whose last beat is so many intervals old is late, and the helper beats; it trusts itself for four."""
SEATS_MAX: Final = 4096
_NOTICE_SIZE: Final = 1024
_ANSWER_SIZE: Final = 512
_SEAT_SIZE: Final = _NOTICE_SIZE + _ANSWER_SIZE
_HEAD_SIZE: Final = 4096
BOARD_SIZE: Final = _HEAD_SIZE + SEATS_MAX * _SEAT_SIZE
"""Bytes; a page that nobody wrote to takes no memory."""

_HALF: Final = struct.Struct("=II")  # size and checksum of what follows
_NUMBER: Final = struct.Struct("=Q")
_HELPER: Final = struct.Struct("=QQ")
_SEATS_USED_AT: Final = 0
_READY_AT: Final = 8
_HELPER_AT: Final = 16
_READS_MAX: Final = 50

Marks = tuple[float, float, float]


class Notice(NamedTuple):
    """What the helper must know to beat for a hold."""

    claim: str
    name: str
    """Of the record."""
    version: str
    """At which the holder left the record when it last wrote it."""
    marks: Marks
    """From before the holder last sent a beat that was confirmed."""
    began: float
    """When (`monotonic`) the hold was asked for."""
    beat_s: float
    over_at: float
    """When (`monotonic`) it must not be prolonged any more."""


class Answer(NamedTuple):
    """What the helper did for a hold; see `heartbeat.Report`."""

    claim: str
    base: str
    """The version in the notice that it started from."""
    marks: Marks | None
    version: str
    beat: int
    lost: bool


class Board:
    """The shared memory.  Whoever holds and whoever helps have one each, over the same file."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _new_file() if fd is None else fd
        self._memory = mmap.mmap(self.fd, BOARD_SIZE)
        self._file = _identity(self.fd)
        # Taken and given back by single steps, without a lock: a finalizer may interrupt anything.
        self._free = list(range(SEATS_MAX - 1, -1, -1))
        self._used = 0

    def stands(self) -> bool:
        """False when somebody has closed our descriptor, as programs do that become daemons."""
        return _identity(self.fd) == self._file

    def __del__(self) -> None:
        if hasattr(self, "_file") and self.stands():
            os.close(self.fd)

    # -- for the holder ------------------------------------------------------------------------------------------

    def take(self) -> int | None:
        """A seat that nobody has; None when all are taken."""
        try:
            seat = self._free.pop()
        except IndexError:
            return None
        if seat >= self._used:
            self._used = seat + 1
            _NUMBER.pack_into(self._memory, _SEATS_USED_AT, self._used)
        return seat

    def give_back(self, seat: int) -> None:
        self.clear(seat)
        self._free.append(seat)

    def notify(self, seat: int, notice: Notice) -> bool:
        """Write a notice; False if it is too long."""
        return self._write(_notice_at(seat), _NOTICE_SIZE, notice)

    def clear(self, seat: int) -> None:
        """Take the notice away."""
        at = _notice_at(seat)
        self._memory[at : at + _HALF.size] = bytes(_HALF.size)

    def answer(self, seat: int) -> Answer | None:
        found = self._read(_answer_at(seat), _ANSWER_SIZE)
        return None if found is None else Answer(*found)

    @property
    def ready(self) -> int:
        """The number of the helper that was ready last."""
        return int(_NUMBER.unpack_from(self._memory, _READY_AT)[0])

    @property
    def helper(self) -> tuple[int, int]:
        """The pid of the helper that was ready last, and its start in ticks; zeros before the first."""
        pid, start_ticks = _HELPER.unpack_from(self._memory, _HELPER_AT)
        return pid, start_ticks

    # -- for the helper ------------------------------------------------------------------------------------------

    def say_ready(self, number: int, pid: int, start_ticks: int) -> None:
        _HELPER.pack_into(self._memory, _HELPER_AT, pid, start_ticks)
        _NUMBER.pack_into(self._memory, _READY_AT, number)

    def notices(self) -> Iterator[tuple[int, Notice]]:
        """Every notice there is, with the number of its seat."""
        used = min(_NUMBER.unpack_from(self._memory, _SEATS_USED_AT)[0], SEATS_MAX)
        for seat in range(used):
            notice = self.notice(seat)
            if notice is not None:
                yield seat, notice

    def notice(self, seat: int) -> Notice | None:
        found = self._read(_notice_at(seat), _NOTICE_SIZE)
        return None if found is None else Notice(*found)

    def reply(self, seat: int, answer: Answer) -> None:
        self._write(_answer_at(seat), _ANSWER_SIZE, answer)

    # -- halves --------------------------------------------------------------------------------------------------

    def _write(self, at: int, size_max: int, fields: tuple[Any, ...]) -> bool:
        data = marshal.dumps(tuple(fields))
        size = _HALF.size + len(data)
        if size > size_max:
            return False
        self._memory[at : at + size] = _HALF.pack(len(data), zlib.crc32(data)) + data
        return True

    def _read(self, at: int, size_max: int) -> Any:
        """What stands there; None for nothing, and for what stays half written: its writer was stopped or killed."""
        for _ in range(_READS_MAX):
            size, checksum = _HALF.unpack_from(self._memory, at)
            if size == 0:
                return None
            start = at + _HALF.size
            if size <= size_max - _HALF.size:
                data = self._memory[start : start + size]
                if zlib.crc32(data) == checksum:
                    return marshal.loads(data)
        return None


def _notice_at(seat: int) -> int:
    return _HEAD_SIZE + seat * _SEAT_SIZE


def _answer_at(seat: int) -> int:
    return _HEAD_SIZE + seat * _SEAT_SIZE + _NOTICE_SIZE


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _new_file() -> int:
    """A file without a name, of the size of a board; gone when nobody has it open any more."""
    if sys.platform == "linux":
        fd = os.memfd_create("dibs-holds", os.MFD_CLOEXEC)
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix="dibs-holds-")
        os.unlink(path)
    os.ftruncate(fd, BOARD_SIZE)
    return fd
