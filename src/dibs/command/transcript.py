"""What a command prints, on both streams in the order in which it came: passed on at once, kept in a file, said again.

Two pipes are read by one loop, so the order is that in which their chunks could be read: two writes to different
streams that follow each other within the time it takes to wake up may change places.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from tempfile import TemporaryFile
from types import TracebackType
from typing import Final, Protocol, Self

from dibs.errors import CodecError
from dibs.runtime import Runtime

STDOUT: Final = 1
STDERR: Final = 2
TAIL_SIZE: Final = 2_000

_FRAME: Final = struct.Struct("<BI")
"""A frame is the number of its stream, its length in bytes, and the bytes."""
_FRAME_SIZE_MAX: Final = 256 * 1024
_READ_SIZE: Final = 64 * 1024
_COPY_SIZE: Final = 1024 * 1024
_LINGER_S: Final = 0.5
"""How long what is still in the pipes is waited for when the command has ended but left somebody who holds them."""
_LOOK_EVERY_S: Final = 0.05


class Running(Protocol):
    """As much of a command as its transcript needs."""

    @property
    def pid(self) -> int: ...
    def has_ended(self) -> bool: ...


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


class Pipes:
    """Two pipes: a command writes into them, and `relay` reads them until it has ended."""

    def __init__(self) -> None:
        self._read: dict[int, int] = {}
        self._write: dict[int, int] = {}
        for stream in (STDOUT, STDERR):
            self._read[stream], self._write[stream] = os.pipe()
            os.set_blocking(self._read[stream], False)

    @property
    def stdout(self) -> int:
        """Where the command writes to."""
        return self._write[STDOUT]

    @property
    def stderr(self) -> int:
        return self._write[STDERR]

    def relay(self, command: Running, transcript: Transcript, runtime: Runtime) -> None:
        """Pass on what the started command prints to our own streams, and write it down, until the command ends."""
        _close(self._write)
        ended = _ended(command.pid)
        give_up_at: float | None = None
        try:
            while self._read:  # ends with the streams, or a little after the command
                poll = select.poll()
                streams = {descriptor: stream for stream, descriptor in self._read.items()}
                for descriptor in (*streams, *((ended,) if ended is not None and give_up_at is None else ())):
                    poll.register(descriptor, select.POLLIN)
                ready = [descriptor for descriptor, _ in poll.poll(_patience_ms(ended, give_up_at, runtime))]
                for descriptor in ready:
                    if descriptor in streams:
                        self._pass_on(streams[descriptor], transcript)
                if give_up_at is None and command.has_ended():
                    give_up_at = runtime.monotonic() + _LINGER_S
                elif give_up_at is not None and runtime.monotonic() >= give_up_at:
                    break
        finally:
            transcript.flush()
            if ended is not None:
                os.close(ended)

    def _pass_on(self, stream: int, transcript: Transcript) -> None:
        try:
            chunk = os.read(self._read[stream], _READ_SIZE)
        except BlockingIOError:
            return
        if not chunk:
            os.close(self._read.pop(stream))
            return
        transcript.add(stream, chunk)
        try:
            write_all(stream, chunk)
        except OSError as error:
            # Our reader has left: the command shall notice it by its next write, as it would without us.
            os.close(self._read.pop(stream))
            transcript.gap = f"nobody read what it printed to the end: {error.strerror}"

    def close(self) -> None:
        _close(self._write)
        _close(self._read)


def _close(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _ended(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the kernel has no such thing."""
    with suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def _patience_ms(ended: int | None, give_up_at: float | None, runtime: Runtime) -> float | None:
    if give_up_at is not None:
        return max(give_up_at - runtime.monotonic(), 0.0) * 1000
    return None if ended is not None else _LOOK_EVERY_S * 1000


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
