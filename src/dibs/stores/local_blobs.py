"""Blobs in a folder: written aside, then renamed into place, and never changed again.

Why a reader never sees half a blob: its name appears with the rename, when it is complete.  Why nothing piles up:
what a dead writer left has no name but a temporary one, and its lock is free (see `local_folder`).
Why a mapped blob stays as it is: it may be unlinked, which leaves those who have it open alone, but never shortened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Final, cast

from dibs.runtime import Runtime
from dibs.store import Listed, Source
from dibs.stores import local_disk
from dibs.stores.local_folder import READ, Folder, files_below, make_directories, path_of

CHUNK_SIZE: Final = 4 << 20


class LocalBlobs:
    """The blobs of one folder."""

    def __init__(self, folder: Folder, runtime: Runtime) -> None:
        self._folder, self._runtime = folder, runtime

    def upload(self, name: str, source: Source) -> None:
        path = path_of("blobs", name)
        root = self._folder.open_surely()
        temp, fd = "", -1
        try:
            temp, fd = self._folder.open_temp(root)
            while chunk := _read(source):
                _write_all(fd, chunk)
            # Finer than the file system's own clock ticks: whoever writes to the file later can't but change it.
            written_ns = int(self._runtime.wall() * 1e9)
            os.utime(fd, ns=(written_ns, written_ns))
            try:
                os.rename(temp, path, src_dir_fd=root.fd, dst_dir_fd=root.fd)
            except FileNotFoundError:
                make_directories(root, path)
                os.rename(temp, path, src_dir_fd=root.fd, dst_dir_fd=root.fd)
        except BaseException as error:
            if temp:
                self._folder.discard(root, temp)
            if isinstance(error, _SourceFailed):
                raise error.cause from None
            if isinstance(error, OSError):
                raise self._folder.translated(error, root, path) from error
            raise
        finally:
            if fd >= 0:
                os.close(fd)

    def download(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A bare `FileIO`, which can be mapped."""
        path = path_of("blobs", name)
        root = self._folder.root or self._folder.open()  # just read from
        try:
            file = open(os.open(path, READ, dir_fd=root.fd), "rb", buffering=0)  # noqa: SIM115 (the caller closes it)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such blob", os.path.join(self._folder.path, path)) from error
        except OSError as error:
            raise self._folder.translated(error, root, path) from error
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise local_disk.not_a_record(os.path.join(self._folder.path, path))
        return cast(BinaryIO, file)

    def scan(self, prefix: str) -> Iterator[Listed]:
        root = self._folder.open_surely()
        now = self._runtime.wall()
        for name, path in files_below(self._folder.path, "blobs", prefix):
            with contextlib.suppress(OSError):
                status = os.stat(path, dir_fd=root.fd, follow_symlinks=False)
                yield Listed(name, status.st_size, max(now - status.st_mtime, 0.0))


class _SourceFailed(Exception):
    """Carries an error of the caller's stream past the translation of our own."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


def _read(source: Source) -> bytes | memoryview:
    try:
        return source.read(CHUNK_SIZE)
    except Exception as error:
        raise _SourceFailed(error) from error


def _write_all(fd: int, chunk: bytes | memoryview) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]
