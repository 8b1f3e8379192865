"""The walk over a value: scalars and containers to bytes, the same for equal values and for no others.

The encoding is specified in docs/digest.md.  This is the hot path, so it dispatches by exact type, packs lists of one
type in one step, and leaves everything else to `kinds`, which is asked once per type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import itemgetter
from struct import Struct, pack
from struct import error as StructError
from typing import Any, Final
from weakref import WeakKeyDictionary

from dibs.digest.hashing import SIZE_MAX, number, payload, shrunk, signed, streamed, tagged
from dibs.digest.refusal import Refused

CodeOf = Callable[[Any], str | None]
Encoder = Callable[[Any, "Walk"], bytes]

_double: Final = Struct(">cd").pack
_doubles: Final = Struct(">cdd").pack
NAN: Final = float("nan")
_SCHEMA_SIZE_MAX: Final = 64
_SCHEMAS_MAX: Final = 1024
_CYCLIC_VISITS_MAX: Final = 200_000


# --- scalars: (value) -> bytes ----------------------------------------------------------------------------


def _int(value: int) -> bytes:
    try:
        return signed(b"i", value)
    except StructError:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
        return payload(b"I", raw)


def _float(value: float) -> bytes:
    return _double(b"f", value if value == value else NAN)


def _complex(value: complex) -> bytes:
    real, imag = value.real, value.imag
    return _doubles(b"c", real if real == real else NAN, imag if imag == imag else NAN)


def _str(value: str) -> bytes:
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raw = value.encode("utf-8", "surrogatepass")
    size = len(raw)
    if size <= SIZE_MAX - 9:
        return tagged(b"s", size) + raw
    return streamed(b"s", size, (raw,))


def _bytes(value: bytes) -> bytes:
    size = len(value)
    if size <= SIZE_MAX - 9:
        return tagged(b"b", size) + value
    return streamed(b"b", size, (value,))


def _bytearray(value: bytearray) -> bytes:
    return payload(b"a", value)


SCALARS: Final[dict[type, Callable[[Any], bytes]]] = {
    int: _int,
    float: _float,
    str: _str,
    bool: {True: b"T", False: b"F"}.__getitem__,
    type(None): {None: b"N"}.__getitem__,
    bytes: _bytes,
    bytearray: _bytearray,
    complex: _complex,
    type(...): lambda value: b"E",
    type(NotImplemented): lambda value: b"M",
}


# --- columns: sequences of one type, in one step -----------------------------------------------------------


def _floats(items: Any) -> bytes:
    total = sum(items)
    if total != total:  # perhaps inf - inf, perhaps a NaN, of whatever bits
        items = [item if item == item else NAN for item in items]
    return number(len(items)) + b"f" + pack(f">{len(items)}d", *items)


def _ints(items: Any) -> bytes | None:
    try:
        return number(len(items)) + b"i" + pack(f">{len(items)}q", *items)
    except StructError:
        return None


def _strs(items: Any) -> bytes:
    joined = "".join(items)
    try:
        raw = joined.encode()
    except UnicodeEncodeError:
        raw = joined.encode("utf-8", "surrogatepass")
    return b"".join((number(len(items)), b"s", pack(f">{len(items)}Q", *map(len, items)), raw))


_COLUMNS: Final[dict[type, Callable[[Any], bytes | None]]] = {float: _floats, int: _ints, str: _strs}


# --- containers ---------------------------------------------------------------------------------------------


class Walk:
    """One digest in the making."""

    def __init__(self, code_of: CodeOf | None = None, met: dict[type, None] | None = None, checking: bool = False):
        self.code_of = code_of
        self.met = met
        self.checking = checking
        """Inside the check that a pickle round trip changes nothing."""
        self.cycles = 0
        """Back-references so far."""
        self._cyclic_visits = 0
        self._depth = 0
        self._seen: dict[int, Any] = {}
        """id -> depth of a value that is being encoded; or (value, encoding) of a long one that is done.

        The value is kept alive, so that its id isn't given to another.
        """
        self._schemas: dict[tuple[str, ...], tuple[bytes, Callable[[Any], Any]]] = {}

    def encode(self, value: Any) -> bytes:
        """The encoding of `value` as it stands in what encloses it.  Raises Refused."""
        kind = type(value)
        scalar = SCALARS.get(kind)
        if scalar is not None:
            return scalar(value)
        key, seen = id(value), self._seen
        known = seen.get(key)
        if known is not None:
            if type(known) is tuple:
                encoded: bytes = known[1]
                return encoded
            self.cycles += 1
            return tagged(b"^", self._depth - known)
        cycles = self.cycles
        if cycles:
            self._count_visit(value)
        depth = seen[key] = self._depth
        self._depth = depth + 1
        if kind is dict:
            encoded = b"d" + self.mapping(value)
            worth_keeping = False
        elif kind is list:
            encoded = b"l" + self.sequence(value)
            worth_keeping = False
        else:
            encoded = (ENCODERS.get(kind) or RESOLVED.get(kind) or _find(kind, value))(value, self)
            worth_keeping = encoded[-33:-32] == b"#"  # the digest of a large array, perhaps
        self._depth = depth
        if len(encoded) > SIZE_MAX:
            encoded = shrunk(encoded)
            worth_keeping = True
        # What holds a back-reference reads differently elsewhere; what is short is encoded again as fast.
        if worth_keeping and self.cycles == cycles:
            seen[key] = (value, encoded)
        else:
            del seen[key]
        return encoded

    def _count_visit(self, value: object) -> None:
        """Aliases don't count, so a tangle of cycles unfolds: an end to that."""
        self._cyclic_visits += 1
        if self._cyclic_visits > _CYCLIC_VISITS_MAX:
            raise Refused(value, "it belongs to a tangle of objects that refer to each other in too many ways")

    def sequence(self, items: Any) -> bytes:
        """Number, form and content of a list or tuple, without a tag."""
        if items and type(items[0]) is (kind := type(items[-1])):
            column = _COLUMNS.get(kind)
            if column is not None and len(set(map(type, items))) == 1:
                packed = column(items)
                if packed is not None:
                    return packed
        pieces = [number(len(items)), b"v"]
        append, scalar_of, encode = pieces.append, SCALARS.get, self.encode
        try:
            for item in items:
                scalar = scalar_of(type(item))
                append(encode(item) if scalar is None else scalar(item))
        except Refused as refused:
            raise refused.within(f"[{len(pieces) - 2}]") from refused.__cause__
        return b"".join(pieces)

    def mapping(self, value: Mapping[Any, Any], path: Callable[[Any], str] | None = None) -> bytes:
        """The content of an exact dict, without a tag; the order of insertion doesn't count."""
        kinds = set(map(type, value))
        if len(kinds) != 1 or str not in kinds:
            return self._mapping_of_any(value)
        names = tuple(value)
        schema = self._schemas.get(names)
        get: Callable[[Any], Any]
        if schema is None:
            ordered = sorted(names)
            get = itemgetter(*ordered) if len(ordered) > 1 else partial(_only, ordered[0])
            schema = b"s" + _strs(ordered), get
            # Records of the same fields come in thousands.
            if len(names) <= _SCHEMA_SIZE_MAX and len(self._schemas) < _SCHEMAS_MAX:
                self._schemas[names] = schema
        prefix, get = schema
        values = get(value)
        try:
            return prefix + self.sequence(values)
        except Refused as refused:
            index = int(refused.path.pop()[1:-1])
            name = sorted(names)[index]
            raise refused.within(path(name) if path else f"[{name!r:.60}]") from refused.__cause__

    def _mapping_of_any(self, value: Mapping[Any, Any]) -> bytes:
        pairs = []
        for key, item in value.items():
            try:
                encoded_key = self.encode(key)
            except Refused as refused:
                raise refused.within(f".key({preview_key(key)})") from refused.__cause__
            try:
                pairs.append((encoded_key, self.encode(item)))
            except Refused as refused:
                raise refused.within(f"[{preview_key(key)}]") from refused.__cause__
        # By value as well: two NaN are two keys that look the same.
        pairs.sort()
        return b"".join((b"v", number(len(pairs)), *(piece for pair in pairs for piece in pair)))

    def members(self, value: Iterable[Any]) -> bytes:
        """The content of a set, without a tag."""
        items = list(value)
        kinds = set(map(type, items))
        if len(kinds) == 1 and str in kinds:
            return _strs(sorted(items))
        pieces = []
        try:
            for item in items:
                pieces.append(self.encode(item))
        except Refused as refused:
            raise refused.within(".member") from refused.__cause__
        pieces.sort()
        return b"".join((number(len(pieces)), b"v", *pieces))

    def known(self, name: bytes, *parts: bytes) -> bytes:
        """A value of a type that the specification names: its name there, and its parts, encoded."""
        return b"".join((b"x", number(len(name)), name, number(len(parts)), *map(shrunk, parts)))

    def attribute(self, value: Any, path: str) -> bytes:
        """The encoding of a part of a value, at that path inside it."""
        try:
            return self.encode(value)
        except Refused as refused:
            raise refused.within(path) from refused.__cause__


def _only(name: str, value: Mapping[str, Any]) -> tuple[Any]:
    return (value[name],)


def preview_key(key: object) -> str:
    """A key of a dict in a path."""
    kind = type(key)
    return repr(key)[:60] if kind in SCALARS or kind is tuple else kind.__qualname__


def _list(value: list[Any], walk: Walk) -> bytes:
    return b"l" + walk.sequence(value)


def _tuple(value: tuple[Any, ...], walk: Walk) -> bytes:
    return b"t" + walk.sequence(value)


def _dict(value: dict[Any, Any], walk: Walk) -> bytes:
    return b"d" + walk.mapping(value)


def _set(value: set[Any], walk: Walk) -> bytes:
    return b"S" + walk.members(value)


def _frozenset(value: frozenset[Any], walk: Walk) -> bytes:
    return b"Z" + walk.members(value)


ENCODERS: Final[dict[type, Encoder]] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
    set: _set,
    frozenset: _frozenset,
}
"""Exact types that are always there."""

RESOLVED: Final[WeakKeyDictionary[type, Encoder]] = WeakKeyDictionary()
"""What `kinds` found for other types; weak, because classes can be made by the thousand."""


def _find(kind: type, value: Any) -> Encoder:
    from dibs.digest.kinds import find

    encoder = RESOLVED[kind] = find(kind, value)
    return encoder
