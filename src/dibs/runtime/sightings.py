"""When this host first saw a record at a version: shared by all processes of one user through small files.

So a worker that polls, or that was restarted, goes on counting where others began.
A file says "version time boot"; it counts only in the same boot (and time namespace), and its time is the
monotonic clock, which all processes of a boot share.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from typing import Final

REMEMBERED_MAX: Final = 4096
FILES_MAX: Final = 10_000
STALE_AFTER_S: Final = 24 * 3600
WRITES_PER_CHECK: Final = 1000

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


class Sightings:
    """`directory` None: remembered in this process only.  `boot` names the clock of the times."""

    def __init__(self, directory: str | None, boot: str) -> None:
        self._directory, self._boot = (directory if boot else None), boot
        self._seen: dict[tuple[str, str], tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._writes = 0

    def forked(self) -> None:
        self._lock = threading.Lock()

    def first_seen(self, store_id: str, name: str, version: str, now: float, token: str) -> float:
        """`token` names the private file that becomes the shared one."""
        key = (store_id, name)
        known = self._seen.get(key)
        if known is not None and known[0] == version:
            return known[1]
        seen = now
        if self._directory is not None:
            path = os.path.join(self._directory, _file_name(store_id), _file_name(name, always_hashed=True))
            shared = self._read(path, version, now)
            if shared is None:
                self._write(path, version, now, token)
            else:
                seen = shared
        with self._lock:
            self._seen.pop(key, None)  # so that insertion order is age
            self._seen[key] = (version, seen)
            if len(self._seen) > REMEMBERED_MAX:
                del self._seen[next(iter(self._seen))]
        return seen

    def _read(self, path: str, version: str, now: float) -> float | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                text = os.read(fd, 4096).decode()
            finally:
                os.close(fd)
            there, time_text, boot = text.rsplit(" ", 2)
            time_seen = float(time_text)
        except (OSError, ValueError):
            return None
        return time_seen if there == version and boot == self._boot and 0 <= time_seen <= now else None

    def _write(self, path: str, version: str, now: float, token: str) -> None:
        directory = os.path.dirname(path)
        private = os.path.join(directory, f".{token}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            try:
                fd = os.open(private, flags, 0o600)
            except FileNotFoundError:
                os.makedirs(directory, mode=0o700, exist_ok=True)
                fd = os.open(private, flags, 0o600)
        except OSError:
            return
        try:
            try:
                os.write(fd, f"{version} {now!r} {self._boot}".encode())
            finally:
                os.close(fd)
            os.rename(private, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(private)
            return
        self._writes += 1
        if self._writes % WRITES_PER_CHECK == 1:
            with contextlib.suppress(OSError):
                _prune(directory, os.stat(path).st_mtime)


def _file_name(name: str, *, always_hashed: bool = False) -> str:
    if not always_hashed and _PLAIN.match(name):
        return name
    from blake3 import blake3

    return blake3(name.encode()).hexdigest()[:24]


def _prune(directory: str, now: float) -> None:
    """Remove old files when there are many; by the file system's own clock."""
    with os.scandir(directory) as scanned:
        entries = list(scanned)
    if len(entries) <= FILES_MAX:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            if now - entry.stat(follow_symlinks=False).st_mtime > STALE_AFTER_S:
                os.unlink(entry.path)
