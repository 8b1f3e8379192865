"""Two pipes between a command and us: what it prints is passed on at once, and written down in the order it came in.

Why the order is right on Linux: a pipe in packet mode with room for one page holds one write, so the command's next
write to the same stream waits until we have read the one before, and at most one write of each stream is pending.
epoll in edge-triggered mode tells which came first, because it queues each write as it happens; so one read per event
gives back the order of one writer's writes.  Who prints faster than `_STRICT_MAX` writes a second gets roomy pipes
instead, and the order in which they could be read; so does every command on other systems.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
from contextlib import suppress
from typing import Any, Final, Protocol

from dibs.command.transcript import STDERR, STDOUT, Transcript, write_all
from dibs.runtime import Runtime

_READ_SIZE: Final = 64 * 1024
_READS_MAX: Final = 16
_ROOMY_SIZE: Final = 1024 * 1024
_STRICT_SIZE: Final = 4096
_STRICT_MAX: Final = 5_000
_LINGER_S: Final = 0.5
"""How long what is still in the pipes is waited for when the command has ended but left somebody who holds them."""
_LOOK_EVERY_S: Final = 0.05
_LOOK_ANYHOW_S: Final = 1.0
"""How often to look without having been told; needed only where a kernel isn't quite Linux."""
_LINUX: Final = sys.platform == "linux"


class Running(Protocol):
    """As much of a command as is needed here."""

    @property
    def pid(self) -> int: ...
    def has_ended(self) -> bool: ...


class Pipes:
    """A pipe for stdout and one for stderr."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._read: dict[int, int] = {}
        """Stream -> where we read."""
        self._write: dict[int, int] = {}
        self._strict = _LINUX
        self._window = (0.0, 0)
        for stream in (STDOUT, STDERR):
            self._read[stream], self._write[stream] = os.pipe2(os.O_CLOEXEC | os.O_DIRECT) if _LINUX else os.pipe()
            os.set_blocking(self._read[stream], False)
            if _LINUX:
                fcntl.fcntl(self._read[stream], fcntl.F_SETPIPE_SZ, _STRICT_SIZE)

    @property
    def stdout(self) -> int:
        """Where the command writes to."""
        return self._write[STDOUT]

    @property
    def stderr(self) -> int:
        return self._write[STDERR]

    def relay(self, command: Running, transcript: Transcript) -> None:
        """Pass on what the started command prints to our own streams, and write it down, until the command ends."""
        _close(self._write)
        ended = _ended(command.pid)
        listening: Any = select.epoll() if _LINUX else select.poll()
        give_up_at: float | None = None
        try:
            for descriptor in self._read.values():
                listening.register(descriptor, select.EPOLLIN | select.EPOLLET if _LINUX else select.POLLIN)
            if ended is not None:
                listening.register(ended, select.POLLIN)
            while self._read:  # ends with the streams, or a little after the command
                left_s = _LOOK_EVERY_S if ended is None else _LOOK_ANYHOW_S
                if give_up_at is not None:
                    left_s = give_up_at - self._runtime.monotonic()
                    if left_s <= 0:
                        break
                told = listening.poll(left_s if _LINUX else left_s * 1000)
                for descriptor, what in told or [(known, 0) for known in self._read.values()]:
                    if descriptor != ended:
                        self._heard(descriptor, bool(what & select.POLLHUP), transcript, listening)
                if give_up_at is None and command.has_ended():
                    give_up_at = self._runtime.monotonic() + _LINGER_S
                    if ended is not None:
                        listening.unregister(ended)
        finally:
            transcript.flush()
            if _LINUX:
                listening.close()
            if ended is not None:
                os.close(ended)

    def _heard(self, descriptor: int, no_more: bool, transcript: Transcript, listening: Any) -> None:
        """Read what was told by one event: a write; or, when nobody will write any more, all that is left."""
        stream = next((stream for stream, known in self._read.items() if known == descriptor), None)
        while stream is not None:
            chunk = self._chunk(descriptor)
            if chunk is None:
                return
            if not chunk or not self._passed_on(stream, chunk, transcript):
                listening.unregister(descriptor)
                os.close(self._read.pop(stream))
                return
            if self._strict:
                self._keep_up(listening)
            if not no_more:
                return

    def _chunk(self, descriptor: int) -> bytes | None:
        """What can be read: one write, or several when order is given up; None for nothing now, empty for the end."""
        found: list[bytes] = []
        for _ in range(1 if self._strict else _READS_MAX):
            try:
                found.append(os.read(descriptor, _READ_SIZE))
            except BlockingIOError:
                break
            if not found[-1]:
                break  # said again by the next read
        return b"".join(found) if found else None

    def _passed_on(self, stream: int, chunk: bytes, transcript: Transcript) -> bool:
        transcript.add(stream, chunk)
        try:
            write_all(stream, chunk)
        except OSError as error:
            # Our reader has left: the command shall notice it by its next write, as it would without us.
            transcript.gap = f"nobody read what it printed to the end: {error.strerror}"
            return False
        return True

    def _keep_up(self, listening: Any) -> None:
        """Give the pipes room when the command would have to wait for us too often."""
        now = self._runtime.monotonic()
        began, count = self._window
        self._window = (began, count + 1) if now - began < 1.0 else (now, 1)
        if count < _STRICT_MAX:
            return
        self._strict = False
        for descriptor in self._read.values():
            with suppress(OSError):  # no more than a limit of this user's: then they stay small
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _ROOMY_SIZE)
            listening.modify(descriptor, select.EPOLLIN)

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
