"""What changes the code of a function, and what doesn't: each case is two versions of a small project."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dibs import Undigestible
from dibs.identity import Code, FunctionIdentity

Files = dict[str, str]
Write = Callable[..., "Project"]

PROJECT: Files = {
    "project/__init__.py": "",
    "project/settings.py": "FACTOR = 3\nUNUSED = 4\n",
    "project/tools.py": """
from functools import wraps
from project.settings import FACTOR

SEPARATOR = ", "

def clean(text):
    '''Make it plain.'''
    return strip(text).lower() * FACTOR

def strip(text):  # a helper of a helper
    return text.strip()

def other(text):
    return text.upper()

def timed(function):
    @wraps(function)
    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        return result
    return wrapper

def plain(function):
    def replacement(*args):
        return function(*args)
    return replacement
""",
    "project/model.py": """
from dataclasses import dataclass

class Base:
    depth = 2

    def grow(self):
        return self.depth + 1

class Model(Base):
    rate = 0.1

    def fit(self, rows):
        return [self.scale(row) for row in rows]

    @staticmethod
    def scale(row):
        return row * 2

    @classmethod
    def make(cls):
        return cls()

    @property
    def name(self):
        return "model"

@dataclass
class Options:
    lr: float = 0.1
""",
    "project/train.py": """
import dibs
import project.tools
from project import tools
from project.model import Model, Options
from project.tools import clean, plain, timed

cache = dibs.open("memory:")
RATE = 0.5
STOPS = {"a", "the"}
TABLE = {"clean": clean, "size": 3}

@cache.memoize
def calls(text, lr=0.1, *, steps=RATE):
    # what it does
    return clean(text), RATE

@cache.memoize
@timed
def layered(text):
    return text

@cache.memoize
@plain
def replaced(text):
    return text

@cache.memoize
def chained(text):
    return project.tools.clean(text), tools.SEPARATOR

@cache.memoize
def models(rows):
    return Model.make().fit(rows), Options()

@cache.memoize
def looks_up(word):
    return TABLE["clean"](word) if word in STOPS else None

@cache.memoize
def imports(text):
    from .tools import clean as cleaned
    import project.settings
    import project.settings as also
    return cleaned(text), project.settings.FACTOR, (lambda: also.FACTOR)()

@cache.memoize
def even(n):
    return n == 0 or odd(n - 1)

def odd(n):
    return n != 0 and even(n - 1)

def scaled(scale):
    @cache.memoize
    def by(x):
        return x * scale
    return by

twice = scaled(2)
thrice = scaled(3)
sorts = cache.memoize(lambda rows: sorted(rows, key=lambda row: row[0]))
""",
}


class Project:
    """One version of the project, imported."""

    def __init__(self, folder: Path, files: Files) -> None:
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        forget_modules()
        sys.path.insert(0, str(folder))
        try:
            self.train: Any = importlib.import_module("project.train")
            self.modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "project"}
        finally:
            sys.path.remove(str(folder))
        self.folder = folder

    def identity(self, name: str) -> FunctionIdentity:
        found: FunctionIdentity = getattr(self.train, name)._recipe.identity
        return found

    def code(self, name: str) -> Code:
        sys.modules.update(self.modules)  # as if it were the only version
        return self.identity(name).code()


def forget_modules() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "project"]:
        del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a version of the project, with replacements `("file", "old", "new")`, in a folder of its own."""
    count = 0

    def make(*edits: tuple[str, str, str], also: Files | None = None) -> Project:
        nonlocal count
        count += 1
        files = dict(PROJECT) | (also or {})
        for file, old, new in edits:
            name = f"project/{file}.py"
            assert old in files[name]
            files[name] = files[name].replace(old, new)
        return Project(tmp_path / f"version-{count}", files)

    yield make
    forget_modules()


FUNCTIONS = (
    "calls", "layered", "replaced", "chained", "models", "looks_up", "imports", "even", "twice", "thrice", "sorts",
)  # fmt: skip


def changed(before: Project, after: Project) -> set[str]:
    return {name for name in FUNCTIONS if before.code(name).digest != after.code(name).digest}


EDITS_THAT_COUNT = {
    "the function itself": ([("train", "return clean(text), RATE", "return clean(text), -RATE")], {"calls"}),
    "a helper": ([("tools", "lower()", "casefold()")], {"calls", "chained", "looks_up", "imports"}),
    "a helper of a helper": ([("tools", "text.strip()", "text.rstrip()")], {"calls", "chained", "looks_up", "imports"}),
    "a constant": ([("train", "RATE = 0.5", "RATE = 0.6")], {"calls"}),
    "a constant of another module": ([("settings", "FACTOR = 3", "FACTOR = 5")],
                                     {"calls", "chained", "looks_up", "imports"}),
    "a constant that is asked of a module": ([("tools", '", "', '"; "')], {"chained"}),
    "a member of a set": ([("train", '"the"', '"an"')], {"looks_up"}),
    "a default": ([("train", "lr=0.1", "lr=0.2")], {"calls"}),
    "a value in a closure": ([("train", "scaled(2)", "scaled(4)")], {"twice"}),
    "the function that makes a closure": ([("train", "return x * scale", "return scale * x")], {"twice", "thrice"}),
    "a method of a class": ([("model", "row * 2", "row * 3")], {"models"}),
    "a property of a class": ([("model", '"model"', '"other"')], {"models"}),
    "a method of a base class": ([("model", "self.depth + 1", "self.depth + 2")], {"models"}),
    "an attribute of a class": ([("model", "rate = 0.1", "rate = 0.2")], {"models"}),
    "a field of a dataclass": ([("model", "lr: float = 0.1", "lr: float = 0.2")], {"models"}),
    "a decorator in between": ([("tools", "        return result", "        return [result]")], {"layered"}),
    "a decorator that hides what it wraps": ([("tools", "return function(*args)", "return [function(*args)]")],
                                             {"replaced"}),
    "what a decorator wraps": ([("train", "def layered(text):\n    return text", "def layered(text):\n    return 1"),
                                ("train", "def replaced(text):\n    return text", "def replaced(text):\n    return 1")],
                               {"layered", "replaced"}),
    "one decorator less": ([("train", "@timed\n", "")], {"layered"}),
    "the other of two that call each other": ([("train", "n != 0 and", "n > 0 and")], {"even"}),
    "a lambda inside": ([("train", "row[0]", "row[1]")], {"sorts"}),
    "a name that means another helper": ([("train", "import clean, plain", "import other as clean, plain")],
                                         {"calls", "looks_up"}),
    "a type annotation": ([("train", "def odd(n)", "def odd(n: int)")], {"even"}),
    "the type of a number": ([("train", "n == 0 or", "n == 0.0 or")], {"even"}),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS_THAT_COUNT)
def test_an_edit_of_it_changes_the_code_of_those_who_use_it_and_of_no_others(write: Write, what: str) -> None:
    edits, expected = EDITS_THAT_COUNT[what]
    assert changed(write(), write(*edits)) == expected


EDITS_THAT_DO_NOT = {
    "nothing but the folder": [],
    "a comment": [("train", "# what it does", "# what it really does"), ("tools", "  # a helper of a helper", "")],
    "a docstring": [("tools", "Make it plain.", "Make it\n    very plain."),
                    ("model", "class Base:\n", "class Base:\n    '''What others build on.'''\n")],
    "moved lines": [("train", "import dibs\n", "import dibs\n\n\nVERSION = 7\n\n"), ("tools", "SEP", "\n\n\nSEP")],
    "formatting": [("train", "(text, lr=0.1, *, steps=RATE)", "(\n    text,\n    lr = 1e-1,\n    *, steps=RATE,\n)"),
                   ("train", 'if word in STOPS else None', "if (word\n        in STOPS) else None"),
                   ("tools", '", "', "', '")],
    "a helper that nobody uses": [("tools", "text.upper()", "text.title()"), ("settings", "4", "5")],
    "the options of memoize": [("train", "@cache.memoize\n", "@cache.memoize(expires_s=60, stale_ok=True)\n")],
    "the name of the cache": [("train", "cache", "storage")],
    "the order of a set": [("train", '{"a", "the"}', '{"the", "a"}')],
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS_THAT_DO_NOT)
def test_an_edit_of_it_changes_the_code_of_nobody(write: Write, what: str) -> None:
    before = write()
    assert not before.code("calls").notes
    assert changed(before, write(*EDITS_THAT_DO_NOT[what])) == set()


def test_a_file_that_is_edited_after_the_import_changes_nothing(write: Write) -> None:
    """Before the code was asked for the first time, so nothing but the texts is known of it."""
    before, running = write(), write()
    for name in ("tools", "model", "settings", "train"):
        file = running.folder / "project" / f"{name}.py"
        file.write_text("# rewritten\n" + file.read_text().replace("text", "word").replace("row", "line"))
    assert changed(before, running) == set()
    assert not any(running.code(name).notes for name in FUNCTIONS)


def test_a_file_that_was_edited_before_anybody_read_it_is_noticed(write: Write) -> None:
    """The byte code counts then, and a note says so: never the text of something else."""
    running = write()
    late = running.folder / "project" / "late.py"
    model = "\nclass Model:\n    rate = 1\n    def run(self):\n        return 1\n"
    late.write_text("def helper(x):\n    return x + 1\n\ndef untouched(x):\n    return x + 2\n" + model)
    sys.path.insert(0, str(running.folder))
    sys.modules.update(running.modules)
    module = importlib.import_module("project.late")
    sys.path.remove(str(running.folder))
    edited = model.replace("return 1", "return 2")
    late.write_text("# moved\ndef helper(x):\n    return x + 3\n\ndef untouched(x):\n    return x + 2\n" + edited)
    code = FunctionIdentity(module.helper).code()
    assert "byte code" in code.ingredients["source"][1]
    assert any("no source of helper" in note for note in code.notes)
    assert FunctionIdentity(module.untouched).code().notes == ()
    notes = FunctionIdentity(lambda: module.Model().run()).code().notes
    assert any("no source of project.late.Model" in note for note in notes)


def test_the_ingredients_say_what_changed(write: Write) -> None:
    before = write().code("calls").ingredients
    after = write(("tools", "lower()", "casefold()"), ("train", "RATE = 0.5", "RATE = 0.25")).code("calls").ingredients
    differing = {label for label in before if before[label] != after[label]}
    assert differing == {"helper project.tools.clean", "constant project.train.RATE", "default steps"}
    assert set(before) == set(after)
    assert before["source"][1] == "def calls(text, lr=0.1, *, steps=RATE):"
    assert before["constant project.train.RATE"][1] == "0.5"
    assert after["constant project.train.RATE"][1] == "0.25"
    assert before["constant project.tools.FACTOR"][1] == "3"
    assert "def clean(text):" in before["helper project.tools.clean"][1]
    assert all(len(digest) == 16 and len(text) <= 80 for digest, text in before.values())


def test_deps_and_version_choose_what_counts(write: Write) -> None:
    def digests(project: Project, **options: Any) -> str:
        return FunctionIdentity(project.train.calls.__wrapped__, **options).code().digest

    one = write()
    helper, own = write(("tools", "lower()", "casefold()")), write(("train", "return clean(text),", "return 1,"))
    default = write(("train", "lr=0.1", "lr=0.2"))
    for options, expected in (
        ({"deps": "project"}, {"helper", "own", "default"}),
        ({"deps": "function"}, {"own", "default"}),
        ({"deps": "none"}, set()),
        ({"version": "1"}, set()),
    ):
        found = set()
        for label, other in (("helper", helper), ("own", own), ("default", default)):
            if digests(one, **options) != digests(other, **options):  # type: ignore[arg-type]
                found.add(label)
        assert found == expected, options
    assert digests(one, version="1") != digests(one, version="2")
    assert FunctionIdentity(one.train.calls.__wrapped__, version="2").code().ingredients["version"][1] == "'2'"


def test_packages_count_by_version_when_asked(write: Write) -> None:
    function = write().train.calls.__wrapped__
    code = FunctionIdentity(function, packages=("numpy", "sklearn")).code()
    import numpy as np

    assert code.ingredients["package numpy"][1] == np.__version__
    assert "package sklearn" in code.ingredients
    assert code.digest != FunctionIdentity(function).code().digest
    with pytest.raises(ValueError, match="no package 'nonesuch'"):
        FunctionIdentity(function, packages=("nonesuch",))


def test_a_constant_without_a_digest_is_refused_by_name_with_remedies(write: Write) -> None:
    project = write(("train", "RATE = 0.5", "RATE = open(__file__)"), ("train", "steps=RATE", "steps=1"))
    with pytest.raises(Undigestible, match=r'constant project\.train\.RATE(?s:.*)deps="function"'):
        project.code("calls")
    project.train.RATE.close()


@pytest.mark.parametrize(
    "tool",
    [
        "__import__('logging').getLogger(__name__)",
        "__import__('threading').Lock()",
        "__import__('threading').local()",
        "cache",
        "__import__('json')",
        "__import__('math').sqrt",
        "__import__('random').randint",
        "__import__('typing').TypeVar('T')",
        "__import__('contextvars').ContextVar('name')",
        "object()",
        "__import__('numpy').add",
        "__import__('scipy.special').special.expit",
    ],
)
def test_tools_count_by_name(write: Write, tool: str) -> None:
    edits = ("train", "RATE = 0.5", f"RATE = {tool}"), ("train", "steps=RATE", "steps=1")
    project = write(*edits)
    before = project.code("calls").digest
    random.random()  # changes what random.randint is bound to
    assert write(*edits).code("calls").digest == project.code("calls").digest == before


def test_a_deep_expression_is_no_trouble(write: Write) -> None:
    long = " + ".join(["x"] * 600)
    branches = "".join(f"    elif x == {n}:\n        return {n}\n" for n in range(400))
    text = f"def deep(x):\n    if x is None:\n        return {long}\n{branches}"
    one, other = (write(also={"project/deep.py": text + end}) for end in ("", "    return 1\n"))
    digests = []
    for project in (one, other):
        sys.path.insert(0, str(project.folder))
        forget_modules()
        sys.modules.update(project.modules)
        code = FunctionIdentity(importlib.import_module("project.deep").deep).code()
        sys.path.remove(str(project.folder))
        assert not code.notes
        digests.append(code.digest)
    assert digests[0] != digests[1]
