"""A function whose calls are computed once in the whole fleet: what `cache.memoize` returns."""

from __future__ import annotations

import copyreg
import functools
import types
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NamedTuple, ParamSpec, Protocol, Self, TypeVar, overload

from dibs.codec import check_known
from dibs.errors import SettingsError, StoreUnavailable
from dibs.events import log
from dibs.identity import Code
from dibs.memoize.callables import (
    attributes_of,
    goes_by_name,
    is_async,
    is_written_for_a_class,
    mark_as_coroutine_function,
    refuse_what_cannot_be_memoized,
)
from dibs.memoize.explanation import Explanation, explain
from dibs.memoize.recipe import Ingredients, Recipe, packed
from dibs.memoize.shelved import Shelved
from dibs.memoize.versions import Version, Versions
from dibs.once import Ask
from dibs.settings import UNSET, Settings

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
S = TypeVar("S")


class Keeper(Protocol):
    """What a memoized function asks of its cache; `Cache` says what each does."""

    settings: Settings

    @property
    def _versions(self) -> Versions: ...
    def _ask(self, key: str, compute: Callable[[], Any], ask: Ask) -> Any: ...
    async def _ask_async(self, key: str, compute: Callable[[], Awaitable[Any]], ask: Ask) -> Any: ...
    async def _aside(self, call: Callable[[], S]) -> S: ...
    def _forget_family(self, family: str) -> int: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def forget(self, key: str) -> None: ...
    def __contains__(self, key: str) -> bool: ...


class Options(NamedTuple):
    """How the values of one memoized function are kept."""

    expires_s: float | None = None
    stale_ok: bool = False
    codec: str | None = None


class _Call:
    """One call: its key, and what it is made of, as it was when the call was made."""

    __slots__ = ("_ingredients", "_recipe", "_values", "code", "key", "root")

    def __init__(self, recipe: Recipe, values: list[tuple[str, object]], code: Code, root: str) -> None:
        self.key = recipe.key(values, root)
        self.code = code
        self.root = root
        self._recipe = recipe
        self._values = values
        self._ingredients: bytes | None = None

    def ingredients(self) -> Ingredients:
        return self._recipe.ingredients(self._values, self.code, self.root)

    def begin(self, versions: Versions) -> None:
        """It is computed here: note what it is made of, before the function may change its arguments."""
        self._ingredients = packed(self.ingredients())
        versions.register(self.code)

    def packed(self) -> bytes:
        return self._ingredients or b""


class _Memoized(Generic[P, T]):
    """What memoized functions have in common, whether they are awaited or not."""

    __wrapped__: Callable[..., Any]

    def __init__(self, keeper: Keeper, function: Callable[..., Any], recipe: Recipe, options: Options) -> None:
        functools.update_wrapper(self, function, updated=())  # type: ignore[arg-type]
        # What else stands on the function, but for what would hide a method of ours.
        vars(self).update((name, value) for name, value in attributes_of(function) if not hasattr(type(self), name))
        self._keeper = keeper
        self._function = function
        self._recipe = recipe
        self._options = options
        self._before: tuple[Any, ...] = ()
        """What a method is bound to; it comes first among the arguments."""
        self._attribute: str | None = None
        """Under what name its class has it, if it is a method."""
        self._wants_class = is_written_for_a_class(function)

    def __set_name__(self, owner: type, name: str) -> None:
        private = name.startswith("__") and not name.endswith("__")
        self._attribute = f"_{owner.__name__.lstrip('_')}{name}" if private else name

    @property
    def name(self) -> str:
        """The name that this function's keys begin with."""
        return self._recipe.name

    def key(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """The key of this call: "<function>/<40 hex digits>".  Raises Undigestible for arguments without a digest."""
        return self._call(args, kwargs).key

    def retag(self, old: str | None = None) -> Version:
        """Accept an edit of the code: what was computed with the old version counts for the one that runs now.

        `old`: the beginning of the digest of a version (see `versions`), or of this one's own, which takes an earlier
        retag back; None: the newest other one.  Every key of both versions is affected; entries that were computed
        with the new version only are computed again when they are asked for.  Other processes learn of it when they
        start.  Raises LookupError when there is no such version.
        """
        versions, code = self._keeper._versions, self._recipe.identity.code()
        root, known = versions.root(code.name, code.digest), versions.all(code.name)
        others = [v for v in known if v.digest != code.digest and (v.stands_for or v.digest) != root]
        found = [version for version in known if version.digest.startswith(old)] if old else others[:1]
        if len(found) != 1:
            listed = ", ".join(version.digest[:12] for version in (known if old else others)) or "none"
            what = "more than one version" if found else "no earlier version"
            which = f" begins with {old!r}" if old else ""
            raise LookupError(f"{code.name}: {what} of the code{which}; known are: {listed}")
        versions.retag(code, found[0])
        return found[0]

    def versions(self) -> list[Version]:
        """The versions of this function's code that were computed with, the newest first."""
        return self._keeper._versions.all(self._recipe.name)

    # -- shared by both kinds ------------------------------------------------------------------------------------

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        recipe = self._recipe
        if self._wants_class and not self._before and args and not isinstance(args[0], type):
            raise TypeError(
                f"{recipe.name}: {args[0]!r:.80} stands where the class is expected: put @cache.memoize above "
                "@classmethod, not below"
            )
        values = recipe.values(self._before + args, kwargs)
        code = recipe.identity.code()
        try:
            root = self._keeper._versions.root(code.name, code.digest)
        except StoreUnavailable as error:
            if self._keeper.settings.on_unavailable != "compute":
                raise
            log.info("whether the code of %s stands for an older version could not be asked: %s", code.name, error)
            root = code.digest
        return _Call(recipe, values, code, root)

    def _ask(self, call: _Call, recompute: bool = False) -> Ask:
        options = self._options
        return Ask(
            self._keeper.settings.wait_s,
            options.expires_s,
            options.stale_ok,
            recompute,
            ingredients=call.packed,
            codec=options.codec,
        )

    def _explain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
        call = self._call(args, kwargs)
        return explain(self._keeper._versions, call.key, call.ingredients(), call.code)

    def _peek(self, key: str, default: Any) -> Any:
        found = self._keeper.get(key, UNSET)
        if found is not UNSET:
            return found
        if default is UNSET:
            raise KeyError(f"{key} has no value now; call the function, or give a default")
        return default

    def _has(self, key: str) -> bool:
        try:
            return key in self._keeper
        except StoreUnavailable:
            if self._keeper.settings.on_unavailable != "compute":
                raise
            return False

    def _bound(self, instance: object) -> Self:
        bound = object.__new__(type(self))
        vars(bound).update(vars(self), _before=(instance,), __wrapped__=types.MethodType(self._function, instance))
        return bound

    def __reduce__(self) -> Any:
        if self._before:
            instance, name = self._before[0], self._attribute or self._function.__name__
            found = getattr(instance, name, None)
            if isinstance(found, _Memoized) and found._recipe is self._recipe and found is not self:
                return getattr, (instance, name)
        elif goes_by_name(self):
            return self.__qualname__  # type: ignore[attr-defined]
        return copyreg.__newobj__, (type(self),), vars(self)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"<memoized {self._recipe.name} in {self._keeper!r}>"


class Memoized(_Memoized[P, T]):
    """A function that is computed once per key; call it as before."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result: from the cache, or computed here or elsewhere, once.

        Raises what the function raises, Undigestible for an argument without a digest, and what
        `Cache.get_or_compute` raises.
        """
        if self._keeper.settings.disable:
            return self._function(*self._before, *args, **kwargs)  # type: ignore[no-any-return]
        call = self._call(args, kwargs)
        return self._keeper._ask(call.key, self._compute(call, args, kwargs), self._ask(call))  # type: ignore[no-any-return]

    def recompute(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Compute this call anew, or join whoever is doing so; until then `stale_ok` readers get the old value."""
        if self._keeper.settings.disable:
            return self._function(*self._before, *args, **kwargs)  # type: ignore[no-any-return]
        call = self._call(args, kwargs)
        ask = self._ask(call, recompute=True)
        return self._keeper._ask(call.key, self._compute(call, args, kwargs), ask)  # type: ignore[no-any-return]

    def peek(self, /, *args: Any, default: Any = UNSET, **kwargs: Any) -> Any:
        """The value if it is there now, else `default`; KeyError without one.  Never computes, never waits."""
        return self._peek(self._call(args, kwargs).key, default)

    def is_done(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """True when there is a value for this call now."""
        return self._call(args, kwargs).key in self._keeper

    def forget(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the value, and the failures, of this call."""
        self._keeper.forget(self._call(args, kwargs).key)

    def forget_all(self) -> int:
        """Forget every value of this function, of all versions of its code; returns how many keys there were."""
        return self._keeper._forget_family(self._recipe.name)

    def shelve(self, /, *args: P.args, **kwargs: P.kwargs) -> Shelved[T]:
        """Make sure that the value is there, and return a small reference to send around; `.get()` loads it."""
        call = self._call(args, kwargs)
        if self._has(call.key):
            return Shelved(self._keeper, call.key)
        value = self._keeper._ask(call.key, self._compute(call, args, kwargs), self._ask(call))
        return Shelved(self._keeper, call.key, () if self._has(call.key) else (value,))

    def explain(self, /, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Why this call is a hit or a miss: print it."""
        return self._explain(args, kwargs)

    def _compute(self, call: _Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        def compute() -> Any:
            call.begin(self._keeper._versions)
            return self._function(*self._before, *args, **kwargs)

        return compute

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self: Memoized[Concatenate[S, Q], T], instance: S, owner: type) -> Memoized[Q, T]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else self._bound(instance)


class AsyncMemoized(_Memoized[P, T]):
    """An async function that is computed once per key; await it as before.  A waiting task blocks nobody."""

    if not TYPE_CHECKING:

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            mark_as_coroutine_function(self)

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As Memoized.__call__; the function itself runs in the calling task."""
        return await self._asked(args, kwargs, recompute=False)

    async def recompute(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As Memoized.recompute."""
        return await self._asked(args, kwargs, recompute=True)

    async def _asked(self, args: tuple[Any, ...], kwargs: dict[str, Any], recompute: bool) -> T:
        if self._keeper.settings.disable:
            return await self._function(*self._before, *args, **kwargs)  # type: ignore[no-any-return]
        call = await self._called(args, kwargs)

        async def compute() -> Any:
            await self._keeper._aside(lambda: call.begin(self._keeper._versions))
            return await self._function(*self._before, *args, **kwargs)

        return await self._keeper._ask_async(call.key, compute, self._ask(call, recompute))  # type: ignore[no-any-return]

    async def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """The call; digesting large arguments and the first look at the code version must not hold up the loop."""
        return await self._keeper._aside(lambda: self._call(args, kwargs))

    async def peek(self, /, *args: Any, default: Any = UNSET, **kwargs: Any) -> Any:
        """As Memoized.peek."""
        call = await self._called(args, kwargs)
        return await self._keeper._aside(lambda: self._peek(call.key, default))

    async def is_done(self, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """As Memoized.is_done."""
        call = await self._called(args, kwargs)
        return await self._keeper._aside(lambda: call.key in self._keeper)

    async def forget(self, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """As Memoized.forget."""
        call = await self._called(args, kwargs)
        await self._keeper._aside(lambda: self._keeper.forget(call.key))

    async def forget_all(self) -> int:
        """As Memoized.forget_all."""
        return await self._keeper._aside(lambda: self._keeper._forget_family(self._recipe.name))

    async def shelve(self, /, *args: P.args, **kwargs: P.kwargs) -> Shelved[T]:
        """As Memoized.shelve."""
        call = await self._called(args, kwargs)
        if await self._keeper._aside(lambda: self._has(call.key)):
            return Shelved(self._keeper, call.key)
        value = await self._asked(args, kwargs, recompute=False)
        kept = await self._keeper._aside(lambda: self._has(call.key))
        return Shelved(self._keeper, call.key, () if kept else (value,))

    async def explain(self, /, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """As Memoized.explain."""
        return await self._keeper._aside(lambda: self._explain(args, kwargs))

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self: AsyncMemoized[Concatenate[S, Q], T], instance: S, owner: type) -> AsyncMemoized[Q, T]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else self._bound(instance)


class Decorator(Protocol):
    """What `cache.memoize(...)` with options returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> AsyncMemoized[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Memoized[P, T]: ...


def memoized(
    keeper: Keeper, function: Any, options: Options, recipe_options: dict[str, Any]
) -> Memoized[..., Any] | AsyncMemoized[..., Any] | _OfClass:
    """Wrap `function`: a plain or an async one, a method, a static or a class method."""
    if isinstance(function, staticmethod | classmethod):
        return _OfClass(memoized(keeper, function.__func__, options, recipe_options), type(function))
    if isinstance(function, types.MethodType):
        unbound: Any = memoized(keeper, function.__func__, options, recipe_options)
        return unbound._bound(function.__self__)  # type: ignore[no-any-return]
    refuse_what_cannot_be_memoized(function)
    if options.codec is not None:
        check_known(options.codec, "memoize")
    recipe = Recipe(function, **recipe_options)
    kind: type[Any] = AsyncMemoized if is_async(function) else Memoized
    made = kind(keeper, function, recipe, options)
    if isinstance(function, _Memoized) and function._keeper is keeper and function.name == made.name:
        raise SettingsError(f"memoize: {made.name} is memoized in this cache already, and would wait for itself")
    return made  # type: ignore[no-any-return]


class _OfClass:
    """A memoized static or class method: `@cache.memoize` above `@staticmethod` or `@classmethod`."""

    def __init__(self, function: Any, kind: type) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]
        self._function = function
        self._kind = kind

    def __set_name__(self, owner: type, name: str) -> None:
        self._function.__set_name__(owner, name)

    def __get__(self, instance: Any, owner: type) -> Any:
        return self._function if self._kind is staticmethod else self._function._bound(owner)
