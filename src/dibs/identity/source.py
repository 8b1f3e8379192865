"""The source that running code was made of, even when its file says something else by now.

Files are read once, when they are first met: at the latest when a function that may use them is memoized.  Whether a
text is what runs is found out by compiling it and comparing code objects, so a file that was edited in
between is noticed, and then the code object itself counts.
"""

from __future__ import annotations

import ast
import linecache
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from dibs.identity.normal import codes_in, same_code
from dibs.identity.project import is_project_module

_TEXTS_MAX = 10_000
_SIZE_MAX = 5_000_000
_texts: dict[str, list[_Text]] = {}
_modules: set[str] = set()


class _Text:
    """One text that a file had, with what it compiles to."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self._path = path
        self._parsed: tuple[ast.Module, dict[str, list[types.CodeType]]] | None = None

    def parsed(self) -> tuple[ast.Module, dict[str, list[types.CodeType]]] | None:
        """Its syntax tree, and its code objects by qualified name; None when it is no Python."""
        if self._parsed is None:
            try:
                tree = ast.parse(self.text)
                compiled = compile(tree, self._path, "exec", dont_inherit=True)
            except (SyntaxError, ValueError):
                return None
            codes: dict[str, list[types.CodeType]] = {}
            for code in codes_in(compiled):
                codes.setdefault(code.co_qualname, []).append(code)
            self._parsed = tree, codes
        return self._parsed


class Found(NamedTuple):
    """Where the source of something stands."""

    node: ast.AST
    text: str

    def first_line(self) -> str:
        """The line of the definition, for people."""
        line: int = getattr(self.node, "lineno", 1)
        lines = self.text.splitlines()
        return lines[line - 1].strip()[:80] if line <= len(lines) else ""


def remember_project() -> None:
    """Read the files of all modules of the project that are loaded now, before anybody edits them."""
    for name, module in list(sys.modules.items()):
        if name in _modules or not isinstance(module, types.ModuleType):
            continue
        _modules.add(name)
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path.endswith(".py") and path not in _texts and is_project_module(module):
            _remember(path)


def of_code(code: types.CodeType, module: types.ModuleType | None = None) -> Found | None:
    """The definition that `code` was compiled from; None when no known text has it."""
    for text in _texts_of(code.co_filename, module):
        parsed = text.parsed()
        if parsed is None:
            continue
        tree, codes = parsed
        for candidate in codes.get(code.co_qualname, ()):
            if same_code(code, candidate):
                node = _node_of(tree, candidate)
                if node is not None:
                    return Found(node, text.text)
    return None


def of_class(kind: type, codes: list[types.CodeType]) -> Found | None:
    """The definition of a class; `codes` are those of its methods, by which the right one is known."""
    module = sys.modules.get(kind.__module__)
    paths = [code.co_filename for code in codes] or [str(getattr(module, "__file__", ""))]
    path = kind.__qualname__.split(".")
    for text in _texts_of(paths[0], module):
        parsed = text.parsed()
        if parsed is None:
            continue
        lines = {code.co_firstlineno for code in codes}
        fallback = None
        for node in _classes(parsed[0], path):
            fallback = node
            inside = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            if lines and all(line in inside for line in lines):
                return Found(node, text.text)
        if fallback is not None and not lines:
            return Found(fallback, text.text)
    return None


def of_module(module: types.ModuleType) -> ast.Module | None:
    """The whole text of a module."""
    for text in _texts_of(str(getattr(module, "__file__", "")), module):
        parsed = text.parsed()
        if parsed is not None:
            return parsed[0]
    return None


def _texts_of(path: str, module: types.ModuleType | None) -> Iterator[_Text]:
    """What `path` is known to have said, the earliest first, and then what it says now."""
    known = _texts.get(path)
    if known is None:
        known = _remember(path, module)
    yield from list(known)
    now = _read(path, module)
    if now is not None and all(text.text != now for text in known):
        text = _Text(now, path)
        if len(known) < _TEXTS_MAX:
            known.append(text)
        yield text


def _remember(path: str, module: types.ModuleType | None = None) -> list[_Text]:
    if len(_texts) >= _TEXTS_MAX:
        _texts.clear()
    text = _read(path, module)
    found = _texts[path] = [_Text(text, path)] if text is not None else []
    return found


def _read(path: str, module: types.ModuleType | None) -> str | None:
    """The text behind a file name: of a file, of a cell of a notebook, of a module in an archive."""
    if path.startswith("<"):
        return "".join(linecache.getlines(path)) or None
    try:
        if os.path.getsize(path) > _SIZE_MAX:
            return None
        import tokenize

        with tokenize.open(path) as file:
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        loader: Any = getattr(getattr(module, "__spec__", None), "loader", None)
        try:
            text = loader.get_source(module.__name__) if module is not None else None
        except (AttributeError, ImportError, OSError):
            text = None
        return text or "".join(linecache.getlines(path)) or None


def _node_of(tree: ast.Module, code: types.CodeType) -> ast.AST | None:
    if code.co_name == "<lambda>":
        return _lambda_of(tree, code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if first == code.co_firstlineno:
                return node
    return None


def _lambda_of(tree: ast.Module, code: types.CodeType) -> ast.Lambda | None:
    """The innermost lambda whose body holds every instruction of `code`."""
    spans = [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in code.co_positions()
        if line is not None and column is not None and end_line is not None and end_column is not None
    ]
    spans = [span for span in spans if span[0] != span[1]]
    if not spans:
        return None
    first, last = min(span[0] for span in spans), max(span[1] for span in spans)
    found: ast.Lambda | None = None
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            body = node.body
            start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
            inside = start <= first and last <= end
            if inside and (found is None or start >= (found.body.lineno, found.body.col_offset)):
                found = node
    return found


def _classes(tree: ast.Module, path: list[str]) -> Iterator[ast.ClassDef]:
    """The classes of that qualified name, in the order of the text."""
    waiting: list[tuple[ast.AST, list[str]]] = [(tree, path)]
    while waiting:
        node, left = waiting.pop(0)
        for child in ast.iter_child_nodes(node):
            name = getattr(child, "name", None)
            if isinstance(child, ast.ClassDef) and [name] == left:
                yield child
            elif isinstance(child, ast.ClassDef) and name == left[0]:
                waiting.append((child, left[1:]))
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                if name == left[0] and left[1:2] == ["<locals>"]:
                    waiting.append((child, left[2:]))
            elif not isinstance(child, ast.ClassDef):
                waiting.append((child, left))
