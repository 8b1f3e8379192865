"""One output as a list of entries, parents first: a file, or a directory with all that is in it.

Names, permission bits, contents and the text of symbolic links count; owners, times and hard links don't.  An output
that is itself a symbolic link is followed, links inside a directory are kept as they are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from dibs.errors import CodecError

Kind = Literal["file", "directory", "link"]
PERMISSIONS: Final = 0o777
COPY_SIZE: Final = 1024 * 1024

_Marks = tuple[int, int, int, int, int]


class Content(Protocol):
    """The bytes of one file, in pieces, as often as they are asked for."""

    @property
    def size_bytes(self) -> int: ...
    def chunks(self) -> Iterator[bytes | memoryview]: ...


class Stored(NamedTuple):
    """Bytes that came from a store."""

    view: memoryview

    @property
    def size_bytes(self) -> int:
        return len(self.view)

    def chunks(self) -> Iterator[memoryview]:
        return (self.view[at : at + COPY_SIZE] for at in range(0, len(self.view), COPY_SIZE))


class OnDisk(NamedTuple):
    """A file as it was when it was listed; reading it when it has changed since is a CodecError."""

    path: str
    marks: _Marks

    @property
    def size_bytes(self) -> int:
        return self.marks[2]

    def chunks(self) -> Iterator[bytes]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CodecError(f"{self.path}: {error.strerror}, while the outputs were stored") from error
        with open(descriptor, "rb") as file:
            left = self.size_bytes
            self._check(descriptor)
            while left and (chunk := file.read(min(COPY_SIZE, left))):
                left -= len(chunk)
                yield chunk
            self._check(descriptor)

    def _check(self, descriptor: int) -> None:
        if marks_of(os.fstat(descriptor)) != self.marks:
            raise CodecError(
                f"{self.path} changed while it was stored: is something still writing to it that the command has "
                "left in the background?"
            )


class Entry(NamedTuple):
    """One thing in a tree; `path` is relative to its top, which has none."""

    kind: Kind
    path: tuple[str, ...]
    mode: int = 0
    content: Content | None = None
    target: str = ""


def marks_of(status: os.stat_result) -> _Marks:
    """What changes when a file is written or replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def entries_of(top: str) -> list[Entry]:
    """What is at `top`, in one order everywhere.  Raises OSError, and CodecError for what is no file or directory."""
    top = os.path.realpath(top)
    entries = [_entry(top, (), os.stat(top))]
    pending: list[tuple[str, tuple[str, ...]]] = [(top, ())] if entries[0].kind == "directory" else []
    while pending:  # ends with the tree
        directory, path = pending.pop()
        with os.scandir(directory) as found:
            for item in found:
                entry = _entry(item.path, (*path, item.name), item.stat(follow_symlinks=False))
                entries.append(entry)
                if entry.kind == "directory":
                    pending.append((item.path, entry.path))
    return sorted(entries, key=lambda entry: [os.fsencode(name) for name in entry.path])


def _entry(path: str, relative: tuple[str, ...], status: os.stat_result) -> Entry:
    mode = stat.S_IMODE(status.st_mode) & PERMISSIONS
    if stat.S_ISREG(status.st_mode):
        return Entry("file", relative, mode, OnDisk(path, marks_of(status)))
    if stat.S_ISDIR(status.st_mode):
        return Entry("directory", relative, mode)
    if stat.S_ISLNK(status.st_mode):
        return Entry("link", relative, target=os.readlink(path))
    raise CodecError(f"{path} is neither a file, a directory nor a link: it can't be stored")


def traces(top: str) -> dict[tuple[str, ...], _Marks] | None:
    """By what one sees whether anything in `top` was written; None when there is nothing."""
    found: dict[tuple[str, ...], _Marks] = {}
    try:
        top = os.path.realpath(top)
        found[()] = marks_of(os.stat(top))
        pending: list[tuple[str, tuple[str, ...]]] = [(top, ())] if os.path.isdir(top) else []
        while pending:
            directory, path = pending.pop()
            with os.scandir(directory) as items:
                for item in items:
                    found[*path, item.name] = marks_of(item.stat(follow_symlinks=False))
                    if item.is_dir(follow_symlinks=False):
                        pending.append((item.path, (*path, item.name)))
    except OSError:
        return found or None
    return found


def same(entries: Sequence[Entry], top: str) -> bool:
    """True when `top` is these very entries, byte for byte."""
    try:
        there = entries_of(top)
        if [_outline(entry) for entry in there] != [_outline(entry) for entry in entries]:
            return False
        return all(_same_bytes(one.content, other.content) for one, other in zip(entries, there, strict=True))
    except (OSError, CodecError):
        return False


def _outline(entry: Entry) -> tuple[object, ...]:
    size_bytes = entry.content.size_bytes if entry.content is not None else None
    return entry.kind, entry.path, entry.mode, entry.target, size_bytes


def _same_bytes(one: Content | None, other: Content | None) -> bool:
    if one is None or other is None:
        return one is other
    # Both have one size and are read in pieces of one size.
    return all(mine == theirs for mine, theirs in zip(one.chunks(), other.chunks(), strict=True))
