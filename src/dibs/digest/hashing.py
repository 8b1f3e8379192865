"""Numbers, texts and buffers as bytes of the encoding, and the rule that keeps it small: long becomes a digest.

Every encoding of more than 1,024 bytes stands in what encloses it as `#` and its 32 bytes of blake3.  So the encoding
of a large value is never held as a whole, and a part that occurs many times is encoded once.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Any, Final

from dibs.hashing import hasher

SIZE_MAX: Final = 1024
"""Bytes of an encoding that stands for itself."""

number: Final = Struct(">Q").pack
signed: Final = Struct(">cq").pack
tagged: Final = Struct(">cQ").pack


def text(value: str) -> bytes:
    """Length and UTF-8; lone surrogates as if they were characters."""
    raw = value.encode("utf-8", "surrogatepass")
    return number(len(raw)) + raw


def shrunk(encoded: bytes) -> bytes:
    """The encoding as it stands in what encloses it."""
    if len(encoded) <= SIZE_MAX:
        return encoded
    summing = hasher(len(encoded))
    summing.update(encoded)
    return b"#" + bytes(summing.digest())


def streamed(tag: bytes, size_bytes: int, chunks: Iterable[Any]) -> bytes:
    """As `shrunk(tag + length + payload)`, for a payload in buffers that are never joined."""
    if size_bytes + 9 <= SIZE_MAX:
        return tagged(tag, size_bytes) + b"".join(chunks)
    summing = hasher(size_bytes)
    summing.update(tagged(tag, size_bytes))
    for chunk in chunks:
        summing.update(chunk)
    return b"#" + bytes(summing.digest())


def payload(tag: bytes, buffer: Any) -> bytes:
    """A C-contiguous buffer with its tag."""
    view = memoryview(buffer)
    if not view.nbytes:
        return tagged(tag, 0)
    return streamed(tag, view.nbytes, (view.cast("B"),))
