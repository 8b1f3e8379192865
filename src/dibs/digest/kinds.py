"""Which encoder a type gets: asked once per type, from the most explicit answer to the most general one."""

from __future__ import annotations

import enum
import functools
import importlib
from collections.abc import Callable
from typing import Any, Final

from dibs.digest import callables, objects, standard
from dibs.digest.files import File, encode_file
from dibs.digest.hashing import text
from dibs.digest.naming import full_name, is_own
from dibs.digest.refusal import Refused
from dibs.digest.walk import ENCODERS, RESOLVED, SCALARS, Encoder, Walk

_FAMILIES: Final = {
    "numpy": "arrays",
    "pandas": "pandas_frames",
    "polars": "polars_frames",
    "pyarrow": "arrow",
    "torch": "tensors",
    "scipy": "sparse",
    "sklearn": "models",
    "pydantic": "models",
}
"""Root package of a class among the bases -> the module here that knows it; imported when first met."""

_registered: Final[dict[type, Callable[[Any], object]]] = {}


def register_digest(kind: type, state_of: Callable[[Any], object]) -> None:
    """Let values of class `kind` (and of its subclasses) count by what `state_of(value)` returns.

    `state_of` returns anything that has a digest: a tuple of what counts, say.  The name of the class counts as well.
    For a class of your own, a method `__dibs_key__` does the same.  Register where the class is defined or first
    imported, so that every worker does: a worker without it refuses such values, or digests them otherwise.
    Raises TypeError for the built-in scalars and containers, whose encoding is fixed.

        dibs.register_digest(Molecule, lambda molecule: (molecule.smiles, molecule.charge))
    """
    if not isinstance(kind, type) or kind in SCALARS or kind in ENCODERS or kind is object:
        raise TypeError(f"register_digest takes a class that isn't built in, not {kind!r}")
    if not callable(state_of):
        raise TypeError(f"register_digest takes a function of the value, not {state_of!r}")
    _registered[kind] = state_of
    RESOLVED.clear()


def find(kind: type, value: Any) -> Encoder:
    """The encoder for values of exactly this type; `value` is one of them.  Raises Refused."""
    for base in kind.__mro__:
        if base in _registered:
            return _by_key(kind, _registered[base])
    if issubclass(kind, File):
        return encode_file
    if getattr(kind, "__dibs_key__", None) is not None:
        return _by_key(kind, lambda value: value.__dibs_key__())
    if issubclass(kind, enum.Enum):
        return _enum(kind)
    for base in kind.__mro__:
        family = _FAMILIES.get(base.__module__.partition(".")[0])
        if family:
            module = importlib.import_module(f"dibs.digest.{family}")
            encoder: Encoder | None = module.find(kind, value)
            if encoder is not None:
                return encoder
    if issubclass(kind, type):
        return callables.encode_class
    encoder = standard.find(kind) or callables.find(kind)
    if encoder is not None:
        return encoder
    refuse(kind, value)
    return _subclass(kind, value) or objects.find(kind, value)


def _by_key(kind: type, state_of: Callable[[Any], object]) -> Encoder:
    name, own = text(full_name(kind)), is_own(kind)

    def encode(value: Any, walk: Walk) -> bytes:
        if own and walk.met is not None:
            walk.met[type(value)] = None
        cycles = walk.cycles
        encoded = walk.attribute(state_of(value), ".__dibs_key__()")
        if walk.cycles != cycles:
            raise Refused(value, "its __dibs_key__ leads back to itself", "return what it is made of")
        return b"k" + name + encoded

    return encode


def _enum(kind: type[enum.Enum]) -> Encoder:
    name, own = text(full_name(kind)), is_own(kind)
    is_flag = issubclass(kind, enum.Flag)

    def encode(value: Any, walk: Walk) -> bytes:
        if own and walk.met is not None:
            walk.met[type(value)] = None
        # A combination of flags has no name of its own.
        return b"e" + name + walk.attribute(value.value if is_flag else value.name, ".value")

    return encode


def refuse(kind: type, value: Any) -> None:
    """Raise Refused for types whose state could be taken, but isn't the value."""
    if kind is object:
        raise Refused(value, "a bare object() differs from others by its identity alone", "use None, or a string")
    if hasattr(kind, "__next__"):
        raise Refused(value, "an iterator or an open file is used up by looking at it", "pass a list, or the content")


# --- subclasses of what is built in -------------------------------------------------------------------------


def _subclass(kind: type, value: Any) -> Encoder | None:
    for base in kind.__mro__[1:]:
        content = _contents().get(base)
        if content is not None:
            break
        known = standard.find(base)
        if known is not None:
            content = known
            break
    else:
        return None
    fields = getattr(kind, "_fields", None) if issubclass(kind, tuple) else None
    if isinstance(fields, tuple) and all(type(field) is str for field in fields):
        content = functools.partial(_named_tuple, fields)
    return objects.with_attributes(kind, content)


def _named_tuple(fields: tuple[str, ...], value: Any, walk: Walk) -> bytes:
    items = tuple(tuple.__iter__(value))
    try:
        return walk.known(b"fields", b"t" + walk.sequence(fields), b"t" + walk.sequence(items))
    except Refused as refused:
        index = int(refused.path.pop()[1:-1])
        part = f".{fields[index]}" if index < len(fields) else f"[{index}]"
        raise refused.within(part) from refused.__cause__


@functools.cache
def _contents() -> dict[type, Encoder]:
    """The content of a subclass, taken past whatever methods it overrides."""
    plain: dict[type, Callable[[Any], Any]] = {
        int: lambda value: int.__add__(value, 0),
        float: lambda value: float.__add__(value, -0.0),
        complex: lambda value: complex.__pos__(value),
        str: lambda value: str.__getitem__(value, slice(None)),
        bytes: lambda value: bytes.__getitem__(value, slice(None)),
        bytearray: lambda value: bytearray.__getitem__(value, slice(None)),
    }
    contents: dict[type, Encoder] = {}
    for base, taken in plain.items():
        contents[base] = lambda value, walk, scalar=SCALARS[base], taken=taken: scalar(taken(value))  # type: ignore[misc]
    contents[list] = lambda value, walk: b"l" + walk.sequence(list(list.__iter__(value)))
    contents[tuple] = lambda value, walk: b"t" + walk.sequence(tuple(tuple.__iter__(value)))
    contents[dict] = lambda value, walk: b"d" + walk.mapping(dict(dict.items(value)))
    contents[set] = lambda value, walk: b"S" + walk.members(set.__iter__(value))
    contents[frozenset] = lambda value, walk: b"Z" + walk.members(frozenset.__iter__(value))
    return contents
