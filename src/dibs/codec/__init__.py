"""Values to bytes and back, by type; the codec's name stands in the entry.

`bytes`, `str`, `json` (exactly what JSON can say: None, bool, int, float, str, list, dict with string keys),
`npy` (numpy arrays without objects), and `pickle` (cloudpickle) for everything else.  Only pickles execute code
when they are read, so they are taken only from places that are trusted.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from dibs.codec.encoded import Encoded, Hasher, Piece, digest
from dibs.errors import CodecError

__all__ = ["Codec", "Encoded", "Hasher", "Piece", "digest"]

_DEPTH_MAX: Final = 100
_REPEATED_MAX: Final = 10_000
_SURROGATES: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_parse: Final = json.JSONDecoder().decode
_INT_BITS_MAX: Final = 10_000
"""Python refuses to parse decimal numbers of more than 4,300 digits."""


def _whole(codec: str, payload: bytes) -> Encoded:
    return Encoded(codec, (payload,), len(payload))


class Codec:
    """Encodes and decodes; `pickle_refused` says why pickles may not be used here, or is None."""

    def __init__(self, pickle_refused: str | None) -> None:
        self._pickle_refused = pickle_refused

    def encode(self, value: Any) -> Encoded:
        """Return the value as bytes; raises CodecError, which carries the value, when that can't be done."""
        kind = type(value)
        if kind is bytes:
            return _whole("bytes", value)
        if kind is str:
            return _whole("str", value.encode("utf-8", "surrogatepass"))
        if _is_json(value):
            return _whole("json", json.dumps(value, separators=(",", ":")).encode())
        numpy = sys.modules.get("numpy")
        if numpy is not None and kind is numpy.ndarray and not value.dtype.hasobject:
            file = io.BytesIO()
            with suppress(ValueError):  # a few structured types have no name in this format
                numpy.save(file, value, allow_pickle=False)
                return _whole("npy", file.getvalue())
        if self._pickle_refused is not None:
            raise CodecError(
                f"a value of type {kind.__module__}.{kind.__qualname__} can only be stored as a pickle, and "
                f"{self._pickle_refused}",
                value,
            )
        try:
            import cloudpickle

            return _whole("pickle", cloudpickle.dumps(value, protocol=5))
        except Exception as error:
            raise CodecError(
                f"a value of type {kind.__module__}.{kind.__qualname__} can't be pickled: {error}. "
                "Return what it was made from, or something made of plain values and arrays",
                value,
            ) from error

    def decode(self, codec: str, payload: bytes | memoryview) -> Any:
        """The inverse of encode.  `payload` has been checked against its digest."""
        if codec == "pickle" and self._pickle_refused is not None:
            raise CodecError(f"the stored value is a pickle, and {self._pickle_refused}")
        decoder = _DECODERS.get(codec)
        if decoder is None:
            raise CodecError(f"the stored value has the codec {codec!r}, which this version of dibs doesn't know")
        try:
            return decoder(bytes(payload))
        except Exception as error:
            raise CodecError(
                f"the stored value ({codec}, {len(payload)} bytes, as it was written) can't be loaded here: "
                f"{type(error).__name__}: {error}. Is a module or a class missing that it needs?"
            ) from error


def _is_json(value: Any) -> bool:
    """True when JSON gives back exactly this value, types included, and says it at no great length."""
    sizes: dict[int, int] = {}
    size = _json_size(value, 0, sizes)
    return 0 < size <= 10 * len(sizes) + _REPEATED_MAX


def _json_size(value: Any, depth: int, sizes: dict[int, int]) -> int:
    """How many values JSON would write, shared ones each time; 0 when it can't say this one.

    `sizes` has those of the lists and dicts that were counted, so that a shared one is walked once.
    """
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return 1
    if kind is str:
        # Two lone surrogates in a row would come back as one character.
        return int(value.isascii() or _SURROGATES.search(value) is None)
    if kind is int:
        return int(value.bit_length() <= _INT_BITS_MAX)
    if depth >= _DEPTH_MAX or (kind is not list and kind is not dict):
        return 0
    known = sizes.get(id(value))
    if known is not None:
        return known
    total = 1
    for item in value if kind is list else value.values():
        size = _json_size(item, depth + 1, sizes)
        if not size:
            return 0
        total += size
    if kind is dict and not all(type(key) is str and _json_size(key, depth, sizes) for key in value):
        return 0
    sizes[id(value)] = total
    return total


def _load_npy(payload: bytes) -> Any:
    import numpy

    return numpy.load(io.BytesIO(payload), allow_pickle=False)


def _load_pickle(payload: bytes) -> Any:
    import pickle

    return pickle.loads(payload)


_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "bytes": bytes,
    "str": lambda payload: payload.decode("utf-8", "surrogatepass"),
    "json": lambda payload: _parse(payload.decode("ascii")),
    "npy": _load_npy,
    "pickle": _load_pickle,
}
