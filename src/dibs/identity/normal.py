"""Code in a form that is the same for whatever doesn't change what it does.

Source becomes a list of its syntax tree: comments, formatting, quotes, docstrings and positions are gone, and what one
minor version of Python adds to its tree (empty lists, absent fields) doesn't show.  Where there is no source, the
code object itself takes its place, with its constants in an order that no hash seed decides.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator
from typing import Any, Final

_POSITIONS: Final = ("lineno", "col_offset", "end_lineno", "end_col_offset", "ctx", "type_comment", "kind")
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
_MEMOIZE: Final = "memoize"
_REWRITTEN: Final = ("@py_assert", "@pytest_ar")


def normal_source(node: ast.AST) -> object:
    """Nested tuples of plain values that say what the code of `node` does."""
    if isinstance(node, ast.Constant):
        # Not by value alone: 1, 1.0 and True are equal, and are different code.
        return "Constant", type(node.value).__name__, _constant(node.value)
    if isinstance(node, ast.JoinedStr):
        return "JoinedStr", tuple(_joined(node.values))
    fields: list[tuple[str, object]] = []
    for name, value in ast.iter_fields(node):
        if name in _POSITIONS:
            continue
        if name == "body" and isinstance(node, _DEFINITIONS):
            value = _without_docstring(value)
        elif name == "decorator_list":
            value = _below_memoize(value)
        if isinstance(value, list):
            value = tuple(normal_source(item) if isinstance(item, ast.AST) else item for item in value)
        elif isinstance(value, ast.AST):
            value = normal_source(value)
        if value is not None and value != ():
            fields.append((name, value))
    return type(node).__name__, tuple(sorted(fields, key=lambda field: field[0]))


def _constant(value: Any) -> object:
    if isinstance(value, str | bytes | bool | int | float | complex) or value is None:
        return value
    return repr(value)  # only `...` is left, in source


def _joined(parts: list[ast.expr]) -> Iterator[object]:
    """The parts of an f-string, with neighbouring texts in one: versions of Python cut them differently."""
    text = ""
    for part in parts:
        if isinstance(part, ast.Constant):
            text += str(part.value)
            continue
        if text:
            yield text
            text = ""
        yield normal_source(part)
    if text:
        yield text


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:]
    return body


def _below_memoize(decorators: list[ast.expr]) -> list[ast.expr]:
    """Without our own decorator, and those above it, which get what it returns."""
    for number, decorator in reversed(list(enumerate(decorators))):
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        if getattr(called, "attr", getattr(called, "id", "")) == _MEMOIZE:
            return decorators[number + 1 :]
    return decorators


def normal_code(code: types.CodeType) -> object:
    """What a code object does, without where it stands; only for one minor version of Python."""
    return (
        code.co_name,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
        code.co_code,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        tuple(_normal_constant(value) for value in code.co_consts),
    )


def _normal_constant(value: Any) -> object:
    if isinstance(value, types.CodeType):
        return normal_code(value)
    if isinstance(value, tuple):
        return ("tuple", *map(_normal_constant, value))
    if isinstance(value, frozenset):
        return ("frozenset", *sorted(map(repr, map(_normal_constant, value))))
    return type(value).__name__, repr(value)


def same_code(one: types.CodeType, other: types.CodeType) -> bool:
    """True when both do the same, wherever they stand."""
    if one == other:
        return True
    if any(name.startswith(_REWRITTEN) for name in (*one.co_varnames, *one.co_names)):
        return one.co_name == other.co_name  # pytest has rewritten its assertions; there is nothing to compare
    return normal_code(one) == normal_code(other)


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and all that are defined in it, at any depth."""
    waiting = [code]
    while waiting:
        found = waiting.pop()
        yield found
        waiting.extend(constant for constant in found.co_consts if isinstance(constant, types.CodeType))
