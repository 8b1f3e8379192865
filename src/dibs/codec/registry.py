"""Codecs for one's own types, registered by name.

The name stands in every entry that the codec wrote, so it says which layout the bytes have: when the layout changes,
register the new one under a new name (`"mesh.2"`), and keep the old one registered for as long as old entries are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from dibs.codec.encoded import Encoded, Piece, as_piece, in_pieces
from dibs.errors import SettingsError

BUILT_IN: Final = frozenset(
    {"auto", "bytes", "bytearray", "str", "json", "tagged-json", "npy", "arrow", "safetensors", "pickle"}
)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,59}")
_FIXED: Final = (type(None), bool, int, float, str, bytes, list, tuple, dict, set)


class Pieces(Protocol):
    """Pieces that are made each time they are walked, for what doesn't fit into memory."""

    size_bytes: int

    def __iter__(self) -> Iterator[Piece]: ...


Encoding: TypeAlias = Piece | Sequence[Piece] | Pieces


class Registered(NamedTuple):
    name: str
    kind: type
    encode: Callable[[Any], Encoding]
    decode: Callable[[memoryview], Any]
    safe: bool

    def encoded(self, value: Any) -> Encoded:
        made = self.encode(value)
        if isinstance(made, bytes | bytearray | memoryview):
            made = (made,)
        if isinstance(made, Sequence):
            return in_pieces(self.name, [as_piece(piece) for piece in made])
        return Encoded(self.name, made, made.size_bytes)

    def decoded(self, data: Piece) -> Any:
        value = self.decode(memoryview(data))
        if type(value) is not self.kind:
            raise TypeError(f"the codec {self.name!r} is for {self.kind.__qualname__}, and made a {type(value)}")
        return value


by_name: Final[dict[str, Registered]] = {}
by_kind: Final[dict[type, Registered]] = {}


def register_codec(
    name: str,
    kind: type,
    encode: Callable[[Any], Encoding],
    decode: Callable[[memoryview], Any],
    *,
    safe: bool,
) -> None:
    """Store values of exactly the type `kind` by functions of your own, in this process.

    Every worker that reads such values must have registered the name too, so do it where the type is defined.
    Registering a name again replaces it; of several names for one type, the last one writes and all are read.

    Args:
        name: stands in every entry; letters, digits, ".", "_" and "-", at most 60. A changed layout needs a new name.
        kind: the type; not one of its subclasses, which might come back as their parent.
        encode: makes bytes of a value, or a list of contiguous buffers, or an object with `size_bytes` that yields
            such buffers each time it is iterated. They may share the value's memory.
        decode: makes the value of a memoryview; where that is writable, the value may keep it and needn't copy.
        safe: whether `decode` never executes code that stands in the bytes. Only then are such values taken from
            stores where pickles are refused.

    Raises:
        SettingsError: the name can't be used, or belongs to dibs.

    Example:
        >>> from fractions import Fraction
        >>> def read(data):
        ...     return Fraction(str(data, "ascii"))
        >>> register_codec("fraction", Fraction, lambda value: str(value).encode(), read, safe=True)
    """
    if not _NAME.fullmatch(name) or name in BUILT_IN:
        raise SettingsError(
            f"a codec can't be named {name!r}: use letters, digits, '.', '_', '-', and no name of dibs' own"
        )
    if not isinstance(kind, type) or kind in _FIXED:
        raise SettingsError(f"a codec for {kind!r} can't be registered: name a class of your own, or of a library")
    before = by_name.get(name)
    if before is not None and by_kind.get(before.kind) is before:
        del by_kind[before.kind]
    by_name[name] = by_kind[kind] = Registered(name, kind, encode, decode, safe)
