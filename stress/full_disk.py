"""The disk is full at the commit: the caller gets its value, the cache stays clean, the error is reported."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from stress.fleet import open_cache


@contextmanager
def small_disk(folder: str, size_kib: int = 512) -> Iterator[str]:
    """A tmpfs of so many KiB; raises PermissionError where it can't be mounted (needs root)."""
    where = os.path.join(folder, "small")
    os.makedirs(where)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k,mode=700", "tmpfs", where]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise PermissionError("a small tmpfs can't be mounted here (root needed)")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def full_disk(folder: str) -> dict[str, Any]:
    """A large value finds no room; then not even a new key does; then there is room again."""
    large = b"x" * (1024 * 1024)
    with small_disk(folder) as where, open_cache(os.path.join(where, "cache")) as cache:
        events: list[str] = []
        cache.on_event(lambda event: events.append(event.kind))
        assert cache.get_or_compute("before", lambda: "small") == "small"
        # When there is no room for the value,
        assert cache.get_or_compute("large", lambda: large) == large
        # then its caller has it, nobody else sees a trace of it, and nobody is kept from computing it.
        assert events.count("unpublished") == 1, events
        assert cache.get("large") is None and not list(cache.holds())
        assert cache.get("before") == "small"
        left = [path for path, _, files in os.walk(where) for name in files if "large" in os.path.join(path, name)]
        assert all("records" in path for path in left), left
        # When the disk is full to the brim,
        filler = os.path.join(where, "filler")
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
        with suppress(OSError):
            while True:
                os.write(fd, b"x" * 4096)
        os.close(fd)
        # then what is there is still there, and locks that have a record still work.
        assert cache.get("before") == "small"
        assert cache.get_or_compute("large", lambda: b"in place of it") == b"in place of it"
        os.unlink(filler)
        assert cache.get_or_compute("after", lambda: "small too") == "small too"
        assert cache.get("after") == "small too"
    return {"unpublished": events.count("unpublished")}
