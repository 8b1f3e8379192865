"""The same digests in every process: hash seeds, fork and spawn, another minor version of Python, `__main__`."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from dibs.digest import module_name
from tests import golden_digest

ROOT = Path(__file__).resolve().parents[1]
KEPT: dict[str, str] = json.loads(golden_digest.PATH.read_text())["digests"]
FEWEST = 116
"""Vectors that need nothing but NumPy."""


def differing(found: dict[str, str]) -> list[str]:
    assert len(found) >= FEWEST
    return [name for name, digest in found.items() if KEPT[name] != digest]


def printed_by(python: str, seed: str) -> dict[str, str]:
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    command = [python, "-m", "tests.golden_digest", "--print"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, str] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("seed", ["0", "1", "2", "4294967295"])
def test_digests_do_not_depend_on_the_hash_seed(seed: str) -> None:
    assert differing(printed_by(sys.executable, seed)) == []


def test_another_version_of_python_agrees() -> None:
    other = os.environ.get("DIBS_OTHER_PYTHON")
    if not other:
        pytest.skip("DIBS_OTHER_PYTHON names no other Python")
    assert differing(printed_by(other, "5")) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_agree(method: str) -> None:
    golden_digest.digests()  # so that a forked child inherits whatever there is to inherit
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        # Polars itself doesn't work in a forked child.
        found = pool.submit(golden_digest.digests, without="polars" if method == "fork" else "").result()
    assert differing(found) == []


PROGRAM = """
import enum, multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dibs.digest import digest_of, module_name

class Color(enum.Enum):
    RED = 1

class Config:
    def __init__(self):
        self.tags = {"a", "b", "c", "d"}

def values():
    return [Config(), Color.RED, {Config: len}, Config]

def digest():
    return digest_of(values(), code_of=lambda obj: "code")

def names_and_digest():
    return Config.__module__, module_name(Config), digest()

if __name__ == "__main__":
    found = {(module_name(Config), digest())}
    modules = {Config.__module__}
    for method in ("fork", "spawn", "forkserver"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
            module, *rest = pool.submit(names_and_digest).result()
        modules.add(module)
        found.add(tuple(rest))
    assert modules == {"__main__", "__mp_main__"}, modules
    ((name, digest),) = found
    print(name, digest)
"""


def run(*command: str, cwd: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(cwd)}
    ran = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_what_a_program_defines_has_one_name_in_its_children_and_when_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "train.py").write_text(PROGRAM)
    (tmp_path / "package" / "train.py").write_text(PROGRAM)
    imported = "import {0}; print({0}.module_name({0}.Config), {0}.digest())"
    as_script = run("train.py", cwd=tmp_path)
    as_module = run("-m", "package.train", cwd=tmp_path)
    assert as_script == run("-c", imported.format("train"), cwd=tmp_path)
    assert as_module == run("-c", imported.format("package.train"), cwd=tmp_path)
    assert (as_script[0], as_module[0]) == ("train", "package.train")
    assert as_script[1] != as_module[1]


def test_without_a_file_the_program_is_called_main(tmp_path: Path) -> None:
    script = "class A: pass\nfrom dibs.digest import module_name\nprint(module_name(A), module_name(len))"
    assert run("-c", script, cwd=tmp_path) == ["__main__", "builtins"]


def test_module_names_of_others_are_left_alone() -> None:
    assert module_name(golden_digest.Color) == "tests.golden_digest"
    assert module_name(json.JSONDecoder) == "json.decoder"
    assert module_name(3) == "builtins"


def test_importing_the_digest_imports_no_package_of_data() -> None:
    script = "import sys, dibs.digest; print(*sorted(sys.modules))"
    loaded = {name.partition(".")[0] for name in run("-c", script, cwd=ROOT)}
    heavy = {"numpy", "pandas", "torch", "pyarrow", "polars", "scipy", "sklearn", "pydantic", "cloudpickle"}
    assert loaded & heavy == set()
    script = "import sys; from dibs.digest import digest_of; digest_of([1, {'a'}, 'x']); print(*sorted(sys.modules))"
    assert "numpy" not in run("-c", script, cwd=ROOT)
