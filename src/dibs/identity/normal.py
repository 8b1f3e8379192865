"""Code in a form that is the same for whatever doesn't change what it does.

Source becomes the text of its syntax tree: comments, formatting, quotes, docstrings and positions are gone, and what
one minor version of Python adds to its tree (empty lists, absent fields, texts cut in two) doesn't show.  Where there
is no source, the code object itself takes its place, with its constants in an order that no hash seed decides.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Collection, Iterator
from typing import Any, Final

_NO_MEANING: Final = frozenset(
    {"lineno", "col_offset", "end_lineno", "end_col_offset", "ctx", "type_comment", "type_ignores", "kind"}
)
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
_MEMOIZE: Final = "memoize"
_REWRITTEN: Final = ("@py_assert", "@pytest_ar")
_OPTIMIZED: Final = 0x1
"""The flag of code objects of functions."""
_FLAGS: Final = 0x3FF
"""Without those of `from __future__`, which a notebook keeps from one cell to the next."""


def normal_source(node: ast.AST, without: Collection[ast.AST] = ()) -> str:
    """One line that says what the code of `node` does; `without` are nodes that count elsewhere.

    Not recursive: a long chain of calls or `elif` is nested as deep as it is long.
    """
    left_out = set(map(id, without))
    pieces: list[str] = []
    waiting: list[object] = [node]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            pieces.append(item)
        elif isinstance(item, list):
            waiting.append("]")
            waiting.extend(part for part in reversed(item) if id(part) not in left_out)
            waiting.append("[")
        elif isinstance(item, ast.Constant):
            # Not by value alone: 1, 1.0 and True are equal, and are different code.
            pieces.append(f"{type(item.value).__name__}:{item.value!a}")
        elif isinstance(item, ast.AST):
            waiting.append(")")
            for name, value in sorted(_fields(item), reverse=True):
                waiting.extend((value if isinstance(value, ast.AST | list) else f"={value!a}", name))
            waiting.append(f"({type(item).__name__}")
        else:  # an absent value among present ones, a name of `global`
            pieces.append(ascii(item))
    return " ".join(pieces)


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    for name, value in ast.iter_fields(node):
        if name in _NO_MEANING or value is None:
            continue
        if name == "body" and isinstance(node, _DEFINITIONS):
            value = _without_docstring(value)
        elif name == "decorator_list":
            value = _below_memoize(value)
        elif name == "values" and isinstance(node, ast.JoinedStr):
            value = _joined(value)
        if value != []:
            yield name, value


def _joined(parts: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, with neighbouring texts in one: versions of Python cut them differently."""
    joined: list[ast.expr] = []
    for part in parts:
        if isinstance(part, ast.Constant):
            if not part.value:
                continue
            if joined and isinstance(joined[-1], ast.Constant):
                joined[-1] = ast.Constant(f"{joined[-1].value}{part.value}")  # type: ignore[str-bytes-safe]
                continue
        joined.append(part)
    return joined


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


def normal_code(code: types.CodeType) -> tuple[object, ...]:
    """What a code object does, without where it stands and its docstring; for one minor version of Python only."""
    constants = list(code.co_consts)
    if constants and isinstance(constants[0], str) and code.co_flags & _OPTIMIZED and not code.co_name.startswith("<"):
        constants[0] = None
    if "__firstlineno__" in code.co_names:  # a class body, from Python 3.13 on
        constants = [0 if value == code.co_firstlineno and type(value) is int else value for value in constants]
    return (
        code.co_name,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS),
        code.co_code,
        code.co_exceptiontable,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        tuple(_normal_constant(value) for value in constants),
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
    if any(name.startswith(_REWRITTEN) for name in (*one.co_varnames, *one.co_names)):
        return one.co_name == other.co_name  # pytest has rewritten its assertions; there is nothing to compare
    return one == other or normal_code(one) == normal_code(other)


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and all that are defined in it, at any depth."""
    waiting = [code]
    while waiting:
        found = waiting.pop()
        yield found
        waiting.extend(constant for constant in found.co_consts if isinstance(constant, types.CodeType))
