"""Which names a code object looks up outside itself: globals and what is asked of them, imports, free variables."""

from __future__ import annotations

import dis
import importlib.util
import types
from functools import lru_cache
from typing import Final, NamedTuple

from dibs.identity.normal import codes_in

_GLOBAL_LOADS: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_FREE_LOADS: Final = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_OTHER_LOADS: Final = "LOAD_FAST"  # and what it is combined and specialised to
_ATTRIBUTE_LOADS: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_STORES: Final = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_STORES_OF_ALIASES: Final = frozenset({"STORE_FAST", "STORE_DEREF", "STORE_GLOBAL", "STORE_NAME"})
_UNSEEN: Final = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL", "RESUME", "MAKE_CELL"})
_CHANGING: Final = frozenset({
    "add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "pop", "popitem", "popleft",
    "remove", "setdefault", "update",
})  # fmt: skip

Chain = tuple[str, ...]


class Import(NamedTuple):
    """A module that is imported on the way, and what is asked of it."""

    loaded: str
    """The module that the statement loads."""
    start: str
    """The module that its name means: `a` for `import a.b`."""
    path: Chain
    """The attributes that are asked of that; none: the module as a whole."""


class Uses(NamedTuple):
    """What code uses of its surroundings."""

    chains: frozenset[Chain]
    """A global name, and the attributes that are asked of it at once."""
    free: frozenset[Chain]
    """The same of names that an enclosing function keeps for this one."""
    imports: frozenset[Import]
    changed: frozenset[str]
    """Names that the code itself binds anew, or whose objects it changes: results of it rather than ingredients."""


@lru_cache(maxsize=10_000)
def uses_of(code: types.CodeType, package: str | None) -> Uses:
    """`package` is what relative imports start from."""
    found = _Collected(package, frozenset(code.co_freevars))
    for each in codes_in(code):
        found.look_at(each)
    return found.uses()


class _Collected:
    def __init__(self, package: str | None, free_names: frozenset[str]) -> None:
        self._package = package
        self._free_names = free_names
        self._chains: set[Chain] = set()
        self._others: set[Chain] = set()
        """Chains of other names; locals may have been imported."""
        self._aliases: dict[str, set[Import]] = {}
        self._changed: set[str] = set()

    def uses(self) -> Uses:
        imports: set[Import] = set()
        chains = set(self._chains)
        asked = self._chains | self._others
        for alias, sources in self._aliases.items():
            paths = {chain[1:] for chain in asked if chain[0] == alias} or {()}
            imports.update(each._replace(path=each.path + path) for each in sources for path in paths)
            chains = {chain for chain in chains if chain[0] != alias}
        free = frozenset(chain for chain in self._others if chain[0] in self._free_names)
        return Uses(frozenset(chains), free, frozenset(imports), frozenset(self._changed))

    def look_at(self, code: types.CodeType) -> None:
        steps = [step for step in dis.get_instructions(code) if step.opname not in _UNSEEN]
        cells = {*code.co_cellvars, *code.co_freevars}
        for number, step in enumerate(steps):
            kind = step.opname
            if kind in _GLOBAL_LOADS:
                self._load(step.argval, steps[number + 1 :], self._chains)
            elif kind in _FREE_LOADS:
                self._load(step.argval, steps[number + 1 :], self._others)
            elif kind.startswith(_OTHER_LOADS) and step.argval is not None:
                names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
                for name in set(names) - cells:  # a cell as such is handed to a function inside, which loads from it
                    self._load(name, steps[number + 1 :] if name == names[-1] else [], self._others)
            elif kind in _STORES or (kind == "STORE_DEREF" and step.argval in self._free_names):
                self._changed.add(step.argval)
            elif kind == "IMPORT_NAME":
                level, taken = steps[number - 2].argval, steps[number - 1].argval
                self._import(step.argval, level, taken, steps[number + 1 :])
            elif kind in ("STORE_SUBSCR", "DELETE_SUBSCR") and number >= 2:
                container = steps[number - 2]  # NAME[key] = value, with a key that is one step
                if container.opname in _GLOBAL_LOADS or container.argval in self._free_names:
                    self._changed.add(container.argval)

    def _load(self, name: str, following: list[dis.Instruction], chains: set[Chain]) -> None:
        attributes: list[str] = []
        for later in following:
            if later.opname not in _ATTRIBUTE_LOADS:
                break
            attributes.append(later.argval)
        if name.startswith("__") and name.endswith("__"):
            return  # of the module itself, and of no meaning here: `__name__`, `__file__`
        lasting = chains is self._chains or name in self._free_names
        if lasting and attributes and attributes[0] in _CHANGING:
            self._changed.add(name)
        chains.add((name, *attributes))

    def _import(self, name: str, level: int, taken: Chain | None, following: list[dis.Instruction]) -> None:
        module = _absolute(name, level, self._package)
        if module is None:
            return
        if taken:
            stores = [step.argval for step in following if step.opname in _STORES_OF_ALIASES][: len(taken)]
            for attribute, alias in zip(taken, stores, strict=False):
                self._aliases.setdefault(alias, set()).add(Import(module, module, (attribute,)))
            return
        as_alias = following[0].opname == "IMPORT_FROM"
        alias = next((step.argval for step in following if step.opname in _STORES_OF_ALIASES), None)
        start = module if as_alias or "." not in module else module.partition(".")[0]
        if alias is not None:
            self._aliases.setdefault(alias, set()).add(Import(module, start, ()))


def _absolute(name: str, level: int, package: str | None) -> str | None:
    if not level:
        return name
    try:
        return importlib.util.resolve_name("." * level + name, package)
    except (ImportError, ValueError, TypeError):
        return None
