"""The store in a folder, for all processes of one kernel.

    records/<segments>/#<2 hex>/<last segment>   two slots in place, see `local_slots`
    guards/<2 hex>                               what writers lock, see `local_guards`
    blobs/<segments>/#<2 hex>/<last segment>     written aside, then renamed into place
    beacons/  tmp/

Why no swap is lost: every write happens under the guard of its record and compares the version there.
Why a key never seems absent once it was written: records are written in place or exchanged for whole files,
and never unlinked; so readers need no guard, and only a record that looks damaged makes them take it, for under
the guard a half-written file can only be what a dead writer left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, Final, Literal
from zlib import crc32

from dibs.errors import Conflict
from dibs.runtime import Runtime, linux, process
from dibs.store import UNCHANGED, Listed, Record, Source, Unchanged, Version
from dibs.stores import local_disk, local_guards, local_slots
from dibs.stores.local_blobs import LocalBlobs
from dibs.stores.local_folder import READ, WRITE, Folder, Root, files_below, path_of

REQUEST_TIMEOUT_S: Final = 10.0
READ_TRIES: Final = 3
PLACES_MAX: Final = 4096


class LocalStore:
    """See `store.Store` and `store.Blobs`; with `make` the folder is made, for this user only, if it isn't there.

    Raises StoreUnsuitable on file systems that machines share, because neither locks nor in-place writes can be
    trusted there.  `type_of` is for tests.
    """

    remote: Final = False
    server: Final = ""
    dialects: Final = ("plain",)

    def __init__(
        self,
        root: str,
        runtime: Runtime,
        type_of: Callable[[str], str | None] = local_disk.type_of,
        make: bool = True,
    ) -> None:
        self.root = os.path.realpath(root)
        self.dialect = self.dialects[0]
        self._runtime = runtime
        local_disk.check_type(self.root, type_of(self.root))
        self._folder = Folder(self.root, runtime, make)
        self._blobs = LocalBlobs(self._folder, runtime)
        self._guards = local_guards.Guards(runtime, self.root, REQUEST_TIMEOUT_S)
        self._places: dict[str, tuple[str, int]] = {}
        # Ages come from the clock that all processes of a boot share, that nobody can set, and that no suspend stops.
        shifted = process.clocks_are_shifted()
        self._clock = 0 if shifted else int(process.boot_id().replace("-", "")[:16] or "0", 16)
        runtime.after_fork(self._forked)

    @property
    def url(self) -> str:
        from urllib.parse import quote

        return "file://" + quote(self.root)

    @property
    def beacon_dir(self) -> str:
        return os.path.join(self.root, "beacons")

    @property
    def private(self) -> bool:
        """True when nobody but this user (and root) can have put anything there."""
        status = os.fstat(self._folder.open_surely().fd)
        return status.st_uid == os.getuid() and not status.st_mode & 0o022

    @property
    def request_timeout_s(self) -> float:
        return self._guards.limit_s

    def limit_requests(self, seconds: float) -> None:
        self._guards.limit_s = min(self._guards.limit_s, seconds)

    def close(self) -> None:
        self._guards.close()
        self._folder.close()

    def _forked(self) -> None:
        self._guards.forked()

    def _place(self, name: str) -> tuple[str, int]:
        """Path of the record below the root, and the number of its guard."""
        path = path_of("records", name)
        if len(self._places) >= PLACES_MAX:
            self._places.clear()
        place = self._places[name] = (path, crc32(name.encode()) % local_guards.COUNT)
        return place

    # --- records ---

    def read(self, name: str, unless: Version | None = None) -> Record | None | Literal[Unchanged.UNCHANGED]:
        path, number = self._places.get(name) or self._place(name)
        root = self._folder.root or self._folder.open()
        try:
            slot = self._slot(root, path)
            version = slot.version if slot else None
            if version is None:  # being written, or damaged
                slot, version = self._read_carefully(root, path, number)
        except OSError as error:
            if not root.stands():
                self._folder.open_surely()
                return self.read(name, unless)
            if isinstance(error, FileNotFoundError):
                return None
            raise self._folder.translated(error, root, path) from error
        if version == unless:
            return UNCHANGED
        if slot is None:
            return Record(b"", version)
        return Record(slot.data, version, self._age_s(slot))

    def _slot(self, root: Root, path: str) -> local_slots.Slot | None:
        fd = os.open(path, READ, dir_fd=root.fd)
        try:
            return local_slots.read(fd)
        finally:
            os.close(fd)

    def _read_carefully(self, root: Root, path: str, number: int) -> tuple[local_slots.Slot | None, Version]:
        for _ in range(READ_TRIES):
            if slot := self._slot(root, path):
                return slot, slot.version
        guard = self._guards.take(number)
        try:
            self._guards.lock(guard, root.fd)
            fd = os.open(path, READ, dir_fd=root.fd)
            try:
                return self._examine(fd, path)
            finally:
                os.close(fd)
        finally:
            try:
                self._guards.give_back(guard)
            except BaseException:  # an interrupt at its very first step must not leave the guard locked
                guard.close()
                raise

    def _examine(self, fd: int, path: str) -> tuple[local_slots.Slot | None, Version]:
        """What the record is, under its guard; without a slot it is damaged."""
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise local_disk.not_a_record(os.path.join(self.root, path))
        os.lseek(fd, 0, os.SEEK_SET)
        slot = local_slots.read(fd)
        return slot, slot.version if slot else local_slots.damaged_version(fd)

    def _age_s(self, slot: local_slots.Slot) -> float | None:
        if not slot.clock or slot.clock != self._clock:
            return None
        return max(0.0, self._runtime.boot_time() - slot.written_us / 1e6)

    def _stamp(self) -> local_slots.Stamp:
        return self._runtime.token().encode(), self._clock, int(self._runtime.boot_time() * 1e6)

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        path, number = self._places.get(name) or self._place(name)
        root = self._folder.open_surely()
        guard = self._guards.take(number)
        try:
            self._guards.lock(guard, root.fd)
            if old is None:
                return self._create(root, path, new)
            return self._replace(root, path, old, new)
        except OSError as error:
            raise self._folder.translated(error, root, path) from error
        finally:
            try:
                self._guards.give_back(guard)
            except BaseException:  # an interrupt at its very first step must not leave the guard locked
                guard.close()
                raise

    def _create(self, root: Root, path: str, new: bytes) -> Version:
        stamp = self._stamp()
        try:
            fd = self._folder.open_new(root, path)
        except FileExistsError:
            raise Conflict(path) from None
        try:
            local_slots.write_new(fd, new, 1, stamp)
        except OSError:
            os.unlink(path, dir_fd=root.fd)  # nobody can have seen it whole
            raise
        finally:
            os.close(fd)
        return local_slots.version_of(1, stamp[0])

    def _replace(self, root: Root, path: str, old: Version, new: bytes) -> Version:
        try:
            fd = os.open(path, WRITE, dir_fd=root.fd)
        except FileNotFoundError:
            raise Conflict(path) from None
        try:
            slot = local_slots.read(fd)
            if slot is None or slot.version != old:
                slot, version = self._examine(fd, path)
                if version != old:
                    raise Conflict(path)
            stamp = self._stamp()
            seq = slot.seq + 1 if slot else 1
            if slot and local_slots.fits(slot, new):
                local_slots.write_next(fd, slot, new, stamp)
            else:
                self._exchange(root, path, new, seq, stamp)
        finally:
            os.close(fd)
        return local_slots.version_of(seq, stamp[0])

    def _exchange(self, root: Root, path: str, new: bytes, seq: int, stamp: local_slots.Stamp) -> None:
        """Put a whole new file in the place of the old one; readers see either."""
        temp, fd = self._folder.open_temp(root)
        try:
            local_slots.write_new(fd, new, seq, stamp)
            try:
                linux.exchange(temp, path, root.fd)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                # Slower where it has to flush, and just as atomic.
                os.replace(temp, path, src_dir_fd=root.fd, dst_dir_fd=root.fd)
                return
        except OSError:
            self._folder.discard(root, temp)
            raise
        finally:
            os.close(fd)
        self._folder.discard(root, temp)

    def scan(self, prefix: str) -> Iterator[Listed]:
        root = self._folder.open_surely()
        for name, path in files_below(self.root, "records", prefix):
            with contextlib.suppress(OSError):
                slot = self._slot(root, path)
                yield (Listed(name, len(slot.data), self._age_s(slot)) if slot else Listed(name, 0, None))

    def files_of(self, name: str) -> tuple[str, ...]:
        path, _ = self._places.get(name) or self._place(name)
        return (f"{self.root}/{path}",)

    # --- blobs ---

    def upload(self, name: str, source: Source) -> None:
        self._blobs.upload(name, source)

    def download(self, name: str) -> AbstractContextManager[BinaryIO]:
        return self._blobs.download(name)

    def remove(self, name: str) -> None:
        self._folder.unlink(path_of("blobs", name))

    def scan_blobs(self, prefix: str) -> Iterator[Listed]:
        return self._blobs.scan(prefix)

    def clear_leftovers(self, gone: Callable[[str], bool], dry_run: bool = False) -> Iterator[Listed]:
        return self._folder.clear_temps(self._runtime.wall(), dry_run=dry_run)

    def erase(self, name: str) -> None:
        self._folder.unlink(path_of("records", name))
