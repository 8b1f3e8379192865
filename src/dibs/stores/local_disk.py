"""Which file systems can carry a local store, and what the operating system's errors mean for dibs."""

from __future__ import annotations

import errno
import os
import re
from typing import Final

from dibs.errors import DibsError, StoreUnavailable, StoreUnsuitable

_SHARED: Final = re.compile(
    r"nfs|cifs|smb|fuse|9p|lustre|ceph|glusterfs|afs|coda|ncp|virtiofs|vboxsf|prl_fs|vmhgfs|drvfs"
    r"|beegfs|gpfs|panfs|orangefs|pvfs|ocfs|gfs|acfs|wekafs|davfs|webdav|osxfuse|macfuse"
)


def type_of(path: str) -> str | None:
    """The type of the file system that `path` is (or would be) on; None where the system doesn't say."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    found, length = None, -1
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        # Later lines are mounted over earlier ones.
        if (mount == "/" or path == mount or path.startswith(mount + "/")) and len(mount) >= length:
            found, length = after.split(" ")[0], len(mount)
    return found


def identity(fd: int) -> tuple[int, int]:
    """Which file the descriptor stands for."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def is_still(fd: int, file: tuple[int, int]) -> bool:
    """False when somebody closed our descriptor, as daemons do with all they find: the number may be another's now."""
    try:
        return identity(fd) == file
    except OSError:
        return False


def check_type(path: str, kind: str | None) -> None:
    """Raise StoreUnsuitable if several machines might share this file system, or locks might not hold on it."""
    if kind is not None and _SHARED.match(kind):
        raise StoreUnsuitable(
            f"{path} is on a file system of type {kind}, where file locks and in-place writes can't be trusted "
            "between machines. Use an s3:// store, or a directory on a local disk."
        )


def translated(error: OSError, path: str) -> DibsError:
    """What an error of the operating system means for whoever uses the store."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StoreUnavailable(f"disk full: {path}: {reason}. Free some space or raise the quota.", certain=True)
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return StoreUnsuitable(
                f"{path} can't be used: {reason}. "
                f"Make it readable and writable for uid {os.getuid()}, or choose another directory."
            )
        case errno.ELOOP | errno.EISDIR | errno.ENXIO | errno.ENOTDIR | errno.ESPIPE | errno.EAGAIN:
            return not_a_record(path)
        case _:
            return StoreUnavailable(f"{path}: {reason}")


def not_a_record(path: str) -> StoreUnsuitable:
    return StoreUnsuitable(
        f"{path} is a directory, a link or a special file, where the store keeps a plain file. Remove it."
    )
