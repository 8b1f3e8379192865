"""What code a function stands for: its own source, what it closes over, and the parts of the project that it uses."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

from dibs.digest import digest_of, preview
from dibs.errors import SettingsError
from dibs.identity import source
from dibs.identity.graph import Graph, Parts
from dibs.identity.project import distribution_version, is_project, name_of

__all__ = ["Code", "Deps", "FunctionIdentity", "code_of"]

Deps = Literal["project", "function", "none"]
_SHORT: Final = 16
_LAYERS_MAX: Final = 100


class Code(NamedTuple):
    """The code of a function, as it counts in keys."""

    name: str
    digest: str
    """40 hexadecimal digits over everything below."""
    ingredients: dict[str, tuple[str, str]]
    """Label -> (16 hexadecimal digits, a preview): what changed, when the digest did."""
    notes: tuple[str, ...]


class FunctionIdentity:
    """The identity of one function, kept up to date: a name that means something else by now changes it."""

    def __init__(
        self,
        function: Any,
        *,
        deps: Deps = "project",
        version: str | None = None,
        name: str | None = None,
        packages: Iterable[str] = (),
    ) -> None:
        """`deps`: "project" (functions, classes and constants of the project that it uses), "function" (its own code
        only) or "none" (its name only).  `version` stands for all code.  `packages` count by their versions.

        Raises SettingsError for a package that isn't installed.
        """
        self.name = name if name is not None else _name(function)
        self._function = function
        self._deps = deps if version is None else "none"
        self._version = version
        self._packages = tuple(packages)
        self._extra = self._said()
        self._state: tuple[Graph | None, Code] | None = None
        if self._deps != "none":
            # The texts as they are now, which most likely are those that run.
            source.remember_project()
            _remember(function)

    def code(self) -> Code:
        """The code as it is now.  Raises Undigestible for a global or a closure value that has no digest."""
        state = self._state
        if state is not None and (state[0] is None or state[0].watch.unchanged()):
            return state[1]
        graph = None if self._deps == "none" else Graph(self._function, self._deps == "project")
        parts = {**self._extra, **(graph.parts if graph is not None else {})}
        digest = _digest_of_parts(parts)
        ingredients = {label: (full[:_SHORT], text) for label, (full, text) in parts.items()}
        code = Code(self.name, digest, ingredients, tuple(graph.notes) if graph is not None else ())
        self._state = graph, code
        return code

    def _said(self) -> dict[str, tuple[str, str]]:
        """What was given rather than found."""
        parts: dict[str, tuple[str, str]] = {}
        if self._version is not None:
            parts["version"] = digest_of(self._version, "version"), preview(self._version)
        for package in self._packages:
            try:
                found = distribution_version(package)
            except LookupError as error:
                raise SettingsError(f"memoize: packages: {error}") from None
            parts[f"package {package}"] = digest_of(found), found
        return parts

    def __reduce__(self) -> tuple[Any, ...]:
        # As it is here: where it arrives, the files may say something else, or not be there.
        return _arrived, (self._function, self._deps, self._version, self.name, self._packages, self.code())

    def __repr__(self) -> str:
        return f"<identity of {self.name}>"


def _arrived(
    function: Any, deps: Deps, version: str | None, name: str, packages: tuple[str, ...], code: Code
) -> FunctionIdentity:
    identity = FunctionIdentity(function, deps="none", name=name)
    identity._deps, identity._version, identity._packages = deps, version, packages
    identity._state = None, code
    return identity


def _name(function: Any) -> str:
    """The name that keys begin with: module and qualified name, the same in the program and in its children."""
    while isinstance(function, functools.partial):
        function = function.func
    return name_of(function if hasattr(function, "__qualname__") else type(function))


def _remember(function: Any) -> None:
    for _ in range(_LAYERS_MAX):
        code = getattr(function, "__code__", None)
        if isinstance(code, types.CodeType):
            source.remember(code)
        function = getattr(function, "__wrapped__", None) or getattr(function, "func", None)
        if function is None:
            break


def _digest_of_parts(parts: Parts) -> str:
    return digest_of([(label, parts[label][0]) for label in sorted(parts)], "code")


_graphs: Final[dict[int, tuple[Any, Graph, str]]] = {}
_GRAPHS_MAX: Final = 1000


def code_of(thing: Any) -> str | None:
    """The digest of the code of a function or class of the project; None for what others wrote: its name says it."""
    if not isinstance(thing, type | types.FunctionType) or not is_project(thing):
        return None
    known = _graphs.get(id(thing))
    if known is not None and known[0] is thing and known[1].watch.unchanged():
        return known[2]
    source.remember_project()
    graph = Graph(thing)
    digest = _digest_of_parts(graph.parts)
    if len(_graphs) >= _GRAPHS_MAX:  # lambdas may be made by the thousand
        _graphs.clear()
    _graphs[id(thing)] = thing, graph, digest
    return digest
