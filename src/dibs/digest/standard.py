"""Values of the standard library's types, each by a name of its own and the parts that make it what it is.

Types are recognised by their public names, so that nothing is imported for the sake of a type that isn't there.
"""

from __future__ import annotations

from typing import Any, Final

from dibs.digest.hashing import payload
from dibs.digest.naming import full_name
from dibs.digest.refusal import Refused
from dibs.digest.walk import SCALARS, Encoder, Walk

_scalar_int, _scalar_str = SCALARS[int], SCALARS[str]


def _integers(walk: Walk, *numbers: int) -> bytes:
    return b"t" + walk.sequence(numbers)


def _range(value: range, walk: Walk) -> bytes:
    # range(0, 4, 3) equals range(0, 5, 3): only what is yielded counts.
    size = len(value)
    return walk.known(b"range", _integers(walk, size, value.start if size else 0, value.step if size > 1 else 1))


def _slice(value: slice, walk: Walk) -> bytes:
    return walk.known(b"slice", *(walk.encode(part) for part in (value.start, value.stop, value.step)))


def _memoryview(value: memoryview, walk: Walk) -> bytes:
    content = payload(b"b", value if value.c_contiguous else value.tobytes())
    return walk.known(b"memoryview", _scalar_str(value.format), _integers(walk, *(value.shape or ())), content)


def _array(value: Any, walk: Walk) -> bytes:
    return walk.known(b"array", _scalar_str(value.typecode), walk.encode(value.tolist()))


def _deque(value: Any, walk: Walk) -> bytes:
    return walk.known(b"deque", b"l" + walk.sequence(list(value)), walk.encode(value.maxlen))


def _ordered_dict(value: Any, walk: Walk) -> bytes:
    keys, items = list(value), list(value.values())
    return walk.known(b"OrderedDict", b"l" + walk.sequence(keys), b"l" + walk.sequence(items))


def _counter(value: Any, walk: Walk) -> bytes:
    return walk.known(b"Counter", b"d" + walk.mapping(dict.copy(value)))


def _defaultdict(value: Any, walk: Walk) -> bytes:
    factory = walk.attribute(value.default_factory, ".default_factory")
    return walk.known(b"defaultdict", factory, b"d" + walk.mapping(dict.copy(value)))


def _mapping_proxy(value: Any, walk: Walk) -> bytes:
    return walk.known(b"mappingproxy", walk.encode(value.copy()))


def _namespace(value: Any, walk: Walk) -> bytes:
    return walk.known(b"SimpleNamespace", b"d" + walk.mapping(dict(vars(value)), ".{}".format))


def _date(value: Any, walk: Walk) -> bytes:
    return walk.known(b"date", _integers(walk, value.year, value.month, value.day))


def _clock(value: Any) -> tuple[int, ...]:
    return value.hour, value.minute, value.second, value.microsecond, value.fold


def _time(value: Any, walk: Walk) -> bytes:
    return walk.known(b"time", _integers(walk, *_clock(value)), walk.attribute(value.tzinfo, ".tzinfo"))


def _datetime(value: Any, walk: Walk) -> bytes:
    numbers = _integers(walk, value.year, value.month, value.day, *_clock(value))
    return walk.known(b"datetime", numbers, walk.attribute(value.tzinfo, ".tzinfo"))


def _timedelta(value: Any, walk: Walk) -> bytes:
    return walk.known(b"timedelta", _integers(walk, value.days, value.seconds, value.microseconds))


def _timezone(value: Any, walk: Walk) -> bytes:
    offset = value.utcoffset(None)
    parts = _integers(walk, offset.days, offset.seconds, offset.microseconds)
    return walk.known(b"timezone", parts, _scalar_str(value.tzname(None)))


def _zone_info(value: Any, walk: Walk) -> bytes:
    if value.key is None:
        raise Refused(value, "a time zone from a file has no name", "give ZoneInfo.from_file a key=")
    return walk.known(b"ZoneInfo", _scalar_str(value.key))


def _decimal(value: Any, walk: Walk) -> bytes:
    sign, digits, exponent = value.as_tuple()
    return walk.known(b"Decimal", walk.encode((sign, "".join(map(str, digits)), exponent)))


def _fraction(value: Any, walk: Walk) -> bytes:
    return walk.known(b"Fraction", walk.encode((value.numerator, value.denominator)))


def _uuid(value: Any, walk: Walk) -> bytes:
    return walk.known(b"UUID", SCALARS[bytes](value.bytes))


def _pattern(value: Any, walk: Walk) -> bytes:
    return walk.known(b"Pattern", walk.encode(value.pattern), _scalar_int(int(value.flags)))


def _as_text(name: bytes) -> Encoder:
    return lambda value, walk: walk.known(name, _scalar_str(str(value)))


_ADDRESSES: Final = ("IPv4Address", "IPv6Address", "IPv4Network", "IPv6Network", "IPv4Interface", "IPv6Interface")
_STANDARD: Final[dict[str, Encoder]] = {
    "builtins:range": _range,
    "builtins:slice": _slice,
    "builtins:memoryview": _memoryview,
    "builtins:mappingproxy": _mapping_proxy,
    "types:SimpleNamespace": _namespace,
    "array:array": _array,
    "collections:deque": _deque,
    "collections:OrderedDict": _ordered_dict,
    "collections:Counter": _counter,
    "collections:defaultdict": _defaultdict,
    "datetime:date": _date,
    "datetime:time": _time,
    "datetime:datetime": _datetime,
    "datetime:timedelta": _timedelta,
    "datetime:timezone": _timezone,
    "zoneinfo:ZoneInfo": _zone_info,
    "decimal:Decimal": _decimal,
    "fractions:Fraction": _fraction,
    "uuid:UUID": _uuid,
    "re:Pattern": _pattern,
    # One name for the concrete kinds: a path as text is all there is to it.
    "pathlib:PosixPath": _as_text(b"Path"),
    "pathlib:WindowsPath": _as_text(b"Path"),
    "pathlib:PurePosixPath": _as_text(b"PurePosixPath"),
    "pathlib:PureWindowsPath": _as_text(b"PureWindowsPath"),
    **{f"ipaddress:{name}": _as_text(name.encode()) for name in _ADDRESSES},
}


def find(kind: type) -> Encoder | None:
    """The encoder of a type of the standard library; None for others, and for subclasses."""
    return _STANDARD.get(full_name(kind))
