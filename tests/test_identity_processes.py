"""The same code has the same identity in every process: hash seeds, Python versions, ways to start, pickles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.test_identity import FUNCTIONS, PROJECT
from tests.test_identity_running import DEFINITIONS, WRAPPED

SOURCE = str(Path(__file__).resolve().parents[1] / "src")
OTHER_PYTHON = os.environ.get("DIBS_OTHER_PYTHON") or str(Path(SOURCE).parent / ".venv-other" / "bin" / "python")

PRINT_ALL = f"""
import importlib, json, sys
from dibs.identity import FunctionIdentity
import project.train
found = {{}}
for number in range({len(DEFINITIONS)}):
    code = FunctionIdentity(importlib.import_module(f"cases.case_{{number}}").f).code()
    found[code.name] = code.digest, code.notes
for name in {FUNCTIONS!r}:
    code = getattr(project.train, name)._recipe.identity.code()
    found[name] = code.digest, code.notes
print(json.dumps(found, sort_keys=True))
"""

PROGRAM = """
import json, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from dibs.identity import FunctionIdentity

class Model:
    def run(self, x):
        return x + 1

MODEL = Model()

def helper(x):
    return MODEL.run(x) in {"a", "b", "c"}

def work(x, y=2):
    return helper(x)

def identity(_=None):
    code = FunctionIdentity(work).code()
    return code.name, code.digest, code.ingredients, code.notes

if __name__ == "__main__":
    found = {"here": identity()}
    for method in ("spawn", "fork"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
            found[method] = pool.submit(identity).result()
    print(json.dumps(found))
"""

BY_VALUE = """
import json, subprocess, sys
import cloudpickle
from dibs.identity import FunctionIdentity

class Model:
    def run(self, x):
        return x + 1

def helper(x):
    return Model().run(x)

def work(x, y=2):
    return helper(x)

identity = FunctionIdentity(work)
file = sys.argv[1] + "/pickled"
with open(file, "wb") as out:
    cloudpickle.dump((identity, work), out)
child = (
    "import pickle, sys; identity, work = pickle.load(open(sys.argv[1], 'rb'));"
    "print(identity.name, identity.code().digest, work(1))"
)
elsewhere = subprocess.run([sys.executable, "-c", child, file], capture_output=True, text=True, check=True, cwd="/")
print(json.dumps([f"{identity.name} {identity.code().digest} 2", elsewhere.stdout.strip()]))
"""


def run(*command: str, folder: Path, python: str = sys.executable, seed: int = 0, given: str | None = None) -> Any:
    environment = {**os.environ, "PYTHONPATH": SOURCE, "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [python, *command], cwd=folder, env=environment, input=given, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_everything(tmp_path / "checkout")


def write_everything(folder: Path) -> Path:
    files = {f"cases/case_{n}.py": WRAPPED.replace("{definition}", each) for n, each in enumerate(DEFINITIONS.values())}
    for name, text in {**PROJECT, **files, "cases/__init__.py": "", "everything.py": PRINT_ALL}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_hash_seeds_folders_and_archives_change_nothing(folder: Path, tmp_path: Path) -> None:
    first = run("everything.py", folder=folder)
    assert not any(notes for _, notes in first.values())
    assert run("everything.py", folder=folder, seed=1) == first
    elsewhere = write_everything(tmp_path / "other" / "place")
    assert run("-m", "everything", folder=elsewhere, seed=2) == first
    archive = tmp_path / "everything.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in folder.rglob("*.py"):
            packed.write(file, file.relative_to(folder))
    start = f"import sys; sys.path.insert(0, {str(archive)!r}); import everything"
    assert run("-c", start, folder=tmp_path, seed=3) == first


@pytest.mark.skipif(not os.path.exists(OTHER_PYTHON), reason="this machine has no other Python")
def test_versions_of_python_agree(folder: Path) -> None:
    assert run("everything.py", folder=folder, python=OTHER_PYTHON, seed=4) == run("everything.py", folder=folder)


def test_the_program_itself_has_one_name_and_one_code_however_it_is_started(tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "__init__.py").write_text("")
    (tmp_path / "programs" / "program.py").write_text(PROGRAM)
    imported = run("-c", "import json, programs.program as p; print(json.dumps(p.identity()))", folder=tmp_path)
    as_module = run("-m", "programs.program", folder=tmp_path)
    as_script = run("programs/program.py", folder=tmp_path, seed=1)
    assert as_module["here"] == as_module["spawn"] == as_module["fork"]
    assert as_script["here"] == as_script["spawn"] == as_script["fork"]
    assert as_module["here"][:2] == imported[:2]
    assert imported[0] == "programs.program.work"
    assert as_script["here"][0] == "program.work"
    assert not imported[3]


def test_what_is_pickled_by_value_keeps_its_identity_where_nothing_else_is_known_of_it(tmp_path: Path) -> None:
    (tmp_path / "by_value.py").write_text(BY_VALUE)
    here, elsewhere = run("by_value.py", str(tmp_path), folder=tmp_path)
    assert here == elsewhere


@pytest.mark.parametrize("python", [sys.executable, OTHER_PYTHON])
def test_what_is_typed_into_the_interpreter_works(python: str, tmp_path: Path) -> None:
    if not os.path.exists(python):
        pytest.skip("this machine has no other Python")
    typed = (
        "import json\nfrom dibs.identity import FunctionIdentity\n"
        "def helper(x):\n    return x in {'a', 'b', 'c'}\n\n"
        "class Model:\n    def run(self, x):\n        return helper(x)\n\n"
        "def work(x):\n    return Model().run(x)\n\n"
        "before = FunctionIdentity(work).code()\n"
        "def helper(x):\n    return x in {'a', 'b', 'd'}\n\n"
        "after = FunctionIdentity(work).code()\n"
        "assert before.digest != after.digest\n"
        "print(json.dumps([before.digest, after.digest]))\n"
    )
    found = {tuple(run("-i", "-q", folder=tmp_path, python=python, seed=seed, given=typed)) for seed in (0, 1, 2)}
    assert len(found) == 1
