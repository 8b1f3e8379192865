"""How a call of one function becomes a key: its code, its arguments by parameter name, and declared files.

The arguments are bound by a small function with the same parameters, made once: as fast, and with the same errors,
as a call of the function itself.
"""

from __future__ import annotations

import functools
import inspect
import json
import keyword
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from dibs.digest import File, digest_of, digest_of_call, module_name, preview
from dibs.errors import SettingsError
from dibs.identity import Code, Deps, FunctionIdentity, code_of

Ingredients = dict[str, tuple[str, str]]
"""Label -> (first 16 digits of a digest, a preview for people)."""

INGREDIENTS_SIZE_MAX: Final = 8 * 1024
CUT: Final = "…"
"""The label that stands for ingredients that there was no room for."""
_PREVIEW_SHORT: Final = 24
_KEY_FORMAT: Final = b"dibs call 1\0"
_NAME_SIZE_MAX: Final = 1000
_DEPS: Final = ("project", "function", "none")


class Recipe:
    """What the keys of one memoized function are made of."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        version: str | int | None = None,
        ignore: Iterable[str] = (),
        files: Iterable[str | os.PathLike[str]] = (),
        packages: Iterable[str] = (),
        deps: Deps = "project",
        key: Callable[..., Any] | None = None,
        identity: FunctionIdentity | None = None,
        key_identity: FunctionIdentity | None = None,
    ) -> None:
        ignore, files = _several(ignore, "ignore"), _several(files, "files")
        if deps not in _DEPS:
            raise SettingsError(f"memoize: deps = {deps!r}: expected one of {', '.join(map(repr, _DEPS))}")
        parameters = _parameters(function)
        self._function = function
        self._options: dict[str, Any] = {"ignore": ignore, "files": files, "deps": deps, "key": key}
        if identity is None:
            version = _checked_version(version)
            packages = _several(packages, "packages")
            identity = FunctionIdentity(
                function, deps=deps, version=version, name=_checked_name(name), packages=packages
            )
            by_name = version is not None or deps == "none"
            if by_name and name is None and "<lambda>" in identity.name:
                raise SettingsError("memoize: a lambda whose code doesn't count needs a name=, to be told from others")
            if key is not None and not by_name:
                key_identity = FunctionIdentity(key, deps=deps)
        self.identity = identity
        self.name = identity.name
        self._deps = deps
        self._key_function = key
        self._key_identity = key_identity
        """None: the code of the key function doesn't count either."""
        ignore = _checked_ignore(ignore, parameters, function, key)
        self._bind, names = _binder(function, parameters, ignore, by_code=deps == "project")
        self._names = names if key is None else ("key=",)
        self._files = tuple(map(_checked_file, files))
        self._file_labels = tuple(f"files[{number}]" for number in range(len(files)))
        self._prefixes: dict[str, bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # With the identity as it was captured: the file may say something else where this arrives.
        options = {**self._options, "identity": self.identity, "key_identity": self._key_identity}
        return functools.partial(Recipe, **options), (self._function,)

    def values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, object]]:
        """What counts of a call, by name.  Raises TypeError as the call itself would."""
        bound = self._bind(*args, **kwargs)
        if self._key_function is not None:
            bound = (self._key_function(*args, **kwargs),)
        values: list[tuple[str, object]] = list(zip(self._names, bound, strict=True))
        if self._key_identity is not None:  # the same result means something else when another function made it
            values.append(("key= function", self._key_identity.code().digest))
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
            found[f"argument {name}" if name.isidentifier() else name] = (digest[:16], preview(value))
        if self._deps == "project":
            for label, digest in _classes(met):
                found[f"class {label}"] = (digest[:16], "its code")
        return found


def packed(ingredients: Mapping[str, tuple[str, str]], size_max: int = INGREDIENTS_SIZE_MAX) -> bytes:
    """As JSON of at most `size_max` bytes: with shorter previews, then without the last ones, if need be."""
    kept = dict(ingredients)
    data = _json(kept)
    for preview_size in (_PREVIEW_SHORT, 0):
        if len(data) > size_max:
            kept = {label: (digest, text[:preview_size]) for label, (digest, text) in kept.items()}
            data = _json(kept)
    while len(data) > size_max:
        kept.pop(CUT, None)
        kept = dict(list(kept.items())[: -max(len(kept) // 8, 1)])
        kept[CUT] = "", f"{len(ingredients) - len(kept)} more"
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
    if not isinstance(given, Iterable):
        raise SettingsError(f"memoize: {what} = {given!r:.80}: expected several")
    return tuple(given)


def _checked_file(path: object) -> str:
    if not isinstance(path, str | os.PathLike):
        raise SettingsError(f"memoize: files has {path!r:.80}: expected paths")
    return os.fspath(path)


def _checked_name(name: object) -> str | None:
    if name is None:
        return None
    if not isinstance(name, str) or not name or len(name) > _NAME_SIZE_MAX or not name.isprintable():
        raise SettingsError(
            f"memoize: name = {name!r:.80}: expected text on one line, of at most {_NAME_SIZE_MAX} characters"
        )
    return name


def _checked_version(version: object) -> str | None:
    """A version as text; a number is its digits."""
    if version is None or isinstance(version, str):
        return version
    if type(version) is int:
        return str(version)
    raise SettingsError(f"memoize: version = {version!r:.80}: expected text or a whole number")


def _checked_ignore(
    ignore: tuple[str, ...], parameters: list[inspect.Parameter], function: Any, key: object
) -> tuple[str, ...]:
    known = [parameter.name for parameter in parameters]
    unknown = [name for name in ignore if name not in known]
    if unknown:
        raise SettingsError(
            f"memoize: ignore names {', '.join(map(repr, unknown))}, but the parameters of {_title(function)} are "
            f"{', '.join(known) or 'none'}"
        )
    if ignore and key is not None:
        raise SettingsError("memoize: with key= no argument counts by itself: leave out ignore=")
    return ignore


def _title(function: Any) -> str:
    """The name in messages; partials and callable objects have none."""
    return str(getattr(function, "__qualname__", None) or f"{function!r:.80}")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"memoize: {_title(function)} doesn't tell its parameters ({error}): wrap it in a function of your own"
        ) from error


def _binder(
    function: Callable[..., Any], parameters: list[inspect.Parameter], ignore: tuple[str, ...], by_code: bool
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A function with the same parameters that returns their values, without the ignored ones; and their names.

    Of an ignored `self` its class remains, where code counts: its other methods may be called.
    """
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
    counting = {parameter.name: parameter.name for parameter in parameters if parameter.name not in ignore}
    if by_code and "self" in ignore and parameters[0].name == "self":
        counting = {"class of self": "_type(self)", **counting}
    names, returned = tuple(counting), "".join(f"{expression}, " for expression in counting.values())
    title = getattr(function, "__name__", "")
    called = title if title.isidentifier() and not keyword.iskeyword(title) else "function"
    namespace: dict[str, Any] = {**defaults, "_type": type}
    source = f"def {called}({', '.join(parts)}):\n    return ({returned})"
    exec(source, namespace)  # noqa: S102 - made of parameter names alone, as dataclasses does it
    bind: Callable[..., Any] = namespace[called]
    bind.__qualname__ = _title(function)
    return bind, names


def key_digest(value: object) -> str:
    """The key of a value that is no string."""
    return f"value/{digest_of(value, 'key', code_of=code_of)}"

