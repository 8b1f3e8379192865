"""Outputs put where the command would have put them, each in one step.

A tree is built in a private directory beside its place, then exchanged with what is there; what is there already
byte for byte stays, and only becomes newer, because `make` looks at that.  A killed restore leaves its directory,
which the next one of the same output removes: the living keep theirs locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from dibs.command.tree import Entry, same
from dibs.runtime import Runtime
from dibs.runtime.linux import exchange

_ATTEMPTS_MAX: Final = 100
_NEW: Final = "new"
_READABLE: Final = 100
"""Bytes of a name that the directory beside it bears; a name may have 255 altogether."""


class Output(NamedTuple):
    """One declared output: its path as it was typed, and what belongs there (nothing, if it wasn't made)."""

    path: str
    entries: Sequence[Entry]


def restore(outputs: Sequence[Output], runtime: Runtime) -> None:
    """Put all outputs in place; nothing is touched before all of them are complete beside their places.

    Raises OSError, which names the path.
    """
    with ExitStack() as stack:
        ready: list[tuple[str, Sequence[Entry], str | None]] = []
        for path, entries in outputs:
            if not entries:
                continue
            place = os.path.realpath(path)
            if same(entries, place):
                ready.append((place, entries, None))
            else:
                ready.append((place, entries, stack.enter_context(_staged(place, entries, runtime))))
        for place, entries, staged in ready:
            if staged is None:
                _freshen(place, entries)
            else:
                _put(staged, place, entries[0])


@contextmanager
def _staged(place: str, entries: Sequence[Entry], runtime: Runtime) -> Iterator[str]:
    """The tree, complete, on the file system of its place; whatever is left of it goes when the block ends."""
    parent, name = os.path.split(place)
    os.makedirs(parent, exist_ok=True)
    prefix = f".{os.fsdecode(os.fsencode(name)[:_READABLE])}.dibs-"
    _clear_leftovers(parent, prefix)
    staging, descriptor = _made(parent, prefix, runtime)
    try:
        staged = os.path.join(staging, _NEW)
        _build(staged, entries)
        yield staged
    finally:
        _remove_tree(staging)
        os.close(descriptor)


def _made(parent: str, prefix: str, runtime: Runtime) -> tuple[str, int]:
    """A new directory of ours, and the descriptor that keeps it locked."""
    for _ in range(_ATTEMPTS_MAX):
        staging = os.path.join(parent, prefix + runtime.token())
        os.mkdir(staging, 0o700)
        descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(OSError):  # a file system without locks: there nobody can lock what he would clear up
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.lexists(staging):  # else somebody took it for a leftover before it was locked
            return staging, descriptor
        os.close(descriptor)
    raise OSError(errno.EBUSY, "others keep removing what is made here", parent)


def _build(top: str, entries: Sequence[Entry]) -> None:
    """Make the tree.  Every name is new and below directories made here, so nothing can lead out of it."""
    directories: list[tuple[str, int]] = []
    for entry in entries:
        path = os.path.join(top, *entry.path)
        if entry.kind == "directory":
            os.mkdir(path, 0o700)
            directories.append((path, entry.mode))
        elif entry.kind == "link":
            os.symlink(entry.target, path)
        else:
            _write(path, entry)
    for path, mode in reversed(directories):
        # The top must be writable until it stands in its place: moving it rewrites its "..".
        os.chmod(path, mode | stat.S_IRWXU if path == top else mode)


def _write(path: str, entry: Entry) -> None:
    assert entry.content is not None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for chunk in entry.content.chunks():
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, entry.mode)
    finally:
        os.close(descriptor)


def _put(staged: str, place: str, top: Entry) -> None:
    """Let the staged tree and what is in its place change places."""
    for _ in range(_ATTEMPTS_MAX):  # others may put theirs at the same time
        try:
            if top.kind == "file" and not os.path.isdir(place):
                os.replace(staged, place)
            elif not os.path.lexists(place):
                os.rename(staged, place)
            else:
                _exchange(staged, place)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                continue
            if error.errno in (errno.EBUSY, errno.EXDEV):
                problem = f"{error.strerror}: it is a mount point; name what lies inside it"
                raise OSError(error.errno, problem, place) from error
            raise OSError(error.errno, error.strerror, place) from error
        if top.kind == "directory":
            os.chmod(place, top.mode)
        return
    raise OSError(errno.EBUSY, "others keep changing it", place)


def _exchange(staged: str, place: str) -> None:
    if os.path.isdir(place) and not os.access(place, os.W_OK):
        os.chmod(place, stat.S_IRWXU)  # it is to move as well
    try:
        exchange(staged, place)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        # No exchange on this system: for a moment there is nothing in this place.
        os.rename(place, f"{staged}-old")
        os.rename(staged, place)


def _freshen(place: str, entries: Sequence[Entry]) -> None:
    """Make everything as new as if it had just been written, the top last."""
    for entry in reversed(entries):
        with suppress(PermissionError):  # somebody else's file, as right as it was
            os.utime(os.path.join(place, *entry.path), follow_symlinks=False)


def _clear_leftovers(parent: str, prefix: str) -> None:
    with os.scandir(parent) as found:
        leftovers = [item.path for item in found if item.name.startswith(prefix)]
    for path in leftovers:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_tree(path)
            finally:
                os.close(descriptor)


def _remove_tree(top: str) -> None:
    for directory, below, _ in os.walk(top):
        for name in below:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                with suppress(OSError):
                    os.chmod(path, stat.S_IRWXU)
    shutil.rmtree(top, ignore_errors=True)
