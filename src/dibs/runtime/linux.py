"""The system calls that Python has no name for; ctypes is imported when one is first used (it costs 3 ms)."""

from __future__ import annotations

import errno
import functools
import os
from typing import Any, Final

AT_FDCWD: Final = -100
RENAME_EXCHANGE: Final = 2

IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_CLOSE_WRITE: Final = 0x8
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int | bytes) -> int:
    import ctypes

    try:
        function = getattr(_libc(), name)
    except AttributeError:
        raise OSError(errno.ENOSYS, f"{name}: {os.strerror(errno.ENOSYS)}") from None
    result: int = function(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def exchange(one: str, other: str, dir_fd: int = AT_FDCWD) -> None:
    """Swap two names atomically.  Raises OSError, EINVAL or ENOSYS where the kernel or file system can't."""
    _call("renameat2", dir_fd, os.fsencode(one), dir_fd, os.fsencode(other), RENAME_EXCHANGE)


def inotify_init() -> int:
    return _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    return _call("inotify_add_watch", fd, os.fsencode(path), mask)


def inotify_rm_watch(fd: int, watch: int) -> None:
    _call("inotify_rm_watch", fd, watch)
