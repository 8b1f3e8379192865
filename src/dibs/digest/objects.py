"""Instances of classes that nobody here knows: by the name of the class and the state that makes the instance.

A class with the state that every class has (attributes, slots) is taken apart.  One with a state of its own making
(`__reduce__`, `__getstate__`, a class written in C) is taken at its word, as pickle does, and then put to the test:
the digest must be the same after a pickle round trip.
"""

from __future__ import annotations

import copyreg
import functools
import pickle
from collections.abc import Callable
from typing import Any, Final

from dibs.digest import callables
from dibs.digest.hashing import shrunk, text
from dibs.digest.naming import full_name, is_own
from dibs.digest.refusal import Refused
from dibs.digest.walk import Encoder, Walk

_PROTOCOL: Final = 4
"""Pickles of protocol 5 may put buffers beside the state."""
_OWN_MAKING: Final = ("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
_NEVER_STATE: Final = frozenset(
    # attrs' memory of hash(self), which differs from process to process; pydantic's, of which `models` takes care
    {"__dict__", "__weakref__", "_attrs_cached_hash"}
    | {"__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"}
)


def find(kind: type, value: Any) -> Encoder:
    """The encoder for instances of a class of any make.  Raises Refused for what can't be pickled at all."""
    known_fields = hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__attrs_attrs__")
    if known_fields or (not _has_state_of_own_making(kind) and _is_all_attributes(value)):
        return with_attributes(kind)
    _reduced(value)  # so that a type that refuses is never remembered as one that can be encoded
    return _encode_reduced


def _has_state_of_own_making(kind: type) -> bool:
    if kind in copyreg.dispatch_table:
        return True
    return any(getattr(kind, name, None) is not getattr(object, name, None) for name in _OWN_MAKING)


def _is_all_attributes(value: Any) -> bool:
    """False when a base class written in C keeps something that Python can't see."""
    try:
        object.__reduce_ex__(value, _PROTOCOL)
    except Exception:
        return False
    return True


# --- attributes -------------------------------------------------------------------------------------------


def with_attributes(kind: type, content: Encoder | None = None) -> Encoder:
    """The encoder for instances by their attributes and slots, and by `content` for what they are otherwise.

    Cached properties don't count: they follow from the rest, and are there only once somebody asked.
    """
    name, own = text(full_name(kind)), is_own(kind)
    slots = tuple(dict.fromkeys(_slots(kind)))
    derived = _derived(kind)

    def encode(value: Any, walk: Walk) -> bytes:
        if own and walk.met is not None:
            walk.met[type(value)] = None
        try:
            state = dict(object.__getattribute__(value, "__dict__"))
        except AttributeError:
            state = {}
        for slot in slots:
            try:
                state[slot] = object.__getattribute__(value, slot)
            except AttributeError:
                continue  # not set
        for gone in derived:
            state.pop(gone, None)
        inside = b"N" if content is None else shrunk(content(value, walk))
        return b"".join((b"o", name, inside, shrunk(b"d" + walk.mapping(state, ".{}".format))))

    return encode


def _slots(kind: type) -> list[str]:
    found: list[str] = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot in _NEVER_STATE:
                continue
            private = slot.startswith("__") and not slot.endswith("__")
            found.append(f"_{base.__name__.lstrip('_')}{slot}" if private else slot)
    return found


def _derived(kind: type) -> tuple[str, ...]:
    names = [
        name
        for base in kind.__mro__
        for name, attribute in vars(base).items()
        if isinstance(attribute, functools.cached_property)
    ]
    # attrs turns the cached properties of slotted classes into slots that are no fields.
    names += getattr(kind, "__attrs_cached_properties__", ())
    return (*names, "_attrs_cached_hash")


# --- state of own making ----------------------------------------------------------------------------------


def _encode_reduced(value: Any, walk: Walk) -> bytes:
    kind = type(value)
    if walk.met is not None and is_own(kind):
        walk.met[kind] = None
    if walk.checking:
        return _taken_apart(value, walk)
    cycles = walk.cycles
    walk.checking = True  # the check of the whole covers its parts
    encoded = _taken_apart(value, walk)
    walk.checking = False
    alone = encoded
    if walk.cycles != cycles:  # back-references may lead out of the value; alone, it has none of those
        alone = _taken_apart(value, Walk(walk.code_of, checking=True))
    _check(value, alone, walk)
    return encoded


def _taken_apart(value: Any, walk: Walk) -> bytes:
    name = text(full_name(type(value)))
    reduced = _reduced(value)
    if isinstance(reduced, str):  # the name of a global
        return b"g" + name + text(reduced)
    filled: list[Any] = [*reduced, None, None, None]
    function, args, state, items, pairs = filled[:5]
    if function is copyreg.__newobj__ or getattr(function, "__name__", "") == "__newobj_ex__":  # type: ignore[attr-defined]
        args = args[1:]  # the class is in the name already
    elif function is copyreg._reconstructor:  # type: ignore[attr-defined]
        args = args[2:]
    made_by = callables.name_of(function) or walk.attribute(function, ".__reduce__()[0]")
    parts = [walk.attribute(tuple(args), ".__reduce__()[1]"), walk.attribute(state, ".__getstate__()")]
    parts.append(b"N" if items is None else shrunk(b"l" + walk.sequence(list(items))))
    parts.append(b"N" if pairs is None else shrunk(b"d" + walk.mapping(dict(pairs))))
    return b"".join((b"r", name, made_by, *parts))


def _reduced(value: Any) -> Any:
    reduce: Callable[[Any], Any] | None = copyreg.dispatch_table.get(type(value))
    try:
        return reduce(value) if reduce else value.__reduce_ex__(_PROTOCOL)
    except RecursionError:
        raise
    except Exception as error:
        raise Refused(value, f"it can't even be pickled: {error}") from error


def _check(value: Any, encoded: bytes, walk: Walk) -> None:
    try:
        copied = _round_trip(value)
    except RecursionError:
        raise
    except Exception as error:
        raise Refused(value, f"it doesn't survive a pickle round trip: {type(error).__name__}: {error}") from error
    if type(copied) is not type(value) or _taken_apart(copied, Walk(walk.code_of, checking=True)) != encoded:
        raise Refused(value, "its state reads differently after a pickle round trip, as an address or a cache would")


def _round_trip(value: Any) -> Any:
    try:
        return pickle.loads(pickle.dumps(value, _PROTOCOL))
    except (pickle.PicklingError, AttributeError, TypeError):
        import cloudpickle

        return pickle.loads(cloudpickle.dumps(value, _PROTOCOL))
