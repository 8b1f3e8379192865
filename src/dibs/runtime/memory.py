"""Memory in pages of its own: of nobody's file, or a private view of one that reads it as it is touched.

Both are private to this process and may be written; what is written never reaches the file, nor a forked child's
parent.  The pages are given back when the last view of them is gone.
"""

from __future__ import annotations

import functools
import mmap
import os
from typing import Any, Final

PAGES_SIZE_MIN: Final = 64 * 1024
"""Bytes.  Less is cheaper to copy than to map."""

_PRIVATE: Final = mmap.MAP_PRIVATE | getattr(mmap, "MAP_ANONYMOUS", getattr(mmap, "MAP_ANON", 0))
_MAP_FIXED: Final = 0x10


def anonymous(size_bytes: int) -> mmap.mmap:
    """So much memory, all zeros.  Not `mmap.mmap(-1, size)`, which a forked child would share."""
    return mmap.mmap(-1, size_bytes, flags=_PRIVATE)


def mapped(fd: int, size_bytes: int) -> mmap.mmap:
    """A copy-on-write view of the beginning of a file; keeps no descriptor open.

    Python's own mapping of a file keeps a descriptor as long as it lives (until Python 3.13), so that a thousand
    loaded values would be the end; so the file is put in the place of anonymous pages.
    """
    import ctypes

    pages = anonymous(size_bytes)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
    if _mmap()(address, size_bytes, protection, flags, fd, 0) == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap: {os.strerror(code)}")
    return pages


@functools.cache
def _mmap() -> Any:
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).mmap
    number, size, offset = ctypes.c_int, ctypes.c_size_t, ctypes.c_long
    function.argtypes = [ctypes.c_void_p, size, number, number, number, offset]
    function.restype = ctypes.c_void_p
    return function
