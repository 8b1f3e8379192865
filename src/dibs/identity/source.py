"""The source that running code was made of, even when its file says something else by now.

Files are read once, when they are first met: at the latest when a function that may use them is memoized.  Whether a
text is what runs is found out by compiling it and comparing code objects, so that a file that was edited in between is
noticed; then the code object itself counts.
"""

from __future__ import annotations

import ast
import linecache
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from dibs.identity.normal import codes_in, same_code
from dibs.identity.project import is_project_module

_FILES_MAX: Final = 10_000
_TEXTS_MAX: Final = 20
"""Texts that are kept of one file; the first is the likeliest, then the latest."""
_SIZE_MAX: Final = 5_000_000
_texts: Final[dict[str, list[_Text]]] = {}
_modules: Final[set[tuple[str, str]]] = set()

Position = tuple[int, int]


class _Text:
    """One text that a file had, with what it compiles to."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self._path = path
        self._parsed: tuple[ast.Module, dict[str, list[types.CodeType]]] | None = None

    def parsed(self) -> tuple[ast.Module, dict[str, list[types.CodeType]]] | None:
        """Its syntax tree, and its code objects by qualified name; None when it is no Python."""
        if self._parsed is None:
            import warnings

            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # whoever imported it has been told
                    tree = ast.parse(self.text)
                    compiled = compile(self.text, self._path, "exec", dont_inherit=True)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
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
    code: types.CodeType
    """What it compiles to; for a class, its body."""

    def first_line(self) -> str:
        """The line of the definition, for people."""
        lines = self.text.splitlines()
        line = getattr(self.node, "lineno", 1)
        return lines[line - 1].strip()[:80] if line <= len(lines) else ""


def remember_project() -> None:
    """Read the files of all modules of the project that are loaded now, before anybody edits them."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if not isinstance(path, str) or (name, path) in _modules or not isinstance(module, types.ModuleType):
            continue
        _modules.add((name, path))
        if path.endswith(".py") and path not in _texts and is_project_module(module):
            _remember(path, module)


def remember(code: types.CodeType) -> None:
    """Read what the file of this code says now: of a cell of a notebook, or of a module that was loaded again."""
    if code.co_filename in _texts:
        for _ in _texts_of(code.co_filename, None):
            pass
    else:
        _remember(code.co_filename)


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
                    return Found(node, text.text, candidate)
    return None


def of_class(kind: type, methods: list[types.CodeType]) -> Found | None:
    """The definition of a class: one in which all its methods stand as they run."""
    module = sys.modules.get(kind.__module__)
    path = methods[0].co_filename if methods else getattr(module, "__file__", None)
    if not isinstance(path, str):
        return None
    for text in _texts_of(path, module):
        parsed = text.parsed()
        if parsed is None:
            continue
        tree, codes = parsed
        for body in codes.get(kind.__qualname__, ()):
            inside = [code for code in codes_in(body) if code is not body]
            if all(any(code.co_name == own.co_name and same_code(own, code) for code in inside) for own in methods):
                node = _class_of(tree, body)
                if node is not None:
                    return Found(node, text.text, body)
    return None


def of_module(module: types.ModuleType) -> ast.Module | None:
    """The whole text of a module."""
    path = getattr(module, "__file__", None)
    for text in _texts_of(path, module) if isinstance(path, str) else ():
        parsed = text.parsed()
        if parsed is not None:
            return parsed[0]
    return None


def assignments(module: types.ModuleType, name: str) -> list[ast.AST]:
    """The statements of a module, outside its functions and classes, that bind this name."""
    tree = of_module(module)
    found: list[ast.AST] = []
    waiting: list[ast.AST] = [tree] if tree is not None else []
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                continue
            targets = getattr(child, "targets", None) or [getattr(child, "target", None)]
            names = [each.id for target in targets if target for each in ast.walk(target) if isinstance(each, ast.Name)]
            if name in names and isinstance(child, ast.stmt):
                found.append(child)
            else:
                waiting.append(child)
    return sorted(found, key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0)))


def _texts_of(path: str, module: types.ModuleType | None) -> Iterator[_Text]:
    """What `path` is known to have said, the earliest first, and then what it says now."""
    known = _texts.get(path)
    if known is None:
        known = _remember(path, module)
    yield from list(known)
    now = _read(path, module)
    if now is not None and all(text.text != now for text in known):
        text = _Text(now, path)
        if len(known) >= _TEXTS_MAX:
            del known[1]
        known.append(text)
        yield text


def _remember(path: str, module: types.ModuleType | None = None) -> list[_Text]:
    if len(_texts) >= _FILES_MAX:
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
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name == code.co_name
            and _first_line(node) == code.co_firstlineno
        ):
            return node
    return None


def _class_of(tree: ast.Module, body: types.CodeType) -> ast.ClassDef | None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == body.co_name and _first_line(node) == body.co_firstlineno:
            return node
    return None


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _lambda_of(tree: ast.Module, code: types.CodeType) -> ast.Lambda | None:
    """The innermost lambda whose body holds every instruction of `code`."""
    spans: list[tuple[Position, Position]] = [
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
            inner = found is None or start >= (found.body.lineno, found.body.col_offset)
            if start <= first and last <= end and inner:
                found = node
    return found
