"""blake3, with as many threads as the data is worth."""

from __future__ import annotations

import os
from typing import Any, Final

from blake3 import blake3

THREADED_SIZE: Final = 2 << 20
"""Below this, starting threads takes longer than hashing."""
_THREADS_MAX: Final = 8


def hasher(size_bytes: int) -> Any:
    """A blake3 that will be fed so many bytes.

    Never `blake3.AUTO`: its pool of threads is one of the whole process, which a forked child inherits without the
    threads, and would wait for ever.  A pool of its own costs 50 µs.
    """
    if size_bytes < THREADED_SIZE:
        return blake3()
    return blake3(max_threads=_threads())


def _threads() -> int:
    try:
        return min(len(os.sched_getaffinity(0)), _THREADS_MAX)
    except AttributeError:  # not on macOS
        return min(os.cpu_count() or 1, _THREADS_MAX)
