"""The examples of docs/run.md do what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "run.md"
TRAIN = '#!/bin/sh\necho "${3:-alone}" >> runs\necho training\n{ cat "$1"; echo "$3"; } > "$2"\n'


def example(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"no example below {title!r}"
    return found[1]


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with `train` and its corpus, and `dibs` on the path."""
    for name in [name for name in os.environ if name.startswith("DIBS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DIBS_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("DIBS_URL", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dibs").write_text(f'#!/bin/sh\nexec {sys.executable} -m dibs "$@"\n')
    (tmp_path / "bin" / "dibs").chmod(0o755)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("corpus.txt").write_text("once upon a time\n")
    Path("train").write_text(TRAIN)
    Path("train").chmod(0o755)


def runs() -> list[str]:
    return sorted(Path("runs").read_text().split()) if Path("runs").exists() else []


def twice(*command: str) -> list[str]:
    """Run it, remove the models, and run it again; what was printed each time."""
    said = []
    for _ in range(2):
        said.append(subprocess.run(command, check=True, stdout=-1, text=True).stdout)
        models = sorted(Path().glob("model*"))
        assert models
        assert all(model.read_text().startswith("once upon a time\n") for model in models)
        for model in models:
            model.unlink()
    return said


def test_the_makefile() -> None:
    Path("Makefile").write_text(example("In a Makefile"))
    first, second = twice("make", "-s")
    assert first == second == "training\n"
    assert runs() == ["alone"]
    subprocess.run(["make", "-s"], check=True)
    assert subprocess.run(["make", "-q"]).returncode == 0, "make is content"
    Path("train").write_text(TRAIN + "# edited\n")
    subprocess.run(["make", "-s"], check=True)
    assert runs() == ["alone", "alone"], "the program was declared, so it counts"


@pytest.mark.parametrize(("title", "count"), [("In a shell loop", 3), ("With xargs", 8)])
def test_the_shell_examples(title: str, count: int) -> None:
    first, second = twice("sh", "-c", example(title))
    assert first == second == "training\n" * count
    assert runs() == [str(number) for number in range(1, count + 1)]


def test_the_slurm_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task as Slurm starts it, without Slurm."""
    script = example("In a Slurm array")
    assert "export DIBS_URL=" in script
    here = f"export DIBS_URL={tmp_path / 'cache'}"
    Path("array").write_text(re.sub(r"^export DIBS_URL=.*$", here, script, flags=re.MULTILINE))
    for task in ("1", "2", "1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        subprocess.run(["sh", "array"], check=True)
    assert runs() == ["1", "2"]
