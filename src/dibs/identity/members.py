"""What stands in a class: its functions, its data, and what Python or a library made from the rest."""

from __future__ import annotations

import collections
import contextvars
import enum
import functools
import logging
import types
from collections.abc import Mapping
from typing import Any, Final

from dibs.digest.naming import full_name

_GENERATED: Final = ("<string>", "<attrs generated", "<frozen")
_LAYERS_MAX: Final = 100
_LOCKS: Final = frozenset({"lock", "RLock", "_RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore", "_local"})
_COMPILED: Final = frozenset({"ufunc", "cython_function_or_method", "nb_func", "nb_method", "fused_cython_function"})


# Of whose type the fields of named tuples are.
_Pair = collections.namedtuple("_Pair", "left")


def asked(thing: Any, name: str) -> Any:
    """An attribute, or None; a proxy may raise whatever it likes."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def wrapped_by(thing: Any) -> Any:
    """What a wrapper says that it wraps: functools.wraps, lru_cache, memoize, numba; None for what wraps nothing."""
    if isinstance(thing, type):
        return None
    for name in ("__wrapped__", "py_func"):
        found = asked(thing, name)
        if callable(found):
            return found
    return None


def members_of(kind: type) -> dict[str, Any]:
    """The attributes that somebody wrote, without what follows from them."""
    own = vars(kind)
    if issubclass(kind, enum.Enum):
        # The machinery of enums differs between versions of Python.
        written = {name: value for name, value in own.items() if not (name.startswith("_") and name.endswith("_"))}
        return written | {name: member.value for name, member in kind.__members__.items()}
    return {name: value for name, value in own.items() if not _is_made_by_python(name, value)}


def _is_made_by_python(name: str, value: Any) -> bool:
    if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType | type(_Pair.left)):
        return True
    if name.startswith("__") and name.endswith("__"):
        return not isinstance(value, types.FunctionType | staticmethod | classmethod | property)
    return name.startswith("_abc_")


def is_written(function: types.FunctionType) -> bool:
    """False for what a library generates from the rest of a class."""
    return not function.__code__.co_filename.startswith(_GENERATED)


def functions_of(value: Any) -> list[types.FunctionType]:
    """The functions in a member of a class, with all their layers."""
    if isinstance(value, property):
        candidates: list[Any] = [value.fget, value.fset, value.fdel]
    elif isinstance(value, staticmethod | classmethod):
        candidates = [value.__func__]
    elif isinstance(value, functools.cached_property | functools.partialmethod):
        candidates = [value.func]
    elif isinstance(value, functools.singledispatchmethod):
        candidates = [*value.dispatcher.registry.values()]
    else:
        candidates = [value]
    found: list[types.FunctionType] = []
    while candidates and len(found) < _LAYERS_MAX:
        candidate = candidates.pop()
        if isinstance(candidate, staticmethod | classmethod):
            candidate = candidate.__func__
        if isinstance(candidate, types.FunctionType):
            if candidate in found:
                continue
            found.append(candidate)
        inner = None if isinstance(candidate, type) else wrapped_by(candidate)
        if inner is not None:
            candidates.append(inner)
    return found


def inside_wrapper(function: types.FunctionType) -> list[Any]:
    """What somebody else's wrapper holds that may be of the project: what it wraps, functions in its closure."""
    candidates: list[Any] = [wrapped_by(function), *(asked(function, "registry") or {}).values()]
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        candidates.extend(list(value.values()) if isinstance(value, Mapping) else [value])
    return [value for value in candidates if isinstance(value, types.FunctionType | type | functools.partial)]


def counts_by_name(value: Any) -> bool:
    """True for what is a tool rather than an ingredient: loggers, locks, typing's own, compiled functions, dibs.

    And for a bare `object()`, which code can compare, and nothing else.
    """
    if isinstance(value, logging.Logger | logging.LoggerAdapter | types.BuiltinFunctionType):
        return True
    kind = type(value)
    if kind is object or kind is contextvars.ContextVar:
        return True
    root = (kind.__module__ or "").partition(".")[0]
    if root == "dibs":
        return not hasattr(kind, "__dibs_key__")
    if root in ("_thread", "threading"):
        return kind.__name__ in _LOCKS
    return root in ("typing", "typing_extensions", "loguru") or kind.__name__ in _COMPILED


def tool_name(value: Any) -> str:
    """What counts of a tool."""
    if isinstance(value, types.BuiltinFunctionType):
        return full_name(value)
    name = asked(value, "__name__")
    return f"{full_name(type(value))} {name}" if isinstance(name, str) else full_name(type(value))
