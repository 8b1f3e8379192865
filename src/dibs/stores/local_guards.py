"""Guards: a writer holds one for microseconds, so that what a writer finds was left by the dead or the finished.

A guard is an `flock` on one of 64 small files.  They are never unlinked, so that all writers lock the same inode;
if somebody else wipes the directory, that shows (no links are left) and the guard is opened anew.
The lock belongs to the open file description: so threads take descriptors of their own, which excludes them from
each other as well, and a forked child closes what it inherited and never unlocks it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

from dibs.errors import StoreUnavailable
from dibs.runtime import Runtime, process
from dibs.store import limited_s
from dibs.stores.local_disk import identity, is_still

COUNT: Final = 64
YIELDS: Final = 4
PAUSE_S_MIN: Final = 50e-6
PAUSE_S_MAX: Final = 1e-3
IDLE_MAX: Final = 2
DIRECTORY: Final = "guards"

_EXCLUSIVE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Guard:
    """One descriptor of one guard file."""

    __slots__ = ("fd", "file", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.fd, self.file = -1, (0, 0)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0 and is_still(fd, self.file):
            os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            self.close()


class Guards:
    """The guards of one store in this process."""

    def __init__(self, runtime: Runtime, root: str, limit_s: float) -> None:
        self._runtime, self._root, self.limit_s = runtime, root, limit_s
        self._idle: list[list[Guard]] = [[] for _ in range(COUNT)]
        self._all: list[Guard] = []

    def take(self, number: int) -> Guard:
        """A guard, not yet locked.  Lock it inside a `try` whose `finally` gives it back."""
        try:
            return self._idle[number].pop()
        except IndexError:
            guard = Guard(number)
            self._all.append(guard)
            return guard

    def lock(self, guard: Guard, root_fd: int) -> None:
        """Raises StoreUnavailable when somebody else keeps it for too long."""
        while True:
            if guard.fd < 0 or not is_still(guard.fd, guard.file):
                guard.fd = self._open(guard.number, root_fd)
                guard.file = identity(guard.fd)
            try:
                fcntl.flock(guard.fd, _EXCLUSIVE)
            except BlockingIOError:
                self._wait(guard)
            if os.fstat(guard.fd).st_nlink:
                return
            # Wiped meanwhile; the next round locks the file that others lock now, or finds the root gone.
            guard.close()

    def give_back(self, guard: Guard) -> None:
        if guard.fd < 0:  # it could not be opened, or it belongs to the parent of this process
            with contextlib.suppress(ValueError):
                self._all.remove(guard)
            return
        try:
            fcntl.flock(guard.fd, fcntl.LOCK_UN)
        except BaseException:
            guard.close()
            raise
        idle = self._idle[guard.number]
        idle.append(guard)
        if len(idle) > IDLE_MAX:
            self._close(idle)

    def close(self) -> None:
        """Close the descriptors that nobody uses at the moment."""
        for idle in self._idle:
            while idle:
                self._close(idle)

    def forked(self) -> None:
        """In the child: close everything, also what threads of the parent were holding."""
        inherited, self._all = self._all, []
        self._idle = [[] for _ in range(COUNT)]
        for guard in inherited:
            guard.close()

    def _close(self, idle: list[Guard]) -> None:
        with contextlib.suppress(IndexError, ValueError):
            guard = idle.pop()
            self._all.remove(guard)
            guard.close()

    def _open(self, number: int, root_fd: int) -> int:
        path = f"{DIRECTORY}/{number:02x}"
        try:
            return os.open(path, _OPEN, 0o600, dir_fd=root_fd)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(DIRECTORY, 0o700, dir_fd=root_fd)
            return os.open(path, _OPEN, 0o600, dir_fd=root_fd)

    def _wait(self, guard: Guard) -> None:
        limit_s = limited_s(self.limit_s)
        deadline = self._runtime.monotonic() + limit_s
        pause, tries = PAUSE_S_MIN, 0
        while True:
            if tries < YIELDS:
                os.sched_yield()
            else:
                self._runtime.sleep(pause)
                pause = min(pause * 1.5, PAUSE_S_MAX)
            tries += 1
            try:
                fcntl.flock(guard.fd, _EXCLUSIVE)
                return
            except BlockingIOError:
                if self._runtime.monotonic() >= deadline:
                    break
        owner = process.flock_owner(guard.fd) or "an unknown process"
        raise StoreUnavailable(
            f"{self._root}/{DIRECTORY}/{guard.number:02x} has been locked for {limit_s:g} s by {owner}, "
            "which should take microseconds. Let that process go on, or end it.",
            certain=True,
            passing=True,
        )
