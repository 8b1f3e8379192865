"""The folder of a local store: its descriptor, the paths below it, and files that are written aside.

Everything is opened below the descriptor of the root, so that the guards and the records that a process sees always
belong together, even when the folder is moved away and another one takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Final
from zlib import crc32

from dibs.errors import DibsError, StoreUnavailable
from dibs.runtime import Runtime
from dibs.store import Listed, checked_name
from dibs.stores import local_disk

STALE_AFTER_S: Final = 24 * 3600
TEMPS_PER_PRUNING: Final = 256
TEMP_TRIES: Final = 10

READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
WRITE: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Root:
    """The open folder; closed when its last user lets go of it, so never under somebody's hands."""

    __slots__ = ("fd", "file")

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.file = local_disk.identity(self.fd)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError, TypeError):
            if self.stands():
                os.close(self.fd)

    def stands(self) -> bool:
        return local_disk.is_still(self.fd, self.file)


class Folder:
    """A folder, made for this user only if it isn't there."""

    def __init__(self, path: str, runtime: Runtime, make: bool = True) -> None:
        self.path = path
        self._runtime = runtime
        self._temps = 0
        try:
            if make:
                os.makedirs(path, mode=0o700, exist_ok=True)
            elif not os.path.isdir(path):
                raise StoreUnavailable(f"there is no cache at {path}; the first worker that may write there makes it")
        except OSError as error:
            raise local_disk.translated(error, path) from error
        self.root: Root | None = None
        self.open()

    def open(self) -> Root:
        root = self.root
        if root is None:
            try:
                root = self.root = Root(self.path)
            except FileNotFoundError as error:
                raise self._vanished() from error
            except OSError as error:
                raise local_disk.translated(error, self.path) from error
        return root

    def open_surely(self) -> Root:
        """As open; anew when somebody closed our descriptor: for what may not hit another's folder, but for hits."""
        if self.root is not None and not self.root.stands():
            self.close()
        return self.open()

    def close(self) -> None:
        self.root = None

    def _vanished(self) -> StoreUnavailable:
        self.close()  # the next call looks for it again
        return StoreUnavailable(f"the directory {self.path} vanished. Make it again, or open another store.")

    def translated(self, error: OSError, root: Root, path: str) -> Exception:
        if error.errno == errno.ENOENT and not os.fstat(root.fd).st_nlink:
            return self._vanished()
        return local_disk.translated(error, os.path.join(self.path, path))

    def open_new(self, root: Root, path: str) -> int:
        """Create the file, and the directories above it; raises FileExistsError."""
        try:
            return os.open(path, CREATE, 0o600, dir_fd=root.fd)
        except FileNotFoundError:
            make_directories(root, path)
            return os.open(path, CREATE, 0o600, dir_fd=root.fd)

    def open_temp(self, root: Root) -> tuple[str, int]:
        """A file of our own to write in, locked as long as it is open: a free one was left by the dead."""
        for _ in range(TEMP_TRIES):
            temp = f"tmp/{self._runtime.token()}"
            fd = self.open_new(root, temp)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # whoever clears up was faster
                os.close(fd)
                continue
            except BaseException:
                os.close(fd)
                raise
            if not os.fstat(fd).st_nlink:
                os.close(fd)
                continue
            if self._temps % TEMPS_PER_PRUNING == 0:
                now = os.fstat(fd).st_mtime
                with contextlib.suppress(OSError, DibsError):
                    for _ in self.clear_temps(now, older_than_s=STALE_AFTER_S):
                        pass
            self._temps += 1
            return temp, fd
        raise OSError(errno.EAGAIN, "temporary files vanish as soon as they are made")

    def clear_temps(self, now: float, older_than_s: float = 0.0, dry_run: bool = False) -> Iterator[Listed]:
        """Remove the temporary files of dead writers; `now` is by the file system's clock."""
        directory = os.path.join(self.path, "tmp")
        for name, _ in entries(directory):
            path = os.path.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                age_s = max(now - status.st_mtime, 0.0)
                if age_s >= older_than_s and _is_free(path, remove=not dry_run):
                    yield Listed(f"tmp/{name}", status.st_size, age_s)

    def unlink(self, path: str) -> None:
        root = self.open_surely()
        try:
            os.unlink(path, dir_fd=root.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self.translated(error, root, path) from error

    def discard(self, root: Root, temp: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(temp, dir_fd=root.fd)


def path_of(top: str, name: str) -> str:
    """Where the record or blob is, below the root.  Raises SettingsError for a name that could lead out of it."""
    directory, slash, last = checked_name(name).rpartition("/")
    # "#" stands in no name, so a shard can't be taken for a segment.
    return f"{top}/{directory}{slash}#{crc32(name.encode()) & 0xFF:02x}/{last}"


def name_of(path: str) -> str | None:
    """What is kept in the file; None for a stranger's."""
    directory, _, last = path.partition("/")[2].rpartition("/")
    above, slash, shard = directory.rpartition("/")
    name = f"{above}{slash}{last}"
    return name if shard == f"#{crc32(name.encode()) & 0xFF:02x}" else None


def entries(directory: str) -> Iterator[tuple[str, bool]]:
    """Names, and whether each is a directory; none when the directory isn't there (any more)."""
    try:
        with os.scandir(directory) as scanned:
            for entry in scanned:
                if entry.is_dir(follow_symlinks=False):
                    yield entry.name, True
                elif entry.is_file(follow_symlinks=False):
                    yield entry.name, False
    except FileNotFoundError:
        return
    except OSError as error:
        raise local_disk.translated(error, directory) from error


def files_below(root: str, top: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Names that begin with `prefix`, each with its path below the root."""
    if prefix:
        checked_name(prefix.removesuffix("/"))
    waiting = [f"{top}/{prefix}".removesuffix("/")]
    while waiting:
        directory = waiting.pop()
        for entry, is_directory in entries(os.path.join(root, directory)):
            path = f"{directory}/{entry}"
            if is_directory:
                waiting.append(path)
            elif (name := name_of(path)) is not None and name.startswith(prefix):
                yield name, path


def make_directories(root: Root, path: str) -> None:
    parts = path.split("/")[:-1]
    for depth in range(len(parts)):
        with contextlib.suppress(FileExistsError):
            os.mkdir("/".join(parts[: depth + 1]), 0o700, dir_fd=root.fd)


def _is_free(path: str, remove: bool) -> bool:
    """Whether nobody has the file locked; if so it may be removed, under the lock."""
    fd = os.open(path, READ)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if remove:
            os.unlink(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
