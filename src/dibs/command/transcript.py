"""What a command prints, on both streams in the order in which it came: kept in a file, and said again."""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Iterable, Iterator, Mapping
from tempfile import TemporaryFile
from types import TracebackType
from typing import Final, Self

from dibs.errors import CodecError

STDOUT: Final = 1
STDERR: Final = 2
TAIL_SIZE: Final = 2_000

_FRAME: Final = struct.Struct("<BI")
"""A frame is the number of its stream, its length in bytes, and the bytes."""
_FRAME_SIZE_MAX: Final = 256 * 1024
_COPY_SIZE: Final = 1024 * 1024


class Transcript:
    """What was printed, in a file without a name, so that gigabytes of it take no memory."""

    def __init__(self) -> None:
        self._file = TemporaryFile(prefix="dibs-run-", buffering=0)  # noqa: SIM115 - closed by __exit__
        self._stream = STDOUT
        self._pending = bytearray()
        self.tail = b""
        """The end of what was said on stderr."""
        self.gap: str | None = None
        """Why something is missing in here; None while nothing is."""
        self.size_bytes = 0

    def add(self, stream: int, chunk: bytes) -> None:
        if stream == STDERR:
            self.tail = (self.tail + chunk)[-TAIL_SIZE:]
        if stream != self._stream or len(self._pending) + len(chunk) > _FRAME_SIZE_MAX:
            self.flush()
        self._stream = stream
        self._pending += chunk

    def flush(self) -> None:
        """Write what is pending; on a full disk the rest is given up, for the command must not suffer from it."""
        if not self._pending:
            return
        frame = _FRAME.pack(self._stream, len(self._pending)) + self._pending
        self._pending.clear()
        if self.gap is not None:
            return
        try:
            write_all(self._file.fileno(), frame)
            self.size_bytes += len(frame)
        except OSError as error:
            self.gap = f"what it printed could not be kept in a temporary file: {error.strerror}"

    def chunks(self) -> Iterator[bytes]:
        """The frames as bytes, from the beginning, whenever it is asked for."""
        self.flush()
        at = 0
        while at < self.size_bytes:
            chunk = os.pread(self._file.fileno(), min(_COPY_SIZE, self.size_bytes - at), at)
            if not chunk:
                raise OSError(errno.EIO, "the temporary file of a transcript is shorter than it was")
            at += len(chunk)
            yield chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of it, whatever takes only a part at a time, or nothing just now."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # somebody who shares this pipe has made it so
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


def replay(chunks: Iterable[memoryview | bytes], to: Mapping[int, int] | None = None) -> None:
    """Say again what a transcript holds; raises BrokenPipeError when our reader leaves.

    `to` has the descriptor of each stream (default: our own stdout and stderr).  Raises CodecError for bytes that are
    no frames.
    """
    to = to or {STDOUT: STDOUT, STDERR: STDERR}
    head = b""
    left = 0
    stream = STDOUT
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            if left:
                part, view = view[:left], view[left:]
                left -= len(part)
                write_all(to[stream], part)
                continue
            needed = _FRAME.size - len(head)
            head, view = head + bytes(view[:needed]), view[needed:]
            if len(head) == _FRAME.size:
                stream, left = _FRAME.unpack(head)
                head = b""
                if stream not in to:
                    raise CodecError(f"a stored transcript with a stream {stream}")
    if head or left:
        raise CodecError("a stored transcript that breaks off")
