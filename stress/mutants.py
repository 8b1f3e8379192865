"""`python -m stress.mutants [NAME…]`: plant the bugs of `stress.planted`, and see that the tests notice each of them.

Each bug is planted in a copy of the checkout, where its command must fail; the same command must pass in a copy
without it.  What a command imported is checked, so that an installed dibs can't stand in for the copy.
Prints a table, and ends with 1 if a bug was not noticed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from stress.planted import MUTANTS, Mutant

ROOT: Final = Path(__file__).resolve().parent.parent
COPIED: Final = ("src", "tests", "stress", "bench", "pyproject.toml", "ARCHITECTURE.md")
LIMIT_S: Final = 180.0
PYTEST: Final = "-q -x --tb=no -rfE --show-capture=no --timeout=15 -p no:cacheprovider"

# Says which dibs is imported in the very process that is judged, then becomes the module that it was told to run.
_LAUNCH: Final = """
import runpy, sys, dibs
print("dibs is", dibs.__file__, flush=True)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class Stale(Exception):
    """The place where a bug was to be planted has changed."""


class Ran(NamedTuple):
    """How a command ended; `complaint` is the test or verdict that failed first, empty if none did."""

    passed: bool
    complaint: str
    output: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stress.mutants", description=__doc__)
    parser.add_argument("name", nargs="*", help="part of a bug's name")
    parser.add_argument("--list", action="store_true", help="name the bugs and end")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if any(part in mutant.name for part in arguments.name or [""])]
    if not chosen:
        parser.error("no bug has such a name; --list shows them")
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name:44} {mutant.promise:38} {mutant.command}")
        return 0
    try:
        for mutant in chosen:
            planted(mutant, ROOT)
    except Stale as stale:
        sys.exit(str(stale))
    with tempfile.TemporaryDirectory(prefix="dibs-mutants-") as folder:
        survivors = _plant_all(chosen, Path(folder))
    print(f"\n{len(chosen) - survivors} noticed, {survivors} survived")
    return 1 if survivors else 0


def planted(mutant: Mutant, root: Path) -> str:
    """The text of the mutant's file below `root`, with the bug in it; raises Stale when its place is not there."""
    text = (root / "src" / "dibs" / mutant.file).read_text()
    found = text.count(mutant.old)
    if found != 1:
        raise Stale(f"{mutant.name}: its text occurs {found} times in src/dibs/{mutant.file}, not once")
    if mutant.new == mutant.old:
        raise Stale(f"{mutant.name} changes nothing")
    return text.replace(mutant.old, mutant.new)


def _plant_all(chosen: Iterable[Mutant], folder: Path) -> int:
    """Run the mutants, each command's control first; return how many survived."""
    sound = _copy(folder / "sound")
    controls: dict[str, Ran] = {}
    survivors = 0
    _print_row("mutant", "promise", "caught by", "s")
    for mutant in chosen:
        control = controls.get(mutant.command)
        if control is None:
            control = controls[mutant.command] = _run(mutant.command, sound)
            if not control.passed:
                sys.exit(f"{mutant.command} fails without any bug, so it proves nothing:\n{control.output}")
        copy = _copy(folder / mutant.name)
        (copy / "src" / "dibs" / mutant.file).write_text(planted(mutant, copy))
        ran = _run(mutant.command, copy)
        shutil.rmtree(copy, ignore_errors=True)
        if not ran.complaint:
            survivors += 1
            print(ran.output[-2000:], file=sys.stderr)
        _print_row(mutant.name, mutant.promise, ran.complaint or "NOBODY", f"{ran.seconds:.1f}")
    return survivors


def _copy(to: Path) -> Path:
    to.mkdir()
    leave_out = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=leave_out)
        else:
            shutil.copy2(source, to / name)
    return to


def _run(command: str, root: Path) -> Ran:
    """Run `command` on the checkout in `root`.  A failure counts only if a test or a verdict failed: a bug that
    keeps the tests from starting proves nothing."""
    module, *options = shlex.split(command)
    if module == "pytest":
        options += shlex.split(PYTEST)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("DIBS_", "PYTEST_"))},
        "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}",
        "DIBS_MINISTACK_PYTHON": os.environ.get(
            "DIBS_MINISTACK_PYTHON", str(ROOT / ".venv-ministack" / "bin" / "python")
        ),
        "CI": "true",  # a server that isn't installed fails its tests instead of skipping them
    }
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, module, *options],
        cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        _kill_all_of(process)
        output = process.communicate()[0] + f"\nstopped after {LIMIT_S:g} s"
    finally:
        _kill_all_of(process)  # what a failed test left running
    seconds = time.monotonic() - began
    imported = re.search(r"^dibs is (.*)$", output, re.MULTILINE)
    if imported is not None:  # a bug may break the import itself; then nothing was noticed by a test
        assert Path(imported[1]) == root / "src" / "dibs" / "__init__.py", f"{imported[1]} was tested, not {root}"
    passed = process.returncode == 0 and imported is not None
    return Ran(passed, _complaint(process.returncode, output), output, seconds)


def _kill_all_of(process: subprocess.Popen[str]) -> None:
    """Kill the process group that was started with `process`."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _complaint(status: int, output: str) -> str:
    """The first test that failed, or the first promise that a simulated world found broken."""
    if status != 1:
        return ""
    test = re.search(r"^FAILED tests/(.+?)(?: - .*)?$", output, re.MULTILINE)
    verdict = re.search(r"^seed \d+ \(.*\) broke a promise:\n  (\w+):", output, re.MULTILINE)
    found = test or verdict
    return found[1] if found else ""


def _print_row(name: str, promise: str, caught_by: str, seconds: str) -> None:
    print(f"{name:43} {promise:36} {seconds:>5}  {caught_by}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
