"""Which files were found to be what they should be: shared by all processes of one user through one small file.

So a large file is read through once per host, and not by every process that maps it.
The shared file is a table of fixed size.  Each place holds the digest of what was marked there last, so it never
grows, and writers need no lock: what one overwrites, or a killed one tears, is only verified again.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

KNOWN_MAX: Final = 4096
PLACES: Final = 65_536
PLACE_SIZE: Final = 16


class Verified:
    """`directory` None: remembered in this process only.  `boot` names the host."""

    def __init__(self, directory: str | None, boot: str) -> None:
        self._path = os.path.join(directory, "verified") if directory and boot else None
        self._boot = boot
        self._known: dict[str, None] = {}  # changed by single steps only, which threads may take at once

    def knows(self, what: str) -> bool:
        if what in self._known:
            return True
        if self._path is None:
            return False
        digest, offset = self._place(what)
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                there = os.pread(fd, PLACE_SIZE, offset)
            finally:
                os.close(fd)
        except OSError:
            return False
        if there == digest:
            self._remember(what)
        return there == digest

    def mark(self, what: str) -> None:
        self._remember(what)
        if self._path is None:
            return
        digest, offset = self._place(what)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with contextlib.suppress(OSError):  # a full disk: others verify for themselves
            # Opened each time: some programs close all descriptors they find, and the number may be another file's.
            fd = os.open(self._path, flags, 0o600)
            try:
                os.pwrite(fd, digest, offset)
            finally:
                os.close(fd)

    def _remember(self, what: str) -> None:
        while len(self._known) >= KNOWN_MAX:
            with contextlib.suppress(StopIteration, RuntimeError):
                self._known.pop(next(iter(self._known)), None)
        self._known[what] = None

    def _place(self, what: str) -> tuple[bytes, int]:
        from blake3 import blake3

        digest = blake3(f"{self._boot} {what}".encode()).digest(PLACE_SIZE)
        return digest, int.from_bytes(digest[:4], "little") % PLACES * PLACE_SIZE
