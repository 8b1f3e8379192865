"""What code a function stands for: its own source, what it closes over, and the parts of the project that it uses."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple
from weakref import WeakKeyDictionary

from dibs.digest import digest_of, module_name, preview
from dibs.errors import SettingsError
from dibs.identity import source
from dibs.identity.graph import Graph, is_project_code
from dibs.identity.project import distribution_version, is_project

__all__ = ["Code", "Deps", "FunctionIdentity", "code_of"]

Deps = Literal["project", "function", "none"]
_SHORT: Final = 16


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
        self.name = name if name is not None else name_of(function)
        self._function = function
        self._deps = deps if version is None else "none"
        self._version = version
        self._packages = tuple(packages)
        self._extra = self._said()
        self._state: tuple[Graph | None, Code] | None = None
        if self._deps != "none":
            source.remember_project()  # the text as it is now, which is most likely the one that runs

    def code(self) -> Code:
        """The code as it is now.  Raises Undigestible for a global or a closure value that has no digest."""
        state = self._state
        if state is not None and (state[0] is None or state[0].current()):
            return state[1]
        graph = None if self._deps == "none" else Graph(self._function, self._deps == "project")
        parts = {**self._extra, **(graph.parts if graph is not None else {})}
        digest = digest_of([(label, parts[label][0]) for label in sorted(parts)])
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


def name_of(function: Any) -> str:
    """The name that keys begin with: module and qualified name, the same in the program and in its children."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{module_name(named)}.{named.__qualname__}".replace(".<locals>", "")


_identities: Final[WeakKeyDictionary[Any, _Identified]] = WeakKeyDictionary()


class _Identified:
    """The code of a function or class that is met among values."""

    def __init__(self, thing: Any) -> None:
        self._graph = Graph(thing)
        parts = self._graph.parts
        self.digest = digest_of([(label, parts[label][0]) for label in sorted(parts)])

    def current(self) -> bool:
        return self._graph.current()


def code_of(thing: Any) -> str | None:
    """The digest of the code of a function or class of the project; None for what others wrote."""
    if not isinstance(thing, type | types.FunctionType) or not (is_project(thing) or is_project_code(thing)):
        return None
    known = _identities.get(thing)
    if known is None or not known.current():
        source.remember_project()
        known = _identities[thing] = _Identified(thing)
    return known.digest
