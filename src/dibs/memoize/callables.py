"""What a callable is: to be awaited, made for a class, known by its name; and what can't be memoized at all."""

from __future__ import annotations

import functools
import inspect
import sys
import types
from typing import Any

from dibs.errors import SettingsError


def is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    kinds = function, getattr(type(function), "__call__", None)  # noqa: B004 - of a callable object
    return any(map(inspect.iscoroutinefunction, kinds))


def attributes_of(function: Any) -> list[tuple[str, Any]]:
    return list(getattr(function, "__dict__", {}).items()) if isinstance(function, types.FunctionType) else []


def is_written_for_a_class(function: Any) -> bool:
    """True for what can only be the inside of a class method.

    From Python 3.13 on, `@classmethod` above `@cache.memoize` doesn't tell us the class, but for calls.
    """
    if not isinstance(function, types.FunctionType) or function.__code__.co_varnames[:1] != ("cls",):
        return False
    where, _, _ = function.__qualname__.rpartition(".")
    return bool(where) and not where.endswith("<locals>") and function.__code__.co_argcount > 0


def goes_by_name(memoized: object) -> bool:
    """True when a pickle may just name it: where the pickle is loaded, the name means the same."""
    module = getattr(memoized, "__module__", None)
    found: Any = sys.modules.get(module or "")
    for part in getattr(memoized, "__qualname__", "<locals>").split("."):
        found = getattr(found, part, None)
    if found is not memoized:
        return False
    # cloudpickle sends what belongs to the program itself by value, since other programs don't have it; but it asks
    # functions and classes only, and there is no other way to learn who asks here.
    asker = sys._getframe(2).f_globals.get("__name__", "")
    return module != "__main__" or "cloudpickle" not in asker


def mark_as_coroutine_function(function: Any) -> None:
    """So that frameworks see that it must be awaited."""
    if hasattr(inspect, "markcoroutinefunction"):  # from Python 3.12 on
        inspect.markcoroutinefunction(function)
    else:
        from asyncio import coroutines

        function._is_coroutine = vars(coroutines)["_is_coroutine"]


def refuse_what_cannot_be_memoized(function: Any) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isclass(function):
        raise SettingsError(f"memoize: {name} is a class; memoize a function that makes what you need of it")
    if isinstance(function, property | functools.cached_property):
        raise SettingsError("memoize: put @property above @cache.memoize, so that the function beneath is memoized")
    if not callable(function):
        raise SettingsError(f"memoize: {function!r:.80} can't be called")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise SettingsError(
            f"memoize: {name} yields, and what it yields can be had once only: return a list, or memoize what makes "
            "one item"
        )
