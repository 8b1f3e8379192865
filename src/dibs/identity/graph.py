"""Everything of the project that a function can reach, and a digest of each part of it.

Each function, class and constant is a part with a digest of its own, and says by name which others it uses; the digest
of the whole is that of the sorted parts.  So circles need no care, and it doesn't matter where one enters them.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import sys
import types
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from dibs.digest import digest_of, digest_of_call, preview
from dibs.digest.naming import full_name
from dibs.errors import Undigestible
from dibs.identity import source
from dibs.identity.members import (
    asked,
    counts_by_name,
    functions_of,
    inside_wrapper,
    is_written,
    members_of,
    tool_name,
    wrapped_by,
)
from dibs.identity.normal import normal_code, normal_source
from dibs.identity.project import is_project, is_project_module, is_project_name, module_called, name_of
from dibs.identity.uses import Chain, Import, Uses, uses_of
from dibs.identity.watch import MISSING, Watch, is_frozen

Parts = dict[str, tuple[str, str]]
"""Label -> (40 digits, a preview)."""

_LABELS_MAX: Final = 20_000
_LAYERS_MAX: Final = 100
_CONSTANT: Final = "constant "
_CODE: Final = (types.FunctionType, types.ModuleType, type)


class Graph:
    """What is reachable from `root`.  Raises Undigestible for a constant that has no digest."""

    def __init__(self, root: Any, follow_globals: bool = True) -> None:
        self.parts: Parts = {}
        self.notes: list[str] = []
        self.watch = Watch()
        self._follow = follow_globals
        self._home: str | None = None
        """The module of the root: its functions count, whoever wrote it."""
        self._labels: dict[int, str] = {}
        self._taken: set[str] = set()
        self._kept: list[Any] = []
        self._looked_up: list[tuple[Mapping[str, Any], str, Any, str]] = []
        self._changed: dict[str, tuple[str, str]] = {}
        """Label of a constant that reached code changes -> its module and its name there."""
        self._waiting: deque[tuple[str, Any]] = deque()
        self._root(root)
        while self._waiting:  # ends: each function, class and module is enqueued once
            label, thing = self._waiting.popleft()
            if isinstance(thing, type):
                self._class(label, thing)
            elif isinstance(thing, types.ModuleType):
                self._module(label, thing)
            else:
                self._function(label, thing)
        self._settle_changed()

    # -- what is reached -----------------------------------------------------------------------------------------

    def _root(self, root: Any) -> None:
        """The layers of what was decorated: decorators outside, the user's function inside."""
        if isinstance(root, types.MethodType):
            self._value("bound to", root.__self__)
            root = root.__func__
        layers = [root]
        while len(layers) < _LAYERS_MAX:
            inner = wrapped_by(layers[-1])
            if inner is None or inner in layers:
                break
            layers.append(inner)
        functions = [layer for layer in layers if isinstance(layer, types.FunctionType)]
        written = [layer for layer in functions if is_project(layer)] or functions
        if not written:
            self._value("source", layers[-1])
            return
        self._home = written[-1].__globals__.get("__name__")
        self._enqueue("source", written[-1])
        for layer in functions:
            if not self._counts(layer):
                for value in inside_wrapper(layer):
                    self._value("in a decorator", value)
            elif layer is not written[-1]:
                self._enqueue(f"decorator {name_of(layer, of_code=True)}", layer)

    def _counts(self, thing: Any) -> bool:
        where = thing.__globals__.get("__name__") if isinstance(thing, types.FunctionType) else thing.__module__
        return is_project(thing) or (self._home is not None and where == self._home)

    def _enqueue(self, label: str, thing: Any) -> str:
        known = self._labels.get(id(thing))
        if known is not None:
            return known
        chosen, number = label, 2
        while chosen in self._taken:  # lambdas share a name
            chosen, number = f"{label} ({number})", number + 1
        if len(self._labels) >= _LABELS_MAX:
            raise Undigestible(f"{label}: more than {_LABELS_MAX} functions and classes are in its reach: set deps=")
        self._labels[id(thing)] = chosen
        self._taken.add(chosen)
        self._kept.append(thing)
        self._waiting.append((chosen, thing))
        return chosen

    def _value(self, label: str, value: Any) -> str:
        """Let whatever a name means count; returns what to say about it."""
        if isinstance(value, types.ModuleType):
            return self._enqueue(f"module {value.__name__}", value) if is_project_module(value) else value.__name__
        if isinstance(value, types.FunctionType):
            return self._function_value(label, value)
        if isinstance(value, type):
            return self._enqueue(f"class {name_of(value)}", value) if self._counts(value) else full_name(value)
        if isinstance(value, staticmethod | classmethod):
            return self._value(label, value.__func__)
        if isinstance(value, property):
            return ", ".join(self._value(label, f) for f in (value.fget, value.fset, value.fdel) if f is not None)
        if isinstance(value, functools.cached_property):
            return self._value(label, value.func)
        if isinstance(value, types.MethodType):
            if _is_standard(value.__func__):
                return full_name(value.__func__)  # random.randint: of an object that belongs to a module of Python's
            return f"{self._value(label, value.__func__)} of {self._value(f'{label}.__self__', value.__self__)}"
        if isinstance(value, functools.partial | functools.partialmethod):
            bound = self._constant(f"{label} (bound arguments)", (value.args, value.keywords))
            return f"partial of {self._value(label, value.func)}, {bound}"
        wrapped = wrapped_by(value)
        if wrapped is not None:  # a memoized function, functools.lru_cache
            return f"{full_name(type(value))} of {self._value(label, wrapped)}"
        if counts_by_name(value):
            return tool_name(value)
        return self._constant(label, value)

    def _function_value(self, label: str, value: types.FunctionType) -> str:
        if self._counts(value):
            wrapped = wrapped_by(value)
            inner = f" of {self._value(label, wrapped)}" if wrapped is not None else ""
            return self._enqueue(f"helper {name_of(value, of_code=wrapped is not None)}", value) + inner
        registry = asked(value, "registry")
        if isinstance(registry, Mapping):  # functools.singledispatch: more may be registered later
            self.watch.content(f"registry of {label}", registry)
        inside = ", ".join(self._value(label, inner) for inner in inside_wrapper(value))
        return f"{full_name(value)} of {inside}" if inside else full_name(value)

    def _constant(self, label: str, value: Any) -> str:
        met: dict[type, None] = {}
        try:
            digest = digest_of_call(b"", [(label, value)], code_of=self._reference, met=met)
        except Undigestible as error:
            raise Undigestible(
                f"{error}\nIt is part of the code of a memoized function. Make it inside the function, or pass it as "
                "an argument that is in ignore=; or let less count: deps=\"function\", or version= instead of the code."
            ) from error
        for kind in met:
            if self._counts(kind):
                self._enqueue(f"class {name_of(kind)}", kind)
        self._put(label, digest, preview(value))
        self.watch.content(label, value)
        return label

    def _reference(self, thing: Any) -> str | None:
        """The hook of digests: functions and classes in a constant become parts of their own."""
        return self._value("constant", thing) if isinstance(thing, type | types.FunctionType) else None

    def _put(self, label: str, digest: str, text: str) -> None:
        self.parts.setdefault(label, (digest, text))

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    # -- functions -----------------------------------------------------------------------------------------------

    def _function(self, label: str, function: types.FunctionType) -> None:
        code = function.__code__
        digest, text, note = _digest_of_code(code, sys.modules.get(function.__module__ or ""))
        self._put(label, digest, text)
        if note:
            self._note(note)
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            self.watch.attribute(function, name)
        of = "" if label == "source" else f" of {label}"
        uses = uses_of(code, function.__globals__.get("__package__"))
        meanings: dict[str, str] = {}
        self._defaults(function, of)
        self._closure(function, uses, of, meanings)
        if self._follow:
            self._globals(function.__globals__, uses, meanings)
        self._say(label, meanings)

    def _defaults(self, function: types.FunctionType, of: str) -> None:
        positional = function.__code__.co_varnames[: function.__code__.co_argcount]
        # From the end; a library that writes functions may give more defaults than there are parameters.
        defaults = function.__defaults__ or ()
        named = dict(zip(positional[::-1], defaults[::-1], strict=False))
        if len(defaults) > len(positional):
            named["others"] = defaults[: len(defaults) - len(positional)]
        named.update(function.__kwdefaults__ or {})
        meanings = {name: self._value(f"default {name}{of}", value) for name, value in named.items()}
        self._say(f"defaults{of}", meanings)

    def _closure(self, function: types.FunctionType, uses: Uses, of: str, meanings: dict[str, str]) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name in uses.changed:
                self._note(f"{name}{of} is changed by the code itself: it doesn't count")
                continue
            value = self.watch.cell(cell)
            if value is MISSING:
                meanings[name] = "nothing yet"
            elif isinstance(value, types.ModuleType):
                for chain in sorted(each for each in uses.free if each[0] == name):
                    self._chain(f"closure {name}{of}", chain, value, meanings)
            elif name == "__class__" and not self._follow:
                continue
            else:
                meanings[name] = self._value(f"closure {name}{of}", value)

    def _globals(self, where: dict[str, Any], uses: Uses, meanings: dict[str, str]) -> None:
        """What the global names mean, in whose place are `meanings` of what isn't a constant."""
        module = where.get("__name__", "")
        called = module_called(module)
        for chain in sorted(uses.chains):
            name = chain[0]
            value = where.get(name, MISSING)
            label = f"{_CONSTANT}{called}.{name}"
            self._looked_up.append((where, name, value, label))
            if value is MISSING:
                if not hasattr(builtins, name):
                    meanings[name] = "nothing yet"
                continue
            if name in uses.changed and not isinstance(value, _CODE):
                self._changed[label] = module, name
            else:
                self._chain(label, chain, value, meanings)
        for imported in sorted(uses.imports):
            self._import(imported, meanings)

    def _chain(self, label: str, chain: Chain, value: Any, meanings: dict[str, str]) -> None:
        """Follow `module.attribute...` as far as it leads through modules of the project."""
        path = chain[0]
        for name in chain[1:]:
            if not isinstance(value, types.ModuleType):
                break
            found = vars(value).get(name, MISSING)
            if not is_project_module(value) and not isinstance(found, types.ModuleType):
                break
            path, label = f"{path}.{name}", f"{_CONSTANT}{module_called(value.__name__)}.{name}"
            if found is MISSING:
                found = _submodule(value, name)
            else:
                self._looked_up.append((vars(value), name, found, label))
            if found is MISSING:
                meanings[path] = "nothing yet"
                return
            value = found
        if label not in self._changed:
            meanings[path] = self._value(label, value)

    def _import(self, imported: Import, meanings: dict[str, str]) -> None:
        """What a function imports when it runs: of the project it is imported now, as the function would."""
        if not is_project_name(imported.loaded):
            meanings[f"import {imported.start}"] = imported.start
            return
        try:
            importlib.import_module(imported.loaded)
        except Exception as error:
            meanings[f"import {imported.loaded}"] = f"fails: {type(error).__name__}"
            self._note(f"{imported.loaded} could not be imported, so it doesn't count: {type(error).__name__}: {error}")
            return
        source.remember_project()
        self._chain("module", (f"import {imported.start}", *imported.path), sys.modules[imported.start], meanings)

    def _say(self, label: str, meanings: dict[str, str]) -> None:
        """Which functions, classes and packages the names in a part mean; constants count for themselves."""
        named = {name: meaning for name, meaning in meanings.items() if not meaning.startswith(_CONSTANT)}
        if named:
            text = ", ".join(f"{name}={meaning}" for name, meaning in sorted(named.items()))
            self._put(f"names in {label}", digest_of(named), text[:80])

    def _settle_changed(self) -> None:
        """Of what reached code changes itself (caches, counters), only the text counts that it started from."""
        for label, (module, name) in self._changed.items():
            self.watch.forget_content(label)
            found = sys.modules.get(module)
            texts = [normal_source(node) for node in source.assignments(found, name)] if found is not None else []
            self.parts[label] = digest_of(texts), "as its module assigns it"
            self._note(f"{name} of {module} is changed by the code itself: it counts as its module assigns it")
        for where, name, value, label in self._looked_up:
            if label not in self._changed:
                self.watch.name(where.get, name, value)
        for thing in self._kept:  # last, because to look at its objects may add to a class: __slotnames__
            if isinstance(thing, type):
                self.watch.size(vars(thing))

    # -- classes and modules -------------------------------------------------------------------------------------

    def _class(self, label: str, kind: type) -> None:
        members = members_of(kind)
        functions = {name: functions_of(value) for name, value in members.items()}
        methods = [f for each in functions.values() for f in each if is_written(f) and self._counts(f)]
        for name in [n for n in members if n.startswith("__") and not any(f in methods for f in functions[n])]:
            del members[name]  # made by a library; which there are differs between versions of Python
        prefix = f"{kind.__qualname__}."
        own = [f for f in methods if f.__code__.co_qualname.startswith(prefix) and f.__module__ == kind.__module__]
        found = source.of_class(kind, [f.__code__ for f in own])
        if found is None:
            self._put(label, digest_of(sorted(members)), "no source: its members")
            if own:  # else its members say everything
                self._note(f"no source of {name_of(kind)} was found that matches what runs: its members count")
        else:
            nodes = [each.node for f in own if (each := source.of_code(f.__code__)) is not None]
            self._put(label, digest_of(normal_source(found.node, without=nodes)), found.first_line())
        bases = [base for base in kind.__bases__ if base is not object]
        meanings = {f"base {number}": self._value(label, base) for number, base in enumerate(bases)}
        if type(kind) is not type:
            meanings["metaclass"] = self._value(label, type(kind))
        module = sys.modules.get(kind.__module__)
        if found is not None and module is not None and self._follow:
            self._globals(vars(module), uses_of(found.code, asked(module, "__package__")), meanings)
        for name, value in members.items():
            self.watch.name(vars(kind).get, name, vars(kind)[name])
            said = self._member(f"attribute {name_of(kind)}.{name}", value, functions[name], found is not None)
            if said is not None:
                meanings[name] = said
        self._say(label, meanings)

    def _member(self, label: str, value: Any, functions: list[types.FunctionType], has_source: bool) -> str | None:
        said = None
        for function in functions:
            if not self._counts(function):
                for inner in inside_wrapper(function):
                    if not isinstance(inner, types.FunctionType) or is_written(inner):
                        self._value(label, inner)
                said = full_name(function)
            elif is_written(function):
                said = self._enqueue(f"method {name_of(function, of_code=True)}", function)
        if isinstance(value, type):
            return self._value(label, value)
        # What may change in place follows from the source of the class, and often is a cache.
        if not functions and (is_frozen(value) or not has_source):
            self._value(label, value)
        return said

    def _module(self, label: str, module: types.ModuleType) -> None:
        """A module of the project that is used as a whole: its text, and what its functions and classes use."""
        tree = source.of_module(module)
        if tree is None:
            self._put(label, digest_of(sorted(vars(module))), "no source: its names")
            self._note(f"no source of {module.__name__} was found: its functions and classes count")
        else:
            self._put(label, digest_of(normal_source(tree)), "its whole text")
        for value in list(vars(module).values()):
            if isinstance(value, types.FunctionType | type) and value.__module__ == module.__name__:
                self._value(label, value)


def _is_standard(function: Any) -> bool:
    return str(function.__module__).partition(".")[0] in sys.stdlib_module_names and not is_project(function)


def _submodule(package: types.ModuleType, name: str) -> Any:
    """What a module makes when it is asked, or a module in a package that nobody has imported yet."""
    found = getattr(package, name, MISSING)
    if found is MISSING and hasattr(package, "__path__"):
        try:
            return importlib.import_module(f"{package.__name__}.{name}")
        except ImportError:
            pass
    return found


_digested: Final[dict[int, tuple[types.CodeType, tuple[str, str, str]]]] = {}


def _digest_of_code(code: types.CodeType, module: types.ModuleType | None) -> tuple[str, str, str]:
    """Digest, preview and a note (or nothing) about one code object."""
    known = _digested.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    found = source.of_code(code, module)
    if found is not None:
        answer = digest_of(normal_source(found.node)), found.first_line(), ""
    else:
        note = f"no source of {code.co_qualname} was found that matches what runs: its byte code counts"
        answer = digest_of(normal_code(code)), f"byte code of {code.co_qualname}"[:80], note
    if len(_digested) > _LABELS_MAX:
        _digested.clear()
    _digested[id(code)] = code, answer
    return answer
