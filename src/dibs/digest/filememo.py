"""Digests of files that were read before, by who they are and when they last changed: a small table in one file.

The table is shared by all processes of a user.  It has a fixed size, nobody locks it, and each entry carries a check
sum: an entry torn by two writers at once is an entry that isn't there, and the file is read again.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
from typing import Final

from blake3 import blake3

from dibs.digest.hashing import number

logger = logging.getLogger(__name__)

_KEY_SIZE, _DIGEST_SIZE, _CHECK_SIZE = 16, 32, 16
_ENTRY_SIZE: Final = _KEY_SIZE + _DIGEST_SIZE + _CHECK_SIZE
_BUCKET_ENTRIES: Final = 8
_BUCKET_SIZE: Final = _BUCKET_ENTRIES * _ENTRY_SIZE
_BUCKETS: Final = 8192
SIZE_MAX: Final = _BUCKETS * _BUCKET_SIZE
"""4 MiB: the latest digests of up to 65,536 files."""
RACY_S: Final = 2.0
"""A file may change twice within one tick of its clock; after this long, a change must show."""


def identity_of(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """What changes when the content does."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class FileMemo:
    """The table in the file at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._host = os.uname().nodename.encode()  # a home directory may be shared by many

    @staticmethod
    def of_this_user() -> FileMemo | None:
        """The table in the user's cache directory; None where there can't be one (said once, in the log)."""
        return _memo_in(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"))

    def get(self, status: os.stat_result) -> bytes | None:
        """The digest of the file with this status, if it is known."""
        key = self._key(status)
        try:
            with open(self.path, "rb", buffering=0) as table:
                bucket = os.pread(table.fileno(), _BUCKET_SIZE, self._offset(key))
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("no digests of files are remembered: %s", error)
            return None
        for start in range(0, len(bucket) - _ENTRY_SIZE + 1, _ENTRY_SIZE):
            if bucket.startswith(key, start):
                digest = bucket[start + _KEY_SIZE : start + _KEY_SIZE + _DIGEST_SIZE]
                if bucket[start + _KEY_SIZE + _DIGEST_SIZE : start + _ENTRY_SIZE] == _check(key, digest):
                    return digest
        return None

    def put(self, status: os.stat_result, digest: bytes) -> None:
        """Remember it, in the place of an old entry if need be; unless the file changed a moment ago."""
        from dibs.runtime.system import system

        # The change time can't be set back by anybody, unlike the time of modification.
        if not 0 <= status.st_ctime_ns / 1e9 <= system().wall() - RACY_S:
            return
        key = self._key(status)
        offset = self._offset(key)
        entry = key + digest + _check(key, digest)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                bucket = os.pread(descriptor, _BUCKET_SIZE, offset)
                place = _place(bucket, key)
                os.pwrite(descriptor, entry, offset + place * _ENTRY_SIZE)
            finally:
                os.close(descriptor)
        except OSError as error:
            logger.warning("the digest of a file can't be remembered: %s", error)

    def _key(self, status: os.stat_result) -> bytes:
        numbers = b"".join(part.to_bytes(16, "big", signed=True) for part in identity_of(status))
        return blake3(b"dibs file 1\0" + number(len(self._host)) + self._host + numbers).digest(_KEY_SIZE)

    def _offset(self, key: bytes) -> int:
        return int.from_bytes(key[:4], "big") % _BUCKETS * _BUCKET_SIZE


def _place(bucket: bytes, key: bytes) -> int:
    for place in range(_BUCKET_ENTRIES):
        entry = bucket[place * _ENTRY_SIZE : (place + 1) * _ENTRY_SIZE]
        if entry[:_KEY_SIZE] == key or not any(entry):
            return place
    return key[-1] % _BUCKET_ENTRIES  # any of them: keys are evenly spread


def _check(key: bytes, digest: bytes) -> bytes:
    return blake3(b"dibs file entry 1\0" + key + digest).digest(_CHECK_SIZE)


@functools.lru_cache(maxsize=16)
def _memo_in(cache_directory: str) -> FileMemo | None:
    directory = os.path.join(cache_directory, "dibs")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for path in (directory, os.path.join(directory, "files")):
            if not os.path.lexists(path):
                continue
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
                raise PermissionError(f"{path} must belong to uid {os.getuid()} alone")  # others could plant digests
    except OSError as error:
        logger.warning("no digests of files are remembered: %s; set XDG_CACHE_HOME to a private directory", error)
        return None
    return FileMemo(os.path.join(directory, "files"))
