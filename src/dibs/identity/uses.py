"""Which names a code object looks up outside itself: globals and what is asked of them, imports, free variables."""

from __future__ import annotations

import dis
import importlib.util
import types
from typing import Final, NamedTuple

from dibs.identity.normal import codes_in

_GLOBAL_LOADS: Final = ("LOAD_GLOBAL", "LOAD_NAME")
_FREE_LOADS: Final = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_ATTRIBUTE_LOADS: Final = ("LOAD_ATTR", "LOAD_METHOD")
_STORES: Final = ("STORE_GLOBAL", "DELETE_GLOBAL")
_CHANGING: Final = frozenset({
    "add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "pop", "popleft", "remove",
    "setdefault", "update",
})  # fmt: skip


class Uses(NamedTuple):
    """What code uses of its surroundings."""

    chains: frozenset[tuple[str, ...]]
    """A global name, and the attributes that are asked of it at once."""
    imports: frozenset[tuple[str, tuple[str, ...]]]
    """Modules that are imported on the way, and what is taken out of them; nothing: the module itself."""
    changed: frozenset[str]
    """Names whose objects the code itself changes or binds anew: results of it rather than ingredients."""


def uses_of(code: types.CodeType, package: str | None) -> Uses:
    """`package` is what relative imports start from."""
    chains: set[tuple[str, ...]] = set()
    imports: set[tuple[str, tuple[str, ...]]] = set()
    changed: set[str] = set()
    for each in codes_in(code):
        _collect(each, package, chains, imports, changed)
    return Uses(frozenset(chains), frozenset(imports), frozenset(changed))


def _collect(
    code: types.CodeType,
    package: str | None,
    chains: set[tuple[str, ...]],
    imports: set[tuple[str, tuple[str, ...]]],
    changed: set[str],
) -> None:
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("PUSH_NULL", "CACHE", "EXTENDED_ARG")]
    for number, step in enumerate(steps):
        name = step.argval
        if step.opname in _GLOBAL_LOADS or step.opname in _FREE_LOADS:
            attributes: list[str] = []
            for later in steps[number + 1 :]:
                if later.opname not in _ATTRIBUTE_LOADS:
                    break
                attributes.append(later.argval)
            if attributes and attributes[0] in _CHANGING:
                changed.add(name)
            if step.opname in _GLOBAL_LOADS:
                chains.add((name, *attributes))
        elif step.opname in _STORES:
            changed.add(name)
        elif step.opname == "IMPORT_NAME" and number >= 2:
            level, taken = steps[number - 2].argval, steps[number - 1].argval
            module = _absolute(name, level if isinstance(level, int) else 0, package)
            if module is not None:
                imports.add((module, tuple(taken or ())))
        elif step.opname == "STORE_SUBSCR" and number >= 2:
            container = steps[number - 2]  # NAME[key] = value, with a key that is one step
            if container.opname in (*_GLOBAL_LOADS, *_FREE_LOADS):
                changed.add(container.argval)


def _absolute(name: str, level: int, package: str | None) -> str | None:
    if not level:
        return name
    try:
        return importlib.util.resolve_name("." * level + name, package)
    except (ImportError, ValueError, TypeError):
        return None
