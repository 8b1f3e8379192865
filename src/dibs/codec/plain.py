"""The codecs that need no library: bytes, text, and what JSON says exactly.

`json` is for None, bool, int, float, str, and lists and dicts (with text keys) of these: JSON gives back the very same
types, and whoever looks at the file can read it. Everything else that is standard is said by `tagged`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from dibs.codec.encoded import Encoded, Piece, in_pieces, whole

DEPTH_MAX: Final = 100
INT_BITS_MAX: Final = 10_000
"""Python refuses to parse decimal numbers of more than 4,300 digits."""

REPEATED_MAX: Final = 10_000
"""JSON writes a part that is shared each time: so many repeated items are fine, whatever the length of the rest."""

_WALKED: Final = 0  # no object has this id
_SURROGATES: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_parse: Final = json.JSONDecoder().decode


def encode_bytes(value: bytes) -> Encoded:
    return Encoded("bytes", (value,), len(value))


def encode_bytearray(value: bytearray) -> Encoded:
    return in_pieces("bytearray", (memoryview(value),))


def encode_str(value: str) -> Encoded:
    return whole("str", value.encode("utf-8", "surrogatepass"))


def encode_json(value: Any) -> Encoded | None:
    """The value as JSON; None when JSON wouldn't give back exactly this value, or only at great length."""
    kind = type(value)
    if kind is list or kind is dict:
        sizes = {_WALKED: 0}
        size = _json_size(value, 0, sizes)
        if not 0 < size <= 10 * sizes[_WALKED] + REPEATED_MAX:
            return None
    elif not _json_size(value, 0, {}):
        return None
    return whole("json", json.dumps(value, separators=(",", ":")).encode())


def decode_str(data: Piece) -> str:
    return str(data, "utf-8", "surrogatepass")


def decode_json(data: Piece) -> Any:
    return _parse(str(data, "ascii"))


def is_exact_in_json(text: str) -> bool:
    """Two lone surrogates in a row would come back as one character."""
    return text.isascii() or _SURROGATES.search(text) is None


def _json_size(value: Any, depth: int, sizes: dict[int, int]) -> int:
    """How many values JSON would write, shared ones each time; 0 when it can't say this one.

    `sizes` has those of the lists and dicts that were counted, so that a shared one is walked once; and, under
    `_WALKED`, how many items that were.
    """
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return 1
    if kind is str:
        return int(is_exact_in_json(value))
    if kind is int:
        return int(value.bit_length() <= INT_BITS_MAX)
    if depth >= DEPTH_MAX or (kind is not list and kind is not dict):
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
    if kind is dict and not all(type(key) is str and is_exact_in_json(key) for key in value):
        return 0
    sizes[id(value)] = total
    sizes[_WALKED] += len(value)
    return total
