"""Code that changes while it runs, code in unusual wrappings, and code that was never in a file."""

from __future__ import annotations

import abc
import contextlib
import enum
import functools
import gc
import importlib
import linecache
import operator
import sys
import threading
import types
import weakref
from collections import namedtuple
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dibs.identity import FunctionIdentity, code_of

_cells = 0


def cell(text: str, namespace: dict[str, Any] | None = None, source: bool = True) -> Any:
    """Run `text` as a cell of a notebook; returns its names as attributes."""
    global _cells
    _cells += 1
    name = f"<ipython-input-{_cells}-0123456789ab>" if source else "<stdin>"
    if source:
        lines = text.splitlines(keepends=True)
        linecache.cache[name] = len(text), None, lines, name
    namespace = {"__name__": "__main__"} if namespace is None else namespace
    # With the `from __future__` of this file, as a notebook keeps it from one cell to the next.
    exec(compile(text, name, "exec"), namespace)  # noqa: S102
    return types.SimpleNamespace(**namespace, namespace=namespace)


def digest(function: Any, **options: Any) -> str:
    return FunctionIdentity(function, **options).code().digest


@pytest.mark.parametrize("source", [True, False])
def test_a_function_counts_by_what_it_says_wherever_it_was_typed(source: bool) -> None:
    text = "def helper(x):\n    '''Say it.'''\n    return x in {'a', 'b', 'c'}\ndef f(x):\n    return helper(x)\n"
    moved = "\n\n# again\n" + text.replace("Say it", "Say so")
    assert digest(cell(text, source=source).f) == digest(cell(moved, source=source).f)
    assert digest(cell(text, source=source).f) != digest(cell(text.replace("'c'", "'d'"), source=source).f)
    code = FunctionIdentity(cell(text, source=source).f).code()
    assert bool(code.notes) is not source
    if not source:
        assert "no source of f" in " ".join(code.notes)


def test_a_helper_that_is_typed_again_counts_as_it_is_now() -> None:
    notebook = cell("def helper(x):\n    return x\ndef f(x):\n    return helper(x)\n")
    identity = FunctionIdentity(notebook.f)
    before = identity.code()
    assert identity.code() is before
    cell("def helper(x):\n    return -x\n", notebook.namespace)
    assert identity.code().digest != before.digest
    cell("def helper(x): return x  # as it was\n", notebook.namespace)
    assert identity.code().digest == before.digest
    del notebook.namespace["helper"]
    assert identity.code().digest != before.digest


def test_globals_closures_and_classes_count_as_they_are_at_the_call() -> None:
    notebook = cell(
        "RATE = 1\nTABLE = {'a': [1]}\n"
        "class Model:\n    depth = 2\n    def run(self):\n        return RATE\n"
        "def make(n):\n    def get():\n        return n\n    def put(m):\n        nonlocal n\n        n = m\n"
        "    return get, put\n"
        "get, put = make(1)\n"
        "def f(x, y=2):\n    return RATE, TABLE, Model().run(), get(), isinstance(x, str)\n"
    )
    identity = FunctionIdentity(notebook.f)
    first = identity.code().digest
    seen = {first}

    def is_new() -> bool:
        found = identity.code().digest
        known = found in seen
        seen.add(found)
        assert identity.code().digest == found
        return not known

    notebook.namespace["RATE"] = 2
    assert is_new()
    notebook.TABLE["a"].append(2)
    assert is_new()
    notebook.put(5)
    assert is_new()
    notebook.Model.depth = 3
    assert is_new()
    notebook.Model.run = lambda self: 7
    assert is_new()
    notebook.Model.more = lambda self: 8
    assert is_new()
    notebook.f.__defaults__ = (3,)
    assert is_new()
    notebook.f.__code__ = (lambda x, y: x).__code__
    assert is_new()


def test_an_unseen_name_of_python_may_be_shadowed_later() -> None:
    notebook = cell("def f(x):\n    return sorted(x)\n")
    identity = FunctionIdentity(notebook.f)
    before = identity.code().digest
    cell("def sorted(x):\n    return x\n", notebook.namespace)
    assert identity.code().digest != before


def test_what_the_code_changes_itself_counts_as_its_module_assigns_it(tmp_path: Path) -> None:
    text = (
        "_seen = {'start': 1}\n_model = None\nCOUNT = 0\n"
        "def model():\n    global _model\n    if _model is None:\n        _model = object()\n    return _model\n"
        "def reads(x):\n    return _seen.get(x)\n"
        "def f(x):\n    global COUNT\n    COUNT += 1\n    _seen[x] = model()\n    return reads(x)\n"
    )
    one = module_of(tmp_path, "one_state", text)
    identity = FunctionIdentity(one.f)
    before = identity.code()
    one.f(3)
    one.f(4)
    assert identity.code().digest == before.digest
    assert FunctionIdentity(one.f).code().digest == before.digest
    assert any("_seen of one_state is changed by the code itself" in note for note in before.notes)
    name = "one_state"
    del sys.modules[name]
    edited = module_of(tmp_path / "edited", name, text.replace("'start': 1", "'start': 2"))
    assert digest(edited.f) != before.digest


def test_which_helper_a_name_means_counts() -> None:
    text = "def one(x): return 1\ndef two(x): return 2\ndef f(x): return first(second(x))\n"
    assert digest(cell(text + "first, second = one, two").f) != digest(cell(text + "first, second = two, one").f)


def test_functions_of_one_name_are_told_apart() -> None:
    text = "STEPS = [lambda x: 1, lambda x: 2]\ndef make(n): return lambda x: n\nBOTH = make(1), make(2)\n"
    text += "def f(x): return STEPS, BOTH\n"
    edits = ("x: 1", "x: 3"), ("x: 2", "x: 3"), ("make(1)", "make(3)"), ("make(2)", "make(3)")
    assert len({digest(cell(text.replace(*edit)).f) for edit in (("x", "x"), *edits)}) == 5


def test_a_module_that_is_loaded_again_is_read_again(tmp_path: Path) -> None:
    module = module_of(tmp_path, "loaded_again", "def f(x):\n    return 1\n")
    first = digest(module.f)
    for number in (2, 3):
        (tmp_path / "loaded_again.py").write_text(f"# {'x' * number}\ndef f(x):\n    return {number}\n")
        if number == 2:
            sys.path.insert(0, str(tmp_path))
            importlib.reload(module)
            sys.path.remove(str(tmp_path))
            identity = FunctionIdentity(module.f)
    code = identity.code()
    assert code.digest != first
    assert code.notes == ()


def module_of(folder: Path, name: str, text: str) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


WRAPPED = """
import contextlib, functools, abc, enum, dataclasses, collections, typing
K = 1
def inner(x):
    return x + K
{definition}
"""

DEFINITIONS = {
    "partial": "f = functools.partial(inner, 1)",
    "partial as a global": "part = functools.partial(inner, 1)\ndef f(): return part()",
    "lru_cache": "@functools.lru_cache(maxsize=3)\ndef cached(x): return inner(x)\ndef f(x): return cached(x)",
    "contextmanager": "@contextlib.contextmanager\ndef ctx():\n    yield inner(1)\n"
                      "def f():\n    with ctx() as x:\n        return x",
    "a list of functions": "STEPS = [inner, len]\ndef f(x): return [step(x) for step in STEPS]",
    "a dict of lambdas": "STEPS = {'a': lambda x: inner(x), 'b': lambda x: x}\ndef f(x): return STEPS['a'](x)",
    "a callable object": "class Step:\n    def __init__(self, n): self.n = n\n"
                         "    def __call__(self, x): return inner(x) + self.n\nf = Step(2)",
    "an object that is a constant": "class Step:\n    def run(self, x): return inner(x)\nSTEP = Step()\n"
                                    "def f(x): return STEP.run(x)",
    "a bound method": "class Step:\n    def run(self, x): return inner(x)\nf = Step().run",
    "singledispatch": "@functools.singledispatch\ndef go(x): return 0\n@go.register\ndef _(x: int): return inner(x)\n"
                      "def f(x): return go(x)",
    "super": "class A:\n    def run(self): return inner(1)\nclass B(A):\n    def run(self): return super().run()\n"
             "def f(): return B().run()",
    "an abstract class": "class A(abc.ABC):\n    @abc.abstractmethod\n    def run(self): ...\n"
                         "class B(A):\n    def run(self): return inner(1)\ndef f(): return B().run()",
    "an enum": "class E(enum.Enum):\n    A = 1\n    def run(self): return inner(self.value)\ndef f(): return E.A.run()",
    "a dataclass": "@dataclasses.dataclass(frozen=True)\nclass D:\n    x: int = 1\n"
                   "    def run(self): return inner(self.x)\ndef f(): return D().run()",
    "a named tuple": "class N(typing.NamedTuple):\n    x: int\n    def run(self): return inner(self.x)\n"
                     "P = collections.namedtuple('P', 'x')\ndef f(): return N(1).run(), P(2)",
    "cached_property": "class C:\n    @functools.cached_property\n    def run(self): return inner(1)\n"
                       "def f(): return C().run",
    "partialmethod": "class C:\n    def go(self, x): return inner(x)\n    run = functools.partialmethod(go, 1)\n"
                     "def f(): return C().run()",
    "a nested class": "class C:\n    class D:\n        def run(self): return inner(1)\ndef f(): return C.D().run()",
    "a class made inside": "def f():\n    class D:\n        def run(self): return inner(1)\n    return D().run()",
    "a metaclass": "class M(type):\n    def make(cls): return inner(1)\nclass C(metaclass=M): pass\n"
                   "def f(): return C.make()",
    "a class attribute that is a function": "class C:\n    step = staticmethod(inner)\ndef f(): return C.step(1)",
    "a method that a library swallows": "def keep(function):\n    return [str(function)[:0]]\n"
                                        "class C:\n    @keep\n    def go(self): return inner(1)\ndef f(): return C()",
    "a comprehension": "def f(xs): return [inner(x) for x in xs], {inner(x) for x in xs}, (lambda: inner(2))()",
    "a generator that it uses": "def many():\n    yield inner(1)\ndef f(): return list(many())",
    "an async function": "async def go(): return inner(1)\nasync def f(): return await go()",
    "a default that is a function": "def f(x, step=inner): return step(x)",
    "a keyword default": "def f(x, *, step=inner): return step(x)",
    "a constant in a tuple": "PAIR = (K, inner)\ndef f(x): return PAIR",
    "a match statement": "class C:\n    y = K\n    def run(self): return inner(1)\n"
                         "def f(x):\n    match x:\n        case C(): return 1",
}  # fmt: skip


@pytest.mark.parametrize("what", DEFINITIONS)
def test_code_is_found_through(what: str, tmp_path: Path) -> None:
    text = WRAPPED.replace("{definition}", DEFINITIONS[what])
    found = []
    for number, version in enumerate((text, text, text.replace("x + K", "x - K"), text.replace("K = 1", "K = 2"))):
        sys.modules.pop("wrapped_case", None)
        module = module_of(tmp_path / str(number), "wrapped_case", version)
        code = FunctionIdentity(module.f).code()
        assert not code.notes
        found.append(code.digest)
    sys.modules.pop("wrapped_case", None)
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_imports_inside_functions_are_followed_into_the_project_only(tmp_path: Path) -> None:
    (tmp_path / "lib_case").mkdir()
    (tmp_path / "lib_case" / "__init__.py").write_text("")
    (tmp_path / "lib_case" / "deep.py").write_text("def go(x):\n    return x\ndef other(x):\n    return x\n")
    bodies = [
        "    from lib_case.deep import go\n    return go(x)\n",
        "    import lib_case.deep\n    return lib_case.deep.go(x)\n",
        "    import lib_case.deep as d\n    return [d.go(y) for y in x]\n",
        "    from lib_case import deep\n    return deep.go(x)\n",
    ]
    text = "".join(f"def f{number}(x):\n{body}" for number, body in enumerate(bodies))
    text += "def g(x):\n    import json, xml.dom.pulldom, numpy.linalg, nonesuch\n    return json.loads(x)\n"
    module = module_of(tmp_path, "imports_case", text)
    sys.path.insert(0, str(tmp_path))
    try:
        identities = [FunctionIdentity(getattr(module, f"f{number}")) for number in range(len(bodies))]
        before = [identity.code().digest for identity in identities]
        assert all("helper lib_case.deep.go" in identity.code().ingredients for identity in identities)
        deep = sys.modules["lib_case.deep"]
        other, deep.other = deep.other, len  # type: ignore[attr-defined]
        assert [identity.code().digest for identity in identities] == before
        (tmp_path / "lib_case" / "deep.py").write_text("# edited\n")
        deep.go = other  # type: ignore[attr-defined]
        assert not {identity.code().digest for identity in identities} & set(before)
        assert not any(identity.code().notes for identity in identities)
        loaded = set(sys.modules)
        FunctionIdentity(module.g).code()
        assert not {name for name in set(sys.modules) - loaded if name.startswith("xml")}
    finally:
        sys.path.remove(str(tmp_path))


def test_a_memoized_function_that_is_used_counts_with_its_code(tmp_path: Path) -> None:
    text = (
        "import dibs\ncache = dibs.open('memory:')\n"
        "@cache.memoize\ndef step(x):\n    return x + 1\n\n"
        "class C:\n    @cache.memoize\n    def go(self, x):\n        return step(x)\n"
        "    @staticmethod\n    @cache.memoize\n    def s(x):\n        return x\n"
        "@cache.memoize\ndef f(x):\n    return C().go(step(x))\n"
    )
    digests = []
    edited = text.replace("x + 1", "x + 2"), text.replace("return step(x)", "return 0")
    for number, version in enumerate((text, *edited)):
        sys.modules.pop("memoized_case", None)
        module = module_of(tmp_path / str(number), "memoized_case", version)
        digests.append(module.f._recipe.identity.code().digest)
        assert module.f(1) is not None
        assert module.f._recipe.identity.code().digest == digests[-1]
    sys.modules.pop("memoized_case", None)
    assert len(set(digests)) == 3


def test_circles_end_and_equal_code_is_equal_wherever_one_enters() -> None:
    text = "def a(n):\n    return b(n)\ndef b(n):\n    return c(n), d\ndef c(n):\n    return a(n)\nd = [a, b]\n"
    one, other = cell(text), cell(text)
    other.c, other.b  # other order of asking
    assert [digest(getattr(one, name)) for name in "abc"] == [digest(getattr(other, name)) for name in "cba"][::-1]
    edited = cell(text.replace("c(n), d", "c(n)"))
    assert all(digest(getattr(one, name)) != digest(getattr(edited, name)) for name in "abc")


def test_the_order_of_functions_in_a_set_does_not_count() -> None:
    text = "def a(): pass\ndef b(): pass\ndef c(): pass\nALL = {a, b, c}\ndef f(): return ALL\n"
    assert len({digest(cell(text).f) for _ in range(20)}) == 1


class Colour(enum.Enum):
    RED = 1


class Point(NamedTuple):
    x: int


Pair = namedtuple("Pair", "left right")


class Shape(abc.ABC):
    sides = 0

    @abc.abstractmethod
    def area(self) -> float: ...


@functools.cache
def cached(x: int) -> int:
    return x


def test_code_of_knows_the_project_and_nothing_else() -> None:
    for kind in (Colour, Point, Pair, Shape, cell, module_of):
        found = code_of(kind)
        assert found is not None
        assert len(found) == 40
        assert code_of(kind) == found
    import numpy as np

    others = int, len, Path, np.ndarray, np.linalg.norm, operator.itemgetter, contextlib.suppress, FunctionIdentity
    for other in others:
        assert code_of(other) is None


def test_many_functions_do_not_stay_in_memory() -> None:
    last = None
    for number in range(1100):
        function = cell(f"def f(x): return x + {number}", source=False).f
        code_of(function)
        last = weakref.ref(function) if number == 0 else last
    del function
    gc.collect()
    assert last is not None
    assert last() is None


def test_threads_may_ask_at_once() -> None:
    notebook = cell("".join(f"def h{n}(x):\n    return x\n" for n in range(50)) + "def f(x):\n    return "
                    + " + ".join(f"h{n}(x)" for n in range(50)))  # fmt: skip
    identity = FunctionIdentity(notebook.f)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(identity.code().digest)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_looking_again_costs_no_look_at_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    import dibs.identity

    notebook = cell("TABLE = {'a': 1}\nclass C:\n    def m(self): return 1\ndef f(x):\n    return TABLE, C, len(x)\n")
    identity = FunctionIdentity(notebook.f)
    before = identity.code()
    monkeypatch.setattr(dibs.identity, "Graph", None)
    assert identity.code() is before


def test_an_unknown_name_is_no_error() -> None:
    notebook = cell("def f(x):\n    return nowhere(x)\n")
    identity = FunctionIdentity(notebook.f)
    before = identity.code().digest
    notebook.namespace["nowhere"] = 3
    assert identity.code().digest != before
