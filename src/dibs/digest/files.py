"""Arguments that count by the content of a file or a directory, whatever its path."""

from __future__ import annotations

import os
import stat
from typing import Any, Final

from blake3 import blake3

from dibs.digest.filememo import FileMemo, identity_of
from dibs.digest.hashing import text
from dibs.digest.refusal import Refused
from dibs.digest.walk import Walk
from dibs.hashing import hasher

_CHUNK_SIZE: Final = 8 << 20
_REMEMBERED_SIZE: Final = 64 << 10
"""Smaller files are read faster than they are looked up."""
_ATTEMPTS: Final = 3


class File(os.PathLike[str]):
    """An argument that counts by the content of the file at `path`; a directory, by the tree of names and contents.

    Pass it where the function expects a path: `open(file)`, `numpy.load(file)` and `pandas.read_csv(file)` take it.
    The path itself doesn't count, nor do times and permissions; symbolic links are followed.  The digest of a large
    file is remembered by its identity, size and times, so that it is read once as long as nobody writes to it; not
    remembered is what was changed less than two seconds ago.

        train(dibs.File("corpus.txt"), epochs=3)
    """

    __slots__ = ("path",)

    path: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text_path = os.fspath(path)
        if not isinstance(text_path, str):
            raise TypeError(f"dibs.File takes a path as text, not {text_path!r}")
        object.__setattr__(self, "path", text_path)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a dibs.File can't be changed: make a new one to set {name}")

    def __fspath__(self) -> str:
        return self.path

    def __reduce__(self) -> tuple[type[File], tuple[str]]:
        return File, (self.path,)

    def __repr__(self) -> str:
        return f"File({self.path!r})"

    def __str__(self) -> str:
        return self.path

    def __eq__(self, other: object) -> bool:
        return self.path == other.path if isinstance(other, File) else NotImplemented

    def __hash__(self) -> int:
        return hash((File, self.path))


def encode_file(value: File, walk: Walk) -> bytes:
    form, digest = content_digest(value, value.path, ())
    return walk.known(b"File", form + digest)


def content_digest(file: Any, path: str, above: tuple[tuple[int, int], ...]) -> tuple[bytes, bytes]:
    """`f` and the blake3 of a file's content, or `d` and that of a directory's tree.  Raises Refused."""
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return b"f", _file_digest(file, path)
        if stat.S_ISDIR(status.st_mode):
            return b"d", _tree_digest(file, path, (status.st_dev, status.st_ino), above)
    except FileNotFoundError as error:
        where = "" if os.path.isabs(path) else f" (looked in {os.getcwd()})"
        raise Refused(file, f"there is no file or directory {path!r}{where}", "check the path") from error
    except OSError as error:
        raise Refused(file, f"{path!r} can't be read: {error}", "check its permissions") from error
    raise Refused(file, f"{path!r} is neither a file nor a directory", "pass what is read from it")


def _tree_digest(file: Any, path: str, identity: tuple[int, int], above: tuple[tuple[int, int], ...]) -> bytes:
    if identity in above:
        raise Refused(file, f"the directory {path!r} contains itself, by a symbolic link", "remove the link")
    summing = blake3()
    for name in sorted(os.listdir(path)):
        form, digest = content_digest(file, os.path.join(path, name), (*above, identity))
        summing.update(text(name) + form + digest)
    return bytes(summing.digest())


def _file_digest(file: Any, path: str) -> bytes:
    for _ in range(_ATTEMPTS):
        with open(path, "rb", buffering=0) as source:
            before = os.fstat(source.fileno())
            memo = FileMemo.of_this_user() if before.st_size >= _REMEMBERED_SIZE else None
            known = memo.get(before) if memo else None
            if known is not None:
                return known
            digest = _read(source, before.st_size)
            after = os.fstat(source.fileno())
        if identity_of(before) == identity_of(after):
            if memo:
                memo.put(before, digest)
            return digest
    raise Refused(file, f"{path!r} is being written while it is read", "wait until it is complete")


def _read(source: Any, size_bytes: int) -> bytes:
    # Read, not mapped: a mapped file that is cut short meanwhile kills the process.
    summing = hasher(size_bytes)
    buffer = bytearray(min(max(size_bytes, 1), _CHUNK_SIZE))
    view = memoryview(buffer)
    while count := source.readinto(buffer):
        summing.update(view[:count])
    return bytes(summing.digest())
