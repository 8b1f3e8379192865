"""Everything of the project that a function can reach, and a digest of it.

Each function, class and constant is a part with a digest of its own; the digest of the whole is that of the sorted
parts.  So circles need no care, and it doesn't matter where one enters them.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import logging
import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from dibs.digest import digest_of, digest_of_call, module_name, preview
from dibs.errors import Undigestible
from dibs.identity import source
from dibs.identity.normal import normal_code, normal_source
from dibs.identity.project import is_project, is_project_module
from dibs.identity.uses import Uses, uses_of

Parts = dict[str, tuple[str, str]]
"""Label -> (40 digits, a preview)."""

_MISSING: Final[Any] = object()
_PLAIN: Final = (int, float, str, bytes, bool, complex, type(None))
_STATE: Final = (*_PLAIN, list, dict, set, bytearray, deque)
"""What code may use to keep count of itself."""
_LABELS_MAX: Final = 20_000
_LOCK_TYPES: Final = frozenset({"lock", "RLock", "_RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore"})
_GENERATED: Final = ("<string>", "<attrs generated", "<frozen")


class Watched(NamedTuple):
    """A name that was looked up, and what it meant."""

    find: Callable[[str, Any], Any]
    name: str
    meant: Any


class Graph:
    """What is reachable from `root`."""

    def __init__(self, root: Any, follow_globals: bool = True) -> None:
        self.parts: Parts = {}
        self.notes: list[str] = []
        self.watched: list[Watched] = []
        self.changeable: list[tuple[str, Any, str]] = []
        """Label, object and digest of constants that might change in place."""
        self._follow = follow_globals
        self._labels: dict[int, str] = {}
        self._kept: list[Any] = []
        self._waiting: deque[tuple[str, Any]] = deque()
        self._root(root)
        while self._waiting:
            label, thing = self._waiting.popleft()
            if isinstance(thing, type):
                self._class(label, thing)
            elif isinstance(thing, types.ModuleType):
                self._module(label, thing)
            else:
                self._function(label, thing)

    def current(self) -> bool:
        """True while every name means what it meant, and no constant has changed."""
        for find, name, meant in self.watched:
            if find(name, _MISSING) is not meant:
                return False
        return all(digest_of(value, label, code_of=_name_of) == digest for label, value, digest in self.changeable)

    # -- what is reached -----------------------------------------------------------------------------------------

    def _root(self, root: Any) -> None:
        """The layers of what was decorated: decorators outside, the user's function inside."""
        layers = [root]
        while isinstance(layers[-1], types.FunctionType) and callable(getattr(layers[-1], "__wrapped__", None)):
            layers.append(layers[-1].__wrapped__)  # type: ignore[attr-defined]
            if len(layers) > 100 or layers[-1] in layers[:-1]:
                break
        if isinstance(layers[-1], types.FunctionType) and not is_project(layers[-1]) and is_project(root):
            layers = layers[:1]
        innermost = layers[-1]
        if isinstance(innermost, types.FunctionType):
            self._enqueue("source", innermost)
        for layer in layers[:-1] if innermost is not root else []:
            if is_project_code(layer):
                self._enqueue(f"decorator {_name(layer, of_code=True)}", layer)
            else:
                self._inside(layer)
        if not isinstance(innermost, types.FunctionType):
            self._value("source", innermost)

    def _enqueue(self, label: str, thing: Any) -> str:
        known = self._labels.get(id(thing))
        if known is not None:
            return known
        number = 2
        chosen = label
        while chosen in self._labels.values():  # lambdas share a name
            chosen = f"{label} ({number})"
            number += 1
        if len(self._labels) >= _LABELS_MAX:
            raise Undigestible(f"{label}: more than {_LABELS_MAX} functions and classes are in its reach: set deps=")
        self._labels[id(thing)] = chosen
        self._kept.append(thing)
        self._waiting.append((chosen, thing))
        return chosen

    def _value(self, label: str, value: Any) -> str:
        """Let whatever a name means count; returns what to say about it."""
        if isinstance(value, types.ModuleType):
            return self._enqueue(f"module {value.__name__}", value) if is_project_module(value) else value.__name__
        if isinstance(value, types.FunctionType):
            if is_project(value) or is_project_code(value):
                wrapped = getattr(value, "__wrapped__", None)
                if callable(wrapped):
                    self._value(label, wrapped)
                return self._enqueue(f"helper {_name(value, of_code=wrapped is not None)}", value)
            self._inside(value)
            return _name(value)
        if isinstance(value, type):
            return self._enqueue(f"class {_name(value)}", value) if is_project(value) else _name(value)
        if isinstance(value, staticmethod | classmethod):
            return self._value(label, value.__func__)
        if isinstance(value, property):
            return ", ".join(self._value(label, f) for f in (value.fget, value.fset, value.fdel) if f is not None)
        if isinstance(value, functools.cached_property):
            return self._value(label, value.func)
        if isinstance(value, types.MethodType):
            return f"{self._value(label, value.__func__)} of {self._value(f'{label}.__self__', value.__self__)}"
        if isinstance(value, functools.partial | functools.partialmethod):
            self._constant(f"{label} (bound arguments)", (value.args, value.keywords))
            return f"partial of {self._value(label, value.func)}"
        kind = type(value)
        if callable(getattr(value, "__wrapped__", None)):  # a memoized function, functools.lru_cache
            return f"{_name(kind)} of {self._value(label, value.__wrapped__)}"
        if _counts_by_name(value, kind):
            return _name(kind) if not isinstance(value, types.BuiltinFunctionType) else _name(value)
        return self._constant(label, value)

    def _constant(self, label: str, value: Any) -> str:
        met: dict[type, None] = {}
        try:
            digest = digest_of_call(b"", [(label, value)], code_of=self._reference, met=met)
        except Undigestible as error:
            raise Undigestible(
                f"{error}\nIt belongs to the code of a memoized function. Pass it as an argument that is ignored, "
                "give its class a __dibs_key__, or count less: deps=\"function\", or version= in place of the code"
            ) from error
        for kind in met:
            if is_project(kind):
                self._enqueue(f"class {_name(kind)}", kind)
        self._put(label, digest, preview(value))
        if type(value) not in _PLAIN:
            self.changeable.append((label, value, digest_of(value, label, code_of=_name_of)))
        return label

    def _reference(self, thing: Any) -> str | None:
        """The hook of digests: functions and classes in a constant become parts of their own."""
        return self._value("constant", thing) if is_project(thing) or is_project_code(thing) else None

    def _put(self, label: str, digest: str, text: str) -> None:
        self.parts.setdefault(label, (digest, text))

    # -- parts ---------------------------------------------------------------------------------------------------

    def _function(self, label: str, function: types.FunctionType) -> None:
        code = function.__code__
        module = sys.modules.get(function.__module__ or "")
        digest, text, note = _digest_of_code(code, module)
        self._put(label, digest, text)
        if note and note not in self.notes:
            self.notes.append(note)
        of = "" if label == "source" else f" of {label}"
        self.watched.append(Watched(functools.partial(getattr, function), "__code__", code))
        uses = uses_of(code, function.__globals__.get("__package__"))
        self._defaults(function, of)
        self._closure(function, uses, of)
        if self._follow:
            self._globals(label, function, uses)

    def _defaults(self, function: types.FunctionType, of: str) -> None:
        positional = function.__code__.co_varnames[: function.__code__.co_argcount]
        defaults = function.__defaults__ or ()
        named = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
        named.update(function.__kwdefaults__ or {})
        for name, value in named.items():
            self._value(f"default {name}{of}", value)

    def _closure(self, function: types.FunctionType, uses: Uses, of: str) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            try:
                value = cell.cell_contents
            except ValueError:
                continue  # not bound yet
            self.watched.append(Watched(_in_cell(cell), name, value))
            if name in uses.changed and isinstance(value, _STATE):
                self._note_changed(name)
            elif name != "__class__":
                self._value(f"closure {name}{of}", value)

    def _globals(self, label: str, function: types.FunctionType, uses: Uses) -> None:
        where = function.__globals__
        module = module_name(function)
        meanings: dict[str, str] = {}
        for chain in sorted(uses.chains):
            name = chain[0]
            value = where.get(name, _MISSING)
            if value is _MISSING and hasattr(builtins, name):
                continue
            self.watched.append(Watched(where.get, name, value))
            if value is _MISSING:
                meanings[name] = "nothing yet"
            elif name in uses.changed and isinstance(value, _STATE):
                self._note_changed(name)
            else:
                self._chain(f"constant {module}.{name}", list(chain), value, meanings)
        for imported, taken in sorted(uses.imports):
            self._import(imported, taken, meanings)
        named = {name: meaning for name, meaning in meanings.items() if not meaning.startswith("constant ")}
        if named:
            text = ", ".join(f"{name}={meaning}" for name, meaning in sorted(named.items()))
            self._put(f"names in {label}", digest_of(named), text[:80])

    def _chain(self, label: str, chain: list[str], value: Any, meanings: dict[str, str]) -> None:
        """Follow `module.attribute...` as far as it leads through modules."""
        path = chain[0]
        for name in chain[1:]:
            if not isinstance(value, types.ModuleType):
                break
            found = getattr(value, name, _MISSING)
            if not is_project_module(value) and not is_project_module(sys.modules.get(f"{value.__name__}.{name}")):
                meanings[path] = value.__name__
                return
            self.watched.append(Watched(vars(value).get, name, vars(value).get(name, _MISSING)))
            label, path, value = f"constant {value.__name__}.{name}", f"{path}.{name}", found
            if found is _MISSING:
                meanings[path] = "nothing yet"
                return
        meanings[path] = self._value(label, value)

    def _import(self, name: str, taken: tuple[str, ...], meanings: dict[str, str]) -> None:
        """What a function imports when it runs: of the project it is imported now, as the function would."""
        if not _may_be_project(name):
            meanings[f"import {name}"] = name
            return
        try:
            module = importlib.import_module(name)
        except Exception as error:
            meanings[f"import {name}"] = f"fails: {type(error).__name__}"
            return
        source.remember_project()
        if not taken or "*" in taken:
            meanings[f"import {name}"] = self._value(f"module {name}", module)
        for attribute in taken:
            if attribute != "*":
                found = getattr(module, attribute, _MISSING)
                if found is _MISSING:
                    try:
                        found = importlib.import_module(f"{name}.{attribute}")
                    except ImportError:
                        meanings[f"import {name}.{attribute}"] = "nothing yet"
                        continue
                self.watched.append(Watched(functools.partial(getattr, module), attribute, found))
                meanings[f"import {name}.{attribute}"] = self._value(f"constant {name}.{attribute}", found)

    def _note_changed(self, name: str) -> None:
        note = f"{name} is changed by the code itself, so it doesn't count as an ingredient"
        if note not in self.notes:
            self.notes.append(note)

    def _class(self, label: str, kind: type) -> None:
        members = {name: value for name, value in vars(kind).items() if not _is_made_by_python(name, value)}
        functions = [f for value in members.values() for f in _functions_of(value)]
        own = [f for f in functions if _is_written(f) and f.__module__ == kind.__module__]
        found = source.of_class(kind, [f.__code__ for f in own if f.__qualname__.startswith(kind.__qualname__)])
        if found is not None:
            self._put(label, digest_of(normal_source(found.node)), found.first_line())
        else:
            self._put(label, digest_of(sorted(members)), "its source was not found")
        bases: list[str] = [self._value(label, base) for base in kind.__bases__ if base is not object]
        if type(kind) is not type:
            bases.append(self._value(label, type(kind)))
        self._put(f"bases of {label}", digest_of(bases), ", ".join(bases)[:80]) if bases else None
        for name, value in members.items():
            self.watched.append(Watched(vars(kind).get, name, value))
            inside = _functions_of(value)
            for function in inside:
                if function in own and self._follow:
                    self._enqueue(f"method {_name(function)}", function)
            if isinstance(value, type):
                self._value(label, value)
            elif not inside:
                self._attribute(f"attribute {_name(kind)}.{name}", value, found is not None)

    def _attribute(self, label: str, value: Any, has_source: bool) -> None:
        """A class attribute; what has no digest still counts by the source that makes it."""
        try:
            self._value(label, value)
        except Undigestible:
            if not has_source:
                raise

    def _module(self, label: str, module: types.ModuleType) -> None:
        """A module of the project that is used as a whole: its text, and what its functions and classes use."""
        tree = source.of_module(module)
        if tree is None:
            self.notes.append(f"the source of {module.__name__} was not found: only its functions count")
            self._put(label, digest_of(sorted(vars(module))), "no source")
        else:
            self._put(label, digest_of(normal_source(tree)), "its whole text")
        for value in list(vars(module).values()):
            if isinstance(value, types.FunctionType | type) and value.__module__ == module.__name__:
                self._value(label, value)

    def _inside(self, function: types.FunctionType) -> None:
        """Of a wrapper from a package, only what it wraps counts: functions in its closure."""
        wrapped = getattr(function, "__wrapped__", None)
        candidates = [wrapped] if wrapped is not None else []
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:
                continue
            candidates.extend(value.values() if isinstance(value, Mapping) else [value])
        for value in candidates:
            if isinstance(value, types.FunctionType | type) and id(value) not in self._labels and is_project(value):
                self._value("constant", value)


def _is_written(function: types.FunctionType) -> bool:
    """False for what a library generates from the rest of a class."""
    return not function.__code__.co_filename.startswith(_GENERATED)


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


_digested: Final[dict[int, tuple[types.CodeType, tuple[str, str, str]]]] = {}


def is_project_code(value: Any) -> bool:
    """True for a function whose code the project wrote, whatever functools.wraps says about it."""
    code = getattr(value, "__code__", None)
    if not isinstance(code, types.CodeType):
        return False
    where = value.__globals__.get("__name__") if isinstance(value, types.FunctionType) else None
    module = sys.modules.get(where or "")
    return is_project_module(module) if module is not None else is_project(value)


def _name(thing: Any, of_code: bool = False) -> str:
    """The full name, without what tells only that it stands inside a function."""
    qualname = thing.__code__.co_qualname if of_code else getattr(thing, "__qualname__", type(thing).__qualname__)
    where = module_name(thing)
    if of_code:
        where = thing.__globals__.get("__name__", where)
        where = module_name(types.SimpleNamespace(__module__=where))
    return f"{where}.{qualname}".replace(".<locals>", "")


def _name_of(thing: Any) -> str | None:
    return _name(thing)


def _in_cell(cell: Any) -> Callable[[str, Any], Any]:
    def find(name: str, default: Any) -> Any:
        try:
            return cell.cell_contents
        except ValueError:
            return default

    return find


def _counts_by_name(value: Any, kind: type) -> bool:
    """True for objects that are tools rather than ingredients."""
    if isinstance(value, logging.Logger | logging.LoggerAdapter | types.BuiltinFunctionType):
        return True
    root = (kind.__module__ or "").partition(".")[0]
    return (root == "dibs" and not hasattr(value, "__dibs_key__")) or (
        root in ("_thread", "threading") and kind.__name__ in _LOCK_TYPES
    ) or root in ("typing", "typing_extensions")


def _may_be_project(name: str) -> bool:
    """Whether a module that may not be loaded yet belongs to the project; nothing is imported to find out."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        return is_project_module(loaded)
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names or root == "dibs":
        return False
    if root in sys.modules:
        return is_project_module(sys.modules[root])
    from importlib.machinery import PathFinder

    spec = PathFinder.find_spec(root)
    if spec is None:
        return False
    made = types.ModuleType(root)
    if spec.origin is not None:
        made.__file__ = spec.origin
    elif spec.submodule_search_locations is not None:
        made.__path__ = list(spec.submodule_search_locations)
    return is_project_module(made)


def _functions_of(value: Any) -> list[types.FunctionType]:
    """The functions in a member of a class."""
    if isinstance(value, property):
        candidates: list[Any] = [value.fget, value.fset, value.fdel]
    elif isinstance(value, staticmethod | classmethod):
        candidates = [value.__func__]
    elif isinstance(value, functools.cached_property | functools.partialmethod):
        candidates = [value.func]
    else:
        candidates = [value]
    found: list[types.FunctionType] = []
    for candidate in candidates:
        while candidate is not None:  # ends at the innermost layer
            if isinstance(candidate, types.FunctionType):
                found.append(candidate)
            candidate = getattr(candidate, "__wrapped__", None)
            if len(found) > 100:
                break
    return found


def _is_made_by_python(name: str, value: Any) -> bool:
    """What the class statement makes by itself, or a library: it follows from the rest."""
    if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
        return True
    if name.startswith("__") and name.endswith("__"):
        return not isinstance(value, types.FunctionType | staticmethod | classmethod)
    return name.startswith("_abc_")
