"""How a call of one function becomes a key: its code, its arguments by parameter name, and declared files.

The arguments are bound by a small function with the same parameters, made once: as fast, and with the same errors,
as a call of the function itself.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dibs.digest import File, digest_of, digest_of_call, module_name, preview
from dibs.errors import SettingsError
from dibs.identity import Code, Deps, FunctionIdentity, code_of

Ingredients = dict[str, tuple[str, str]]
"""Label -> (first 16 digits of a digest, a preview for people)."""

INGREDIENTS_SIZE_MAX: Final = 8 * 1024
_PREVIEW_SHORT: Final = 24
_KEY_FORMAT: Final = b"dibs call 1\0"
_DEPS: Final = ("project", "function", "none")


class Recipe:
    """What the keys of one memoized function are made of."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        version: str | None = None,
        ignore: Iterable[str] = (),
        files: Iterable[str | os.PathLike[str]] = (),
        packages: Iterable[str] = (),
        deps: Deps = "project",
        key: Callable[..., Any] | None = None,
        identity: FunctionIdentity | None = None,
    ) -> None:
        ignore, files = _several(ignore, "ignore"), _several(files, "files")
        if deps not in _DEPS:
            raise SettingsError(f"memoize: deps = {deps!r}: expected one of {', '.join(map(repr, _DEPS))}")
        self._function = function
        self._options: dict[str, Any] = {"ignore": ignore, "files": files, "deps": deps, "key": key}
        self.identity = identity or FunctionIdentity(
            function, deps=deps, version=version, name=name, packages=_several(packages, "packages")
        )
        self.name = self.identity.name
        self._deps = deps
        self._key_function = key
        self._bind, names = _binder(function, () if key is not None else _checked(ignore, function))
        self._names = names if key is None else ("key",)
        self._files = tuple(os.fspath(path) for path in files)
        self._file_labels = tuple(f"file {path}" for path in self._files)
        self._prefixes: dict[str, bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # With the identity as it was captured: the file may say something else where this arrives.
        return functools.partial(Recipe, **self._options, identity=self.identity), (self._function,)

    def values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, object]]:
        """What counts of a call, by name.  Raises TypeError as the call itself would."""
        bound = self._bind(*args, **kwargs)
        if self._key_function is not None:
            bound = (self._key_function(*args, **kwargs),)
        values: list[tuple[str, object]] = list(zip(self._names, bound, strict=True))
        if self._files:
            values.extend(zip(self._file_labels, map(File, self._files), strict=True))
        return values

    def key(self, values: list[tuple[str, object]], root: str) -> str:
        """The key of a call with these values; `root` is the digest of the code, or of the code that it stands for."""
        prefix = self._prefixes.get(root)
        if prefix is None:
            prefix = self._prefixes[root] = b"".join((_KEY_FORMAT, self.name.encode(), b"\0", root.encode(), b"\0"))
        met: dict[type, None] = {}
        digest = digest_of_call(prefix, values, code_of=code_of, met=met)
        if met and self._deps == "project":
            digest = _with_classes(digest, met)
        return f"{self.name}/{digest}"

    def ingredients(self, values: list[tuple[str, object]], code: Code, root: str) -> Ingredients:
        """The parts of the key, to be kept beside the value."""
        met: dict[type, None] = {}
        found: Ingredients = {"code": (root, code.digest)}
        for name, value in values:
            digest = digest_of_call(b"", [(name, value)], code_of=code_of, met=met)
            found[name if " " in name else f"argument {name}"] = (digest[:16], preview(value))
        if self._deps == "project":
            for label, digest in _classes(met):
                found[f"class {label}"] = (digest[:16], "its code")
        return found


def packed(ingredients: Mapping[str, tuple[str, str]], size_max: int = INGREDIENTS_SIZE_MAX) -> bytes:
    """As JSON of at most `size_max` bytes: with shorter previews, then without the last ones, if need be."""
    kept = dict(ingredients)
    data = _json(kept)
    if len(data) > size_max:
        kept = {label: (digest, text[:_PREVIEW_SHORT]) for label, (digest, text) in kept.items()}
        data = _json(kept)
    while len(data) > size_max:
        dropped = max(len(kept) // 8, 1)
        kept = dict(list(kept.items())[:-dropped])
        data = _json(kept)
    return data


def unpacked(data: bytes | None) -> Ingredients:
    """The inverse of `packed`; empty for what can't be read."""
    try:
        found = json.loads(data or b"{}")
        return {str(label): (str(digest), str(text)) for label, (digest, text) in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _json(ingredients: Mapping[str, tuple[str, str]]) -> bytes:
    return json.dumps(ingredients, separators=(",", ":")).encode()


def _with_classes(digest: str, met: Mapping[type, None]) -> str:
    """The digest of a call whose arguments are objects of these classes: their code counts as well."""
    classes = _classes(met)
    return digest_of((digest, classes)) if classes else digest


def _classes(met: Mapping[type, None]) -> list[tuple[str, str]]:
    found = ((f"{module_name(kind)}.{kind.__qualname__}", code_of(kind)) for kind in met)
    return sorted((label, digest) for label, digest in found if digest is not None)


def _several(given: Any, what: str) -> tuple[Any, ...]:
    if isinstance(given, str | os.PathLike):
        raise SettingsError(f"memoize: {what} = {given!r}: expected several, as in {what}=({str(given)!r},)")
    return tuple(given)


def _checked(ignore: tuple[str, ...], function: Callable[..., Any]) -> tuple[str, ...]:
    known = tuple(inspect.signature(function).parameters)
    unknown = [name for name in ignore if name not in known]
    if unknown:
        raise SettingsError(
            f"memoize: ignore names {', '.join(map(repr, unknown))}, but the parameters of {function.__qualname__} are "
            f"{', '.join(known) or 'none'}"
        )
    return ignore


def _binder(function: Callable[..., Any], ignore: tuple[str, ...]) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A function with the same parameters that returns their values, without the ignored ones; and their names."""
    try:
        parameters = list(inspect.signature(function, follow_wrapped=True).parameters.values())
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"memoize: {function!r} doesn't tell its parameters ({error}): wrap it in a function of your own"
        ) from error
    defaults: dict[str, Any] = {}
    parts: list[str] = []
    for number, parameter in enumerate(parameters):
        part = parameter.name
        if parameter.kind is parameter.KEYWORD_ONLY and not any(text.startswith("*") for text in parts):
            parts.append("*")
        if parameter.kind is parameter.VAR_POSITIONAL:
            part = f"*{part}"
        elif parameter.kind is parameter.VAR_KEYWORD:
            part = f"**{part}"
        elif parameter.default is not parameter.empty:
            defaults[f"_default_{number}"] = parameter.default
            part = f"{part}=_default_{number}"
        parts.append(part)
        last_positional_only = parameter.kind is parameter.POSITIONAL_ONLY and (
            number + 1 == len(parameters) or parameters[number + 1].kind is not parameter.POSITIONAL_ONLY
        )
        if last_positional_only:
            parts.append("/")
    names = tuple(parameter.name for parameter in parameters if parameter.name not in ignore)
    returned = "".join(f"{name}, " for name in names)
    called = function.__name__ if function.__name__.isidentifier() else "function"
    namespace: dict[str, Any] = dict(defaults)
    source = f"def {called}({', '.join(parts)}):\n    return ({returned})"
    exec(source, namespace)  # noqa: S102 - made of parameter names alone, as dataclasses does it
    bind: Callable[..., Any] = namespace[called]
    bind.__qualname__ = function.__qualname__
    return bind, names


def key_digest(value: object) -> str:
    """The key of a value that is no string."""
    return f"value/{digest_of(value, 'key', code_of=code_of)}"

