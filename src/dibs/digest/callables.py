"""Functions, classes and what is made of them, by qualified name and by the code that the caller's hook knows."""

from __future__ import annotations

from typing import Any, Final

from dibs.digest.hashing import text
from dibs.digest.naming import full_name, is_own
from dibs.digest.refusal import Refused
from dibs.digest.walk import Encoder, Walk


def encode_class(value: type, walk: Walk) -> bytes:
    """A class as a value: its name and its code."""
    return _reference(b"class", value, walk)


def _reference(form: bytes, value: Any, walk: Walk) -> bytes:
    own = is_own(value)
    if own and walk.code_of is None:
        raise Refused(value, "its code would have to count, and nothing here knows it", "pass its name, as a string")
    code = walk.code_of(value) if own and walk.code_of is not None else None
    qualname = getattr(value, "__qualname__", "")
    if code is None and ("<" in qualname or not qualname):
        raise Refused(value, "it has no name by which others could find it, and its code isn't known")
    return walk.known(form, _text(full_name(value)), b"N" if code is None else _text(code))


def _text(value: str) -> bytes:
    return b"s" + text(value)


def _function(value: Any, walk: Walk) -> bytes:
    return _reference(b"function", value, walk)


def _builtin(value: Any, walk: Walk) -> bytes:
    """`len`, `math.sqrt`; or a method of a built-in value, `[1].index`."""
    owner = value.__self__
    if owner is None or type(owner).__name__ == "module":
        return walk.known(b"function", _text(full_name(value)), b"N")
    return walk.known(b"method", walk.attribute(owner, ".__self__"), _text(value.__name__))


def _descriptor(value: Any, walk: Walk) -> bytes:
    """`str.upper`, `list.__len__`."""
    return walk.known(b"attribute", walk.attribute(value.__objclass__, ".__objclass__"), _text(value.__name__))


def _method(value: Any, walk: Walk) -> bytes:
    function = walk.attribute(value.__func__, ".__func__")
    return walk.known(b"bound", walk.attribute(value.__self__, ".__self__"), function)


def _partial(value: Any, walk: Walk) -> bytes:
    parts = (value.func, ".func"), (value.args, ".args"), (value.keywords, ".keywords"), (vars(value), ".__dict__")
    return walk.known(b"partial", *(walk.attribute(part, path) for part, path in parts))


def _wrapped(value: Any, walk: Walk) -> bytes:
    """What functools.lru_cache makes, or memoize: the function in it."""
    return walk.known(b"cached", walk.attribute(value.__wrapped__, ".__wrapped__"))


def _static_or_class_method(value: Any, walk: Walk) -> bytes:
    return walk.known(type(value).__name__.encode(), walk.attribute(value.__func__, ".__func__"))


def _getter(value: Any, walk: Walk) -> bytes:
    """operator.itemgetter and its like say themselves what they are made of."""
    _, parts, *_ = value.__reduce__()
    return walk.known(type(value).__name__.encode(), walk.encode(tuple(parts)))


def _generic_alias(value: Any, walk: Walk) -> bytes:
    """`list[int]`, `dict[str, Model]`."""
    return walk.known(b"alias", walk.attribute(value.__origin__, ".__origin__"), walk.encode(value.__args__))


def _union(value: Any, walk: Walk) -> bytes:
    """`int | None`; its order doesn't count, as for ==."""
    return walk.known(b"union", b"Z" + walk.members(value.__args__))


_CALLABLES: Final[dict[str, Encoder]] = {
    "builtins:function": _function,
    "builtins:builtin_function_or_method": _builtin,
    "builtins:method_descriptor": _descriptor,
    "builtins:wrapper_descriptor": _descriptor,
    "builtins:getset_descriptor": _descriptor,
    "builtins:member_descriptor": _descriptor,
    "builtins:classmethod_descriptor": _descriptor,
    "builtins:method": _method,
    "functools:partial": _partial,
    "functools:_lru_cache_wrapper": _wrapped,
    "dibs:Memoized": _wrapped,
    "dibs:AsyncMemoized": _wrapped,
    "builtins:staticmethod": _static_or_class_method,
    "builtins:classmethod": _static_or_class_method,
    "operator:itemgetter": _getter,
    "operator:attrgetter": _getter,
    "operator:methodcaller": _getter,
    "types:GenericAlias": _generic_alias,
    "types:UnionType": _union,
    "typing:Union": _union,
}


def find(kind: type) -> Encoder | None:
    """The encoder of a callable's type; None for what is no function."""
    return _CALLABLES.get(full_name(kind))


def name_of(value: Any) -> bytes | None:
    """What a pickle would say for a function or class that rebuilds an object: its name; None if it has none."""
    owner = getattr(value, "__self__", None)
    if owner is not None and type(owner).__name__ != "module":
        return _text(f"{full_name(owner)}.{value.__name__}") if isinstance(owner, type) else None
    qualname = getattr(value, "__qualname__", None)
    return _text(full_name(value)) if isinstance(qualname, str) else None
