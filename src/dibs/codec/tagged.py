"""Standard values that JSON would change, in JSON all the same: what it can't say is an object with one key, `$type`.

    (1, {2: b"x"})  is  {"$tuple":[1,{"$dict":[[2,{"$bytes":"eA=="}]]}]}

Reading it never executes code. Arrays, tables and long bytes inside are attached: then the data is a container of the
JSON and, after it, each attached value as its own codec writes it, which the JSON names `{"$at":[codec, section]}`.
"""

from __future__ import annotations

import base64
import importlib
import json
import re
import sys
from collections.abc import Callable
from typing import Any, Final

from dibs.codec.container import MAGIC, pack, unpack
from dibs.codec.encoded import Encoded, Piece, module_root, whole, writable
from dibs.codec.plain import DEPTH_MAX, INT_BITS_MAX, REPEATED_MAX, encode_bytes, is_exact_in_json

Attach = Callable[[Any], Encoded | None]
Detach = Callable[[str, memoryview], Any]

_ATTACHED_BYTES_MIN: Final = 4096
_CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset})
_NUMPY_KINDS: Final = "biufcmM"
_SCALAR: Final = re.compile(r"[<>|=]?[a-zA-Z?][0-9]{0,2}(\[[0-9]{0,9}[a-zA-Z]{1,3}\])?")


class _NotSayable(Exception):
    """The value holds something that has no tag."""


def encode(value: Any, attach: Attach, tags_max: int | None) -> Encoded | None:
    """The value as tagged JSON; None when it holds what has no tag, is deeper than 100, or needs too many tags.

    `attach` encodes a value of another codec's, or returns None. `tags_max` is where a pickle is so much faster that it
    is preferred, None where that isn't allowed.
    """
    writer = _Writer(attach, tags_max)
    try:
        said = writer.say(value, 0)
    except _NotSayable:
        return None
    text = whole("tagged-json", json.dumps(said, separators=(",", ":")).encode())
    return pack("tagged-json", [text, *writer.attached]) if writer.attached else text


def decode(data: Piece, detach: Detach) -> Any:
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        return _Reader([], detach).read(view)
    text, *attached = unpack(writable(view))
    return _Reader(attached, detach).read(text)


class _Writer:
    def __init__(self, attach: Attach, tags_max: int | None) -> None:
        self.attached: list[Encoded] = []
        self._attach = attach
        self._known: dict[int, Any] = {}
        self._seen: set[int] = set()
        self._walked = self._repeated = 0
        self._tags_left = sys.maxsize if tags_max is None else tags_max

    def say(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        if kind is str:
            return value if is_exact_in_json(value) else self._tag("str", _base64(_utf8(value)))
        if kind is int:
            return value if value.bit_length() <= INT_BITS_MAX else self._tag("int", hex(value))
        if kind in _CONTAINERS:
            self._enter(value, depth)
        if kind is list:
            return [self.say(item, depth + 1) for item in value]
        if kind is dict:
            return self._say_dict(value, depth)
        if kind is tuple or kind is set or kind is frozenset:
            return self._tag(kind.__name__, [self.say(item, depth + 1) for item in value])
        if kind is bytes:
            return self._tag("bytes", _base64(value)) if len(value) < _ATTACHED_BYTES_MIN else self._at(value)
        say = _standard(kind)
        if say is not None:
            return self._tag(*say(value))
        return self._at(value)

    def _enter(self, value: Any, depth: int) -> None:
        if id(value) in self._seen:
            self._repeated += len(value)
        else:
            self._seen.add(id(value))
            self._walked += len(value)
        if depth >= DEPTH_MAX or self._repeated > 10 * self._walked + REPEATED_MAX:
            raise _NotSayable

    def _say_dict(self, value: dict[Any, Any], depth: int) -> Any:
        if value and module_root(type(next(iter(value.values())))) == "torch":
            # A state dict as one, so that tied weights stay tied.
            known = self._known.get(id(value))
            encoded = self._attach(value) if known is None else None
            if encoded is not None:
                known = self._attached_as(value, encoded)
            if known is not None:
                return self._tag("at", known)
        if all(type(key) is str and key[:1] != "$" and is_exact_in_json(key) for key in value):
            return {key: self.say(item, depth + 1) for key, item in value.items()}
        return self._tag("dict", [[self.say(key, depth + 1), self.say(item, depth + 1)] for key, item in value.items()])

    def _tag(self, name: str, content: Any) -> dict[str, Any]:
        self._tags_left -= 1
        if self._tags_left < 0:
            raise _NotSayable
        return {"$" + name: content}

    def _at(self, value: Any) -> dict[str, Any]:
        # The same object twice is attached once, and will be one object again. (The caller keeps the values alive.)
        known = self._known.get(id(value))
        if known is None:
            encoded = encode_bytes(value) if type(value) is bytes else self._attach(value)
            if encoded is None:
                raise _NotSayable
            known = self._attached_as(value, encoded)
        return self._tag("at", known)

    def _attached_as(self, value: Any, encoded: Encoded) -> list[Any]:
        known = self._known[id(value)] = [encoded.codec, len(self.attached)]
        self.attached.append(encoded)
        return known


class _Reader:
    """Reads one text; the parser hands every JSON object, innermost first, to `_value_of`."""

    def __init__(self, attached: list[memoryview], detach: Detach) -> None:
        self._attached = attached
        self._detach = detach
        self._known: dict[int, Any] = {}

    def read(self, text: memoryview) -> Any:
        return json.JSONDecoder(object_hook=self._value_of).decode(str(text, "ascii"))

    def _value_of(self, said: dict[str, Any]) -> Any:
        tag = next(iter(said), "")
        if tag[:1] != "$":
            return said
        if len(said) != 1:
            raise ValueError(f"an object with {tag!r} has other keys too")
        content = said[tag]
        if tag == "$at":
            codec, section = content
            if section not in self._known:
                self._known[section] = self._detach(codec, self._attached[section])
            return self._known[section]
        read = _READ.get(tag[1:])
        if read is None:
            raise ValueError(f"this version of dibs doesn't know the tag {tag!r}")
        return read(content)


# -- the standard types that are no containers ---------------------------------------------------------------------


def _standard(kind: type) -> Callable[[Any], tuple[str, Any]] | None:
    """How to say a value of exactly this type of the standard library, which need not be imported for asking."""
    root = module_root(kind)
    found = _SAY.get((root, kind.__qualname__))
    if found is not None and getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind:
        return found
    return _say_numpy_scalar if root == "numpy" and issubclass(kind, sys.modules["numpy"].generic) else None


def _say_numpy_scalar(value: Any) -> tuple[str, Any]:
    if type(value).__name__ == "str_":
        return "numpy", ["U", _base64(_utf8(value))]
    if type(value).__name__ == "bytes_":
        return "numpy", ["S", _base64(value)]
    dtype = value.dtype
    if dtype.kind not in _NUMPY_KINDS:
        raise _NotSayable
    # Of two types of one size (int64 and longlong on Linux), only one has a name that is portable.
    name = dtype.str if _scalar_type(dtype.str).type is type(value) else dtype.char
    if _scalar_type(name).type is not type(value):
        raise _NotSayable
    return "numpy", [name, _base64(value.tobytes())]


def _read_numpy_scalar(content: Any) -> Any:
    import numpy

    name, data = content
    raw = _bytes(data)
    if name == "U":
        return numpy.str_(raw.decode("utf-8", "surrogatepass"))
    if name == "S":
        return numpy.bytes_(raw)
    dtype = _scalar_type(name)
    if dtype.kind not in _NUMPY_KINDS or len(raw) != dtype.itemsize:
        raise ValueError(f"no scalar of type {dtype} has {len(raw)} bytes")
    return numpy.frombuffer(raw, dtype)[0]


def _scalar_type(name: str) -> Any:
    import numpy

    if not _SCALAR.fullmatch(name):  # NumPy takes whole records from such a text
        raise ValueError(f"{name[:40]!r} is no type of a scalar")
    return numpy.dtype(name)


def _say_moment(value: Any) -> list[Any]:
    return [value.replace(tzinfo=None).isoformat(), _say_zone(value.tzinfo), value.fold]


def _read_moment(kind: str) -> Callable[[Any], Any]:
    def read(content: Any) -> Any:
        text, zone, fold = content
        return _named("datetime", kind).fromisoformat(text).replace(tzinfo=_read_zone(zone), fold=fold)

    return read


def _say_zone(zone: Any) -> Any:
    if zone is None:
        return None
    kind = type(zone)
    name = (module_root(kind), kind.__qualname__)
    if name == ("datetime", "timezone"):
        offset, *called = zone.__getinitargs__()
        return [_say_span(offset), *called]
    if name == ("zoneinfo", "ZoneInfo") and zone.key is not None and zone is kind(zone.key):
        return str(zone.key)
    raise _NotSayable


def _read_zone(said: Any) -> Any:
    if said is None:
        return None
    if isinstance(said, str):
        return _named("zoneinfo", "ZoneInfo")(said)
    span, *called = said
    offset = _read_span(span)
    timezone = _named("datetime", "timezone")
    return timezone(offset, *called) if offset or called else timezone.utc


def _say_span(value: Any) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _read_span(content: Any) -> Any:
    days, seconds, microseconds = content
    return _named("datetime", "timedelta")(days, seconds, microseconds)


def _named(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _base64(data: Any) -> str:
    return base64.b64encode(data).decode()


def _bytes(content: Any) -> bytes:
    return base64.b64decode(content, validate=True)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _read_decimal(content: str) -> Any:
    return _named("decimal", "Decimal")(content)


_PATHS: Final = ("PurePosixPath", "PosixPath")

_SAY: Final[dict[tuple[str, str], Callable[[Any], tuple[str, Any]]]] = {
    ("builtins", "complex"): lambda value: ("complex", [value.real, value.imag]),
    ("builtins", "range"): lambda value: ("range", [hex(value.start), hex(value.stop), hex(value.step)]),
    ("builtins", "bytearray"): lambda value: ("bytearray", _base64(value)),
    ("datetime", "datetime"): lambda value: ("datetime", _say_moment(value)),
    ("datetime", "time"): lambda value: ("time", _say_moment(value)),
    ("datetime", "date"): lambda value: ("date", value.isoformat()),
    ("datetime", "timedelta"): lambda value: ("timedelta", _say_span(value)),
    ("decimal", "Decimal"): lambda value: ("decimal", str(value)),
    ("fractions", "Fraction"): lambda value: ("fraction", [hex(value.numerator), hex(value.denominator)]),
    ("uuid", "UUID"): lambda value: ("uuid", value.hex),
    **{("pathlib", name): lambda value, name=name: (name, str(value)) for name in _PATHS},  # type: ignore[misc]
}

_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "str": lambda content: _bytes(content).decode("utf-8", "surrogatepass"),
    "int": lambda content: int(content, 16),
    "bytes": _bytes,
    "bytearray": lambda content: bytearray(_bytes(content)),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "complex": lambda content: complex(*content),
    "range": lambda content: range(*(int(part, 16) for part in content)),
    "numpy": _read_numpy_scalar,
    "datetime": _read_moment("datetime"),
    "time": _read_moment("time"),
    "date": lambda content: _named("datetime", "date").fromisoformat(content),
    "timedelta": _read_span,
    "decimal": _read_decimal,
    "fraction": lambda content: _named("fractions", "Fraction")(*(int(part, 16) for part in content)),
    "uuid": lambda content: _named("uuid", "UUID")(content),
    "PurePosixPath": lambda content: _named("pathlib", "PurePosixPath")(content),
    "PosixPath": lambda content: _named("pathlib", "PosixPath")(content),
}
