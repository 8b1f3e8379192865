"""A beacon: a file that a process keeps locked for life, so that a free beacon means a dead process.

Why `flock`: the kernel lets go of it at the very moment the process dies, however it dies; it stays held
while the process is stopped; it is seen across PID namespaces; no later process can be taken for the owner.
The lock belongs to the open file description, which a forked child shares: so the child closes its copy
and never unlocks it, for unlocking would unlock the parent.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from typing import Final, Literal, NamedTuple

NAME: Final = re.compile(r"[0-9a-f]{16}(-\d)?\.beacon\Z")
STALE_AFTER_S: Final = 24 * 3600
PRUNED_MAX: Final = 64
LOOKED_AT_MAX: Final = 1024

State = Literal["held", "free", "unknown"]


class Beacon(NamedTuple):
    path: str
    inode: str
    """`<device>:<inode>`."""
    fd: int

    def stands(self) -> bool:
        """False when the file was removed or replaced, or when somebody closed our descriptor."""
        try:
            return self._is_open() and identity(os.stat(self.path, follow_symlinks=False)) == self.inode
        except OSError:
            return False

    def close(self) -> None:
        """Close the descriptor without unlocking."""
        if self._is_open():
            os.close(self.fd)

    def put_out(self) -> None:
        """Remove the file.  The descriptor stays open, because the process still lives."""
        with contextlib.suppress(OSError):
            if self.stands():
                os.unlink(self.path)

    def _is_open(self) -> bool:
        # Some programs close all descriptors they find; the number may be another file's by now.
        try:
            return identity(os.fstat(self.fd)) == self.inode
        except OSError:
            return False


def identity(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}"


def light(directory: str, process: str) -> Beacon:
    """Create and lock a beacon for `process`; raises OSError where the directory can't be written."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    for attempt in range(10):
        path = os.path.join(directory, f"{process}-{attempt}.beacon" if attempt else f"{process}.beacon")
        if beacon := _light(path):
            _prune(directory, beacon)
            return beacon
    raise OSError(f"beacons vanish from {directory} as soon as they are made")


def _light(path: str) -> Beacon | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return None
    beacon = Beacon(path, identity(os.fstat(fd)), fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    if beacon.stands():
        return beacon
    os.close(fd)
    return None


def state(path: str, inode: str | None = None) -> State:
    """Whether the beacon is held or free; unknown when it isn't there, is another inode, or no beacon."""
    if not os.path.isabs(path) or not NAME.match(os.path.basename(path)):
        return "unknown"  # paths come out of records, and not every file may be opened without effect
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return "unknown"
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (inode is not None and identity(status) != inode):
            return "unknown"
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return "free"
    except BlockingIOError:
        return "held"
    except OSError:
        return "unknown"
    finally:
        os.close(fd)


def _prune(directory: str, mine: Beacon) -> None:
    """Remove some beacons that are old by the file system's own clock and free."""
    now = os.fstat(mine.fd).st_mtime
    pruned = 0
    with os.scandir(directory) as entries:
        for looked_at, entry in enumerate(entries):
            if looked_at >= LOOKED_AT_MAX or pruned >= PRUNED_MAX:
                return
            if not NAME.match(entry.name):
                continue
            with contextlib.suppress(OSError):
                if now - entry.stat(follow_symlinks=False).st_mtime > STALE_AFTER_S:
                    pruned += _remove_if_free(entry.path)


def _remove_if_free(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if identity(os.fstat(fd)) != identity(os.stat(path, follow_symlinks=False)):
            return False
        os.unlink(path)
        return True
    finally:
        os.close(fd)
